"""The library, the lessons and the notebooks are in step, and making them twice gives the same bytes."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search_sdo.course.lessons import modules, read_settings

HINT = "run `make sync` and commit nbs/, search_sdo/ and the module folders together"


def snapshot(root):
    "Every generated file, and every notebook: path -> bytes"
    folders = ["search_sdo", "nbs", *modules(read_settings(root))]
    files = [p for f in folders for p in (root / f).rglob("*") if p.is_file()]
    files = [p for p in files if "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in [*files, root / "pyproject.toml"]}


def sync(root):
    "What `make sync` does"
    env = os.environ | {"PYTHONPATH": str(root)}
    scripts = Path(sys.executable).parent
    for command in ([scripts / "nbdev-export"], [scripts / "nbdev-clean"], [sys.executable, "-m", "search_sdo.course.lessons"]):
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def synced(root, tmp_path_factory):
    "Snapshots of a copy of the repository from which all that is generated was removed: after one sync, and after two"
    copy = tmp_path_factory.mktemp("copy")
    made = modules(read_settings(root))
    for name in ("nbs", "search_sdo"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(root / name, copy / name)
    shutil.copytree(root / "docs", copy / "docs", ignore=shutil.ignore_patterns("_src", "_build", "_cache"))   # the glossary and small pictures
    keep = {copy / "search_sdo/__init__.py", copy / "search_sdo/course/export.py"}  # nbdev itself imports the latter
    for path in (copy / "search_sdo").rglob("*.py"):
        if path not in keep:
            path.unlink()
    for name in made:
        (copy / name).mkdir()
        (copy / name / "left_over.ipynb").write_text("{}")
    sync(copy)
    once = snapshot(copy)
    sync(copy)
    return once, snapshot(copy)


def test_committed_files_are_what_sync_makes(root, synced):
    here, made = snapshot(root), synced[0]
    assert sorted(here.keys() - made.keys()) == [], f"files that nothing makes: remove them, or {HINT}"
    assert sorted(made.keys() - here.keys()) == [], HINT
    assert [p for p in made if here[p] != made[p]] == [], HINT


def test_sync_is_deterministic(synced):
    once, twice = synced
    assert once.keys() == twice.keys()
    assert [p for p in once if once[p] != twice[p]] == []


def test_sync_removes_lessons_without_a_notebook(synced):
    assert not [p for p in synced[0] if "left_over" in p]
