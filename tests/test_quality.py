"""Which frames are flagged, and above all which are not."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from real_data import DATA, needs_data
from search_sdo.packager.calibrate import harmonise
from search_sdo.packager.frame import Disk
from search_sdo.packager.package import Package
from search_sdo.packager.quality import contact_sheet, find_faults, measure, outliers, quality_bits
from search_sdo.packager.synthetic import SmallSun

SUN = SmallSun(seed=2)
FRAMES = [SUN.frame(str(t), size=256) for t in pd.date_range("2014-03-01", periods=12, freq="2D")]


def spoiled(tmp_path, **bad):
    "Catalogue of a package of twelve frames of which those numbered `frame_N` are replaced"
    frames = [bad.get(f"frame_{i}", f) for i, f in enumerate(FRAMES)]
    return Package.build(frames, tmp_path / "p", size=256)


def test_good_frames_are_good(tmp_path):
    c = spoiled(tmp_path).catalogue
    assert (c.quality == "").all() and (c.remarks == "").all() and (c.score == 1).all()


@pytest.mark.parametrize("what,reason", [
    (lambda f: replace(f, data=f.data * 0.6), "0.[56]. times the brightness"),
    (lambda f: replace(f, data=f.data * 1.7), "1.[67]. times the brightness"),
    (lambda f: replace(f, data=np.mean([np.roll(f.data, (k, -k), (0, 1)) for k in range(9)], 0)), "times the sharpness"),
    (lambda f: replace(f, data=np.where(np.hypot(*(np.indices(f.shape) - 80)) < 50, 0, f.data)), "of the disk is black"),
    (lambda f: replace(f, data=np.where((np.indices(f.shape)[0] // 64 == 1), np.nan, f.data).astype("f4")), "of the disk was not measured"),
    (lambda f: replace(f, disk=Disk(160, 127.5, 102.4)), "off-pointed by 0.3"),
    (lambda f: replace(f, meta=dict(quality=1 << 13)), "JSOC: eclipse"),
    (lambda f: replace(f, meta=dict(limb_agreement=0.4)), "unclear limb"),
])
def test_each_fault_is_found_in_its_frame_only(what, reason, tmp_path):
    import re
    c = spoiled(tmp_path, frame_5=what(FRAMES[5])).catalogue
    assert list(c.index[c.quality != ""]) == [5] and re.search(reason, c.quality[5]) and c.score[5] < 0.5


def test_the_same_picture_at_another_time_is_a_duplicate(tmp_path):
    c = spoiled(tmp_path, frame_7=replace(FRAMES[7], data=FRAMES[6].data)).catalogue
    assert list(c.index[c.quality != ""]) == [7] and "same picture" in c.quality[7] and c.score[7] == 0


def test_a_short_exposure_is_a_remark(tmp_path):
    frames = [replace(f, unit="DN", data=f.data * (0.1 if i == 4 else 2.0), meta=dict(exptime=0.1 if i == 4 else 2.0)) for i, f in enumerate(FRAMES)]
    c = Package.build(frames, tmp_path / "p", size=256).catalogue
    assert (c.quality == "").all() and "short exposure (0.1 s)" in c.remarks[4] and c.score[4] < 1


def test_a_lost_block_is_a_remark(tmp_path):
    holed = replace(FRAMES[5], data=FRAMES[5].data.copy())
    holed.data[100:132, 100:132] = np.nan
    c = spoiled(tmp_path, frame_5=holed).catalogue
    assert (c.quality == "").all() and "4% of the disk was not measured" in c.remarks[5] and 0.5 <= c.score[5] < 1


def test_few_frames_have_no_neighbours_to_differ_from(tmp_path):
    c = Package.build([FRAMES[0], replace(FRAMES[1], data=FRAMES[1].data * 3)], tmp_path / "p", size=128).catalogue
    assert (c.quality == "").all()


def test_frames_added_later_are_compared_with_all(tmp_path):
    Package.build([replace(FRAMES[0], data=FRAMES[0].data * 0.5)], tmp_path / "p", size=128)
    c = Package.build([replace(FRAMES[0], data=FRAMES[0].data * 0.5), *FRAMES[1:]], tmp_path / "p", size=128).catalogue
    assert "brightness" in c.quality[0] and (c.quality[1:] == "").all()


def test_channels_are_compared_with_themselves(tmp_path):
    dim = [replace(f, channel="335", data=f.data * 0.1) for f in FRAMES]
    assert (Package.build(FRAMES + dim, tmp_path / "p", size=128).catalogue.quality == "").all()


@pytest.mark.parametrize("value,told", [(0, []), (1 << 30, []), (1 << 8, []), (1 << 16 | 1 << 13, ["JSOC: eclipse", "JSOC: dark image"]), (-2147483648, ["JSOC: no image"]), (None, []), ("", []), ("abc", [])])
def test_quality_keyword(value, told):
    assert quality_bits(value) == told


@pytest.mark.parametrize("value,bad", [(0, False), (0x400, False), (0x8000, False), (1 << 16, True), (-2147483648, True)])
def test_quality_keyword_of_hmi(value, bad):
    assert bool(quality_bits(value, "HMI")) == bad


def test_contact_sheet_survives_a_frame_that_cannot_be_read(tmp_path):
    import matplotlib.pyplot as plt
    from search_sdo.packager.package import shard_file
    package = spoiled(tmp_path)
    shard_file(tmp_path / "p/frames.zarr", 0).write_bytes(b"no frame")
    fig = contact_sheet(package, 3)
    assert [t.get_text() for t in fig.axes[0].texts] == ["cannot be read"]
    plt.close(fig)


def test_a_frame_without_a_measured_pixel_on_the_disk():
    even = harmonise(FRAMES[0], 64)
    even.data[10:54, 10:54] = np.nan
    assert measure(even)["missing"] > 0.9 and "not measured" in find_faults(FRAMES[0], even, measure(even))[0][0]


def test_outliers_follow_a_slow_trend_and_a_lively_channel():
    slow = pd.Series(100 * 0.97 ** np.arange(40))
    assert not outliers(slow, 1.25)[1].any()
    lively = pd.Series(100 * np.exp(np.random.default_rng(0).normal(0, 0.3, 200)))
    assert outliers(lively, 1.25)[1].mean() < 0.01


def test_contact_sheet_shows_the_worst_first(tmp_path):
    import matplotlib.pyplot as plt
    package = spoiled(tmp_path, frame_5=replace(FRAMES[5], data=FRAMES[5].data * 0.5))
    fig = contact_sheet(package, 7)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert len(titles) == 7 and "brightness" in titles[0] and "nothing wrong" in titles[1]
    plt.close(fig)


# Real data

@needs_data
def test_bad_frames_of_2010_to_2023_are_found_without_a_false_alarm(tmp_path):
    files = sorted((DATA / "aia171").glob("*.jpg"))
    c = Package.build(files, tmp_path / "p", size=256).catalogue
    bad = set(c.time[c.quality != ""].dt.strftime("%Y%m%d"))
    there = {f.name[:8] for f in files} & {"20110823", "20110924", "20120708"}
    assert there <= bad and len(bad - there) <= 2


@needs_data
def test_burned_in_dates_are_seen(tmp_path):
    with_text = sorted((DATA / "deepsdo/images").glob("*.jpg"))[::100]
    without = sorted((DATA / "aia171").glob("*.jpg"))[::20]
    c = Package.build(with_text + without, tmp_path / "p", size=512).catalogue
    assert (c.remarks.str.contains("text") == c.source.str.contains("deepsdo")).all()
