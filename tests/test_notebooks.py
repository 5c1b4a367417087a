"""Every notebook runs from top to bottom, and leaves nothing behind."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS])
def test_notebook_runs(path):
    before = files(ROOT / "nbs")
    done = subprocess.run([Path(sys.executable).parent / "nbdev-test", "--n-workers", "0", "--verbose", path], cwd=ROOT,
                          env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{path.relative_to(ROOT)} failed\n{done.stdout}\n{done.stderr}", pytrace=False)
    assert files(ROOT / "nbs") == before, f"{path.name} left files beside the notebooks; use a temporary folder"
