"""Farthest points against the plain definition, ties and faults; k-means balance; the loop of choosing and training."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from search_sdo.models.diverse import Rounds, balance_kmeans, census, choose, draw_evenly, embed_places, farthest_plain, iterate, neighbour_distance, share_out
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.farthest import farthest_points
from search_sdo.models.material import load_material, training_tiles
from search_sdo.models.simclr import SimCLR
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles


def plain(features, n, start=None, chosen=(), keep=None):
    "The definition, one pick after the other: subtract, square, add, take the nearest pick, take the farthest row"
    x = np.asarray(features, dtype=np.float64)
    keep = np.ones(len(x), bool) if keep is None else keep.copy()
    keep[list(chosen)] = False
    picks = list(chosen) if start is None else [*chosen, start]
    while len(picks) < n + len(chosen):
        reach = np.min([np.sqrt(np.square(x - x[p]).sum(1)) for p in picks], axis=0)
        reach[~keep] = -1
        reach[picks] = -1
        picks.append(int(reach.argmax()))
    return np.array(picks[len(chosen):])


def cloud(kind, n=900, d=24, seed=0):
    "Rows of one kind, float32"
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(n, d))
    if kind == "clusters":
        x = 3 * dice.normal(size=(12, d))[dice.choice(12, n, p=dice.dirichlet(np.full(12, 0.3)))] + 0.1 * x
    if kind == "outliers":
        x[::97] *= 1e4
    if kind == "far from zero":
        x += 1e4
    if kind == "lattice":
        x = dice.integers(-2, 3, (n, d))
    if kind == "few columns, many ties":
        x = dice.integers(0, 6, (n, 2))
    if kind == "copies":
        x = x[dice.integers(0, n // 4, n)]
    if kind == "mirrored":
        x = np.stack([x[: n // 2], -x[: n // 2]], 1).reshape(-1, d)
    if kind == "collapsed":
        x = 5 + 1e-5 * x
    return x.astype(np.float32)


KINDS = ["even", "clusters", "outliers", "far from zero", "lattice", "few columns, many ties", "copies", "mirrored", "collapsed"]


@pytest.mark.parametrize("pool", [1, 40, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_farthest_points_equal_the_plain_definition(kind, pool):
    x = cloud(kind)
    assert farthest_points(x, 60, start=7, pool=pool).tolist() == plain(x, 60, start=7).tolist()


# Farthest points

@pytest.mark.parametrize("kind", KINDS)
def test_from_rows_chosen_before_and_only_rows_that_are_kept(kind):
    x = cloud(kind, n=500)
    keep = np.random.default_rng(1).random(500) < 0.6
    chosen = [3, 44, 45, 499]
    ours = farthest_points(x, 50, chosen=chosen, keep=keep, pool=30)
    assert ours.tolist() == plain(x, 50, chosen=chosen, keep=keep).tolist()
    assert keep[ours].all() and not set(ours) & set(chosen)


def test_going_on_equals_picking_at_once():
    x = cloud("clusters")
    at_once = farthest_points(x, 80, start=5)
    first = farthest_points(x, 30, start=5)
    assert np.array_equal(at_once, [*first, *farthest_points(x, 50, chosen=first)])


def test_starts_with_the_row_closest_to_the_mean():
    x = cloud("clusters")
    first = int(np.linalg.norm(x - x.mean(0, dtype=float), axis=1).argmin())
    assert farthest_points(x, 20).tolist() == plain(x, 20, start=first).tolist()
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * 0.1   # all equally close
    assert farthest_points(corners, 1).tolist() == [0]


def test_cosine_is_euclidean_on_rows_of_length_one_and_zeros_stay_in_the_middle():
    x = cloud("even")
    unit = x / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    assert farthest_points(x * np.arange(1, len(x) + 1)[:, None], 40, start=0, metric="cosine").tolist() == plain(unit, 40, start=0).tolist()
    assert farthest_points([[0.0, 0], [5, 0], [-1, 0], [1, 0.1]], 3, start=1, metric="cosine").tolist() == [1, 2, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_takes_numbers_of_any_type(dtype):
    x = (100 * cloud("even", n=200)).astype(dtype)
    assert farthest_points(x, 20, start=0).tolist() == plain(x, 20, start=0).tolist()


def test_reads_a_mapped_file_without_changing_it(tmp_path):
    x = cloud("even", n=300).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert farthest_points(mapped, 20, start=0).tolist() == plain(x, 20, start=0).tolist()
    assert np.array_equal(mapped, x)


def test_identical_rows_are_picked_in_order():
    assert farthest_points(np.ones((50, 3)), 20).tolist() == list(range(20))
    assert farthest_points(np.ones((50, 3)), 50, pool=4).tolist() == list(range(50))


def test_all_rows_can_be_picked_and_one_row_is_enough():
    x = cloud("even", n=70)
    assert sorted(farthest_points(x, 70, pool=9)) == list(range(70))
    assert farthest_points([[1.0, 2]], 1).tolist() == [0]


def test_far_picks_of_before_do_not_blur_the_rest():
    "A chosen row that is kept out and enormous makes rounding larger than all other distances"
    x = np.concatenate([cloud("even", n=300, d=4).astype(np.float64), np.full((1, 4), 1e12)])
    keep = np.arange(301) < 300
    assert farthest_points(x, 30, chosen=[300, 0], keep=keep).tolist() == plain(x, 30, chosen=[300, 0], keep=keep).tolist()


@pytest.mark.parametrize("options, words", [
    (dict(n=11), "n: 11 picks, but 10 of 10 rows"),
    (dict(n=0), "n: 0 picks, expected 1 or more"),
    (dict(n=9, chosen=[1, 2]), "8 of 10 rows can be picked"),
    (dict(n=1, keep=np.zeros(10, bool)), "10 kept out"),
    (dict(n=1, keep=np.ones(10)), "keep: float64"),
    (dict(n=1, keep=np.ones(9, bool)), r"shape \[9\]"),
    (dict(n=1, chosen=[10]), "chosen: rows 10 to 10, expected 0 to 9"),
    (dict(n=1, start=3, keep=np.arange(10) > 4), "start: row 3 cannot be picked"),
    (dict(n=1, metric="manhattan"), "choose euclidean or cosine"),
])
def test_requests_that_cannot_be_met(options, words):
    with pytest.raises(ValueError, match=words):
        farthest_points(cloud("even", n=10), **options)


def test_rows_that_are_no_numbers_are_refused_unless_kept_out():
    x = cloud("even", n=40)
    x[7, 3] = np.nan
    x[9] = np.inf
    with pytest.raises(ValueError, match="row 7 holds NaN or infinity; leave such rows out with keep="):
        farthest_points(x, 5)
    good = np.isfinite(x).all(1)
    assert farthest_points(x, 5, start=0, keep=good).tolist() == plain(np.nan_to_num(x), 5, start=0, keep=good).tolist()
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        farthest_points(x[0], 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_graphics_card_picks_the_same(kind):
    x = cloud(kind)
    assert farthest_points(x, 60, start=7, device="cuda", pool=50).tolist() == plain(x, 60, start=7).tolist()


def test_the_lessons_loop_is_the_definition():
    for kind in KINDS:
        x = cloud(kind, n=300)
        assert farthest_plain(x, 40, start=2).tolist() == plain(x, 40, start=2).tolist()


# Rows that are like nothing else

def test_neighbour_distance_equals_sorting_all_distances():
    x, frames = cloud("clusters", n=200), np.arange(200) // 10
    every = np.linalg.norm(x[:, None] - x[None], axis=2)
    every[frames[:, None] == frames[None]] = np.inf
    np.testing.assert_allclose(neighbour_distance(x, frames, k=4), np.sort(every, axis=1)[:, 3], atol=1e-4)


def test_a_broken_frame_cannot_vouch_for_itself():
    x, frames = cloud("even", n=300), np.arange(300) // 30
    x[frames == 4] = 40 + 0.01 * x[frames == 4]     # all its tiles alike, and like nothing else
    assert set(np.argsort(-neighbour_distance(x, frames))[:30]) == set(np.flatnonzero(frames == 4))
    assert not set(np.argsort(-neighbour_distance(x))[:9]) & set(np.flatnonzero(frames == 4))


def test_neighbours_that_are_not_there():
    with pytest.raises(ValueError, match="k: 3 neighbours in other frames"):
        neighbour_distance(np.ones((9, 2)), np.zeros(9, int))
    with pytest.raises(ValueError, match="k: 3 neighbours"):
        neighbour_distance(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"frames: shape \[2\]"):
        neighbour_distance(np.ones((9, 2)), [0, 1])


# K-means

def test_shares_are_as_equal_as_room_allows():
    dice = np.random.default_rng(0)
    for _ in range(200):
        room = dice.integers(0, 30, dice.integers(1, 12))
        n = int(dice.integers(0, room.sum() + 1))
        shares = share_out(n, room)
        assert shares.sum() == n and (shares <= room).all()
        short = shares < room                        # those with room left got at least as much as anybody, less one
        assert not short.any() or shares[short].min() >= shares.max() - 1
    with pytest.raises(ValueError, match="n: 5, but all together have 4"):
        share_out(5, [1, 3])


def test_a_small_crowd_gives_as_much_as_a_large_one():
    dice = np.random.default_rng(0)
    mine = np.repeat([0, 1, 2], [900, 60, 5])
    x = 20 * np.eye(3)[mine] + dice.normal(size=(965, 3))
    picks = balance_kmeans(x, 45, clusters=3)
    assert np.bincount(mine[picks]).tolist() == [20, 20, 5]
    assert len(set(picks)) == 45 and np.array_equal(picks, balance_kmeans(x, 45, clusters=3))


def test_two_levels_are_fairer_than_one():
    dice = np.random.default_rng(0)
    mine = np.repeat([0, 1], [1900, 100])
    x = np.stack([100 * mine, np.zeros(2000)], 1) + dice.normal(size=(2000, 2)) * np.where(mine == 0, 5, 0.1)[:, None]
    share = lambda clusters: mine[balance_kmeans(x, 100, clusters)].mean()
    assert share((20, 2)) == 0.5 and share(20) < 0.2


def test_drawing_without_levels_is_random_and_complete():
    ids = np.arange(10, 20)
    assert sorted(draw_evenly(ids, 10, [], np.random.default_rng(0))) == ids.tolist()


def test_balance_keeps_out_what_is_not_kept_and_says_what_is_wrong():
    x = cloud("clusters", n=200)
    x[:5] = np.nan
    keep = np.arange(200) >= 20
    assert balance_kmeans(x, 50, clusters=(30, 4), keep=keep).min() >= 20
    assert sorted(balance_kmeans(x, 180, clusters=500, keep=keep)) == list(range(20, 200))      # more clusters than rows
    for options, words in [(dict(n=10), "row 0 holds NaN"), (dict(n=181, keep=keep), "180 of 200 rows"), (dict(n=1, keep=keep, clusters=0), "clusters"),
                           (dict(n=1, keep=np.zeros(200, bool)), "200 kept out")]:
        with pytest.raises(ValueError, match=words):
            balance_kmeans(x, **options)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_balance_of_identical_rows_and_of_one_row():
    assert len(set(balance_kmeans(np.ones((30, 4)), 12))) == 12
    assert balance_kmeans(np.ones((1, 4)), 1).tolist() == [0]


def test_census_counts_by_hand():
    table = census(["quiet", "quiet", "quiet", "hole", "spot", "spot"], [0, 3, 4])
    assert table.index[0] == "hole" and table.loc["quiet"].tolist() == [3, 1, 1 / 3]
    assert census(["a", "b"], []).recall.tolist() == [0, 0]


# The loop

@pytest.fixture(scope="module")
def package(tmp_path_factory):
    "Eight frames of the small Sun, one of them exposed far too briefly"
    frames = SmallSun(seed=1).frames(8, cadence="9D", size=128)
    frames[3] = replace(frames[3], data=np.random.default_rng(0).poisson(0.02 * frames[3].data.clip(0)).astype(np.float32))
    package = Package.build(frames, tmp_path_factory.mktemp("diverse") / "package", size=128)
    assert package.catalogue.quality[3] != ""
    return package


SMALL = dict(rounds=3, picks=12, steps=2, tile=16, batch_size=16)


@pytest.mark.parametrize("how", ["random", "kmeans", "farthest"])
def test_rounds_accumulate_and_bad_frames_stay_out(package, tmp_path, how):
    encoder = iterate(package, tmp_path, how=how, **SMALL)
    chosen, log = Tiles.open(tmp_path / "chosen.parquet", package), pd.read_csv(tmp_path / "rounds.csv")
    assert log.chosen.tolist() == [12, 24, 36] and log.steps.tolist() == [2, 4, 6]
    assert chosen.table["round"].value_counts().to_dict() == {0: 12, 1: 12, 2: 12}
    assert not chosen.table.duplicated(["frame", "row", "col"]).any() and 3 not in set(chosen.table.frame)
    assert np.isfinite(log.drop(columns="round")).all(axis=None)
    assert np.array_equal(Encoder.load(tmp_path).embed(chosen.images()), encoder.embed(chosen.images()))


def test_the_same_seed_gives_the_same_run(package, tmp_path):
    runs = [iterate(package, tmp_path / name, seed=seed, **SMALL) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    a, b, c = ([p.detach().numpy() for p in run.backbone.parameters()] for run in runs)
    assert all(map(np.array_equal, a, b)) and not all(map(np.array_equal, a, c))
    tables = [pd.read_parquet(tmp_path / name / "chosen.parquet") for name in "abc"]
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])


def test_network_and_optimiser_go_on_where_they_were(package):
    tiles = training_tiles(package, 16)
    frames, places, sky = load_material(package, tiles)
    torch.manual_seed(0)
    loop = Rounds(SimCLR(make_backbone()), frames, places, size=16, sky=sky)
    loop.turn("random", 20, 3, 6, 16)
    weights, moments = (next(iter(x)) for x in (loop.method.parameters(), loop.optimiser.state.values()))
    loop.turn("random", 20, 3, 6, 16)
    assert next(iter(loop.method.parameters())) is weights and next(iter(loop.optimiser.state.values())) is moments
    assert int(moments["step"]) == 6 and loop.step == 6 and len(set(loop.chosen)) == 40


def test_a_mask_keeps_tiles_out_of_the_rounds(package):
    frames, places, sky = load_material(package, training_tiles(package, 16))
    keep = np.random.default_rng(0).random(len(places)) < 0.5
    loop = Rounds(SimCLR(make_backbone()), frames, places, keep, size=16, sky=sky)
    for how in ("farthest", "kmeans", "random"):
        loop.turn(how, 10, 1, 3, 16)
    assert keep[loop.chosen].all() and len(set(loop.chosen)) == 30


def test_places_are_embedded_as_an_encoder_embeds_tiles(package):
    tiles = training_tiles(package, 16)
    frames, places, _ = load_material(package, tiles)
    encoder = Encoder(make_backbone(), size=16, unit="DN/s")
    np.testing.assert_allclose(embed_places(encoder.backbone, frames, places, 16, batch_size=100), encoder.embed(tiles.images()), atol=1e-4)


def test_what_cannot_be_chosen_is_said_before_training(package, tmp_path):
    for options, words in [(dict(how="best"), "how: 'best'"), (dict(method="magic"), "method: 'magic'"), (dict(picks=10 ** 6), "n: 3000000 picks"), (dict(before="2013-01-01"), "before 2013")]:
        with pytest.raises(ValueError, match=words):
            iterate(package, tmp_path / "no", **{**SMALL, **options})
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="how: 'best' is not known; choose random, kmeans or farthest"):
        choose("best", np.ones((9, 2)), 1, [], np.ones(9, bool), np.random.default_rng(0))


def test_no_good_frames(tmp_path):
    frames = SmallSun(seed=1).frames(2, size=128)
    for frame in frames:
        frame.data[:, :64] = np.nan
    package = Package.build(frames, tmp_path / "package", size=128)
    with pytest.raises(ValueError, match="no good frames; all 2 are flagged"):
        iterate(package, tmp_path / "out", **SMALL)


def test_masked_tiles_are_never_chosen(package, tmp_path):
    tiles = training_tiles(package, 16)
    keep = (tiles.table.mu > 0.7).to_numpy()
    iterate(package, tmp_path, keep=keep, **SMALL)
    assert pd.read_parquet(tmp_path / "chosen.parquet").mu.min() > 0.7
    with pytest.raises(ValueError, match="keep: bool of shape"):
        iterate(package, tmp_path, keep=keep[1:], **SMALL)
