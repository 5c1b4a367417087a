"""Views: exact where they can be, equal to scipy where not, and the same from the same seed."""
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from search_sdo.models.views import Recipe, load_frames, random_matrices, relight, sample, tile_places, two_views, view_matrix
from search_sdo.packager.channels import stretch
from search_sdo.packager.frame import Frame
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles

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
