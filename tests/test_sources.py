"""Sources: what they find, the chain that goes on when one is down, and the audit of gaps."""
import shutil
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from fault_server import FaultServer, chance
from real_data import DATA, needs_data
from search_sdo.packager import download
from search_sdo.packager.channels import CHANNELS
from search_sdo.packager.frame import channel_from_name, time_from_name
from search_sdo.packager.sources import (COLUMNS, LocalFiles, Source, Synoptic, audit, channel_names, date, file_name, find_gaps, first_of, get_source,
                                         make_table, match_channels, match_times, pair_off, show_gaps, span, steps, synoptic_url, usual_step)
from search_sdo.packager.synthetic import SmallSun

T = pd.Timestamp


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "back_off", lambda n: 0.02 * n)


class Listed(Source):
    "A source that has what it was given, and counts what it is asked"
    def __init__(self, name, table, url="http://127.0.0.1:9", channels=tuple(CHANNELS)):
        self.name, self.channels, self.asked = name, channels, []
        self.table = table.assign(url=[f"{url}/{name}/{n}" for n in table.name])

    def find(self, start, end, cadence="1d", channels=("171",)):
        self.asked.append((start, end, cadence, tuple(channels)))
        from search_sdo.packager.sources import thin
        return thin(self.table, steps(start, end, cadence), cadence, self.held(channels))


class Down(Listed):
    def find(self, *wish, **more):
        raise ConnectionError("nobody at home")


def frames(times, channel="171", suffix=".fits"):
    return make_table([(t, channel, file_name(t, channel, suffix), "", 1e3) for t in pd.DatetimeIndex(times)])


# when and where

def test_steps_start_is_in_and_end_is_out():
    assert list(steps("2012-02-28", "2012-03-01")) == [T("2012-02-28"), T("2012-02-29")]
    assert len(steps("2012-01-01", "2012-01-01T00:01", "12s")) == 5
    assert steps("2012-01-01T01:00+01:00", "2012-01-02")[0] == T("2012-01-01")


@pytest.mark.parametrize("wish, says", [
    (("yesterday-ish", "2012"), "start='yesterday-ish': not a date"), (("2012", "2012-02-30"), "end='2012-02-30': not a date"), ((None, "2012"), "start=None: not a date"),
    (("2012-01-02", "2012-01-01"), "end=2012-01-01 00:00:00: not after start"), (("2012", "2012"), "not after start"),
    *((("2012", "2013", c), f"cadence={c!r}: not a span of time") for c in ("daily", "5", 5, "", "0s", "-1d", "1y", "10ms", None, "1e99d"))])
def test_nonsense_is_refused_in_words(wish, says):
    with pytest.raises(ValueError) as error:
        steps(*wish)
    assert says in str(error.value)


@pytest.mark.parametrize("value", [2012, 20120101, 1.5e9, True, np.int64(2012), "02/01/2012", "31/01/2012", "1.2.2012", "Jan 2012", "now", "2012-13", "2012-1-1", "12-01-31",
                                   "2012-01-31T25:00", "1325376000", "", "NaT", pd.NaT, np.datetime64("NaT"), ["2012"]])
def test_what_could_be_misread_is_no_date(value):
    with pytest.raises(ValueError, match="start=.*: not a date; expected one as in 2012-01-31"):
        date("start", value)


@pytest.mark.parametrize("value", ["2012", "2012-01", "2012-01-01", "2012-01-01T00", "2012-01-01 00:00", "20120101T000000", " 2012-01-01T00:00:00.000Z", "2012-01-01T01:00+01:00",
                                   datetime(2012, 1, 1), datetime(2012, 1, 1).date(), np.datetime64("2012-01-01"), T("2012-01-01"), T("2012-01-01", tz="UTC")])
def test_dates_in_iso_form_and_moments(value):
    assert date("start", value) == T("2012-01-01")


@pytest.mark.parametrize("cadence", [pd.Timedelta(0), pd.Timedelta(-1, "D"), pd.NaT, pd.Timedelta(1, "ms"), timedelta(0), np.timedelta64(0, "s")])
def test_a_cadence_that_leads_nowhere_is_refused(cadence):
    with pytest.raises(ValueError, match="cadence=.*: not a span of time of 1 s or more"):
        steps("2012", "2013", cadence)
    with pytest.raises(ValueError, match="not a span of time of 0 s or more"):
        match_times([T("2012")], [T("2012")], pd.Timedelta(-1, "D"))
    assert len(steps("2012-01-01", "2012-01-02", timedelta(hours=6))) == len(steps("2012-01-01", "2012-01-02", np.timedelta64(6, "h"))) == 4


def test_a_channel_is_named_in_one_way_everywhere():
    assert all(channel_names(c) == ["171"] for c in (171, "171", "aia_171", np.int64(171), [171], ("AIA 171",), np.array([171])))
    table = frames(pd.to_datetime(["2012-01-01", "2012-01-03"]))
    for channels in (171, "171", "aia_171", [171], ["171"]):
        assert len(Synoptic().find("2012-01-01", "2012-01-03", channels=channels)) == 2
        assert find_gaps(table, "1d", channels=channels).missing.tolist() == audit(table, "1d", channels=channels).missing.tolist() == [1]


def test_spans():
    assert [span("x", s).total_seconds() for s in ("12s", "2min", "1.5h", " 3 d ")] == [12, 120, 5400, 259200]


@pytest.mark.parametrize("channel", CHANNELS)
def test_names_can_be_read_back(channel):
    name = file_name(T("2013-12-31T23:59:58"), channel, ".jp2")
    assert (time_from_name(name), channel_from_name(name)) == (T("2013-12-31T23:59:58"), channel)


def test_synoptic_urls_are_those_of_sunpy():
    "The pattern that sunpy has for the same archive reads our addresses"
    AIASynopsisClient = pytest.importorskip("sunpy.net.dataretriever.sources.aia_synopsis").AIASynopsisClient
    from sunpy.extern.parse import parse
    for time, channel in ((T("2012-01-01"), "171"), (T("2016-02-29 23:58"), "94"), (T("2020-10-09 08:06"), "1600")):
        found = parse(AIASynopsisClient.pattern.format(), synoptic_url(time, channel))
        assert found and T(*(found[k] for k in ("year", "month", "day", "hour", "minute"))) == time and found["Wavelength"] == int(channel)


def test_synoptic_finds_by_arithmetic():
    table = Synoptic().find("2012-01-01T00:00:50", "2012-01-01T01:00", "30min", ["aia_171", 4500])
    assert list(table) == COLUMNS
    assert table[table.channel == "171"].time.tolist() == [T("2012-01-01"), T("2012-01-01 00:30")]
    assert table[table.channel == "4500"].time.dt.minute.eq(0).all() and table.name.is_unique
    assert len(Synoptic().find("2012-01-01", "2012-01-01T01:00", "12s")) == 31  # no file twice
    assert len(Synoptic().find("2010-05-01", "2010-05-15")) == 2, "the archive begins on 13 May 2010"


def test_synoptic_says_which_channels_it_has():
    with pytest.raises(ValueError, match="channel 'hmi_m': not in synoptic, which has 94, 131"):
        Synoptic().find("2012-01-01", "2012-01-02", channels=["hmi_m"])
    with pytest.raises(ValueError, match="channel '172' is not known"):
        Synoptic().find("2012-01-01", "2012-01-02", channels=["172"])


def test_synoptic_over_its_protocol(tmp_path):
    with FaultServer(chance(0.3, kinds=[500, "cut", "html"])) as server:
        source = Synoptic(server.url)
        table = source.find("2012-01-01", "2012-01-11", channels=["171", "193"])
        report = source.fetch(table, tmp_path, progress=False)
    assert report.missing.empty and len(report.done) == 20
    assert sorted(p.name for p in tmp_path.glob("*.fits")) == sorted(table.name)


@pytest.mark.parametrize("base", ["localhost", "localhost:8000", "jsoc1.stanford.edu/data", "/data/synoptic", "ftp://sun"])
def test_a_base_that_is_no_address_is_refused(base):
    with pytest.raises(ValueError, match=f"base='{base}': not an address; expected one as in http://localhost:8000"):
        Synoptic(base)


def test_an_archive_that_has_moved_names_the_pattern(tmp_path, caplog):
    with FaultServer(chance(0, lost=1)) as server:
        source = Synoptic(server.url)
        report = source.fetch(source.find("2012-01-01", "2012-01-03"), tmp_path, progress=False)
    assert len(report.missing) == 2
    assert "synoptic: not one of 2 files came" in caplog.text and "AIA{time:%Y%m%d_%H%M}_{wavelength:04d}.fits" in caplog.text and "404 Not Found" in caplog.text


# nearest in time

def test_match_times_agrees_with_trying_all():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 30):
        have, wanted = (T("2012-01-01") + pd.to_timedelta(rng.integers(0, 10_000, k), unit="s") for k in (n, 40))
        got = match_times(have, wanted, "100s")
        for w, g in zip(wanted, got):
            away = np.abs((have - w).total_seconds().to_numpy())
            if n == 0 or away.min() > 100:
                assert g == -1
            else:
                assert away[g] == away.min()


def test_match_times_takes_columns_of_any_resolution():
    have = pd.Series(pd.to_datetime(["2012-01-02", "2012-01-01"])).astype("datetime64[s]")
    assert match_times(have, [T("2012-01-01 00:00:30")], "1min").tolist() == [1]
    assert match_times(have, [T("2012-01-01 00:00:30")], "29s").tolist() == [-1]


def test_no_partner_serves_twice_and_the_nearest_gets_it():
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 60):
        have, wanted = (T("2012-01-01") + pd.to_timedelta(rng.choice(10_000, k, replace=False), unit="s") for k in (n, 40))
        at, want = pair_off(have, wanted, "300s"), match_times(have, wanted, "300s")
        assert set(at[at >= 0]) == set(want[want >= 0]) and len(set(at[at >= 0])) == (at >= 0).sum()
        for row in set(at[at >= 0]):
            rivals = np.flatnonzero(want == row)
            assert abs(wanted[rivals] - have[row]).argmin() == list(rivals).index(np.flatnonzero(at == row)[0])


def test_half_a_step_beside_the_grid_nearly_everybody_has_a_partner():
    noon, midnight = (pd.date_range(first, periods=9, unit="ns") for first in ("2012-01-01T12:00", "2012-01-01"))
    assert (pair_off(noon, midnight, "12h") >= 0).sum() == 8


def test_channels_of_no_rows_match_nothing():
    together = match_channels(make_table())
    assert len(together) == 0 and len(together.columns) == 0 and together.index.name == "time"
    assert len(together.reindex(columns=["171"]).dropna().astype(int).reset_index()) == 0  # as Package.stacks does


def test_match_channels_pairs_and_reports(caplog):
    days = pd.date_range("2012-01-01", periods=5, unit="ns")
    table = pd.concat([frames(days), frames(days[[0, 1, 3, 4]] + pd.Timedelta("5min"), "193"), frames(days[:1] + pd.Timedelta("7min"), "304")], ignore_index=True)
    table = table.sample(frac=1, random_state=0)
    together = match_channels(table)
    assert list(together.columns) == list(table.channel.value_counts(sort=False).index) and list(together.index) == list(days)
    pairs = together[["171", "193"]].dropna()
    assert len(pairs) == 4 and (abs(table.time[pairs["171"]].to_numpy() - table.time[pairs["193"]].to_numpy()) == np.timedelta64(5, "m")).all()
    assert together["304"].isna().all() and match_channels(table, "10min")["304"].notna().sum() == 1
    assert "5 of 5 times lack a channel: " in caplog.text and "'193': 1" in caplog.text


# files on disk

@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    "Two channels, one a day for ten days, in sub-folders; a file without a name, and some rubbish"
    folder = tmp_path_factory.mktemp("disk")
    frame = SmallSun().frame("2014-01-01", size=64)
    frame.to_map().save(folder / "one.fits")
    for day in pd.date_range("2014-01-01", periods=10):
        for channel in ("171", "193"):
            path = folder / channel / file_name(day + pd.Timedelta("3s"), channel)
            path.parent.mkdir(exist_ok=True)
            shutil.copy(folder / "one.fits", path)
    (folder / "one.fits").rename(folder / "no_time_in_my_name.fits")
    (folder / "broken.fits").write_bytes(b"SIMPLE  = rubbish")
    (folder / "notes.txt").write_text("20140101_000000_aia_171 is nice")
    return folder


def test_local_files_are_found_by_name_or_header(disk, caplog):
    table = LocalFiles(disk).files()
    assert len(table) == 21 and "left out" in caplog.text and "broken.fits" in caplog.text
    assert table[table.name == "no_time_in_my_name.fits"].time.item() == T("2014-01-01")


def test_local_files_nearest_to_each_step_are_copied(disk, tmp_path):
    source = LocalFiles(disk)
    table = source.find("2014-01-03", "2014-01-20", "2d", ["171", "193"])
    assert table.time.dt.day.tolist() == [3, 3, 5, 5, 7, 7, 9, 9, 10, 10]  # the 10th is within half a step of the 11th
    report = source.fetch(table, tmp_path / "to", progress=False)
    assert report.missing.empty and len(list((tmp_path / "to").glob("*.fits"))) == 10
    assert (tmp_path / "to" / table.name[0]).read_bytes() == (disk / "171" / table.name[0]).read_bytes()


def test_files_of_one_name_in_two_folders_are_two_pictures(tmp_path, caplog):
    for day in ("2014-01-01", "2014-01-02"):
        (tmp_path / day).mkdir()
        SmallSun().frame(day, size=64).to_map().save(tmp_path / day / "sun.fits")
    source = LocalFiles(tmp_path)
    table = source.files()
    assert table.name.tolist() == ["20140101_000000_aia_171.fits", "20140102_000000_aia_171.fits"] and "left out" not in caplog.text
    report = source.fetch(source.find("2014-01-01", "2014-01-03"), tmp_path / "to", progress=False)
    for row in report.done.itertuples():
        assert (tmp_path / "to" / row.name).read_bytes() == (tmp_path / f"{row.time:%Y-%m-%d}" / "sun.fits").read_bytes()
    assert len(report.done) == 2


def test_a_second_copy_of_a_picture_is_left_out_and_said(disk, tmp_path, caplog):
    shutil.copytree(disk / "171", tmp_path / "a")
    shutil.copytree(disk / "171", tmp_path / "b")
    assert len(LocalFiles(tmp_path).files()) == 10
    assert "left out: 10 files of a moment and channel that another file has" in caplog.text


def test_links_to_nowhere_and_folders_with_a_files_name_are_no_pictures(disk, tmp_path, caplog):
    shutil.copytree(disk / "171", tmp_path / "disk")
    (tmp_path / "disk/20150101_000000_aia_171.fits").symlink_to(tmp_path / "gone.fits")
    (tmp_path / "disk/no_time.fits").symlink_to(tmp_path / "gone.fits")
    (tmp_path / "disk/20160101_000000_aia_171.fits").mkdir()
    assert len(LocalFiles(tmp_path).files()) == 10
    assert caplog.text.count("left out: ") == 2 and "20150101_000000_aia_171.fits" in caplog.text


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        LocalFiles("nowhere")


@needs_data
def test_real_names_of_several_archives_are_understood():
    table = LocalFiles(DATA / "fits").files()
    assert len(table) >= 30 and {"171", "193", "304", "hmi_ic", "hmi_m"} <= set(table.channel)
    assert len(LocalFiles(DATA / "jp2").files()) == 3


# several sources

def test_the_chain_passes_over_a_source_that_is_down(caplog):
    days = pd.date_range("2012-01-01", periods=4, unit="ns")
    chain = first_of(Down("a", frames(days)), Listed("b", frames(days)), Listed("c", frames(days)))
    table = chain.find("2012-01-01", "2012-01-05")
    assert set(table.source) == {"b"} and len(table) == 4
    assert "a: does not answer (nobody at home); the next source is asked" in caplog.text and chain.sources[2].asked == []


def test_the_chain_fills_moments_and_channels_that_the_first_lacks():
    days = pd.date_range("2012-01-01", periods=4, unit="ns")
    first = Listed("a", frames(days[:2]), channels=("171",))
    second = Listed("b", pd.concat([frames(days), frames(days, "hmi_m")], ignore_index=True))
    table = first_of(first, second).find("2012-01-01", "2012-01-05", channels=["171", "hmi_m"])
    assert table.groupby(["source", "channel"]).size().to_dict() == {("a", "171"): 2, ("b", "171"): 2, ("b", "hmi_m"): 4}


def test_what_one_cannot_deliver_comes_from_the_next(tmp_path):
    days = pd.date_range("2012-01-01", periods=6, unit="ns")
    names = frames(days).name.tolist()
    lost = {names[1]: [404], names[2]: [404], names[3]: [404]}
    with FaultServer(lost) as server:
        a = Listed("a", frames(days), server.url)
        b = Listed("b", frames([days[1] + pd.Timedelta("2min"), days[3]]), server.url)  # two minutes later; and one that it loses, too
        c = Listed("c", frames([days[3] + pd.Timedelta("4min"), days[2] + pd.Timedelta("3h")]), server.url)
        chain = first_of(a, b, c)
        report = chain.fetch(chain.find("2012-01-01", "2012-01-07"), tmp_path, progress=False)
    assert report.done.groupby("source").size().to_dict() == {"a": 3, "b": 1, "c": 1}
    assert report.missing.time.tolist() == [days[2]] and report.missing.reason.tolist() == ["404 Not Found"]
    assert len(report.table) == 6
    delivered = {p.name for p in tmp_path.glob("*.fits")}
    assert delivered == set(report.done.name)


def test_a_source_that_breaks_while_fetching_is_replaced(tmp_path):
    class Breaks(Listed):
        def fetch(self, table, folder, **how):
            raise TimeoutError("the line went dead")
    days = pd.date_range("2012-01-01", periods=3, unit="ns")
    with FaultServer() as server:
        chain = first_of(Breaks("a", frames(days)), Listed("b", frames(days), server.url))
        report = chain.fetch(chain.find("2012-01-01", "2012-01-04"), tmp_path, progress=False)
    assert set(report.done.source) == {"b"} and len(report.done) == 3 and report.missing.empty


def test_one_substitute_does_not_answer_for_six(tmp_path):
    "Nothing vanishes from the report: six were wanted, one came, five did not"
    class Dies(Listed):
        def fetch(self, table, folder, **how):
            raise ConnectionError("gone")
    times = pd.date_range("2012-01-01", periods=6, freq="2min", unit="ns")
    with FaultServer() as server:
        chain = first_of(Dies("a", frames(times)), Listed("b", frames(times[2:3] + pd.Timedelta("10s")), server.url))
        table = chain.find(times[0], times[-1] + pd.Timedelta("1s"), "2min")
        report = chain.fetch(table, tmp_path, progress=False)
    assert len(table) == len(report.table) == 6 and len(report.done) == 1
    assert report.missing.time.tolist() == times.delete(2).tolist() and set(report.missing.status) == {"failed"}
    assert set(report.missing.reason) == {"a does not deliver: gone"}


def test_the_substitute_of_another_moment_is_not_found_again(tmp_path):
    "b stands in for the second moment already; it cannot stand in for the first as well"
    times = pd.to_datetime(["2012-01-01T00:00", "2012-01-01T00:10", "2012-01-01T00:20"])
    with FaultServer({frames(times).name[0]: [404]}) as server:
        b = frames([T("2012-01-01T00:05")])
        chain = first_of(Listed("a", frames(times[[0, 2]]), server.url), Listed("b", b, server.url))
        table = chain.find(times[0], times[-1] + pd.Timedelta("1s"), "10min")
        assert table.source.tolist() == ["a", "b", "a"]
        report = chain.fetch(table, tmp_path, progress=False)
    assert report.done.source.tolist() == ["b", "a"] and report.missing.time.tolist() == [times[0]]


def test_a_chain_fetches_only_what_it_found(tmp_path):
    days = pd.date_range("2012-01-01", periods=3, unit="ns")
    chain = first_of(Listed("a", frames(days)), Listed("b", frames(days)))
    for table in (frames(days), frames(days).assign(source="c")):
        with pytest.raises(ValueError, match="a chain fetches what its own find found, from a, b"):
            chain.fetch(table, tmp_path, progress=False)


def test_if_all_are_down_the_chain_finds_nothing_and_lists_it(tmp_path):
    days = pd.date_range("2012-01-01", periods=3, unit="ns")
    chain = first_of(Down("a", frames(days)), Down("b", frames(days)))
    table = chain.find("2012-01-01", "2012-01-04")
    assert table.empty and chain.fetch(table, tmp_path, progress=False).table.empty


def test_a_chain_of_one_twice_or_of_none_is_refused():
    with pytest.raises(ValueError, match="one is there twice"):
        first_of(Synoptic(), Synoptic())
    with pytest.raises(ValueError, match="needs a source"):
        first_of()


def test_sources_from_words(disk):
    assert isinstance(get_source("synoptic"), Synoptic) and isinstance(get_source(str(disk)), LocalFiles)
    assert get_source(f"{disk}, synoptic", base="http://127.0.0.1:9").sources[1].base == "http://127.0.0.1:9"
    with pytest.raises(ValueError, match="source 'stanford': neither a folder nor one of synoptic, jsoc"):
        get_source("stanford")


@pytest.mark.parametrize("words", ["synoptic,helioviewer", "jsoc, browse", "."])
def test_one_base_is_not_for_several_archives(words):
    with pytest.raises(ValueError, match="base: one server for .*; give it with one archive"):
        get_source(words, base="http://127.0.0.1:9")


def test_an_archive_of_many_servers_takes_no_base():
    with pytest.raises(ValueError, match="base: vso is not one server; leave it out"):
        get_source("vso", base="http://127.0.0.1:9")


# gaps

@pytest.fixture
def year():
    "Two channels every six hours for a year, with three known holes"
    times = pd.date_range("2012-01-01", "2013-01-01", freq="6h", inclusive="left", unit="ns")
    table = pd.concat([frames(times + pd.Timedelta("7s")), frames(times, "304")], ignore_index=True)
    hole = table.time.between("2012-09-07", "2012-10-01 23:00") | ((table.channel == "304") & table.time.between("2012-03-01", "2012-03-01 06:00"))
    return table[~hole & ~((table.channel == "171") & (table.time == "2012-05-05 00:00:07"))]


def test_gaps_are_found_where_they_are(year):
    gaps = find_gaps(year, "6h")
    assert gaps.values.tolist() == [["171", T("2012-05-05"), T("2012-05-05"), 1], ["171", T("2012-09-07"), T("2012-10-01 18:00"), 100],
                                    ["304", T("2012-03-01"), T("2012-03-01 06:00"), 2], ["304", T("2012-09-07"), T("2012-10-01 18:00"), 100]]


def test_the_audit_counts(year):
    found = audit(year).set_index("channel")
    assert found.expected.tolist() == [1464, 1464] and found.missing.tolist() == [101, 102] and found.gaps.tolist() == [2, 2]
    assert (found.longest == pd.Timedelta("25D")).all()
    wider = audit(year, "6h", "2011-12-31", "2013-01-02").set_index("channel")
    assert (wider.missing - found.missing).tolist() == [8, 8] and (wider.found == found.found).all()


def test_a_channel_that_never_came_is_a_gap_from_end_to_end(year):
    found = audit(year, "6h", channels=["171", "193"]).set_index("channel")
    assert found.missing.tolist() == [101, 1464] and found.found["193"] == 0


def test_the_cadence_is_guessed(year):
    assert usual_step(year) == pd.Timedelta("6h") and usual_step(year[:1]) == pd.Timedelta("1D")


def test_a_whole_series_has_no_gaps():
    table = frames(pd.date_range("2012-01-01", periods=9, unit="ns"))
    assert find_gaps(table).empty and audit(table).missing.tolist() == [0]


def test_gaps_of_nothing():
    with pytest.raises(ValueError, match="no pictures: nothing to audit"):
        audit(make_table())


def test_the_picture_has_a_line_per_channel_and_a_bar_per_gap(year):
    ax = show_gaps(year, "6h")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["171", "304"]
    assert [len(c.get_paths()) for c in ax.collections] == [1, 2, 1, 2]
    assert "every 6 hours" in ax.get_title()
    ax.figure.clf()


@needs_data
def test_the_real_series_lacks_every_fourth_date():
    found = audit(LocalFiles(DATA / "aia171").files(), "32d")
    assert found.found.item() == 111 and found.missing.item() >= 30 and found.longest.item() >= pd.Timedelta("32D")
