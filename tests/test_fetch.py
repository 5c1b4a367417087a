"""Fetching: every fault that a server can have, a process that is killed, and the list that survives it."""
import hashlib
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from conftest import ROOT
from fault_server import ALWAYS, ONCE, FaultServer, chance, fits_of, sha256_of
from real_data import DATA, needs_data
from search_sdo.packager import download, fetch
from search_sdo.packager.download import FetchError, ask, get_url, looks_right, retry_after
from search_sdo.packager.fetch import estimate, fetch_files


def table_of(server, n, first="2012-01-01"):
    times = pd.date_range(first, periods=n, freq="1h", unit="ns")
    names = [f"{t:%Y%m%d_%H%M%S}_aia_171.fits" for t in times]
    return pd.DataFrame(dict(time=times, channel="171", name=names, url=[f"{server.url}/data/{n}" for n in names], bytes=20e3))


def quick(table, folder, **how):
    return fetch_files(table, folder, **dict(timeout=0.6, progress=False) | how)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    "Back-off in hundredths of a second"
    monkeypatch.setattr(download, "back_off", lambda n: 0.02 * n)


def assert_whole(folder):
    "Every FITS file in the folder is what the server has, and nothing provisional is left"
    for path in folder.glob("*.fits"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path.name), path.name
    assert not list(folder.glob(".*part"))


@pytest.mark.parametrize("fault", ONCE)
def test_each_fault_is_overcome(fault, tmp_path):
    with FaultServer() as server:
        table = table_of(server, 2)
        server.left[table.name[0]] = [fault]
        report = quick(table, tmp_path, deadline=10)
        assert (report.table.status == "done").all() and report.missing.empty
        assert server.count(table.name[0]) == (1 if fault == "drip" else 2)
    assert_whole(tmp_path)


@pytest.mark.parametrize("fault, says", [(500, "500 Internal Server Error"), ("hang", "no answer in time"), ("reset", "the connection broke"), ("cut", "cut off on the way"),
                                         ("cut in the header", "cut off"), ("html", "a web page, not a picture"), ("empty", "empty"),
                                         ("wrong type", "not FITS at byte 0"), ("loop", "sent in a circle of redirects")])
def test_a_fault_without_end_is_listed_with_its_reason(fault, says, tmp_path):
    with FaultServer() as server:
        table = table_of(server, 2)
        server.left[table.name[0]] = [fault] * 9
        report = quick(table, tmp_path, tries=2)
        assert report.missing.name.tolist() == [table.name[0]] and report.missing.status.tolist() == ["failed"]
        assert says in report.missing.reason.iloc[0] and says in repr(report)
        assert server.count(table.name[0]) == 2
    assert not (tmp_path / table.name[0]).exists()
    assert_whole(tmp_path)


@pytest.mark.parametrize("fault", ALWAYS)
def test_what_the_archive_lacks_is_asked_for_once(fault, tmp_path):
    with FaultServer() as server:
        table = table_of(server, 2)
        server.left[table.name[0]] = [fault]
        report = quick(table, tmp_path)
        assert report.missing.status.tolist() == ["missing"] and report.missing.reason.iloc[0].startswith(str(fault))
        assert server.count(table.name[0]) == 1


def test_a_slow_drip_ends_at_the_deadline(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 1)
        server.left[table.name[0]] = ["drip"]
        with pytest.raises(FetchError, match="not complete after 0.1 s"):
            get_url(table.url[0], tmp_path / "part", deadline=0.1)


def test_nobody_at_home_ends_soon(tmp_path):
    table = table_of(type("closed", (), dict(url="http://127.0.0.1:9"))(), 200)
    report = quick(table, tmp_path, tries=3)
    assert (report.missing.reason == "127.0.0.1:9 does not answer (cannot connect)").sum() >= 190 and len(report.missing) == 200
    assert set(report.missing.status) == {"failed"}


def test_a_host_that_has_delivered_is_waited_for_longer(tmp_path):
    "Eighty failures in a row: the end at once, but an outage after a good start"
    with FaultServer() as server:
        table = table_of(server, 50)
        server.left = {name: ["reset"] * 2 for name in table.name}
        report = quick(table, tmp_path / "never", tries=3)
        assert report.done.empty and report.missing.reason.str.contains("does not answer").all()
        server.left = {name: ["reset"] * 2 for name in table.name[10:]}
        report = quick(table, tmp_path / "before", tries=3, per_host=2)
    assert report.missing.empty, repr(report)


def test_a_broken_host_does_not_hold_up_another(tmp_path):
    with FaultServer() as server:
        good, bad = table_of(server, 20), table_of(type("closed", (), dict(url="http://127.0.0.1:9"))(), 20, "2013-01-01")
        report = quick(pd.concat([bad, good], ignore_index=True), tmp_path, tries=2)
        assert report.done.name.tolist() == good.name.tolist()


def test_hundreds_of_files_with_faults_equal_those_without(tmp_path):
    "The manifest and the files of a terrible run are those of a smooth one"
    kinds = [k for k in ONCE if "wait" not in str(k)] * 4 + ["429 and wait"]
    with FaultServer(chance(0.4, lost=0.03, kinds=kinds)) as server:
        table = table_of(server, 150)
        report = quick(table, tmp_path / "terrible", deadline=10, tries=8)
        assert set(report.table.status) == {"done", "missing"} and 1 <= len(report.missing) <= 12
        assert len(server.asked) > 190
        server.faults, server.left = chance(0, lost=0.03), {}
        smooth = quick(table, tmp_path / "smooth")
    assert smooth.missing.name.tolist() == report.missing.name.tolist()
    assert (tmp_path / "terrible/manifest.csv").read_bytes() == (tmp_path / "smooth/manifest.csv").read_bytes()
    assert_whole(tmp_path / "terrible")


PROGRAM = """
import sys, pandas as pd
from search_sdo.packager.fetch import fetch_files
table = pd.read_pickle(sys.argv[1])
fetch_files(table, sys.argv[2], timeout=0.6, connections=4, progress=False)
"""


def killed_after(n, *words, folder):
    "Start the program, kill it with SIGKILL when n files are there; how many there are then"
    running = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, words)], cwd=ROOT)
    while len(list(folder.glob("*.fits"))) < n:
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    return len(list(folder.glob("*.fits")))


def test_kill_minus_nine_twice(tmp_path):
    with FaultServer(chance(0.2, kinds=[500, "cut", "html", "reset"]), latency=0.02) as server:
        table = table_of(server, 200)
        table.to_pickle(tmp_path / "table")
        words = tmp_path / "table", tmp_path / "files"
        n = killed_after(40, *words, folder=tmp_path / "files")
        n = killed_after(n + 40, *words, folder=tmp_path / "files")
        assert n < 200
        before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "files").glob("*.fits")}
        server.asked.clear()
        assert subprocess.run([sys.executable, "-c", PROGRAM, *map(str, words)], cwd=ROOT).returncode == 0
        assert not {name for _, name in server.asked} & set(before), "a file that was there is fetched again"
        server.faults, server.left, server.latency = chance(0), {}, 0
        quick(table, tmp_path / "smooth")
    assert_whole(tmp_path / "files")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "files").glob("*.fits") if p.name in before} == before
    assert (tmp_path / "files/manifest.csv").read_bytes() == (tmp_path / "smooth/manifest.csv").read_bytes()
    assert (pd.read_csv(tmp_path / "files/manifest.csv").status == "done").all()


def test_a_second_call_asks_for_nothing(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 10)
        first = quick(table, tmp_path)
        manifest = (tmp_path / "manifest.csv").read_bytes()
        server.asked.clear()
        second = quick(table, tmp_path)
        assert server.asked == [] and (tmp_path / "manifest.csv").read_bytes() == manifest
    pd.testing.assert_frame_equal(first.table, second.table)


def test_only_what_was_lost_or_changed_is_fetched_again(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 6)
        quick(table, tmp_path)
        (tmp_path / table.name[0]).unlink()
        (tmp_path / table.name[1]).write_bytes(b"x" * len(fits_of(table.name[1])))
        os.truncate(tmp_path / table.name[2], 100)
        os.utime(tmp_path / table.name[3], (1, 1))  # touched, but the same
        server.asked.clear()
        assert quick(table, tmp_path).missing.empty
        assert sorted(name for _, name in server.asked) == sorted(table.name[:3])
    assert_whole(tmp_path)


def test_without_its_list_whole_files_are_kept(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 6)
        quick(table, tmp_path)
        manifest = (tmp_path / "manifest.csv").read_bytes()
        for path in tmp_path.glob("fetch.sqlite*"):
            path.unlink()
        os.truncate(tmp_path / table.name[2], 3000)
        server.asked.clear()
        quick(table, tmp_path)
        assert [name for _, name in server.asked] == [table.name[2]]
    assert (tmp_path / "manifest.csv").read_bytes() == manifest


def test_a_damaged_list_is_named_with_the_remedy(tmp_path):
    (tmp_path / "fetch.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match="fetch.sqlite: file is not a database. Delete it"):
        quick(table_of(type("s", (), dict(url="http://127.0.0.1:9"))(), 1), tmp_path)


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    held = fetch.open_jobs(tmp_path)
    with pytest.raises(OSError, match="database is locked. If another program fetches into this folder, wait for it"):
        fetch.open_jobs(tmp_path)
    held.close()
    fetch.open_jobs(tmp_path).close()


def test_a_folder_that_cannot_be_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with FaultServer() as server:
        for folder in (tmp_path / "file", tmp_path / "file/in"):
            with pytest.raises(OSError, match=f"{folder}: no folder to write to .*. Choose another one"):
                quick(table_of(server, 1), folder)


def test_a_list_that_cannot_be_opened_is_named_with_the_remedy(tmp_path):
    "As in a folder that is not ours; root may write anywhere, so something stands in the way"
    (tmp_path / "fetch.sqlite").mkdir()
    with FaultServer() as server, pytest.raises(OSError, match="fetch.sqlite: unable to open database file. .*choose another folder"):
        quick(table_of(server, 1), tmp_path)


def test_a_full_disk_under_the_list_is_said_and_undone(tmp_path):
    db = fetch.open_jobs(tmp_path)
    order = "INSERT INTO files (name, reason) VALUES (?, ?)"
    fetch.write(db, order, [("first", "")])
    db.execute("PRAGMA max_page_count = 6")
    with pytest.raises(OSError, match="fetch.sqlite: database or disk is full. What came is kept: make room, then fetch again"):
        fetch.write(db, order, [(f"{i}", "x" * 1000) for i in range(50)])
    fetch.write(db, order, [("second", "")])
    assert fetch.read_jobs(db).name.tolist() == ["first", "second"]
    db.close()


def test_a_table_grows_and_the_manifest_knows_all(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 9)
        quick(table[6:].reset_index(drop=True), tmp_path)
        report = quick(table[:6], tmp_path)
        assert len(report.table) == 6
    manifest = pd.read_csv(tmp_path / "manifest.csv")
    assert manifest.name.tolist() == table.name.tolist() and list(manifest) == fetch.MANIFEST
    assert manifest.sha256.tolist() == [sha256_of(n) for n in table.name]


def test_an_empty_table_is_no_trouble(tmp_path):
    with FaultServer() as server:
        report = quick(table_of(server, 1)[:0], tmp_path)
    assert len(report.table) == 0 and report.missing.empty and "0 of 0 files" in repr(report)


@pytest.mark.parametrize("name", ["../escape.fits", "a/b.fits", "", ".hidden", "/etc/passwd"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    with FaultServer() as server, pytest.raises(ValueError, match="not the name of a file"):
        quick(table_of(server, 1).assign(name=name), tmp_path / "in")


def test_a_table_that_is_none_is_named(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 3)
    with pytest.raises(ValueError, match="lacks the column url"):
        quick(table.drop(columns="url"), tmp_path)
    with pytest.raises(ValueError, match=f"{table.name[0]}.: there twice"):
        quick(pd.concat([table, table]), tmp_path)


def test_a_manifest_is_a_table(tmp_path):
    "Read with pandas, its times are text and its channels numbers"
    with FaultServer() as server:
        table = table_of(server, 3)
        quick(table, tmp_path / "a")
        report = quick(pd.read_csv(tmp_path / "a/manifest.csv"), tmp_path / "b")
    assert report.missing.empty and report.table.time.tolist() == table.time.tolist() and set(report.table.channel) == {"171"}
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()


def test_sizes_may_be_unknown(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 2)
        assert quick(table.drop(columns="bytes"), tmp_path).done.bytes.tolist() == [len(fits_of(n)) for n in table.name]


@pytest.mark.parametrize("times, says", [("noon", "table: not all of the column time are times"), (pd.NaT, "_aia_171.fits has no time; leave the row out"),
                                         (None, "_aia_171.fits has no time")])
def test_rows_without_a_time_are_named(times, says, tmp_path):
    with FaultServer() as server, pytest.raises(ValueError, match=says):
        quick(table_of(server, 2).assign(time=times), tmp_path)


@pytest.mark.parametrize("argument", ["connections", "per_host", "tries"])
def test_nothing_cannot_fetch(argument, tmp_path):
    with FaultServer() as server, pytest.raises(ValueError, match=f"{argument}=0: expected 1 or more"):
        quick(table_of(server, 1), tmp_path, **{argument: 0})


def test_no_more_lines_than_allowed(tmp_path):
    with FaultServer(latency=0.01) as server:
        quick(table_of(server, 60), tmp_path, connections=16, per_host=3)
        assert server.most_busy == 3


def test_429_makes_everybody_pause(tmp_path):
    with FaultServer(latency=0.01) as server:
        table = table_of(server, 60)
        server.left[table.name[10]] = ["429 and wait"]
        assert quick(table, tmp_path, per_host=4).missing.empty
        times = np.sort([t for t, _ in server.asked])
        assert np.diff(times).max() > 0.9, "nobody waited for the second that the server asked for"
        after = times[np.diff(times).argmax() + 1:]
        assert len(after) > 40


@pytest.mark.parametrize("text, seconds", [(None, 0), ("", 0), ("3", 3), ("0.5", 0.5), ("-4", 0), ("99999", download.MAX_WAIT), ("nan", 0), ("tomorrow", 0)])
def test_retry_after_in_seconds(text, seconds):
    assert retry_after(text) == seconds


def test_retry_after_as_a_date():
    soon = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 25 < retry_after(format_datetime(soon, usegmt=True)) <= 30
    assert 25 < retry_after(soon.strftime("%a, %d %b %Y %H:%M:%S -0000")) <= 30


def test_a_full_disk_stops_the_run(tmp_path):
    "It is no fault of one file: the user must hear of it, and nothing is marked as missing"
    def full(url, part):
        raise OSError(28, "No space left on device")
    with FaultServer() as server, pytest.raises(OSError, match="No space left"):
        quick(table_of(server, 5), tmp_path, get=full)
    assert set(pd.read_csv(tmp_path / "manifest.csv").status) == {"todo"}


def test_a_strange_server_is_a_failure_of_that_file(tmp_path):
    def strange(url, part):
        if "_010000_" in url:
            raise ValueError("unknown chunk")
        part.write_bytes(fits_of(url.rsplit("/")[-1]))
    with FaultServer() as server:
        report = quick(table_of(server, 3), tmp_path, get=strange, tries=2)
    assert report.missing.reason.tolist() == ["unknown chunk"]


def test_ctrl_c_keeps_what_came(tmp_path):
    program = PROGRAM.replace("fetch_files(table", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); fetch_files(table")
    with FaultServer(latency=0.02) as server:
        table = table_of(server, 300)
        table.to_pickle(tmp_path / "table")
        running = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "table"), str(tmp_path / "files")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while len(list((tmp_path / "files").glob("*.fits"))) < 30:
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate()
        assert running.returncode != 0 and error.rstrip().endswith("KeyboardInterrupt")
        manifest = pd.read_csv(tmp_path / "files/manifest.csv")
        assert set(manifest.status) == {"done", "todo"} and (manifest.status == "done").sum() >= 29
        assert quick(table, tmp_path / "files").missing.empty
    assert_whole(tmp_path / "files")


def test_ask_tries_again_and_then_names_the_url():
    with FaultServer({"list?day=1": [500, "reset", "429 and wait"], "gone": [404]}) as server:
        assert ask(f"{server.url}/list", dict(day=1)) == fits_of("list?day=1")
        assert server.count("list?day=1") == 4
        with pytest.raises(FetchError, match=f"{server.url}/gone: 404 Not Found") as error:
            ask(f"{server.url}/gone")
        assert error.value.again is False


def test_an_estimate_counts_only_what_is_not_there(tmp_path):
    with FaultServer() as server:
        table = table_of(server, 10)
    table.loc[3, "bytes"] = np.nan
    whole = estimate(table)
    assert whole.files == 10 and whole.bytes == pytest.approx(10 * 20e3)
    (tmp_path / table.name[0]).write_bytes(b"x")
    assert estimate(table, tmp_path).files == 9 and "9 files" in repr(estimate(table, tmp_path))
    assert estimate(table[:0], tmp_path).files == estimate(table[:0]).files == 0


@pytest.mark.parametrize("seconds, says", [(0.2, "and 1 s)"), (59, "and 59 s)"), (150, "and 2 min)"), (7200, "and 2 h)"), (4e5, "and 5 days)")])
def test_an_estimate_speaks_of_time_in_words(seconds, says):
    assert f"({fetch.Estimate(1, 1e6, seconds)})".endswith(says)


# what is accepted

def made(path, *units):
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(path)
    return path.read_bytes()


@pytest.fixture
def shapes(tmp_path):
    image = np.arange(5000, dtype=np.float32).reshape(50, 100)
    (tmp_path / "image.fits").write_bytes(fits_of("image.fits"))
    made(tmp_path / "rice.fits", fits.CompImageHDU(image.astype(np.int16), compression_type="RICE_1"))
    made(tmp_path / "several.fits", fits.ImageHDU(image), fits.BinTableHDU.from_columns([fits.Column("x", "PJ()", array=np.array([[1, 2], [3]], dtype=object))]), fits.ImageHDU(image[0]))
    return sorted(tmp_path.glob("*.fits"))


def test_whole_fits_files_of_all_kinds_pass(shapes):
    for path in shapes:
        looks_right(path)


def test_fits_files_cut_anywhere_are_noticed(shapes, tmp_path):
    rng = np.random.default_rng(0)
    for path in shapes:
        whole = path.read_bytes()
        data_ends = len(whole.rstrip(b"\0"))
        for n in rng.integers(1, data_ends - 1, 60):
            with fits.open(path) as units:
                ends = {u.fileinfo()["datLoc"] + u.fileinfo()["datSpan"] for u in units if u.fileinfo()["datSpan"]}
            if any(end - 2880 < n <= end for end in ends):  # only padding, or the file ends between two units
                continue
            (tmp_path / "cut").write_bytes(whole[:n])
            with pytest.raises(ValueError):
                looks_right(tmp_path / "cut", path.name)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", b"  <HTML>", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
                                     b"SIMPLE  =", b"SIMPLE  =" + b" " * 5000, b"XTENSION" * 1000, bytes(range(256)) * 40,
                                     "SIMPLE  =                    T".ljust(80).encode() + b"NAXIS   =                    2".ljust(80) + b"END".ljust(2720),
                                     "SIMPLE  =                    T".ljust(80).encode() + b"NAXIS   =                  two".ljust(80) + b"END".ljust(2720),
                                     "SIMPLE  =                    T".ljust(80).encode() + b"BITPIX  = 8".ljust(80) + b"NAXIS   = 0".ljust(80) + b"END".ljust(2640)])
def test_what_is_no_fits_file_is_refused(content, tmp_path):
    (tmp_path / "a.fits").write_bytes(content)
    with pytest.raises(ValueError) as error:
        looks_right(tmp_path / "a.fits")
    assert str(error.value)


def test_mutated_headers_neither_crash_nor_hang(shapes, tmp_path):
    "A file is accepted or refused with ValueError, whatever the bytes"
    rng = np.random.default_rng(1)
    refused = 0
    for i in range(600):
        whole = bytearray(shapes[i % len(shapes)].read_bytes())
        cards = [j for j in range(0, min(len(whole), 9000), 80) if whole[j:j + 6] in (b"NAXIS ", b"NAXIS1", b"NAXIS2", b"BITPIX", b"PCOUNT", b"GCOUNT", b"SIMPLE", b"XTENSI")]
        j = rng.choice(cards)
        if i % 2:
            whole[j + 10:j + 30] = str(rng.choice([-1, -2880, 0, 1, 7, 10 ** 9, 10 ** 18, "T", "1.5", "nan", ""])).rjust(20).encode()
        else:
            whole[j + rng.integers(80)] = rng.integers(256)
        (tmp_path / "mutant").write_bytes(whole)
        try:
            looks_right(tmp_path / "mutant", "a.fits")
        except ValueError as error:
            refused += bool(str(error))
    assert refused > 250


@pytest.mark.parametrize("name, kind", [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.jp2", "JPEG2000")])
def test_pictures_whole_cut_and_wrong(name, kind, tmp_path):
    from PIL import Image
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8)).save(path, kind)
    looks_right(path)
    whole = path.read_bytes()
    for bad in (whole[:len(whole) // 2], b"<html>no</html>", b"", fits_of("x"), whole[10:]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ValueError):
            looks_right(tmp_path / "bad", name)


@needs_data
def test_real_files_pass_and_real_halves_do_not(tmp_path):
    files = sorted(p for kind in ("fits/*.fits", "jp2/*.jp2", "aia171/*.jpg", "deepsdo/images/*1.jpg") for p in DATA.glob(kind))
    assert len(files) > 100
    for path in files:
        looks_right(path)
    for path in files[::9]:
        whole = path.read_bytes()
        (tmp_path / "half").write_bytes(whole[:len(whole) // 2])
        with pytest.raises(ValueError):
            looks_right(tmp_path / "half", path.name)


def test_the_manifest_names_the_server_that_delivered(tmp_path):
    with FaultServer() as server, FaultServer() as mirror:
        table, other = table_of(server, 3), table_of(mirror, 3)
        quick(table, tmp_path)
        (tmp_path / table.name[1]).unlink()
        quick(other, tmp_path)
    assert pd.read_csv(tmp_path / "manifest.csv").url.tolist() == [table.url[0], other.url[1], table.url[2]]
