"""The encoders that ship with the library: they are there, they fit, and they are what their cards say."""
import json

import numpy as np
import pandas as pd
import pytest

from real_data import DATA, needs_data
from search_sdo.models.encoder import TRAINED, Encoder, shipped_encoders
from search_sdo.models.trained import RUNS, SETS, build_package, model_card, ship
from search_sdo.models.train import SETTINGS, plain


def test_four_encoders_ship():
    assert shipped_encoders() == sorted(RUNS) == sorted(SETS)


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_encoder_embeds_raw_pictures(name):
    encoder = Encoder.load(name)
    pictures = np.random.default_rng(0).uniform(0, 255, (3, 64, 64)).astype(np.float32)
    pictures[2, :20] = np.nan
    features = encoder.embed(pictures)
    assert features.shape == (3, encoder.dim) and np.isfinite(features).all() and np.linalg.matrix_rank(features) == 3
    assert encoder.unit == "display" and encoder.channels == (name.removeprefix("aia"),)


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_encoder_is_small_and_has_a_card(name):
    assert (TRAINED / name / "weights.safetensors").stat().st_size <= 8e6
    card = (TRAINED / name / "README.md").read_text(encoding="utf-8")
    for words in (f'Encoder.load("{name}")', "NASA/SDO", "supervised (ceiling)", "ours, no labels", "## Limits", SETS[name]["before"]):
        assert words in card


@pytest.mark.parametrize("name", RUNS)
def test_the_committed_script_would_train_it_the_same_way(name):
    kept = json.loads((TRAINED / name / "run.json").read_text(encoding="utf-8"))
    asked = dict(before=SETS[name]["before"]) | RUNS[name]
    assert set(asked) <= set(SETTINGS)
    assert kept["finished"] and {k: kept["settings"][k] for k in asked} == json.loads(json.dumps({k: plain(v) for k, v in asked.items()}))


def test_a_run_that_is_too_big_is_not_shipped(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(bytes(8_000_001))
    with pytest.raises(ValueError, match="8.0 MB, expected at most 8"):
        ship("aia171", tmp_path)


def test_an_unknown_set_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="'aia94' is not a set; choose from aia171"):
        build_package("aia94", tmp_path, tmp_path / "package")
    with pytest.raises(FileNotFoundError, match="give the folder that holds deepsdo"):
        build_package("hmi_ic", tmp_path, tmp_path / "package")


def test_the_card_shows_the_scores_it_is_given():
    run = json.loads((TRAINED / "hmi_ic/run.json").read_text(encoding="utf-8"))
    card = model_card("hmi_ic", Encoder.load("hmi_ic"), run, pd.DataFrame(dict(macro=[.51234, np.nan], region=[.25, .5]), index=["chance", "ours"]))
    assert "| chance | 0.512 | 0.250 |" in card and "| ours |  | 0.500 |" in card


@needs_data
def test_sunspots_of_later_months_are_found_better_than_by_brightness(tmp_path):
    from search_sdo.models.baselines import mean_std
    from search_sdo.models.evaluate import compare

    table = pd.read_csv(DATA / "deepsdo/tiles64.csv").query("channel == 'HMI_Ic'").assign(time=lambda t: pd.to_datetime(t.date))
    table = table[(table.time < SETS["hmi_ic"]["before"]) | (table.time >= SETS["hmi_ic"]["split"])].groupby("label").sample(240, random_state=0)
    from search_sdo.packager.frame import read_image

    windows = {file: read_image(DATA / "deepsdo/images" / file, channel="hmi_ic") for file in table.file.unique()}
    pictures = np.stack([windows[r.file][r.y0:r.y0 + 64, r.x0:r.x0 + 64] for r in table.itertuples()])
    gallery = (table.time < SETS["hmi_ic"]["before"]).to_numpy()
    scores = compare({"ours": Encoder.load("hmi_ic").embed(pictures), "light": (mean_std(pictures / 255), "best")}, table.label, gallery).macro
    assert scores["ours"] > scores["light"] + .1
