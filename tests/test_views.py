"""Views: exact where they can be, equal to scipy where not, and the same from the same seed."""
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from real_data import DATA, needs_data
from search_sdo.models.grid import read_grid, view_grid
from search_sdo.models.light import blur, cutout, drop_channels, from_flux, to_flux
from search_sdo.models.sky import knee_of, partners, rate
from search_sdo.models.views import RECIPES, Recipe, Sky, expose, load_frames, random_matrices, relight, sample, sky_of, tile_places, two_views, view_matrix
from search_sdo.packager.channels import stretch
from search_sdo.packager.frame import Disk, Frame
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun, rotation_rate
from search_sdo.packager.tiles import Tiles, pixel_to_sphere, sphere_to_pixel

seed = torch.Generator().manual_seed
STILL = Recipe(rotate=0, zoom=1, shift=0, flip=False, exposure=0, contrast=1, noise=0)


@pytest.fixture(scope="module")
def frames():
    return torch.rand(5, 3, 100, 120, generator=seed(0))


@pytest.fixture(scope="module")
def places():
    return torch.stack([torch.arange(40) % 5, 30 + torch.rand(40, generator=seed(1)) * 40, 35 + torch.rand(40, generator=seed(2)) * 50], 1)


def test_plain_views_are_the_pixels(frames):
    one = torch.ones(1)
    m = view_matrix(torch.tensor([[3., 40.5, 50.5]]), 0 * one, one, torch.zeros(1, 2), one)
    torch.testing.assert_close(sample(frames, torch.tensor([3]), m, 32)[0], frames[3, :, 25:57, 35:67], atol=2e-5, rtol=0)


def test_views_equal_scipy_for_any_matrix(frames, places):
    m = random_matrices(places, 16, Recipe(zoom=1.5, shift=0.3), generator=seed(3))
    views = sample(frames, places[:, 0].long(), m, 16)
    line = np.arange(16) - 7.5
    for view, f, (a, b) in zip(views, places[:, 0].long(), m.numpy()):
        x, y = (v[0] * line[None, :] + v[1] * line[:, None] + v[2] for v in (a, b))
        for channel in range(3):
            np.testing.assert_allclose(view[channel], map_coordinates(frames[f, channel].numpy(), [y, x], order=1, mode="nearest"), atol=1e-4)


def test_quarter_turns_and_mirrors_are_exact(frames):
    place, zero, one = torch.tensor([[0., 49.5, 59.5]]), torch.zeros(1, 2), torch.ones(1)
    tile = frames[0, :, 34:66, 44:76]
    look = lambda angle, flip: sample(frames, torch.tensor([0]), view_matrix(place, angle * one, one, zero, flip * one), 32)[0]
    torch.testing.assert_close(look(0, -1), tile.flip(2), atol=2e-5, rtol=0)
    torch.testing.assert_close(look(math.pi, 1), tile.flip(1, 2), atol=2e-5, rtol=0)
    torch.testing.assert_close(look(math.pi / 2, 1), tile.rot90(1, (1, 2)), atol=2e-4, rtol=0)


def test_matrices_keep_to_the_recipe():
    recipe = Recipe(rotate=30, zoom=1.5, shift=0.25, flip=False)
    m = random_matrices(torch.zeros(4000, 3), 64, recipe, scale=2, generator=seed(0))
    zoom, angle = torch.linalg.det(m[:, :, :2]).sqrt() / 2, torch.rad2deg(torch.atan2(m[:, 1, 0], m[:, 0, 0]))
    assert 1 / 1.5 <= zoom.min() < 0.68 and 1.48 < zoom.max() <= 1.5 and abs(zoom.log().mean()) < 0.02
    assert -30 <= angle.min() < -29 and 29 < angle.max() <= 30
    assert m[:, :, 2].abs().max() <= 0.25 * 64 * 2
    mirrored = torch.linalg.det(random_matrices(torch.zeros(4000, 3), 64, Recipe(), generator=seed(0))[:, :, :2]) < 0
    assert 0.45 < mirrored.float().mean() < 0.55


def test_relight_changes_what_the_recipe_says(frames):
    views = frames[:, :, :32, :32]
    only = lambda **kw: relight(views, Recipe(**dict(dict(exposure=0, contrast=1, noise=0), **kw)), seed(0))
    torch.testing.assert_close(only(), views)
    shift = (only(exposure=0.1) - views).flatten(1)
    assert shift.std(1).max() < 1e-6 and 0 < shift.abs().max() <= 0.1
    torch.testing.assert_close(only(contrast=2).mean((1, 2, 3)), views.mean((1, 2, 3)))
    assert 0 < (only(noise=0.05) - views).std() < 0.05


def test_same_seed_same_views(frames, places):
    a, b, c = (two_views(frames, places, 16, generator=seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a[0], c[0])
    assert a[0].shape == a[1].shape == (40, 3, 16, 16)


def test_places_are_not_changed(frames, places):
    before = places.clone()
    two_views(frames, places, 16)
    assert torch.equal(places, before)


def test_pairs_show_the_same_place(frames):
    "With no wandering, turning or lighting the two views are one"
    a, b = two_views(frames, torch.tensor([[1., 50, 60]]), 16, STILL)
    torch.testing.assert_close(a, b)


def test_frames_are_stretched_and_gaps_are_dark(tmp_path):
    frame = SmallSun(seed=0).frame("2014-01-01", size=64)
    frame.data[30:34, 30:34] = np.nan
    package = Package.build([frame], tmp_path / "p", size=64)
    loaded = load_frames(package)
    assert loaded.shape == (1, 1, 64, 64) and (loaded[0, 0, 31:33, 31:33] == 0).all()
    np.testing.assert_array_equal(loaded[0, 0], np.nan_to_num(stretch(package.read(0), "171")))
    assert isinstance(package.frame(0), Frame)
    tiles = Tiles.grid(package, 16)
    assert tile_places(tiles.table)[0].tolist() == [0, tiles.table.row[0] + 7.5, tiles.table.col[0] + 7.5]


def test_a_tile_of_scale_2_is_seen_whole(tmp_path):
    "With no wandering, turning or lighting a view is the tile as `Tiles` bins it"
    package = Package.build([SmallSun(seed=0).frame("2014-01-01", size=64)], tmp_path / "p", size=64)
    tiles = Tiles.grid(package, 8, scales=(1, 2))
    raw = torch.from_numpy(package.read(0))[None, None]
    for scale in (1, 2):
        some = tiles[(tiles.table.scale == scale).to_numpy()]
        view, _ = two_views(raw, tile_places(some.table, scale), 8, STILL, scale=scale, wander=0)
        np.testing.assert_allclose(view[:, 0], some.images(), rtol=1e-3, atol=0.1)


def test_tiles_of_another_scale_are_refused(tmp_path):
    "`two_views` sees all its places at one scale"
    package = Package.build([SmallSun(seed=0).frame("2014-01-01", size=64)], tmp_path / "p", size=64)
    table = Tiles.grid(package, 8, scales=(1, 2)).table
    for some, scale, found in ((table, 1, 2), (table, 2, 1), (table[table.scale == 2], 1, 2)):
        with pytest.raises(ValueError, match=f"table: tiles of scale {found}, expected {scale}; .* two_views"): tile_places(some, scale)


# The recipe, light and holes


def only(**ranges):
    "A recipe that does this and nothing else"
    return Recipe(**{**dict(rotate=0, zoom=1, shift=0, flip=False, exposure=0, contrast=1, noise=0, wander=0), **ranges})


def sky_for(frames, signed=None, days=None, size=None):
    n, c = frames.shape[:2]
    h, w = frames.shape[2:]
    days = torch.arange(n, dtype=torch.float64) if days is None else torch.tensor(days, dtype=torch.float64)
    return Sky(days, torch.linspace(-.1, .1, n), Disk((w - 1) / 2, (h - 1) / 2, .4 * min(h, w)), torch.tensor(signed or [False] * c))


def test_a_recipe_that_does_nothing_returns_the_pixels(frames):
    v1, v2 = two_views(frames, torch.tensor([[3., 40.5, 50.5], [1., 60.5, 70.5]]), 32, only())
    for v in (v1, v2):
        torch.testing.assert_close(v[0], frames[3, :, 25:57, 35:67], atol=2e-5, rtol=0)
        torch.testing.assert_close(v[1], frames[1, :, 45:77, 55:87], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name, value", [("zoom", 0.8), ("zoom", 0), ("contrast", -1), ("exptime", 0.5), ("noise", -0.1), ("rotate", float("nan")), ("dropout", 1.5), ("cutout", 2), ("degradation", -1)])
def test_recipes_with_impossible_ranges_are_refused(name, value):
    with pytest.raises(ValueError, match=f"recipe: {name}=.*expected"): Recipe(**{name: value})


def test_exposure_time_multiplies_the_flux_of_all_channels_alike(frames):
    views, knee, signed = frames.clamp(.2, .8)[:, :, :32, :32], torch.full((3, 1, 1), .02), torch.zeros(3, 1, 1, dtype=torch.bool)
    ratio = to_flux(expose(views, only(exptime=3.), knee, signed, seed(0)), knee, signed) / to_flux(views, knee, signed)
    assert ratio.flatten(1).std(1).max() < 1e-4 and 1 / 3 < ratio.min() < ratio.max() < 3 and ratio.std() > .1


def test_degradation_is_drawn_for_each_channel(frames):
    views, knee, signed = frames.clamp(.2, .8)[:, :, :32, :32], torch.full((3, 1, 1), .02), torch.zeros(3, 1, 1, dtype=torch.bool)
    ratio = to_flux(expose(views, only(degradation=.5), knee, signed, seed(0)), knee, signed) / to_flux(views, knee, signed)
    assert ratio.flatten(2).std(2).max() < 1e-4 and .5 <= ratio.min() < ratio.max() <= 1.0001
    assert ratio.mean((2, 3)).std(1).min() > .01


def test_flux_is_what_the_package_held():
    dn = np.geomspace(1, 1400, 60, dtype=np.float32)
    for channel, unit in (("171", "DN/s"), ("hmi_ic", "DN/s")):
        knee = torch.tensor(knee_of(channel, unit))
        view = torch.from_numpy(stretch(dn, channel, unit))
        np.testing.assert_allclose(to_flux(view, knee, torch.tensor(False)), dn / {"171": 1400, "hmi_ic": 65000}[channel], rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(from_flux(to_flux(view, knee, torch.tensor(False)), knee, torch.tensor(False)), view, atol=1e-5, rtol=1e-4)
    gauss = np.linspace(-1500, 1500, 60, dtype=np.float32)
    view = torch.from_numpy(stretch(gauss, "hmi_m", "Gauss"))
    np.testing.assert_allclose(to_flux(view, torch.tensor(knee_of("hmi_m", "Gauss")), torch.tensor(True)) * 1500, gauss, rtol=1e-3, atol=.5)


def test_on_a_jpeg_a_longer_exposure_is_an_addition():
    "JSOC draws 171 from 13 to 10000 DN on a logarithm: twice the light is log 2 / log(10000 / 13) more"
    picture, knee = torch.linspace(.3, .9, 50), torch.tensor(knee_of("171", "display"))
    more = from_flux(2 * to_flux(picture, knee, torch.tensor(False)), knee, torch.tensor(False)) - picture
    assert abs(more - math.log(2) / math.log(10000 / 13)).max() < .01


def test_photon_noise_grows_with_the_root_of_the_flux_and_readout_noise_does_not():
    knee, signed = torch.full((3, 1, 1), .02), torch.zeros(3, 1, 1, dtype=torch.bool)
    flux = torch.tensor([.05, .2, .8])[None, :, None, None].expand(200, 3, 32, 32)
    spread = lambda recipe: (to_flux(expose(from_flux(flux, knee, signed), recipe, knee, signed, seed(0)), knee, signed) - flux).std((2, 3))
    photons, readout = spread(only(photons=.01)), spread(only(readout=.01))
    np.testing.assert_allclose((photons[:, 1:] / photons[:, :-1]).mean(0), 2, rtol=.02)
    np.testing.assert_allclose((readout[:, 1:] / readout[:, :-1]).mean(0), 1, rtol=.02)
    assert .004 < readout.mean() < .006 and readout.max() < .0105    # a share of 0 to 1 of it, one draw per view


def test_magnetograms_get_no_exposure_and_readout_noise_about_zero():
    knee, signed, field = torch.full((1, 1, 1), 50.), torch.ones(1, 1, 1, dtype=torch.bool), torch.rand(50, 1, 32, 32, generator=seed(0))
    torch.testing.assert_close(expose(field, only(exptime=3, degradation=.9, photons=.5), knee, signed, seed(1)), field, atol=1e-5, rtol=0)
    change = expose(field, only(readout=.02), knee, signed, seed(1)) - field
    assert abs(change.mean()) < 1e-4 and .003 < change.std() < .01


def test_polarity_swaps_signed_channels_only(frames):
    sky, places = sky_for(frames, [False, True, False]), torch.tensor([[2., 49.5, 59.5]]).repeat(400, 1)
    v1, v2 = two_views(frames, places, 8, only(polarity=True), generator=seed(0), sky=sky)
    plain = frames[2, :, 46:54, 56:64]
    torch.testing.assert_close(v1[:, ::2], plain[::2].expand(400, 2, 8, 8), atol=2e-5, rtol=0)
    same, swapped = ((v1[:, 1] - p).abs().amax((1, 2)) < 1e-4 for p in (plain[1], 1 - plain[1]))
    assert (same ^ swapped).all() and 150 < swapped.sum() < 250


def test_polarity_of_light_is_refused(frames):
    with pytest.raises(ValueError, match="polarity.*no channel has a sign.*magnetograms"): two_views(frames, torch.tensor([[0., 50, 50]]), 8, only(polarity=True), sky=sky_for(frames))


def test_blur_equals_scipy():
    views = torch.rand(4, 2, 40, 40, generator=seed(0))
    soft, sigma = blur(views, Recipe(blur=3.), seed(1)), 3 * torch.rand(4, generator=seed(1))
    for v, was, s in zip(soft, views, sigma):
        for a, b in zip(v, was): np.testing.assert_allclose(a[14:-14, 14:-14], gaussian_filter(b.numpy(), float(s), truncate=14 / float(s))[14:-14, 14:-14], atol=1e-4)
    torch.testing.assert_close(blur(torch.ones(3, 1, 9, 12), Recipe(blur=2.)), torch.ones(3, 1, 9, 12))


def test_a_hole_is_square_in_the_same_place_of_all_channels_and_no_larger_than_asked():
    views = torch.rand(300, 3, 32, 32, generator=seed(0))
    hole = cutout(views, Recipe(cutout=.5), seed(1)) != views
    assert (hole == hole[:, :1]).all() and hole.any((1, 2, 3)).float().mean() > .9
    wide, high = hole[:, 0].any(1).sum(1), hole[:, 0].any(2).sum(1)
    assert wide.max() <= 17 and high.max() <= 17 and (hole[:, 0].sum((1, 2)) == wide * high).all()


def test_channels_are_lost_one_by_one_and_never_all(frames):
    views, signed = torch.rand(2000, 3, 4, 4, generator=seed(0)) + .01, torch.tensor([False, True, False])[:, None, None]
    out = drop_channels(views, Recipe(dropout=.3), signed, seed(1))
    lost = (out != views).flatten(2).all(2)
    assert (out[:, 1][lost[:, 1]] == .5).all() and (out[:, 0][lost[:, 0]] == 0).all() and not lost.all(1).any()
    np.testing.assert_allclose(lost.float().mean(0), .3 * (1 - .3 ** 2 / 3), atol=.03)
    torch.testing.assert_close(drop_channels(views[:, :1], Recipe(dropout=1.), signed[:1]), views[:, :1])


def test_geometry_and_light_are_one_draw_for_all_channels():
    "Thirteen channels that hold the same picture stay alike, but for noise, ageing and losses"
    frames = torch.rand(3, 1, 80, 80, generator=seed(0)).expand(3, 13, 80, 80)
    recipe = Recipe(noise=0, exptime=1.5, blur=1., cutout=.3, turn_days=2)
    for v in two_views(frames, torch.tensor([[0., 40, 40], [2, 30, 50]]), 16, recipe, generator=seed(1), sky=sky_for(frames)):
        assert v.shape == (2, 13, 16, 16)
        torch.testing.assert_close(v, v[:, :1].expand_as(v))


# Days later, and latitudes that slide


def test_rates_are_those_of_sunpy():
    import astropy.units as u
    from sunpy.sun.models import differential_rotation

    lat = np.linspace(-80, 80, 17)
    ours = np.degrees(rate(torch.sin(torch.deg2rad(torch.from_numpy(lat)))).numpy())
    np.testing.assert_allclose(ours, differential_rotation(1 * u.day, lat * u.deg, model="snodgrass", frame_time="synodic").to_value("deg"), atol=2e-3)


def test_partners_are_where_module_1_says(frames):
    sky = sky_for(frames, days=[0, 1, 2, 3, 4])
    angle, r = 2 * math.pi * torch.rand(500, generator=seed(0)), 38 * torch.rand(500, generator=seed(1)).sqrt()
    places = torch.stack([torch.zeros(500), 49.5 + r * torch.sin(angle), 59.5 + r * torch.cos(angle)], 1)
    found = partners(places, sky, 3.5, seed(2))
    moved = found[:, 0] > 0
    assert set(found[moved, 0].tolist()) == {1., 2., 3.} and moved.float().mean() > .7
    lon, lat, _ = pixel_to_sphere(places[moved, 2].numpy(), places[moved, 1].numpy(), sky.disk, np.degrees(float(sky.b0[0])))
    to = found[moved, 0].long()
    x, y, mu = sphere_to_pixel(lon + rotation_rate(lat) * to.numpy(), lat, sky.disk, np.degrees(sky.b0[to].numpy()))
    np.testing.assert_allclose(found[moved, 1:], np.stack([y, x], 1), atol=.01)
    assert mu.min() > .169 and torch.equal(found[~moved], places[~moved])


def test_places_that_cannot_be_followed_stay(frames):
    sky = sky_for(frames)
    off, limb, leaving = [0., 5, 5], [0., 49.5, 59.5 + .99 * 40], [0., 49.5, 59.5 + .97 * 40]
    torch.testing.assert_close(partners(torch.tensor([off, limb, leaving]), sky, 4), torch.tensor([off, limb, leaving]))


def test_partners_do_not_need_frames_in_order_of_time(frames):
    sky = sky_for(frames, days=[4, 0, 10, 3, math.nan])
    go = lambda f: {int(v) for v in partners(torch.tensor([[float(f), 49.5, 59.5]]).repeat(200, 1), sky, 4.5, seed(0))[:, 0]}
    assert go(0) == {1, 3} and go(1) == {0, 3} and go(3) == {0, 1}
    assert go(2) == {2} and go(4) == {4}    # nobody near in time; no time of its own


def test_a_single_frame_has_no_partner_and_the_pair_is_sound(frames):
    "Also a batch of one"
    v1, v2 = two_views(frames[:1], torch.tensor([[0., 49.5, 59.5]]), 16, only(pair_days=6), sky=sky_for(frames[:1]))
    torch.testing.assert_close(v1, v2)
    assert v1.isfinite().all() and v1.shape == (1, 3, 16, 16)


def test_time_pairs_stay_on_the_regions_of_the_small_sun(tmp_path):
    sun = SmallSun(seed=0, noise=False)
    package = Package.build(sun.frames(4, "2014-03-02", "2D", size=128), tmp_path / "p", size=128)
    sky, times, checked = sky_of(package), package.catalogue.time, 0
    start = sun.truth(times[0]).set_index("id")
    for number, f in start[(start.kind == "active_region") & (start.lon.abs() < 50)].iterrows():
        x, y, _ = sphere_to_pixel(f.lon, f.lat, package.disk)
        for to, row, col in partners(torch.tensor([[0., y, x]]).float().repeat(30, 1), sky, 6.5, seed(0)).tolist():
            now = sun.truth(times[int(to)]).set_index("id")
            if number not in now.index: continue
            x2, y2, _ = sphere_to_pixel(now.lon[number], now.lat[number], package.disk)
            assert math.hypot(x2 - col, y2 - row) < .3
            checked += to > 0
    assert checked > 50


def test_views_days_apart_are_of_the_other_frame():
    frames = torch.arange(3.)[:, None, None, None].expand(3, 1, 100, 100) / 4
    v1, v2 = two_views(frames, torch.tensor([[1., 49.5, 49.5]]).repeat(60, 1), 8, only(pair_days=1.5), generator=seed(0), sky=sky_for(frames))
    assert (v1 == .25).all() and {float(v.mean()) for v in v2} == {0., .5}


def test_latitudes_slide_as_module_1_says():
    "A view whose pixels hold their own x tells where each of them was read"
    x = torch.arange(200.).expand(200, 200)[None, None] / 200
    y = x.transpose(2, 3)
    frames, sky = torch.cat([x, y], 1), Sky(torch.zeros(1, dtype=torch.float64), torch.tensor([.12]), Disk(99.5, 99.5, 80), torch.zeros(2, dtype=torch.bool))
    place, n = torch.tensor([[0., 80., 99.5]]), 41
    m = view_matrix(place, torch.zeros(1), torch.ones(1), torch.zeros(1, 2), torch.ones(1))
    read = 200 * sample(frames, torch.tensor([0]), m, n, days=torch.tensor([5.]), sky=sky)[0].numpy()
    row, col = np.indices((n, n)) - 20 + np.array([80, 99.5])[:, None, None]
    lon, lat, _ = pixel_to_sphere(col, row, sky.disk, np.degrees(.12))
    x, y, _ = sphere_to_pixel(lon + 5 * (rotation_rate(lat) - rotation_rate(lat[20, 20])), lat, sky.disk, np.degrees(.12))
    np.testing.assert_allclose(read, [x, y], atol=.02)
    assert np.abs(read[0] - col).max() > .5


def test_no_slide_no_change_and_the_sky_around_the_disk_moves_smoothly():
    frames = torch.rand(2, 1, 64, 64, generator=seed(0))
    sky, m = sky_for(frames), view_matrix(torch.tensor([[0., 31.5, 31.5]]), torch.zeros(1), torch.ones(1), torch.zeros(1, 2), torch.ones(1))
    torch.testing.assert_close(sample(frames, torch.tensor([0]), m, 64, torch.zeros(1), sky), sample(frames, torch.tensor([0]), m, 64), atol=1e-5, rtol=0)
    columns = (torch.arange(64.) / 64).expand(64, 64)[None, None]
    read = 64 * sample(columns, torch.tensor([0]), m, 64, torch.tensor([2.]), sky)[0, 0]
    step = read[:, 1:] - read[:, :-1]
    assert step.min() > .5 and step.max() < 1.5


# Channels


def test_channel_pairs_show_two_different_channels_of_one_place():
    frames = (torch.arange(10.) / 10).reshape(2, 5, 1, 1).expand(2, 5, 40, 40)
    v1, v2 = two_views(frames, torch.tensor([[1., 20, 20]]).repeat(300, 1), 8, only(pair_channels=True), generator=seed(0))
    a, b = (v.mean((1, 2, 3)) for v in (v1, v2))
    assert v1.shape == (300, 1, 8, 8) and (a != b).all()
    for one in (a, b): np.testing.assert_allclose(one.unique(), [.5, .6, .7, .8, .9], atol=1e-6)


def test_channel_pairs_know_which_of_them_is_signed():
    frames = torch.tensor([.2, .9]).reshape(1, 2, 1, 1).expand(1, 2, 40, 40)
    v1, v2 = two_views(frames, torch.tensor([[0., 20, 20]]).repeat(300, 1), 8, only(pair_channels=True, polarity=True, turn_days=1), generator=seed(0), sky=sky_for(frames, [False, True]))
    assert {round(float(v), 3) for v in torch.cat([v1, v2]).mean((1, 2, 3))} == {.2, .9, .1}


def with_channel(frame, channel, data, unit="DN/s"):
    return Frame(data.astype(np.float32), frame.time, channel, frame.disk, unit, dict(frame.meta))


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    "Three moments in 171 and as a magnetogram with a gap; a fourth moment in 171 only"
    frames = SmallSun(seed=0).frames(4, "2014-03-02", "2D", size=64)
    fields = [with_channel(f, "hmi_m", np.where(np.indices(f.shape)[0] < 8, np.nan, 10 * f.data - 1000), "Gauss") for f in frames[:3]]
    return Package.build([*frames, *fields], tmp_path_factory.mktemp("stacked") / "p", size=64)


def test_stacks_are_loaded_moment_by_moment(stacked):
    both = load_frames(stacked, channels=["hmi_m", "171"])
    assert both.shape == (3, 2, 64, 64) and both.isfinite().all()
    moments = stacked.stacks(["hmi_m", "171"])
    for k, row in moments.iterrows():
        np.testing.assert_array_equal(both[k, 1], np.nan_to_num(stretch(stacked.read(row["171"]), "171")))
        np.testing.assert_array_equal(both[k, 0], np.nan_to_num(stretch(stacked.read(row["hmi_m"]), "hmi_m", "Gauss"), nan=.5))
    assert (both[:, 0, 2] == .5).all()    # nothing measured: no field
    torch.testing.assert_close(load_frames(stacked, rows=[2, 0], channels=["hmi_m", "171"]), both[[2, 0]])


def test_the_sky_of_stacks(stacked):
    sky = sky_of(stacked, channels=["hmi_m", "171"])
    assert sky.days.tolist() == [0, 2, 4] and sky.signed.tolist() == [True, False] and sky.days.dtype == torch.float64
    np.testing.assert_allclose(sky.knee, [50, .02])
    v1, _ = two_views(load_frames(stacked, channels=["hmi_m", "171"]), torch.tensor([[0., 30, 30]]), 16, Recipe(polarity=True, pair_days=3, dropout=.2, photons=.01), sky=sky)
    assert v1.shape == (1, 2, 16, 16) and v1.isfinite().all()


def test_the_sky_of_single_frames_has_one_channel(stacked):
    with pytest.raises(ValueError, match="several channels .171, hmi_m.*channels="): sky_of(stacked)
    rows = np.flatnonzero(stacked.catalogue.channel == "171")
    assert sky_of(stacked, rows).days.tolist() == [0, 2, 4, 6]


def test_a_text_is_no_list_of_channels(stacked):
    with pytest.raises(ValueError, match=r"channels: '171', expected a list"): load_frames(stacked, channels="171")


def test_channels_that_are_never_there_together(stacked):
    with pytest.raises(ValueError, match="'304': not in"): load_frames(stacked, channels=["171", "304"])


def test_flagged_frames_are_nobodys_partner(tmp_path):
    package = Package.build(SmallSun(seed=0).frames(3, "2014-03-02", "1D", size=64), tmp_path / "p", size=64)
    package.catalogue.loc[1, "quality"] = "smeared"
    found = partners(torch.tensor([[0., 31.5, 31.5]]).repeat(100, 1), sky_of(package), 5, seed(0))
    assert set(found[:, 0].tolist()) == {2.}


def test_frames_without_a_measured_pixel_are_sound(tmp_path):
    frame = SmallSun(seed=0).frame("2014-01-01", size=64)
    package = Package.build([frame], tmp_path / "p", size=64)
    package.read = lambda *a: np.full((64, 64), np.nan, np.float32)
    loaded = load_frames(package)
    assert (loaded == 0).all()
    for v in two_views(loaded, torch.tensor([[0., 30, 30]]), 16, Recipe(photons=.02, exptime=2, pair_days=3), sky=sky_of(package)): assert v.isfinite().all()


# Wrong arguments


def test_what_a_recipe_needs_is_asked_for(frames, places):
    for recipe, name in ((Recipe(pair_days=6), "pair_days=6"), (RECIPES["disk"], "turn_days=1"), (Recipe(polarity=True), "polarity=True")):
        with pytest.raises(ValueError, match=f"recipe: {name}.*sky_of"): two_views(frames, places, 16, recipe)


def test_views_with_wrong_arguments_say_so(frames, places):
    with pytest.raises(ValueError, match="sky: 4 frames of 3 channels, frames has 5 of 3"): two_views(frames, places, 16, sky=sky_for(frames[:4]))
    with pytest.raises(ValueError, match="pair_channels=True needs 2 channels"): two_views(frames[:, :1], places, 16, Recipe(pair_channels=True))
    with pytest.raises(ValueError, match=r"frames: shape \[100, 120\]"): two_views(frames[0, 0], places, 16)
    with pytest.raises(ValueError, match=r"places: shape \[40, 2\]"): two_views(frames, places[:, :2], 16)
    with pytest.raises(ValueError, match="at least one place"): two_views(frames, places[:0], 16)
    with pytest.raises(IndexError, match="frames 0 to 7, expected 0 to 4"): two_views(frames, torch.tensor([[0., 50, 50], [7, 50, 50]]), 16)


def test_recipes_for_each_scale(frames, places):
    assert RECIPES["tile"] == Recipe() and not RECIPES["region"].flip and RECIPES["disk"].rotate < RECIPES["region"].rotate < 180
    for recipe in RECIPES.values():
        a, b = (two_views(frames, places, 16, recipe, generator=seed(3), sky=sky_for(frames)) for _ in range(2))
        assert all(torch.equal(x, y) and x.isfinite().all() for x, y in zip(a, b))


def test_wander_comes_from_the_recipe_unless_it_is_given(frames):
    place, x = torch.tensor([[0., 49.5, 59.5]]).repeat(50, 1), (torch.arange(120.) / 120).expand(1, 1, 100, 120)
    spread = lambda by_recipe, **kw: 120 * two_views(x, place, 16, only(wander=by_recipe), generator=seed(0), **kw)[0].mean((1, 2, 3)).std()
    assert spread(0) < 1e-4 < 1 < spread(.5) and spread(.5, wander=0) < 1e-4


# The grid


def test_one_call_for_all_frames_reads_the_same(frames, places):
    "As a graphics card does it"
    which, order = torch.sort(places[:, 0].long())
    grid = view_grid(random_matrices(places[order], 16, Recipe(), generator=seed(0)), 16, (100, 120))
    torch.testing.assert_close(read_grid(frames, which, grid, block=True), read_grid(frames, which, grid), atol=1e-4, rtol=0)


@needs_data
def test_on_the_real_sun_followed_places_look_more_alike(tmp_path):
    "AIA 193 of three consecutive days: patches that are followed correlate, patches that stay put do not"
    files = sorted((DATA / "deepsdo/images").glob("*193*"))[100:103]
    package = Package.build(files, tmp_path / "p", size=256)
    frames, sky = load_frames(package), sky_of(package)
    across = torch.linspace(-50, 50, 11)
    places = torch.stack([torch.zeros(121), *(v.flatten() + 127.5 for v in torch.meshgrid(across, across, indexing="ij"))], 1)
    later = partners(places, sky, 2.5, seed(0))
    moved = later[:, 0] > 0
    put = torch.cat([later[:, :1], places[:, 1:]], 1)

    def patches(where):
        n = len(where)
        m = view_matrix(where, torch.zeros(n), torch.ones(n), torch.zeros(n, 2), torch.ones(n))
        v = sample(frames, where[:, 0].long(), m, 24).flatten(1)
        return (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)

    alike = lambda a, b: float((patches(a[moved]) * patches(b[moved])).mean())
    assert moved.sum() > 60 and alike(places, later) > .45 and alike(places, later) > alike(places, put) + .3, (alike(places, later), alike(places, put))
