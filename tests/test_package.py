"""Packaging: geometry against truth and sunpy, resuming after a kill, and every kind of bad input."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from real_data import DATA, needs_data
from search_sdo.packager.channels import stretch
from search_sdo.packager.frame import Disk, Frame, read_frame
from search_sdo.packager.calibrate import bin_pixels, harmonise, harmonised_disk, source_pixels
from search_sdo.packager.package import Package, bit_round, read_journal, shard_file, verify
from search_sdo.packager.synthetic import SmallSun

SUN = SmallSun(seed=5)
DAYS = [f"2014-01-{d:02d}" for d in range(1, 9)]


def frames(size=128, days=DAYS):
    return [SUN.frame(day, size=size) for day in days]


def same(a, b):
    "Two packages hold the same frames in the same order, each once"
    np.testing.assert_array_equal(a.array[:], b.array[:])
    pd.testing.assert_frame_equal(a.catalogue.drop(columns="source"), b.catalogue.drop(columns="source"))
    assert not a.catalogue.duplicated(["channel", "time"]).any()


# Geometry

def ramp(size, disk):
    "A frame whose values are x + 1000 y in solar radii: interpolation of it is exact"
    y, x = np.indices((size, size))
    dx, dy = (x - disk.x) / disk.radius, (y - disk.y) / disk.radius
    turn = np.radians(disk.roll)
    return (dx * np.cos(turn) + dy * np.sin(turn) + 1000 * (-dx * np.sin(turn) + dy * np.cos(turn))).astype("f4")


@pytest.mark.parametrize("disk", [Disk(255.5, 255.5, 200), Disk(250.2, 261.7, 190.4), Disk(240, 250, 150, roll=33), Disk(255.5, 255.5, 60, roll=180)])
@pytest.mark.parametrize("size", [64, 128, 400])
def test_every_pixel_lands_where_the_disk_says(disk, size):
    out = harmonise(Frame(ramp(512, disk), None, "171", disk, "DN/s"), size)
    expected = ramp(size, harmonised_disk(size))
    seen = np.isfinite(out.data)
    assert seen.mean() > 0.5
    np.testing.assert_allclose(out.data[seen], expected[seen], atol=0.02 + 2e-4 * abs(expected[seen]).max())


def test_rolled_frame_is_turned_as_sunpy_turns_it():
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from scipy.ndimage import gaussian_filter, map_coordinates
    frame = SUN.frame("2014-03-01", size=256, disk=Disk(127.5, 127.5, 102.4, roll=25))
    m = frame.to_map().rotate(missing=0, order=1)
    x, y = m.world_to_pixel(SkyCoord(0 * u.arcsec, 0 * u.arcsec, frame=m.coordinate_frame))
    row, col = np.indices((121, 121)) + 67
    theirs = map_coordinates(m.data, [y.value - (row - 127.5), x.value + (col - 127.5)], order=1)
    ours = harmonise(frame, 256).data[67:188, 67:188]
    smooth = [gaussian_filter(np.log(a.clip(1)), 1.5).ravel() for a in (ours, theirs)]
    assert np.corrcoef(smooth)[0, 1] > 0.99


def test_unmeasured_pixels_stay_unmeasured():
    frame = SUN.frame("2014-03-01", size=256)
    frame.data[100:120, 60:90] = np.nan
    out = harmonise(frame, 256).data
    assert np.isnan(out[101:119, 61:89]).all() and np.isfinite(out[130:, 100:150]).all()


def test_cutout_is_put_in_its_place():
    whole = SUN.frame("2014-03-01", size=256)
    piece = Frame(whole.data[40:140, 30:150], whole.time, "171", Disk(whole.disk.x - 30, whole.disk.y - 40, whole.disk.radius), whole.unit)
    a, b = harmonise(whole, 256).data, harmonise(piece, 256).data
    np.testing.assert_allclose(b[45:135, 35:145], a[45:135, 35:145], rtol=1e-4)
    assert np.isnan(b[:35]).all() and np.isnan(b[:, 155:]).all()


def test_counts_become_counts_per_second():
    frame = SUN.frame("2014-03-01", size=128)
    counts = Frame(frame.data * 2.9, frame.time, "171", frame.disk, "DN", dict(exptime=2.9))
    np.testing.assert_allclose(harmonise(counts, 128).data, harmonise(frame, 128).data, rtol=1e-5)
    counts.meta["exptime"] = 0
    with pytest.raises(ValueError, match="exposure time is 0"):
        harmonise(counts, 128)


def test_source_pixels_there_and_back():
    a, b = Disk(10, 20, 30, 40), Disk(-5, 7, 90, -15)
    x, y = source_pixels(*source_pixels(3.0, 4.0, a, b), b, a)
    assert (x, y) == pytest.approx((3, 4))


def test_binning_is_the_mean():
    x = np.random.default_rng(0).random((7, 9)).astype("f4")
    np.testing.assert_allclose(bin_pixels(x, 3), x[:6].reshape(2, 3, 3, 3).mean((1, 3)), rtol=1e-6)
    assert np.isnan(bin_pixels(np.full((4, 4), np.nan, "f4"), 2)).all()


def test_bit_rounding_keeps_its_promise():
    x = np.concatenate([np.random.default_rng(0).lognormal(0, 9, 9999), [0, -1.5, np.inf, np.nan]]).astype("f4")
    out = bit_round(x)
    assert (abs(out[:9999] / x[:9999] - 1) <= 2.0 ** -13).all()
    assert list(out[9999:-1]) == [0, -1.5, np.inf] and np.isnan(out[-1])


# The package

def test_build_open_and_read(tmp_path):
    package = Package.build(frames(), tmp_path / "p", size=128)
    again = Package.open(tmp_path / "p")
    same(package, again)
    assert len(again) == 8 and list(again.catalogue.frame) == list(range(8))
    np.testing.assert_array_equal(again.read(3, 40, 50, 16), again.read(3)[40:56, 50:66])
    assert np.isnan(again.read(3, -5, -5, 16)[:5]).all() and again.read(3, 120, 120, 16).shape == (16, 16)
    frame = again.frame(2)
    assert (str(frame.time.date()), frame.channel, frame.disk) == ("2014-01-03", "171", harmonised_disk(128))
    assert "8 frames" in repr(again) and "8 frames" in (tmp_path / "p/README.md").read_text()


def test_package_opens_in_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    package = Package.build(frames(), tmp_path / "p", size=128)
    data = xarray.open_zarr(tmp_path / "p/frames.zarr", consolidated=False)
    assert data.frames.dims == ("frame", "y", "x") and data.attrs["rsun_px"] == pytest.approx(51.2)
    np.testing.assert_array_equal(data.frames[1].values, package.read(1))


def test_a_tile_costs_a_chunk_not_a_frame(tmp_path):
    "Chunks are 64 px and one frame is one file"
    package = Package.build(frames(256, DAYS[:2]), tmp_path / "p", size=256)
    assert package.array.chunks == (1, 64, 64) and package.array.shards == (1, 256, 256)
    assert len(list((tmp_path / "p/frames.zarr/frames/c").rglob("0"))) >= 1


def test_mixed_sizes_come_out_alike(tmp_path):
    mixed = frames(128, DAYS[:2]) + frames(300, DAYS[2:4])
    package = Package.build(mixed, tmp_path / "p", size=128)
    assert package.array.shape == (4, 128, 128) and list(package.catalogue.source_size) == [128, 128, 300, 300]


def test_more_frames_are_added(tmp_path):
    Package.build(frames()[:3], tmp_path / "a", size=128)
    same(Package.build(frames(), tmp_path / "a", size=128), Package.build(frames(), tmp_path / "b", size=128))


def test_another_size_is_refused(tmp_path):
    Package.build(frames()[:2], tmp_path / "p", size=128)
    with pytest.raises(ValueError, match="holds frames of 128 px, size=64 was asked for"):
        Package.build(frames(), tmp_path / "p", size=64)
    assert len(Package.open(tmp_path / "p")) == 2


# Bad input

@pytest.fixture()
def folder(tmp_path):
    "A folder with three good files, and one of each kind of bad one"
    src = tmp_path / "src"
    src.mkdir()
    for f in frames(days=DAYS[:3]):
        f.to_map().save(src / f"{f.time:%Y%m%d_%H%M%S}_aia_171.fits")
    good = (src / "20140101_000000_aia_171.fits").read_bytes()
    (src / "a_truncated.fits").write_bytes(good[:30_000])
    (src / "b_text.fits").write_text("not the Sun\n" * 999)
    picture = Image.fromarray((stretch(np.nan_to_num(frames()[4].data), "171") * 255).astype(np.uint8))
    picture.save(src / "20140105_000000_aia_171.jpg")
    (src / "20140105_000000_aia_171.jpg").write_bytes((src / "20140105_000000_aia_171.jpg").read_bytes()[:2000])
    picture.save(src / "c_no_time_171.jpg")
    blank = frames(days=DAYS[5:6])[0]
    blank.data[:] = np.nan
    blank.to_map().save(src / "d_blank.fits")
    (src / "e_same_again.fits").write_bytes(good)
    (src / "notes.txt").write_text("left alone")
    return src


def test_bad_files_are_listed_and_stop_nobody(folder, tmp_path):
    package = Package.build(folder, tmp_path / "p", size=128)
    assert len(package) == 3
    reasons = {Path(r.source).name: r.reason for r in package.skipped.itertuples()}
    expected = {"a_truncated.fits": "truncated", "b_text.fits": "cannot be read", "20140105_000000_aia_171.jpg": "cut off", "c_no_time_171.jpg": "no time in the name",
                "d_blank.fits": "not one pixel was measured", "e_same_again.fits": "same channel and time as"}
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name].lower() and name in reasons[name]
    assert not {p.name for p in (tmp_path / "p").iterdir()} & {"frames.parquet.part", "skipped.parquet.part"}


def test_repaired_file_comes_in_later(folder, tmp_path):
    Package.build(folder, tmp_path / "p", size=128)
    frames(days=DAYS[6:7])[0].to_map().save(folder / "b_text.fits", overwrite=True)
    package = Package.build(folder, tmp_path / "p", size=128)
    assert len(package) == 4 and not package.skipped.source.str.contains("b_text").any()


def test_the_same_frame_given_twice_is_packed_once_and_stays(tmp_path):
    twice = [frames()[0], *frames()[:3]]
    for _ in range(2):
        package = Package.build(twice, tmp_path / "p", size=128)
        assert len(package) == 3 and np.isfinite(package.read(2)[64, 64]) and "same channel and time" in package.skipped.reason[0]


def test_the_same_file_given_twice_is_one_source(folder, tmp_path):
    good = folder / "20140101_000000_aia_171.fits"
    package = Package.build([good, good, good.parent / "." / good.name], tmp_path / "p", size=64)
    assert len(package) == 1 and not len(package.skipped)


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no frames in it; expected files ending in .fit"):
        Package.build(tmp_path / "empty", tmp_path / "p")


def test_nothing_but_bad_files(tmp_path):
    (tmp_path / "x.fits").write_text("no")
    with pytest.raises(ValueError, match="not one of 1 files could be packaged; the first: .*x.fits"):
        Package.build([tmp_path / "x.fits"], tmp_path / "p", size=64)


@pytest.mark.parametrize("name", ["frames.parquet", "skipped.parquet", "frames.zarr/frames/zarr.json"])
def test_package_with_a_file_missing(name, tmp_path):
    Package.build(frames()[:2], tmp_path / "p", size=64)
    os.remove(tmp_path / "p" / name)
    with pytest.raises(FileNotFoundError, match=f"{name}: missing.*search-sdo package"):
        Package.open(tmp_path / "p")


# Interruptions

def test_journal_with_a_line_cut_short(tmp_path):
    (tmp_path / "j").write_text('{"row": 0}\n{"row": 1}\n{"ro')
    entries, length = read_journal(tmp_path / "j")
    assert entries == [{"row": 0}, {"row": 1}] and length == 22


def test_frame_written_but_not_noted_is_done_again_in_place(tmp_path):
    whole = Package.build(frames(), tmp_path / "a", size=128)
    Package.build(frames(), tmp_path / "b", size=128)
    lines = (tmp_path / "b/journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b/journal.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    (tmp_path / "b/frames.parquet").unlink()                # which a build that was killed has not written yet
    same(whole, Package.build(frames(), tmp_path / "b", size=128))


BUILD = """
    import sys
    from search_sdo.packager.package import Package
    Package.build(sys.argv[1], sys.argv[2], size=128, workers=2)
"""


def test_build_killed_and_started_again(tmp_path):
    "SIGKILL at several moments; in the end nothing is lost or doubled"
    src = tmp_path / "src"
    src.mkdir()
    for f in frames(160, [f"2014-{m:02d}-{d:02d}" for m in (1, 2) for d in range(1, 25)]):
        f.to_map().save(src / f"{f.time:%Y%m%d}.fits")
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(src), str(tmp_path / "killed")]
    journal, kills = tmp_path / "killed/journal.jsonl", 0
    for wanted in (3, 11, 20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(read_journal(journal)[0]) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3 and 20 <= len(read_journal(journal)[0]) < 48
    subprocess.run(command, check=True, capture_output=True)
    same(Package.open(tmp_path / "killed"), Package.build(src, tmp_path / "whole", size=128))


@pytest.fixture()
def small_disk(tmp_path):
    "A file system of 1.5 MB, mounted for the test"
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_disk_full_keeps_what_was_written_and_goes_on(small_disk, tmp_path):
    many = frames(256, [f"2014-02-{d:02d}" for d in range(1, 25)])
    with pytest.raises(OSError, match="the [1-9][0-9]* frames so far are safe. Make room and run the same command again") as error:
        Package.build(many, small_disk / "p", size=256)
    assert error.value.errno == errno.ENOSPC and str(small_disk / "p") in str(error.value)
    shutil.copytree(small_disk / "p", tmp_path / "p")
    kept = [e for e in read_journal(tmp_path / "p/journal.jsonl")[0] if "row" in e]
    assert 0 < len(kept) < 24
    same(Package.build(many, tmp_path / "p", size=256), Package.build(many, tmp_path / "whole", size=256))


# Verify and repair

def test_a_sound_package_verifies(tmp_path):
    assert len(verify(Package.build(frames(), tmp_path / "p", size=128))) == 0


def flip_a_bit(package):
    file = shard_file(package.path / "frames.zarr", 3)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def swap_two_frames(package):
    a, b = shard_file(package.path / "frames.zarr", 3), shard_file(package.path / "frames.zarr", 4)
    bytes_a, bytes_b = a.read_bytes(), b.read_bytes()
    a.write_bytes(bytes_b), b.write_bytes(bytes_a)


@pytest.mark.parametrize("harm,frames_hit", [(flip_a_bit, [3]), (swap_two_frames, [3, 4]), (lambda p: shard_file(p.path / "frames.zarr", 3).unlink(), [3]),
                                             (lambda p: shard_file(p.path / "frames.zarr", 3).write_bytes(b""), [3])])
def test_broken_frames_are_found_and_repaired_in_place(harm, frames_hit, tmp_path):
    good = Package.build(frames(), tmp_path / "whole", size=128)
    package = Package.build(frames(), tmp_path / "p", size=128)
    harm(package)
    found = verify(package, repair=True)
    assert list(found.frame) == frames_hit and all("frames.zarr" in problem for problem in found.problem)
    assert list(verify(package).frame) == frames_hit and "missing" in verify(package).problem[0]
    again = Package.build(frames(), tmp_path / "p", size=128)
    assert len(verify(again)) == 0
    same(good, again)


def test_frames_lost_from_the_catalogue_are_counted(tmp_path):
    package = Package.build(frames(), tmp_path / "p", size=128)
    package.catalogue.iloc[:6].to_parquet(tmp_path / "p/frames.parquet")
    assert "8 frames in journal.jsonl, 6 in the catalogue" in verify(Package.open(tmp_path / "p")).problem[0]


def test_a_sun_in_the_wrong_place_is_found(tmp_path):
    three = frames(256, DAYS[:3])
    three[2].disk = Disk(three[2].disk.x + 8, three[2].disk.y, three[2].disk.radius)
    found = verify(Package.build(three, tmp_path / "p", size=256))
    assert list(found.frame) == [2] and "the limb is" in found.problem[0]


def test_a_package_of_another_version_is_not_continued(tmp_path):
    Package.build(frames()[:1], tmp_path / "p", size=128)
    about = tmp_path / "p/frames.zarr/zarr.json"
    text = json.loads(about.read_text())
    text["attributes"]["format"] = 1
    about.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="another version.*format 1.*another folder"):
        Package.build(frames(), tmp_path / "p", size=128)


# What must not be lost

def test_a_second_builder_is_told_to_wait(tmp_path):
    from search_sdo.packager.package import open_journal
    Package.build(frames()[:2], tmp_path / "p", size=128)
    with open_journal(tmp_path / "p/journal.jsonl"), pytest.raises(OSError, match="another program is packaging into this folder"):
        Package.build(frames(), tmp_path / "p", size=128)
    assert len(Package.build(frames(), tmp_path / "p", size=128)) == 8


@pytest.mark.parametrize("line", ["noise", '{"row": 1, "sou', "5"])
def test_a_journal_damaged_in_the_middle_stops_before_anything_is_lost(line, tmp_path):
    Package.build(frames()[:4], tmp_path / "p", size=128)
    file = tmp_path / "p/journal.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = line
    file.write_text("\n".join(lines) + "\n")
    before = {f: f.read_bytes() for f in (tmp_path / "p").rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match="journal.jsonl: line 2 of 4 is damaged"):
        Package.build(frames(), tmp_path / "p", size=128)
    assert all(f.read_bytes() == content for f, content in before.items())


def test_a_package_without_its_journal_can_be_read_but_not_continued(tmp_path):
    package = Package.build(frames()[:4], tmp_path / "p", size=128)
    (tmp_path / "p/journal.jsonl").unlink()
    with pytest.raises(ValueError, match="lists 0 frames, the catalogue 4"):
        Package.build(frames(), tmp_path / "p", size=128)
    assert np.isfinite(package.read(3)[64, 64]) and len(Package.open(tmp_path / "p")) == 4


def test_a_frame_that_cannot_be_repaired_is_marked(tmp_path):
    from PIL import Image
    (tmp_path / "in").mkdir()
    for i, f in enumerate(frames()[:3]):
        Image.fromarray((255 * stretch(f.data, "171")).astype("u1")).save(tmp_path / f"in/2014010{i + 1}_000000_aia_171.jpg", quality=95)
    package = Package.build(tmp_path / "in", tmp_path / "p", size=128)
    shard_file(tmp_path / "p/frames.zarr", 1).unlink()
    (tmp_path / "in/20140102_000000_aia_171.jpg").write_bytes(b"gone")
    again = Package.build(tmp_path / "in", tmp_path / "p", size=128)
    assert len(again) == 3 and "its file is lost" in again.catalogue.quality[1] and again.catalogue.score[1] == 0
    assert len(again.skipped) == 1 and (again.catalogue.quality[[0, 2]] == "").all()
    np.testing.assert_array_equal(again.read(2), package.read(2))


def test_other_corrections_need_another_folder(tmp_path):
    from search_sdo.packager.calibrate import Calibration
    Package.build(frames()[:2], tmp_path / "p", size=128)
    with pytest.raises(ValueError, match="degradation=True.*degradation=False.*another folder"):
        Package.build(frames(), tmp_path / "p", size=128, calibration=Calibration(degradation=False))


def test_errors_name_the_source(tmp_path):
    from dataclasses import replace
    counts = replace(frames()[1], unit="DN", meta=dict(exptime=0.0))
    package = Package.build([frames()[0], counts], tmp_path / "p", size=128)
    assert package.skipped.reason[0].startswith("171 2014-01-02T00:00:00: exposure time is 0.0 s")


def test_a_drawn_sun_stays_drawn(tmp_path):
    frames()[0].to_map().save(tmp_path / "20140101_000000_aia_171.fits")
    drawn = Package.build([frames()[1], tmp_path / "20140101_000000_aia_171.fits"], tmp_path / "p", size=64)
    again = Package.build([drawn.frame(0)], tmp_path / "q", size=64)
    assert list(drawn.catalogue.origin) == ["drawn", "drawn"] and list(again.catalogue.origin) == ["drawn"]


@needs_data
def test_observed_is_what_says_so(tmp_path):
    files = [DATA / "fits/AIA20110319_105400_0171.fits", DATA / "jp2/2023_01_31__03_39_23_200__SDO_HMI_HMI_continuum.jp2", DATA / "aia171/20141221_000001_aia_171.jpg"]
    assert list(Package.build(files, tmp_path / "p", size=64).catalogue.origin) == ["observed", "observed", ""]


def test_frames_in_folders_of_folders_are_found(tmp_path):
    for name in ("a/20140101_000000_aia_171", "b/c/20140102_000000_aia_171"):
        path = tmp_path / "in" / f"{name}.fits"
        path.parent.mkdir(parents=True)
        frames()[int(name.startswith("b"))].to_map().save(path)
    assert len(Package.build(tmp_path / "in", tmp_path / "p", size=64)) == 2


def test_arguments_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="size: 0 px"):
        Package.build(frames()[:1], tmp_path / "p", size=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="in the way"):
        Package.build(frames()[:1], tmp_path / "file", size=64)
    with pytest.raises(ValueError, match="keepbits: 23"):
        bit_round(np.ones(3), 23)
    Package.build(frames()[:1], tmp_path / "q", size=64)
    (tmp_path / "q/frames.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="made anew from journal.jsonl"):
        Package.open(tmp_path / "q")


# Channels, coordinates, Dask

def test_stacks_hold_the_channels_of_one_moment(tmp_path):
    from dataclasses import replace
    from datetime import timedelta
    pairs = [g for f in frames()[:4] for g in (f, replace(f, channel="193", time=f.time + timedelta(seconds=7), data=f.data * 2))]
    package = Package.build(pairs[:-1], tmp_path / "p", size=128)      # the last moment lacks a channel
    stacks = package.stacks(["193", "171"])
    assert len(stacks) == 3 and list(stacks.columns) == ["time", "193", "171"]
    assert len(package.stacks(["171", "193"], "5s")) == 0
    with pytest.raises(ValueError, match="'304': not in .*holds 171, 193"):
        package.stacks(["171", "304"])
    both = package.read_stack(stacks.loc[2, ["171", "193"]], 40, 40, 32)
    assert both.shape == (2, 32, 32)
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-3)


def test_xarray_sees_times_channels_and_places(tmp_path):
    xarray = pytest.importorskip("xarray")
    package = Package.build(frames(), tmp_path / "p", size=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(tmp_path / "p/frames.zarr")
    assert list(data.time.values.astype("M8[us]")) == list(package.catalogue.time.to_numpy("M8[us]")) and set(data.channel.values) == {"171"}
    assert data.frames.attrs["units"] == "DN/s" and data.x.attrs["units"] == "solar radii"
    east_limb = data.frames[3].sel(x=-1.0, y=0.0, method="nearest")
    assert float(east_limb) == package.read(3)[63, round(package.disk.x - package.disk.radius)]
    assert package.to_xarray().frames.shape == (8, 128, 128)
    more = Package.build([*frames(), SUN.frame("2014-02-01", size=128)], tmp_path / "p", size=128)
    assert len(more.to_xarray().time) == 9


def test_maps_know_where_they_look(tmp_path):
    maps = Package.build(frames()[:3], tmp_path / "p", size=128).to_maps([0, 2])
    assert [m.date.datetime.day for m in maps] == [1, 3]
    assert (maps[0].rsun_obs / maps[0].scale[0]).value == pytest.approx(0.4 * 128)


def test_dask_workers_write_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed")
    bad = SUN.frame("2014-01-09", size=128)
    bad.data[:] = np.nan
    sources = [*frames()[:3], bad, *frames()[3:]]
    alone = Package.build(sources, tmp_path / "alone/p", size=128, workers=1)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        together = Package.build(sources, tmp_path / "together/p", size=128, client=client)
    files = sorted(f.relative_to(alone.path) for f in alone.path.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(together.path) for f in together.path.rglob("*") if f.is_file())
    assert [f for f in files if (alone.path / f).read_bytes() != (together.path / f).read_bytes()] == []
    assert len(together.skipped) == 1 and len(together) == 8


# Real data

@needs_data
def test_smeared_frame_is_flagged_and_others_are_not(tmp_path):
    days = ["20110620", "20110722", "20110823", "20120708", "20141221"]
    package = Package.build([next((DATA / "aia171").glob(d + "*")) for d in days], tmp_path / "p", size=512)
    flagged = package.catalogue[package.catalogue.quality != ""]
    assert list(flagged.time.dt.strftime("%Y%m%d")) == ["20110823", "20120708"]
    assert "unclear limb" in flagged.quality.iloc[0] and "off-pointed" in flagged.quality.iloc[0]


@needs_data
def test_tilt_of_the_pole_agrees_with_the_table(tmp_path):
    truth = pd.read_csv(DATA / "aia171/frames.csv").iloc[[0, 30, 60, 90]]
    package = Package.build([DATA / "aia171" / f for f in truth.frame], tmp_path / "p", size=128)
    np.testing.assert_allclose(package.catalogue.b0, truth.b0_deg, atol=0.02)


@needs_data
def test_real_cutouts_are_packaged(tmp_path):
    package = Package.build(sorted((DATA / "fits").glob("*193.image.fits"))[:3], tmp_path / "p", size=1024)
    assert len(package) == 3 and set(package.catalogue.unit) == {"DN/s"} and np.isnan(package.read(0)).mean() > 0.9
    assert json.loads((tmp_path / "p/frames.zarr/zarr.json").read_text())["attributes"]["relative_error"] == 2.0 ** -13
    assert read_frame(package.catalogue.source[0]).disk.radius == package.catalogue.source_radius[0]
