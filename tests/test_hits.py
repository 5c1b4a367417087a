"What one can do with an answer: addresses that name the right place and record, files that hold what they say, and why"
import json
import re
from urllib.parse import parse_qs, urlparse

import numpy as np
import pandas as pd
import pytest
from engines import small_engine
from search_sdo.packager.channels import CHANNELS
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.hits import covered, jsoc_query, place, plain

SIZE, TILE = 128, 16
SUN = SmallSun(seed=2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory): return small_engine(tmp_path_factory.mktemp("hits"), SUN.frames(8, cadence="30h", size=SIZE), SIZE, TILE)


@pytest.fixture(scope="module")
def hits(engine): return engine.search(int(engine.tiles.table.mu.argmax()), k=5)


# ---- addresses


def test_helioviewer_shows_the_place_that_the_map_knows(hits):
    for link, m, hit in zip(hits.to_helioviewer(), hits.to_maps(), hits.table.itertuples()):
        url, q = urlparse(link), {k: v[0] for k, v in parse_qs(urlparse(link).query).items()}
        assert (url.scheme, url.netloc, url.path) == ("https", "api.helioviewer.org", "/v2/takeScreenshot/")
        assert float(q["x0"]) == pytest.approx(m.center.Tx.value, abs=m.scale[0].value) and -float(q["y0"]) == pytest.approx(m.center.Ty.value, abs=m.scale[0].value)
        assert float(q["imageScale"]) * int(q["width"]) == pytest.approx(TILE * m.scale[0].value, rel=1e-3)
        assert pd.Timestamp(q["date"]).tz_localize(None) == hit.time.floor("s") and q["layers"] == "[10,1,100]"


@pytest.mark.parametrize("channel", CHANNELS)
def test_jsoc_names_one_record_around_the_time(channel):
    time = pd.Timestamp("2014-01-01T00:10:07")
    found = re.fullmatch(r"([\w.]+)\[([-\dT:]+)Z/(\d+)s\](?:\[(\d+)\])?", jsoc_query(channel, time))
    start, step = pd.Timestamp(found[2]), pd.Timedelta(seconds=int(found[3]))
    assert found[1] == CHANNELS[channel].series and start <= time <= start + step
    assert abs(start + step / 2 - time) <= pd.Timedelta("1s")
    assert step == pd.Timedelta({"12s": "12s", "24s": "24s", "1h": "1h", "720s": "720s"}[found[1].rsplit("_")[-1]])
    assert found[4] == (str(CHANNELS[channel].wavelength) if CHANNELS[channel].instrument == "AIA" else None)


@pytest.mark.parametrize("lon, lat, words", [(34.2, 11.6, "N12 W34"), (-5, -20, "S20 E05"), (0, 0, "N00 W00"), (np.nan, np.nan, "off the disk")])
def test_places_in_words(lon, lat, words): assert place(lon, lat) == words


# ---- files


def test_a_folder_says_everything_in_json(hits, tmp_path):
    told = json.loads((hits.save(tmp_path / "found") / "hits.json").read_text())
    assert told["query"]["tile"] == hits.asked.tile and told["package"] == "package" and "Courtesy of NASA/SDO" in told["credit"]
    assert [h["tile"] for h in told["hits"]] == hits.table.tile.tolist()
    assert [h["jsoc"] for h in told["hits"]] == hits.to_jsoc() and [h["helioviewer"] for h in told["hits"]] == hits.to_helioviewer()
    assert [pd.Timestamp(h["time"]).tz_localize(None) for h in told["hits"]] == [t.floor("ms") for t in hits.table.time]


def test_examples_stand_in_the_json_and_off_disk_hits_are_no_nan(engine, tmp_path):
    found = engine.search([3, 40], unlike=90, k=3)
    found.table[["lon", "lat", "mu"]] = np.nan
    told = json.loads((found.save(tmp_path / "off") / "hits.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert told["query"]["examples"] == ["tile 3", "tile 40"] and told["query"]["unlike"] == ["tile 90"]
    assert {h["place"] for h in told["hits"]} == {"off the disk"} and {h["lon"] for h in told["hits"]} == {None}


def test_no_hits_and_points_can_be_saved_and_shown(engine, tmp_path):
    for hits in (engine.search(3, after="2030"), engine.search(np.asarray(engine.embeddings.vectors[3]), k=2)):
        assert (hits.save(tmp_path / str(len(hits))) / "hits.json").exists()
    with pytest.raises(ValueError, match="none to draw"): engine.search(3, after="2030").contact()


def test_a_contact_sheet_has_all_hits(engine):
    import matplotlib.pyplot as plt
    figure = engine.search(3, k=7, spread=None).contact(columns=3)
    assert sum(bool(ax.images) for ax in figure.axes) == 7 and len(figure.axes) == 9
    plt.close(figure)


@pytest.mark.parametrize("name, shown", [("a$\\frac{$", "a\\$\\frac{\\$"), ("two\nlines\x00\x1b[31m", "two lines [31m"), ("<b>x</b>", "<b>x</b>"), ("", "")])
def test_names_that_a_title_can_show(name, shown):
    assert plain(name) == shown
    assert len(plain(name * 100)) <= 60


def test_titles_with_hostile_names_are_drawn(hits, tmp_path):
    import matplotlib.pyplot as plt
    from dataclasses import replace
    asked = replace(hits.asked, name="$\\undefined{" + "../" * 40)
    figure = replace(hits, asked=asked).show()
    figure.savefig(tmp_path / "x.png")
    plt.close(figure)


# ---- why


def test_places_add_up_to_the_similarity(hits):
    for rank in (1, 5):
        for each in hits.why(rank, "places"): assert each.sum() == pytest.approx(hits.table.similarity[rank - 1], abs=5e-3)


def test_covering_what_two_pictures_share_hurts_most():
    "A network that only shrinks; one bright spot is in both pictures, another is in each alone"
    import torch
    network, pictures = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()), torch.zeros(2, 1, TILE, TILE)
    pictures[:, :, 4:8, 4:8] = pictures[0, :, 12:, :4] = pictures[1, :, :4, 12:] = 1
    for x, other, alone in ((*pictures[:, None], (slice(12, 16), slice(0, 4))), (*pictures.flip(0)[:, None], (slice(0, 4), slice(12, 16)))):
        heat = covered(network, x, other, 4)
        assert heat.shape == (TILE, TILE) and heat[4:8, 4:8].min() == heat.max() > 0.1 and heat[alone].max() < 0


def test_why_needs_a_rank_and_a_picture(engine, hits):
    with pytest.raises(ValueError, match="rank: 9, expected 1 to 5"): hits.why(9)
    with pytest.raises(ValueError, match="way='magic'"): hits.why(1, "magic")
    with pytest.raises(ValueError, match="has no picture"): engine.search(np.asarray(engine.embeddings.vectors[3]), k=2).why(1)


def test_why_is_drawn(hits):
    import matplotlib.pyplot as plt
    figure = hits.show_why(2)
    assert len(figure.axes) == 2 and "hit 2" in figure.axes[1].get_title()
    plt.close(figure)
