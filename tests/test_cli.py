"""The command line as a user meets it: every command on the small Sun, and every wrong input."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search_sdo.cli import main

COMMANDS = ["package", "train", "index", "search", "demo"]


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


def test_dates_are_kept_to(work):
    from search_sdo.packager.package import Package
    times = Package.open(work / "package").catalogue.time
    out = fine("search", work / "engine", 40, "-k", 99, "--after", times[3].isoformat(), "--before", times[5].isoformat())
    found = {line.split()[1] for line in out.splitlines()[1:-1]}
    assert found <= {f"{t:%Y-%m-%d}" for t in times[3:5]} and found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    assert f"Example: search-sdo {command}" in fine(command, "--help")


@pytest.mark.parametrize("words, says", [
    (["package", "nowhere", "out"], "nowhere: no such file or folder"),
    (["package", "synthetic:many", "out"], "synthetic:many: expected a number of frames, as in synthetic:24"),
    (["package", "synthetic:2", "out", "--size", "x"], "Invalid value for '--size'"),
    (["package", "synthetic:2", "out", "--size", "0"], "Invalid value for '--size'"),
    (["train", "nowhere", "--out", "e"], "nowhere/frames.parquet: missing, so nowhere is not a finished package. Build it with: search-sdo package"),
    (["train", "{work}/package", "--out", "e", "--method", "magic"], "method: 'magic' is not known; choose from simclr, simsiam"),
    (["train", "{work}/package", "--out", "e", "--tile", "300"], "size: tiles of 300 px do not fit frames of 128 px"),
    (["train", "{work}/package"], "Missing option '--out'. See: search-sdo train --help"),
    (["index", "{work}/package", "nowhere", "--out", "e"], "nowhere/encoder.json"),
    (["search", "nowhere", "3"], "nowhere/engine.json: missing"),
    (["search", "{work}/engine", "999999"], "tile 999999: no such tile"),
    (["search", "{work}/engine", "nowhere.png"], "nowhere.png: no such file"),
    (["search", "{work}/engine", "3", "--after", "yesterday-ish"], "after='yesterday-ish': not a date"),
    (["search", "{work}/engine", "3", "-k", "0"], "Invalid value for '-k'"),
    (["demo", "--frames", "nowhere", "--out", "d"], "nowhere"),
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
