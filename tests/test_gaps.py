"""Gaps: masks, every fill on every kind of gap, kriging against its own definition, real AIA 171 with tiles hidden."""
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from real_data import DATA, needs_data
from search_sdo.packager import gaps
from search_sdo.packager.frame import read_image
from search_sdo.packager.gaps import (FILLS, fill, fill_iterative, fill_kriged, fill_nearest, fill_sampled, kriging_weights, mesh, missing_blocks,
                                      missing_corners, missing_pixels, missing_tiles, power_law, score_fill, variogram, with_mask)

needs_skimage = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed: pip install \"search_sdo[gaps]\"")
NAMES = [pytest.param(n, marks=needs_skimage) if n == "biharmonic" else n for n in FILLS]


def rough(shape, power=0.8, seed=0):
    "Pictures whose variogram grows with about that power of the distance; about 0.5 +- 0.1"
    n, h, w = shape
    k = np.hypot(np.fft.fftfreq(2 * h)[:, None], np.fft.rfftfreq(2 * w))
    k[0, 0] = np.inf
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(n, 2 * h, 2 * w)))
    x = np.fft.irfft2(noise * k ** (-(2 + power) / 2))[:, :h, :w]
    return (0.5 + 0.1 * x / x.std()).astype(np.float32)


KINDS = {
    "pixels": lambda shape: missing_pixels(shape, 0.3),
    "nearly all pixels": lambda shape: missing_pixels(shape, 0.97),
    "blocks": lambda shape: missing_blocks(shape, 4, 16),
    "tiles": lambda shape: missing_tiles(shape, 3),
    "corners": lambda shape: missing_corners(shape, 20),
    "half": lambda shape: np.broadcast_to(np.arange(shape[-1]) < shape[-1] // 2, shape),
    "all but one pixel": lambda shape: np.arange(shape[-1] * shape[-2]).reshape(shape[-2:]) != np.zeros((shape[0], 1, 1)),
}


@pytest.mark.parametrize("shape", [(2, 96, 96), (1, 51, 51)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_fill_closes_every_gap_and_touches_nothing_else(name, kind, shape):
    if name == "biharmonic" and kind not in ("pixels", "blocks"):
        pytest.skip("a plate over a wide hole takes minutes")
    x, mask = rough(shape), KINDS[kind](shape)
    before = x.copy()
    filled = fill(x, mask, name)
    assert filled.dtype == np.float32 and filled.shape == x.shape and np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~mask], x[~mask])
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_a_batch_of_one_and_nan_are_a_mask(name):
    x, mask = rough((3, 48, 48)), missing_blocks((3, 48, 48), 2, 8)
    given = np.where(mask, np.nan, x)
    batch = fill(x, mask, name)
    np.testing.assert_array_equal(fill(given, method=name), batch)
    if name != "sampled":
        np.testing.assert_allclose([fill(g, method=name) for g in given], batch, atol=1e-6)
    else:
        assert fill(given[0], method=name).shape == (48, 48)


@pytest.mark.parametrize("name", NAMES[1:])
def test_an_image_of_nothing_stays_nothing_and_harms_no_other(name):
    x, mask = rough((3, 48, 48)), missing_blocks((3, 48, 48), 2, 8)
    mask[1] = True
    filled = fill(x, mask, name)
    assert np.isnan(filled[1]).all() and np.isfinite(filled[[0, 2]]).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_missing_nothing_changed(name):
    np.testing.assert_array_equal(fill(rough((2, 40, 40)), method=name, **({"tile": 8} if name == "iterative" else {})), rough((2, 40, 40)))


@pytest.mark.parametrize("kwargs, match", [
    (dict(images=np.zeros(5)), r"images: shape \(5,\), expected"),
    (dict(images=np.zeros((2, 0, 5))), "images: shape"),
    (dict(images=np.zeros((2, 4, 4)), mask=np.zeros((2, 4, 4))), "mask: float64"),
    (dict(images=np.zeros((2, 4, 4)), mask=np.zeros((3, 4, 4), bool)), r"mask: bool \(3, 4, 4\), expected bool \(2, 4, 4\)"),
    (dict(images=np.zeros((4, 4)), method="magic"), "method: 'magic', expected one of none, nearest"),
])
def test_what_cannot_be_filled_is_said(kwargs, match):
    with pytest.raises(ValueError, match=match):
        fill(**kwargs)


@pytest.mark.parametrize("call, match", [
    (lambda: missing_blocks((64, 64), 5, 32), "n: 5 blocks of 32 px, but only 4 fit"),
    (lambda: missing_tiles((96, 96), 9), "n: 9 blocks of 32 px, but only 8 fit"),
    (lambda: missing_tiles((96, 90)), "is not 3 x 3 tiles"),
    (lambda: missing_tiles((128, 128), across=4), "is not 4 x 4 tiles with one in the middle"),
    (lambda: fill_iterative(np.zeros((50, 50)), tile=16), "tile: squares of 16 px do not cover"),
    (lambda: score_fill(np.full((1, 8, 8), np.nan), np.ones((1, 8, 8), bool), ["none"]), "hides nothing that was measured"),
])
def test_errors_name_the_argument(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_biharmonic_without_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[gaps\]"'):
        fill(np.zeros((8, 8)), method="biharmonic")


def test_masks_hide_what_they_promise():
    tiles = missing_tiles((50, 96, 96), 3)
    squares = tiles.reshape(50, 3, 32, 3, 32)
    assert (squares.any((2, 4)) == squares.all((2, 4))).all() and (squares.all((2, 4)).sum((1, 2)) == 3).all() and not tiles[:, 32:64, 32:64].any()
    assert len({t.tobytes() for t in tiles}) > 20, "each picture loses tiles of its own"
    np.testing.assert_array_equal(tiles, missing_tiles((50, 96, 96), 3))
    assert (missing_tiles((50, 96, 96), 3, seed=1) != tiles).any()
    corners = missing_corners((64, 64), 45)
    assert corners[0, 0] and corners[-1, -1] and not corners[32, 0] and abs(corners.mean() - (1 - 2 * (2 ** 0.5 - 1))) < 0.02


def test_the_mask_channel_keeps_what_was_measured():
    planes = with_mask(np.array([[[0.0, np.nan], [2.0, 3.0]]]))
    np.testing.assert_array_equal(planes, [[[[0, 0], [2, 3]], [[1, 0], [1, 1]]]])
    assert planes.dtype == np.float32


def test_nearest_agrees_with_a_search_by_hand():
    x, mask = rough((1, 20, 20))[0], missing_pixels((20, 20), 0.6)
    filled, known = fill_nearest(x, mask), np.argwhere(~mask)
    for place in np.argwhere(mask):
        distance = np.hypot(*(known - place).T)
        assert filled[tuple(place)] in x[tuple(known[distance == distance.min()].T)]


def test_iterative_agrees_with_sweeps_pixel_by_pixel():
    x, mask, tile = rough((1, 24, 24))[0].astype(float), missing_tiles((24, 24), 3), 8
    wide = np.pad(np.where(mask, 0, x), 1, constant_values=np.median(x[~mask]))
    for _ in range(5):
        for a, b in np.argwhere(mask[::tile, ::tile]) * tile + 1:
            old = wide.copy()
            for r in range(a, a + tile):
                for c in range(b, b + tile):
                    sides = {r - a + 1: old[a - 1, c]}, {a + tile - r: old[a + tile, c]}, {c - b + 1: old[r, b - 1]}, {b + tile - c: old[r, b + tile]}
                    pairs = [(1 / (0.001 + d), v) for side in sides for d, v in side.items()]
                    wide[r, c] = sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)
    np.testing.assert_allclose(fill_iterative(x, mask, sweeps=5), wide[1:-1, 1:-1], atol=1e-5)


def test_sampled_values_come_from_the_neighbourhood_and_from_the_seed():
    x = np.tile(np.arange(200, dtype=np.float32), (64, 1))   # the value is the column
    mask = missing_blocks(x.shape, 3, 8)
    filled = fill_sampled(x, mask)
    assert np.abs(filled - x).max() <= 15 and (filled == np.round(filled)).all()
    np.testing.assert_array_equal(filled, fill_sampled(x, mask))
    assert (fill_sampled(x, mask, seed=1) != filled).any()


@pytest.mark.parametrize("power", [0.3, 0.8, 1.5])
def test_kriging_weights_are_the_best_ones(power):
    "Among weights that add up to one none has a smaller expected squared error (2 w.g - w.G.w with variogram G, g)"
    dice = np.random.default_rng(0)
    known, wanted = dice.uniform(0, 50, (12, 2)), dice.uniform(0, 50, (5, 2))
    weights = kriging_weights(known, np.zeros(12), wanted, power)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-9)
    np.testing.assert_allclose(kriging_weights(known, np.zeros(12), known, power), np.eye(12), atol=1e-8)
    error = lambda w: 2 * (w * power_law(known, wanted, power)).sum(0) - np.einsum("ij,ik,kj->j", w, power_law(known, known, power), w)
    for _ in range(50):
        push = dice.normal(size=weights.shape) * 0.01
        assert (error(weights) <= error(weights + push - push.mean(0))).all()


HOLES = {"tile": missing_blocks((48, 48), 1, 16, keep=range(8)), "specks": missing_blocks((64, 64), 20, 4), "corners": missing_corners((48, 48), 20)}


@pytest.mark.parametrize("power", [0.1, 0.5, 0.8, 1.2, 1.9])
@pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES)
def test_squares_of_all_sizes_do_not_contradict_each_other(hole, power):
    "The matrix of the kriging system, seen by weights that add up to nothing, is negative definite: there is one best answer"
    squares = mesh(hole, ~hole)
    seen, n = [], len(squares)
    solve = lambda system, right: seen.append(system) or np.zeros_like(right)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaps.np.linalg, "solve", solve)
        kriging_weights(squares[:, 1:] + (squares[:, :1] - 1) / 2, squares[:, 0], np.zeros((1, 2)), power)
    centre = np.eye(n) - 1 / n
    values = np.linalg.eigvalsh(centre @ seen[0][:-1, :-1] @ centre)
    assert np.sort(abs(values))[1] > 1e-4 and (values < 1e-9 * abs(values).max()).all()


@pytest.mark.parametrize("seed", range(5))
def test_mesh_takes_nothing_twice_and_nothing_that_is_missing(seed):
    dice = np.random.default_rng(seed)
    hole, lost = (dice.random((32, 48)) < share for share in (0.02, 0.05))
    seen = np.zeros(hole.shape, int)
    for s, r, c in mesh(hole, ~hole & ~lost):
        seen[r:r + s, c:c + s] += 1
    assert seen.max() == 1 and not seen[hole | lost].any()
    near = np.pad(hole, 1)[2:, 1:-1] & ~hole & ~lost
    assert seen[near].all(), "what touches the hole is always used"


def test_square_numbers_are_places_in_the_pyramid():
    cells = rough((1, 32, 48))
    for s, r, c in mesh(HOLES["tile"][:32, :48], np.ones((32, 48), bool)):
        for corner in ((0, 0), (-16, 16)):
            if r + corner[0] < 0 or c + corner[1] + s > 48:
                continue
            number = gaps.square_numbers(np.array([[s, r, c]]), corner, (32, 48))[0]
            r2, c2 = r + corner[0], c + corner[1]
            assert gaps.pyramid(cells)[0, number] == pytest.approx(cells[0, r2:r2 + s, c2:c2 + s].mean(), abs=1e-6)


def test_variogram_finds_the_power_of_a_rough_picture():
    steps = np.array([2, 4, 8, 16, 32])
    slope = np.polyfit(np.log(steps), np.log(variogram(rough((8, 256, 256)), steps)), 1)[0]
    assert 0.6 < slope < 0.9


@pytest.mark.parametrize("kind", ["tiles", "blocks", "corners", "pixels"])
def test_kriging_beats_the_others_on_rough_pictures(kind):
    x = rough((12, 192, 192), seed=3)
    table = score_fill(x, KINDS[kind](x.shape), [n for n in FILLS if n != "biharmonic"])
    assert table.method[0] == "kriged" and abs(table.bias[0]) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_any_memory_layout_and_number_type(name):
    x, mask = rough((3, 48, 48)).astype(np.float64), missing_blocks((3, 48, 48), 2, 8)
    for other in (np.asfortranarray(x), x.transpose(2, 1, 0).copy().transpose(2, 1, 0), np.concatenate([x, x], 2)[..., :48], x.astype(">f4")):
        np.testing.assert_allclose(fill(other, mask, name), fill(x, mask, name), atol=1e-6)


def test_kriging_is_the_same_in_any_unit():
    x, mask = rough((2, 96, 96)), missing_tiles((2, 96, 96))
    np.testing.assert_allclose(fill_kriged(1000 * x + 5, mask), 1000 * fill_kriged(x, mask) + 5, rtol=1e-4)


def test_images_of_a_batch_do_not_meet():
    "Filled together or alone: the same, whatever holes the others have"
    x = rough((40, 64, 64))
    mask = np.stack([m(x.shape)[i] for i, m in enumerate(40 * [KINDS["pixels"], KINDS["blocks"], KINDS["corners"]]) if i < 40])
    together = fill_kriged(x, mask)
    for i in range(0, 40, 7):
        np.testing.assert_allclose(fill_kriged(x[i], mask[i]), together[i], atol=1e-5)


@pytest.mark.parametrize("blocks", [6, 24])
def test_large_frames_with_many_holes(blocks):
    x = rough((4, 512, 512))
    mask = missing_blocks(x.shape, blocks, 64)
    table = score_fill(x, mask, ["nearest", "kriged"])
    assert table.method[0] == "kriged" and table.mae[0] < 0.92 * table.mae[1]


def test_a_hole_wider_than_the_reach_is_filled_from_a_coarser_picture():
    x = rough((1, 640, 640))
    mask = np.zeros(x.shape, bool)
    mask[:, 64:576, 64:576] = True
    assert gaps.hole_weights(np.ones((40, 40), np.int8).tobytes(), 0.8) is None
    filled = fill_kriged(x, mask)
    assert np.isfinite(filled).all() and abs(filled - x)[mask].mean() < 1.1 * abs(fill_nearest(x, mask) - x)[mask].mean()


def test_score_counts_only_what_was_measured():
    x = rough((2, 48, 48))
    x[0, :8] = np.nan
    mask = missing_blocks(x.shape, 4, 8)
    table = score_fill(x, mask, dict(half=lambda given: np.full_like(given, 0.5), truth=lambda given: np.nan_to_num(x)))
    assert list(table.method) == ["truth", "half"] and table.mae[0] == table.bias[0] == 0
    assert table.mae[1] == pytest.approx(np.abs(0.5 - x[mask & np.isfinite(x)]).mean())


@needs_data
def test_tiles_hidden_in_real_frames():
    "Three of eight neighbours on real AIA 171 after 2015, on frames with which nothing was fitted: at most 0.038"
    files = sorted((DATA / "aia171").glob("*.jpg"))
    images = [read_image(f) for f in files if f.name >= "2015"][::6]
    x = np.stack([im[r:r + 192, c:c + 192] for im in images for r, c in ((640, 640), (640, 1152), (960, 896), (1152, 640), (1152, 1152))]) / 255
    table = score_fill(x, missing_tiles(x.shape, 3), ["nearest", "iterative", "kriged"]).set_index("method")
    assert len(x) >= 60 and table.mae.kriged <= 0.038 and table.mae.kriged < 0.93 * table.mae.iterative < table.mae.nearest


@pytest.mark.parametrize("call, match", [
    (lambda x: score_fill(x, missing_blocks(x.shape, 1, 8).astype(int), ["none"]), "mask: int64"),
    (lambda x: score_fill(x, np.zeros((7, 7), bool), ["none"]), "mask: bool"),
    (lambda x: score_fill(x, missing_blocks(x.shape, 1, 8), "magic"), "methods: 'magic'"),
    (lambda x: fill(x, power=np.nan), "power: nan"), (lambda x: fill(x, power=2), "power: 2"), (lambda x: fill(x, power=-1), "power: -1"),
    (lambda x: fill(x, method="nearest", power=1), "power: 'nearest' has no such option"),
    (lambda x: variogram(x, [0]), "distances"), (lambda x: variogram(x, [1.5]), "distances"), (lambda x: variogram(x, [48]), "distances"),
])
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call(rough((2, 48, 48)))


@pytest.mark.parametrize("name", NAMES)
def test_infinite_and_masked_values_are_missing(name):
    x, mask = rough((2, 48, 48)), missing_blocks((2, 48, 48), 2, 8)
    expected = fill(x, mask, name)
    np.testing.assert_array_equal(fill(np.where(mask, np.inf, x), method=name), expected)
    np.testing.assert_array_equal(fill(np.ma.array(x, mask=mask), method=name), expected)


def test_specks_stay_among_what_was_measured():
    x = np.where(missing_pixels((1, 64, 64), 0.5), 1, 1000).astype(np.float32)
    filled = fill_kriged(x, missing_pixels(x.shape, 0.9, seed=1))
    assert filled.min() >= 1 and filled.max() <= 1000
    np.testing.assert_allclose(fill_kriged(np.full((64, 64), 0.5), missing_pixels((64, 64), 0.97)), 0.5, atol=1e-6)


def test_score_of_one_image_and_of_a_side_that_three_does_not_divide():
    x = rough((1, 64, 64))
    table = score_fill(x[0], missing_blocks((64, 64), 2, 8))
    assert set(table.method) == set(FILLS) - {"biharmonic"} and (table.mae < 1).all()


def test_variogram_of_bytes_does_not_wrap():
    assert variogram(np.tile(np.uint8([0, 200]), (4, 2)), [1])[0] == pytest.approx(200 ** 2 / 4)
