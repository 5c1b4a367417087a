"""The site: pages from notebooks, the library's pages, and words that lead to the glossary. Sphinx itself runs in `make docs`."""
import importlib
import inspect
import json
import re
from types import FunctionType, MethodType

import pytest

from conftest import ROOT
from search_sdo.course import run, site
from search_sdo.course.lessons import read_settings


def cell(kind, source, **more):
    extra = dict(outputs=[], execution_count=None) if kind == "code" else {}
    return dict(cell_type=kind, id="abc", metadata={}, source=source) | extra | more


def test_a_notebook_is_run_and_its_pictures_are_kept(tmp_path):
    path = tmp_path / "a.ipynb"
    cells = [cell("code", "import matplotlib.pyplot as plt"), cell("code", "#| gpu\n1 / 0"), cell("code", "plt.plot([1, 2]);"), cell("code", "6 * 7")]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    cells = site.run_all([path], tmp_path, tmp_path / "cache")[path]["cells"]      # in a process of its own, as the site does
    assert "image/png" in cells[2]["outputs"][-1]["data"]
    assert "".join(cells[3]["outputs"][0]["data"]["text/plain"]) == "42"
    assert cells[1]["outputs"] == []


def test_a_notebook_that_fails_is_named(tmp_path):
    path = tmp_path / "broken.ipynb"
    path.write_text(json.dumps(dict(cells=[cell("code", "1 / 0")], metadata={}, nbformat=4, nbformat_minor=5)))
    with pytest.raises(RuntimeError, match="broken.ipynb: ZeroDivisionError"):
        run.run_notebook(path)


def test_what_was_run_is_kept_until_the_notebook_or_the_library_changes(tmp_path):
    library = tmp_path / "lib"
    library.mkdir()
    (library / "a.py").write_text("x = 1")
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(dict(cells=[cell("code", "import random; random.random()")], metadata={}, nbformat=4, nbformat_minor=5)))
    once, again = (site.run_all([path], library, tmp_path / "cache") for _ in range(2))
    assert once == again
    (library / "a.py").write_text("x = 2")
    assert site.run_all([path], library, tmp_path / "cache") != once
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1


def test_a_page_shows_no_bookkeeping_and_folds_the_answer():
    nb = dict(cells=[cell("code", "#| default_exp a"), cell("markdown", "# Title\nThe limb and the limb."), cell("code", "#| hide\nsecret()"),
                     cell("code", "#| export\n#| exercise: add\ndef f(a, b): return a + b", outputs=[dict(output_type="stream", name="stderr", text="50%")])])
    page = json.loads(site.page(nb, {"limb": "limb"}, {"search_sdo.a": ["f"]}))
    text = "\n".join(c["source"] for c in page["cells"])
    assert "secret" not in text and "#|" not in text and "default_exp" not in text
    assert text.count("[limb](#word-limb)") == 1 and "Your turn" in text and "[`f`](#search_sdo.a.f)" in text
    code = next(c for c in page["cells"] if c["cell_type"] == "code")
    assert code["metadata"]["tags"] == ["hide-input"] and code["outputs"] == []


def test_every_public_name_of_the_library_has_an_entry_and_a_birthplace():
    homes = {p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")}
    names = site.find_modules(ROOT / "search_sdo")
    assert {"search_sdo.packager.frame", "search_sdo.search.engine", "search_sdo.cli"} <= set(names)
    for module in names:
        text, born = site.module_page(module)
        code = __import__(module, fromlist=["x"])
        public = [n for n in code.__all__ if n != "log"]
        assert re.findall(rf"^\({re.escape(module)}\.(\w+)(?:-capital)?\)=$", text, re.M) == public, module
        own = {n for n in public if getattr(getattr(code, n), "__module__", module) == module}      # some are lent by another module
        assert set(born) <= homes and own <= set(sum(born.values(), [])), module


def test_every_word_of_the_glossary_is_there_once():
    places = site.read_glossary(ROOT / "docs/glossary.md")
    assert len(places) > 40 and places["tiles"] == places["tile"] == "tile-tiles"
    text = site.glossary_page((ROOT / "docs/glossary.md").read_text())
    labels = re.findall(r"^\((word-[\w-]+)\)=$", text, re.M)
    assert sorted(labels) == sorted({f"word-{place}" for place in places.values()}) and len(labels) == len(set(labels))


def test_every_notebook_has_a_page_and_lessons_keep_their_address():
    pages = site.find_notebooks(ROOT, read_settings(ROOT))
    assert len(set(pages.values())) == len(pages)
    assert pages[ROOT / "nbs/course/00_welcome.ipynb"] == "module1_sunflowers/00_welcome"
    assert (ROOT / f"{pages[ROOT / 'nbs/module3_sunbird/02_index.ipynb']}.ipynb").exists()


def undocumented(module):
    "Public functions, classes and methods of a module without a word about them"
    code = importlib.import_module(module)
    for name in code.__all__:
        symbol = getattr(code, name)
        if not (inspect.isfunction(symbol) or inspect.isclass(symbol)) or symbol.__module__ != module:
            continue
        if not inspect.getdoc(symbol) or inspect.isclass(symbol) and not symbol.__doc__:
            yield name
        for key in vars(symbol) if inspect.isclass(symbol) else ():
            method = getattr(symbol, key)
            if key[0] != "_" and isinstance(method, (FunctionType, MethodType, property)) and not inspect.getdoc(method):
                yield f"{name}.{key}"


def test_every_public_name_is_documented():
    missing = {module: found for module in site.find_modules(ROOT / "search_sdo") if (found := list(undocumented(module)))}
    assert not missing, "\n".join(f"{module}: no docstring for {', '.join(found)}" for module, found in missing.items())


def test_only_hand_written_pages_are_taken_from_docs(tmp_path):
    for name in ("index.md", "gallery/a.jpg", "conf.py", "_src/old.md", "jupyter_execute/nbs/a.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [p.as_posix() for p in site.by_hand(tmp_path)] == ["gallery/a.jpg", "index.md"]
