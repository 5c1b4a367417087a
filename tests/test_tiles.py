"""Tiles: the grid, the globe (sunpy as the oracle), reading, and the split by time."""
import numpy as np
import pandas as pd
import pytest

from search_sdo.packager.calibrate import bin_pixels, harmonised_disk
from search_sdo.packager.frame import Disk, Frame
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import COLUMNS, ROTATION, Tiles, balance, grid_corners, pixel_to_sphere, rebuild, show_balance, show_tiles, sphere_to_pixel, split_by_time, tile_images


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return Package.build(SmallSun(seed=1).frames(n=6, cadence="10D", size=128), tmp_path_factory.mktemp("tiles") / "p", size=128)


@pytest.mark.parametrize("width, size, stride", [(128, 32, 32), (128, 32, 16), (100, 30, 7), (64, 64, 64)])
def test_grid_is_inside_and_centred(width, size, stride):
    first = grid_corners(width, size, stride)
    left, right = first[0], width - (first[-1] + size)
    assert left >= 0 and right >= 0 and 0 <= right - left <= 1 and left < stride and (np.diff(first) == stride).all()


@pytest.mark.parametrize("size, stride, match", [(200, 10, "do not fit"), (0, 10, "do not fit"), (10, 0, "stride")])
def test_impossible_grids(size, stride, match):
    with pytest.raises(ValueError, match=match):
        grid_corners(128, size, stride)


@pytest.mark.parametrize("b0", [-7.0, 0.0, 5.5])
def test_positions_agree_with_sunpy(b0):
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from sunpy.coordinates import HeliographicStonyhurst, Heliocentric
    disk = harmonised_disk(256)
    observer = HeliographicStonyhurst(0 * u.deg, b0 * u.deg, 1 * u.AU, obstime="2014-01-01")
    x, y = np.random.default_rng(0).uniform(-0.65, 0.65, (2, 200))
    place = SkyCoord(x * u.R_sun, y * u.R_sun, np.sqrt(1 - x ** 2 - y ** 2) * u.R_sun, frame=Heliocentric(observer=observer, obstime="2014-01-01"))
    theirs = place.transform_to(HeliographicStonyhurst(obstime="2014-01-01"))
    lon, lat, mu = pixel_to_sphere(disk.x + x * disk.radius, disk.y - y * disk.radius, disk, b0)
    np.testing.assert_allclose(lon, theirs.lon.wrap_at(180 * u.deg).deg, atol=1e-6)
    np.testing.assert_allclose(lat, theirs.lat.deg, atol=1e-6)
    np.testing.assert_allclose(mu, place.z.to_value(u.R_sun), atol=1e-9)


def test_sphere_and_back():
    disk = harmonised_disk(100)
    lon, lat = np.random.default_rng(0).uniform(-80, 80, (2, 99))
    x, y, mu = sphere_to_pixel(lon, lat, disk, 3)
    front = mu > 0.05
    np.testing.assert_allclose(pixel_to_sphere(x[front], y[front], disk, 3)[:2], (lon[front], lat[front]), atol=1e-6)


def test_images_are_windows_of_the_frames(package):
    tiles = Tiles.grid(package, size=32, stride=16)
    picks = np.r_[5, 2, np.arange(40, 60), len(tiles) - 1]
    for image, row in zip(tiles.images(picks), tiles.table.iloc[picks].itertuples()):
        np.testing.assert_array_equal(image, package.array[row.frame, row.row:row.row + 32, row.col:row.col + 32])


@pytest.mark.parametrize("n", [3, 20])
def test_tiles_that_reach_beyond_the_frame(package, n):
    t = Tiles.grid(package, size=32).table.iloc[[0] * n].assign(row=-8, col=110)
    images = Tiles(t, package).images()
    assert np.isnan(images[:, :8]).all() and np.isnan(images[:, :, 18:]).all() and np.isfinite(images[:, 8:, :18]).all()


def test_table_rows_know_their_place(package):
    t = Tiles.grid(package, size=32, stride=16).table
    on = t[t.mu.notna()]
    x, y, mu = sphere_to_pixel(on.lon, on.lat, package.disk, 0)
    np.testing.assert_allclose((x, y), (on.col + 15.5, on.row + 15.5), atol=1e-6)
    np.testing.assert_allclose(mu, on.mu, atol=1e-9)
    assert (t.time.to_numpy() == package.catalogue.time[t.frame].to_numpy()).all()


def test_no_tile_of_black_sky(package):
    t = Tiles.grid(package, size=16).table
    assert np.hypot(t.col + 7.5 - 63.5, t.row + 7.5 - 63.5).max() <= 1.1 * 51.2


def test_flagged_frames_are_left_out_unless_asked_for(package):
    marked = Package(package.path, package.catalogue.assign(quality=["", "", "bad", "", "", ""]), package.skipped, package.array)
    assert 2 not in set(Tiles.grid(marked, 32).table.frame) and 2 in set(Tiles.grid(marked, 32, flagged=True).table.frame)


def test_select_save_open(package, tmp_path):
    tiles = Tiles.grid(package, size=32)
    west = tiles[(tiles.table.lon > 0).to_numpy()]
    assert len(tiles[0]) == 1 and "Tiles(1 of 32 px" in repr(tiles[0])
    assert (west.table.lon > 0).all() and len(tiles[:7]) == 7 and list(tiles[np.array([3, 1])].table.col) == list(tiles.table.col[[3, 1]])
    tiles.save(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(Tiles.open(tmp_path / "t.parquet", package).table, tiles.table)
    with pytest.raises(FileNotFoundError, match="none.parquet: missing"):
        Tiles.open(tmp_path / "none.parquet", package)


def test_tiles_of_two_sizes_have_no_common_picture(package):
    mixed = Tiles(pd.concat([Tiles.grid(package, 32).table[:3], Tiles.grid(package, 16).table[:3]]), package)
    with pytest.raises(ValueError, match="one size at a time"):
        mixed.images()


def test_no_tiles_have_no_pictures(package):
    with pytest.raises(ValueError, match="table: no tiles"):
        Tiles.grid(package, 32)[:0].images()


def test_split_leaves_a_rotation_between():
    times = pd.date_range("2014-01-01", periods=200, freq="1D")
    split = split_by_time(times)
    assert list(pd.unique(split)) == ["train", "gap", "val"]
    assert times[split == "val"].min() - times[split == "train"].max() >= pd.Timedelta(days=ROTATION)
    assert (split_by_time(times, start_val="2014-06-01")[times >= "2014-06-01"] == "val").all()


@pytest.mark.parametrize("kw, match", [(dict(start_val="2020-01-01"), "no val frames"), (dict(start_val="2014-01-02"), "no train frames"), (dict(gap_days=400), "no train frames")])
def test_split_that_leaves_nothing(kw, match):
    with pytest.raises(ValueError, match=match):
        split_by_time(pd.date_range("2014-01-01", periods=50, freq="1D"), **kw)


@pytest.mark.parametrize("n", [3, 20])
def test_tiles_of_several_scales_are_binned_windows(package, n):
    tiles = Tiles.grid(package, size=16, scales=(1, 2, 4))
    assert list(tiles.table.columns) == COLUMNS and set(tiles.table.scale) == {1.0, 2.0, 4.0}
    picks = np.concatenate([np.flatnonzero(tiles.table.scale == s)[5:5 + n] for s in (1, 2, 4)])
    for image, row in zip(tiles.images(picks), tiles.table.iloc[picks].itertuples()):
        side = 16 * int(row.scale)
        np.testing.assert_array_equal(image, bin_pixels(package.array[row.frame, row.row:row.row + side, row.col:row.col + side], int(row.scale)))


def test_one_scale_is_the_table_it_always_was(package):
    new, old = Tiles.grid(package, 32, 16).table, Tiles.grid(package, 32, 16, scales=(1, 2)).table
    pd.testing.assert_frame_equal(new, old[old.scale == 1].reset_index(drop=True))


def test_middles_of_all_scales_know_their_place(package):
    t = Tiles.grid(package, 16, 8, scales=(1, 2, 3), off_disk="drop").table
    x, y, mu = sphere_to_pixel(t.lon, t.lat, package.disk, 0)
    np.testing.assert_allclose((x, y), (t.col + (16 * t.scale - 1) / 2, t.row + (16 * t.scale - 1) / 2), atol=1e-6)
    np.testing.assert_allclose(mu, t.mu, atol=1e-9)


def test_rules_of_place(package):
    grid = lambda **rules: Tiles.grid(package, 8, within=9, **rules).table
    everything, on, off, steep = grid(), grid(off_disk="drop"), grid(off_disk="only"), grid(min_mu=0.5)
    assert len(everything) == len(package) * 16 ** 2 == len(on) + len(off)
    assert on.mu.notna().all() and off.mu.isna().all()
    assert steep.mu.min() >= 0.5 and len(steep) == len(off) + (everything.mu >= 0.5).sum()
    assert np.hypot(off.col + 3.5 - 63.5, off.row + 3.5 - 63.5).min() > package.disk.radius


@pytest.mark.parametrize("kw, match", [(dict(off_disk="maybe"), "off_disk: 'maybe', expected"), (dict(scales=(1, 0)), "scales: .* whole numbers"),
                                       (dict(scales=(1.5,)), "scales: .* whole numbers"), (dict(scales=()), "scales: .* whole numbers"), (dict(scales=(8,)), "do not fit")])
def test_rules_that_cannot_be(package, kw, match):
    with pytest.raises(ValueError, match=match):
        Tiles.grid(package, 32, **kw)


def test_boxes_are_what_a_tile_covers(package):
    tiles = Tiles.grid(package, 16, scales=(1, 4))
    for (x0, y0, x1, y1), row in zip(tiles.boxes([3, -1]), tiles.table.iloc[[3, -1]].itertuples()):
        assert (x0, y0, x1 - x0, y1 - y0) == (row.col, row.row, 16 * row.scale, 16 * row.scale)


def test_back_to_the_file_it_came_from(tmp_path):
    "A bright spot in a turned, off-centre file lies inside the corners of the tile that shows it, and of no other"
    source, y, x = Disk(220.0, 190.0, 150.0, roll=30.0), *np.mgrid[:400, :400]
    spot = (260, 130)
    data = (1 + 1000 * (np.hypot(x - spot[0], y - spot[1]) < 4)).astype(np.float32)
    package = Package.build([Frame(data, pd.Timestamp("2014-01-01").to_pydatetime(), "171", source, "DN/s", dict(b0=0.0))], tmp_path / "p", size=256)
    tiles = Tiles.grid(package, 32, flagged=True)
    brightest = int(np.nanargmax(np.nanmax(tiles.images(), (1, 2))))
    inside = []
    for i in range(len(tiles)):
        corners = tiles.on_source(i)
        edges, to = np.roll(corners, -1, 0) - corners, np.array(spot) - corners
        inside.append((edges[:, 0] * to[:, 1] - edges[:, 1] * to[:, 0] > 0).all())   # clockwise on the screen: always on the right
        assert np.hypot(*edges[0]) == pytest.approx(32 * 150 / 102.4)
    assert np.flatnonzero(inside).tolist() == [brightest]


@pytest.mark.parametrize("scales", [(1,), (3,)])
def test_sunpys_submap_at_the_coordinates_is_the_tile(package, scales):
    tiles = Tiles.grid(package, 16, scales=scales)
    for i in (0, len(tiles) // 2, len(tiles) - 1):
        row, corners = tiles.table.iloc[i], tiles.coordinates(i)
        sub = package.frame(row.frame).to_map().submap(corners[0], top_right=corners[1])
        np.testing.assert_array_equal(bin_pixels(sub.data[::-1], int(row.scale)), tiles.images(i)[0])
        assert corners.obstime.to_datetime() == row.time.to_pydatetime()


def test_coordinates_agree_with_the_table_on_the_globe(package):
    "Heliographic places by sunpy, which knows that we are not infinitely far away: that turns the view by up to 0.27 degrees"
    from astropy.coordinates import SkyCoord, angular_separation
    tiles = Tiles.grid(package, 16, off_disk="drop", min_mu=0.3)
    for i in range(0, len(tiles), 29):
        corners, row = tiles.coordinates(i), tiles.table.iloc[i]
        middle = SkyCoord(corners.Tx.mean(), corners.Ty.mean(), frame=corners.frame.replicate_without_data()).heliographic_stonyhurst
        apart = angular_separation(middle.lon.rad, middle.lat.rad, *np.radians([row.lon, row.lat]))
        assert np.degrees(apart) < 0.28
        assert corners.observer.lat.deg == pytest.approx(package.catalogue.b0[row.frame], abs=1e-6)


@pytest.mark.parametrize("stride", [32, 20, 7])
def test_full_disk_from_its_tiles_to_the_last_bit(package, stride):
    tiles, whole = Tiles.grid(package, 32, stride, within=9), package.read(2)
    corners = grid_corners(128, 32, stride)
    picture, inside = tiles.rebuild(2), slice(corners[0], corners[-1] + 32)
    assert picture[inside, inside].tobytes() == whole[inside, inside].tobytes()
    picture[inside, inside] = np.nan
    assert np.isnan(picture).all()


def test_rebuilt_from_a_pyramid_fine_lies_on_coarse(package):
    tiles = Tiles.grid(package, 16, scales=(1, 4), off_disk="drop")
    fine, picture, whole = tiles[tiles.table.scale == 1].rebuild(1), tiles.rebuild(1), package.read(1)
    np.testing.assert_array_equal(picture[np.isfinite(fine)], whole[np.isfinite(fine)])
    np.testing.assert_array_equal(picture[:4, 64], np.full(4, bin_pixels(whole, 4)[0, 16]))


def test_rebuilt_tiles_that_reach_beyond_the_frame_are_cut(package):
    table = Tiles.grid(package, 32).table.iloc[[0, 0]].assign(row=[-8, 120], col=[110, -20])
    picture, whole = rebuild(table, tile_images(table, package), 128), package.read(table.frame.iloc[0])
    np.testing.assert_array_equal(picture[:24, 110:], whole[:24, 110:])
    np.testing.assert_array_equal(picture[120:, :12], whole[120:, :12])
    assert np.isfinite(picture).sum() == 24 * 18 + 8 * 12


def test_what_cannot_be_rebuilt(package):
    tiles = Tiles.grid(package, 32)
    with pytest.raises(ValueError, match="tiles of 6 frames"):
        rebuild(tiles.table, tiles.images(), 128)
    with pytest.raises(ValueError, match="frame: no tiles of frame 99"):
        tiles.rebuild(99)
    one = tiles.table[tiles.table.frame == 0]
    with pytest.raises(ValueError, match="images: 1 for"):
        rebuild(one, tiles.images([0]), 128)


def test_balance_counts_and_shares():
    table = balance(["a", "a", "b", "b", "b"], ["train", "val", "train", "train", "val"])
    assert table["tiles"].to_dict() == {"train": {"a": 1, "b": 2}, "val": {"a": 1, "b": 1}}
    assert table["share"].loc["b"].to_dict() == pytest.approx({"train": 2 / 3, "val": 1 / 2})
    assert list(balance(list("ab"), ["val", "gap"])["tiles"]) == ["gap", "val"]
    with pytest.raises(ValueError, match="one of each per tile"):
        balance(["a"], ["train", "val"])


def test_balance_is_drawn():
    import matplotlib
    matplotlib.use("agg")
    ax = show_balance(balance(list("aabb"), ["train", "val", "train", "gap"]))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "gap", "val"]
    assert sorted(bar.get_width() for bar in ax.patches) == [0, 0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize("kw, match", [(dict(share=80), "share: 80"), (dict(gap_days=-30), "gap_days: -30")])
def test_split_refuses_what_makes_no_sense(kw, match):
    times = pd.date_range("2014-01-01", periods=200)
    with pytest.raises(ValueError, match=match):
        split_by_time(times, **kw)
    with pytest.raises(ValueError, match="1 of 201 are missing"):
        split_by_time([*times, pd.NaT])


def test_split_of_times_with_a_zone():
    times = pd.date_range("2014-01-01", periods=200)
    assert (split_by_time(times.tz_localize("UTC"), start_val="2014-06-01T00:00Z") == split_by_time(times, start_val="2014-06-01")).all()


def test_half_pixels_are_refused(package):
    for kw in (dict(size=32.5), dict(size=32, stride=7.5), dict(size=32.5, scales=(2,))):
        with pytest.raises(ValueError, match="whole numbers"):
            Tiles.grid(package, **kw)
    assert set(Tiles.grid(package, 32, scales=2).table.scale) == {2.0}


def test_balance_counts_tiles_without_a_label():
    assert balance(pd.array(["a", None], "string"), ["train", "train"])["tiles"].train.to_dict() == {"a": 1, "unknown": 1}
    with pytest.raises(ValueError, match="split: \\['test'\\]"):
        balance(["a"], ["test"])


def test_slices_and_tables_of_others(package, tmp_path):
    tiles = Tiles.grid(package, 32)
    np.testing.assert_array_equal(tiles.images(slice(3)), tiles.images([0, 1, 2]))
    with pytest.raises(ValueError, match="ids: no tiles"):
        show_tiles(tiles, [])
    pd.DataFrame(dict(a=[1])).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("broken")
    for name, match in (("a", "lacks the columns"), ("b", "no parquet table")):
        with pytest.raises(ValueError, match=match):
            Tiles.open(tmp_path / f"{name}.parquet", package)
