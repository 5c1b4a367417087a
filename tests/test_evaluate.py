"""Scores: each against scikit-learn, a slow and plain loop, or a case done by hand; and what happens with broken input."""
import numpy as np
import pandas as pd
import pytest
import torch

from search_sdo.models.evaluate import compare, explained, matched_precision, nearest, precision_at_k, probe, region_retrieval, twin_recall


@pytest.fixture
def features():
    dice = np.random.default_rng(0)
    return dice.normal(size=(30, 16)).astype(np.float32), dice.normal(size=(200, 16)).astype(np.float32)


# Nearest

def test_cosine_equals_brute_force(features):
    q, g = features
    every = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    similarity, index = nearest(q, g, k=7)
    assert np.array_equal(index, np.argsort(-every, axis=1)[:, :7])
    np.testing.assert_allclose(similarity, -np.sort(-every, axis=1)[:, :7], atol=1e-6)


def test_euclidean_equals_brute_force(features):
    q, g = features
    every = np.linalg.norm(q[:, None] - g[None], axis=2)
    similarity, index = nearest(q, g, k=7, metric="euclidean")
    assert np.array_equal(index, np.argsort(every, axis=1)[:, :7])
    np.testing.assert_allclose(similarity, -np.sort(every, axis=1)[:, :7], atol=1e-5)


def test_more_queries_than_a_block_holds(features):
    _, g = features
    many = np.tile(g, (11, 1))                      # 2,200 queries, each in the gallery
    similarity, index = nearest(many, g, k=1)
    assert np.array_equal(index[:, 0], np.tile(np.arange(200), 11)) and np.allclose(similarity, 1, atol=1e-6)


def test_length_matters_only_to_euclidean():
    q, g = [[1.0, 0]], [[10.0, 0], [1, 0.2]]
    assert nearest(q, g, 1)[1].tolist() == [[0]]
    assert nearest(q, g, 1, "euclidean")[1].tolist() == [[1]]


def test_fewer_rows_than_k(features):
    q, g = features
    similarity, index = nearest(q, g[:3], k=10)
    assert similarity.shape == index.shape == (30, 3)


def test_takes_tensors_and_half_precision(features):
    q, g = features
    a = nearest(torch.from_numpy(q), torch.from_numpy(g), 3)[1]
    assert np.array_equal(a, nearest(q, g, 3)[1])
    assert nearest(q.astype(np.float16), g.astype(np.float16), 3)[1].shape == (30, 3)


def test_bad_features_are_named(features):
    q, g = features
    broken = g.copy()
    broken[[4, 9], 0] = np.nan
    with pytest.raises(ValueError, match="gallery: 2 of 200 rows hold NaN or infinity, the first is row 4"):
        nearest(q, broken)
    with pytest.raises(ValueError, match=r"queries have shape \[16\], expected \[N, D\]"):
        nearest(q[0], g)
    with pytest.raises(ValueError, match="'manhattan' is not known; choose cosine or euclidean"):
        nearest(q, g, metric="manhattan")


# Precision at k

LINE = [[0.0], [1.0], [10.0], [11.0], [12.0]]       # a gallery on a line
KINDS = ["a", "a", "b", "b", "c"]


def score(queries, labels, k, gallery=LINE, kinds=KINDS):
    return precision_at_k(queries, gallery, labels, kinds, k, metric="euclidean")


def test_precision_by_hand():
    table = score([[0.1], [0.9], [10.4], [12.5]], ["a", "a", "b", "c"], k=2)
    # a: {0, 1}, {1, 0} both right; b: {10, 11} right; c: {12, 11} half right
    assert table.precision.to_dict() == {"a": 1.0, "b": 1.0, "c": 0.5, "macro": pytest.approx(2.5 / 3)}
    assert table.queries.to_dict() == {"a": 2, "b": 1, "c": 1, "macro": 4}
    assert table.gallery.to_dict() == {"a": 2, "b": 2, "c": 1, "macro": 5}
    assert table.chance.to_dict() == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2, "macro": 1 / 3})


def test_macro_weighs_classes_not_queries():
    table = score([[0.1]] * 99 + [[0.2]], ["a"] * 99 + ["b"], k=1)
    assert table.precision["macro"] == 0.5


def test_fewer_gallery_items_than_k_counts_those_there_are():
    table = score([[0.0]], ["a"], k=10)
    assert table.precision["a"] == pytest.approx(2 / 5)


def test_a_class_that_nobody_can_answer():
    table = score([[0.0], [0.0]], ["a", "ghost"], k=1)
    assert table.precision["ghost"] == 0 and table.gallery["ghost"] == 0 and table.precision["macro"] == 0.5


def test_labels_of_any_kind():
    for kind in (np.array, pd.Series, list, lambda x: pd.Series(x, index=range(100, 100 + len(x)), dtype="string")):
        assert score([[0.1], [10.4]], kind(["a", "b"]), 2, kinds=kind(KINDS)).precision["macro"] == 1


def test_as_many_names_as_rows():
    with pytest.raises(ValueError, match="query_labels: 1 names for 2 rows"):
        score([[0.1], [10.4]], ["a"], 2)
    with pytest.raises(ValueError, match="gallery_labels: 2 names for 5 rows"):
        score([[0.1]], ["a"], 2, kinds=["a", "b"])


def test_chance_is_what_random_features_get():
    dice = np.random.default_rng(0)
    labels = dice.choice(["a", "b"], 3000, p=[0.8, 0.2])
    table = precision_at_k(dice.normal(size=(3000, 8)), dice.normal(size=(3000, 8)), labels, dice.permutation(labels))
    np.testing.assert_allclose(table.precision, table.chance, atol=0.03)


def test_missing_names_are_counted():
    with pytest.raises(ValueError, match="gallery_labels: 2 of 5 are missing; leave those rows out"):
        score([[0.1]], ["a"], 2, kinds=["a", None, "b", np.nan, "b"])


def test_one_class_only_is_sound():
    table = score([[0.1], [9.0]], ["a", "a"], 3, kinds=["a"] * 5)
    assert table.loc["a"].to_dict() == {"queries": 2, "gallery": 5, "chance": 1, "precision": 1}


def test_features_that_cannot_be_compared(features):
    q, g = features
    with pytest.raises(ValueError, match="queries have 8 numbers a row, the gallery 16"):
        nearest(q[:, :8], g)
    with pytest.raises(ValueError, match="gallery have shape .0, 16., expected"):
        nearest(q, g[:0])
    with pytest.raises(ValueError, match="k: 0, expected 1 or more"):
        nearest(q, g, k=0)


# Matched in brightness

def plain_matched(q, g, asked, there, qv, gv, k, per_class, caliper):
    "Caliper matching as one would write it down: query by query, class by class"
    rows = []
    for i in range(len(q)):
        pool = []
        for name in np.unique(there):
            mine = [j for j in np.flatnonzero(there == name) if abs(gv[j] - qv[i]) <= caliper * gv.std()]
            mine.sort(key=lambda j: abs(gv[j] - qv[i]))
            if len(mine) >= per_class:
                pool.append([mine[int((n + 0.5) * len(mine) / per_class)] for n in range(per_class)])
        if len(pool) < 2 or asked[i] not in [there[p[0]] for p in pool]:
            continue
        pool_rows = np.concatenate(pool)
        distance = np.linalg.norm(g[pool_rows] - q[i], axis=1)
        best = pool_rows[np.argsort(distance)[:k]]
        rows.append((asked[i], 1 / len(pool), np.mean(there[best] == asked[i])))
    return pd.DataFrame(rows, columns=["class", "chance", "precision"]).groupby("class").agg(
        queries=("chance", "size"), chance=("chance", "mean"), precision=("precision", "mean"))


@pytest.fixture
def lit():
    "Three classes that overlap in brightness and differ a little in one feature besides"
    dice = np.random.default_rng(3)
    label = dice.choice(["dark", "grey", "light"], 400)
    middle = pd.Series(label).map({"dark": 0.0, "grey": 0.6, "light": 1.5}).to_numpy()
    value = middle + dice.normal(size=400)
    x = np.column_stack([value, middle + dice.normal(size=400), dice.normal(size=(400, 3))]).astype(np.float32)
    part = np.arange(400) < 250
    return x[~part], x[part], label[~part], label[part], value[~part], value[part]


@pytest.mark.parametrize("k, per_class, caliper", [(10, 10, 0.25), (10, 5, 0.1), (5, 1, 0.01), (50, 8, 0.5)])
def test_matching_equals_the_plain_loop(lit, k, per_class, caliper):
    table = matched_precision(*lit, k=k, per_class=per_class, caliper=caliper, metric="euclidean")
    oracle = plain_matched(*lit, k, per_class, caliper)
    assert 0 < oracle.queries.sum() < 150           # some can be matched, some cannot
    pd.testing.assert_frame_equal(table.drop(index="macro"), oracle, check_dtype=False, rtol=1e-5)
    assert table.precision["macro"] == pytest.approx(oracle.precision.mean(), rel=1e-5)


def test_brightness_alone_is_worth_nothing_once_matched():
    "Two classes of different brightness that overlap widely: a light meter goes from far above chance to chance"
    dice = np.random.default_rng(0)
    label = dice.choice(["dark", "light"], 4000)
    value = dice.normal(size=4000) + (label == "light")
    q, g = np.arange(4000) < 2000, np.arange(4000) >= 2000
    meter = value[:, None]
    plain = precision_at_k(meter[q], meter[g], label[q], label[g], metric="euclidean").precision["macro"]
    matched = matched_precision(meter[q], meter[g], label[q], label[g], value[q], value[g], per_class=10, caliper=0.1, metric="euclidean")
    assert plain > 0.57
    assert matched.precision["macro"] == pytest.approx(matched.chance["macro"], abs=0.02)


def test_what_differs_beside_brightness_survives_matching():
    dice = np.random.default_rng(0)
    label = dice.choice(["dark", "light"], 800)
    value = dice.normal(size=800) + (label == "light")
    shape = np.eye(2)[(label == "light").astype(int)] + dice.normal(size=(800, 2)) / 20
    table = matched_precision(shape[:400], shape[400:], label[:400], label[400:], value[:400], value[400:], per_class=10)
    assert table.precision["macro"] > 0.99 and table.chance["macro"] == 0.5


def test_no_query_can_be_matched(lit, caplog):
    q, g, asked, there, qv, gv = lit
    table = matched_precision(q, g, asked, there, qv + 100, gv)
    assert table.queries.tolist() == [0, 0, 0, 0] and table.precision.isna().all()
    assert "no query has 30 gallery rows" in caplog.text and "wider caliper" in caplog.text


def test_matching_with_one_class_only_counts_no_query(lit, caplog):
    q, g, _, _, qv, gv = lit
    table = matched_precision(q, g, ["a"] * len(q), ["a"] * len(g), qv, gv)
    assert table.loc["macro", "queries"] == 0 and np.isnan(table.loc["macro", "precision"]) and caplog.records


def test_matching_a_class_that_is_not_in_the_gallery(lit):
    q, g, asked, there, qv, gv = lit
    asked = np.where(np.arange(len(asked)) < 5, "ghost", asked)
    table = matched_precision(q, g, asked, there, qv, gv, per_class=5)
    assert table.queries["ghost"] == 0 and np.isfinite(table.precision["macro"])


def test_matching_refuses_what_it_cannot_use(lit):
    q, g, asked, there, qv, gv = lit
    with pytest.raises(ValueError, match="query_values: expected a finite number for each of 150 rows"):
        matched_precision(q, g, asked, there, np.where(qv > 0, np.nan, qv), gv)
    with pytest.raises(ValueError, match="gallery_values: expected a finite number for each of 250 rows"):
        matched_precision(q, g, asked, there, qv, gv[:9])
    with pytest.raises(ValueError, match="query_labels: 3 names for 150 rows"):
        matched_precision(q, g, asked[:3], there, qv, gv)
    broken = g.copy()
    broken[0] = np.nan
    with pytest.raises(ValueError, match="gallery: 1 of 250 rows hold NaN"):
        matched_precision(q, broken, asked, there, qv, gv)


# Same region

def plain_map(x, regions, times, apart, queries=None):
    "Mean average precision by loops, and by scikit-learn"
    from sklearn.metrics import average_precision_score
    x, scores = x / np.linalg.norm(x, axis=1, keepdims=True), []
    for i in range(len(x)):
        if pd.isna(regions[i]) or (queries is not None and not queries[i]):
            continue
        right, likeness = [], []
        for j in range(len(x)):
            if pd.isna(regions[j]):
                continue
            near = times[i].date() == times[j].date() if apart == "day" else abs(times[i] - times[j]) < pd.Timedelta(apart)
            if regions[i] == regions[j] and (i == j or near):
                continue
            right.append(regions[i] == regions[j])
            likeness.append(x[i] @ x[j])
        if any(right):
            scores.append(average_precision_score(right, likeness))
    return np.mean(scores), len(scores)


@pytest.fixture
def seen():
    "Nine regions, seen every 8 hours for some days, in features that remember them a little; some rows without a region"
    dice = np.random.default_rng(5)
    regions = dice.integers(0, 9, 120).astype(float)
    x = (np.eye(9, 12)[regions.astype(int)] + dice.normal(size=(120, 12)) / 2).astype(np.float32)
    times = pd.Timestamp("2011-02-01") + pd.to_timedelta(dice.integers(0, 12, 120) * 8, unit="h")
    regions[dice.random(120) < 0.15] = np.nan
    return x, regions, times


@pytest.mark.parametrize("apart", ["24h", "8h", "2D", "day"])
def test_region_retrieval_equals_loops_and_scikit_learn(seen, apart):
    x, regions, times = seen
    found = region_retrieval(x, regions, times, apart)
    score, n = plain_map(x, regions, times, apart)
    assert found["map"] == pytest.approx(score, abs=1e-6) and found["queries"] == n
    assert 0 < found["chance"] < found["map"] < 1


def test_region_retrieval_of_some_queries(seen):
    x, regions, times = seen
    ask = np.arange(120) % 3 == 0
    found, (score, n) = region_retrieval(x, regions, times, queries=ask), plain_map(x, regions, times, "24h", ask)
    assert found["map"] == pytest.approx(score, abs=1e-6) and found["queries"] == n < ask.sum()


def test_the_chance_of_finding_a_region_is_what_random_features_get(seen):
    _, regions, times = seen
    dice = np.random.default_rng(0)
    runs = [region_retrieval(dice.normal(size=(120, 8)), regions, times) for _ in range(40)]
    assert np.mean([r["map"] for r in runs]) == pytest.approx(runs[0]["chance"], abs=0.01)


def test_regions_named_by_words_and_numbers_alike(seen):
    x, regions, times = seen
    words = [None if np.isnan(r) else f"AR {r:.0f}" for r in regions]
    assert region_retrieval(x, words, times) == region_retrieval(x, regions, times)


def test_a_region_seen_on_one_day_only_is_not_asked_for(seen, caplog):
    x, regions, times = seen
    once = np.append(regions, 99.0)
    more = np.append(times, times[:1])
    assert region_retrieval(np.concatenate([x, x[:1]]), once, more)["queries"] == region_retrieval(x, regions, times)["queries"]
    nothing = region_retrieval(x, regions, [times[0]] * 120)
    assert nothing["queries"] == 0 and np.isnan(nothing["map"]) and np.isnan(nothing["chance"])
    assert "no region is seen again at least 24h later" in caplog.text


def test_no_region_at_all(caplog):
    found = region_retrieval(np.eye(3), [None] * 3, pd.to_datetime(["2011-01-01"] * 3))
    assert found["queries"] == 0 and np.isnan(found["map"]) and caplog.records


def test_region_retrieval_refuses_what_it_cannot_use(seen):
    x, regions, times = seen
    with pytest.raises(ValueError, match="120 features, 119 regions, 120 times"):
        region_retrieval(x, regions[1:], times)
    with pytest.raises(ValueError, match="queries 7; expected as many of each"):
        region_retrieval(x, regions, times, queries=[True] * 7)
    with pytest.raises(ValueError, match="apart: '0h', expected more than nothing"):
        region_retrieval(x, regions, times, apart="0h")
    with pytest.raises(ValueError, match="times: some rows with a region have none"):
        region_retrieval(x, regions, times.where(np.arange(120) > 60))
    with pytest.raises(ValueError, match="features: 1 of 120 rows hold NaN"):
        region_retrieval(np.where(np.arange(120)[:, None] == 3, np.nan, x), regions, times)


# Probes

@pytest.mark.parametrize("kind", ["linear", "knn", "forest"])
def test_probe_equals_scikit_learn(lit, kind):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
    from sklearn.neighbors import KNeighborsClassifier
    x_test, x, y_test, y = lit[:4]
    scale = lambda a: (a - x.mean(0)) / x.std(0)
    length = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    found = dict(linear=lambda: LogisticRegression(class_weight="balanced", max_iter=2000).fit(scale(x), y).predict(scale(x_test)),
                 knn=lambda: KNeighborsClassifier(20).fit(length(x), y).predict(length(x_test)),
                 forest=lambda: RandomForestClassifier(300, class_weight="balanced", random_state=0).fit(x, y).predict(x_test))[kind]()
    table = probe(x, y, x_test, y_test, kind)
    assert table.accuracy["macro"] == pytest.approx(balanced_accuracy_score(y_test, found), abs=0.01)
    assert table.f1["macro"] == pytest.approx(f1_score(y_test, found, average="macro"), abs=0.01)
    np.testing.assert_allclose(table.accuracy[:-1], recall_score(y_test, found, average=None), atol=0.02)
    assert table.queries.tolist() == [*pd.Series(y_test).value_counts().sort_index(), 150]


def test_probe_with_more_voters_than_rows_and_labels_that_are_numbers():
    x = np.repeat(np.eye(2), 4, axis=0)
    table = probe(x, [0, 0, 0, 1, 1, 1, 1, 1], x, [0] * 4 + [1] * 4, "knn", k=99)
    assert table.accuracy.to_dict() == {0: 0.0, 1: 1.0, "macro": 0.5}


def test_probe_meets_a_class_that_it_never_saw():
    x = np.repeat(np.eye(3), 5, axis=0)
    table = probe(x[:10], ["a"] * 5 + ["b"] * 5, x, ["a"] * 5 + ["b"] * 5 + ["new"] * 5)
    assert table.accuracy.round(2).to_dict() == {"a": 1, "b": 1, "new": 0, "macro": 0.67} and table.f1["new"] == 0


def test_probe_refuses_what_it_cannot_use(lit):
    x = lit[1]
    with pytest.raises(ValueError, match="train_y: only 'a'; a probe needs two classes"):
        probe(x, ["a"] * 250, x, ["a"] * 250)
    with pytest.raises(ValueError, match="test_y: 2 names for 250 rows"):
        probe(x, lit[3], x, ["a", "b"])
    with pytest.raises(ValueError, match="kind: 'oracle' is not known; choose linear, knn or forest"):
        probe(x, lit[3], x, lit[3], "oracle")
    with pytest.raises(ValueError, match="train_x: 250 of 250 rows hold NaN"):
        probe(x * np.nan, lit[3], x, lit[3])


# What neighbours share

def test_explained_equals_a_loop():
    dice = np.random.default_rng(1)
    x, frame = dice.normal(size=(60, 4)), dice.integers(0, 5, 60)
    x[:, 0] += frame
    table = explained(x, pd.DataFrame({"frame": frame}), k=5, metric="euclidean")
    shared, chance = [], []
    for i in range(60):
        others = np.delete(np.arange(60), i)
        best = others[np.argsort(np.linalg.norm(x[others] - x[i], axis=1))[:5]]
        shared += list(frame[best] == frame[i])
        chance += list(frame[others] == frame[i])
    row = table.loc["frame"]
    assert row.neighbours == pytest.approx(np.mean(shared)) and row.chance == pytest.approx(np.mean(chance))
    assert row.explained == pytest.approx((row.neighbours - row.chance) / (1 - row.chance))


def test_a_shortcut_is_seen_and_its_absence_too():
    dice = np.random.default_rng(0)
    table = pd.DataFrame(dict(frame=np.repeat(np.arange(20), 20), channel=np.tile(["171", "193"], 200), mu=dice.uniform(0, 1, 400),
                              time=pd.date_range("2014-01-01", periods=400, freq="1h"), lon=dice.uniform(-60, 60, 400), lat=dice.uniform(-60, 60, 400)))
    blind = explained(dice.normal(size=(400, 8)), table)
    assert set(blind.index) == {"frame", "channel", "day", "mu", "place"} and blind.explained.abs().max() < 0.05
    cheat = explained(np.eye(20)[table.frame] + dice.normal(size=(400, 20)) / 20, table)
    assert cheat.explained["frame"] > 0.95 and cheat.explained["channel"] < 0.1


def test_off_the_disk_is_a_place_of_its_own():
    table = pd.DataFrame(dict(mu=[np.nan] * 6 + [0.5] * 6, lon=[np.nan] * 6 + [10.0] * 6, lat=[np.nan] * 6 + [10.0] * 6))
    found = explained(np.repeat(np.eye(2), 6, axis=0), table, k=3)
    assert found.explained.to_dict() == {"mu": 1, "place": 1}


def test_equal_rows_are_never_their_own_neighbours():
    found = explained(np.ones((30, 4)), pd.DataFrame({"frame": np.arange(30)}), k=29)
    assert found.neighbours["frame"] == 0 and found.chance["frame"] == 0


def test_explained_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="table: has the columns colour; expected some of frame"):
        explained(np.eye(3), pd.DataFrame({"colour": [1, 2, 3]}))
    with pytest.raises(ValueError, match="table: 2 rows for 3 features"):
        explained(np.eye(3), pd.DataFrame({"frame": [1, 2]}))
    with pytest.raises(ValueError, match="a single row has no neighbours"):
        explained(np.eye(1), pd.DataFrame({"frame": [1]}))


def test_one_channel_only_explains_nothing():
    found = explained(np.eye(5), pd.DataFrame({"channel": ["171"] * 5}), k=2)
    assert found.chance["channel"] == 1 and np.isnan(found.explained["channel"])


# Twins

def test_twin_recall_equals_a_loop():
    dice = np.random.default_rng(2)
    a = dice.normal(size=(80, 6))
    b = a + dice.normal(size=(80, 6))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    s = unit(a) @ unit(b).T
    for k in (1, 4):
        hits = [[i in np.argsort(-row)[:k] for i, row in enumerate(m)] for m in (s, s.T)]
        assert twin_recall(a, b, k) == np.mean(hits)
    assert twin_recall(a, b, 1) < twin_recall(a, b, 4) < twin_recall(a, b, 80) == 1


def test_more_twins_than_a_block_holds():
    a = np.random.default_rng(0).normal(size=(1500, 8))
    assert twin_recall(a, 3 * a) == 1


def test_a_collapsed_encoder_finds_no_twin():
    assert twin_recall(np.ones((50, 8)), np.ones((50, 8))) == 0


def test_twins_must_come_in_pairs():
    with pytest.raises(ValueError, match=r"features2: shape \[3, 2\], expected that of features1, \[4, 2\]"):
        twin_recall(np.ones((4, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="features1: 4 of 4 rows hold NaN"):
        twin_recall(np.full((4, 2), np.nan), np.ones((4, 2)))


# One table for all

def test_compare_agrees_with_the_scores_it_is_made_of(lit):
    q, g, asked, there, qv, gv = lit
    x, labels, values = np.concatenate([g, q]), np.concatenate([there, asked]), np.concatenate([gv, qv])
    gallery = np.arange(400) < 250
    table = compare({"cosine": x, "both": (x, "best"), "scaled": (x * [9, 1, 1, 1, 1], "euclidean")}, labels, gallery, values, per_class=10)
    alone = precision_at_k(q, g, asked, there).precision
    assert table.loc["cosine"].drop("matched").to_dict() == pytest.approx(alone.to_dict())
    assert table.matched["cosine"] == pytest.approx(matched_precision(q, g, asked, there, qv, gv, per_class=10).precision["macro"])
    z = (x - g.mean(0)) / g.std(0)
    far = precision_at_k(z[250:], z[:250], asked, there, metric="euclidean").precision["macro"]
    assert table.macro["scaled"] == pytest.approx(far, abs=1e-3)
    assert table.macro["both"] == pytest.approx(max(far, alone["macro"]), abs=1e-3)
    assert list(table.columns) == ["dark", "grey", "light", "macro", "matched"]


def test_compare_without_brightness_has_no_matched_column(lit):
    x, labels = lit[1], lit[3]
    assert "matched" not in compare({"a": x}, labels, np.arange(250) < 100)


def test_a_constant_column_counts_for_nothing(lit):
    x, labels, gallery = lit[1], lit[3], np.arange(250) < 100
    with_constant = np.column_stack([x, np.full(250, 1e6)])
    assert compare({"a": (with_constant, "euclidean")}, labels, gallery).equals(compare({"a": (x, "euclidean")}, labels, gallery))


def test_compare_refuses_what_it_cannot_use(lit):
    x, labels = lit[1], lit[3]
    with pytest.raises(ValueError, match="features: 249 rows for 'short', but gallery has 250"):
        compare({"short": x[1:]}, labels, np.arange(250) < 100)
    with pytest.raises(ValueError, match="gallery: 250 of 250 rows; expected some, and some left for queries"):
        compare({"a": x}, labels, np.ones(250, bool))
    with pytest.raises(ValueError, match="labels: 249 names for 250 rows"):
        compare({"a": x}, labels[1:], np.arange(250) < 100)
    with pytest.raises(ValueError, match="features: empty"):
        compare({}, labels, np.arange(250) < 100)
