"""Labels: real lists against real pictures, sunpy as the oracle of rotation, and every kind of broken row, file and answer."""
import json
import os
from datetime import datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalikes import Lookalike, as_json
from real_data import DATA, needs_data
from search_sdo.packager.events import KINDS, ask_hek, box_of, fetch_flares, fetch_hek, fetch_regions, months, read_hek, srs_rows
from search_sdo.packager.frame import Disk
from search_sdo.packager.labels import (cells, covered, flare_target, goes_class, goes_flux, label_tiles, labels_for, place_of, read_flares,
                                        read_regions, regions_at, regions_from, show_flares, show_regions, turned)
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles

FLARE_HEAD = "start,peak,end,goes_class,noaa_ar,lon,lat"
FLARE = "2014-01-01 10:00,2014-01-01 10:09,2014-01-01 10:20,M1.5,11944,-12,8"
REGION_HEAD = "date_0ut,section,noaa_ar,lat_deg,lon_deg_west_positive,area_msh,mcintosh,extent_deg,n_spots,mag_type"
REGION = "2014-01-01,I,11944,-12,30,130,Dai,10,8,Beta"
HEK_EVENT = dict(event_type="CH", event_starttime="2014-01-09T00:00:00", event_endtime="2014-01-09T12:00:00", hgs_x=-30.5, hgs_y=10.2,
                 hgs_bbox="POLYGON((-45 0,-16 0,-16 22,-45 22,-45 0))", frm_name="SPoCA", kb_archivid="ivo://x/1", ar_noaanum=None,
                 fl_goescls="", event_peaktime=None, event_probability="", refs=[{"ref_url": "http://x"}])
DISK = Disk(511.5, 511.5, 400.0)


def write(path, *lines):
    path.write_text("\n".join(lines))
    return path


def region_table(tmp_path, *rows):
    return read_regions(write(tmp_path / "regions.csv", REGION_HEAD, *(rows or [REGION])))


def tile_rows(*corners, size=64, time="2014-01-01"):
    return pd.DataFrame([dict(frame=0, row=r, col=c, size=size, time=pd.Timestamp(time)) for r, c in corners])


@pytest.fixture(scope="module")
def real_frames():
    return pd.read_csv(DATA / "aia171/frames.csv", parse_dates=["time_ut"])


@pytest.fixture(scope="module")
def real_flares():
    return read_flares(DATA / "events/goes_flares_2010_2019.csv")


@pytest.fixture(scope="module")
def real_regions():
    return read_regions(DATA / "events/noaa_active_regions_2010_2019.csv")


# Classes of flares

@pytest.mark.parametrize("name, flux", [("A1.0", 1e-8), ("B6.6", 6.6e-7), ("C9.9", 9.9e-6), ("M1.5", 1.5e-5), ("X9.3", 9.3e-4), ("X28", 2.8e-3), (" M5. ", 5e-5)])
def test_class_to_flux(name, flux):
    assert goes_flux(name) == pytest.approx(flux, rel=1e-12)


@pytest.mark.parametrize("name", ["", "M", "1.5", "Q1.5", "m1.5", "M1.5.2", "M-1", "X" + "9" * 400, "Mnan", None, float("nan"), "M１"])
def test_no_class_is_an_error_that_says_what_one_looks_like(name):
    with pytest.raises(ValueError, match="as in M1.5"):
        goes_flux(name)


@given(st.sampled_from("ABCMX"), st.integers(10, 99))
def test_class_survives_the_way_to_flux_and_back(letter, tenths):
    assert goes_class(goes_flux(f"{letter}{tenths / 10}")) == f"{letter}{tenths / 10}"


def test_there_is_nothing_above_x():
    assert goes_class(goes_flux("X17.2")) == "X17.2"
    assert goes_class(9.97e-6) == "M1.0"


# Reading tables

@needs_data
def test_real_flares_are_all_read_and_the_broken_ones_marked(real_flares):
    lines = (DATA / "events/goes_flares_2010_2019.csv").read_text().splitlines()
    assert len(real_flares) == len(lines) - 1
    assert real_flares.problem.value_counts().to_dict() == {"": 14715, "peak before start": 7, "goes_class 'A0.0' is unusable": 1}
    assert real_flares.lon.isna().sum() == sum(line.endswith(",0,0") for line in lines)
    assert real_flares.noaa.min() >= 11000 and real_flares.noaa.isna().sum() == 2419
    assert real_flares.flux.max() == pytest.approx(9.3e-4)
    assert (real_flares.time >= real_flares.start).all()


@needs_data
def test_real_regions_are_all_read_and_the_broken_ones_marked(real_regions):
    assert len(real_regions) == 16232 and real_regions.time.notna().all() and real_regions.lon.notna().all()
    words = real_regions.problem[real_regions.problem != ""].str.split("; ").explode().value_counts().to_dict()
    assert words == {"extent is empty": 188, "n_spots is empty": 1, "n_spots 'none' is unusable": 1}
    assert real_regions.kind.value_counts().to_dict() == {"active_region": 12009, "plage": 4223}
    assert (real_regions.lon1 - real_regions.lon0).between(8, 33).all()


def test_a_good_row_has_no_problem(tmp_path):
    flare, = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE)).to_dict("records")
    assert flare["problem"] == "" and flare["noaa"] == 11944 and flare["time"] == datetime(2014, 1, 1, 10, 9)
    region, = region_table(tmp_path).to_dict("records")
    assert region["problem"] == "" and (region["lon"], region["lat"]) == (30, -12)
    assert (region["lon0"], region["lon1"], region["lat0"], region["lat1"]) == (25, 35, -16, -8)
    assert (region["start"], region["end"]) == (datetime(2013, 12, 31, 12), datetime(2014, 1, 1, 12))


@pytest.mark.parametrize("row, words", [
    (FLARE.replace("2014-01-01 10:00", ""), "start is empty"),
    (FLARE.replace("2014-01-01 10:00", "2014-13-01 10:00"), "start '2014-13-01 10:00' is unusable"),
    (FLARE.replace("2014-01-01 10:00", "1014-01-01 10:00"), "start '1014-01-01 10:00' is unusable"),
    (FLARE.replace("10:09", "09:09"), "peak before start"),
    (FLARE.replace("10:20", "09:20"), "end before start"),
    (FLARE.replace("M1.5", "1.5"), "goes_class '1.5' is unusable"),
    (FLARE.replace("M1.5", "X9999"), "goes_class 'X9999' is unusable"),
    (FLARE.replace("M1.5", ""), "goes_class is empty"),
    (FLARE.replace("11944", "119x4"), "noaa '119x4' is unusable"),
    (FLARE.replace("11944", "11944.5"), "noaa is no whole number"),
    (FLARE.replace("11944", "1e400"), "noaa '1e400' is unusable"),
    (FLARE.replace("-12", "-190"), "lon '-190' is unusable"),
    (FLARE.replace("-12", "nan"), "lon 'nan' is unusable"),
    (FLARE[:40], "3 cells, expected 7"),
    (FLARE + ",more", "8 cells, expected 7"),
    ('"' + FLARE, "1 cells, expected 7"),
    ("\x00\ufffd", "1 cells, expected 7"),
    ("x" * 200_000, "0 cells, expected 7"),
])
def test_a_broken_row_is_kept_marked_and_alone(tmp_path, row, words):
    table = read_flares(write(tmp_path / "flares.csv", FLARE_HEAD, FLARE, row, FLARE))
    assert len(table) == 3 and words in table.problem[1]
    assert (table.problem[[0, 2]] == "").all()
    assert table.flux[[0, 2]].tolist() == pytest.approx([1.5e-5] * 2)


@pytest.mark.parametrize("row, words", [
    (REGION.replace("2014-01-01", "2014-01-32"), "time '2014-01-32' is unusable"),
    (REGION.replace(",I,", ",V,"), "section 'V' is unusable"),
    (REGION.replace("-12", "-120"), "lat '-120' is unusable"),
    (REGION.replace(",30,", ",,"), "lon is empty"),
    (REGION.replace("130", "many"), "area 'many' is unusable"),
    (REGION.replace(",10,", ",,"), "extent is empty"),
    (REGION.replace(",8,", ",8.5,"), "n_spots is no whole number"),
])
def test_a_broken_region_is_kept_and_marked(tmp_path, row, words):
    table = region_table(tmp_path, REGION, row)
    assert len(table) == 2 and words in table.problem[1] and table.problem[0] == ""


def test_what_a_plage_cannot_have_is_no_problem(tmp_path):
    table = region_table(tmp_path, "2014-01-01,IA,11900,5,-40,,,,,", "2014-01-01,II,11800,5,,,,,,")
    assert table.kind.tolist() == ["plage", "returning"] and (table.problem == "").all()
    assert len(regions_at(table, "2014-01-01")) == 1


def test_noaas_four_digits_become_five(tmp_path):
    old = FLARE.replace("2014", "1999").replace("11944", "8700")
    table = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE.replace("11944", "1944"), FLARE.replace("11944", "0"), old))
    assert table.noaa.tolist()[::2] == [11944, 8700] and table.noaa.isna()[1] and str(table.noaa.dtype) == "Int64"


def test_windows_line_ends_a_byte_order_mark_and_other_orders_are_read(tmp_path):
    path = tmp_path / "flares.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["Extra, LAT ,lon,noaa_ar,goes_class,end,peak,start", *[",".join(["?", *reversed(FLARE.split(","))])] * 2, ""]).encode())
    table = read_flares(path)
    assert len(table) == 2 and (table.problem == "").all() and table.lat.tolist() == [8, 8]


def test_a_tidy_table_saved_as_csv_is_read_again(tmp_path):
    first = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE))
    first.to_csv(tmp_path / "again.csv", index=False)
    pd.testing.assert_frame_equal(read_flares(tmp_path / "again.csv"), first)


def test_a_table_without_rows_is_empty_and_has_its_types(tmp_path):
    table = read_flares(write(tmp_path / "f.csv", FLARE_HEAD))
    assert len(table) == 0 and table.start.dtype == "datetime64[ns]" and table.flux.dtype == float
    assert len(region_table(tmp_path, "")) == 0


@pytest.mark.parametrize("reader", [read_flares, read_regions, read_hek])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n\x1a\n\x00\x00", bytes(range(256)) * 9, b"a,b,c\n1,2,3", b"\xff\xfe\x00"])
def test_another_kind_of_file_is_an_error_that_names_it(tmp_path, reader, content):
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.csv: no column .*expected a CSV table of .*Fetch it again"):
        reader(path)


@pytest.mark.parametrize("reader", [read_flares, read_regions, read_hek])
def test_a_missing_file_is_named(tmp_path, reader):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            reader(path)


def test_cells_never_swallow_the_next_line():
    assert cells('a,"b') == ["a", "b"] and cells("") == []


# Rotation

def test_rotation_is_sunpys():
    import astropy.units as u
    from sunpy.sun.models import differential_rotation
    lat = np.linspace(-60, 60, 13)
    theirs = differential_rotation(1 * u.day, lat * u.deg, model="snodgrass", frame_time="synodic").value
    np.testing.assert_allclose(turned(0, lat, 1), theirs, atol=0.01)


@pytest.mark.parametrize("days", [-3, -0.4, 0.5, 4])
def test_rotation_is_that_of_sunpys_rotated_frame(days):
    "The Earth's own speed varies by 3.5 % over the year, which the formula ignores: 0.035 degrees a day"
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from sunpy.coordinates import HeliographicStonyhurst, RotatedSunFrame, transform_with_sun_center
    start = pd.Timestamp("2014-01-05")
    for lat in (-35, 0, 20):
        base = HeliographicStonyhurst(obstime=start.to_pydatetime())
        point = SkyCoord(RotatedSunFrame(10 * u.deg, lat * u.deg, 1 * u.R_sun, base=base, duration=days * u.day, rotation_model="snodgrass"))
        with transform_with_sun_center():
            theirs = point.transform_to(HeliographicStonyhurst(obstime=(start + pd.Timedelta(days=days)).to_pydatetime()))
        assert turned(10, lat, days) == pytest.approx(theirs.lon.to_value(u.deg), abs=0.04 * abs(days))


def test_a_turn_of_the_far_side_stays_between_180_and_180():
    assert turned(175, 0, 1) == pytest.approx(175 + 13.13 - 360, abs=0.01)


# Where they are at a time

@needs_data
def test_regions_of_real_frames_are_where_the_oracle_has_them(real_frames, real_regions):
    theirs = pd.read_csv(DATA / "aia171/regions.csv")
    off = []
    for f in real_frames.itertuples():
        now = regions_at(real_regions, f.time_ut, f.b0_deg, Disk(1023.5, 1023.5, f.rsun_px)).set_index("noaa")
        here = theirs[theirs.frame == f.frame].set_index("noaa_ar")
        off += np.hypot(now.x[here.index] - here.x_px, now.y[here.index] - here.y_px).tolist()
        np.testing.assert_allclose(now.mu[here.index].astype(float), here.mu, atol=0.002)
    assert len(off) == 354 and np.median(off) < 0.4 and max(off) < 0.5


@needs_data
def test_regions_hours_after_midnight_are_where_the_oracle_has_them(real_regions):
    "DeepSDO frames are from all hours of the day; NOAA's positions are whole degrees, 0.017 radii"
    images = pd.read_csv(DATA / "deepsdo/images.csv").set_index("file")
    theirs = pd.read_csv(DATA / "deepsdo/regions.csv", parse_dates=["time_ut"], low_memory=False).query("source == 'NOAA_SRS'")
    off, still = [], []
    for file, here in list(theirs.groupby("file"))[::12]:
        i, time = images.loc[file], here.time_ut.iloc[0]
        now = regions_at(real_regions, time, i.b0_deg, Disk(i.cx_px, i.cy_px, i.rsun_px)).set_index("noaa")
        stood = regions_at(real_regions.assign(time=time), time, i.b0_deg, Disk(i.cx_px, i.cy_px, i.rsun_px)).set_index("noaa")
        for all_, which in ((off, now), (still, stood)):
            all_ += (np.hypot(which.x[here.noaa_ar].to_numpy() - here.x_px, which.y[here.noaa_ar].to_numpy() - here.y_px) / i.rsun_px).tolist()
    assert len(off) > 200 and np.median(off) < 0.002 and max(off) < 0.006
    assert np.quantile(still, 0.9) > 10 * np.quantile(off, 0.9)   # not turned, they would be far off


@needs_data
def test_counts_of_regions_are_the_oracles(real_frames, real_regions):
    same = []
    for f in real_frames[real_frames.srs_available].itertuples():
        now = regions_at(real_regions, f.time_ut, f.b0_deg)
        spots = now[(now.mu > 0.03) & (now.kind == "active_region")]
        same.append(len(spots) == f.n_spotted_ars and spots.area.sum() == f.total_spot_area_msh)
    assert len(same) == 83 and np.mean(same) > 0.95


def test_each_report_holds_for_24_hours_and_no_region_is_doubled(tmp_path):
    table = region_table(tmp_path, *(REGION.replace("2014-01-01", f"2014-01-{d:02d}").replace(",30,", f",{30 + 13 * (d - 1)},") for d in range(1, 5)))
    for hour in range(0, 96):
        now = regions_at(table, pd.Timestamp("2013-12-31 12:00") + pd.Timedelta(hours=hour))
        assert len(now) == 1 and abs(now.time.iloc[0] - pd.Timestamp("2013-12-31 12:00") - pd.Timedelta(hours=hour)) <= pd.Timedelta("84h")
    for time in ("2013-12-31 11:59", "2014-01-04 12:00"):
        assert len(regions_at(table, time)) == 0


def test_the_far_side_has_a_mu_below_zero_and_no_box(tmp_path):
    now = regions_at(region_table(tmp_path, REGION.replace(",30,", ",120,")), "2014-01-01", 0, DISK)
    assert now.mu.iloc[0] < 0 and now[["x0", "y0", "x1", "y1"]].isna().all(axis=None)


def test_half_a_box_behind_the_limb_ends_at_the_limb(tmp_path):
    now = regions_at(region_table(tmp_path, REGION.replace(",30,", ",89,").replace(",10,", ",30,")), "2014-01-01", 0, DISK).iloc[0]
    assert now.x0 < now.x <= DISK.x + DISK.radius and now.x1 <= DISK.x + DISK.radius


def test_a_rolled_disk_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rolled by 180.0 degrees.*Harmonise"):
        regions_at(region_table(tmp_path), "2014-01-01", disk=Disk(100, 100, 80, 180))


# Names for tiles

def test_place_of_is_what_counting_pixels_says():
    "Corners of pixels decide, so a fine grid of points over each tile must agree, up to tiles that only just touch"
    rng, disk, size = np.random.default_rng(0), Disk(60.3, 58.1, 45.0), 16
    row, col = rng.integers(0, 110, (2, 400))
    at = (np.arange(160) + 0.5) / 10 - 0.5
    r = np.hypot(row[:, None, None] + at[:, None] - disk.y, col[:, None, None] + at - disk.x)
    expected = np.select([(r > disk.radius).all((1, 2)), (r > disk.radius).any((1, 2))], ["off_disk", "limb"], "disk")
    sure = (np.abs(r.min((1, 2)) - disk.radius) > 0.1) & (np.abs(r.max((1, 2)) - disk.radius) > 0.1)
    assert sure.sum() > 350 and (place_of(row, col, size, disk) == expected)[sure].all()


@needs_data
def test_names_of_real_tiles_agree_with_the_oracle(real_frames, real_regions):
    "tiles64.csv.gz leaves out what is doubtful, so agreement should be nearly complete, class by class"
    theirs = pd.read_csv(DATA / "aia171/tiles64.csv.gz").assign(size=64).merge(real_frames, on="frame").rename(columns=dict(time_ut="time"))
    theirs = theirs[theirs.srs_available]
    ours = pd.concat([label_tiles(part, real_regions, Disk(1023.5, 1023.5, part.rsun_px.iloc[0]), part.b0_deg.iloc[0])
                      for _, part in list(theirs.groupby("frame"))[::3]]).reindex(theirs.index).dropna(subset=["label"])
    theirs = theirs.loc[ours.index]
    agree = (ours.label == theirs.label).groupby(theirs.label).mean()
    assert set(agree.index) == {"active_region", "quiet_sun", "limb", "off_disk"} and agree.min() >= 0.99
    active = theirs.label == "active_region"
    assert all(str(int(n)) in found.split() for n, found in zip(theirs.noaa_ar[active], ours.noaa[active]))
    assert (ours.hale[active] == theirs.mag_type[active]).mean() > 0.95


@needs_data
def test_tiles_named_active_are_brighter(real_frames, real_regions):
    "An oracle that never saw a list: the pictures. Active regions glow at 171"
    part = pd.read_csv(DATA / "aia171/tiles64.csv.gz").assign(size=64).merge(real_frames[:40], on="frame").rename(columns=dict(time_ut="time"))
    named = pd.concat([label_tiles(p, real_regions, Disk(1023.5, 1023.5, p.rsun_px.iloc[0]), p.b0_deg.iloc[0]) for _, p in part.groupby("frame")]).label
    bright = part["mean"]
    assert bright[named[named == "active_region"].index].median() > 1.3 * bright[named[named == "quiet_sun"].index].median()


def test_small_regions_name_the_tile_they_lie_in_and_large_ones_several(tmp_path):
    grid = tile_rows(*((r, c) for r in range(0, 1024, 64) for c in range(0, 1024, 64)))
    small = label_tiles(grid, region_table(tmp_path, "2014-01-01,I,11944,0,0,130,Dai,2,8,Beta").assign(lon0=-0.1, lon1=0.1, lat0=0.2, lat1=0.3), DISK, 0)
    assert grid[small.label == "active_region"][["row", "col"]].values.tolist() in ([[448, 448]], [[448, 512]], [[448, 448], [448, 512]])
    large = label_tiles(grid, region_table(tmp_path, "2014-01-01,I,11944,0,0,130,Dai,33,8,Beta"), DISK, 0)
    assert (large.label == "active_region").sum() >= 6 and set(large.noaa[large.label == "active_region"]) == {"11944"}


def test_a_position_without_a_box_names_its_tile(tmp_path):
    table = region_table(tmp_path).drop(columns=["lon0", "lon1", "lat0", "lat1"])
    x, y = regions_at(table, "2014-01-01", 0, DISK)[["x", "y"]].iloc[0].astype(int)
    assert label_tiles(tile_rows((y - 10, x - 10), (y - 100, x)), table, DISK, 0).label.tolist() == ["active_region", "quiet_sun"]
    assert label_tiles(tile_rows((y - 10, x - 10)), table.assign(lon0=np.nan, lon1=np.nan, lat0=np.nan, lat1=np.nan), DISK, 0).label.tolist() == ["active_region"]


def test_the_limb_keeps_its_name_but_tells_of_its_regions(tmp_path):
    table = region_table(tmp_path, REGION.replace(",30,", ",80,"))
    x, y = regions_at(table, "2014-01-01", 0, DISK)[["x", "y"]].iloc[0].astype(int)
    told = label_tiles(tile_rows((y - 32, x - 32)), table, DISK, 0).iloc[0]
    assert (told.label, told.noaa, told.hale, told.area, told.n) == ("limb", "11944", "Beta", 130, 1)


def test_numbers_begin_with_the_largest_region_and_areas_add_up(tmp_path):
    table = region_table(tmp_path, REGION, REGION.replace("11944", "11945").replace("130", "500").replace("Beta", "Beta-Delta"))
    x, y = regions_at(table, "2014-01-01", 0, DISK)[["x", "y"]].iloc[0].astype(int)
    told = label_tiles(tile_rows((y - 32, x - 32)), table, DISK, 0).iloc[0]
    assert (told.noaa, told.hale, told.area, told.n) == ("11945 11944", "Beta-Delta", 630, 2)


def test_where_two_kinds_share_a_tile_the_rarer_names_it(tmp_path):
    both = pd.concat([region_table(tmp_path), region_table(tmp_path).assign(kind="filament"), region_table(tmp_path).assign(kind="coronal_hole")])
    x, y = regions_at(both, "2014-01-01", 0, DISK)[["x", "y"]].iloc[0].astype(int)
    assert label_tiles(tile_rows((y - 32, x - 32)), both, DISK, 0).label.tolist() == ["filament"]


def test_outside_the_list_nothing_is_called_quiet(tmp_path):
    table = region_table(tmp_path)
    told = label_tiles(tile_rows((480, 480), (0, 0), time="2015-01-01"), table, DISK, 0)
    assert told.loc[0].isna().all() and told.label[1] == "off_disk"
    assert label_tiles(tile_rows((480, 480), time="2015-01-01"), table, DISK, 0, covers=("2014", "2016")).label[0] == "quiet_sun"


def test_names_follow_the_tilt_of_the_axis(tmp_path):
    table = region_table(tmp_path, "2014-09-08,I,12158,15,0,130,Dai,8,8,Beta")
    for b0 in (-7.2, 0, 7.2):
        now = regions_at(table, "2014-09-08", b0, DISK).iloc[0]
        assert now.y == pytest.approx(DISK.y - 400 * np.sin(np.radians(15 - b0)), abs=0.1)
        assert label_tiles(tile_rows((int(now.y) - 16, int(now.x) - 16), size=32, time="2014-09-08"), table, DISK, b0).label[0] == "active_region"


def test_a_tile_of_a_larger_scale_is_named_after_all_it_covers(tmp_path):
    table = region_table(tmp_path)
    x, y = regions_at(table, "2014-01-01", 0, DISK)[["x", "y"]].iloc[0].astype(int)
    corner = tile_rows((y - 150, x - 150), (y - 150, x - 150)).assign(scale=[1.0, 4.0])
    assert label_tiles(corner, table, DISK, 0).label.tolist() == ["quiet_sun", "active_region"]


# Flares that follow

@needs_data
def test_targets_of_real_frames_are_the_oracles(real_frames, real_flares):
    target, theirs = flare_target(real_frames.time_ut, real_flares), real_frames.n_goes_flares_next24h
    known = theirs.notna()
    assert (target.n.isna() == ~known).all() and known.sum() == 81
    assert (target.n[known].astype(float) == theirs[known]).all()
    assert (target.max_class[known] == real_frames.max_flare_next24h[known].fillna("quiet")).all()
    assert target.max_class[~known].isna().all()


@needs_data
def test_targets_of_real_regions_are_the_oracles(real_frames, real_flares):
    theirs = pd.read_csv(DATA / "aia171/regions.csv")
    times = theirs.frame.map(real_frames.set_index("frame").time_ut)
    target = flare_target(times, real_flares, noaa=theirs.noaa_ar.astype(str))
    known = target.n.notna()
    assert known.sum() >= 350
    assert (target.n == theirs.n_flares_next24h)[known].mean() > 0.99
    known = target.max_class.notna()
    assert known.sum() >= 50
    assert (target.max_class == theirs.max_flare_next24h.fillna("quiet"))[known].mean() > 0.99


HOUR = pd.Timedelta("1h")
moments = st.lists(st.integers(0, 200), max_size=25)


@settings(max_examples=60, deadline=None)
@given(peaks=moments.filter(len), tenths=st.lists(st.integers(10, 99), min_size=25, max_size=25), at=moments, window=st.integers(1, 60), lag=st.integers(0, 30))
def test_targets_are_what_a_plain_loop_finds(peaks, tenths, at, window, lag):
    day = pd.Timestamp("2014-01-01")
    flares = pd.DataFrame(dict(time=[day + p * HOUR for p in peaks], flux=[t * 1e-7 for t, _ in zip(tenths, peaks)])).astype(dict(time="datetime64[ns]"))
    times = pd.Series([day + a * HOUR for a in at], dtype="datetime64[ns]")
    got = flare_target(times, flares, window * HOUR, lag * HOUR, covers=("2013", "2015"))
    for t, row in zip(times, got.itertuples()):
        inside = flares[(flares.time >= t + lag * HOUR) & (flares.time < t + (lag + window) * HOUR)]
        assert row.n == len(inside)
        assert row.max_class == (goes_class(inside.flux.max()) if len(inside) else "quiet")
        assert np.isnan(row.max_flux) if inside.empty else row.max_flux == inside.flux.max()


def test_a_window_that_leaves_the_list_has_no_target(tmp_path):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE, FLARE.replace("2014-01-01", "2014-01-09")))
    target = flare_target(["2013-12-31 23:00", "2014-01-01", "2014-01-03", "2014-01-09", "2014-01-09 00:01"], flares)
    assert target.max_class.isna().tolist() == [True, False, False, False, True]
    assert target.max_class[[1, 2]].tolist() == ["M1.5", "quiet"] and target.n[2] == 0 and np.isnan(target.max_flux[2])
    lagged = flare_target(["2014-01-01", "2014-01-08"], flares, lag="24h")
    assert lagged.max_class.tolist() == ["quiet", "M1.5"] and lagged.begin[1] == pd.Timestamp("2014-01-09")


def test_a_flare_of_unknown_class_is_counted_and_never_the_largest(tmp_path):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE.replace("M1.5", "?"), FLARE.replace("M1.5", "C1.0"), FLARE.replace("2014-01-01", "2014-01-03").replace("M1.5", "?")))
    target = flare_target(["2014-01-01", "2014-01-03"], flares)
    assert target.n.tolist() == [2, 1] and target.max_class[0] == "C1.0" and pd.isna(target.max_class[1])


def test_no_flares_at_all_is_no_quiet_sun(tmp_path):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD))
    assert flare_target(["2014-01-01"], flares).max_class.isna().all()
    assert flare_target(["2014-01-01"], flares, covers=("2013", "2015")).max_class.tolist() == ["quiet"]
    assert len(flare_target([], flares)) == 0


def test_tiles_count_only_the_flares_of_their_own_regions(tmp_path):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE, FLARE.replace("11944", "11950").replace("M1.5", "X2.0"), FLARE.replace("11944", "0").replace("M1.5", "X9.0")))
    target = flare_target(["2014-01-01"] * 4, flares, noaa=["11944", "", "11944 11950", "12000"])
    assert target.n.tolist() == [1, 0, 2, 0] and target.max_class.isna().all()   # the X9.0 may be anybody's
    flares = flares.assign(flux=flares.flux.mask(flares.noaa.isna(), 1e-8))
    target = flare_target(["2014-01-01"] * 4, flares, noaa=["11944", "", "11944 11950", "12000"])
    assert target.max_class[[0, 2]].tolist() == ["M1.5", "X2.0"] and target.max_class[[1, 3]].isna().all()
    flares = flares[flares.noaa.notna()]
    some = pd.Series(["2014-01-01"] * 2, index=[7, 9])
    target = flare_target(some, flares, noaa=pd.Series([pd.NA, "11944"]))   # unknown regions: unknown flares
    assert target.index.tolist() == [7, 9] and target.n.isna().tolist() == [True, False] and target.max_class[9] == "M1.5"


@pytest.mark.parametrize("bad", [24, "24", 24.0, 0, "-24h", "soon", "0h"])
def test_a_window_without_a_unit_is_refused(tmp_path, bad):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE))
    with pytest.raises(ValueError, match="window=.*not a span of time"):
        flare_target(["2014-01-01"], flares, window=bad)
    if bad != "0h":
        with pytest.raises(ValueError, match="lag=.*not a span of time"):
            flare_target(["2014-01-01"], flares, lag=bad)


def test_times_with_a_zone_are_utc_and_numbers_are_none(tmp_path):
    flares, table = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE)), region_table(tmp_path)
    assert flare_target(["2014-01-01T00:00:00Z"], flares).max_class.tolist() == ["M1.5"]
    assert len(regions_at(table, "2014-01-01T00:00:00Z")) == 1 and months("2014-01-15T00:00Z", "2014-01-20T00:00Z") == months("2014-01-15", "2014-01-20")
    with pytest.raises(ValueError, match="2014 is a number"):
        flare_target([2014], flares)


@pytest.mark.parametrize("noaa", ["1944", "11944", 11944, 11944.0, "11944.0", "AR11944", "AR 1944", "NOAA 11944"])
def test_region_numbers_in_all_spellings(tmp_path, noaa):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE))
    assert flare_target(["2014-01-01"], flares, noaa=[noaa]).max_class.tolist() == ["M1.5"]
    with pytest.raises(ValueError, match="'x' is no region number"):
        flare_target(["2014-01-01"], flares, noaa=["x"])


def test_a_lost_day_is_no_quiet_sun(tmp_path):
    table = region_table(tmp_path, *(REGION.replace("2014-01-01", f"2014-01-0{d}") for d in (1, 3)))
    tile = tile_rows((480, 480), time="2014-01-02")
    assert label_tiles(tile, table, DISK, 0).label.isna().all()
    assert label_tiles(tile, table, DISK, 0, covers=("2014-01-01", "2014-01-03")).label.tolist() == ["quiet_sun"]
    table.attrs["days"] = ["2014-01-01", "2014-01-02", "2014-01-03"]   # it came, and had no spots
    assert label_tiles(tile, table, DISK, 0).label.tolist() == ["quiet_sun"]


def test_tiles_without_a_frame_or_a_tilt(tmp_path):
    table, tiles = region_table(tmp_path), tile_rows((480, 480), (0, 0))
    with pytest.raises(ValueError, match="give disk and b0"):
        label_tiles(tiles, table)
    assert label_tiles(tiles[:0], table, DISK, 0).columns.tolist() == ["label", "n", "noaa", "hale", "area"]
    for b0 in ([np.nan, np.nan], [0, np.nan]):
        told = label_tiles(tiles, table, DISK, b0)
        assert told.label[1] == "off_disk" and pd.isna(told.label[0]) == np.isnan(b0[0])


def test_swapped_tables_are_named(tmp_path):
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE))
    package = Package.build(SmallSun(seed=0).frames(n=1, start="2014-01-01", size=64), tmp_path / "p", size=64)
    with pytest.raises(ValueError, match="regions: a table without the column mcintosh.*swapped"):
        labels_for(package, flares, region_table(tmp_path))


# The HEK

def test_a_fetched_list_speaks_of_what_was_asked_for(hek, tmp_path):
    table = fetch_hek("2014-01-03", "2014-02-05", ("CH",), tmp_path, hek.url)
    assert covered(table) == (pd.Timestamp("2014-01-03"), pd.Timestamp("2014-02-05"))


def test_an_event_is_read_with_its_box(tmp_path):
    (tmp_path / "hek.json").write_text(json.dumps(dict(result=[HEK_EVENT], overmax=False)))
    event, = read_hek(tmp_path / "hek.json").to_dict("records")
    assert event["problem"] == "" and event["kind"] == "coronal_hole" and event["lon"] == -30.5
    assert [event[k] for k in ("lon0", "lon1", "lat0", "lat1")] == [-45, -16, 0, 22]


@pytest.mark.parametrize("change, words", [
    (dict(hgs_x=None), "lon is empty"), (dict(hgs_x=""), "lon is empty"), (dict(hgs_y="N12"), "lat 'N12' is unusable"), (dict(hgs_y=1e308), "lat '1e+308' is unusable"),
    (dict(hgs_x=[1, 2]), "lon '[1, 2]' is unusable"), (dict(event_starttime=None), "start is empty"), (dict(event_starttime={}), "start '{}' is unusable"),
    (dict(event_endtime="2013-01-01T00:00:00"), "end before start"), (dict(event_type="ZZ"), "kind 'ZZ' is unusable"), (dict(event_type=None), "kind is empty"),
    (dict(hgs_bbox="POLYGON((1 2,3"), "box 'POLYGON((1 2,3' is unusable"), (dict(hgs_bbox="POLYGON((0 0,359 3))"), "is unusable"), (dict(hgs_bbox="POINT(1 2)"), "is unusable"),
    (dict(ar_noaanum="many"), "noaa 'many' is unusable"),
])
def test_an_event_with_broken_values_is_kept_marked_and_alone(tmp_path, change, words):
    (tmp_path / "hek.json").write_text(json.dumps([HEK_EVENT, HEK_EVENT | change, HEK_EVENT]))
    table = read_hek(tmp_path / "hek.json")
    assert len(table) == 3 and words in table.problem[1] and (table.problem[[0, 2]] == "").all()


def test_events_that_are_none_and_fields_that_are_missing(tmp_path):
    (tmp_path / "hek.json").write_text(json.dumps(dict(result=[None, "x", 7, {}, dict(event_type="FL")])))
    table = read_hek(tmp_path / "hek.json")
    assert len(table) == 5 and (table.problem != "").all() and table.problem[0].startswith("no event at all")


@pytest.mark.parametrize("content", ['{"result": [', '{"error": "busy"}', '{"result": 7}', "[" * 100_000, '{"result": [' + "9" * 10_000 + "]}", '[{"a": "\x00'])
def test_damaged_json_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "hek.json").write_text(content)
    with pytest.raises(ValueError, match=r"hek\.json: .*Fetch it again"):
        read_hek(tmp_path / "hek.json")


def test_a_csv_of_the_hek_is_read(tmp_path):
    pd.DataFrame([HEK_EVENT, HEK_EVENT | dict(hgs_x=None)]).to_csv(tmp_path / "hek.csv", index=False)
    table = read_hek(tmp_path / "hek.csv")
    assert table.problem.tolist() == ["", "lon is empty"] and table.lat0.tolist() == [0, 0]


@given(st.lists(st.tuples(st.floats(-89, 89), st.floats(-89, 89)), min_size=1, max_size=6))
def test_boxes_hold_their_polygon(points):
    lon0, lon1, lat0, lat1 = box_of("POLYGON((" + ",".join(f"{x!r} {y!r}" for x, y in points) + "))")
    assert all(lon0 <= x <= lon1 and lat0 <= y <= lat1 for x, y in points)


def test_holes_name_tiles(tmp_path):
    (tmp_path / "hek.json").write_text(json.dumps([HEK_EVENT]))
    hek = read_hek(tmp_path / "hek.json")
    now = regions_at(hek, "2014-01-09 06:00", 0, DISK).iloc[0]
    assert now.lon == pytest.approx(-30.5 + 13.1 / 4, abs=0.1)
    told = label_tiles(tile_rows((int(now.y) - 32, int(now.x) - 32), time="2014-01-09 06:00"), hek, DISK, 0)
    assert told.label.tolist() == ["coronal_hole"] and told.noaa.tolist() == [""]


class Hek(Lookalike):
    "Answers like the HEK: three events a page, those that touch the time asked for; `scripted` answers come first"
    def __init__(self, events):
        super().__init__()
        self.events, self.scripted = events, []

    def answer(self, path, query):
        if self.scripted:
            return self.scripted.pop(0)
        start, end, kinds = query["event_starttime"], query["event_endtime"], query["event_type"].upper().split(",")
        mine = [e for e in self.events if not isinstance(e, dict) or (e["event_type"] in kinds and (e["event_starttime"] or "2014-01-05") < end and (e["event_endtime"] or "2014-12") >= start)]
        page = int(query["page"])
        return as_json(dict(result=mine[3 * page - 3:3 * page], overmax=len(mine) > 3 * page))


@pytest.fixture
def hek():
    events = [HEK_EVENT | dict(kb_archivid=f"{m}-{d}", event_starttime=f"2014-{m:02d}-{d:02d}T00:00:00", event_endtime=f"2014-{m:02d}-{d:02d}T12:00:00") for m in (1, 2) for d in range(1, 9)]
    events.append(HEK_EVENT | dict(kb_archivid="both", event_starttime="2014-01-31T20:00:00", event_endtime="2014-02-01T08:00:00"))
    events.append(HEK_EVENT | dict(kb_archivid="broken", hgs_x=None, event_starttime="2014-01-20T00:00:00", event_endtime=None))
    events.append("nonsense")
    with Hek(events) as server:
        yield server


def test_months_are_fetched_page_by_page_and_joined(hek, tmp_path):
    table = fetch_hek("2014-01-01", "2014-03-01", ("CH",), tmp_path, hek.url)
    assert len(table.query("problem == ''")) == 17 and table.id.eq("both").sum() == 1
    assert (table.problem == "end is empty; lon is empty").sum() == 1 and table.problem.str.startswith("no event at all").any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hek_CH_2014-01.json", "hek_CH_2014-02.json"]


def test_what_came_is_not_asked_for_again(hek, tmp_path):
    first = fetch_hek("2014-01-03", "2014-02-05", ("CH",), tmp_path, hek.url)
    asked = len(hek.asked)
    pd.testing.assert_frame_equal(fetch_hek("2014-01-03", "2014-02-05", ("CH",), tmp_path, hek.url), first)
    assert len(hek.asked) == asked and first.start.dropna().between("2014-01-03", "2014-02-05").all()


def test_a_damaged_or_unsettled_month_is_asked_for_again(hek, tmp_path):
    first = fetch_hek("2014-01-01", "2014-03-01", ("CH",), tmp_path, hek.url)
    (tmp_path / "hek_CH_2014-01.json").write_text('{"result": [')
    at = pd.Timestamp("2014-03-15").timestamp()
    os.utime(tmp_path / "hek_CH_2014-02.json", (at, at))
    hek.asked.clear()
    pd.testing.assert_frame_equal(fetch_hek("2014-01-01", "2014-03-01", ("CH",), tmp_path, hek.url), first)
    assert {q["event_starttime"][:7] for _, q in hek.asked} == {"2014-01", "2014-02"}


@pytest.mark.parametrize("bad", [(503, "text/html", b"busy"), (200, "text/html", b"<html>maintenance</html>"), (200, "application/json", b'{"result": [{"a'),
                                 (200, "application/json", b'{"error": "x"}'), (200, "application/json", b"[]"), (200, "application/json", b"\xff\xfe")])
def test_a_bad_answer_is_asked_for_again(hek, tmp_path, bad):
    hek.scripted = [bad]
    assert len(fetch_hek("2014-02-02", "2014-02-06", ("CH",), tmp_path, hek.url).query("problem == ''")) == 4


def test_when_the_hek_stays_silent_the_months_that_came_are_kept(hek, tmp_path):
    fetch_hek("2014-01-01", "2014-02-01", ("CH",), tmp_path, hek.url)
    hek.scripted = [(200, "text/html", b"<html>")] * 3
    with pytest.raises(OSError, match="2014-02-01.*Try again later"):
        fetch_hek("2014-01-01", "2014-03-01", ("CH",), tmp_path, hek.url)
    assert [p.name for p in tmp_path.iterdir()] == ["hek_CH_2014-01.json"]
    assert len(fetch_hek("2014-01-01", "2014-03-01", ("CH",), tmp_path, hek.url).query("problem == ''")) == 17


def test_the_question_is_that_of_sunpys_client(hek, tmp_path):
    net = pytest.importorskip("sunpy.net")
    from sunpy.net.hek import HEKClient
    hek.events = []
    ask_hek("2014-01-01", "2014-02-01", ["CH"], hek.url)
    HEKClient(hek.url + "/?").search(net.attrs.Time("2014-01-01", "2014-02-01"), net.attrs.hek.EventType("CH"))
    ours, theirs = (query for _, query in hek.asked)
    assert ours == theirs


def test_broken_rows_that_stop_sunpys_client_do_not_stop_ours(hek, tmp_path):
    net = pytest.importorskip("sunpy.net")
    from sunpy.net.hek import HEKClient
    hek.events = [HEK_EVENT | dict(event_coord1=1, event_coord2=2, event_coord3=None, event_coordsys="", event_coordunit="", event_starttime="2014-01-09T00:00:00")]
    with pytest.raises(Exception):
        HEKClient(hek.url + "/?").search(net.attrs.Time("2014-01-01", "2014-02-01"), net.attrs.hek.EventType("CH"))
    assert len(fetch_hek("2014-01-01", "2014-02-01", ("CH",), tmp_path, hek.url)) == 1


def test_flares_come_from_noaas_forecasters(hek, tmp_path):
    flare = HEK_EVENT | dict(event_type="FL", frm_name="SWPC", fl_goescls="M1.5", ar_noaanum=11944, event_peaktime="2014-01-09T00:10:00", event_endtime="2014-01-09T00:20:00", hgs_bbox="")
    hek.events = [flare, flare | dict(fl_goescls="", kb_archivid="2"), flare | dict(frm_name="SSW Latest Events", kb_archivid="3")]
    table = fetch_flares("2014-01-01", "2014-02-01", tmp_path, hek.url)
    assert table.problem.tolist() == ["", "no GOES class"] and table.flux[0] == pytest.approx(1.5e-5) and table.noaa.tolist() == [11944, 11944]
    assert flare_target(["2014-01-09"], table, covers=("2014-01-01", "2014-02-01")).max_class.tolist() == ["M1.5"]


def test_wrong_questions_are_refused_before_the_network(tmp_path):
    with pytest.raises(ValueError, match="kinds: XX, expected some of AR"):
        fetch_hek("2014-01-01", "2014-02-01", ("XX",), tmp_path, "http://nowhere.invalid")
    with pytest.raises(ValueError, match="kinds: empty"):
        fetch_hek("2014-01-01", "2014-02-01", [], tmp_path, "http://nowhere.invalid")
    with pytest.raises(ValueError, match="is not before end"):
        fetch_hek("2014-02-01", "2014-01-01", ("CH",), tmp_path, "http://nowhere.invalid")
    with pytest.raises(ValueError):
        fetch_hek("someday", "2014-01-01", ("CH",), tmp_path, "http://nowhere.invalid")


@pytest.mark.parametrize("start, end, n", [("2014-01-15", "2014-01-20", 1), ("2014-01-01", "2014-02-01", 1), ("2014-01-31", "2014-02-01 00:01", 2), ("2013-11-30", "2014-02-03", 4)])
def test_months_touch_the_time_and_leave_no_gap(start, end, n):
    found = months(start, end)
    assert len(found) == n and found[0][0] <= pd.Timestamp(start) and found[-1][1] >= pd.Timestamp(end)
    assert all(a[1] == b[0] for a, b in zip(found, found[1:]))


def test_sunpy_knows_all_our_kinds():
    attrs = pytest.importorskip("sunpy.net.hek.attrs")
    assert {name for name in vars(attrs) if len(name) == 2 and name.isupper()} <= set(KINDS)


# NOAA's daily files, real ones that come with sunpy

def srs_folder():
    sunpy = pytest.importorskip("sunpy")
    folder = Path(sunpy.__file__).parent / "data/test/SRS"
    if not folder.is_dir():
        pytest.skip("this sunpy came without its test data")
    return folder


@needs_data
@pytest.mark.parametrize("day", ["20100621", "20150101", "20150306", "20150906"])
def test_a_daily_file_equals_the_list(real_regions, day):
    ours = regions_from(srs_rows(srs_folder() / f"{day}SRS.txt"))
    ours, list_ = (t[t.kind != "returning"].set_index("noaa").sort_index() for t in (ours, real_regions[real_regions.time == pd.Timestamp(day)]))
    assert len(ours) and (ours.problem == "").all()
    for column in ("time", "kind", "lon", "lat", "area", "extent", "mcintosh", "lon0"):
        pd.testing.assert_series_equal(ours[column], list_[column], check_dtype=False)


class FakeFido:
    "At sunpy's boundary: `search` takes attributes, `fetch` gives a list of paths that has `errors`"
    def __init__(self, paths, errors=()):
        self.paths, self.errors, self.searched = paths, list(errors), []

    def search(self, *attrs):
        self.searched.append(attrs)
        return attrs

    def fetch(self, what, **options):
        class Results(list):
            errors = self.errors
        self.errors = []
        return Results(map(str, self.paths))


def test_regions_come_through_fido_and_bad_files_are_marked(monkeypatch, tmp_path, caplog):
    net = pytest.importorskip("sunpy.net")
    good = srs_folder() / "20150101SRS.txt"
    bad = write(tmp_path / "20150102SRS.txt", "<html>not found</html>")
    fido = FakeFido([good, bad], errors=["timeout"])
    monkeypatch.setattr(net, "Fido", fido)
    table = fetch_regions("2015-01-01", "2015-01-03", tmp_path)
    assert (table.kind == "active_region").sum() == 6 and len(fido.searched) == 1
    assert table.problem[table.problem != ""].str.startswith("20150102SRS.txt: ").sum() == 1


def test_no_daily_file_at_all_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    net = pytest.importorskip("sunpy.net")
    monkeypatch.setattr(net, "Fido", FakeFido([], errors=["down"]))
    with pytest.raises(OSError, match="no file came for 2015-01-01.*read_regions"):
        fetch_regions("2015-01-01", "2015-01-03", tmp_path)


# Joined

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A package of the small Sun, its regions as NOAA would list them, and the Sun"
    folder, sun = tmp_path_factory.mktemp("labels"), SmallSun(seed=4)
    rows = [f"{d:%Y-%m-%d},I,{r.id},{r.lat:.0f},{r.lon:.0f},{300 * r.strength:.0f},Dai,{1.5 * r.radius:.0f},9,Beta"
            for d in pd.date_range("2014-03-01", periods=30) for r in sun.truth(d).query("kind == 'active_region' and abs(lon) < 90 and strength > .1").itertuples()]
    regions = read_regions(write(folder / "regions.csv", REGION_HEAD, *rows))
    package = Package.build([sun.frame(t, size=256) for t in pd.date_range("2014-03-02 09:00", periods=6, freq="6D")], folder / "package", size=256)
    return package, regions, sun


def test_names_on_the_small_sun_are_its_truth(small):
    package, regions, sun = small
    tiles = Tiles.grid(package, size=16)
    tiles = tiles[tiles.table.time.between(*covered(regions)).to_numpy()]
    ours, truth = label_tiles(tiles, regions).label, sun.label(tiles)
    active = truth == "active_region"
    assert active.sum() > 10 and (ours[active] == "active_region").mean() > 0.7
    assert (truth[ours == "active_region"] == "active_region").mean() > 0.4
    assert ours[truth == "off_disk"].isin(["off_disk", "limb"]).all() and (ours[truth == "limb"] == "limb").all()


def test_one_row_per_frame_and_per_tile(small, tmp_path):
    package, regions, sun = small
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE.replace("2014-01-01", "2014-03-02"), FLARE.replace("2014-01-01", "2014-03-28")))
    frames = labels_for(package, regions, flares)
    assert len(frames) == len(package) and frames.frame.tolist() == list(range(len(package)))
    assert frames.n_active_region.iloc[0] == len(regions_at(regions, package.catalogue.time[0]).query("mu > 0"))
    assert frames.max_class.iloc[0] == "M1.5" and pd.isna(frames.max_class.iloc[-1])
    assert pd.isna(frames.n.iloc[-1])   # 2014-04-01 09:00: the list ends on 2014-03-30
    tiles = Tiles.grid(package, size=32)
    told = labels_for(tiles, regions, flares)
    assert len(told) == len(tiles) and (told.index == tiles.table.index).all()
    assert set(told.label.dropna()) <= {"active_region", "quiet_sun", "limb", "off_disk"}
    assert labels_for(package, flares=flares).max_class.iloc[0] == "M1.5"


def test_asked_for_the_impossible(small):
    package, regions, sun = small
    with pytest.raises(ValueError, match="give regions, flares or hek"):
        labels_for(package)
    with pytest.raises(ValueError, match="give regions, too"):
        labels_for(Tiles.grid(package, size=32), flares=pd.DataFrame(dict(flux=[])))


def test_a_picture_that_does_not_know_its_tilt_is_given_the_true_one(tmp_path):
    frame = SmallSun(seed=1).frame("2014-09-08", size=128)
    regions = region_table(tmp_path, "2014-09-08,I,12158,15,0,130,Dai,8,8,Beta")
    tops = []
    for meta in ({}, dict(b0=7.25), dict(b0=0.0)):
        frame.meta = meta
        tops.append(show_regions(frame, regions).patches[0].get_y())
    plt.close("all")
    assert tops[0] == pytest.approx(tops[1], abs=0.05) and abs(tops[2] - tops[1]) > 3


def test_pictures_have_boxes_numbers_and_axes(small, tmp_path):
    package, regions, sun = small
    ax = show_regions(package.frame(0), regions)
    visible = regions_at(regions, package.catalogue.time[0], disk=package.disk).query("mu > 0")
    assert len(ax.patches) == len(visible) and {t.get_text() for t in ax.texts} == {str(n) for n in visible.noaa}
    flares = read_flares(write(tmp_path / "f.csv", FLARE_HEAD, FLARE))
    ax = show_flares(flares, flare_target(["2014-01-01"], flares))
    assert "W/m²" in ax.get_ylabel() and len(ax.patches) == 1
    plt.close("all")
