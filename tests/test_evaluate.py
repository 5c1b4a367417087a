"""Nearest neighbours, precision at k and the trivial baselines, each against an oracle or a case done by hand."""
import numpy as np
import pandas as pd
import pytest
import torch

from search_sdo.models.evaluate import histogram_features, mean_std, nearest, pca_features, pixel_features, precision_at_k


@pytest.fixture
def features():
    dice = np.random.default_rng(0)
    return dice.normal(size=(30, 16)).astype(np.float32), dice.normal(size=(200, 16)).astype(np.float32)


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(0, 1, (9, 24, 24)).astype(np.float32)


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


# Baselines

def test_pixel_features_are_means_of_blocks(images):
    oracle = images.reshape(9, 8, 3, 8, 3).mean(axis=(2, 4)).reshape(9, 64)
    np.testing.assert_allclose(pixel_features(images, side=8), oracle, atol=1e-6)
    assert pixel_features(images).shape == (9, 256)


def test_mean_std_is_numpys(images):
    z = mean_std(images)
    np.testing.assert_allclose(z, np.stack([images.mean((1, 2)), images.std((1, 2))], 1), atol=1e-6)


def test_histogram_counts_every_pixel(images):
    z = histogram_features(images)
    assert z.shape == (9, 32) and np.allclose(z.sum(1), 1)
    edges = np.minimum((images * 32).astype(int), 31)
    np.testing.assert_allclose(z[0], np.bincount(edges[0].ravel(), minlength=32) / 576, atol=1e-6)
    assert histogram_features(np.array([[[-3.0, 9.0]]]), bins=2).tolist() == [[0.5, 0.5]]


def test_pca_equals_the_singular_value_decomposition():
    dice = np.random.default_rng(2)
    train, images = dice.uniform(0, 1, (40, 12, 12)), dice.uniform(0, 1, (9, 12, 12))
    flat = train.reshape(40, -1)
    directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:5]
    oracle = (images.reshape(9, -1) - flat.mean(0)) @ directions.T
    np.testing.assert_allclose(abs(pca_features(train, images, n=5)), abs(oracle), atol=1e-4)
    assert pca_features(train, images).shape == (9, 40)         # no more components than pictures


@pytest.mark.parametrize("features, width", [(pixel_features, 512), (mean_std, 4), (histogram_features, 64)])
def test_baselines_take_several_channels(images, features, width):
    two = np.stack([images, 1 - images], axis=1)
    assert features(two).shape == (9, width)


@pytest.mark.parametrize("features", [pixel_features, mean_std, histogram_features])
def test_baselines_read_nan_as_black_and_leave_the_pictures_alone(images, features):
    gap, black = images.copy(), images.copy()
    gap[:, :5], black[:, :5] = np.nan, 0
    np.testing.assert_array_equal(features(gap), features(black))
    assert np.isnan(gap).any()


def test_baselines_refuse_one_picture_alone(images):
    with pytest.raises(ValueError, match=r"shape \[24, 24\], expected \[N, H, W\]"):
        mean_std(images[0])
