"""The pages that people copy from, README.md and docs/*.md: their code runs as it stands (on a smaller Sun), their commands
are commands, their files are there."""
import re
import shlex

import pytest

from conftest import ROOT
from search_sdo.packager.synthetic import SmallSun

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
SMALLER = {"size=1024": "size=256", '"encoder", method="simclr", epochs=20': '"encoder", method="simclr", steps=3', '"encoder", method="simclr")': '"encoder", method="simclr", steps=3)',
           "(1200, 800, 1328, 928)": "(100, 80, 132, 112)", "4711": "47"}


def code_of(name, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def frames(tmp_path, monkeypatch):
    "A working folder with some frames, as a reader would have it"
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in SmallSun(seed=0).frames(12, start="2013-06-01"):
        frame.to_map().save(folder / f"{frame.time:%Y%m%d_%H%M%S}_aia_171.fits")
    next(iter(sorted(folder.iterdir()))).rename(tmp_path / "flare.fits")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "docs/five_minutes.md", "docs/mob.md"])
def test_the_code_of_a_page_runs(name, frames):
    import matplotlib
    matplotlib.use("agg")
    known = {}
    for block in code_of(name):
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, name, "exec"), known)
    if "hits" in known:
        assert len(known["hits"].table)


def commands_of(text):
    "Every line of a page that calls search-sdo"
    return [line.split("  #")[0].strip() for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines() if line.startswith("search-sdo ")]


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p.read_text(encoding="utf-8"))], ids=lambda p: p.name)
def test_the_commands_of_a_page_are_commands(page):
    from typer.testing import CliRunner
    from search_sdo.cli import app
    for command in commands_of(page.read_text(encoding="utf-8")):
        words = shlex.split(command)[1:]
        known = CliRunner().invoke(app, [words[0], "--help"], env=dict(COLUMNS="200", TERM="dumb")).output
        assert "Usage" in known, command
        missing = [w for w in words if w.startswith("--") and w not in known]
        assert not missing, f"{page.name}: {command}: no option {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_links_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    targets = re.findall(r"make (\w+)", " ".join(re.findall(r"`(make [^`]*)`", text)))
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(targets) <= set(rules), f"{page.name}: {set(targets) - set(rules)} is no target of the Makefile"
