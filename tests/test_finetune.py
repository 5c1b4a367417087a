"""Forecast scores against hand-made tables and scikit-learn; heads against scikit-learn; faults; and one honest number from the real Sun."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from real_data import DATA, needs_data
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.finetune import FineTuned, OrdinalHead, class_numbers, fine_tune
from search_sdo.models.forecast import (
    LEVELS, balanced_weights, contingency, flare_levels, forecast_scores, ordinal_loss, ordinal_probability, reliability,
    skill_scores)
from search_sdo.packager.labels import flare_target, read_flares


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(make_backbone(widths=(8, 16)), size=32)


@pytest.fixture(scope="module")
def images():
    "Sixty squares on noise, the later the brighter"
    pictures = np.random.default_rng(0).uniform(0, 60, (60, 32, 32)).astype(np.float32)
    pictures[:, 10:20, 10:20] += np.linspace(0, 180, 60)[:, None, None]
    return pictures


@pytest.fixture(scope="module")
def classes():
    "Not sharp at the borders"
    return np.clip((np.linspace(0, 2.99, 60) + np.random.default_rng(1).normal(0, 0.3, 60)).astype(int), 0, 2)


def features(encoder, images):
    "As the head sees them"
    z = encoder.embed(images)
    return (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)


# Classes of flares

def test_levels_of_a_flare_list():
    flares = pd.DataFrame(dict(time=pd.to_datetime(["2014-01-01 05:00", "2014-01-01 23:00", "2014-01-03 01:00", "2014-01-04 00:30"]),
                               flux=[2e-6, 1e-5, 9.9e-7, 3e-4]))
    times = pd.Series(pd.date_range("2014-01-01", periods=4))
    levels = flare_levels(flare_target(times, flares, covers=("2014-01-01", "2014-01-04")))
    assert levels[:3].tolist() == ["M", "none", "none"] and levels.isna().tolist() == [False, False, False, True]
    assert (levels[:3] >= "C").tolist() == [True, False, False] and tuple(levels.cat.categories) == LEVELS


def test_unknown_is_not_none():
    target = pd.DataFrame(dict(max_flux=[np.nan, np.nan, 1e-4], max_class=["quiet", pd.NA, "X1.0"]))
    assert flare_levels(target).isna().tolist() == [False, True, False] and flare_levels(target)[2] == "X"


# Scores

def test_contingency_by_hand():
    truth, warned = [1, 1, 0, 0, 0, 1], [1, 0, 1, 0, 0, 1]
    assert contingency(truth, warned) == dict(hits=2, misses=1, false_alarms=1, quiet=2)


def test_scores_of_finleys_tornado_forecasts():
    "The best-known table of the field (1884): 28 hits, 72 false alarms, 23 misses, 2680 quiet; HSS and TSS as in Wilks 2011, section 8.2"
    scores = skill_scores(hits=28, misses=23, false_alarms=72, quiet=2680)
    assert scores["TSS"] == pytest.approx(0.523, abs=0.001) and scores["HSS"] == pytest.approx(0.355, abs=0.001)


def test_scores_at_their_ends():
    assert skill_scores(5, 0, 0, 20) == dict(TSS=1, HSS=1)
    assert skill_scores(0, 5, 20, 0)["TSS"] == -1
    for always in (dict(hits=5, misses=0, false_alarms=20, quiet=0), dict(hits=0, misses=5, false_alarms=0, quiet=20)):
        assert skill_scores(**always) == dict(TSS=0, HSS=0)


def test_tss_does_not_care_how_rare_events_are_and_hss_does():
    a, b = skill_scores(8, 2, 10, 40), skill_scores(8, 2, 100, 400)
    assert a["TSS"] == pytest.approx(b["TSS"]) and b["HSS"] < a["HSS"]


def test_scores_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    dice = np.random.default_rng(0)
    truth, p = dice.random(300) < 0.3, dice.random(300)
    row = forecast_scores(truth, p, threshold=0.6).loc["forecast"]
    assert row.Brier == pytest.approx(metrics.brier_score_loss(truth, p), abs=1e-12)
    assert row.HSS == pytest.approx(metrics.cohen_kappa_score(truth, p >= 0.6))
    assert row.TSS == pytest.approx(metrics.balanced_accuracy_score(truth, p >= 0.6, adjusted=True))
    assert [row.quiet, row.false_alarms, row.misses, row.hits] == metrics.confusion_matrix(truth, p >= 0.6).ravel().tolist()


def test_brier_skill_is_measured_from_climatology():
    truth = np.array([True, False, False, False])
    table = forecast_scores(truth, dict(usual=np.full(4, 0.25), perfect=truth.astype(float), opposite=1.0 - truth))
    assert table.BSS["usual"] == pytest.approx(0) and table.BSS["perfect"] == 1 and table.BSS["opposite"] == pytest.approx(1 - 1 / 0.1875)
    assert forecast_scores(truth, np.full(4, 0.5), climatology=0.5).BSS["forecast"] == pytest.approx(0)


def test_reliability_by_hand():
    table = reliability([0, 0, 1, 1, 0, 1], [0.1, 0.1, 0.1, 0.9, 1.0, 0.9], bins=2)
    assert table.n.tolist() == [3, 3] and table.forecast.tolist() == pytest.approx([0.1, 2.8 / 3])
    assert table.observed.tolist() == pytest.approx([1 / 3, 2 / 3]) and table.error[0] == pytest.approx(np.sqrt(2 / 27))


def test_brier_score_is_reliability_minus_resolution_plus_uncertainty():
    "Murphy's identity (1973), exact where every bin holds one probability"
    dice = np.random.default_rng(0)
    p = dice.choice([0.05, 0.35, 0.65, 0.95], 400)
    truth = dice.random(400) < p
    r, usual = reliability(truth, p, bins=4), truth.mean()
    terms = (r.n * (r.forecast - r.observed) ** 2).sum() / 400 - (r.n * (r.observed - usual) ** 2).sum() / 400 + usual * (1 - usual)
    assert forecast_scores(truth, p).Brier["forecast"] == pytest.approx(terms)


def test_reliability_equals_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    dice = np.random.default_rng(0)
    p = dice.random(500)
    truth = dice.random(500) < p ** 2
    observed, forecast = calibration.calibration_curve(truth, p, n_bins=10)
    table = reliability(truth, p, bins=10)
    np.testing.assert_allclose(table.observed, observed)
    np.testing.assert_allclose(table.forecast, forecast)


@pytest.mark.parametrize("truth, probability, message", [
    ([True, False], [0.1, 1.1], "from 0.1 to 1.1, expected 0 to 1"),
    ([True, False], [0.1, -0.1], "expected 0 to 1"),
    ([True, False], [0.1, np.nan], "expected 0 to 1"),
    ([True, False], [0.1], r"shape \[1\], expected \[2\]"),
    ([True, False], [[0.1, 0.9], [0.5, 0.5]], r"shape \[2, 2\], expected \[2\]"),
    ([1.0, np.nan], [0.1, 0.2], "expected True or False"),
    ([2, 1], [0.1, 0.2], "expected True or False"),
])
def test_a_forecast_that_is_none(truth, probability, message):
    for judge in (forecast_scores, reliability):
        with pytest.raises(ValueError, match=message):
            judge(truth, probability)


@pytest.mark.parametrize("truth, message", [([0, 0, 0], "0 events in 3 times"), ([1, 1, 1], "3 events in 3 times")])
def test_no_score_without_both(truth, message):
    with pytest.raises(ValueError, match=message):
        forecast_scores(truth, [0.1, 0.2, 0.3])


# Losses

def test_balanced_weights_equal_scikit_learn():
    utils = pytest.importorskip("sklearn.utils")
    y = np.array([0] * 20 + [1] * 5 + [2] * 2)
    theirs = utils.compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(balanced_weights(torch.from_numpy(y), 3), theirs, rtol=1e-6)
    assert balanced_weights(torch.tensor([0, 0, 3, 3]), 4).tolist() == [1, 0, 0, 1]


def test_ordinal_loss_by_hand():
    logits = torch.tensor([[2.0, -1.0]])
    s = lambda v: 1 / (1 + np.exp(-v))
    for y, expected in enumerate([-np.log(s(-2)) - np.log(s(1)), -np.log(s(2)) - np.log(s(1)), -np.log(s(2)) - np.log(s(-1))]):
        assert ordinal_loss(logits, torch.tensor([y])).item() == pytest.approx(expected, rel=1e-5)


def test_ordinal_loss_with_two_classes_is_logistic_regression():
    logits, y = torch.randn(20, 1), torch.randint(0, 2, (20,))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())
    assert ordinal_loss(logits, y).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_larger_mistake_costs_more():
    sure_of_none = torch.tensor([[-4.0, -5, -6]])
    losses = [ordinal_loss(sure_of_none, torch.tensor([y])).item() for y in range(4)]
    assert losses == sorted(losses) and losses[3] > losses[1] + 5


def test_ordinal_head_never_crosses_and_probabilities_add_up():
    head = OrdinalHead(5, 4)
    for seed in range(5):
        torch.manual_seed(seed)
        head.reset_parameters()
        p = ordinal_probability(head(5 * torch.randn(50, 5)))
        assert (p >= 0).all() and torch.allclose(p.sum(1), torch.ones(50), atol=1e-6)


# Heads on a frozen backbone

@pytest.mark.parametrize("weight_decay", [1e-2, 1.0])
def test_frozen_head_equals_scikit_learn(encoder, images, classes, weight_decay):
    linear = pytest.importorskip("sklearn.linear_model")
    z = features(encoder, images)
    theirs = linear.LogisticRegression(C=1 / (len(z) * weight_decay), tol=1e-8, max_iter=5000).fit(z, classes).predict_proba(z)
    ours = fine_tune(encoder, images, classes, weight_decay=weight_decay).predict(images)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_balanced_head_equals_scikit_learn(encoder, images):
    linear = pytest.importorskip("sklearn.linear_model")
    z, y = features(encoder, images), np.array([0] * 46 + [1] * 6 + [2] * 8)
    theirs = linear.LogisticRegression(C=1 / (len(z) * 0.1), class_weight="balanced", tol=1e-8, max_iter=5000).fit(z, y).predict_proba(z)
    ours = fine_tune(encoder, images, y, "balanced", weight_decay=0.1).predict(images)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert ours[:, 1].sum() > fine_tune(encoder, images, y, weight_decay=0.1).predict(images)[:, 1].sum() + 2


def test_mse_head_equals_ridge_regression(encoder, images):
    linear = pytest.importorskip("sklearn.linear_model")
    z, y = features(encoder, images), np.linspace(-8, -4, 60)
    theirs = linear.Ridge(alpha=60 * 0.1 / 2).fit(z, y).predict(z)
    ours = fine_tune(encoder, images, y, "mse", weight_decay=0.1)
    np.testing.assert_allclose(ours.predict(images), theirs, atol=5e-3)
    assert ours.classes == () and ours.predict(images).shape == (60,)


def test_a_frozen_head_needs_no_dice(encoder, images, classes):
    for loss in ("cross_entropy", "balanced", "ordinal"):
        runs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            runs.append(fine_tune(encoder, images, classes, loss).predict(images))
        np.testing.assert_allclose(*runs, atol=1e-5)


def test_frozen_means_frozen_and_the_encoder_is_untouched(encoder, images, classes):
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    model = fine_tune(encoder, images, classes)
    whole = fine_tune(encoder, images, classes, frozen=False, epochs=2, lr=1e-3)
    same = lambda net: all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert same(encoder.backbone) and same(model.encoder.backbone) and not same(whole.encoder.backbone)
    assert torch.equal(whole.encoder.backbone[1].running_mean, before["1.running_mean"])


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced", "ordinal"])
def test_full_fine_tuning_lowers_its_loss(encoder, images, classes, loss):
    right = lambda model: model.predict(images)[np.arange(60), classes].mean()
    frozen = fine_tune(encoder, images, classes, loss, weight_decay=1)
    whole = fine_tune(encoder, images, classes, loss, weight_decay=1, frozen=False, epochs=5, batch_size=16, lr=3e-3)
    assert right(whole) > right(frozen)


def test_the_seed_shuffles(encoder, images, classes):
    a, b, c = (fine_tune(encoder, images, classes, frozen=False, epochs=2, lr=3e-3, batch_size=16, seed=s).predict(images) for s in (0, 0, 1))
    assert abs(a - b).max() < 1e-4 < abs(a - c).max()


@pytest.mark.parametrize("n", [2, 3])
def test_two_pictures_and_batches_of_one(encoder, images, n):
    model = fine_tune(encoder, images[-n:], [0, 1, 1][:n], frozen=False, epochs=1, batch_size=1)
    assert np.isfinite(model.predict(images[:1])).all()


def test_classes_that_never_happened_are_kept(encoder, images):
    levels = pd.Series(pd.Categorical(["none"] * 40 + ["C"] * 20, LEVELS, ordered=True))
    for loss in ("cross_entropy", "balanced", "ordinal"):
        model = fine_tune(encoder, images, levels, loss)
        p = model.predict(images)
        assert model.classes == LEVELS and p.shape == (60, 4) and np.allclose(p.sum(1), 1, atol=1e-5)
        assert p[50:, 1].mean() > p[:10, 1].mean() + 0.2


def test_class_numbers():
    y, names = class_numbers(["b", "c", "b"], classes=["a", "b", "c"])
    assert y.tolist() == [1, 2, 1] and names == ("a", "b", "c")
    assert class_numbers(np.array([3, 7, 3]))[1] == ("3", "7")
    assert class_numbers(pd.Series(["x", "y"], index=[9, 4]))[0].tolist() == [0, 1]


# Faults

@pytest.mark.parametrize("targets, loss, message", [
    ([0] * 60, "cross_entropy", "all 60 are '0', expected two classes or more"),
    ([0, 1] * 29, "cross_entropy", "targets: 58 for 60 images"),
    ([0, 1, None] * 20, "cross_entropy", "20 of 60 are missing"),
    ([0.5, np.nan, 1] * 20, "mse", "20 of 60 are NaN or infinite"),
    ([0, 1] * 30, "focal", "loss 'focal' is not known; choose cross_entropy, balanced, ordinal, mse"),
])
def test_targets_that_do_not_fit(encoder, images, targets, loss, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(encoder, images, targets, loss)


def test_a_target_that_is_no_class(encoder, images):
    with pytest.raises(ValueError, match="'D' is none of the classes"):
        fine_tune(encoder, images, ["C", "D"] * 30, classes=LEVELS)


def test_gaps_are_black_and_empty_pictures_are_refused(encoder, images, classes):
    gap, black, empty = images.copy(), images.copy(), images.copy()
    gap[:, :5], black[:, :5], empty[7] = np.nan, 0, np.nan
    a, b = (fine_tune(encoder, x, classes).predict(x) for x in (gap, black))
    np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(ValueError, match="1 of 60 have no measured pixel, the first is number 7"):
        fine_tune(encoder, empty, classes)


def test_another_number_of_channels(encoder, images, classes):
    with pytest.raises(ValueError, match=r"shape \[60, 3, 32, 32\], expected \[N, H, H\]"):
        fine_tune(encoder, np.stack([images] * 3, 1), classes)
    two = Encoder(make_backbone(in_channels=2, widths=(8, 16)), ["171", "193"], size=32)
    with pytest.raises(ValueError, match=r"shape \[60, 32, 32\], expected \[N, 2, H, H\]"):
        fine_tune(two, images, classes)
    assert fine_tune(two, np.stack([images] * 2, 1), classes).predict(np.stack([images] * 2, 1)).shape == (60, 3)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pictures(encoder, images, n):
    with pytest.raises(ValueError, match=f"images: {n}, expected two or more"):
        fine_tune(encoder, images[:n], [0] * n)


# The folder

@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal", "mse"])
def test_saved_and_loaded_is_the_same(encoder, images, classes, loss, tmp_path):
    model = fine_tune(encoder, images, classes, loss)
    model.save(tmp_path / "m")
    again = FineTuned.load(tmp_path / "m")
    assert np.array_equal(again.predict(images), model.predict(images)) and repr(again) == repr(model)
    assert sorted(p.relative_to(tmp_path / "m").as_posix() for p in (tmp_path / "m").rglob("*.*")) == [
        "encoder/encoder.json", "encoder/weights.safetensors", "head.json", "head.safetensors"]


def test_a_broken_folder_says_which_file(encoder, images, classes, tmp_path):
    fine_tune(encoder, images, classes).save(tmp_path)
    facts = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(facts | dict(classes=["a", "b"])))
    with pytest.raises(ValueError, match="head.safetensors: not the parameters of this head"):
        FineTuned.load(tmp_path)
    (tmp_path / "head.json").write_text("{}")
    with pytest.raises(ValueError, match="head.json: does not describe a head"):
        FineTuned.load(tmp_path)
    (tmp_path / "head.json").unlink()
    with pytest.raises(FileNotFoundError, match="head.json: missing"):
        FineTuned.load(tmp_path)


def test_a_pickle_is_refused(encoder, images, classes, tmp_path):
    fine_tune(encoder, images, classes).save(tmp_path)
    torch.save(dict(weight=torch.zeros(1)), tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="head.safetensors: not the parameters"):
        FineTuned.load(tmp_path)


# The real Sun

@pytest.fixture(scope="module")
def real():
    "Dates of real frames, what flared within the next and the last 24 hours, and the frames' own table"
    table = pd.read_csv(DATA / "aia171" / "frames.csv", parse_dates=["time_ut"])
    flares = read_flares(DATA / "events" / "goes_flares_2010_2019.csv")
    levels, before = (flare_levels(flare_target(table.time_ut - pd.Timedelta(d), flares)) for d in ("0h", "24h"))
    known = levels.notna() & before.notna() & table.n_goes_flares_next24h.notna()
    bad = table.frame.str[:8].isin(["20110823", "20110924", "20120708"])
    return table.assign(level=levels, before=before)[known & ~bad].reset_index(drop=True)


@needs_data
def test_levels_agree_with_the_table_of_frames(real):
    letter = real.max_flare_next24h.fillna("A").str[0]
    assert len(real) > 70
    assert (real.level.astype(str) == letter.where(letter.isin(["C", "M", "X"]), "none")).all()


@needs_data
def test_what_a_network_has_to_beat_on_the_real_sun(real):
    "C or more within a day, six blocks of time with a rotation between: sunspots beat climatology clearly, so there is something to learn"
    linear = pytest.importorskip("sklearn.linear_model")
    truth, p, usual = (real.level >= "C").to_numpy(), np.full(len(real), np.nan), np.full(len(real), np.nan)
    spots = np.log1p(real[["n_spotted_ars", "total_spot_area_msh"]].fillna(0).to_numpy())
    for block in np.array_split(np.arange(len(real)), 6):
        first, last = real.time_ut[block[0]], real.time_ut[block[-1]]
        others = ((real.time_ut < first - pd.Timedelta("27.3D")) | (real.time_ut > last + pd.Timedelta("27.3D"))).to_numpy()
        p[block] = linear.LogisticRegression().fit(spots[others], truth[others]).predict_proba(spots[block])[:, 1]
        usual[block] = truth[others].mean()
    table = forecast_scores(truth, dict(spots=p, persistence=(real.before >= "C").astype(float), usual=usual))
    assert table.BSS["spots"] > table.BSS["persistence"] > table.BSS["usual"]
    assert 0.4 < table.TSS["spots"] < 0.8 and 0.4 < table.TSS["persistence"] < 0.8
