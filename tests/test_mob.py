"""The rota is fair, and its clock works in a browser without Python."""
import json
import os
import socket
import subprocess
import sys
from collections import Counter

import pytest

from conftest import ROOT
from search_sdo.course.session import Retrospective, Session, session_notes
from search_sdo.course.mob import Rota, check_names, coauthors, rota, turn_minutes

SIZES = [(n, turns) for n in range(1, 9) for turns in range(1, 13)]


def people(n):
    return [f"p{i}" for i in range(n)]


def test_after_any_week_nobody_drove_more_than_once_more_than_anybody_else():
    for n, turns in SIZES:
        drove = Counter(dict.fromkeys(people(n), 0))
        for week in range(3 * n):
            drove.update(driver for driver, _ in rota(people(n), week, turns))
            assert max(drove.values()) - min(drove.values()) <= 1, (n, turns, week)


def test_in_as_many_weeks_as_people_everybody_goes_first_once():
    for n, turns in SIZES:
        assert Counter(rota(people(n), week, turns)[0][0] for week in range(n)) == Counter(people(n)), (n, turns)


def test_who_navigates_drives_next():
    for n, turns in [(n, turns) for n, turns in SIZES if n > 1]:
        week = rota(people(n), 5, turns)
        assert len(week) == turns
        assert all(driver != navigator for driver, navigator in week)
        assert all(now[1] == then[0] for now, then in zip(week, week[1:]))


def test_alone_one_does_both():
    assert rota(["Ada"], turns=2) == [("Ada", "Ada")] * 2


def test_the_list_is_not_changed_and_the_answer_repeats():
    names = ["Ada", "Ben", "Cleo"]
    assert rota(names, 7) == rota(names, 7) and names == ["Ada", "Ben", "Cleo"]


@pytest.mark.parametrize("names, message", [([], "empty"), (["", "  "], "empty"), ("", "empty"), (["Ada", " Ada"], "Ada stands twice")])
def test_faulty_names(names, message):
    with pytest.raises(ValueError, match=message):
        rota(names)
    with pytest.raises(ValueError, match=message):
        Rota(names)


@pytest.mark.parametrize("wrong", [dict(week=-1), dict(turns=0)])
def test_faulty_numbers(wrong):
    with pytest.raises(ValueError, match="expected week >= 0 and turns >= 1"):
        rota(["Ada"], **wrong)


def test_minutes_must_be_positive():
    with pytest.raises(ValueError, match="minutes=-3"):
        Rota("Ada, Ben", minutes=-3)


def test_names_may_be_one_text():
    assert check_names(" Ada , Ben,") == ["Ada", "Ben"]


def test_in_half_an_hour_everybody_drives():
    for n in range(3, 8):
        assert 4 <= turn_minutes(n) <= 10 and n * turn_minutes(n) <= 30


def test_coauthors_in_gits_format():
    assert coauthors({"Ada L.": "ada@x.org", "Ben": "b@y.org"}) == "Co-authored-by: Ada L. <ada@x.org>\nCo-authored-by: Ben <b@y.org>"
    with pytest.raises(ValueError, match="Ben: no e-mail"):
        coauthors({"Ada": "ada@x.org", "Ben": None})


# --- in a browser ----------------------------------------------------------------------------------------------------

@pytest.fixture
def page(browser):
    "A page whose clock we set"
    page = browser.new_page()
    page.clock.install(time=0)
    page.clock.pause_at(1_000)
    faults = []
    page.on("pageerror", lambda fault: faults.append(fault))
    yield page
    page.close()
    assert faults == []


def text(page, css, i=0):
    return page.locator(css).nth(i).inner_text()


def test_clock_counts_down_and_hands_over(page):
    page.set_content(Rota("Ada, Ben", turns=2, minutes=7)._repr_html_())
    assert text(page, ".clock") == "7:00" and text(page, "tr.now") .split() == ["1", "Ada", "Ben"]
    page.click(".go")
    page.clock.run_for(65_000)
    assert text(page, ".clock") == "5:55"
    page.click(".go")  # pause
    page.clock.run_for(60_000)
    assert text(page, ".clock") == "5:55"
    page.click(".go")
    page.clock.run_for(360_000)
    assert text(page, ".clock") == "+0:05" and text(page, ".say") == "Hand over the keyboard: Ben drives."
    page.click(".next")
    assert text(page, ".clock") == "7:00" and text(page, "tr.now").split() == ["2", "Ben", "Ada"]


def test_clock_does_not_drift_when_the_page_sleeps(page):
    page.set_content(Rota("Ada, Ben", minutes=7)._repr_html_())
    page.click(".go")
    page.clock.fast_forward(180_000)  # timers fire at most once, as in a laptop that was closed
    page.clock.run_for(1_000)
    assert text(page, ".clock") == "3:59"


def test_two_clocks_on_one_page_do_not_disturb_each_other(page):
    page.set_content(Rota("Ada, Ben", minutes=7)._repr_html_() + Rota("Cleo, Dev", minutes=4)._repr_html_())
    page.locator(".go").nth(1).click()
    page.clock.run_for(1_000)
    assert [text(page, ".clock", i) for i in (0, 1)] == ["7:00", "3:59"]


def test_a_name_is_never_markup(page):
    page.set_content(Rota(["<img src=x onerror=alert(1)>", "Ben"])._repr_html_())
    assert page.locator("img").count() == 0 and "<img" in text(page, "tbody")


def test_without_scripts_the_table_is_there_and_no_dead_button(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(Rota("Ada, Ben", turns=3)._repr_html_())
    assert page.locator("tbody tr").count() == 3 and not page.locator("button").first.is_visible()
    context.close()


# looking back

def test_the_card_gives_its_answers_as_text(page):
    page.set_content(Retrospective(["What <b>stands out</b>?", "And?"])._repr_html_())
    assert page.locator(".sdo-retro b").count() == 0
    page.locator("textarea").nth(0).fill("the limb")
    page.locator("textarea").nth(1).fill("nothing")
    page.click("button")
    assert text(page, "pre") == "- What <b>stands out</b>? the limb\n- And? nothing"


def test_a_session_survives_and_a_stranger_is_refused(tmp_path):
    first = Session(tmp_path / "log.jsonl", {"Ada": "ada@example.org", "Ben": ""}, "Tiles")
    first.drive("Ada"), first.note("a < b", "Ben")
    again = Session(tmp_path / "log.jsonl", "Ada, Ben, Cleo", "Tiles")
    assert again.drove == {"Ada": 1, "Ben": 0, "Cleo": .5}
    assert [driver for driver, _ in again.rota(3)] == ["Ben", "Cleo", "Ada"]
    assert "- a < b (Ben)" in session_notes(again)
    with pytest.raises(ValueError, match="who='Eve': not here tonight"):
        again.drive("Eve")


# in JupyterLab, with a kernel that does something else

@pytest.fixture
def lab(tmp_path):
    "The address of a JupyterLab with one notebook: a rota, a card, and a cell that never ends"
    cells = ["from search_sdo.course.mob import Rota\nRota('Ada, Ben', turns=2, minutes=7)", "import time\nwhile True: sum(range(100_000))"]
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, source=source, outputs=[], execution_count=None) for i, source in enumerate(cells)]
    kernel = dict(name="python3", display_name="Python 3", language="python")
    (tmp_path / "mob.ipynb").write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    with subprocess.Popen([sys.executable, "-m", "jupyterlab", *settings], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | dict(PYTHONPATH=str(ROOT))) as server:
        yield f"http://127.0.0.1:{port}/lab/tree/mob.ipynb"
        server.terminate()


def test_the_clock_runs_and_hands_over_while_the_kernel_is_busy(lab, browser):
    page = browser.new_page()
    for _ in range(240):                                # until the server is up
        try:
            page.goto(lab)
            break
        except Exception:
            page.wait_for_timeout(500)
    page.locator(".jp-Cell .cm-content").first.click(timeout=120_000)
    for _ in range(2):                                  # run a cell and go to the next
        page.keyboard.press("Shift+Enter")
    page.locator(".sdo-rota .go").wait_for(timeout=120_000)
    page.get_by_text("[*]:").last.wait_for(timeout=120_000)    # the second cell runs, and goes on running
    page.locator(".sdo-rota .go").click()
    page.wait_for_function("document.querySelector('.sdo-rota .clock').textContent <= '6:58'", timeout=60_000)
    page.locator(".sdo-rota .next").click()
    assert page.locator(".sdo-rota tr.now").inner_text().split() == ["2", "Ben", "Ada"]
    assert page.get_by_text("[*]:").count() >= 1
    page.close()
