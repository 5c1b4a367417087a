"""Tiles: the grid, the globe (sunpy as the oracle), reading, and the split by time."""
import numpy as np
import pandas as pd
import pytest

from search_sdo.packager.calibrate import harmonised_disk
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import ROTATION, Tiles, grid_corners, pixel_to_sphere, sphere_to_pixel, split_by_time


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
