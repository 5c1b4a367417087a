"Every condition equals what a plain loop says; words reach no further than columns; hits keep apart on the turning Sun"
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from search_sdo.packager.frame import Disk
from search_sdo.packager.synthetic import rotation_rate
from search_sdo.search.filters import angle_between, apart, as_place, in_ranges, join_labels, may_answer, same_place, season_of, thinner


@pytest.fixture(scope="module")
def engine():
    "300 tiles in 30 frames, with labels"
    dice, n = np.random.default_rng(0), 300
    frame = np.repeat(np.arange(30), 10)
    off = dice.random(n) < 0.2
    table = pd.DataFrame(dict(frame=frame, row=dice.integers(0, 100, n), col=dice.integers(0, 100, n), size=16, scale=1.0, lon=np.where(off, np.nan, dice.uniform(-80, 80, n)),
                              lat=np.where(off, np.nan, dice.uniform(-60, 60, n)), mu=np.where(off, np.nan, dice.random(n)),
                              time=(pd.Timestamp("2010-06-01") + pd.to_timedelta(frame * 160, "D")), channel=np.where(frame % 3 == 0, "193", "171")))
    catalogue = pd.DataFrame(dict(quality=np.where(np.arange(30) % 7 == 0, "dark", ""), score=np.linspace(0, 1, 30)))
    labels = pd.DataFrame(dict(label=dice.choice(["active_region", "quiet_sun", None], n), n=pd.array(dice.choice([0, 1, 2], n), "Int64"), area=dice.uniform(0, 900, n),
                               max_flux=np.where(dice.random(n) < 0.5, np.nan, 10 ** dice.uniform(-7, -3, n))))
    labels.loc[::17, "n"] = pd.NA
    tiles = SimpleNamespace(table=table, package=SimpleNamespace(disk=Disk(63.5, 63.5, 51)))
    return SimpleNamespace(tiles=tiles, package=SimpleNamespace(catalogue=catalogue), labels=labels)


T = pd.Timestamp
LOOPS = [
    (dict(after="2014"), lambda t, c, l: t.time >= T("2014")), (dict(before="2014-03-01"), lambda t, c, l: t.time < T("2014-03-01")),
    (dict(during="2014"), lambda t, c, l: t.time.year == 2014), (dict(during="2014-05"), lambda t, c, l: (t.time.year, t.time.month) == (2014, 5)),
    (dict(during=["2011", ("2016-01-01", "2018")]), lambda t, c, l: t.time.year in (2011, 2016, 2017)),
    (dict(season="maximum"), lambda t, c, l: T("2013-04-15") <= t.time <= T("2015-04-15")),
    (dict(season=["rising", "declining"]), lambda t, c, l: T("2010-06-01") <= t.time < T("2013-04-15") or T("2015-04-15") < t.time < T("2018-12-15") or t.time > T("2020-12-14")),
    (dict(channel="AIA 193"), lambda t, c, l: t.channel == "193"), (dict(channel=[171, 193]), lambda t, c, l: True),
    (dict(lon=(-30, 30)), lambda t, c, l: -30 <= t.lon <= 30), (dict(lat=[(None, -20), (20, None)]), lambda t, c, l: abs(t.lat) >= 20), (dict(mu=(0.5, None)), lambda t, c, l: t.mu >= 0.5),
    (dict(activity="active"), lambda t, c, l: l.n is not pd.NA and l.n > 0), (dict(activity="quiet"), lambda t, c, l: l.n is not pd.NA and l.n == 0),
    (dict(activity="M"), lambda t, c, l: l.max_flux >= 1e-5), (dict(activity="C5"), lambda t, c, l: l.max_flux >= 5e-6), (dict(activity=(100, 500)), lambda t, c, l: 100 <= l.area <= 500),
    (dict(label="quiet_sun"), lambda t, c, l: l.label == "quiet_sun"), (dict(label=["quiet_sun", "active_region"]), lambda t, c, l: isinstance(l.label, str)),
    (dict(quality="good"), lambda t, c, l: c.quality == ""), (dict(quality="flagged"), lambda t, c, l: c.quality != ""), (dict(quality=0.5), lambda t, c, l: c.score >= 0.5),
    (dict(where="abs(lat) < 30 and mu > .5"), lambda t, c, l: abs(t.lat) < 30 and t.mu > 0.5), (dict(where="not (channel == '171') or area / 2 - 10 > 3 * 100"), lambda t, c, l: t.channel != "171" or l.area / 2 - 10 > 300),
    (dict(where="-20 < lon <= 20 & (frame in [1, 2, 3]) | (mu > .9)"), None), (dict(where="label not in ['quiet_sun']"), lambda t, c, l: l.label != "quiet_sun"),
    (dict(where="'2012' <= time < '2013'"), lambda t, c, l: t.time.year == 2012), (dict(lon=(0, 40), season="maximum", where="mu > .2", label="active_region"), lambda t, c, l: 0 <= t.lon <= 40 and t.mu > 0.2 and l.label == "active_region" and T("2013-04-15") <= t.time <= T("2015-04-15"))]


@pytest.mark.parametrize("conditions, loop", [pair for pair in LOOPS if pair[1]], ids=[str(c) for c, loop in LOOPS if loop])
def test_conditions_equal_a_loop(engine, conditions, loop):
    rows = zip(engine.tiles.table.itertuples(), engine.labels.itertuples())
    expected = [bool(loop(t, engine.package.catalogue.iloc[t.frame], l)) for t, l in rows]
    keep = may_answer(engine, **conditions)
    assert keep.dtype == bool and keep.tolist() == expected and any(expected)


def test_no_condition_is_no_mask(engine):
    assert may_answer(engine, after=None, lon=None) is None


def test_a_mask_of_ones_own(engine):
    mask = np.arange(300) % 2 == 0
    assert (may_answer(engine, where=mask) == mask).all()
    for wrong in (mask[:5], mask.astype(int)):
        with pytest.raises(ValueError, match="where: .*expected one bool for each of 300 tiles"): may_answer(engine, where=wrong)


@pytest.mark.parametrize("words", [
    "__import__('os').system('touch /tmp/pwned')", "lon.values", "().__class__", "open('/etc/passwd')", "9**9**9 > lon", "'a' * 10**10 == channel", "lat", "@engine", "mu >", "", "[x for x in mu]", "1 < 2", "mu if lat > 0 else lon",
    "lambda: mu", "mu.__class__ == 1", "lon > 'a'", "channel > 3", "colour == 'red'", "f'{mu}' == 'x'", "mu > 1e999j", "mu << 3 > 1", "abs(channel) > 1", "abs(mu, 2) > 1", "(mu := 3) > 1", "mu and lat", "label in 'quiet_sun'", "(" * 400 + "mu > 0" + ")" * 400])
def test_words_that_are_refused(engine, words):
    with pytest.raises(ValueError, match="^where="): may_answer(engine, where=words)


def test_a_novel_is_no_condition(engine):
    with pytest.raises(ValueError, match="where: .* characters"): may_answer(engine, where=" or ".join(["mu > .5"] * 500))


@pytest.mark.parametrize("conditions, match", [
    (dict(lon=3), "lon=3: expected a range"), (dict(lon=(30, -30)), "empty"), (dict(mu=("a", 1)), "expected numbers"), (dict(lat=[]), "no range"), (dict(lon=(float("nan"), 3)), "empty"),
    (dict(season="summer"), "season: 'summer' is not there, expected some of minimum"), (dict(label="dragon"), "label: 'dragon' is not there"), (dict(channel=304), "channel 304: not in this engine"),
    (dict(activity="Z9"), "expected 'active', 'quiet', a GOES class"), (dict(quality="nice"), "expected 'good', 'flagged'"), (dict(quality=7), "least score"), (dict(during="soon"), "not a span of time"), (dict(during=("2014", "2012")), "ends before it begins")])
def test_conditions_that_make_no_sense(engine, conditions, match):
    with pytest.raises(ValueError, match=match): may_answer(engine, **conditions)


def test_an_unknown_condition(engine):
    with pytest.raises(TypeError, match="colour: no such condition, expected some of after"): may_answer(engine, colour="red")


@pytest.mark.parametrize("conditions", [dict(label="quiet_sun"), dict(activity="active"), dict(activity="M")])
def test_what_nobody_joined_is_an_error_and_no_empty_answer(engine, conditions):
    bare = SimpleNamespace(**vars(engine) | dict(labels=None))
    with pytest.raises(ValueError, match="join it first, with engine.label"): may_answer(bare, **conditions)
    grown = SimpleNamespace(**vars(engine) | dict(labels=engine.labels[:9]))
    with pytest.raises(ValueError, match="labels of 9 tiles, the engine has 300 now"): may_answer(grown, **conditions)
    other = SimpleNamespace(**vars(engine) | dict(labels=pd.DataFrame(dict(colour=["red"] * 300))))
    with pytest.raises(ValueError, match="have no column"): may_answer(other, **conditions)


def test_labels_of_ones_own(engine):
    assert join_labels(engine.tiles.table, labels=["a"] * 300).label.tolist() == ["a"] * 300
    with pytest.raises(ValueError, match="3 rows, expected one for each of 300"): join_labels(engine.tiles.table, labels=["a"] * 3)


def test_seasons_follow_one_another():
    times = pd.Series(pd.date_range("2009-01-01", "2025-01-01", freq="30D"))
    names = season_of(times)
    order = names[np.flatnonzero(np.append(True, names[1:] != names[:-1]))]
    assert order.tolist() == ["minimum", "rising", "maximum", "declining", "minimum", "rising", "maximum"]


def test_nan_is_in_no_range():
    assert in_ranges(np.array([np.nan, 0.0]), (None, None), "mu").tolist() == [False, True]


# ---- apart on the Sun


def test_angles_agree_with_vectors():
    dice = np.random.default_rng(1)
    lon, lat = dice.uniform(-180, 180, 100), dice.uniform(-90, 90, 100)
    vector = lambda lon, lat: np.stack([np.cos(np.radians(lat)) * np.cos(np.radians(lon)), np.cos(np.radians(lat)) * np.sin(np.radians(lon)), np.sin(np.radians(lat))], -1)
    expected = np.degrees(np.arccos(np.clip(vector(lon, lat) @ vector(20.0, -10.0), -1, 1)))
    np.testing.assert_allclose(angle_between(lon, lat, 20.0, -10.0), expected, atol=1e-5)


@pytest.mark.parametrize("lat", [0.0, 35.0, -60.0])
def test_a_place_is_followed_over_a_week(lat):
    days = 7
    there = -45 + rotation_rate(lat) * days
    table = pd.DataFrame(dict(row=0, col=0, size=16, scale=1.0, lon=[-45.0, there, -45.0, there], lat=lat, time=pd.to_datetime(["2014-01-01", "2014-01-08", "2014-01-08", "2014-02-08"])))
    assert same_place(table, Disk(0, 0, 50), 3, "degrees")(0).tolist() == [True, True, False, False]


def test_off_the_disk_the_limb_counts():
    disk = Disk(63.5, 63.5, 51)
    table = pd.DataFrame(dict(row=[56, 56, 0], col=[118, 112, 56], size=16, scale=1.0, lon=[np.nan, np.nan, np.nan], lat=[np.nan] * 3, time=pd.Timestamp("2014-01-01")))
    assert same_place(table, disk, 5, "degrees")(0).tolist() == [True, True, False]


def test_spread_in_place_is_greedy_and_pairwise_far(engine):
    rows = np.random.default_rng(3).permutation(300)[:100]
    table, taken = engine.tiles.table, thinner(engine.tiles, 100, None, 25)(rows)
    clash = same_place(table.take(rows), engine.tiles.package.disk, 25, "degrees")
    best = []
    clashes = np.stack([clash(i) for i in range(100)])
    for i in range(100):
        if not clashes[best, i].any(): best.append(i)
    assert taken.tolist() == best and 5 < len(best) < 100


def test_px_count_within_one_frame_only(engine):
    rows = np.arange(300)
    kept = engine.tiles.table.take(thinner(engine.tiles, 300, None, "30px")(rows))
    for _, mine in kept.groupby("frame"):
        away = np.hypot(*(mine[c].to_numpy()[:, None] - mine[c].to_numpy() for c in ("row", "col")))
        assert (away[~np.eye(len(mine), dtype=bool)] >= 30).all()
    assert kept.frame.nunique() == 30


def test_time_and_place_together(engine):
    both = engine.tiles.table.take(thinner(engine.tiles, 300, "1 day", 10)(np.arange(300)))
    assert not both.time.duplicated().any()


@pytest.mark.parametrize("value", ["far", "-3", -1, float("nan"), "px", float("inf")])
def test_places_that_cannot_be_read(value):
    with pytest.raises(ValueError, match="spread_place="): as_place(value)


def test_apart_takes_the_best_first():
    assert apart(5, 2, lambda i: np.abs(np.arange(5) - i) <= 1).tolist() == [0, 2]
    assert apart(0, 2, None).tolist() == []
