"""The house: settings and packaging agree, imports are light, the wheel is whole."""
import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages

import search_sdo
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"torch", "sunpy", "astropy", "matplotlib", "lightning", "faiss", "sklearn", "pandas", "zarr", "PIL", "scipy", "xarray"}


def heavy_after(program):
    "The heavy packages that are loaded after running a program in a fresh interpreter"
    program += "\nimport sys\nprint('\\nLOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_heavy_packages_would_be_seen():
    assert "matplotlib" in heavy_after("import matplotlib")


def test_import_of_the_library_is_light():
    assert heavy_after("import search_sdo") == set()


def test_help_of_the_command_line_is_light():
    program = "import sys; sys.argv = ['search-sdo', '--help']\nfrom search_sdo.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert heavy_after(program) == set()


@pytest.mark.parametrize("module", ["search_sdo.course.mob", "search_sdo.course.session", "search_sdo.course.lessons", "search_sdo.course.export", "search_sdo.course.site"])
def test_the_courses_machinery_is_light(module):
    assert heavy_after(f"import {module}") == set()


def test_arrows_point_one_way():
    "packager <- models <- search; course stands apart; nothing below the roof imports it"
    allowed = dict(packager={"packager"}, models={"packager", "models"}, search={"packager", "models", "search"}, course={"course"})
    pattern = re.compile(r"^\s*(?:from|import) +(?:search_sdo|\.(?=\.)|\.\.)\.?(\w+)", re.M)
    for package, may in allowed.items():
        for path in sorted((ROOT / "search_sdo" / package).rglob("*.py")):
            used = set(pattern.findall(path.read_text())) & {"packager", "models", "search", "course", "cli", "demo"}
            assert used <= may, f"{path.relative_to(ROOT)} imports {sorted(used - may)}"


def test_settings_and_project_agree():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    course = settings["course"]
    assert course["lib_name"] == PROJECT["project"]["name"] == search_sdo.__name__
    assert course["nbs_path"] == PROJECT["tool"]["nbdev"].get("nbs_path", "nbs")
    assert course["branch"] == PROJECT["tool"]["nbdev"].get("branch", "main")
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in course


def test_every_sub_package_is_in_the_wheel():
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "search_sdo").rglob("*.py")}
    assert set(find_packages(ROOT, include=include)) == folders
    assert {"search_sdo.packager", "search_sdo.models", "search_sdo.search", "search_sdo.course"} <= folders


def test_runtime_dependencies_have_lower_bounds_only():
    for line in PROJECT["project"]["dependencies"]:
        assert [s.operator for s in Requirement(line).specifier] == [">="], line


def test_what_writes_the_exported_files_is_pinned():
    dev = {r.name: r.specifier for r in map(Requirement, PROJECT["project"]["optional-dependencies"]["dev"])}
    assert all([s.operator for s in dev[name]] == ["=="] for name in ("nbdev", "fastcore", "execnb"))


def test_the_library_needs_no_notebook_tools():
    "fastcore is for the checks in lessons, nbdev and execnb for making them; the library itself needs none of them"
    for path in sorted((ROOT / "search_sdo").rglob("*.py")):
        top = [line for line in path.read_text().splitlines() if re.match(r"(from|import) (fastcore|nbdev|execnb)\b", line)]
        assert top == [], path


@pytest.mark.parametrize("target", ["demo", "test", "lab", "sync", "lessons", "bench"])
def test_make_installs_before_it_runs(target, tmp_path):
    "On a fresh clone every target makes its environment first; once installed, it only runs"
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    run = lambda: subprocess.run(["make", "-n", target, f"VENV={tmp_path}/env"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    fresh = run()
    assert fresh.index("-m venv") < fresh.index("pip install") < fresh.rindex(f"{tmp_path}/env/bin/")
    (tmp_path / "env").mkdir()
    (tmp_path / "env/.installed").touch()
    assert "pip install" not in run()
    os.utime(tmp_path / "env/.installed", (0, 0))  # pyproject.toml is newer: install again
    assert "pip install" in run()


def test_make_says_which_python_it_needs(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.20" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTHON={old}", f"VENV={tmp_path}/env"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Python 3.8.20: expected Python 3.11 or newer" in done.stdout
    assert not (tmp_path / "env").exists()
