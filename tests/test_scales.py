"Regions of any size and whole disks: windows equal to sums by hand, a twin frame is found where it is, every bad box says what to do"
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles
from search_sdo.search.embed import Embeddings
from search_sdo.search.engine import SearchEngine
from search_sdo.search.index import Index
from search_sdo.search.regions import layer_of, overlap, window_means
from search_sdo.search.scales import (
    ask_again, asked_box, background, best_regions, comparable, cover, fuse, layers_of, look, prepared, region_looks, region_votes, search_disks, search_region,
    sets_apart, suitable, tile_scores, tiles_in)

SIZE, TILE = 128, 8
TWIN = timedelta(days=300)
BOX = (40, 60, 72, 80)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    "Six days and, 300 days after the first, the very same picture again (which quality control notices)"
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(make_backbone(widths=(8, 16), stem=2), size=TILE, unit="DN/s")
    frames = SmallSun(seed=2).frames(6, cadence="20D", size=SIZE)
    frames.append(replace(frames[0], time=frames[0].time + TWIN))
    folder = tmp_path_factory.mktemp("scales")
    package = Package.build(frames, folder / "package", size=SIZE)
    embeddings = Embeddings.build(Tiles.grid(package, TILE, 4, flagged=True, scales=(1, 2, 4)), encoder, folder / "engine")
    return SearchEngine(package, encoder, embeddings, Index.build(embeddings.vectors))


# ---- the parts


def test_a_layer_knows_where_each_tile_stands(engine):
    table, layers = engine.tiles.table, layers_of(engine.tiles)
    assert [layer.side for layer in layers] == [8, 16, 32] and [layer.step for layer in layers] == [4, 8, 16]
    assert sorted(np.concatenate([layer.ids[layer.ids >= 0] for layer in layers])) == list(range(len(table)))
    for layer in layers:
        f, r, c = np.nonzero(layer.ids >= 0)
        rows = table.iloc[layer.ids[f, r, c]]
        assert (rows.frame.to_numpy() == layer.frames[f]).all() and (rows["scale"] == layer.scale).all()
        assert (rows.row.to_numpy() == layer.row + r * layer.step).all() and (rows.col.to_numpy() == layer.col + c * layer.step).all()


def test_a_layer_of_one_tile():
    layer = layer_of(pd.DataFrame(dict(frame=[4], row=[3], col=[5], size=[16], scale=[2.])), 2)
    assert layer.ids.tolist() == [[[0]]] and (layer.side, layer.step) == (32, 32)


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 2), (7, 9)])
def test_window_means_are_means_of_windows(rows, cols):
    dice = np.random.default_rng(0)
    scores = np.where(dice.random((3, 7, 9)) < .2, np.nan, dice.normal(size=(3, 7, 9)))
    means = window_means(scores, rows, cols, need=.7)
    for f, r, c in np.ndindex(means.shape):
        window = scores[f, r:r + rows, c:c + cols]
        expected = np.nanmean(window) if np.isfinite(window).mean() >= .7 else np.nan
        assert means[f, r, c] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("low, high, side, step", [(0, 100, 16, 8), (3, 20, 16, 16), (10, 14, 16, 8), (7, 71, 64, 32)])
def test_a_cover_is_centred_and_stays_inside(low, high, side, step):
    first = cover(low, high, side, step)
    assert first.mean() + side / 2 == pytest.approx((low + high) / 2, abs=.51) and (np.diff(first) == step).all()
    if high - low >= side:
        assert first[0] >= low - .51 and first[-1] + side <= high + .51 and high - low - (first[-1] + side - first[0]) < step + 1
    else:
        assert len(first) == 1


def test_every_box_has_a_scale(engine):
    for width, height in [(2, 2), (5, 100), (30, 30), (110, 110)]:
        assert suitable(layers_of(engine.tiles), (0, 0, width, height))
    assert [layer.scale for layer in suitable(layers_of(engine.tiles), (0, 0, 3, 3))] == [1]


def test_overlap_of_boxes_counted_by_pixels():
    dice = np.random.default_rng(0)
    corner, side = dice.integers(0, 20, (30, 2)), dice.integers(1, 12, (30, 2))
    boxes = np.hstack([corner, corner + side])
    paint = np.zeros((30, 40, 40), bool)
    for mask, (x0, y0, x1, y1) in zip(paint, boxes): mask[y0:y1, x0:x1] = True
    expected = [(paint[0] & mask).sum() / (paint[0] | mask).sum() for mask in paint]
    np.testing.assert_allclose(overlap(boxes[0], boxes), expected)


@pytest.mark.parametrize("spread", [None, pd.Timedelta("36h")])
def test_best_regions_is_the_greedy_choice(spread):
    dice = np.random.default_rng(1)
    n, corner = 200, dice.integers(0, 60, (200, 2))
    boxes, frames, scores = np.hstack([corner, corner + 20]), dice.integers(0, 8, n), dice.normal(size=n)
    scores[:20] = np.nan
    times = np.datetime64("2014-01-01T00:00") + frames.astype("timedelta64[D]")
    expected = []
    for i in np.argsort(-np.nan_to_num(scores, nan=-99)):
        apart = lambda j: spread is None or abs(times[i] - times[j]) >= spread
        if np.isfinite(scores[i]) and all(apart(j) and (frames[i] != frames[j] or overlap(boxes[j], boxes[i:i + 1])[0] <= .2) for j in expected):
            expected.append(i)
    assert best_regions(scores, boxes, frames, times, 500, spread).tolist() == expected
    assert best_regions(scores, boxes, frames, times, 3, spread).tolist() == expected[:3]


def test_nothing_left_is_an_empty_answer():
    assert len(best_regions(np.full(3, np.nan), np.zeros((3, 4)), np.zeros(3), np.zeros(3, "datetime64[s]"), 5)) == 0


def test_comparable_forgets_units_and_keeps_order():
    values = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(comparable(values), comparable(7 * values + 100))
    assert (np.argsort(comparable(values)) == np.argsort(values)).all()
    assert (comparable(np.ones(4)) == 0).all()


def test_fused_scales_take_the_nearest_window():
    fine, coarse = np.arange(16.).reshape(1, 4, 4), np.array([[[100., 200], [300, np.nan]]])
    at = np.arange(4.)
    fused = fuse([(fine, at, at), (coarse, np.array([.4, 2.6]), np.array([.4, 2.6]))])
    assert fused[0, 0, 0] == 50 and fused[0, 1, 2] == (6 + 200) / 2 and fused[0, 3, 3] == (15 - 1) / 2


def test_the_direction_is_fishers():
    "Two clouds with one covariance: the direction from one to the other is that of scikit-learn's discriminant"
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    dice = np.random.default_rng(0)
    mix = dice.normal(size=(6, 6))
    cloud, other = dice.normal(size=(4000, 6)) @ mix, dice.normal(size=(4000, 6)) @ mix + dice.normal(size=6) * 3
    ours = sets_apart(other, cloud.mean(axis=0), np.linalg.inv(np.cov(cloud.T)))
    theirs = LinearDiscriminantAnalysis(solver="eigen").fit(np.vstack([cloud, other]), np.repeat([0, 1], 4000)).coef_[0]
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > .99


def test_background_leaves_out_what_was_not_measured():
    rows = np.random.default_rng(0).normal(size=(300, 5))
    mean, inverse = background(np.vstack([rows, np.full((9, 5), np.nan)]))
    again, inverse_again = background(rows)
    np.testing.assert_allclose(mean, again, atol=1e-6)
    np.testing.assert_allclose(inverse, inverse_again, rtol=1e-4)


def test_tile_scores_are_products(engine):
    layer = layers_of(engine.tiles)[1]
    direction = np.random.default_rng(0).normal(size=engine.encoder.dim).astype(np.float32)
    scores = tile_scores(engine.embeddings.vectors, direction, layer.ids)
    assert (np.isnan(scores) == (layer.ids < 0)).all()
    there = layer.ids >= 0
    np.testing.assert_allclose(scores[there], np.asarray(engine.embeddings.vectors[layer.ids[there]], float) @ direction, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_look_at_a_tile_is_its_embedding(engine, number):
    layer = layers_of(engine.tiles)[number]
    i = layer.ids[0][layer.ids[0] >= 0][7]
    tile = engine.tiles.table.iloc[i]
    seen = look(engine.package.frame(0), (tile.col, tile.row, tile.col + layer.side, tile.row + layer.side), layer, engine.encoder)
    np.testing.assert_allclose(seen[0], np.asarray(engine.embeddings.vectors[i], float), atol=3e-3)


# ---- regions


@pytest.mark.parametrize("row, col, rows, cols", [(8, 9, 4, 6), (12, 5, 2, 2), (4, 10, 9, 5), (10, 10, 1, 1)])
def test_a_box_stands_out_from_the_ordinary_where_it_is(engine, row, col, rows, cols):
    "With one scale, and a box that tiles of the archive fill exactly, its own window scores by a positive definite form of itself"
    alone = engine.tiles.table["scale"].to_numpy() == 1
    embeddings = Embeddings(np.asarray(engine.embeddings.vectors)[alone], engine.tiles[alone])
    single = SearchEngine(engine.package, engine.encoder, embeddings, engine.index)
    layer, mean, inverse = prepared(embeddings)[0]
    x0, y0 = layer.col + col * layer.step, layer.row + row * layer.step
    width, height = layer.side + (cols - 1) * layer.step, layer.side + (rows - 1) * layer.step
    box, keep = (x0, y0, x0 + width, y0 + height), (single.tiles.table.frame == 6).to_numpy()
    scores, boxes, frames = region_votes(single, region_looks(single, engine.package.frame(0), box), keep, width, height)
    assert set(frames[np.isfinite(scores)]) == {6}
    own = np.flatnonzero((boxes == box).all(axis=1) & (frames == 6))
    assert len(own) == 1 and scores[own[0]] > 0
    vectors = np.asarray(embeddings.vectors, np.float32)[layer.ids[0, row:row + rows, col:col + cols]].reshape(-1, engine.encoder.dim)
    every = vectors.mean(axis=0) - mean
    by_hand = window_means(tile_scores(np.asarray(embeddings.vectors, np.float32), inverse @ every, layer.ids), rows, cols)
    np.testing.assert_allclose(scores[own[0]], comparable(by_hand)[6, row, col], atol=.05)


def test_the_brightest_region_is_found_again_on_another_day(engine):
    "The same picture 300 days later: one of the best windows there lies on the box"
    table = engine.tiles.table
    fine = np.flatnonzero((table["scale"] == 2) & (table.frame == 0) & (table.mu > .5))
    tile = table.iloc[fine[np.nanmean(engine.tiles.images(fine), axis=(1, 2)).argmax()]]
    box = (tile.col, tile.row, tile.col + 16, tile.row + 16)
    found = search_region(engine, engine.package.frame(0), box, k=5, spread=None, rounds=0, after="2014-10-01").table
    assert set(found.frame) == {6} and overlap(np.array(box), found[["x0", "y0", "x1", "y1"]].to_numpy(float)).max() > .3


def test_hits_have_the_shape_of_the_box_and_their_place_on_the_sun(engine):
    hits = search_region(engine, engine.package.frame(0), BOX, k=4)
    t = hits.table
    np.testing.assert_allclose([t.x1 - t.x0, t.y1 - t.y0], [[32] * len(t), [20] * len(t)], atol=.11)
    on = t[t.mu > 0]
    assert ((on.lon0 <= on.lon) & (on.lon <= on.lon1) & (on.lat0 <= on.lat) & (on.lat <= on.lat1)).all()
    assert [image.shape for image in hits.images()] and (t["rank"] == np.arange(1, len(t) + 1)).all()


def test_asking_again_keeps_the_box_in_the_question(engine):
    "Half of the new question is the box, half what the found boxes share; the own box, found, changes nothing of its direction"
    looks = region_looks(engine, engine.package.frame(0), BOX)
    layer, mean, _, vectors = looks[0]
    nothing = ask_again(engine, looks, np.empty((0, 4)), [])
    again = ask_again(engine, looks, np.array([[30, 30, 62, 50.]]), [3])
    unit = lambda v: v / np.linalg.norm(v)
    box, new = unit(vectors.mean(axis=0) - mean), again[0][3][0] - mean
    np.testing.assert_allclose(nothing[0][3][0] - mean, box, atol=1e-5)
    other = 2 * new - box
    assert np.linalg.norm(other) == pytest.approx(1, abs=1e-4)
    ids = tiles_in(layer, 3, (30, 30, 62, 50))
    found = np.asarray(engine.embeddings.vectors, np.float32)[ids].mean(axis=0) - mean
    np.testing.assert_allclose(other, unit(found), atol=5e-3)
    t = engine.tiles.table.iloc[ids]
    assert (t.frame == 3).all() and (t.col + t["size"] / 2).mean() == pytest.approx(46, abs=4) and (t.row + t["size"] / 2).mean() == pytest.approx(40, abs=4)


def test_windows_of_several_sizes(engine):
    t = search_region(engine, engine.package.frame(0), BOX, k=40, spread=None, sizes=(.5, 1, 1.5)).table
    assert set((t.x1 - t.x0).round()) <= {16, 32, 48} and (t.x1 - t.x0).round().nunique() > 1
    for _, group in t.groupby("frame"):
        boxes = group[["x0", "y0", "x1", "y1"]].to_numpy()
        assert all(overlap(b, np.delete(boxes, i, 0)).max(initial=0) <= .21 for i, b in enumerate(boxes))


def test_filters_and_spread(engine):
    ask = lambda **rules: search_region(engine, engine.package.frame(0), BOX, k=50, **rules).table
    times = engine.package.catalogue.time
    assert len(ask()) == 6 and ask().frame.nunique() == 6
    assert (ask(after=times[3]).time >= times[3]).all() and (ask(before=times[3], spread=None).time < times[3]).all()
    assert ask(exclude_within="30 days").time.sub(times[0]).abs().min() > pd.Timedelta("30D")
    assert len(ask(before="2000-01-01")) == 0
    assert len(ask(spread="25 days")) < 6
    assert ask(spread=None).frame.value_counts().max() > 1


def test_a_box_in_a_larger_frame_is_the_same_question(engine):
    frame = SmallSun(seed=2).frame(engine.package.catalogue.time[0], size=2 * SIZE)
    _, region = asked_box(engine, frame, [2 * edge for edge in BOX])
    np.testing.assert_allclose(region, BOX, atol=.3)


def test_an_engine_of_one_scale_answers_too(engine):
    alone = engine.tiles.table["scale"].to_numpy() == 1
    embeddings = Embeddings(np.asarray(engine.embeddings.vectors)[alone], engine.tiles[alone])
    single = SearchEngine(engine.package, engine.encoder, embeddings, engine.index)
    assert len(search_region(single, engine.package.frame(0), BOX, k=3)) == 3


@pytest.mark.parametrize("box, says", [
    ((50, 60, 50, 80), "empty"), ((60, 60, 200, 80), "not inside"), ((60, 60, 61, 61), "at least 2"), ((0, 0, 9, 9), "off the Sun"),
    ((0, 0, 128, 128), "search_disks"), ((1, 2, 3), "four numbers"), ("everything", "four numbers")])
def test_a_box_that_cannot_be_answered_says_so(engine, box, says):
    with pytest.raises(ValueError, match=says): search_region(engine, engine.package.frame(0), box)


def test_other_faults_say_so(engine):
    frame = engine.package.frame(0)
    for change, says in [(dict(k=0), "k is 0"), (dict(spread="soon"), "not a length of time"), (dict(after="yesterdayish"), "not a date")]:
        with pytest.raises(ValueError, match=says): search_region(engine, frame, BOX, **change)
    with pytest.raises(ValueError, match="channel 193"): search_region(engine, replace(frame, channel="193"), BOX)
    dark = replace(frame, data=frame.data.copy())
    dark.data[50:90, 30:80] = np.nan
    with pytest.raises(ValueError, match="nothing was measured"): search_region(engine, dark, (48, 62, 64, 76))
    with pytest.raises(ValueError, match="k is 0"): search_disks(engine, frame, k=0)


# ---- whole disks, and the picture


def test_the_same_disk_on_another_day_comes_first(engine):
    hits = search_disks(engine, engine.package.frame(0), k=3)
    assert hits.table.frame[0] == 6 and hits.table.similarity[0] == pytest.approx(1, abs=.01)
    assert hits.table.similarity[1] < .95 and 0 not in set(hits.table.frame)
    assert len(search_disks(engine, engine.package.frame(0), k=9, before="2000-01-01")) == 0


def test_hits_draw_and_save_themselves(engine, tmp_path):
    import matplotlib
    matplotlib.use("agg")
    hits = search_region(engine, engine.package.frame(0), BOX, k=2)
    figure = hits.show()
    boxes = [patch for ax in figure.axes for patch in ax.patches]
    assert len(boxes) == 3 and (boxes[0].get_width(), boxes[0].get_height()) == pytest.approx((32, 20))
    folder = hits.save(tmp_path / "found")
    assert (folder / "regions.png").stat().st_size > 1000 and len(pd.read_csv(folder / "regions.csv")) == 2
    assert search_disks(engine, engine.package.frame(0), k=1).show() and "32 x 20 px" in repr(hits)


def test_what_is_worked_out_once_belongs_to_its_engine(engine):
    assert prepared(engine.embeddings) is prepared(engine.embeddings)
    other = Embeddings(engine.embeddings.vectors, engine.tiles)
    assert prepared(other) is not prepared(engine.embeddings)
