"""Marks are never lost, never doubled and never on the wrong tile; what is worked out from them agrees with the books."""
import json
import os
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from conftest import ROOT
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles
from search_sdo.search.curate import (
    WAYS, Curator, balanced_accuracy, cohen_kappa, fit_head, fleiss_kappa, middle_and_scale, settled)
from search_sdo.search.labelled import append_line, merge_lines, place_of, plain_text, read_lines, tiles_at

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return Package.build(SmallSun(seed=0).frames(n=4, cadence="9D", size=128), tmp_path_factory.mktemp("curate") / "package", size=128)


@pytest.fixture
def engine(package):
    "Three heaps of vectors, of 70, 25 and 5 %; `truth` knows which; tile 7 was not measured"
    tiles, dice = Tiles.grid(package, 16), np.random.default_rng(0)
    truth = dice.choice(3, len(tiles), p=[.7, .25, .05])
    vectors = np.eye(3, 16)[truth] + .12 * dice.normal(size=(len(tiles), 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    vectors[7] = np.nan
    encoder = Encoder(make_backbone("small_resnet", 1), ["171"], 16, "DN/s", {})
    return SimpleNamespace(tiles=tiles, package=package, encoder=encoder, embeddings=SimpleNamespace(vectors=vectors), truth=np.array(CLASSES)[truth])


@pytest.fixture
def curator(engine, tmp_path):
    return Curator(engine, CLASSES, tmp_path / "marks.jsonl", who="Ada")


def answer(curator, n, by="mix", who=None):
    "Let the truth answer n questions"
    tiles = curator.suggest(n, by, who)
    for tile in tiles:
        curator.mark(tile, curator.engine.truth[tile], who, how=by)
    return tiles


# --- the log ---------------------------------------------------------------------------------------------------------

def test_undo_and_redo_do_what_an_editor_does(curator):
    "Beside a plain model: a list, and a pile of what was taken back; at every step a reopened curator sees the same"
    dice, done, undone = random.Random(0), [], []
    for step in range(150):
        do = dice.choice(["mark", "mark", "skip", "undo", "undo", "redo"])
        if do in ("mark", "skip"):
            tile, label = dice.choice([1, 2, 3, 4]), dice.choice(CLASSES)
            curator.mark(tile, label) if do == "mark" else curator.skip(tile)
            done, undone = [*done, (tile, label if do == "mark" else None)], []
        elif do == "undo":
            assert curator.undo() == (done[-1][0] if done else None)
            if done:
                undone.append(done.pop())
        else:
            assert curator.redo() == (undone[-1][0] if undone else None)
            if undone:
                done.append(undone.pop())
        now = curator.seen
        assert dict(zip(now.tile, now.label)) == dict(done), step
    pd.testing.assert_frame_equal(Curator(curator.engine, CLASSES, curator.path).seen, curator.seen)


def test_the_log_only_grows(curator):
    curator.mark(1, "a")
    before = curator.path.read_bytes()
    curator.undo(), curator.redo(), curator.skip(2), curator.undo()
    assert curator.path.read_bytes().startswith(before) and len(read_lines(curator.path)) == 5


def test_undo_takes_back_ones_own_only(curator):
    curator.mark(1, "a", "Ada")
    curator.mark(1, "b", "Ben")
    assert curator.undo("Ada") == 1 and curator.undo("Ada") is None
    assert curator.votes.to_dict() == {"Ben": {1: "b"}}


def test_killed_while_writing_everything_acknowledged_is_there(tmp_path):
    "A process writes lines and says so after each; it is killed hard; what it had said is in the file, and the file goes on"
    program = ("import sys; from search_sdo.search.labelled import append_line\n"
               "for i in range(10**6): append_line(sys.argv[1], 'mark', 'Ada', place=dict(row=i), label='a'); print(i, flush=True)")
    path = tmp_path / "marks.jsonl"
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    said = [int(child.stdout.readline()) for _ in range(30)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    lines = read_lines(path)
    assert [line["place"]["row"] for line in lines][:30] == said and len({line["id"] for line in lines}) == len(lines)
    append_line(path, "undo", "Ada", of=lines[-1]["id"])
    assert len(read_lines(path)) == len(lines) + 1


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_line_cut_off_anywhere_is_no_deed_and_harms_none(curator, keep):
    curator.mark(1, "a")
    whole = curator.path.read_bytes()
    curator.mark(2, "b")
    curator.path.write_bytes(curator.path.read_bytes()[:len(whole) + keep if keep > 0 else keep])
    again = Curator(curator.engine, CLASSES, curator.path, who="Ada")
    assert again.seen.tile.tolist() == [1]
    again.mark(3, "c")
    assert curator.path.read_bytes().startswith(whole) and Curator(curator.engine, CLASSES, curator.path).seen.tile.tolist() == [1, 3]


def test_two_processes_write_into_one_log(tmp_path):
    program = ("import sys; from search_sdo.search.labelled import append_line\n"
               "for i in range(40): append_line(sys.argv[1], 'mark', sys.argv[2], place=dict(row=i), label='a')")
    path = tmp_path / "marks.jsonl"
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), who], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) for who in "AB"]
    assert [child.wait() for child in children] == [0, 0]
    lines = read_lines(path)
    assert len(lines) == 80 and [line["when"] for line in lines] == sorted({line["when"] for line in lines})


def test_a_clock_that_jumps_back_changes_no_order(tmp_path, monkeypatch):
    path = tmp_path / "marks.jsonl"
    path.write_text(json.dumps(dict(id="x", when="2999-01-01T00:00:00.000000", who="Ada", do="mark", place={}, label="a")) + "\n")
    assert append_line(path, "undo", "Ada", of="x")["when"] == "2999-01-01T00:00:00.000001"


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b'{"id": 1}', b'{"id":"x","when":"2014-01-01","who":"A","do":"erase","place":{}}', b'{"id":"x","when":"soon","who":"A","do":"mark","place":{}}'])
def test_a_damaged_line_is_named(curator, line):
    curator.mark(1, "a")
    curator.path.write_bytes(curator.path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match="marks.jsonl, line 2: damaged"):
        Curator(curator.engine, CLASSES, curator.path)


def test_logs_merge_in_any_order_and_as_often_as_you_like(engine, tmp_path):
    ada, ben = (Curator(engine, CLASSES, tmp_path / f"{who}.jsonl", who=who) for who in ("Ada", "Ben"))
    for tile in range(6):
        ada.mark(tile, "a"), ben.mark(tile, "ab"[tile % 2])
    ada.undo(), ben.undo()
    one, other = merge_lines(ada.lines, ben.lines), merge_lines(ben.lines, ada.lines, ben.lines)
    assert one == other and merge_lines(one, other) == one
    ada.merge(ben.path)
    ada.merge(ben.path)
    assert ada.votes.shape == (5, 2) and len(read_lines(ada.path)) == 14
    assert Curator(engine, CLASSES, ada.path).votes.equals(ada.votes)
    with pytest.raises(FileNotFoundError, match="no such log"):
        ada.merge(tmp_path / "nowhere.jsonl")


def test_a_mark_finds_its_tile_in_an_engine_with_other_numbers(engine, curator, caplog):
    answer(curator, 12, "random")
    places = [place_of(engine.tiles.table, t) for t in curator.seen.tile]
    turned = np.arange(len(engine.tiles))[::-1]
    grown = SimpleNamespace(tiles=engine.tiles[turned], package=engine.package, embeddings=SimpleNamespace(vectors=engine.embeddings.vectors[::-1]))
    again = Curator(grown, CLASSES, curator.path, who="Ada")
    assert [place_of(grown.tiles.table, t) for t in again.seen.tile] == places and again.seen.label.equals(curator.seen.label)
    fewer = engine.tiles[engine.tiles.table.frame.to_numpy() > 1]
    small = Curator(SimpleNamespace(tiles=fewer, package=engine.package, embeddings=SimpleNamespace(vectors=engine.embeddings.vectors[-len(fewer):])), CLASSES, curator.path)
    gone = sum(engine.tiles.table.frame[t] <= 1 for t in curator.seen.tile)
    assert 0 < gone < 12 and len(small) == 12 - gone and f"{gone} deeds are about tiles" in caplog.text


def test_places_of_any_time_unit_are_found(engine):
    table = engine.tiles.table
    for unit in ("ns", "us", "ms"):
        assert tiles_at(table.assign(time=table.time.astype(f"datetime64[{unit}]")), [place_of(table, 9)]).tolist() == [9]


# --- the head --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("present", [2, 3])
def test_head_is_scikit_learns(engine, present):
    rows = np.flatnonzero((engine.truth != "c") | (present == 3))
    rows = rows[rows != 7][:200]
    x, y = engine.embeddings.vectors, engine.truth
    middle, scale = middle_and_scale(x)
    ours = fit_head(x[rows], y[rows], CLASSES, middle, scale).probabilities(x)
    theirs = LogisticRegression(class_weight="balanced", max_iter=1000).fit((np.float32(x[rows]) - middle) / scale, y[rows])
    good = np.arange(len(x)) != 7
    np.testing.assert_allclose(ours[good][:, :present], theirs.predict_proba((np.float32(x[good]) - middle) / scale), atol=2e-4)
    assert np.isnan(ours[7]).all() and (present == 3 or (ours[good][:, 2] == 0).all())


def test_predict_names_every_measured_tile(curator):
    answer(curator, 40, "random")
    said = curator.predict()
    assert said.label[7] is None and np.isnan(said.probability[7]) and (said.label.drop(7) == np.delete(curator.engine.truth, 7)).mean() > .9


def test_blocks_change_nothing(curator):
    answer(curator, 30, "random")
    head, x = curator.head(), curator.engine.embeddings.vectors
    np.testing.assert_allclose(head.probabilities(x, block=13), head.probabilities(x), rtol=1e-5)


def test_balanced_accuracy_is_scikit_learns():
    dice = np.random.default_rng(0)
    a, b = dice.choice(CLASSES, 200, p=[.8, .15, .05]), dice.choice(CLASSES, 200)
    assert balanced_accuracy(a, b) == pytest.approx(balanced_accuracy_score(a, b))


# --- questions -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("by", [w for w in WAYS if w != "again"])
@pytest.mark.parametrize("marked", [0, 1, 30])
def test_questions_are_new_measured_and_repeat(curator, by, marked):
    answer(curator, marked, "random") if marked else None
    curator.skip(11)
    asked = curator.suggest(10, by)
    assert len(asked) == len(set(asked)) == 10 and not set(asked) & {7, 11, *curator.seen.tile}
    assert (Curator(curator.engine, CLASSES, curator.path, who="Ada").suggest(10, by) == asked).all()


def test_only_what_is_kept_is_asked_and_never_more_than_there_is(curator):
    keep = np.zeros(len(curator.measured), bool)
    keep[:12] = True
    answer(curator, 3, "random")
    for by in WAYS:
        assert set(curator.suggest(5, by, keep=keep)) <= set(range(12)) - {7}
    left = set(range(12)) - {7} - set(curator.seen.tile)
    assert set(curator.suggest(50, keep=keep)) == left


def test_the_uncertain_lie_between(curator):
    answer(curator, 40, "random")
    said, asked = curator.predict().margin, curator.suggest(3, "uncertain")
    assert said[asked].max() <= said.drop([7, *curator.seen.tile]).sort_values().iloc[29]


def test_near_asks_for_more_of_a_class(curator):
    rare = np.flatnonzero(curator.engine.truth == "c")
    curator.mark(rare[0], "c"), curator.mark(np.flatnonzero(curator.engine.truth == "a")[0], "a")
    assert (curator.engine.truth[curator.suggest(5, "near", like="c")] == "c").mean() >= .8


def test_typical_and_diverse_meet_every_class_sooner_than_chance(curator):
    assert set(curator.engine.truth[curator.suggest(20)]) == set(CLASSES)


def test_again_asks_what_others_marked(curator):
    tiles = answer(curator, 8, "random")
    assert curator.suggest(20, "again", "Ben").tolist() == tiles.tolist() and curator.suggest(20, "again", "Ada").tolist() == []
    curator.mark(tiles[0], "a", "Ben")
    assert curator.suggest(20, "again", "Ben").tolist() == tiles[1:].tolist()


@pytest.mark.parametrize("call, message", [
    (lambda c: c.suggest(by="luck"), "by: 'luck' is not known"), (lambda c: c.suggest(0), "n: 0"), (lambda c: c.suggest(by="near", like="z"), "like: 'z'"),
    (lambda c: c.mark(1, "z"), "label 'z': no class"), (lambda c: c.mark(7, "a"), "tile 7"), (lambda c: c.mark(-1, "a"), "tile -1"),
    (lambda c: c.mark(10 ** 6, "a"), "no such tile"), (lambda c: c.mark(True, "a"), "tile True"), (lambda c: c.mark(1, "a", who="A,B"), "without a comma"),
    (lambda c: c.mark(1, "a", who="A\nB"), "who"), (lambda c: c.head(), "expected two classes"), (lambda c: c.save("x"), "nothing is labelled"),
    (lambda c: Curator(c.engine, ["a"], c.path), "classes"), (lambda c: Curator(c.engine, ["a", "a"], c.path), "classes"), (lambda c: Curator(c.engine, "ab", c.path), "classes")])
def test_what_makes_no_sense_is_refused_and_not_logged(curator, call, message):
    with pytest.raises(ValueError, match=message):
        call(curator)
    assert not curator.path.exists()


def test_a_log_with_other_classes_is_refused(curator):
    curator.mark(1, "c")
    with pytest.raises(ValueError, match="holds the label 'c', expected one of a, b; add it"):
        Curator(curator.engine, ["a", "b"], curator.path)


# --- people ----------------------------------------------------------------------------------------------------------

def test_kappas_agree_with_the_books():
    dice = np.random.default_rng(0)
    for _ in range(20):
        a, b = dice.choice(CLASSES, 50), dice.choice(CLASSES, 50)
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert np.isnan(cohen_kappa(["a"], ["a"])) and np.isnan(cohen_kappa([], []))
    votes = pd.DataFrame(dict(x=list("aabb"), y=list("aabb"), z=["a", None, None, "b"]))
    assert fleiss_kappa(votes) == pytest.approx(1) and np.isnan(fleiss_kappa(votes[["x"]]))


def test_agreement_confusion_and_disagreements(curator):
    for tile, (ada, ben, eva) in enumerate([("a", "a", "a"), ("b", "b", "a"), ("b", "a", None), ("c", "c", None)]):
        for who, label in (("Ada", ada), ("Ben", ben), ("Eva", eva)):
            curator.mark(tile, label, who) if label else curator.skip(tile, who)
    table = curator.agreement().set_index(["a", "b"])
    assert table.tiles.tolist() == [4, 2, 2, 4] and table.same.tolist() == [.75, .5, .5, .5]
    assert table.kappa["Ada", "Ben"] == pytest.approx(cohen_kappa_score(list("abbc"), list("abac")))
    assert curator.confusion("Ada", "Ben").to_numpy().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert curator.disagreements().index.tolist() == [1, 2]
    assert curator.lessons().to_dict() == {0: "a", 1: "b", 3: "c"}    # tile 2 is a draw


# --- stopping --------------------------------------------------------------------------------------------------------

def test_settled_asks_for_three_quiet_rounds():
    still, other = np.array(list("aabbc")), np.array(list("abcab"))
    assert settled([still] * 4) and not settled([still] * 3) and not settled([other, still, still, still]) and not settled([])
    assert settled([np.array(["a", "a"])] * 4)


def test_it_stops_on_an_easy_sky_and_not_at_once(curator):
    answer(curator, 20)
    assert not curator.done()
    for _ in range(8):
        answer(curator, 10)
    assert curator.done()


# --- what comes out --------------------------------------------------------------------------------------------------

def test_the_labelled_set_is_whole(curator, tmp_path):
    answer(curator, 30)
    answer(curator, 10, "again", who="<b>Ben|*")
    out = curator.save(tmp_path / "out", pixels=True)
    labels, card = pd.read_parquet(out / "labels.parquet"), (out / "README.md").read_text()
    assert (labels.label == curator.engine.truth[labels.tile]).all() and len(labels) == 30 and "sheet" not in card
    assert np.allclose(np.load(out / "images.npy"), Tiles(labels, curator.engine.package).images(), equal_nan=True)
    assert read_lines(out / "marks.jsonl") == curator.lines and len(pd.read_csv(out / "labels.csv")) == 30
    assert "<b>" not in card and "synthetic" in card and "30 tiles" in card and (labels.annotators.str.contains(", ").sum(), 10) == (10, 10)
    assert labels.confidence.between(0, 1).all() or labels.confidence.isna().sum() == (labels.label.map(labels.label.value_counts()) == 1).sum()
    curator.save(out)
    assert not (out / "images.npy").exists()
    (out / "mine.txt").touch()
    with pytest.raises(ValueError, match="mine.txt"):
        curator.save(out)


def test_a_slip_of_the_finger_has_low_confidence(curator):
    answer(curator, 60, "random")
    tile = curator.seen.tile[curator.seen.label == "a"].iloc[0]
    curator.mark(tile, "b")
    labels = curator.labelled().set_index("tile")
    assert labels.confidence.idxmin() == tile and labels.label[tile] == "b"


def test_training_set_weighs_classes_alike_and_fits_module_2(curator):
    from search_sdo.models.finetune import fine_tune
    answer(curator, 40)
    plain, more = curator.training_set(), curator.training_set(sure=.9)
    assert len(plain) == 40 < len(more)
    for tiles in (plain, more):
        sums = tiles.table.groupby("label").weight.sum()
        assert np.allclose(sums, sums.iloc[0]) and tiles.table.weight.mean() == pytest.approx(1)
    model = fine_tune(curator.engine.encoder, plain.images(), plain.table.label, loss="balanced")
    assert model.classes == tuple(CLASSES)


def test_sixty_chosen_marks_beat_sixty_at_random(engine, tmp_path):
    def score(by, seed):
        curator = Curator(engine, CLASSES, tmp_path / f"{by}{seed}.jsonl", seed=seed)
        for n in (12, 6, 6):
            answer(curator, n, by)
        said = curator.predict().label
        return balanced_accuracy(np.delete(engine.truth, 7), said.drop(7))
    assert np.mean([score("mix", s) for s in range(3)]) >= np.mean([score("random", s) for s in range(3)])


@pytest.mark.parametrize("text", ["<script>", "a|b", "[x](javascript:1)", "`x`", "two\nlines", "# head"])
def test_names_are_text_in_a_card(text):
    safe = plain_text(text)
    assert "<" not in safe and "\n" not in safe and "](" not in safe.replace("\\](", "")
