"""Neighbours from other times, groups, outliers, agreement: against brute force and known truth."""
import sys

import numpy as np
import pandas as pd
import pytest

from search_sdo.search.clusters import (Rows, agreement, aligned_umap, by_size, compact, group, neighbours, oddness, sheet_lines,
                                        turned_onto, typicality)
from search_sdo.search.embed import normalise

START = np.datetime64("2014-01-01")


def rows(n=60, dim=8, seed=0, hours=5):
    dice = np.random.default_rng(seed)
    return Rows(normalise(dice.normal(size=(n, dim))), START + np.arange(n) * np.timedelta64(hours, "h"), 100 + np.arange(n))


@pytest.fixture(scope="module")
def blobs():
    "Three clouds, and ten rows that belong to none"
    dice = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2, -1], [120, 80, 50, 10])
    x = np.concatenate([np.eye(3, 16)[kind[:250]] + 0.07 * dice.normal(size=(250, 16)), dice.normal(size=(10, 16))])
    order = dice.permutation(260)
    return normalise(x)[order], kind[order], np.arange(260) % 2 == 0


# ---- neighbours


@pytest.mark.parametrize("apart", [None, "0h", "5h", "12h", "2 days"])
@pytest.mark.parametrize("block", [7, 512])
def test_neighbours_equal_brute_force(apart, block):
    r = rows()
    similarity, found = neighbours(r, r, k=4, apart=apart, block=block)
    span = pd.Timedelta(apart or 0)
    for i in range(len(r.ids)):
        may = [j for j in range(len(r.ids)) if j != i and not abs(pd.Timestamp(r.times[j]) - pd.Timestamp(r.times[i])) < span]
        best = sorted(may, key=lambda j: -float(r.vectors[i] @ r.vectors[j]))[:4]
        assert found[i].tolist() == best
        np.testing.assert_allclose(similarity[i], [r.vectors[i] @ r.vectors[j] for j in best], atol=1e-6)


def test_in_another_gallery_a_row_is_still_not_its_own_neighbour():
    r = rows()
    part = Rows(*(x[::2] for x in r))
    _, found = neighbours(r, part, k=3, apart=None)
    assert not (part.ids[found] == r.ids[:, None]).any()


def test_too_few_rows_and_too_few_moments_are_told():
    r = rows(6)
    with pytest.raises(ValueError, match="k=6: 6 rows have at most 5 neighbours each"): neighbours(r, r, k=6)
    with pytest.raises(ValueError, match="k=0"): neighbours(r, r, k=0)
    with pytest.raises(ValueError, match="apart='13h': tile 101 has only 2 neighbours so far from it in time, expected 3"): neighbours(r, r, k=3, apart="13h")


# ---- groups


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
@pytest.mark.parametrize("dims", [None, 6])
def test_groups_find_the_clouds(blobs, method, dims):
    vectors, kind, sampled = blobs
    labels = group(compact(vectors, np.arange(260), sampled, dims), sampled, n=3, method=method)
    np.testing.assert_array_equal(labels[kind >= 0], kind[kind >= 0])      # clouds are numbered by size, as groups are
    np.testing.assert_array_equal(labels, group(compact(vectors, np.arange(260), sampled, dims), sampled, n=3, method=method))


def test_only_hdbscan_may_leave_rows_out(blobs):
    vectors, kind, _ = blobs
    all_of_them = np.ones(260, bool)
    features = compact(vectors, np.arange(260), all_of_them, None)
    left_out = group(features, all_of_them, method="hdbscan") == -1       # it may also take a stranger in, and does
    assert left_out.sum() >= 3 and (kind[left_out] < 0).all()
    assert (group(features, all_of_them, n=4)[kind < 0] >= 0).all()


@pytest.mark.parametrize("wrong, message", [(dict(n=0), "n=0: groups of a sample of 130 rows, expected 1 to 130"), (dict(n=131), "n=131"),
                                            (dict(method="dbscan"), "'dbscan' is not known; choose kmeans or hdbscan"),
                                            (dict(method="hdbscan", min_size=1), "min_size=1"), (dict(method="hdbscan", min_size=200), "min_size=200")])
def test_groups_refuse_what_cannot_be(blobs, wrong, message):
    with pytest.raises(ValueError, match=message): group(blobs[0], blobs[2], **wrong)


def test_numbers_by_size_keep_groups_together():
    labels = np.random.default_rng(0).integers(-1, 6, 500)
    numbered = by_size(labels)
    pairs = set(zip(labels, numbered))
    assert len(pairs) == len(set(labels)) and (-1, -1) in pairs
    counts = np.bincount(numbered[numbered >= 0])
    assert (np.diff(counts) <= 0).all()


def test_compact_in_blocks_is_pca(blobs):
    from sklearn.decomposition import PCA
    vectors, _, sampled = blobs
    ids = np.arange(0, 260, 2)
    expected = PCA(5, random_state=0).fit(vectors[ids[sampled[:130]]]).transform(vectors[ids])
    np.testing.assert_allclose(compact(vectors.astype(np.float16), ids, sampled[:130], 5, block=11), expected, atol=2e-3)
    np.testing.assert_allclose(compact(3 * vectors, ids, sampled[:130], None), vectors[ids], atol=1e-6)


def test_the_middle_is_most_typical(blobs):
    vectors, kind, _ = blobs
    score = typicality(vectors, kind)
    assert np.isnan(score[kind < 0]).all()
    for name in (0, 1, 2):
        away = np.linalg.norm(vectors[kind == name] - vectors[kind == name].mean(axis=0), axis=1)
        assert score[kind == name].argmax() == away.argmin()


# ---- outliers


@pytest.mark.parametrize("method", ["lof", "forest"])
def test_rows_that_belong_to_nothing_are_odd(blobs, method):
    vectors, kind, sampled = blobs
    score = oddness(vectors, sampled, method)
    assert (kind[np.argsort(-score)[:8]] == -1).all()
    np.testing.assert_array_equal(score, oddness(vectors, sampled, method))


def test_oddness_refuses_what_cannot_be(blobs):
    with pytest.raises(ValueError, match="choose knn, lof or forest"): oddness(blobs[0], blobs[2], "svm")
    with pytest.raises(ValueError, match="k=130: a sample of 130 rows"): oddness(blobs[0], blobs[2], k=130)


# ---- two encoders


def test_agreement_equals_sets():
    dice = np.random.default_rng(0)
    one, other = (np.array([dice.permutation(30)[:7] for _ in range(50)]) for _ in range(2))
    expected = [len(set(a) & set(b)) / 7 for a, b in zip(one, other)]
    np.testing.assert_allclose(agreement(one, other), expected)
    assert (agreement(one, one[:, ::-1]) == 1).all()
    with pytest.raises(ValueError, match="same rows and the same k"): agreement(one, other[:, :3])


@pytest.mark.parametrize("mirror", [1, -1])
def test_a_turned_copy_is_laid_on_exactly(mirror):
    points = np.random.default_rng(1).normal(size=(40, 2))
    turn = np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]) @ np.diag([1, mirror])
    np.testing.assert_allclose(turned_onto(0.3 * points @ turn + [4, -9], points), points, atol=1e-9)


def test_laid_on_as_scipy_lays_it_on():
    from scipy.spatial import procrustes
    dice = np.random.default_rng(2)
    target, points = dice.normal(size=(2, 40, 2))
    goal, moved, _ = procrustes(target, points)
    scale = np.linalg.norm(target - target.mean(0))
    np.testing.assert_allclose(turned_onto(points, target), moved * scale + target.mean(0), atol=1e-9)


def test_points_on_one_spot_are_laid_on_the_middle():
    np.testing.assert_allclose(turned_onto(np.ones((5, 2)), np.arange(10.0).reshape(5, 2)), np.tile([4.0, 5.0], (5, 1)))


def test_umap_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[maps\]"'): aligned_umap(np.eye(5), np.eye(5))


def test_lines_of_a_sheet_hold_everybody_once():
    groups = np.random.default_rng(0).choice(list("abc"), 57)
    lines = sheet_lines(groups, 8)
    assert sorted(i for _, at in lines for i in at) == list(range(57))
    assert all(len(at) <= 8 and (groups[at] == name).all() for name, at in lines)
