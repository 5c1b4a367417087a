"""The learner's copy: what is kept, what goes, and that every generated lesson is a valid notebook."""
import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from search_sdo.course.lessons import (
    end_of_checks, make_files, make_lesson, modules, new_cell, plan, read_settings, stub, write_files)
from conftest import ROOT

SETTINGS = read_settings(ROOT)
PLAN = [(path, dest) for lessons in plan(ROOT, SETTINGS).values() for path, dest in lessons]
LESSONS = [dest for _, dest in PLAN]
RECAPS = [f"{folder}/recap/{name}" for folder, name in (dest.split("/") for dest in LESSONS)]


def code(source):
    "Python of a cell, without IPython's magics"
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


# --- stubs -----------------------------------------------------------------------------------------------------------

def test_stub_keeps_signature_comments_decorators_and_docstring():
    source = '''@decorated(1)
def f(x,           # [N, D] points
      n: int = 3,  # how many, "quoted"
     ) -> list:    # of N
    """Doc with

    an empty line"""
    # a comment that gives it away
    def inner(): return 1
    return [inner()] * n'''
    made = stub(source, 'say "ä"')
    assert made == '\n'.join(source.splitlines()[:7] + ['    raise NotImplementedError("Your turn: say \\"ä\\"")'])
    compile(made, "stub", "exec")


def test_stub_of_a_class_keeps_all_but_its_last_method():
    source = '''class A(Base):
    "Doc"
    n = 1

    def f(self, x=")"): return ":" + x

    async def g(self):
        "Doc"
        return 2

    m = 2'''
    made = stub(source, "go")
    tree = ast.parse(made).body[0]
    methods = [n for n in tree.body if hasattr(n, "args")]
    assert [ast.unparse(m.body[-1]) for m in methods] == ["return ':' + x", "raise NotImplementedError('Your turn: go')"]
    assert [len(m.body) for m in methods] == [1, 2]
    assert "m = 2" in made and "n = 1" in made and "return 2" not in made


def test_stub_with_wide_characters_before_a_one_line_body():
    made = stub('def f(x="äöü☀"): return x\ny = 1', "go")
    assert made == 'def f(x="äöü☀"):\n    raise NotImplementedError("Your turn: go")\ny = 1'


def test_stubbed_function_raises_with_the_task():
    names = {}
    exec(stub("def f():\n    return 1", "count to one"), names)
    with pytest.raises(NotImplementedError, match="Your turn: count to one"):
        names["f"]()


def test_exercise_without_a_function_is_refused():
    with pytest.raises(ValueError, match="needs a function"):
        stub("x = 1", "go")


# --- where the answer goes -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sources, after", [
    ((), 1),
    (("assert f()",), 2),
    (("f()", "assert f()", "assert f(2)", "plot()"), 4),
    (("> Look first", "test_eq(f(), 1)", "Now a picture", "plot()"), 3),
    (("## Turn 2", "assert g()"), 1),
    (("plot()",), 1),
    (("> Look first", "plot()", "> And again", "assert f()"), 1),
])
def test_answer_stands_after_the_checks(sources, after):
    kind = lambda s: "markdown" if s[0] in "#>N" else "code"
    cells = [new_cell("code", "def f(): pass", 0)] + [new_cell(kind(s), s, i) for i, s in enumerate(sources, 1)]
    assert end_of_checks(cells, 0) == after


# --- one notebook, made for the test ---------------------------------------------------------------------------------

AUTHORED = [
    ("markdown", "# The Sun\n\n> A function"),
    ("code", '#| colab\n%pip install -q "search_sdo @ git+https://github.com/somebody/else@dev"'),
    ("code", "#| default_exp packager.sun\n#| also_exp packager.moon The Moon"),
    ("code", "#| hide\nimport secrets"),
    ("code", "#| export\nimport math"),
    ("markdown", "## Turn 1 · Light (25 minutes, rotate twice)"),
    ("code", "#| export\n#| exercise: halve it\ndef mu(r,  # [N]\n      ):\n    return r / 2"),
    ("code", "assert mu(2) == 1"),
    ("markdown", "## Turn 2 · More light (15 minutes)"),
    ("code", "#| exporti packager.moon\n#| exercise: nothing\ndef _moon(): return 0"),
    ("code", "#| gpu\nmu(2)"),
    ("markdown", "## Retrospective\n- What stands out?\n- Who was silent?"),
    ("markdown", "The end"),
]


def authored(path, cells=AUTHORED):
    "Write a notebook with outputs, as somebody might leave it"
    nb = nbformat.v4.new_notebook(metadata=dict(accelerator="GPU", colab=dict(gpuType="T4"), widgets=dict(x=1)))
    for i, (kind, source) in enumerate(cells):
        cell = nbformat.v4.new_markdown_cell(source) if kind == "markdown" else nbformat.v4.new_code_cell(
            source, execution_count=7, outputs=[nbformat.v4.new_output("stream", text="out")])
        cell.id = f"cell{i:04d}"
        nb.cells.append(cell)
    nbformat.write(nb, path)
    return path


def copies(path, dest="module1_sunflowers/01_sun.ipynb", settings=SETTINGS, **given):
    "The lesson, its recap, and what is said about it"
    made, about = make_lesson(path, dest, settings, done=4, **given)
    return nbformat.reads(made[dest], as_version=4), nbformat.reads(made[about["recap"]], as_version=4), about


@pytest.fixture
def lesson(tmp_path):
    nb, _, about = copies(authored(tmp_path / "01_sun.ipynb"))
    return nb, about


def test_lesson_cells_in_order(lesson):
    sources = [c.source for c in lesson[0].cells]
    expected = ["[![Open In Colab]", "# The Sun", "%pip install", "from search_sdo.course.mob import Rota", "import math",
                "## Turn 1", "def mu", "# Fails? Read Turn 1 again\nassert mu", "<details>", "from search_sdo.packager.sun import mu", "## Turn 2",
                "def _moon", "<details>", "from search_sdo.packager.moon import _moon", "# needs a GPU", "## Retrospective", "from search_sdo.course.session import Retrospective", "The end"]
    assert [s[:len(e)] for s, e in zip(sources, expected)] == expected and len(sources) == len(expected)


def test_lesson_carries_no_directive_output_or_foreign_metadata(lesson):
    nb = lesson[0]
    assert not [c.source for c in nb.cells if re.search(r"^#\|", c.source, re.M)]
    assert not [c.source for c in nb.cells if c.get("outputs") or c.get("execution_count")]
    assert nb.metadata == dict(accelerator="GPU", colab=dict(gpuType="T4"))


def test_answer_is_the_authored_function(lesson):
    folded = next(c.source for c in lesson[0].cells if c.source.startswith("<details>"))
    assert "```python\ndef mu(r,  # [N]\n      ):\n    return r / 2\n```" in folded


def test_install_cell_badge_and_rota_follow_the_settings(tmp_path):
    fork = read_settings(ROOT)
    fork["course"].update(user="my-group", repo="our-sun", branch="dev", team="Eva, Fay", minutes_per_turn="5")
    nb, _, _ = copies(authored(tmp_path / "x.ipynb"), "module1_sunflowers/x.ipynb", fork)
    sources = [c.source for c in nb.cells]
    assert "github/my-group/our-sun/blob/dev/module1_sunflowers/x.ipynb" in sources[0]
    assert "git+https://github.com/my-group/our-sun@dev" in sources[2]
    assert 'Rota(["Eva", "Fay"], done=4, turns=3, minutes=13)' in sources[3]


def test_title_subtitle_and_minutes(lesson):
    assert lesson[1] == dict(title="The Sun", subtitle="A function", minutes=40, path="module1_sunflowers/01_sun.ipynb", recap="module1_sunflowers/recap/01_sun.ipynb", drives=3)


def test_turns_say_when_they_are_and_when_the_keyboard_moves(lesson):
    turns = [c.source.split("\n") for c in lesson[0].cells if c.source.startswith("## Turn")]
    assert turns == [["## Turn 1 · Light (25 minutes, rotate twice)", "*0:00 to 0:25 · drive 1, hand over at 0:12, drive 2*"],
                     ["## Turn 2 · More light (15 minutes)", "*0:25 to 0:40 · drive 3*"]]


def test_a_check_says_what_to_read_again_and_words_lead_to_the_glossary(tmp_path):
    cells = [("markdown", "# Edges\n> At the limb"), ("markdown", "## Turn 2 · Rims (5 minutes)"), ("markdown", "The limb is a rim of a `disk`."),
             ("code", "#| export a.b\n#| exercise: go\ndef f(): return 1"), ("code", "assert f() == 1"), ("code", "assert f()"), ("markdown", "Now plain."), ("code", "assert True")]
    nb, recap, _ = copies(authored(tmp_path / "x.ipynb", cells), places=dict(limb="limb", disk="disk"))
    sources = [c.source for c in nb.cells]
    checks = [s for s in sources if "assert" in s]
    assert checks == ["# Fails? Read Turn 2 again, and in the glossary: limb\nassert f() == 1", "# Fails? Read Turn 2 again, and in the glossary: limb\nassert f()", "assert True"]
    assert "".join(sources).count("(https://github.com/search-sdo/search-sdo/blob/main/docs/glossary.md#limb)") == 1
    assert [c.source for c in recap.cells if "assert" in c.source] == checks


def test_an_exercise_shows_the_first_picture_that_it_leads_to(tmp_path):
    (tmp_path / "small.jpg").write_bytes(b"picture")
    path, show = authored(tmp_path / "x.ipynb"), lambda nb: [i for i, c in enumerate(nb.cells) if "data:image/jpeg;base64,cGljdHVyZQ==" in c.source]
    for shown, expected in (("cell0007", ["def mu"]), ("cell0010", ["def _moon"]), ("cell0005", [])):     # the check; a GPU cell; a heading before
        nb, recap, _ = copies(path, pictures={shown: tmp_path / "small.jpg"})
        assert [nb.cells[i - 1].source[:len(e)] for i, e in zip(show(nb), expected, strict=True)] == expected and not show(recap)


def test_the_card_asks_the_questions_of_the_lesson(lesson):
    card = next(c.source for c in lesson[0].cells if "Retrospective([" in c.source)
    assert card.splitlines()[2:] == ["Retrospective([", '    "What stands out?",', '    "Who was silent?",', "])"]


def test_the_recap_has_headings_exercises_and_checks_only(tmp_path):
    _, recap, _ = copies(authored(tmp_path / "01_sun.ipynb"))
    sources = [c.source for c in recap.cells]
    assert [s.splitlines()[0][:9] for s in sources] == ["[![Open I", "# The Sun", "%pip inst", "from sear", "import ma", "## Turn 1", "def mu(r,", "# Fails? ", "from sear",
                                                        "## Turn 2", "def _moon", "from sear", "# needs a"]
    assert "/module1_sunflowers/recap/01_sun.ipynb" in sources[0] and "Your turn: halve it" in sources[6]


def test_faulty_exercise_names_the_notebook(tmp_path):
    path = authored(tmp_path / "05_bad.ipynb", [("code", "#| export a\n#| exercise: go\nx = 1")])
    with pytest.raises(ValueError, match="05_bad.ipynb"):
        make_lesson(path, "m/05_bad.ipynb", SETTINGS)


def test_directive_below_code_is_refused(tmp_path):
    path = authored(tmp_path / "x.ipynb", [("code", "#| export a\nn = 1\n#| exercise: go\ndef f(): return n")])
    with pytest.raises(ValueError, match=r"x.ipynb: `#\| exercise: go` stands below code"):
        make_lesson(path, "m/x.ipynb", SETTINGS)


def test_exercise_that_is_not_exported_is_refused(tmp_path):
    path = authored(tmp_path / "x.ipynb", [("code", "#| exercise: go\ndef f(): return 1")])
    with pytest.raises(ValueError, match="without `#| export`"):
        make_lesson(path, "m/x.ipynb", SETTINGS)


def test_inserting_a_cell_moves_no_other_id(tmp_path):
    more = [*AUTHORED[:6], ("markdown", "One more"), *AUTHORED[6:]]
    ids = []
    for name, cells in (("a", AUTHORED), ("b", more)):
        path = authored(tmp_path / f"{name}.ipynb", cells)
        nb = json.loads(path.read_text())
        for cell in nb["cells"]:
            cell["id"] = str(abs(hash("".join(cell["source"]))))[:8]  # an id that stays with its cell
        path.write_text(json.dumps(nb))
        ids.append({c["id"] for c in copies(path, "m/x.ipynb")[0].cells})
    assert len(ids[1] - ids[0]) == 1 and not ids[0] - ids[1]


def test_only_changed_files_are_written(tmp_path):
    write_files(tmp_path, {"m/a.ipynb": "A"})
    before = (tmp_path / "m/a.ipynb").stat().st_mtime_ns
    assert write_files(tmp_path, {"m/a.ipynb": "A", "m/b.ipynb": "B"}) == ["m/b.ipynb"]
    assert (tmp_path / "m/a.ipynb").stat().st_mtime_ns == before


def test_without_nbdev_the_error_names_the_extra(tmp_path):
    (tmp_path / "nbdev.py").write_text("raise ModuleNotFoundError('no nbdev')")
    done = subprocess.run([sys.executable, "-c", "from search_sdo.course.lessons import read_lesson; read_lesson('x')"],
                          env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'search_sdo[dev]'" in done.stderr


def test_outside_a_course_the_error_says_so(tmp_path):
    done = subprocess.run([sys.executable, "-m", "search_sdo.course.lessons"], cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "no settings.ini" in done.stderr


# --- the lessons that are committed ----------------------------------------------------------------------------------

def test_every_module_has_lessons():
    assert {dest.split("/")[0] for dest in LESSONS} == set(modules(SETTINGS))


@pytest.mark.parametrize("dest", LESSONS + RECAPS)
def test_lesson_is_valid_and_compiles(dest):
    nb = nbformat.read(ROOT / dest, as_version=4)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    for cell in nb.cells:
        if cell.cell_type == "code":
            compile(code(cell.source), f"{dest} {cell.id}", "exec")


@pytest.mark.parametrize("dest", LESSONS + RECAPS)
def test_badge_points_to_the_lesson_itself(dest):
    badge = nbformat.read(ROOT / dest, as_version=4).cells[0].source
    course = SETTINGS["course"]
    assert f"/github/{course['user']}/{course['repo']}/blob/{course['branch']}/{dest})" in badge


@pytest.mark.parametrize("dest", LESSONS + RECAPS)
def test_ways_on_import_what_the_library_has(dest):
    ways = [c.source for c in nbformat.read(ROOT / dest, as_version=4).cells if "# go on with the library's version" in c.source]
    for way in ways:
        module, names = re.fullmatch(r"from (\S+) import (.+?)  #.*", way).groups()
        body = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text()).body
        assert set(names.split(", ")) <= {n.name for n in body if hasattr(n, "name")}, way


@pytest.mark.parametrize("path, dest", PLAN, ids=LESSONS)
def test_every_exercise_has_a_stub_an_answer_and_a_way_on(path, dest):
    authored = [c.source for c in nbformat.read(path, as_version=4).cells if re.search(r"^#\| exercise", c.source, re.M)]
    sources = [c.source for c in nbformat.read(ROOT / dest, as_version=4).cells]
    assert sum("Your turn: " in s for s in sources) == len(authored)
    assert sum(s.startswith("<details><summary>One answer") for s in sources) == len(authored)
    assert sum("# go on with the library's version" in s for s in sources) == len(authored)


def test_readmes_list_every_lesson():
    files = make_files(ROOT)
    for dest in LESSONS:
        folder, name = dest.split("/")
        assert f"]({name})" in files[f"{folder}/README.md"] and f"](recap/{name})" in files[f"{folder}/README.md"]
