"""Archives: their protocols against look-alikes on this machine, and what they do on a bad day."""
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from lookalikes import Lookalike, LookalikeBrowse, LookalikeHelioviewer, LookalikeJSOC, as_json, disk_image, fits_bytes, sun_header

import search_sdo.packager.archives as archives
from search_sdo.packager.archives import ARCHIVES, JSOC, SDOML, VSO, Browse, Cutout, Helioviewer, record_sets, sdoml_index, utc
from search_sdo.packager.download import FetchError
from search_sdo.packager.frame import read_frame
from search_sdo.packager.sources import COLUMNS, first_of

DAY = pd.Timestamp("2014-01-03")
DAYS = dict(start="2014-01-03", end="2014-01-06", cadence="1d")
QUIET = dict(progress=False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    "Nobody waits half a second before another try"
    monkeypatch.setattr("search_sdo.packager.download.back_off", lambda n: 0.01)
    monkeypatch.delenv("JSOC_EMAIL", raising=False)


def jsoc(server, **more):
    return JSOC(email="someone@known.org", base=server.base, poll=0.001, **more)


# JSOC: finding

def test_jsoc_finds_the_records_and_knows_their_times_in_utc():
    with LookalikeJSOC() as server:
        table = JSOC(base=server.base).find(**DAYS, channels=["171", "193", "hmi_m"])
    assert list(table.columns) == COLUMNS and len(table) == 9
    assert set(table.channel) == {"171", "193", "hmi_m"} and (table.bytes == 11e6).all()
    away = table.time - table.time.dt.round("1D")
    assert away.abs().max() < pd.Timedelta("1min")
    field = table[table.channel == "hmi_m"].iloc[0]
    assert field.url == "hmi.M_720s[2014.01.03_00:00:00_TAI][1]{magnetogram}" and field.time == pd.Timestamp("2014-01-02 23:59:25")
    assert field["name"] == "20140102_235925_hmi_m.fits"
    assert table.url[table.channel == "171"].iloc[0] == "aia.lev1_euv_12s[2014-01-03T00:00:01Z][171]{image}"


def test_jsoc_asks_one_question_for_a_regular_range():
    with LookalikeJSOC() as server:
        table = JSOC(base=server.base).find("2014-01-01", "2014-03-01", "1d")
        assert len(table) == 59 and server.count("jsoc_info") == 1


@pytest.mark.parametrize("spoiled", ["missing", "bad"])
def test_jsoc_takes_the_neighbour_of_a_record_that_is_missing_or_spoiled(spoiled):
    with LookalikeJSOC(**{spoiled: [datetime(2014, 1, 4, 0, 0)]}) as server:
        table = JSOC(base=server.base).find(**DAYS)
    assert list(table.time.dt.floor("1s")) == [pd.Timestamp("2014-01-03 00:00:01"), pd.Timestamp("2014-01-03 23:59:49"), pd.Timestamp("2014-01-05 00:00:01")]


def test_jsoc_leaves_out_what_is_spoiled_for_hours(caplog):
    bad = [datetime(2014, 1, 3, 22) + timedelta(minutes=m) for m in range(240)]
    with LookalikeJSOC(bad=bad) as server:
        table = JSOC(base=server.base).find(**DAYS)
    assert list(table.time.dt.day) == [3, 5]
    assert "jsoc: channel 171: 1 of 3 moments" in caplog.text


def test_jsoc_never_asks_for_more_than_ten_ranges():
    "A server that takes ten at most is asked about 35 moments that got nothing, and never says HTTP 500"
    missing = [datetime(2014, 1, 1) + timedelta(days=d) for d in range(35)]
    with LookalikeJSOC(missing=missing) as server:
        table = JSOC(base=server.base).find("2014-01-01", "2014-02-05", "1d")
        ranges = [q["ds"].split("[")[1].count(",") + 1 for p, q in server.asked if q.get("op") == "rs_list"]
    assert len(table) == 35 and max(ranges) == 10 and len(ranges) == 5


def test_jsoc_is_asked_in_halves_where_it_chokes():
    with LookalikeJSOC(longest=20) as server:
        table = JSOC(base=server.base).find("2014-01-01", "2014-03-01", "1d")
        assert len(table) == 59 and server.count("jsoc_info") == 7


def test_jsoc_that_is_down_is_a_fetch_error_that_names_the_pattern():
    with pytest.raises(FetchError, match="(?s)JSOC, asked for the keys of aia.lev1_euv_12s.*Pattern 'jsoc'.*drms 0.9") as error:
        JSOC(base="http://127.0.0.1:9/cgi-bin/").find(**DAYS)
    assert error.value.again and error.value.host


class Broken(Lookalike):
    "Answers everything with the same page"
    def __init__(self, status, body):
        super().__init__()
        self.page = status, "text/html", body

    def answer(self, path, query):
        return self.page


@pytest.mark.parametrize("status, body, words", [(500, b"<html>", "HTTP 500"), (200, b"<html>Maintenance</html>", "no JSON came"), (404, b"", "HTTP 404"),
                                                 (200, b'{"status": 1, "error": "Cannot open series"}', "Cannot open series")])
def test_jsoc_that_answers_nonsense_is_a_fetch_error(status, body, words):
    with Broken(status, body) as server, pytest.raises(FetchError, match=words):
        JSOC(base=server.url + "/").find(**DAYS)


def test_the_chain_goes_on_when_jsoc_is_down(tmp_path):
    with LookalikeBrowse([datetime(2014, 1, d) for d in (3, 4, 5)]) as server:
        both = first_of(JSOC(email="a@known.org", base="http://127.0.0.1:9/"), Browse(server.url, size=512))
        assert list(both.find(**DAYS).source) == ["browse"] * 3


# JSOC: fetching

def test_jsoc_delivers_frames_that_can_be_read_and_exports_once(tmp_path):
    with LookalikeJSOC() as server:
        source = jsoc(server)
        table = source.find(**DAYS, channels=["171", "hmi_m"])
        report = source.fetch(table, tmp_path, **QUIET)
        assert len(report.done) == 6 and len(server.requests) == 2
        assert {r["query"]["ds"].split("{")[1] for r in server.requests.values()} == {"image}", "magnetogram}"}
        assert len(source.fetch(table, tmp_path, **QUIET).done) == 6 and len(server.requests) == 2
        (tmp_path / table.name[0]).unlink()
        assert len(source.fetch(table, tmp_path, **QUIET).done) == 6 and len(server.requests) == 3
        last = list(server.requests.values())[-1]["query"]["ds"]
        assert last == table.url[0].replace("[1]", ""), "only what is lacking"
    frame = read_frame(tmp_path / table.name[table.channel == "171"].iloc[0])
    assert (frame.channel, frame.unit) == ("171", "DN") and frame.disk.radius == pytest.approx(25.6, abs=0.1)
    field = read_frame(tmp_path / table.name[table.channel == "hmi_m"].iloc[0])
    assert (field.channel, field.unit) == ("hmi_m", "Gauss")


def test_jsoc_exports_a_long_regular_table_as_one_range(tmp_path):
    with LookalikeJSOC() as server:
        source = jsoc(server)
        report = source.fetch(source.find("2014-01-01", "2014-02-10", "1d"), tmp_path, **QUIET)
        assert len(report.done) == 40
        assert [r["query"]["ds"] for r in server.requests.values()] == ["aia.lev1_euv_12s[2014-01-01T00:00:01Z/3456000s@86400s][171]{image}"]


@pytest.mark.parametrize("day", [dict(fail=1), dict(busy=3), dict(most=1), dict(polls=6)])
def test_jsoc_delivers_on_a_bad_day(day, tmp_path):
    "An export fails once (status 4), others are pending (7), ranges are too many (500), it takes long (6, 2)"
    with LookalikeJSOC(**day) as server:
        source = jsoc(server)
        assert len(source.fetch(source.find(**DAYS), tmp_path, **QUIET).done) == 3


def test_jsoc_exports_that_keep_failing_are_listed_with_its_own_words(tmp_path):
    with LookalikeJSOC(fail=9) as server:
        source = jsoc(server)
        report = source.fetch(source.find(**DAYS), tmp_path, **QUIET)
        assert len(server.requests) == 2, "asked twice for the set, not twice for each file"
    assert len(report.missing) == 3 and report.missing.reason.str.contains("export-request hash").all()
    assert report.missing.reason.str.contains("status=4").all()


def test_jsoc_that_is_never_ready_is_left_after_a_while(tmp_path):
    with LookalikeJSOC(polls=10 ** 9) as server:
        source = jsoc(server, patience=0.05)
        report = source.fetch(source.find(**DAYS), tmp_path, **QUIET)
    assert len(report.missing) == 3 and report.missing.reason.str.contains("not ready after 0 s").all()


def test_jsoc_wants_an_address_that_it_knows(tmp_path, monkeypatch):
    with LookalikeJSOC() as server:
        table = JSOC(base=server.base).find(**DAYS)
        with pytest.raises(ValueError, match="register_email.html, then pass email= or set JSOC_EMAIL"):
            JSOC(base=server.base).fetch(table, tmp_path)
        with pytest.raises(ValueError, match="(?s)email='nobody@nowhere.org': JSOC does not know.*register_email"):
            JSOC(email="nobody@nowhere.org", base=server.base).fetch(table, tmp_path)
        monkeypatch.setenv("JSOC_EMAIL", "from@known.org")
        assert len(JSOC(base=server.base, poll=0.001).fetch(table, tmp_path, **QUIET).done) == 3


def test_jsoc_cuts_out(tmp_path):
    with LookalikeJSOC() as server:
        source = jsoc(server, cutout=Cutout(-200, 300, 400, 320))
        table = source.find(**DAYS)
        report = source.fetch(table, tmp_path, **QUIET)
        process = next(iter(server.requests.values()))["query"]["process=n"]
    assert len(report.done) == 3 and table.name[0] == "20140103_000001_aia_171_-200+300_400x320.fits"
    assert "im_patch,t_ref=2014-01-03T00:00:01.340,t=0,r=0,c=0,locunits=arcsec,boxunits=arcsec,x=-200,y=300,width=400,height=320" in process
    assert read_frame(tmp_path / table.name[0]).data.shape == (40, 40)


def test_jsoc_files_as_they_lie_get_their_headers_here(tmp_path):
    with LookalikeJSOC() as server:
        source = jsoc(server, quick=True)
        table = source.find(**DAYS, channels=["171", "hmi_m"])
        report = source.fetch(table, tmp_path, **QUIET)
        assert len(report.done) == 6 and not server.requests, "no export, no waiting"
    frame = read_frame(tmp_path / "20140103_000001_aia_171.fits")
    assert (frame.channel, frame.unit, frame.time) == ("171", "DN", datetime(2014, 1, 3, 0, 0, 1)) and frame.disk.radius == pytest.approx(25.6, abs=0.1)
    assert (frame.meta["quality"], frame.meta["exptime"]) == (0, 2.0) and "mpo_rec" not in frame.meta
    with fits.open(tmp_path / "20140103_000001_aia_171.fits", disable_image_compression=True) as units:
        assert units[1].header["ZCMPTYPE"] == "RICE_1"
    np.testing.assert_array_equal(frame.data[::-1], disk_image(64, 221.0).astype(np.int16))
    assert read_frame(tmp_path / "20140102_235925_hmi_m.fits").unit == "Gauss"
    with pytest.raises(ValueError, match="leave out cutout="):
        JSOC(quick=True, cutout=Cutout(0, 0, 100, 100))


def test_jsoc_does_not_skip_within_a_series_step():
    with LookalikeJSOC() as server:
        table = JSOC(base=server.base).find("2014-01-03", "2014-01-03T01:00", "1min", channels=["hmi_m"])
        assert len(table) == 4 and len(server.asked) == 1 and "@" not in server.asked[0][1]["ds"]


def test_jsoc_has_the_quick_magnetograms():
    with LookalikeJSOC() as server:
        table = JSOC(base=server.base, hmi="45s").find(**DAYS, channels="hmi_m")
        assert len(table) == 3 and table.url.str.startswith("hmi.M_45s[").all()
    with pytest.raises(ValueError, match='hmi=\'12s\': expected "720s" or "45s"'):
        JSOC(hmi="12s")


def test_leap_seconds_do_not_split_a_grid():
    "AIA's slots move by a second at the leap second of July 2012; one range still holds the year"
    days = pd.date_range("2012-03-01", "2012-11-01")
    names = [f"aia.lev1_euv_12s[{d:%Y-%m-%d}T00:00:{2 - (d > pd.Timestamp('2012-07-01')):02d}Z][171]{{image}}" for d in days]
    one, = record_sets(names)
    assert one.step == 86400 and len(one.times) == len(days)


def test_times_of_jsoc_agree_with_astropy():
    from astropy.time import Time
    texts = ["2012.06.30_23:59:59_TAI", "2012.07.02_00:00:35_TAI", "2017.01.01_00:00:37_TAI"]
    theirs = Time([t[:-4].replace("_", " ").replace(".", "-") for t in texts], scale="tai").utc.datetime64
    assert list(utc(texts)) == list(pd.DatetimeIndex(theirs))


# Helioviewer

@pytest.fixture
def hv(tmp_path_factory):
    return partial(LookalikeHelioviewer, tmp_path_factory.mktemp("jp2"))


def test_helioviewer_finds_and_delivers_jpeg_2000(hv, tmp_path):
    with hv() as server:
        source = Helioviewer(server.url)
        table = source.find(**DAYS, channels=["171", "hmi_m"])
        report = source.fetch(table, tmp_path, **QUIET)
    assert list(table.columns) == COLUMNS and len(report.done) == 6 and server.count("getDataSources") == 1
    assert table.time[0] == pd.Timestamp("2014-01-03 00:00:11")
    frame = read_frame(tmp_path / "20140103_000011_aia_171.jp2")
    assert (frame.channel, frame.unit, frame.time) == ("171", "display", datetime(2014, 1, 3, 0, 0, 11))


def test_helioviewer_answers_that_are_far_away_are_dropped(hv, caplog):
    with hv(gap=(datetime(2014, 1, 3, 11), datetime(2014, 1, 5))) as server:
        table = Helioviewer(server.url).find("2014-01-03", "2014-01-05", "6h")
    assert list(table.time.dt.hour) == [0, 6, 10]
    assert "5 of 8 moments" in caplog.text


def test_helioviewers_own_source_numbers_count(hv, caplog):
    with hv(ids={**LookalikeHelioviewer.IDS, "171": 110, "hmi_ic": 18, "hmi_m": 19}) as server:
        table = Helioviewer(server.url).find(**DAYS)
    assert table.url.str.contains("sourceId=110").all() and "{'171': 110}" in caplog.text


@pytest.mark.parametrize("status, body, words", [(200, b"<html>sorry</html>", "expected JSON"), (200, b'{"error": "Invalid"}', "Invalid"), (404, b"", "404"), (503, b"", "503")])
def test_helioviewer_that_answers_nonsense_is_a_fetch_error(status, body, words):
    with Broken(status, body) as server, pytest.raises(FetchError, match=f"(?s){words}.*Pattern 'sources'.*give base="):
        Helioviewer(server.url).find(**DAYS)


# Browse images

def test_browse_reads_listings_and_takes_the_nearest(tmp_path, caplog):
    times = [datetime(2014, 1, 2, 23, 50), datetime(2014, 1, 3, 0, 20), datetime(2014, 1, 5, 0, 20, 30), datetime(2014, 1, 5, 14)]
    with LookalikeBrowse(times) as server:
        source = Browse(server.url, size=1024)
        table = source.find(**DAYS, channels=["171", "94", "hmi_m"])
        report = source.fetch(table, tmp_path, **QUIET)
    assert list(table.columns) == COLUMNS and len(report.done) == 6
    assert set(table.time) == {pd.Timestamp("2014-01-02 23:50"), pd.Timestamp("2014-01-05 00:20:30")}
    assert "browse: channel 171: 1 of 3 moments" in caplog.text
    frame = read_frame(tmp_path / "20140105_002030_aia_94.jpg")
    assert (frame.channel, frame.unit) == ("94", "display")


def test_browse_reads_each_day_once():
    with LookalikeBrowse([datetime(2014, 1, 3, h) for h in range(24)]) as server:
        table = Browse(server.url, size=512).find("2014-01-03T02:00", "2014-01-03T20:00", "1h", channels=["171", "94"])
        assert len(table) == 36 and len(server.asked) == 1


def test_browse_that_is_down_is_a_fetch_error():
    with Broken(503, b"") as server, pytest.raises(FetchError, match="(?s)503.*Pattern 'listing'"):
        Browse(server.url).find(**DAYS)
    with pytest.raises(ValueError, match="size=1000: expected 512"):
        Browse(size=1000)


# SDOML v2, over S3

TIMES = pd.date_range("2014-01-01", periods=40, freq="6h")
ORDER = np.random.default_rng(0).permutation(40)


def headers(times, tai=False):
    "Attributes as the makers of SDOML v2 wrote them: lists, one entry a frame"
    text = [f"{t + timedelta(seconds=35):%Y.%m.%d_%H:%M:%S_TAI}" if tai else f"{t:%Y-%m-%dT%H:%M:%S}.34Z" for t in times]
    rsun = list(np.linspace(975.8, 975.1, len(times)))
    return dict(T_OBS=text, QUALITY=[0] * len(times), EXPTIME=[2.0] * len(times), RSUN_OBS=rsun, DEG_COR=[0.8] * len(times), CDELT1=[4.8 * r / 976 for r in rsun],
                DSUN_OBS=[1.471e11] * len(times), CRLN_OBS=[10.0] * len(times), CRLT_OBS=[-3.0] * len(times), CRPIX1=[256.25] * len(times))


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    "moto's S3 with a small SDOML: 171A of 2014 in chunks of 15, days out of order; Bz; values name the frame"
    import boto3
    import zarr
    from moto.server import ThreadedMotoServer
    from numcodecs import Blosc

    folder = tmp_path_factory.mktemp("sdoml")
    for store, array, tai in (("sdomlv2.zarr", "171A", False), ("sdomlv2_hmi.zarr", "Bz", True)):
        group = zarr.open_group(folder / store, mode="w", zarr_format=2).create_group("2014")
        a = group.create_array(array, shape=(40, 512, 512), chunks=(15, 512, 512), dtype="f4", compressors=Blosc("zstd", 5, Blosc.BITSHUFFLE))
        a.attrs.update(headers(TIMES[ORDER], tai))
        disk = disk_image(512, 1.0)
        disk[:100] *= 0.5  # the south is dimmer
        for i in range(0, 40, 15):
            a[i:i + 15] = np.stack([disk * (100 + k) for k in range(i, min(i + 15, 40))])
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")
    client.create_bucket(Bucket="sdo-bucket")
    for path in (p for p in folder.rglob("*") if p.is_file()):
        client.put_object(Bucket="sdo-bucket", Key=f"contrib/v2/{path.relative_to(folder).as_posix()}", Body=path.read_bytes(), ACL="public-read")
    yield url, client
    server.stop()


def sdoml(s3, cache):
    return SDOML("s3://sdo-bucket/contrib/v2", endpoint_url=s3[0], cache=cache)


@pytest.fixture
def counted(monkeypatch):
    "URLs of chunks that were downloaded"
    urls, real = [], archives.get_url
    monkeypatch.setattr(archives, "get_url", lambda url, part, *more: (urls.append(url), real(url, part, *more))[1])
    return urls


def test_sdoml_delivers_fits_with_the_disk_in_its_place(s3, tmp_path, counted):
    source = sdoml(s3, tmp_path / "cache")
    table = source.find("2014-01-01", "2014-01-11", "1d", channels=["171", "hmi_m"])
    report = source.fetch(table, tmp_path / "out", **QUIET)
    assert list(table.columns) == COLUMNS and len(report.done) == 20 and table.bytes.sum() == pytest.approx(6 * 12e6)
    assert len(counted) == len({*counted}) == 6, "each chunk of 15 frames crosses the network once"
    assert not (tmp_path / "out" / ".sdoml").exists()
    for row in table[table.channel == "171"].itertuples():
        frame = read_frame(tmp_path / "out" / row.name)
        where = int(row.url.partition("#")[2])
        assert abs(frame.time - TIMES[ORDER][where]) < timedelta(seconds=1)
        assert (frame.channel, frame.unit) == ("171", "DN/s") and frame.data.dtype == np.float32
        assert frame.data[255, 255] == 100 + where
        assert (frame.disk.x, frame.disk.y, frame.disk.roll) == pytest.approx((255.5, 255.5, 0), abs=0.01)
        assert frame.disk.radius == pytest.approx(976 / 4.8, abs=0.01)
    assert frame.data[20, 255] == 2 * frame.data[-20, 255], "north is up"
    assert (frame.meta["exptime"], frame.meta["deg_cor"]) == (2.0, 0.8) and "SDOML" in frame.meta["degradation"], "nobody corrects it again"
    field = read_frame(tmp_path / "out" / "20140101_000000_hmi_m.fits")
    assert (field.channel, field.unit) == ("hmi_m", "Gauss") and field.disk.radius == pytest.approx(976 / 4.8, abs=0.01)


def test_sdoml_reads_the_headers_once(s3, tmp_path, monkeypatch):
    asked, real = [], archives.fetch_files
    monkeypatch.setattr(archives, "fetch_files", lambda *a, **k: (asked.append(1), real(*a, **k))[1])
    first = sdoml(s3, tmp_path).find("2014-01-01", "2014-01-11", "1d")
    again = sdoml(s3, tmp_path).find("2014-01-01", "2014-01-11", "1d")
    pd.testing.assert_frame_equal(first, again)
    assert len(asked) == 1


def test_sdoml_goes_on_where_it_was(s3, tmp_path, monkeypatch, counted):
    "Stopped after seven frames, as by Ctrl-C; the second call brings the others and no chunk twice"
    source, real = sdoml(s3, tmp_path / "cache"), archives.Chunks.written
    table = source.find("2014-01-01", "2014-01-11", "6h")
    written = []

    def stop(chunks, url):
        real(chunks, url)
        written.append(url)
        if len(written) == 7:
            raise RuntimeError("pulled the plug")

    monkeypatch.setattr(archives.Chunks, "written", stop)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        source.fetch(table, tmp_path / "out", **QUIET, connections=1)
    before = len(counted)
    monkeypatch.setattr(archives.Chunks, "written", real)
    report = source.fetch(table, tmp_path / "out", **QUIET)
    assert len(report.done) == 40 and before >= 1
    assert len(counted) == len({*counted}) == 3


def test_sdoml_lists_the_frames_of_a_chunk_that_is_missing_or_damaged(s3, tmp_path):
    url, client = s3
    key = "contrib/v2/sdomlv2.zarr/2014/171A/1.0.0"
    whole = client.get_object(Bucket="sdo-bucket", Key=key)["Body"].read()
    source = sdoml(s3, tmp_path / "cache")
    table = source.find("2014-01-01", "2014-01-11", "6h")
    try:
        client.delete_object(Bucket="sdo-bucket", Key=key)
        report = source.fetch(table, tmp_path / "out", **QUIET)
        assert len(report.done) == 25 and report.missing.reason.str.contains("404").all()
        client.put_object(Bucket="sdo-bucket", Key=key, Body=whole[:-100], ACL="public-read")
        report = source.fetch(table, tmp_path / "out", **QUIET, tries=2)
        assert len(report.done) == 25 and report.missing.reason.str.contains("says that it has").all()
    finally:
        client.put_object(Bucket="sdo-bucket", Key=key, Body=whole, ACL="public-read")
    assert len(source.fetch(table, tmp_path / "out", **QUIET).done) == 40


def test_sdoml_years_that_it_has_not_are_empty(s3, tmp_path):
    assert len(sdoml(s3, tmp_path).find("2013-12-30", "2014-01-03", "1d")) == 2
    assert len(sdoml(s3, tmp_path).find("2012-12-30", "2013-01-03", "1d")) == 0


def test_sdoml_names_the_bucket_that_refuses(tmp_path):
    with Broken(403, b"<Error><Code>AccessDenied</Code></Error>") as server, pytest.raises(FetchError, match="(?s)/closed/v2/sdomlv2.zarr/2014/171A: 403.*requester has to pay.*s3://gov-nasa-hdrl-data1"):
        SDOML("s3://closed/v2", endpoint_url=server.url, cache=tmp_path).find(**DAYS)


def test_sdoml_does_not_trust_times_that_do_not_fit_the_frames():
    with pytest.raises(ValueError, match=r"41 frames but 40 times \(T_OBS\)"):
        sdoml_index(headers(TIMES), 41)
    short = {**headers(TIMES), "EXPTIME": [2.0] * 39}
    assert sdoml_index(short, 40).EXPTIME.isna().all()


# VSO: Fido with the part that speaks SOAP replaced

class Provider(Lookalike):
    "A provider's web server behind the VSO; `lost` files give 404"
    def __init__(self, lost=()):
        super().__init__()
        self.lost = lost

    def answer(self, path, query):
        time = datetime.strptime(path.strip("/"), "%Y%m%d%H%M%S")
        if time in self.lost:
            return 404, "text/html", b""
        return 200, "application/fits", fits_bytes(disk_image(), sun_header(time))


@pytest.fixture
def vso(monkeypatch):
    "A Fido whose VSO client has no network: `records` are what it finds, addresses are those of a local server"
    from sunpy.net import Fido
    from sunpy.net import attrs as a
    from sunpy.net.fido_factory import UnifiedResponse
    from sunpy.net.vso.table_response import VSOQueryResponseTable
    from sunpy.net.vso.vso import VSOClient
    import astropy.units as u
    from astropy.time import Time

    class Client(VSOClient):
        def __init__(self, url):
            self.url, self.calls, self.unknown = url, 0, ()

        def __del__(self):
            pass

        def fetch(self, block, path=None, downloader=None, wait=True, **how):
            self.calls += 1
            for row in block:
                if row["fileid"] not in self.unknown:
                    self.download("URL-FILE", f"{self.url}/{row['Start Time'].strftime('%Y%m%d%H%M%S')}", downloader, str(path), row)

    def make(server, times):
        client = Client(server.url)
        client.asked = []

        def search(*query):
            client.asked.append(query)
            span = next(q for q in query if isinstance(q, a.Time))
            sample = next((q.value for q in query if isinstance(q, a.Sample)), 0)
            here = [t for t in times if span.start.datetime <= t <= span.end.datetime]
            here = here if sample else here[::-1]
            table = VSOQueryResponseTable(dict(fileid=[f"aia__lev1:171:{t:%Y%m%d%H%M%S}" for t in here], Provider=["JSOC"] * len(here), Size=np.full(len(here), 64.0) * u.Mibyte),
                                          client=client) if here else VSOQueryResponseTable(client=client)
            if here:
                table["Start Time"] = Time(here)
            return UnifiedResponse(table)

        monkeypatch.setattr(Fido, "search", search)
        return client
    return make


def test_vso_delivers_and_resolves_addresses_in_batches(vso, tmp_path):
    days = [datetime(2014, 1, d, 0, 0, 11) for d in range(3, 15)]
    with Provider() as server:
        client = vso(server, days)
        source = VSO(batch=5)
        table = source.find("2014-01-03", "2014-01-15", "1d")
        report = source.fetch(table, tmp_path, **QUIET)
        assert list(table.columns) == COLUMNS and len(report.done) == 12 and client.calls == 3
        assert table.url[0] == "vso:JSOC/aia__lev1:171:20140103000011" and table.bytes[0] == 64 * 2 ** 20
        source.fetch(table, tmp_path, **QUIET)
        assert client.calls == 3, "nothing is asked for again"
    assert read_frame(tmp_path / "20140103_000011_aia_171.fits").channel == "171"


def test_vso_looks_again_around_what_its_first_answer_lacks(vso, caplog):
    days = [datetime(2014, 1, 3, 0, 0, 11), datetime(2014, 1, 5, 0, 5)]
    with Provider() as server:
        client = vso(server, days)
        table = VSO().find(**DAYS)
        assert list(table.time) == [pd.Timestamp(d) for d in days] and len(client.asked) == 2
    assert "vso: channel 171: 1 of 3 moments" in caplog.text


def test_vso_lists_what_does_not_come(vso, tmp_path):
    days = [datetime(2014, 1, d) for d in (3, 4, 5)]
    with Provider(lost=days[:1]) as server:
        client = vso(server, days)
        client.unknown = ("aia__lev1:171:20140104000000",)
        source = VSO()
        report = source.fetch(source.find(**DAYS), tmp_path, **QUIET)
    assert len(report.done) == 1
    assert list(report.missing.reason.str.slice(0, 3)) == ["404", "the"]


def test_vso_fetches_a_table_from_another_day(vso, tmp_path):
    with Provider() as server:
        vso(server, [datetime(2014, 1, d) for d in (3, 4, 5)])
        table = VSO().find(**DAYS)
        assert len(VSO().fetch(table, tmp_path, **QUIET).done) == 3


def test_vso_records_without_a_time_are_left_out(vso, monkeypatch, caplog):
    from sunpy.net import Fido

    with Provider() as server:
        vso(server, [datetime(2014, 1, d) for d in (3, 4, 5)])
        real = Fido.search

        def search(*query):
            answer = real(*query)
            for i, identity in enumerate(answer[0]["fileid"]):
                if identity.endswith("20140104000000"):
                    answer[0]["Start Time"][i] = np.ma.masked
            return answer

        monkeypatch.setattr(Fido, "search", search)
        assert len(VSO().find(**DAYS)) == 2
    assert "aia__lev1:171:20140104000000 has no time" in caplog.text


def test_vso_that_is_down_is_a_fetch_error(monkeypatch):
    from sunpy.net import Fido

    def search(*query):
        raise ConnectionError("No online VSO mirrors could be found.")

    monkeypatch.setattr(Fido, "search", search)
    with pytest.raises(FetchError, match="VSO, asked for 171.*No online VSO mirrors"):
        VSO().find(**DAYS)


# Damaged answers

def damage(body, rng):
    "Bytes that are cut, doubled, swapped or replaced at a random place"
    body, at = bytearray(body), int(rng.integers(len(body)))
    n = int(rng.integers(1, 30))
    kind = rng.integers(4)
    if kind == 0:
        del body[at:at + n]
    elif kind == 1:
        body[at:at] = body[at:at + n]
    elif kind == 2:
        body[at:at + n] = bytes(rng.integers(0, 256, n, dtype=np.uint8))
    else:
        del body[at:]
    return bytes(body)


def damaged(server, rng):
    "The same server, but its answers are damaged"
    whole = server.answer

    def answer(path, query):
        status, kind, body = whole(path, query)
        return status, kind, damage(body, rng) if body else body

    server.answer = answer
    return server


class SmallStore(Lookalike):
    "Headers of one array of SDOML, without its chunks"
    def answer(self, path, query):
        if path.endswith(".zarray"):
            return as_json(dict(shape=[40, 512, 512], chunks=[15, 512, 512], dtype="<f4", zarr_format=2))
        return as_json(headers(TIMES))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["jsoc", "helioviewer", "browse", "sdoml"])
def test_damaged_answers_are_clear_errors(name, seed, hv, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ask", partial(archives.ask, tries=1))
    rng = np.random.default_rng(seed)
    servers = dict(jsoc=LookalikeJSOC, helioviewer=hv, browse=lambda: LookalikeBrowse([datetime(2014, 1, d) for d in (3, 4, 5)]), sdoml=SmallStore)
    with damaged(servers[name](), rng) as server:
        source = dict(jsoc=lambda: JSOC(base=f"{server.url}/cgi-bin/ajax/"), helioviewer=lambda: Helioviewer(server.url), browse=lambda: Browse(server.url, size=512),
                      sdoml=lambda: SDOML(server.url, cache=tmp_path))[name]()
        try:
            assert list(source.find(**DAYS).columns) == COLUMNS
        except (FetchError, ValueError) as error:
            assert server.url in str(error) or "JSOC" in str(error)


# All

@pytest.mark.parametrize("name", ARCHIVES)
def test_every_archive_checks_what_it_is_asked(name, tmp_path):
    source = ARCHIVES[name]()
    with pytest.raises(ValueError, match="start='soon'"):
        source.find("soon", "2014-01-02")
    with pytest.raises(ValueError, match="cadence='often'"):
        source.find("2014-01-01", "2014-01-02", "often")
    with pytest.raises(ValueError, match="channel 'h-alpha' is not known"):
        source.find("2014-01-01", "2014-01-02", channels=["h-alpha"])


def test_the_command_line_reaches_them(hv, tmp_path, capsys):
    from search_sdo.cli import main

    dates = ["--start", "2014-01-03", "--end", "2014-01-05", "--to", str(tmp_path)]
    with hv() as server, pytest.raises(SystemExit) as end:
        main(["fetch", "helioviewer", "--base", server.url, *dates])
    assert end.value.code == 0 and "Fetched 2 of 2 files" in capsys.readouterr().out
    with LookalikeJSOC() as server, pytest.raises(SystemExit) as end:
        main(["fetch", "jsoc", "--base", server.base, *dates, "--dry-run"])
    assert end.value.code == 0 and "2 files, about 22 MB" in capsys.readouterr().out
    with LookalikeJSOC() as server, pytest.raises(SystemExit) as end:
        main(["fetch", "jsoc", "--base", server.base, *dates])
    assert end.value.code == 2 and "register_email.html" in capsys.readouterr().err


def test_nothing_to_fetch_is_no_error(tmp_path):
    with LookalikeJSOC() as server:
        for source in (jsoc(server), VSO(), SDOML(cache=tmp_path), Helioviewer(), Browse()):
            empty = pd.DataFrame(columns=COLUMNS).astype(dict(time="datetime64[ns]", bytes=float))
            assert len(source.fetch(empty, tmp_path / source.name, **QUIET).table) == 0


def test_a_missing_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "drms", None)
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[sources\]"'):
        JSOC(base="http://127.0.0.1:9/").find(**DAYS)
