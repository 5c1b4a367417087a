"""The swipe view: deeds land on the tile that was on show, and it works with keys, mouse, thumb and screen reader in a real browser."""
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles
from search_sdo.search.curate import Curator
from search_sdo.search.swipe import SCRIPT, STYLE, WIDGET, Swipe, caption, cards

CLASSES = ["active region", "quiet Sun", "<img src=x onerror=alert(1)>", "limb", "filament"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    package = Package.build(SmallSun(seed=0).frames(n=2, cadence="9D", size=128), tmp_path_factory.mktemp("swipe") / "package", size=128)
    tiles = Tiles.grid(package, 32)
    vectors = np.random.default_rng(0).normal(size=(len(tiles), 8)).astype(np.float16)
    return SimpleNamespace(tiles=tiles, package=package, embeddings=SimpleNamespace(vectors=vectors))


@pytest.fixture
def swipe(engine, tmp_path):
    return Swipe(Curator(engine, CLASSES, tmp_path / "marks.jsonl", who="Ada"), n=4)


def on_show(swipe):
    return swipe.deck[swipe.at]["tile"]


# --- without a browser -----------------------------------------------------------------------------------------------

def test_a_late_second_press_marks_nothing(swipe):
    first = on_show(swipe)
    for _ in range(2):
        swipe.receive(dict(do="mark", tile=first, label="limb"))
    assert swipe.curator.seen.tile.tolist() == [first] and on_show(swipe) != first


@pytest.mark.parametrize("message", [{}, dict(do="erase"), dict(do="mark"), dict(do="mark", tile=-1, label="limb"), dict(do="mark", tile="x", label="limb"), dict(do="skip", tile=None)])
def test_what_is_no_deed_is_not_heard(swipe, message):
    swipe.receive(message)
    swipe.receive(dict(do="mark", tile=on_show(swipe), label="no class"))
    assert not swipe.curator.path.exists()


def test_undo_shows_the_tile_again_even_from_an_earlier_deal_and_redo_passes_it(swipe):
    seen = []
    for _ in range(5):
        seen.append(on_show(swipe))
        swipe.receive(dict(do="mark", tile=seen[-1], label="limb"))
    next_tile = on_show(swipe)
    for tile in seen[:0:-1]:
        swipe.receive(dict(do="undo"))
        assert on_show(swipe) == tile
    swipe.receive(dict(do="redo"))
    assert on_show(swipe) != seen[1] and swipe.curator.seen.tile.tolist() == seen[:2]
    assert next_tile in [card["tile"] for card in swipe.deck]


def test_the_archive_ends(swipe):
    for _ in range(len(swipe.curator.engine.tiles)):
        swipe.receive(dict(do="skip", tile=on_show(swipe)))
    assert swipe.state()["deck"] == [] and "Nothing is left" in swipe.said
    swipe.receive(dict(do="mark", tile=0, label="limb"))
    swipe.receive(dict(do="undo"))
    assert len(swipe.deck) == 1 and swipe.at == 0


def test_state_is_json_and_says_where_and_when(swipe):
    state = json.loads(json.dumps(swipe.state()))
    assert state["counts"] == [0] * 5 and "UTC, 171" in state["deck"][0]["caption"]
    tiles = swipe.curator.engine.tiles
    middle = int(tiles.table.mu.idxmax())
    card = cards(tiles, [middle])[0]
    assert abs(card["x"]) < .5 and card["picture"].startswith("data:image/png;base64,")
    assert "off the disk" in caption(next(tiles.table[tiles.table.mu.isna()].itertuples())) if tiles.table.mu.isna().any() else True


def test_nothing_is_fetched_from_a_network():
    assert not [word for word in ("http", "//cdn", "@import", "fetch(", "url(") if word in SCRIPT + STYLE]


def test_the_sheet_stands_in_where_there_are_no_widgets(swipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    bundle = swipe._repr_mimebundle_()
    assert WIDGET not in bundle and bundle["text/html"].count("<img") == 4 and "<script" not in bundle["text/html"]
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[app\]"'):
        swipe.widget


def test_the_widget_carries_deeds_both_ways(swipe):
    pytest.importorskip("anywidget")
    first, widget = on_show(swipe), swipe.widget
    widget._handle_custom_msg(dict(do="mark", tile=first, label="limb"), [])
    assert widget.at == 1 and widget.counts == [0, 0, 0, 1, 0] and "limb" in widget.said
    widget._handle_custom_msg("nonsense", [])
    assert swipe.curator.votes.to_dict() == {"Ada": {first: "limb"}} and WIDGET in swipe._repr_mimebundle_()


# --- in a browser ----------------------------------------------------------------------------------------------------

MODEL = """
window.state = %s; window.listeners = {};
window.model = { get: name => state[name], on: (name, f) => (listeners[name] ??= []).push(f), off() {},
  send: async message => { Object.assign(state, JSON.parse(await window.hear(JSON.stringify(message)))); for (const f of Object.values(listeners).map(all => all[0])) f(); } };
"""


def opened(browser, swipe, **options):
    "A page with the view in it, whose deeds go to Python"
    page = browser.new_context(**options).new_page()
    page.faults = []
    page.on("pageerror", lambda fault: page.faults.append(str(fault)))
    page.on("request", lambda request: page.faults.append(request.url) if request.url.startswith("http") else None)

    def hear(message):
        swipe.receive(json.loads(message))
        return json.dumps(swipe.state())
    page.expose_function("hear", hear)
    page.set_content('<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><style>body{margin:8px}' + STYLE + '</style><div id="el"></div></html>')
    page.evaluate(MODEL % json.dumps(swipe.state()))
    page.add_script_tag(type="module", content=SCRIPT.replace("export default { render };", "render({ model, el: document.getElementById('el') });"))
    page.wait_for_selector(".sdo-swipe .picture")
    return page


@pytest.fixture
def page(browser, swipe):
    page = opened(browser, swipe, viewport=dict(width=1000, height=800))
    yield page
    assert page.faults == []
    page.context.close()


def press(page, swipe, key):
    "Press a key and wait for what it did"
    said = page.inner_text(".say")
    page.keyboard.press(key)
    page.wait_for_function("said => document.querySelector('.say').textContent !== said", arg=said)


@pytest.mark.parametrize("key, label", [("1", 0), ("5", 4), ("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowUp", 2), ("ArrowDown", 3)])
def test_a_key_for_each_class(page, swipe, key, label):
    tile = on_show(swipe)
    page.focus(".sdo-swipe")
    press(page, swipe, key)
    assert swipe.curator.votes.to_dict() == {"Ada": {tile: CLASSES[label]}} and page.locator(".count").nth(label).inner_text() == "1"


def test_all_by_keyboard(page, swipe):
    page.keyboard.press("Tab")
    first = on_show(swipe)
    for key, marked in (("4", 1), ("s", 1), ("u", 1), ("u", 0), ("r", 1)):
        press(page, swipe, key)
        assert len(swipe.curator) == marked, key
    assert swipe.curator.votes.to_dict() == {"Ada": {first: "limb"}}
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "class"
    press(page, swipe, "Enter")
    assert len(swipe.curator) == 2


def test_keys_of_the_browser_stay_its_own(page, swipe):
    page.focus(".sdo-swipe")
    for key in ("Control+1", "Alt+s", "9", "x"):
        page.keyboard.press(key)
    page.wait_for_timeout(100)
    assert len(swipe.curator.seen) == 0


def test_a_hostile_class_is_text(page):
    assert page.locator("img").count() == 1 and CLASSES[2] in page.locator(".name").nth(2).inner_text()


def test_screen_readers_are_told(page, swipe):
    assert page.get_by_role("group").get_attribute("aria-label") and page.get_by_role("status").inner_text()
    assert page.get_by_role("button", name="limb, 0 marked, key 4").count() == 1
    assert "UTC" in page.get_by_role("img").get_attribute("alt")


def drag(page, dx, dy):
    "Pull the card with the pointer"
    box = page.locator(".picture").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


@pytest.mark.parametrize("dx, dy, label", [(-120, 10, 0), (120, 0, 1), (0, -100, 2), (5, 100, 3)])
def test_a_pull_marks_and_a_small_one_does_not(page, swipe, dx, dy, label):
    drag(page, dx / 4, dy / 4)
    page.wait_for_timeout(50)
    assert len(swipe.curator) == 0
    drag(page, dx, dy)
    page.wait_for_function("document.querySelector('.say').textContent.startsWith('Tile')")
    assert swipe.curator.seen.label.tolist() == [CLASSES[label]]


def test_a_thumb_on_a_phone(browser, swipe, tmp_path):
    page = opened(browser, swipe, viewport=dict(width=360, height=640), has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert all(page.locator("button").nth(i).bounding_box()["height"] >= 44 for i in range(page.locator("button").count()))
    box, touch = page.locator(".picture").bounding_box(), page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch.send("Input.dispatchTouchEvent", dict(type="touchStart", touchPoints=[dict(x=x, y=y)]))
    for step in (40, 80, 120):
        touch.send("Input.dispatchTouchEvent", dict(type="touchMove", touchPoints=[dict(x=x + step, y=y)]))
    touch.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
    page.wait_for_function("document.querySelector('.say').textContent.startsWith('Tile')")
    assert swipe.curator.seen.label.tolist() == ["quiet Sun"] and page.faults == []
    page.context.close()
