"""The cards of a package: every number is counted, nothing is claimed that the data do not say, machines can read them."""
import json
import re

import mlcroissant
import numpy as np
import pandas as pd
import pytest
import zarr

from real_data import DATA, needs_data
from search_sdo.packager.cards import COLUMNS, CREDIT, ai_ready, as_markdown, croissant, data_card, in_words, kinds_of, origin, places_of, split_table, time_gaps
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A package of the small Sun on disk, 40 frames over 58 days"
    frames = SmallSun(seed=3).frames(n=40, start="2014-01-01", cadence="36h", size=64)
    return Package.build(frames, tmp_path_factory.mktemp("cards") / "small", size=64)


def catalogue(n=40, channel="171", start="2014-01-01", every="36h", **columns):
    "A catalogue as `Package.build` writes it, of observed level-1 frames"
    times = pd.date_range(start, periods=n, freq=every)
    table = dict(frame=range(n), origin="observed", source=[f"/home/jane/data/aia/{t:%Y%m%d_%H%M%S}_aia_{channel}.fits" for t in times], time=times, channel=channel, unit="DN/s", quality="", remarks="",
                 score=1.0, b0=np.linspace(-7, 7, n), exptime=2.0, source_size=4096, source_x=2047.5, source_y=2047.5, source_radius=np.linspace(1580, 1600, n), source_roll=0.0,
                 degradation=np.linspace(0.9, 0.8, n), calibration="pointing of the header; degradation V10", brightness=np.linspace(150, 250, n), sharpness=0.1, bytes=1000, sha256="ab" * 32)
    return pd.DataFrame({**table, **columns})


def package_of(table, path, size=64):
    "A package on disk with this catalogue, without a build; its frames are never read"
    path.mkdir(parents=True, exist_ok=True)
    table = table.assign(frame=np.arange(len(table))).reset_index(drop=True)
    group = zarr.open_group(path / "frames.zarr", mode="w", attributes=dict(relative_error=2.0 ** -13))
    array = group.create_array("frames", shape=(len(table), size, size), chunks=(1, size, size), dtype="f4")
    table.to_parquet(path / "frames.parquet")
    return Package(path, table, pd.DataFrame(dict(source=[], reason=[]), dtype=str), array)


def answers(package):
    return ai_ready(package).set_index("question").answer


def loaded(package, folder):
    "The package's croissant.json as mlcroissant reads it, and its errors"
    path = folder / "croissant.json"
    path.write_text(json.dumps(croissant(package)))
    return mlcroissant.Dataset(jsonld=path)


# Small things

def test_words_for_spans():
    spans = ["0s", "12s", "119s", "2min", "119min", "2h", "48h", "3D", "729D", "740D"]
    assert [in_words(s) for s in spans] == ["0 s", "12 s", "119 s", "2 min", "119 min", "2 h", "48 h", "3 days", "729 days", "2.0 years"]
    assert in_words(pd.NaT) == "unknown"


def test_tables_survive_bars_and_line_ends():
    lines = as_markdown(pd.DataFrame(dict(a=["x|y", "two\nlines"]))).splitlines()
    assert lines == ["| a |", "| --- |", "| x\\|y |", "| two lines |"]


def test_brightness_of_mixed_units_has_no_median(tmp_path):
    c = catalogue()
    c.loc[0, "unit"] = "display"
    assert "mixed units" in data_card(package_of(c, tmp_path)) and "mixed units" not in data_card(package_of(catalogue(), tmp_path))


def test_gaps_are_found_per_channel():
    c = pd.concat([catalogue(20, "171", every="12min").drop(index=[5, 6, 7, 12]), catalogue(20, "193", every="24min").drop(index=3), catalogue(1, "94")])
    gaps = time_gaps(c)
    assert list(gaps.channel) == ["171", "193", "171"] and list(gaps.missing) == [3, 1, 1]
    assert gaps.start[0] == pd.Timestamp("2014-01-01 00:48") and gaps.end[0] == pd.Timestamp("2014-01-01 01:36")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_gaps_in_few_frames(n):
    assert len(time_gaps(catalogue(n))) == 0


def test_two_frames_of_one_moment_are_no_cadence():
    c = pd.concat([catalogue(10), catalogue(10)])
    assert len(time_gaps(c)) == 0


def test_reasons_are_counted_by_kind():
    reasons = ["off-pointed by 0.25 solar radii; unclear limb (42% of rays agree)", "off-pointed by 1.31 solar radii", "", "0.43 times the brightness of its neighbours in time",
               "/data/a.jpg: cut off at byte 1234; fetch it again", "/data/b c.jpg: cut off at byte 99; fetch it again"]
    assert kinds_of(reasons).to_dict() == {"off-pointed by … solar radii": 2, "unclear limb": 1, "… times the brightness of its neighbours in time": 1, "cut off at byte …": 2, "fetch it again": 2}


def test_places_tell_no_home_directories():
    places = places_of([f"/home/jane/secret/aia171/{y}/a.FITS" for y in (2011, 2012)] + ["s3://bucket/x"] + ["https://jsoc1.stanford.edu/data/x.fits", "171 2014-01-01T00:00:00"])
    assert places == {"folder aia171, .fits": 2, "bucket": 1, "jsoc1.stanford.edu": 1, "handed over in memory": 1}


def test_places_on_one_disk_and_another():
    assert places_of(["/a/x.jpg", "/b/y.jpg"]) == {"folder /, .jpg": 2}
    assert places_of(["C:\\jane\\aia\\x.jpg", "2011/171A[3]"][:1]) == {"folder aia, .jpg": 1}
    assert places_of(["2011/171A[3]", "2012/171A[3]", "/x.jpg"][:2]) == {"folder /, rows of arrays": 2}
    assert places_of(["2011/171A[3]", "/x.jpg"]) == {"folder /, rows of arrays": 1, "folder /, .jpg": 1}
    assert places_of(["/x.jpg"]) == {"folder /, .jpg": 1} and places_of(["x.jpg"]) == {"handed over in memory": 1}


# Whose data

def test_only_observations_carry_the_observers_names(tmp_path):
    seen, drawn, unknown = (package_of(catalogue(origin=s), tmp_path / str(i)) for i, s in enumerate(["observed", "drawn", ""]))
    assert [origin(p.catalogue) for p in (seen, drawn, unknown)] == ["observed", "drawn", "unknown"]
    for p in (drawn, unknown):
        words = (data_card(p) + json.dumps(croissant(p))).replace("NASA's Frontier", "").replace(CREDIT, "")
        assert "NASA" not in words and "cc0" not in words and (CREDIT in data_card(p)) == (p is unknown)
    assert "If these are SDO's, please credit" in data_card(unknown)
    assert CREDIT in data_card(seen) and "license: cc0-1.0" in data_card(seen) and croissant(seen)["creator"]["name"].startswith("NASA/SDO")
    assert "**Synthetic.**" in data_card(drawn) and "synthetic" in data_card(drawn).split("---")[1]
    assert "license" not in croissant(unknown)


def test_observed_and_drawn_together_claim_nothing(tmp_path):
    c = catalogue()
    c.loc[0, "origin"] = "drawn"
    card = data_card(package_of(c, tmp_path))
    assert "license: unknown" in card and "39 × observed" in card and "1 × drawn" in card


def test_papers_follow_the_channels(tmp_path):
    aia, hmi = package_of(catalogue(), tmp_path / "a"), package_of(catalogue(channel="hmi_m", unit="Gauss"), tmp_path / "h")
    assert "Lemen" in data_card(aia) and "Scherrer" not in data_card(aia) and "Galvez" not in data_card(aia)
    assert "Scherrer" in croissant(hmi)["citeAs"] and "Lemen" not in croissant(hmi)["citeAs"]


@pytest.mark.parametrize("source", ["/data/SmallSun-vs-real/a.fits", "/data/a.jpg", "SmallSun(seed=0) 171"])
def test_the_name_of_a_file_says_nothing_of_its_origin(source):
    assert origin(catalogue(source=source)) == "observed" and origin(catalogue(source=source).drop(columns="origin")) == "unknown"


def test_an_empty_package_has_no_card(tmp_path):
    p = package_of(catalogue(1), tmp_path)
    with pytest.raises(ValueError, match="no frames"):
        data_card(Package(p.path, p.catalogue[:0], p.skipped, p.array))


# Nothing is written by hand

def numbers(text):
    "All numbers of a card, but for those of papers, links and versions, which no data change"
    text = re.sub(r"https?://\S+|doi:\S+|^- \w+, .*\(\d{4}\):.*$|\*Made by.*|CC0 1\.0|0\.\.255|Frontier.*", "", text, flags=re.M)
    return re.findall(r"(?<![\w.])\d[\d.,]*\d|(?<![\w.])\d", text)


CHANGES = {
    "frames": lambda c: c.head(30),
    "time": lambda c: c.assign(time=c.time + pd.Timedelta("400D")),
    "cadence": lambda c: c.assign(time=pd.date_range("2014-01-01", periods=len(c), freq="10h")),
    "gap": lambda c: c.drop(index=[7, 8, 9]),
    "channel": lambda c: c.assign(channel="304"),
    "unit": lambda c: c.assign(unit="display"),
    "flagged": lambda c: c.assign(quality=["off-pointed by 0.2 solar radii"] * 3 + [""] * (len(c) - 3)),
    "remarks": lambda c: c.assign(remarks=["text burned in beside the disk"] * 5 + [""] * (len(c) - 5)),
    "score": lambda c: c.assign(score=np.linspace(0.3, 1, len(c))),
    "b0": lambda c: c.assign(b0=c.b0 / 2),
    "exposure": lambda c: c.assign(exptime=2.9),
    "brightness": lambda c: c.assign(brightness=c.brightness * 3),
    "size of the source": lambda c: c.assign(source_size=1024),
    "radius of the source": lambda c: c.assign(source_radius=400.0),
    "degradation": lambda c: c.assign(degradation=0.5),
    "calibration": lambda c: c.assign(calibration="pointing table; degradation V11"),
    "source": lambda c: c.assign(source="/data/other/a.jp2"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_the_data_and_the_card_changes(what, tmp_path):
    "Each column of the catalogue speaks through the card"
    before, after = package_of(catalogue(), tmp_path / "p"), None
    card = data_card(before)
    after = package_of(CHANGES[what](catalogue()), tmp_path / "p")
    assert data_card(after) != card
    assert data_card(after) == data_card(Package(after.path, after.catalogue, after.skipped, after.array))  # and only the data do


def test_every_number_comes_from_the_data(tmp_path):
    "Two packages that share nothing have no long number in common, but for the constants of nature"
    a = package_of(catalogue(37, start="2012-03-04", every="31h"), tmp_path / "a", size=64)
    b = catalogue(53, "193", start="2016-07-08", every="47h", exptime=1.7, score=0.93, bytes=777, calibration="pointing table")
    b = b.assign(b0=np.linspace(-3.3, 4.4, 53), source_radius=np.linspace(770.7, 777.7, 53), source_size=2048, brightness=np.linspace(1101, 3303, 53), degradation=np.linspace(0.66, 0.55, 53))
    b = package_of(b, tmp_path / "b", size=96)
    long = lambda p: {n for n in numbers(data_card(p)) if len(n) > 3}
    assert long(a) & long(b) <= {"27.3", "0.00012", "8192"}  # a rotation of the Sun; the rounding of both arrays
    assert len(long(a)) > 10


def test_the_rounding_is_read_from_the_array(tmp_path):
    p = package_of(catalogue(), tmp_path)
    assert "1 part in 8192" in data_card(p)
    zarr.open_group(tmp_path / "frames.zarr", mode="a").attrs["relative_error"] = 0.001
    assert "1 part in 1000" in data_card(p)
    del zarr.open_group(tmp_path / "frames.zarr", mode="a").attrs["relative_error"]
    assert "Rounding: as in the source" in data_card(p)


def test_what_was_left_out_is_counted(tmp_path):
    p = package_of(catalogue(), tmp_path)
    p.skipped = pd.DataFrame([(f"/d/{i}.fits", f"/d/{i}.fits: cut off at byte {i}. Fetch it again") for i in range(7)] + [("/d/x.jpg", "/d/x.jpg: no time in the name")], columns=["source", "reason"])
    card = data_card(p)
    assert "**Left out: 8**" in card and "7 × cut off at byte …. Fetch it again" in card and "1 × no time in the name" in card


# Older and foreign packages

@pytest.mark.parametrize("missing", [["score", "remarks", "degradation", "calibration", "brightness", "sharpness", "bytes", "sha256"], ["calibration"], ["degradation"], ["score"]])
def test_columns_may_be_missing(missing, tmp_path):
    p = package_of(catalogue().drop(columns=missing), tmp_path)
    card = data_card(p)
    assert "nan" not in card.lower().replace("nan where", "").replace("stays nan", "") and "None" not in card
    assert not loaded(p, tmp_path).metadata.ctx.issues.errors


def test_columns_without_a_value(tmp_path):
    p = package_of(catalogue(exptime=np.nan, degradation=np.nan, brightness=np.nan, score=np.nan, calibration=""), tmp_path)
    card = data_card(p)
    assert "40 × not recorded" in card and "nan" not in card.lower().replace("nan where", "").replace("stays nan", "")


@pytest.mark.parametrize("n", [1, 2])
def test_a_package_of_one_or_two_frames(n, tmp_path):
    p = package_of(catalogue(n), tmp_path)
    assert "too short for two parts" in data_card(p)
    assert not loaded(p, tmp_path).metadata.ctx.issues.errors


def test_all_frames_flagged(tmp_path):
    assert "**Flagged: 40 of 40** (100.0%)" in data_card(package_of(catalogue(quality="blank"), tmp_path))


def test_a_package_that_is_read_in_place(tmp_path):
    from test_sdoml import open_sdoml, write_v2
    p = open_sdoml(write_v2(tmp_path / "sdomlv2.zarr"))
    card = data_card(p)
    assert "open_sdoml('sdomlv2.zarr')" in card and "Galvez" in card and "divided by exposure and degradation by its makers" in card
    assert answers(p)["Moved to one place?"] == "partly" and answers(p)["Calibrated?"] == "yes"
    with pytest.raises(FileNotFoundError, match="frames.parquet: missing.*Package.build"):
        croissant(p)


# AI-ready

def test_four_meanings_in_order(built):
    assert list(ai_ready(built).meaning.unique()) == ["Harmonised", "Global and labelled", "Informed by physics", "FAIR"]
    assert set(ai_ready(built).answer) <= {"yes", "partly", "no"}


@pytest.mark.parametrize("change, expected", [({}, "yes"), (dict(degradation=np.nan, calibration="pointing of the header; degradation not corrected"), "partly"), (dict(unit="display", degradation=np.nan, calibration=""), "no"),
                                              (dict(channel="hmi_m", unit="Gauss", degradation=np.nan), "yes"), (dict(degradation=np.nan, calibration="degradation corrected before (1)"), "yes")])
def test_calibrated(change, expected, tmp_path):
    assert answers(package_of(catalogue(**change), tmp_path))["Calibrated?"] == expected


def test_fused(tmp_path):
    both = pd.concat([catalogue(20, "171"), catalogue(20, "193", start="2014-01-01 00:05")])
    half = pd.concat([catalogue(20, "171"), catalogue(20, "193").assign(time=lambda t: t.time + pd.Timedelta("15D"))])
    apart = pd.concat([catalogue(20, "171"), catalogue(20, "193", start="2014-01-01 00:07")])
    assert [answers(package_of(c, tmp_path / str(i)))["Fused, in time and across channels?"] for i, c in enumerate([both, half, apart, catalogue()])] == ["yes", "partly", "no", "no"]


def test_global(tmp_path):
    ask = lambda every: answers(package_of(catalogue(every=every), tmp_path))["Long enough to be global?"]
    assert [ask(e) for e in ("12h", "20D", "110D")] == ["no", "partly", "yes"]


def test_labelled(tmp_path):
    p = package_of(catalogue(), tmp_path)
    assert answers(p)["Labelled?"] == "no"
    p.catalogue.to_parquet(tmp_path / "labels.parquet")
    assert answers(p)["Labelled?"] == "yes" and "labels.parquet" in data_card(p)


def test_reusable(tmp_path):
    ask = lambda **change: answers(package_of(catalogue(**change), tmp_path))["Reusable?"]
    assert [ask(), ask(calibration=""), ask(origin="", calibration="")] == ["yes", "partly", "no"]


# Splits

def test_splits_leave_out_flagged_frames_and_a_rotation():
    c = catalogue(200)
    c.loc[:9, "quality"] = "blank"
    table = split_table(c).set_index("part")
    assert list(table.index) == ["train", "gap", "val"] and table.frames.sum() == 190
    assert table["first"]["val"] - table["last"]["train"] > pd.Timedelta("27.27D")


# For machines

def test_mlcroissant_reads_the_card_and_the_table(built, tmp_path):
    dataset = mlcroissant.Dataset(jsonld=built.path / "croissant.json") if (built.path / "croissant.json").exists() else loaded(built, built.path)
    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records("frames"))
    assert len(records) == len(built)
    for record, row in zip(records, built.catalogue.itertuples()):
        assert record["frames/frame"] == row.frame and record["frames/time"] == row.time and record["frames/channel"] == row.channel.encode() and record["frames/b0"] == row.b0


def test_mlcroissant_finds_a_changed_table(tmp_path):
    p = package_of(catalogue(), tmp_path)
    text = json.dumps(croissant(p))
    p.catalogue.head(3).to_parquet(tmp_path / "frames.parquet")
    assert json.loads(text)["distribution"][0]["sha256"] != croissant(p)["distribution"][0]["sha256"]
    assert json.loads(text)["version"] != croissant(p)["version"]


def test_the_machines_card_is_plain_json_and_says_what_the_table_holds(tmp_path):
    p = package_of(catalogue(), tmp_path)
    card = json.loads(json.dumps(croissant(p), allow_nan=False))
    fields = {f["name"].removeprefix("frames/"): f for f in card["recordSet"][0]["field"]}
    assert list(fields) == list(p.catalogue.columns) and set(fields) <= set(COLUMNS)
    assert [fields[k]["dataType"] for k in ("frame", "time", "channel", "b0")] == ["sc:Integer", "sc:DateTime", "sc:Text", "sc:Float"]
    assert card["temporalCoverage"] == "2014-01-01T00:00:00/2014-02-28T12:00:00" and card["license"].startswith("https://creativecommons.org/publicdomain/zero")


def test_the_head_is_yaml(built):
    yaml = pytest.importorskip("yaml")
    head = yaml.safe_load(data_card(built).split("---\n")[1])
    assert head["size_categories"] == ["n<1K"] and head["configs"] == [dict(config_name="frames", data_files="frames.parquet")] and "40 frames of 64 px" in head["pretty_name"]


@needs_data
def test_card_of_real_frames(tmp_path):
    p = Package.build(sorted((DATA / "aia171").glob("2011*.jpg")), tmp_path / "p", size=64)
    card = data_card(p)
    assert origin(p.catalogue) == "unknown" and "cc0" not in card and CREDIT in card and "folder aia171, .jpg" in card and str(DATA) not in card
    assert f"{len(p)} full-disk images, channels: 1, 2011-" in card and "| 171 |" in card and "off-pointed" in card
    assert not loaded(p, p.path).metadata.ctx.issues.errors
