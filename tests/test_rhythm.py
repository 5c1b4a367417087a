"""The rhythm of the lessons, measured over all of them: short cells, prose between functions, a check for each"""
import ast
import json
import re
from pathlib import Path
from statistics import median, quantiles

import pytest
from search_sdo.course.lessons import plan, read_settings

ROOT = Path(__file__).parent.parent
LESSONS = [path for found in plan(ROOT, read_settings(ROOT)).values() for path, _ in found]


def read_cells(path):
    "The cells of a notebook as (kind, directives, source without them)"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        marks = [re.findall(r"[\w-]+", line)[0] for line in lines if re.match(r"#\|\s*\w", line)]
        yield cell["cell_type"], set(marks), "\n".join(line for line in lines if not line.startswith(("#|", "%", "!")))


def defined(source):
    "Functions and classes of an exported cell; private ones belong to the public one beside them"
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds) and node.name[0] != "_"]


def shows(source):
    "Does a cell check something, or end in a value or a picture?"
    tree = ast.parse(source)
    return bool(tree.body) and (isinstance(tree.body[-1], ast.Expr) or any(isinstance(n, ast.Assert) for n in ast.walk(tree))
                                or re.search(r"\b(test_\w+|expect_fail)\(", source) is not None)


def faults_of(cells):
    "What breaks the rhythm of a lesson: (functions without prose between them, functions never seen at work)"
    crowded, exported, seen = [], [], set()
    before = None                     # the last exported name, until prose follows
    for kind, marks, source in cells:
        if kind == "markdown":
            before = None
        elif marks & {"export", "exporti"}:
            for name in defined(source):
                if before: crowded.append(f"{before} | {name}")
                before = name
                exported.append(name)
        elif "hide" not in marks and shows(source):
            seen |= set(re.findall(r"\w+", source))
    return crowded, [name for name in exported if name not in seen]


def test_code_cells_are_short():
    lengths = [n for path in LESSONS for kind, _, source in read_cells(path) if kind == "code"
               if (n := sum(bool(line.strip()) for line in source.splitlines()))]
    assert len(lengths) > 1000, "there are over twenty lessons: were they found?"
    assert median(lengths) <= 4 and quantiles(lengths, n=10)[-1] <= 14


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_prose_stands_between_functions_and_each_is_seen_at_work(path):
    crowded, unseen = faults_of(read_cells(path))
    assert not crowded, f"{path.name}: no prose between {', '.join(crowded)}"
    assert not unseen, f"{path.name}: no visible check of {', '.join(unseen)}"


def test_the_measure_sees_what_it_should():
    "A function that follows another at once, one that is used in a hidden cell only, and one that is all right"
    cells = [("code", {"export"}, "def one(): return 1"), ("code", {"export"}, "def two(): return 2"), ("markdown", set(), "Now three."),
             ("code", {"export"}, "def three(): return 3\ndef _part(): pass"), ("code", {"hide"}, "two()"), ("code", set(), "x = one()\nassert x == 1"), ("code", set(), "three()")]
    assert faults_of(cells) == (["one | two"], ["two"])
