"""Trivial descriptions: each against numpy, scipy, scikit-learn or a shape with a known answer."""
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from search_sdo.models.baselines import (TEXTURES, as_planes, box_dimension, directionality, histogram_features, mean_std, pca_features, pixel_features,
                                         slopes, texture_features, trivial_features, untrained_features)


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(0, 1, (9, 24, 24)).astype(np.float32)


# Pixels and light

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


@pytest.mark.parametrize("features, width", [(pixel_features, 512), (mean_std, 4), (histogram_features, 64), (texture_features, 20), (untrained_features, 256)])
def test_baselines_take_several_channels(images, features, width):
    two = np.stack([images, 1 - images], axis=1)
    assert features(two).shape == (9, width) and np.isfinite(features(two)).all()


@pytest.mark.parametrize("features", [pixel_features, mean_std, histogram_features, texture_features, untrained_features])
def test_baselines_read_nan_as_black_and_leave_the_pictures_alone(images, features):
    gap, black = images.copy(), images.copy()
    gap[:, :5], black[:, :5] = np.nan, 0
    np.testing.assert_array_equal(features(gap), features(black))
    assert np.isnan(gap).any()


@pytest.mark.parametrize("features", [pixel_features, mean_std, histogram_features, texture_features, untrained_features])
def test_a_picture_gives_the_same_row_alone_and_in_a_batch(images, features):
    np.testing.assert_allclose(features(images)[3], features(images[3:4])[0], atol=1e-5)


def test_baselines_refuse_one_picture_alone(images):
    with pytest.raises(ValueError, match=r"shape \[24, 24\], expected \[N, H, W\]"):
        mean_std(images[0])


def test_histogram_equals_numpys(images):
    oracle = [np.histogram(image, 8, range=(0, 1))[0] / 576 for image in images]
    np.testing.assert_allclose(histogram_features(images, bins=8), oracle, atol=1e-6)


# Ten textures

def named(images, **options):
    "Texture parameters of whole pictures, by name"
    return dict(zip(TEXTURES, texture_features(images, **options).T))


def test_the_six_that_are_about_brightness_equal_scipy():
    images = np.random.default_rng(4).beta(2, 5, (20, 32, 32)).astype(np.float32)
    found, flat = named(images), images.reshape(20, -1)
    shares = np.stack([np.bincount((row * 256).astype(int), minlength=256) for row in flat]) / 1024
    np.testing.assert_allclose(found["entropy"], stats.entropy(shares, base=2, axis=1), atol=1e-4)
    np.testing.assert_allclose(found["mean"], flat.mean(1), atol=1e-5)
    np.testing.assert_allclose(found["standard deviation"], flat.std(1), atol=1e-5)
    np.testing.assert_allclose(found["skewness"], stats.skew(flat, axis=1), atol=1e-4)
    np.testing.assert_allclose(found["kurtosis"], stats.kurtosis(flat, axis=1, fisher=False), atol=1e-3)
    np.testing.assert_allclose(found["uniformity"], (shares ** 2).sum(1), atol=1e-5)
    np.testing.assert_allclose(found["relative smoothness"], 1 - 1 / (1 + flat.var(1)), atol=1e-5)


def test_tamura_contrast_is_sigma_over_the_fourth_root_of_kurtosis():
    images = np.random.default_rng(4).beta(2, 5, (20, 32, 32)).astype(np.float32)
    flat = images.reshape(20, -1)
    oracle = flat.std(1) / stats.kurtosis(flat, axis=1, fisher=False) ** 0.25
    np.testing.assert_allclose(named(images)["contrast"], oracle, rtol=1e-4)


def test_slopes_equal_scipys_prewitt():
    image = np.random.default_rng(0).uniform(0, 1, (40, 30)).astype(np.float32)
    right, up, _ = slopes(torch.from_numpy(image)[None])
    np.testing.assert_allclose(right[0], ndimage.prewitt(image, axis=1)[1:-1, 1:-1] / 3, atol=1e-5)
    np.testing.assert_allclose(up[0], -ndimage.prewitt(image, axis=0)[1:-1, 1:-1] / 3, atol=1e-5)     # rows count downwards


def carpet(order):
    "Sierpiński's triangle of 2 ** order px: odd numbers of Pascal's triangle"
    i = torch.arange(2 ** order)
    return (i[:, None] & i) == 0


@pytest.mark.parametrize("order", [3, 5, 7])
def test_dimension_of_known_shapes(order):
    side = 2 ** order
    empty = torch.zeros(side, side, dtype=torch.bool)
    line, dot = empty.clone(), empty.clone()
    line[3], dot[2, 5] = True, True
    found = box_dimension(torch.stack([carpet(order), ~empty, line, line.T, torch.eye(side, dtype=torch.bool), dot, empty]))
    np.testing.assert_allclose(found, [np.log2(3), 2, 1, 1, 1, 0, 0], atol=1e-5)


def test_dimension_where_boxes_do_not_fit():
    full = torch.ones(1, 50, 37, dtype=torch.bool)
    assert box_dimension(full).item() == pytest.approx(2, abs=0.2)


def stripes(degrees):
    y, x = np.indices((64, 64))
    return np.sin((x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))) / 2)


def test_stripes_have_one_direction_whatever_it_is():
    waves = torch.tensor(np.stack([stripes(a) for a in range(0, 180, 15)])).float()
    assert directionality(*slopes(waves)).min() > 0.95


def test_noise_has_no_direction_and_crossed_stripes_have_some():
    noise = torch.rand(8, 64, 64, generator=torch.Generator().manual_seed(0))
    crossed = torch.tensor(np.maximum(stripes(0), 0.9) + np.maximum(stripes(90), 0.9)).float()[None]
    assert directionality(*slopes(noise)).abs().max() < 0.25
    assert 0.5 < directionality(*slopes(crossed)).item() < 1


def test_directionality_by_hand():
    "Two strong directions are both peaks, and no edge is far from one; a weak one (5 %, three bins off) is no peak and counts as spread"
    two_peaks = torch.tensor([0.0] * 50 + [3 * np.pi / 16] * 49)[None, None]
    assert directionality(two_peaks.cos(), two_peaks.sin(), two_peaks > -1).item() == 1
    one_peak = torch.tensor([0.0] * 95 + [3 * np.pi / 16] * 5)[None, None]
    assert directionality(one_peak.cos(), one_peak.sin(), one_peak > -1).item() == pytest.approx(1 - 12 / np.pi ** 2 * 0.05 * (3 * np.pi / 16) ** 2, abs=1e-5)


def test_a_flat_picture_has_sound_textures():
    found = named(np.stack([np.zeros((32, 32)), np.full((32, 32), 0.4), np.full((32, 32), np.nan)]))
    assert all(np.isfinite(v).all() for v in found.values())
    for name in ("entropy", "standard deviation", "fractal dimension", "skewness", "kurtosis", "relative smoothness", "contrast", "directionality"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["uniformity"], 1)


def test_cells_are_the_pictures_that_they_cut():
    image = np.random.default_rng(0).uniform(0, 1, (2, 3, 32, 64)).astype(np.float32)
    found = texture_features(image, cell=16).reshape(2, 3, 2, 4, 10)
    np.testing.assert_allclose(found[1, 2, 1, 3], texture_features(image[1:, 2, 16:, 48:])[0], atol=1e-5)


def test_more_pictures_than_a_block_holds():
    images = np.random.default_rng(0).uniform(0, 1, (600, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(texture_features(images)[-5:], texture_features(images[-5:]), atol=1e-5)


def test_textures_refuse_cells_that_do_not_fit(images):
    with pytest.raises(ValueError, match="cell: 7 px do not divide pictures of 24 x 24 px"):
        texture_features(images, cell=7)
    with pytest.raises(ValueError, match="cell: 4 px, expected at least 6"):
        texture_features(images, cell=4)


# A network that has learned nothing

def test_the_untrained_network_is_the_same_each_time_and_touches_no_global_dice(images):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = untrained_features(images)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, untrained_features(images))
    assert abs(first - untrained_features(images, seed=1)).max() > 1e-3 and first.shape == (9, 256)


def test_all_baselines_in_one_call(images):
    found = trivial_features(images, gallery=np.arange(9) < 6)
    assert all(len(v) == 9 and v.dtype == np.float32 and np.isfinite(v).all() for v in found.values())
    np.testing.assert_allclose(found["PCA"], pca_features(images[:6], images), atol=1e-5)
    assert as_planes(images).shape == (9, 1, 24, 24)
