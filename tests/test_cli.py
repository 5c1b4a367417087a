"""The command line as a user meets it: every command on the small Sun, and every wrong input."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fault_server import FaultServer, fits_of
from search_sdo.cli import main
from search_sdo.packager import download, sources
from search_sdo.packager.synthetic import SmallSun

TWO_DAYS = ["--start", "2012-01-01", "--end", "2012-01-03", "--to", "x"]

COMMANDS = ["fetch", "gaps", "package", "verify", "train", "sweep", "index", "search", "app", "serve", "pack", "unpack", "push", "demo"]


def run(*words, cwd=None):
    "A finished `search-sdo` process, started as a user would"
    program = Path(sys.executable).parent / "search-sdo"
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=os.environ | {"MPLBACKEND": "agg"})


def fine(*words):
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "A folder in which package, train and index have run"
    folder = tmp_path_factory.mktemp("cli")
    out = fine("package", "synthetic:6", folder / "package", "--size", 128)
    assert f"Packaged 6 frames of 128 px in {folder / 'package'}" in out
    out = fine("train", folder / "package", "--out", folder / "encoder", "--epochs", 1, "--tile", 16, "--method", "simsiam")
    assert f"in {folder / 'encoder'}" in out and "lightning" not in out.lower()
    out = fine("index", folder / "package", folder / "encoder", "--out", folder / "engine")
    assert "Indexed SearchEngine(" in out and out.rstrip().endswith(f"in {folder / 'engine'}")
    return folder


def test_train_leaves_curves_and_settings(work):
    names = {p.name for p in (work / "encoder").iterdir()}
    assert {"encoder.json", "weights.safetensors", "metrics.csv", "training.png", "run.json"} <= names
    assert {"loss", "collapse_level", "effective_rank"} <= set((work / "encoder/metrics.csv").read_text().splitlines()[0].split(","))


def test_search_by_tile_saves_what_it_found(work):
    out = fine("search", work / "engine", 40, "-k", 3, "--save", work / "hits")
    assert "Found 3 places like 40" in out and f"Saved table and pictures in {work / 'hits'}" in out
    assert (work / "hits/hits.csv").is_file() and (work / "hits/hits.png").is_file()


def test_search_by_picture_and_by_box(work):
    from search_sdo.packager.package import Package
    package = Package.open(work / "package")
    package.frame(2).to_map().save(work / "20140111_000000_aia_171.fits", overwrite=True)
    out = fine("search", work / "engine", work / "20140111_000000_aia_171.fits", "--box", 40, 40, 60, 60, "-k", 2)
    assert "Found 2 places" in out
    from matplotlib.image import imsave
    imsave(work / "piece.png", package.read(2, 40, 40, 20), cmap="gray")
    assert "Found 2 places like" in fine("search", work / "engine", work / "piece.png", "-k", 2)


def test_search_with_conditions_and_what_is_not_wanted(work):
    out = fine("search", work / "engine", 40, "-k", 4, "--unlike", 3, "--unlike", 9, "--where", "mu > .2", "--apart", "1h")
    assert "places like 40" in out
    assert "ask for less" in fine("search", work / "engine", 40, "--where", "mu > 2")


def test_an_engine_grows_when_it_is_indexed_again(work, tmp_path):
    fine("package", "synthetic:4", tmp_path / "p", "--size", 128)
    fine("index", tmp_path / "p", work / "encoder", "--out", tmp_path / "e", "--scales", "1,2")
    fine("package", "synthetic:6", tmp_path / "p", "--size", 128)
    out = fine("index", tmp_path / "p", work / "encoder", "--out", tmp_path / "e", "--scales", "1,2")
    assert "in 6 frames" in out
    assert "4 frames" not in out


def test_an_engine_travels_as_one_file(work, tmp_path):
    out = fine("pack", work / "engine", tmp_path / "engine.tar", "--frames")
    assert "Packed" in out and "MB)" in out
    fine("unpack", tmp_path / "engine.tar", tmp_path / "there")
    assert "Found 3 places like 40" in fine("search", tmp_path / "there", 40, "-k", 3)
    again = run("unpack", tmp_path / "engine.tar", tmp_path / "there")
    assert again.returncode == 2 and "not empty; choose another folder" in again.stderr


def test_verify_says_what_is_wrong_and_how_to_repair_it(tmp_path):
    from search_sdo.packager.package import Package, shard_file
    fine("package", "synthetic:4", tmp_path / "p", "--size", 128, "--workers", 1)
    assert "Checked 4 frames" in fine("verify", tmp_path / "p", "--sheet", tmp_path / "worst.png") and (tmp_path / "worst.png").stat().st_size > 10_000
    shard_file(tmp_path / "p/frames.zarr", 2).write_bytes(b"no frame")
    done = run("verify", tmp_path / "p", "--repair")
    assert done.returncode == 1 and "frame 2: " in done.stdout and "changed since it was written" in done.stdout and "again" in done.stdout
    fine("package", "synthetic:4", tmp_path / "p", "--size", 128)
    assert "all is well" in fine("verify", tmp_path / "p") and len(Package.open(tmp_path / "p")) == 4


def test_dates_are_kept_to(work):
    from search_sdo.packager.package import Package
    times = Package.open(work / "package").catalogue.time
    out = fine("search", work / "engine", 40, "-k", 99, "--after", times[3].isoformat(), "--before", times[5].isoformat())
    found = {line.split()[1] for line in out.splitlines()[1:-1]}
    assert found <= {f"{t:%Y-%m-%d}" for t in times[3:5]} and found


def test_from_an_archive_to_a_package_and_its_gaps(tmp_path, capsys):
    "fetch from a folder, gaps of the files, package, gaps of the package"
    for frame in SmallSun().frames(4, "2014-01-01", "1D", 64):
        (tmp_path / "old").mkdir(exist_ok=True)
        frame.to_map().save(tmp_path / f"old/{frame.time:%Y%m%d_%H%M%S}_aia_171.fits")
    (tmp_path / "old/20140103_000000_aia_171.fits").unlink()
    wish = "fetch", tmp_path / "old", "--start", "2014-01-01", "--end", "2014-01-05", "--to", tmp_path / "new"
    def out(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(w) for w in words])
        assert stop.value.code == 0
        return capsys.readouterr().out
    assert "3 files, about 0 MB" in out(*wish, "--dry-run") and not (tmp_path / "new").exists()
    assert f"Fetched 3 of 3 files (0.1 MB) into {tmp_path / 'new'}" in fine(*wish)
    said = out("gaps", tmp_path / "new", "--cadence", "1d", "--save", tmp_path / "gaps.png")
    assert "171: 1 missing from 2014-01-03 00:00:00" in said and "Found 1 gaps in" in said and (tmp_path / "gaps.png").stat().st_size > 5000
    out("package", tmp_path / "new", tmp_path / "package", "--size", 64)
    assert "171: 1 missing from 2014-01-03 00:00:00" in out("gaps", tmp_path / "package", "--cadence", "1d")


def test_gaps_says_how_many_channels_belong_together(tmp_path, capsys):
    for name in ("20140101_000000_aia_171", "20140102_000000_aia_171", "20140101_000400_aia_193"):
        (tmp_path / f"{name}.fits").write_bytes(fits_of(name))
    for words, says in ((), "All channels within 6min: 1 of 2 times"), (("--tolerance", "3min"), "All channels within 3min: 0 of 2 times"):
        with pytest.raises(SystemExit) as stop:
            main(["gaps", str(tmp_path), *words])
        assert stop.value.code == 0 and says in capsys.readouterr().out


@pytest.fixture
def archive(monkeypatch):
    "A local archive in place of JSOC and its mirror, and no patience"
    monkeypatch.setattr(download, "back_off", lambda n: 0.02 * n)
    with FaultServer() as server:
        monkeypatch.setitem(sources.PATTERNS, "synoptic", (server.url, *sources.PATTERNS["synoptic"][1:]))
        monkeypatch.setattr(sources, "MIRROR", server.url + "/mirror")
        yield server


def test_what_did_not_come_is_said_and_the_exit_code_tells(archive, tmp_path, capsys):
    archive.left |= {"AIA20120102_0000_0171.fits": [404], "AIA20120103_0000_0171.fits": [500] * 6}
    words = ["fetch", "synoptic", "--start", "2012-01-01", "--end", "2012-01-06", "--to", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    out = capsys.readouterr().out
    assert stop.value.code == 1 and "Fetched 3 of 5 files" in out and "Run the same command again to try 1 of them once more" in out
    assert "missing: 20120102_000000_aia_171.fits: 404 Not Found" in out and "20120103_000000_aia_171.fits: 500 Internal Server Error" in out
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0 and "Fetched 4 of 5 files" in capsys.readouterr().out


def test_if_nothing_came_the_exit_code_tells(archive, tmp_path, capsys):
    archive.left |= {f"AIA2012010{day}_0000_0171.fits": [404] for day in (1, 2)}
    with pytest.raises(SystemExit) as stop:
        main(["fetch", "synoptic", *TWO_DAYS[:4], "--to", str(tmp_path)])
    assert stop.value.code == 1 and "Fetched 0 of 2 files" in capsys.readouterr().out


def test_several_sources_are_a_chain(archive, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/20120102_000000_aia_171.fits").write_bytes(fits_of("x"))
    with pytest.raises(SystemExit) as stop:
        main(["fetch", f"{tmp_path / 'old'},synoptic", "--start", "2012-01-01", "--end", "2012-01-04", "--to", str(tmp_path / "new")])
    assert stop.value.code == 0 and f"from synoptic (2), {tmp_path / 'old'} (1)" in capsys.readouterr().out


def test_ctrl_c_is_one_line_and_keeps_what_came(tmp_path):
    with FaultServer(latency=0.03) as server:
        words = "fetch", "synoptic", "--base", server.url, "--start", "2012-01-01", "--end", "2013-06-01", "--to", tmp_path
        running = subprocess.Popen([Path(sys.executable).parent / "search-sdo", *map(str, words)], stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        while len(list(tmp_path.glob("*.fits"))) < 20:
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate()
    assert running.returncode == 130 and "Traceback" not in error and "search-sdo: stopped. What was done is kept" in error
    assert len(list(tmp_path.glob("*.fits"))) >= 20 and (tmp_path / "manifest.csv").is_file()


def test_a_missing_extra_is_one_line(monkeypatch, tmp_path, capsys):
    def lacking(*words, **options):
        raise ImportError('drms is needed here; pip install "search_sdo[sources]"')
    monkeypatch.setattr(sources, "get_source", lacking)
    with pytest.raises(SystemExit) as stop:
        main(["fetch", "jsoc", *TWO_DAYS])
    assert stop.value.code == 2 and capsys.readouterr().err == 'search-sdo: drms is needed here; pip install "search_sdo[sources]"\n'


def test_demo_real_fetches_keeps_and_runs(archive, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("search_sdo.demo.run_demo", lambda frames, out: seen.append((frames, out)) or out / "report.html")
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["demo", "--real", "--out", str(tmp_path)])
        assert stop.value.code == 0 and f"Report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert seen == [(tmp_path / "frames", tmp_path)] * 2
    names = sorted(p.name for p in (tmp_path / "frames").glob("*.fits"))
    assert len(names) == 60 == len(archive.asked) and names[0].startswith("20100601_") and names[-1].startswith("2015")


def test_demo_real_without_a_network_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(download, "back_off", lambda n: 0.02)
    monkeypatch.setitem(sources.PATTERNS, "synoptic", ("http://127.0.0.1:9", *sources.PATTERNS["synoptic"][1:]))
    monkeypatch.setattr(sources, "MIRROR", "http://127.0.0.1:9/mirror")
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--real", "--out", str(tmp_path)])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("search-sdo: ")]
    assert stop.value.code == 2 and len(error) == 1
    assert "no real frames: 127.0.0.1:9 does not answer (cannot connect). Without a network run: search-sdo demo; with frames of your own: search-sdo demo --frames FOLDER" in error[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    assert f"Example: search-sdo {command}" in fine(command, "--help")


@pytest.mark.parametrize("words, says", [
    (["package", "nowhere", "out"], "nowhere: no such file or folder"),
    (["package", "synthetic:many", "out"], "synthetic:many: expected a number of frames, as in synthetic:24"),
    (["package", "synthetic:2", "out", "--size", "x"], "Invalid value for '--size'"),
    (["package", "synthetic:2", "out", "--size", "0"], "Invalid value for '--size'"),
    (["package", "synthetic:2", "out", "--response", "nowhere.txt"], "nowhere.txt: no such response table"),
    (["package", "synthetic:2", "out", "--pointing", "{work}/package/README.md"], "not a pointing table"),
    (["verify", "nowhere"], "nowhere/frames.parquet: missing"),
    (["train", "nowhere", "--out", "e"], "nowhere/frames.parquet: missing, so nowhere is not a finished package. Build it with: search-sdo package"),
    (["train", "{work}/package", "--out", "e", "--method", "magic"], "method: 'magic' is not known; choose from simclr, dcl, simsiam, byol, vicreg, barlow"),
    (["train", "{work}/package", "--out", "e", "--tile", "300"], "size: tiles of 300 px do not fit frames of 128 px"),
    (["train", "{work}/package"], "Missing option '--out'. See: search-sdo train --help"),
    (["index", "{work}/package", "nowhere", "--out", "e"], "nowhere: missing; neither a folder nor an encoder that comes with search_sdo (aia171, "),
    (["index", "{work}/package", "{work}/encoder", "--out", "e", "--scales", "1;2"], "--scales 1;2: expected whole numbers with commas between"),
    (["index", "{work}/package", "{work}/encoder", "--out", "e", "--kind", "magic"], "magic"),
    (["search", "nowhere", "3"], "nowhere/engine.json: missing"),
    (["search", "{work}/engine", "3", "--where", "import os"], "where"),
    (["search", "{work}/engine", "3", "--unlike", "nowhere.png"], "nowhere.png: no such file"),
    (["app", "nowhere"], "nowhere/engine.json: missing"),
    (["serve", "nowhere"], "nowhere/engine.json: missing"),
    (["pack", "nowhere", "e.tar"], "nowhere"),
    (["unpack", "nowhere.tar", "e"], "nowhere.tar: no such archive"),
    (["search", "{work}/engine", "999999"], "tile 999999: no such tile"),
    (["search", "{work}/engine", "nowhere.png"], "nowhere.png: no such file"),
    (["search", "{work}/engine", "3", "--after", "yesterday-ish"], "after='yesterday-ish': not a date"),
    (["search", "{work}/engine", "3", "-k", "0"], "Invalid value for '-k'"),
    (["demo", "--frames", "nowhere", "--out", "d"], "nowhere"),
    (["demo", "--frames", "nowhere", "--real"], "--real and --frames: two kinds of frames"),
    (["fetch", "stanford", *TWO_DAYS], "source 'stanford': neither a folder nor one of synoptic, jsoc, vso"),
    (["fetch", "synoptic", "--start", "2012-02-30", "--end", "2012-03-01", "--to", "x"], "start='2012-02-30': not a date"),
    (["fetch", "synoptic", "--start", "2012-03-01", "--end", "2012-02-01", "--to", "x"], "not after start"),
    (["fetch", "synoptic", "--start", "01/02/2012", "--end", "2012-03-01", "--to", "x"], "start='01/02/2012': not a date"),
    (["fetch", "synoptic", *TWO_DAYS, "--base", "localhost"], "base='localhost': not an address; expected one as in http://localhost:8000"),
    (["fetch", "synoptic,helioviewer", *TWO_DAYS, "--base", "http://localhost"], "base: one server for synoptic and helioviewer"),
    (["fetch", "synoptic", *TWO_DAYS[:4], "--to", "{work}/package/README.md"], "README.md: no folder to write to (File exists). Choose another one"),
    (["fetch", "synoptic", *TWO_DAYS, "--cadence", "daily"], "cadence='daily': not a span of time"),
    (["fetch", "synoptic", *TWO_DAYS, "--channels", "171,hmi_m"], "channel 'hmi_m': not in synoptic"),
    (["fetch", "synoptic", *TWO_DAYS, "--connections", "0"], "Invalid value for '--connections'"),
    (["fetch", "synoptic", "--start", "2001-01-01", "--end", "2002-01-01", "--to", "x"], "synoptic: has nothing of 171 from 2001-01-01 to 2002-01-01"),
    (["fetch", "synoptic", "--end", "2012-03-01", "--to", "x"], "Missing option '--start'"),
    (["gaps", "nowhere"], "nowhere: no such folder"),
    (["gaps", "."], ".: no pictures in it"),
    (["gaps", "{work}/package", "--cadence", "often"], "cadence='often': not a span of time"),
    (["gaps", "{work}/package", "--save", "gaps.txt"], "txt"),
    (["nonsense"], "No such command 'nonsense'")])
def test_wrong_input_is_one_line_and_code_2(words, says, work, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([w.format(work=work) for w in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("search-sdo: ")]
    assert len(lines) == 1 and says in lines[0], error


def test_wrong_input_from_a_terminal():
    done = run("package", "nowhere", "out")
    assert done.returncode == 2 and done.stderr == "search-sdo: nowhere: no such file or folder\n"


def test_debug_shows_the_traceback():
    done = run("package", "nowhere", "out", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr and "FileNotFoundError" in done.stderr


def test_training_too_short_says_so(work):
    done = run("train", work / "package", "--out", work / "short", "--epochs", 1, "--tile", 64)
    assert done.returncode == 0 and "train longer: more epochs or more frames" in done.stderr
