"""Maps of features: against scikit-learn, repeatable, and nothing drawn on top of anything."""
import sys

import numpy as np
import pytest

from search_sdo.models.maps import one_per_cell, project, show_density, show_thumbnails


@pytest.fixture(scope="module")
def clouds():
    dice = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], 30)
    return (np.eye(3, 12)[kind] * 6 + dice.normal(size=(90, 12))).astype(np.float32), kind


def unit(x): return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_pca_equals_the_singular_value_decomposition(clouds):
    x = unit(clouds[0])
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(abs(project(clouds[0])), abs(u[:, :2] * s[:2]), atol=1e-4)


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_maps_can_be_repeated_and_keep_clouds_apart(clouds, method):
    if method == "umap":
        pytest.importorskip("umap")
    x, kind = clouds
    points = project(x, method, seed=3)
    assert points.shape == (90, 2) and points.dtype == np.float32 and np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(x, method, seed=3))
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    nearest = np.argsort(apart, axis=1)[:, 1:6]
    assert (kind[nearest] == kind[:, None]).mean() > 0.9


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_length_of_rows_does_not_matter(clouds, method):
    x, _ = clouds
    np.testing.assert_allclose(project(x, method), project(x * 8, method), atol=1e-3)


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
@pytest.mark.parametrize("rows, columns", [(5, 1), (6, 300), (12, 2)])
def test_small_and_thin_tables(method, rows, columns):
    if method == "umap":
        pytest.importorskip("umap")
    points = project(np.random.default_rng(0).normal(size=(rows, columns)), method)
    assert points.shape == (rows, 2) and np.isfinite(points).all()


def test_a_collapsed_encoder_can_be_drawn():
    points = project(np.ones((20, 8)))
    assert np.isfinite(points).all() and abs(points).max() < 1e-5


def test_project_refuses_what_it_cannot_draw(clouds):
    with pytest.raises(ValueError, match="'mds' is not known; choose pca, tsne or umap"):
        project(clouds[0], "mds")
    with pytest.raises(ValueError, match="features: 4 rows, expected at least 5"):
        project(np.ones((4, 3)))
    with pytest.raises(ValueError, match="features: 90 of 90 rows hold NaN"):
        project(clouds[0] * np.nan)


def test_umap_that_is_not_installed_is_named(clouds, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[maps\]"'):
        project(clouds[0], "umap")


def test_density_counts_every_point(clouds):
    figure = show_density({"left": project(clouds[0]), "right": project(clouds[0][:40])}, bins=10)
    drawn = [ax.collections[0].get_array() for ax in figure.axes[:2]]
    assert [int(np.ma.asarray(a).sum()) for a in drawn] == [90, 40]
    assert drawn[0].size == 100 and "left" in figure.axes[0].get_title()
    norms = [ax.collections[0].norm for ax in figure.axes[:2]]
    assert norms[0] is norms[1]


def test_density_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="projections: empty"):
        show_density({})
    with pytest.raises(ValueError, match="points have shape|have shape"):
        show_density({"line": np.ones(5)})


def test_one_thumbnail_a_cell_and_the_one_nearest_to_its_middle():
    dice = np.random.default_rng(0)
    points = dice.uniform(0, 1, (500, 2))
    chosen, column, line = one_per_cell(points, cells=7)
    assert len(set(zip(column, line))) == len(chosen) == 49
    low, high = points.min(0), points.max(0)
    place = (points - low) / (high - low) * 7
    cell = np.minimum(place.astype(int), 6)
    for i, x, y in zip(chosen, column, line):
        mine = np.flatnonzero((cell == [x, y]).all(axis=1))
        assert i == mine[np.argmin(np.hypot(*(place[mine] - [x + 0.5, y + 0.5]).T))]


def test_points_on_one_spot_and_on_a_line():
    assert len(one_per_cell(np.ones((9, 2)))[0]) == 1
    assert len(one_per_cell(np.column_stack([np.arange(40), np.ones(40)]), cells=8)[0]) == 8


@pytest.mark.parametrize("colours", [(), (3,)])
def test_thumbnails_stand_where_their_points_are(colours):
    points = np.array([[0.0, 0], [10, 0], [0, 10]])
    images = np.ones((3, 4, 4, *colours)) * np.array([0.2, 0.5, 0.8]).reshape(3, 1, 1, *(1 for _ in colours))
    ax = show_thumbnails(points, images, cells=5)
    paper = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert paper.shape == (20, 20, *colours)
    corner = lambda rows, cols: paper[rows, cols].reshape(16, -1)
    lower, upper = slice(16, 20), slice(0, 4)
    np.testing.assert_allclose(corner(lower, upper), 0.2, atol=1e-6)      # (0, 0) is the lower left: north is up
    np.testing.assert_allclose(corner(lower, lower), 0.5, atol=1e-6)
    np.testing.assert_allclose(corner(upper, upper), 0.8, atol=1e-6)


def test_thumbnails_need_one_picture_for_each_point():
    with pytest.raises(ValueError, match=r"images: shape \(2, 4, 4\), expected \[3, h, w\]"):
        show_thumbnails(np.zeros((3, 2)), np.zeros((2, 4, 4)))
