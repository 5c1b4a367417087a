"""The page's mind (every step can be undone, every fault changes nothing) and its face, in a real browser and through a real Voilà."""
import base64
import io
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.frame import Frame
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search import page as page_module
from search_sdo.search.engine import SearchEngine
from search_sdo.search.explorer import (
    Explorer, History, State, ask_window, check_filters, explore, find, fit_box, mark, nearest_frame, random_view, selection)
from search_sdo.search.page import CSS, ESM, WISHES, Page, Parts, app_command, app_environment, app_notebook, described, serve_app, write_app
from search_sdo.search.pictures import as_html, coloured, png, sheet, thumbnail
from search_sdo.search.upload import MAX_BYTES

SIZE, TILE = 128, 16
SUN = SmallSun(seed=2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    import torch
    folder = tmp_path_factory.mktemp("explorer")
    frames = [replace(f, channel=channel) for channel in ("171", "193") for f in SUN.frames(10, cadence="7h", size=SIZE)]
    package = Package.build(frames, folder / "package", size=SIZE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(make_backbone(widths=(8, 16), stem=2), size=TILE, unit="DN/s")
    return SearchEngine.build(package, encoder, folder / "engine", channels=("171", "193"))


@pytest.fixture
def explorer(engine): return Explorer(engine, k=6, spread="0h").search()


def fits_of(frame):
    file = io.BytesIO()
    frame.to_map().save(file, filetype="fits")
    return file.getvalue()


def png_of(pixels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


# --- boxes, history, marks --------------------------------------------------------------------------------------------

@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), st.integers(8, 300), st.integers(8, 300))
def test_every_box_becomes_a_square_inside(box, width, height):
    x0, y0, x1, y1 = fit_box(box, width, height)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and x1 - x0 == y1 - y0 >= min(8, width, height)
    assert fit_box((x0, y0, x1, y1), width, height) == (x0, y0, x1, y1)     # a good box stays


@pytest.mark.parametrize("box", [None, (), (1, 2, 3), (1, 2, 3, "x"), (1, 2, 3, np.nan), (0, 0, np.inf, 1), "abcd", 7, {"a": 1}])
def test_what_is_no_box_is_refused(box):
    with pytest.raises(ValueError, match="expected four"):
        fit_box(box, 100, 100)


@given(st.lists(st.one_of(st.just("undo"), st.tuples(st.sampled_from(["frame", "k", "seed"]), st.integers(0, 99))), max_size=80))
def test_undo_is_the_inverse_of_do(steps):
    history, mirror = History(State(0, (0, 0, 8, 8)), depth=10), [State(0, (0, 0, 8, 8))]
    for step in steps:
        if step == "undo":
            history.undo()
            mirror = mirror[:-1] or mirror
        else:
            history.do(**dict([step]))
            mirror = [*mirror, replace(mirror[-1], **dict([step]))][-11:]
        assert history.state == mirror[-1] and history.past == mirror[:-1]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["good", "bad"])), max_size=30))
def test_a_tile_has_one_verdict_at_most(marks):
    state, truth = State(0, ()), {}
    for tile, verdict in marks:
        state = replace(state, **mark(state, tile, verdict))
        if truth.get(tile) == verdict:
            del truth[tile]
        else:
            truth[tile] = verdict
    assert (set(state.good), set(state.bad)) == tuple({t for t, v in truth.items() if v == name} for name in ("good", "bad"))


# --- the explorer -----------------------------------------------------------------------------------------------------

def test_the_box_asks_what_the_engine_would_be_asked(engine, explorer):
    "Against the engine itself: the same window of the same frame finds the same tiles"
    explorer.show("2014-01-02", "171").draw((40, 40, 72, 72))
    theirs = engine.search(engine.package.frame(explorer.state.frame), k=6, box=(40, 40, 72, 72), spread=None)
    assert list(explorer.state.hits.table.tile) == list(theirs.table.tile)
    np.testing.assert_allclose(explorer.state.hits.table.similarity, theirs.table.similarity, atol=1e-3)


def test_it_opens_on_the_sun(engine):
    explorer = Explorer(engine)
    x0, y0, x1, y1 = explorer.state.box
    assert x1 - x0 == 2 * TILE and explorer.frame.time == engine.tiles.table.time[engine.tiles.table.channel == "171"].max()
    assert np.hypot((x0 + x1) / 2 - 63.5, (y0 + y1) / 2 - 63.5) < .4 * SIZE and explorer.state.hits is None


def test_steps_walk_one_channel_and_stop_at_its_ends(engine, explorer):
    explorer.show(channel="193")
    frames = [explorer.state.frame]
    for _ in range(12):
        frames.append(explorer.step(-1).state.frame)
    assert len(set(frames)) == 10 and set(engine.package.catalogue.channel[frames]) == {"193"}
    assert explorer.step(99).state.frame == frames[0] and explorer.pick(0).state.frame == frames[-1] and explorer.pick(10**6).state.frame == frames[0]


def test_faulty_frames_are_never_shown(engine):
    catalogue = engine.package.catalogue.copy()
    first = nearest_frame(catalogue, "2014-01-01", "171")
    catalogue.loc[first, "quality"] = "eclipse"
    assert nearest_frame(catalogue, catalogue.time[first], "171") != first


def test_filters_are_met_by_every_answer(explorer):
    times = explorer.engine.tiles.table.time
    middle = times.sort_values().iloc[len(times) // 2]
    explorer.filter(before=str(middle), lat=(-30, 30), mu=(.5, 1), channel="193")
    t = explorer.state.hits.table
    assert len(t) and (t.time < middle).all() and t.lat.between(-30, 30).all() and (t.mu >= .5).all() and (t.channel == "193").all()
    explorer.filter(before=None, lat=None, mu=None, channel=None)
    assert explorer.state.filters == dict(spread="0h") and len(explorer.state.hits) == 6


def test_nothing_may_meet_the_filters(explorer):
    explorer.filter(after="2030-01-01")
    assert len(explorer.state.hits) == 0 and described(explorer)["hits"] == [] and "query" in explorer._repr_html_()
    with pytest.raises(ValueError, match="search first"):
        explorer.download()


def test_marks_move_the_question(explorer):
    engine, table = explorer.engine, explorer.state.hits.table
    best, worst = int(table.tile.iloc[0]), int(table.tile.iloc[-1])
    before = explorer.state.hits
    explorer.mark(best, "good").mark(worst, "bad")
    assert explorer.state.hits is before                  # nothing jumps under the hand
    explorer.search()
    assert worst not in set(explorer.state.hits.table.tile)
    theirs = engine.search([explorer.ask(explorer.state), best], k=6, unlike=worst, spread=None)      # the engine itself, asked the same
    assert list(explorer.state.hits.table.tile) == list(theirs.table.tile)
    shown = described(explorer)["hits"]                   # what is known and good stays in sight
    assert (shown[0]["tile"], shown[0]["mark"], shown[0]["similarity"]) == (best, "good", None) and len(shown) == 7


def test_a_new_box_is_a_new_question(explorer):
    explorer.mark(3, "good").augment().draw((50, 50, 80, 80))
    assert (explorer.state.good, explorer.state.bad, explorer.state.seed) == ((), (), 0)


def test_a_random_view_repeats_and_undoes(explorer):
    plain = explorer.state
    first, second = explorer.augment().state, explorer.augment().state
    assert (first.seed, second.seed) == (1, 2) and not np.array_equal(first.asked.image, second.asked.image)
    assert explorer.undo().state is first and explorer.undo().state is plain
    np.testing.assert_array_equal(explorer.augment().state.asked.image, first.asked.image)
    assert explorer.plain().state.seed == 0 and list(explorer.state.hits.table.tile) == list(plain.hits.table.tile)


def test_a_random_view_lies_around_the_box():
    "A frame that is dark but for the box: the view is bright in its middle, whatever was drawn"
    data = np.zeros((64, 64), np.float32)
    data[20:36, 30:46] = 255
    frame = Frame(data, pd.Timestamp("2014-01-01"), "171", None, "display")
    for seed in range(1, 20):
        view = random_view(frame, (30, 20, 46, 36), seed, 32).image
        assert view.shape == (32, 32) and view[12:20, 12:20].mean() > 200 and 0 <= view.min() and view.max() <= 255


def test_open_shows_where_a_tile_lies(engine, explorer):
    tile = int(explorer.state.hits.table.tile.iloc[2])
    explorer.open(tile)
    row = engine.tiles.table.iloc[tile]
    assert explorer.state.frame == row.frame and explorer.state.box == (row.col, row.row, row.col + TILE, row.row + TILE)


FAULTS = [("show", dict(date="when?")), ("show", dict(channel="304")), ("show", dict(channel=["171"])), ("show", dict(date={"a": 1})), ("step", dict(by="x")), ("step", dict(by=None)), ("step", dict(by=10**30)),
          ("pick", dict(at=1.5)), ("open", dict(tile=-1)), ("open", dict(tile=10**9)), ("open", dict(tile="0")), ("open", dict(tile=True)), ("draw", dict(box=None)), ("draw", dict(box=[1, 2, 3])),
          ("mark", dict(tile=0, verdict="<b>")), ("mark", dict(tile=10**9, verdict="good")), ("mark", dict(tile=None, verdict="good")), ("neighbours", dict(k=0)), ("neighbours", dict(k=61)), ("neighbours", dict(k="9" * 500)),
          ("filter", dict(after="soon")), ("filter", dict(lon=[50, -50])), ("filter", dict(lon=5)), ("filter", dict(mu=["a", "b"])), ("filter", dict(spread="24")), ("filter", dict(channel="304")), ("filter", dict(exclude_within="x")),
          ("upload", dict(name="x", data=b"")), ("upload", dict(name="x.png", data=b"\x89PNG\r\n\x1a\n")), ("goto", dict(frame=-1)), ("goto", dict(frame=99))]


@pytest.mark.parametrize("method, values", FAULTS, ids=[f"{m}-{str(v)[:30]}" for m, v in FAULTS])
def test_a_fault_is_one_sentence_and_changes_nothing(explorer, method, values):
    state, past = explorer.state, list(explorer.past)
    with pytest.raises(ValueError) as refused:
        getattr(explorer, method)(**values)
    assert explorer.state is state and explorer.past == past and len(str(refused.value)) < 400


def test_a_filter_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="expected one of after, before"):
        check_filters({"where": "__import__('os')"})
    assert check_filters(dict(after=None, before="", channel=[], mu=(0, 1))) == dict(mu=(0, 1))


# --- uploads and downloads --------------------------------------------------------------------------------------------

def test_an_upload_of_a_frame_of_the_archive_finds_the_archive(engine, explorer):
    "What is uploaded is brought to the package's scale: its tiles find themselves"
    frame = engine.package.frame(4)
    explorer.upload("20140102_040000_aia_171.fits", fits_of(frame))
    assert explorer.state.frame == -1 and explorer.frame.shape == (SIZE, SIZE) and explorer.frame.meta["source"].startswith("2014")
    row = engine.tiles.table[(engine.tiles.table.frame == 4) & (engine.tiles.table.mu > .8)].iloc[0]
    asked = ask_window(replace(explorer.frame, time=pd.NaT), (row.col, row.row, row.col + TILE, row.row + TILE), 64)
    best = find(engine, asked, State(-1, (), k=1)).table.iloc[0]
    assert (best.tile, best.frame) == (row.name, 4) and best.similarity > .99


def test_a_picture_that_is_no_sun_is_asked_as_it_is(explorer):
    explorer.upload("holiday.png", png_of(np.random.default_rng(0).integers(256, size=(60, 90))))
    assert explorer.frame.disk is None and explorer.state.box == (15, 0, 75, 60) and len(explorer.state.hits) == 6 and explorer.state.asked.time is None
    explorer.augment().draw((0, 0, 20, 20)).mark(1, "good").search()
    assert explorer.step(-1).state.frame >= 0 and explorer.undo().state.frame == -1
    assert explorer.show(channel="193").frame.channel == "193"


def test_an_upload_of_another_channel_is_refused(explorer):
    with pytest.raises(ValueError, match="304.*holds 171, 193"):
        explorer.upload("x.fits", fits_of(replace(SUN.frame("2014-01-01"), channel="304")))


def test_the_zip_holds_what_was_chosen_and_no_name_of_a_stranger(explorer):
    explorer.upload("../../<b>.png", png_of(np.random.default_rng(0).integers(256, size=(60, 60))))
    tiles = [int(t) for t in explorer.state.hits.table.tile]
    explorer.mark(tiles[1], "good").mark(tiles[3], "good").mark(tiles[0], "bad")
    with zipfile.ZipFile(io.BytesIO(explorer.download())) as folder:
        names = folder.namelist()
        assert all(re.fullmatch(r"selection\.csv|selection\.json|query\.png|tiles/\d{3}_\d{8}_\d{6}_\w+\.png", name) for name in names) and len(names) == 5
        table = pd.read_csv(folder.open("selection.csv"))
        about = json.loads(folder.read("selection.json"))
        picture = np.asarray(Image.open(folder.open(names[3])))
    assert list(table.tile) == [tiles[1], tiles[3]] == about["good"] and about["bad"] == [tiles[0]] and (table.mark == "good").all()
    row = explorer.engine.tiles.table.iloc[tiles[1]]
    np.testing.assert_array_equal(picture, coloured(explorer.engine.tiles.images([tiles[1]])[0], row.channel, "DN/s"))
    assert re.fullmatch(r"aia\.lev1_euv_12s\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/12s\]\[\d+\]", table.jsoc[0])
    assert str(explorer.engine.package.path) not in json.dumps(about)


def test_without_marks_all_answers_go_home(explorer):
    assert list(selection(explorer.engine, explorer.state).tile) == list(explorer.state.hits.table.tile)


# --- pictures ---------------------------------------------------------------------------------------------------------

def test_the_sheet_is_the_tiles_one_under_another():
    images = [np.full((16, 16), v, np.float32) for v in (0, 128, 255)]
    made = np.asarray(Image.open(io.BytesIO(sheet([thumbnail(image, "171", "display", 32) for image in images]))), int)
    assert made.shape == (96, 32, 3)
    for i, image in enumerate(images):
        assert abs(made[32 * i + 16, 16] - coloured(image, "171", "display")[0, 0]).max() < 6


def test_html_in_words_is_shown_and_not_obeyed():
    html = as_html([(png(np.zeros((4, 4)), "171", "display"), "<img src=x onerror=alert(1)>", "\"' onload=alert(2)")])
    assert html.count("<img") == 1 and "onerror=alert(1)&gt;" in html and '"\'' not in html


# --- the wire ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def page(explorer): return Page(explorer)


@pytest.mark.parametrize("wish", [None, 7, "search", [], {}, {"do": None}, {"do": "__init__"}, {"do": "download", "path": "/etc"}, {"do": "pack"}, {"do": "do", "frame": 3}, {"do": "goto", "frame": 1}, {"do": ["search"]},
                                  {"do": "search", "k": 5}, {"do": "search", "hits": 1}, {"do": "draw"}, {"do": "draw", "box": {"x": 1}}, {"do": "filter", "where": "1"}, {"do": "mark", "tile": [1], "verdict": "good"},
                                  {"do": "filter", "after": ["2014"]}, {"do": "filter", "lon": {"a": 1}}, {"do": "show", "date": 5.5}, {"do": "upload"}, {"do": "upload", "name": 3, "size": "x", "at": 0}, {"do": "upload", "name": "x", "size": -1, "at": 0},
                                  {"do": "upload", "name": "x", "size": 10**15, "at": 0}, {"do": "upload", "name": "x", "size": 10, "at": 5}, {"do": "step", "by": {"a": []}}])
def test_what_nobody_may_wish_changes_nothing(page, wish):
    state = page.explorer.state
    if isinstance(wish, dict) and wish.get("do") == "download":
        wish = {**wish, "do": "downloads"}
    page.hear(wish, [])
    assert page.view["said"]["error"] is True and page.explorer.state is state and len(page.view["said"]["text"]) < 500


def test_the_view_is_plain_json_and_says_what_the_state_is(page):
    page.hear({"do": "mark", "tile": page.view["hits"][0]["tile"], "verdict": "good"})
    page.hear({"do": "filter", "mu": [.3, 1], "channel": "171"})
    view = json.loads(json.dumps(page.view))
    assert view["good"] == 1 and view["filters"] == dict(mu=[.3, 1], channel="171", spread="0h") and view["undo"] == 3 and view["box"] == list(page.explorer.state.box)
    assert view["channels"] == ["171", "193"] and "1 good" in view["said"]["text"] and {c["name"] for c in view["controls"]} == set(WISHES["filter"])
    assert Image.open(io.BytesIO(page.answers)).size == (128, 128 * len(view["hits"])) and Image.open(io.BytesIO(page.sun)).size == (SIZE, SIZE)


def test_every_wish_is_a_method():
    assert all(callable(getattr(Explorer, name)) for name in WISHES)


def test_pictures_are_made_anew_only_when_their_subject_changes(page, monkeypatch):
    made = []
    monkeypatch.setattr(page_module, "jpeg", lambda *a: made.append("sun") or b"sun")
    monkeypatch.setattr(page_module, "sheet", lambda *a: made.append("sheet") or b"sheet")
    for wish, expected in [({"do": "mark", "tile": 3, "verdict": "bad"}, []), ({"do": "neighbours", "k": 3}, ["sheet"]), ({"do": "step", "by": -1}, ["sun"]), ({"do": "undo"}, ["sun"])]:
        made.clear()
        page.hear(wish)
        assert made == expected, wish


def test_uploads_come_in_pieces(page):
    data = fits_of(page.explorer.engine.package.frame(3))
    half = len(data) // 2
    page.hear(dict(do="upload", name="../mine.fits", size=len(data), at=0), [memoryview(data)[:half]])
    assert "Receiving mine.fits: 50 %" in page.view["said"]["text"] or "49 %" in page.view["said"]["text"]
    page.hear(dict(do="upload", name="../mine.fits", size=len(data), at=half), [memoryview(data)[half:]])
    assert page.view["upload"] == "mine.fits" and not page.view["said"]["error"] and len(page.parts.data) == 0


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_pieces_make_the_file_whole(data, sizes):
    parts, at = Parts(), 0
    while at < len(data):
        n = sizes[at % len(sizes)]
        whole, at = parts.take("a", len(data), at, data[at:at + n]), min(at + n, len(data))
        assert (whole == data) if at == len(data) else whole is None


def test_no_more_than_is_allowed_is_kept():
    parts = Parts()
    for size in (MAX_BYTES + 1, 0, -5, "7", None, 1.5):
        with pytest.raises(ValueError):
            parts.take("a", size, 0, b"x")
    with pytest.raises(ValueError):
        parts.take("a", 3, 0, b"xxxx")
    assert len(parts.data) == 0


def test_where_no_widget_runs_there_is_html(page):
    data, _ = page._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and data["text/html"].count("<img") == 1 + len(page.view["hits"])


def test_without_anywidget_the_extra_is_named(engine, monkeypatch):
    import sys
    monkeypatch.delitem(sys.modules, "search_sdo.search.page")
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r"pip install \"search_sdo\[app\]\""):
        explore(engine)


# --- in a browser -----------------------------------------------------------------------------------------------------

HARNESS = """<!doctype html><meta name="viewport" content="width=device-width, initial-scale=1"><style>body {margin: 0} %s</style><div id="el"></div><script type="module">
const module = (await import(URL.createObjectURL(new Blob([%s], {type: 'text/javascript'})))).default, heard = {}, state = {};
const bytes = s => new DataView(Uint8Array.from(atob(s), c => c.charCodeAt(0)).buffer), text = b => btoa(Array.from(new Uint8Array(b), c => String.fromCharCode(c)).join(''));
const take = ({view, pictures, messages}) => { state.view = view; for (const [n, v] of Object.entries(pictures)) state[n] = bytes(v);
  for (const n of ['view', ...Object.keys(pictures)]) (heard['change:' + n] || []).forEach(f => f());
  for (const [m, buffers] of messages) (heard['msg:custom'] || []).forEach(f => f(m, buffers.map(bytes))); };
let turn = Promise.resolve();
const model = {get: n => state[n], on: (n, f) => (heard[n] ||= []).push(f), off: (n, f) => { heard[n] = heard[n].filter(g => g !== f); },
  send: (wish, _, buffers) => { turn = turn.then(() => python(wish, (buffers || []).map(text)).then(take)); }};
take(await python(null, []));
window.cleanup = module.render({model, el: document.getElementById('el')});
window.ready = true;
</script>"""


class Bridge:
    "Stands in for the kernel's wire: the page in the browser talks to a `Page` in this process"
    def __init__(self, page):
        self.page, self.wishes, self.out, self.seen = page, [], [], {}
        page.send = lambda content, buffers=None: self.out.append([content, [base64.b64encode(b).decode() for b in buffers or []]])

    def __call__(self, wish, buffers):
        if wish is not None:
            self.wishes.append(wish)
            self.page.hear(wish, [base64.b64decode(b) for b in buffers])
        new = {n: getattr(self.page, n) for n in ("sun", "question", "answers") if getattr(self.page, n) is not self.seen.get(n)}
        self.seen |= new
        messages, self.out = self.out, []
        return dict(view=self.page.view, pictures={n: base64.b64encode(v).decode() for n, v in new.items()}, messages=messages)


def opened(browser, widget, **how):
    "The page in a tab: (tab, bridge, faults)"
    tab, bridge, faults = browser.new_page(**{"viewport": dict(width=1300, height=900), **how}), Bridge(widget), []
    tab.on("pageerror", lambda fault: faults.append(str(fault)))
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.expose_function("python", bridge)
    tab.set_content(HARNESS % (CSS, json.dumps(ESM).replace("</", "<\\/")))
    tab.wait_for_function("window.ready")
    return tab, bridge, faults


@pytest.fixture
def tab(browser, page):
    tab, bridge, faults = opened(browser, page)
    yield SimpleNamespace(page=tab, bridge=bridge, explorer=page.explorer, widget=page)
    tab.close()
    assert faults == []


def settle(tab, until):
    "Wait until Python's state says so"
    for _ in range(100):
        if until():
            return
        tab.page.wait_for_timeout(30)
    raise AssertionError(f"did not happen; wishes: {[w.get('do') for w in tab.bridge.wishes]}; {tab.widget.view['said']}")


def sun_point(tab, x, y):
    "Where a pixel of the Sun is on the screen"
    box = tab.page.locator(".stage").bounding_box()
    return box["x"] + x / SIZE * box["width"], box["y"] + y / SIZE * box["height"]


def drag(tab, start, end):
    tab.page.mouse.move(*sun_point(tab, *start))
    tab.page.mouse.down()
    tab.page.mouse.move(*sun_point(tab, *end), steps=4)
    tab.page.mouse.up()


def test_draw_move_and_resize_with_the_mouse(tab):
    x0, y0, x1, y1 = tab.explorer.state.box
    start = (10, 10) if x0 > 40 or y0 > 40 else (90, 90)
    drag(tab, start, (start[0] + 24, start[1] + 20))
    settle(tab, lambda: tab.explorer.state.box != (x0, y0, x1, y1))
    x, y = start
    assert np.abs(np.subtract(tab.explorer.state.box, (x, y, x + 24, y + 24))).max() <= 1
    drag(tab, (x + 12, y + 12), (x + 22, y + 17))                 # inside: move
    settle(tab, lambda: tab.explorer.state.box[0] > x + 5)
    assert np.abs(np.subtract(tab.explorer.state.box, (x + 10, y + 5, x + 34, y + 29))).max() <= 1
    a, b, c, d = tab.explorer.state.box
    drag(tab, (c, d), (c - 8, d - 8))                             # a corner: resize
    settle(tab, lambda: tab.explorer.state.box[2] < c - 4)
    assert np.abs(np.subtract(tab.explorer.state.box, (a, b, c - 8, d - 8))).max() <= 1
    drag(tab, (120, 60), (127, -40))                              # out of the picture
    settle(tab, lambda: tab.explorer.state.box[2] > 115)
    x0, y0, x1, y1 = tab.explorer.state.box
    assert 0 <= y0 and x1 <= SIZE and [w["do"] for w in tab.bridge.wishes] == ["draw"] * 4


def test_everything_without_a_mouse(tab):
    keys, state = tab.page.keyboard, lambda: tab.explorer.state
    tab.page.locator(".stage").focus()
    box = state().box
    keys.press("ArrowLeft")
    keys.press("ArrowUp")
    keys.press("Shift+ArrowLeft")
    settle(tab, lambda: state().box != box)
    assert np.subtract(state().box, box).tolist() == [-3, -2, -3, -2] and len(tab.bridge.wishes) == 1    # one question for three keys
    side = state().box[2] - state().box[0]
    keys.press("+")
    settle(tab, lambda: state().box[2] - state().box[0] > side)
    keys.press("-")
    keys.press("Enter")                                           # asks at once, with the smaller box
    settle(tab, lambda: tab.bridge.wishes[-1]["do"] == "search")
    keys.press("r")
    keys.press("ArrowRight")
    tile = state().hits.table.tile.iloc[1]
    keys.press("g")
    settle(tab, lambda: state().good == (tile,))
    assert tab.page.evaluate("document.activeElement.dataset.tile") == str(tile)      # focus stays where it was
    assert "marked good" in tab.page.evaluate("document.activeElement.getAttribute('aria-label')")
    keys.press("b")
    settle(tab, lambda: state().bad == (tile,))
    keys.press("u")
    settle(tab, lambda: state().good == (tile,))
    keys.press("Enter")
    settle(tab, lambda: tab.bridge.wishes[-1]["do"] == "search")
    keys.press("a")
    settle(tab, lambda: state().seed == 1)
    keys.press("d")
    settle(tab, lambda: state().seed == 0)
    keys.press("r")
    keys.press("o")
    settle(tab, lambda: tab.bridge.wishes[-1]["do"] == "open")
    assert tab.page.evaluate("document.activeElement.className") == "stage"
    keys.press("p")
    settle(tab, lambda: tab.bridge.wishes[-1] == dict(do="step", by=-1))
    keys.press("?")
    assert tab.page.locator("dialog").is_visible()
    n = len(tab.bridge.wishes)
    keys.press("u")
    keys.press("Escape")
    assert not tab.page.locator("dialog").is_visible() and len(tab.bridge.wishes) == n


def test_tab_walks_through_every_control_in_order_and_each_has_a_name(tab):
    names = []
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        what = tab.page.evaluate("(e => e === document.body ? null : e.getAttribute('aria-label') || (e.labels && e.labels[0] ? e.labels[0].textContent : '') || e.textContent)(document.activeElement)")
        if what is None or what in names[:1]:
            break
        names += [what] * (what not in names[-1:])                # a date is four stops
    assert all(name.strip() for name in names), names
    names = ["Filters" if n.startswith("Filters") else n for n in names]
    order = ["Upload", "Help", "Channel", "Previous frame", "Date", "Next frame", "Frame", "The Sun with a box on it", "Search", "Random view", "Download", "How many answers", "Filters"]
    assert [n for n in names if n in order] == order and any(n.startswith("Answer 1: similarity") for n in names)


def test_controls_do_what_they_say(tab):
    p, state = tab.page, lambda: tab.explorer.state
    p.locator(".card").nth(0).locator("canvas").click()
    settle(tab, lambda: len(state().good) == 1)
    assert p.locator(".card.good").count() == 1 and "1 good" in p.locator("button.primary").inner_text()
    p.get_by_role("button", name="Undo").click()
    settle(tab, lambda: state().good == ())
    p.get_by_label("How many answers").fill("9")
    settle(tab, lambda: state().k == 9)
    p.locator("summary").click()
    p.get_by_label("mu: 1 centre, 0 limb, from").fill("0.6")
    p.get_by_label("mu: 1 centre, 0 limb, from").blur()
    settle(tab, lambda: state().filters.get("mu") == (.6, 1))
    assert (state().hits.table.mu >= .6).all()
    p.get_by_label("Answers apart by").select_option("3 days")
    settle(tab, lambda: state().filters.get("spread") == "3 days")
    p.get_by_role("button", name="Clear all").click()
    settle(tab, lambda: state().filters == {})
    p.get_by_label("Channel", exact=True).first.select_option("193")
    settle(tab, lambda: tab.explorer.frame.channel == "193")
    p.get_by_label("Frame", exact=True).fill("2")
    settle(tab, lambda: tab.widget.view["at"] == 2)
    with p.expect_download() as download:
        p.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "search-sdo.zip"
    assert zipfile.ZipFile(download.value.path()).testzip() is None


def test_uploads_through_the_page_and_names_that_are_html(tab, page):
    p = tab.page
    noise = png_of(np.random.default_rng(0).integers(256, size=(1200, 1200)))       # more than one piece
    assert len(noise) > 1 << 20
    name = "<img src=x onerror=window.pwned=1>.png"
    p.set_input_files("input[type=file]", dict(name=name, mimeType="image/png", buffer=noise))
    settle(tab, lambda: tab.explorer.state.frame == -1)
    p.wait_for_timeout(50)
    assert name in p.locator(".caption").inner_text() and p.locator(".sdo img").count() == 0 and p.evaluate("window.pwned") is None
    assert [w["at"] for w in tab.bridge.wishes] == [0, 1 << 20]
    p.set_input_files("input[type=file]", dict(name="evil.png", mimeType="image/png", buffer=b"\x89PNG nonsense"))
    settle(tab, lambda: tab.widget.view["said"]["error"])
    p.wait_for_timeout(50)
    assert p.locator(".status.error").inner_text().startswith("evil.png: ") and tab.explorer.state.frame == -1


def test_no_markup_is_ever_made_from_words():
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "http://", "https://", "//cdn", "@import", "url("):
        assert word not in ESM + CSS, word


def luminance(colour):
    rgb = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)] if len(colour) == 7 else [int(c * 2, 16) / 255 for c in colour[1:4]]
    r, g, b = (c / 12.92 if c <= .03928 else ((c + .055) / 1.055) ** 2.4 for c in rgb)
    return .2126 * r + .7152 * g + .0722 * b


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read(theme):
    "WCAG 2.1, 1.4.3: contrast of at least 4.5"
    blocks = re.findall(r"\{(--bg.*?)(?:\n|\})", CSS)
    colours = dict(re.findall(r"--(\w+): (#\w+)", blocks[theme == "dark"]))
    for ink, ground in [("ink", "bg"), ("ink", "panel"), ("soft", "bg"), ("soft", "panel"), ("bad", "bg"), ("bad", "panel"), ("good", "panel"), ("on", "sun"), ("panel", "good"), ("panel", "bad")]:
        high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (high + .05) / (low + .05) >= 4.5, (theme, ink, ground)


def test_the_theme_follows_the_host(browser, page):
    tab, _, faults = opened(browser, page, color_scheme="dark")
    theme = lambda: tab.evaluate("document.querySelector('.sdo').dataset.theme")
    assert theme() == "dark"
    tab.evaluate("document.body.setAttribute('data-jp-theme-light', 'true')")      # JupyterLab in light, on a dark desktop
    tab.wait_for_function("document.querySelector('.sdo').dataset.theme === 'light'")
    tab.evaluate("document.body.removeAttribute('data-jp-theme-light'); document.documentElement.setAttribute('theme', 'dark')")      # Colab
    tab.wait_for_function("document.querySelector('.sdo').dataset.theme === 'dark'")
    tab.close()
    assert faults == []


def test_on_a_telephone_nothing_is_cut_off(browser, page):
    tab, _, faults = opened(browser, page, viewport=dict(width=360, height=740), has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.evaluate("[...document.querySelectorAll('.sdo button, .sdo select')].filter(e => e.offsetParent).every(e => { const r = e.getBoundingClientRect(); return r.left >= 0 && r.right <= 360 && r.height >= 30; })")
    tab.close()
    assert faults == []


def test_keys_stay_in_the_page(tab):
    "A notebook around it must not delete a cell because somebody marks a tile bad"
    tab.page.evaluate("window.leaked = []; document.addEventListener('keydown', e => leaked.push(e.key))")
    tab.page.locator(".card").first.focus()
    for key in ("b", "x", "Enter", "ArrowDown"):
        tab.page.keyboard.press(key)
    assert tab.page.evaluate("leaked") == [] and tab.page.locator("[data-lm-suppress-shortcuts=true]").count() == 1


def test_a_page_that_is_closed_hears_nothing_more(tab):
    tab.page.evaluate("cleanup()")
    tab.page.get_by_role("button", name="Random view").click()
    settle(tab, lambda: tab.explorer.state.seed == 1)
    assert tab.page.locator("button", has_text="As drawn").is_hidden()


# --- in a browser, through Voilà --------------------------------------------------------------------------------------

def test_an_engine_that_is_not_there_is_named_before_voila_starts(tmp_path):
    pytest.importorskip("voila")
    with pytest.raises(FileNotFoundError, match="engine.json: missing"):
        serve_app(tmp_path / "no", port=1)


def test_the_notebook_of_the_app_holds_any_path():
    path = '/tmp/it\'s "mine"\n\\x'
    names = dict(explore=lambda engine, app: (engine, app))
    source = app_notebook(path)["cells"][0]["source"].splitlines()[-1].replace("SearchEngine.open", "str")
    assert eval(source, names) == (path, True)


def test_through_voila(browser, engine, tmp_path, monkeypatch):
    pytest.importorskip("voila")
    folder = engine.package.path.parent / "engine"
    notebook = write_app(folder, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(page_module.__file__).split("/search_sdo/search/")[0])
    port = free_port()
    command = [part for part in app_command(notebook, port, "127.0.0.1") if "preheat" not in part and "pool" not in part]
    voila = subprocess.Popen(command, cwd=notebook.parent, env=app_environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, tab, asked = f"http://127.0.0.1:{port}", browser.new_page(color_scheme="dark"), []
    try:
        wait_for(address + "/voila/files/x", voila)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address, timeout=120_000)
        tab.wait_for_selector(".card", timeout=90_000)
        assert tab.locator(".sdo.app").count() == 1 and tab.evaluate("document.querySelector('.sdo').dataset.theme") == "dark"
        tab.locator(".card").first.focus()
        tab.keyboard.press("g")
        tab.wait_for_selector(".card.good")
        tab.set_input_files("input[type=file]", dict(name="x.png", mimeType="image/png", buffer=png_of(np.random.default_rng(0).integers(256, size=(60, 90)))))
        tab.wait_for_function("document.querySelector('.caption').textContent.startsWith('x.png')", timeout=30_000)
        assert [url for url in asked if not url.startswith((address, "blob:", "data:", f"ws://127.0.0.1:{port}"))] == []
        for path in ("Search%20the%20Sun.ipynb", "../share/voila/templates/sun/conf.json", "%2e%2e/%2e%2e/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/voila/files/{path}")
            assert refused.value.code in (403, 404)
    finally:
        tab.close()
        voila.terminate()
        voila.wait()


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process):
    for _ in range(600):
        assert process.poll() is None, "Voilà did not start"
        try:
            return urllib.request.urlopen(url)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(.1)
    raise AssertionError("Voilà did not answer")
