"""The atlas: a map whose selection is a list of tiles; against matplotlib and known truth; and the lasso in a real browser."""
import base64
import io
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as Fence

from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles
from search_sdo.search.atlas import Atlas, even_sample, in_polygon, loneliness, place_linear, place_rest, typical_rows
from search_sdo.search.clusters import Rows
from search_sdo.search.embed import normalise
from search_sdo.search.engine import SearchEngine
from search_sdo.search.paint import colour, cycle_phase, paint, pictures

START = np.datetime64("2014-01-01")
STAR = np.stack([np.cos(np.radians(90 + 144 * np.arange(5))), np.sin(np.radians(90 + 144 * np.arange(5)))], axis=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    "A real engine over 12 frames, with an encoder that learned nothing"
    import torch
    folder = tmp_path_factory.mktemp("atlas")
    package = Package.build(SmallSun(seed=2).frames(12, cadence="5h", size=128), folder / "package", size=128)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SearchEngine.build(package, Encoder(make_backbone(widths=(8, 16), stem=2), size=16, unit="DN/s"), folder / "engine")


def blob_engine(engine, seed=0, turn=None, lost=()):
    "The engine's tiles with embeddings of three clouds, of known kinds"
    n, dice = len(engine.tiles), np.random.default_rng(seed)
    kind = dice.choice(3, n, p=[0.5, 0.3, 0.2])
    vectors = normalise(np.eye(3, 8)[kind] + 0.1 * dice.normal(size=(n, 8)))
    if turn is not None: vectors = vectors @ turn
    vectors[list(lost)] = np.nan
    return SimpleNamespace(tiles=engine.tiles, embeddings=SimpleNamespace(vectors=vectors.astype(np.float16), tiles=engine.tiles),
                           package=engine.package, ask=engine.ask), kind


@pytest.fixture(scope="module")
def blobs(engine): return blob_engine(engine, lost=(5, 77))


@pytest.fixture
def atlas(blobs): return Atlas(blobs[0], "pca", sample=200)


def square(x, y, half): return [[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]]


# ---- the map


@pytest.mark.parametrize("method", ["pca", "tsne"])      # UMAP itself: tests/test_maps.py
def test_kinds_keep_together_among_drawn_and_placed(engine, blobs, method):
    blob, kind = blobs
    atlas = Atlas(blob, method, sample=120)
    apart = ((atlas.points[:, None] - atlas.points[None]) ** 2).sum(axis=2)
    nearest = np.argsort(apart, axis=1)[:, 1:4]
    same = kind[atlas.ids][nearest] == kind[atlas.ids][:, None]
    assert same[atlas.drawn].mean() > 0.95 and same[~atlas.drawn].mean() > 0.95
    assert atlas.drawn.sum() == 120 and atlas.points.dtype == np.float32


def test_the_same_seed_gives_the_same_map(blobs):
    one, two, three = (Atlas(blobs[0], "tsne", sample=100, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.points, two.points)
    assert not np.array_equal(one.drawn, three.drawn)


def test_tiles_that_were_not_measured_are_not_on_the_map(atlas):
    assert not {5, 77} & set(atlas.ids) and len(atlas) == len(atlas.tiles) - 2
    assert np.isfinite(atlas.points).all()


def test_flagged_frames_are_not_on_the_map(engine, blobs, monkeypatch):
    catalogue = engine.package.catalogue.copy()
    catalogue.loc[3, "quality"] = "out of focus"
    monkeypatch.setattr(engine.package, "catalogue", catalogue)
    frames = engine.tiles.table.frame[Atlas(blobs[0], "pca", sample=50).ids]
    assert 3 not in set(frames) and frames.nunique() == 11


def test_a_map_in_blocks_is_the_same(blobs):
    from search_sdo.search.atlas import chart
    for one, two in zip(chart(blobs[0], "tsne", 60, 0), chart(blobs[0], "tsne", 60, 0, block=13)): np.testing.assert_allclose(one, two)


def test_too_few_tiles_are_told(engine, blobs):
    few = blob_engine(engine, lost=range(10, len(engine.tiles)))[0]
    with pytest.raises(ValueError, match="10 tiles that were measured"): Atlas(few, "pca")
    with pytest.raises(ValueError, match="sample=3"): Atlas(blobs[0], "pca", sample=3)
    with pytest.raises(ValueError, match="choose pca, tsne or umap"): Atlas(blobs[0], "mds")


def test_busy_days_do_not_fill_the_sample():
    times = np.concatenate([START + np.arange(5000) * np.timedelta64(12, "s"), START + np.arange(1, 41) * np.timedelta64(3, "D")])
    chosen = even_sample(times, 100)
    assert len(chosen) == 100 == len(set(chosen)) and (chosen >= 5000).sum() == 40
    assert (np.diff(even_sample(times, 100, seed=3)) > 0).all()


def test_placing_by_pca_is_exact(blobs):
    from sklearn.decomposition import PCA
    rows = normalise(blobs[0].embeddings.vectors[:5])
    known = normalise(blobs[0].embeddings.vectors[100:200])
    pca = PCA(2).fit(known)
    np.testing.assert_allclose(place_linear(rows, known, pca.transform(known)), pca.transform(rows), atol=1e-4)


def test_a_newcomer_settles_with_the_majority_and_not_at_sea():
    known = normalise(np.array([[1, 0, 0], [1, 0.01, 0], [1, 0, 0.01], [0.9, 0.1, 0], [0, 0, 1]]))
    points = np.array([[0, 0], [1, 0], [0, 1], [50, 50], [90, 90.0]])
    assert place_rest(known[:1], known, points, k=3)[0].tolist() == [0, 0]
    assert (place_rest(known[:1], known, points, k=4)[0] <= 1).all()
    assert place_rest(known[:1], known, points, k=99).shape == (1, 2)


# ---- the lasso


@pytest.mark.parametrize("seed", range(5))
def test_lasso_equals_matplotlib(seed):
    dice = np.random.default_rng(seed)
    points, polygon = dice.normal(size=(3000, 2)), dice.normal(size=(dice.integers(3, 40), 2))
    np.testing.assert_array_equal(in_polygon(points, polygon), Fence(polygon).contains_points(points))
    np.testing.assert_array_equal(in_polygon(points, polygon[::-1]), in_polygon(points, polygon))


def test_lasso_equals_winding_numbers_where_it_does_not_cross_itself():
    dice = np.random.default_rng(9)
    turns = np.sort(dice.uniform(0, 2 * np.pi, 25))
    polygon = np.stack([np.cos(turns), np.sin(turns)], 1) * dice.uniform(0.3, 1, (25, 1))
    points = dice.uniform(-1, 1, (2000, 2))
    arrows = polygon[None] - points[:, None]
    angle = np.arctan2(arrows[..., 1], arrows[..., 0])
    steps = (np.roll(angle, -1, 1) - angle + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_array_equal(in_polygon(points, polygon), abs(steps.sum(1)) > np.pi)


def test_tiles_side_by_side_take_each_point_once():
    points = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), -1).reshape(-1, 2)
    halves = [in_polygon(points, [[a, -1], [b, -1], [b, 10], [a, 10]]) for a, b in ((-1, 4), (4, 10))]
    assert (halves[0] ^ halves[1]).all()


@pytest.mark.parametrize("polygon, message", [([[0, 0], [1, 1]], "2 corners, expected 3 or more"), ([], "0 corners"), ("abc", "expected corners"), (None, "corners"),
                                              ([[0, 0], [1, np.nan], [1, 1]], "not finite"), ([[0], [1, 2]], "expected corners"), ([1, 2, 3], "expected corners")])
def test_what_is_no_polygon(atlas, polygon, message):
    with pytest.raises(ValueError, match=message): atlas.select(polygon)
    assert len(atlas.selected) == 0


def test_a_selection_is_a_list_of_tiles_and_can_be_changed_and_undone(atlas):
    x0, y0, x1, y1 = atlas.box
    everything, left = atlas.select([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), None
    np.testing.assert_array_equal(everything, atlas.ids)
    middle = np.median(atlas.points[:, 0])
    left = atlas.select([[x0, y0], [middle, y0], [middle, y1], [x0, y1]])
    np.testing.assert_array_equal(left, atlas.ids[atlas.points[:, 0] < middle])
    np.testing.assert_array_equal(atlas.select([[middle, y0], [x1, y0], [x1, y1], [middle, y1]], "add"), atlas.ids)
    np.testing.assert_array_equal(atlas.select([[middle, y0], [x1, y0], [x1, y1], [middle, y1]], "remove"), left)
    assert len(atlas.clear()) == 0
    np.testing.assert_array_equal(atlas.undo(), left)
    for _ in range(9): atlas.undo()
    assert len(atlas.selected) == 0
    with pytest.raises(ValueError, match="how='xor', expected new, add or remove"): atlas.select(STAR, "xor")


def test_a_selection_survives_zoom_colour_and_the_disk(atlas, blobs, tmp_path):
    chosen = atlas.select(square(*atlas.points[0], 0.2)).copy()
    assert 0 < len(chosen) < len(atlas)
    atlas.show("time", box=(0, 0, 1, 1)), atlas.show("mu"), atlas.density(atlas.box)
    atlas.clusters(3)
    np.testing.assert_array_equal(atlas.selected, chosen)
    atlas.save(tmp_path / "atlas.npz")
    again = Atlas.open(tmp_path / "atlas.npz", blobs[0])
    for name in ("ids", "points", "drawn", "selected", "labels"): np.testing.assert_array_equal(getattr(again, name), getattr(atlas, name))
    assert (again.method, again.seed) == ("pca", 0) and repr(again) == repr(atlas)


def test_files_that_are_no_atlas_of_this_engine(engine, atlas, blobs, tmp_path):
    atlas.save(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="b.npz: missing"): Atlas.open(tmp_path / "b.npz", blobs[0])
    with pytest.raises(ValueError, match="other embeddings"): Atlas.open(tmp_path / "a.npz", engine)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="c.npz: no atlas"): Atlas.open(tmp_path / "c.npz", blobs[0])
    np.savez(tmp_path / "d.npz", about=np.array([{}], object))
    with pytest.raises(ValueError, match="d.npz: no atlas"): Atlas.open(tmp_path / "d.npz", blobs[0])


def test_selected_tiles_as_hits_and_as_a_sheet(engine):
    atlas = Atlas(engine, "pca", sample=100)
    chosen = atlas.select(square(*np.median(atlas.points, axis=0), 0.1))
    hits, sheet = atlas.hits(), atlas.sheet(n=9)
    assert len(hits) == len(chosen) - 1 and set(hits.table.tile) < set(chosen) and hits.table.similarity.is_monotonic_decreasing
    vectors = normalise(engine.embeddings.vectors).astype(float)
    asked = (set(chosen) - set(hits.table.tile)).pop()
    np.testing.assert_allclose(hits.table.similarity, vectors[hits.table.tile] @ vectors[asked], atol=1e-5)
    np.testing.assert_array_equal(hits.query, engine.tiles.images(asked)[0])
    assert len(sheet) == 9 and set(sheet.table.tile) <= set(chosen) and sheet.images().shape == (9, 16, 16)
    apart = atlas.sheet(n=9, apart="12h").table.time.sort_values().diff().min()
    assert apart >= pd.Timedelta("12h")
    assert len(sheet.show(columns=4).axes) == 12
    atlas.clear()
    for ask in (atlas.hits, atlas.sheet):
        with pytest.raises(ValueError, match="nothing is selected"): ask()


# ---- together and alone


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_clusters_are_the_kinds(blobs, method):
    blob, kind = blobs
    atlas = Atlas(blob, "pca", sample=200)
    sheet = atlas.clusters(3, method, typical=4)
    found = atlas.labels >= 0
    assert found.mean() > 0.9 and (atlas.labels == kind[atlas.ids])[found].mean() > 0.99      # both are numbered by size
    assert set(sheet.table.group) == {"group 0", "group 1", "group 2"} and sheet.table.groupby("group").size().max() == 4
    for _, mine in sheet.table.groupby("group"): assert mine.time.sort_values().diff().min() >= pd.Timedelta("12h")
    assert set(atlas.colours("cluster")[1][0]) and "cluster" in atlas.show("cluster").axes[0].get_legend().get_title().get_text()


def test_typical_rows_are_the_best_that_are_apart():
    dice = np.random.default_rng(0)
    score, labels, times = dice.normal(size=200), dice.integers(-1, 4, 200), START + dice.integers(0, 240, 200).astype("timedelta64[h]")
    chosen = typical_rows(score, labels, times, n=5, apart="10h")
    for name in range(4):
        mine, best = chosen[labels[chosen] == name], []
        for i in sorted(np.flatnonzero(labels == name), key=lambda i: -score[i]):
            if len(best) < 5 and all(abs(times[i] - times[j]) >= np.timedelta64(10, "h") for j in best): best.append(i)
        assert mine.tolist() == best
    assert len(typical_rows(score, np.full(200, -1), times)) == 0


def test_a_stranger_with_a_twin_a_minute_later_is_still_a_stranger():
    dice = np.random.default_rng(0)
    vectors = normalise(np.concatenate([np.eye(1, 8).repeat(50, 0) + 0.1 * dice.normal(size=(50, 8)), np.eye(8)[[5] * 6] + 0.01 * dice.normal(size=(6, 8))]))
    times = np.concatenate([START + np.arange(50) * np.timedelta64(1, "D"), START + np.timedelta64(100, "D") + np.arange(6) * np.timedelta64(1, "m")])
    rows = Rows(vectors, times, np.arange(56))
    assert set(np.argsort(-loneliness(rows, rows))[:6]) == set(range(50, 56))
    assert not set(np.argsort(-loneliness(rows, rows, apart=None))[:6]) & set(range(50, 56))


@pytest.mark.parametrize("method", ["knn", "lof", "forest"])
def test_planted_strangers_are_found(engine, method):
    blob, _ = blob_engine(engine)
    strangers = [40, 150, 290]
    vectors = blob.embeddings.vectors.copy()
    vectors[strangers] = np.random.default_rng(1).permutation(np.eye(8))[:3] * [0, 0, 0, 1, 1, 1, 1, 1] + np.eye(8)[[4, 5, 6]]
    blob.embeddings.vectors = normalise(vectors).astype(np.float16)
    sheet = Atlas(blob, "pca", sample=len(engine.tiles)).outliers(3, method, apart=None)
    assert set(sheet.table.tile) == set(strangers) and sheet.table.score.is_monotonic_decreasing


def test_outliers_are_apart_in_time_and_bad_tiles_are_none(atlas):
    sheet = atlas.outliers(4)
    assert sheet.table.time.sort_values().diff().min() >= pd.Timedelta("12h") and not {5, 77} & set(sheet.table.tile)
    with pytest.raises(ValueError, match="at most 199 neighbours"): atlas.outliers(4, k=200)
    with pytest.raises(ValueError, match="choose knn, lof or forest"): atlas.outliers(4, "svm")


# ---- two encoders


def test_a_turned_copy_agrees_wholly(engine, blobs):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    one, other = (Atlas(blob_engine(engine, turn=t)[0], "pca", sample=200) for t in (None, turn))
    other.points = (2 * other.points[:, ::-1] + [3, 1]).astype(np.float32)
    pair = one.align(other)
    assert pair.agreement > 0.98       # float16 rows: near ties may change places
    np.testing.assert_allclose(pair.right, pair.left, atol=5e-3)
    assert one.align(one).agreement == 1 and "by chance" in repr(pair)


def test_strangers_agree_by_chance_only(engine):
    one = Atlas(blob_engine(engine)[0], "pca", sample=100)
    blob, _ = blob_engine(engine)
    blob.embeddings.vectors = np.random.default_rng(5).permutation(blob.embeddings.vectors)
    pair = one.align(Atlas(blob, "pca", sample=100))
    assert abs(pair.agreement - pair.chance) < 0.02


def test_aligned_by_umap(engine, blobs):
    pytest.importorskip("umap")
    atlas = Atlas(blobs[0], "pca", sample=60)
    pair = atlas.align(atlas, how="umap", sample=60)
    apart = np.linalg.norm(pair.left - pair.right, axis=1).mean() / pair.left.std()
    assert pair.left.shape == (60, 2) and apart < 0.5
    with pytest.raises(ValueError, match="expected procrustes or umap"): atlas.align(atlas, how="icp")


def test_only_shared_tiles_are_aligned(engine, blobs, tmp_path):
    atlas = Atlas(blobs[0], "pca", sample=50)
    half = blob_engine(engine)[0]
    keep = np.arange(0, len(engine.tiles), 2)
    half.tiles = Tiles(engine.tiles.table.iloc[keep], engine.package)
    half.embeddings = SimpleNamespace(vectors=half.embeddings.vectors[keep], tiles=half.tiles)
    pair = atlas.align(Atlas(half, "pca", sample=50))
    assert set(atlas.ids[pair.at]) == set(keep) - {5, 77}
    half.tiles.table["row"] += 1
    with pytest.raises(ValueError, match="0 tiles in common"): atlas.align(Atlas(half, "pca", sample=50))


# ---- pictures


def test_painted_light_holds_every_point_once():
    points, box = np.random.default_rng(0).normal(size=(5000, 2)), (-1, -1, 1.5, 1)
    image = paint(points, np.full((5000, 3), 200, np.uint8), box, 50, 40)
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(50, 40), range=[[-1, 1.5], [-1, 1]])
    np.testing.assert_array_equal(image[::-1, :, 0].T > 0, counts > 0)
    light = 200 * (0.35 + 0.65 * np.log1p(counts) / np.log1p(counts.max())) * (counts > 0)
    np.testing.assert_allclose(image[::-1, :, 0].T, light, atol=1)
    assert paint(points, np.zeros((5000, 3), np.uint8), (90, 90, 91, 91), 5, 5).max() == 0


def test_colours_of_names_times_and_what_is_missing(atlas):
    truth = SmallSun(seed=2).label(atlas.tiles)
    rgb, key = atlas.colours(truth)
    assert rgb.shape == (len(atlas), 3) and {name for name, _ in key} == set(truth)
    assert len({tuple(c) for c in rgb}) == truth.nunique()
    for color in ("time", "cycle", "mu", "channel", "frame"): assert atlas.colours(color)[0].dtype == np.uint8
    off = np.isnan(atlas.tiles.table.mu.to_numpy()[atlas.ids])
    assert (atlas.colours("mu")[0][off] == 128).all()
    with pytest.raises(ValueError, match="call atlas.clusters"): atlas.colours("cluster")
    with pytest.raises(ValueError, match="color='nonsense' is not known"): atlas.show("nonsense")
    with pytest.raises(ValueError, match="color: 3 values"): atlas.show([1, 2, 3])


def test_phase_of_the_cycle_starts_at_each_minimum():
    phase = cycle_phase(["2008-12-15", "2014-04-15", "2019-12-16", "2024-10-15", "1990-01-01"])
    np.testing.assert_allclose(phase[:4], [0, 5.33 / 11, 0, 4.83 / 11], atol=0.005)
    assert np.isnan(phase[4])


def test_maps_of_tiles_and_zoomed_maps(atlas):
    assert atlas.show().axes[0].images and atlas.show("time").axes[0].collections
    with pytest.raises(ValueError, match="no tiles there"): atlas.show(box=(50, 50, 51, 51))
    with pytest.raises(ValueError, match="no tiles there"): atlas.density(box=(50, 50, 51, 51))
    x0, y0, x1, y1 = atlas.box
    half = (x0, y0, (x0 + x1) / 2, y1)
    counted = int(np.ma.asarray(atlas.density(half, bins=20).axes[0].collections[0].get_array()).sum())
    assert counted == (atlas.points[:, 0] < (x0 + x1) / 2).sum()
    assert pictures(atlas.tiles, [0, 9]).shape == (2, 16, 16, 3)


def test_many_points_are_painted_and_few_are_dots(atlas):
    from search_sdo.search.paint import show_points
    many = np.random.default_rng(0).normal(size=(30_000, 2))
    ax = show_points(many, *colour(many[:, 0])).axes[0]
    assert ax.images and not ax.collections
    ax = show_points(many[:99], *colour(many[:99, 0]), faded=many[:99, 0] > 0).axes[0]
    assert len(ax.collections[0].get_offsets()) == 99 and not ax.images


# ---- the view, in a browser

HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:12px"><div id="here"></div><script type="module">
const bytes = (text) => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const state = {}, listeners = {}, take = (all) => { for (const [name, value] of Object.entries(all)) state[name] = value && value.bytes !== undefined ? bytes(value.bytes) : value; };
take(await fromPython());
let changed = {};
const model = {
  get: (name) => state[name], set: (name, value) => { state[name] = value; changed[name] = value; },
  on: (event, act) => (listeners[event] ||= []).push(act), off: (event, act) => listeners[event] = (listeners[event] || []).filter(a => a !== act),
  save_changes: async () => {
    const sent = changed; changed = {};
    const news = await toPython(sent);
    take(news);
    for (const name of Object.keys(news)) for (const act of listeners["change:" + name] || []) act();
    window.answers = (window.answers || 0) + 1;
  }};
window.model = model;
const source = new Blob([await esm()], {type: "text/javascript"});
const view = await import(URL.createObjectURL(source));
window.close_view = view.default.render({model, el: document.getElementById("here")});
window.ready = true;
</script>"""


def as_json(value): return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


@pytest.fixture
def view(browser, atlas):
    "The lasso of an atlas in a page; what Jupyter carries between them is carried by the test"
    pytest.importorskip("anywidget")
    widget, page, faults = atlas.lasso("time"), browser.new_page(viewport={"width": 800, "height": 720}), []
    names = ["points", "colours", "chosen", "box", "legend", "asked", "looking", "picture", "about", "caption"]
    state = lambda: {name: as_json(getattr(widget, name)) for name in names}
    known = state()

    def to_python(sent):
        known.update(sent)
        for name, value in sent.items(): setattr(widget, name, value)
        news = {name: value for name, value in state().items() if value != known[name]}
        known.update(news)
        return news

    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    page.expose_function("fromPython", state)
    page.expose_function("toPython", to_python)
    page.expose_function("esm", lambda: str(widget._esm))
    page.set_content(HARNESS)
    page.add_style_tag(content=str(widget._css))
    page.wait_for_function("window.ready")
    yield SimpleNamespace(page=page, widget=widget, atlas=atlas)
    page.close()
    assert faults == []


def on_page(view, points, box=None):
    "px in the page of points of the map"
    x0, y0, x1, y1 = box or view.widget.box
    canvas = view.page.locator("canvas").bounding_box()
    return [(float(canvas["x"] + (x - x0) / (x1 - x0) * canvas["width"]), float(canvas["y"] + (y1 - y) / (y1 - y0) * canvas["height"])) for x, y in points]


def drag(view, corners, box=None):
    at = on_page(view, corners, box)
    answers = view.page.evaluate("window.answers || 0")
    view.page.mouse.move(*at[0])
    view.page.mouse.down()
    for corner in at[1:]: view.page.mouse.move(*corner)
    view.page.mouse.up()
    view.page.wait_for_function(f"window.answers > {answers}")


def test_circling_selects_in_python_what_is_inside(view):
    x, y = view.atlas.points[0]
    drag(view, square(x, y, 0.2))
    expected = view.atlas.ids[in_polygon(view.atlas.points, square(x, y, 0.2))]
    found = view.atlas.selected
    assert len(set(expected) ^ set(found)) <= 0.03 * len(expected) + 2 and len(found) > 5      # the mouse knows whole px
    assert view.page.locator(".say").inner_text() == f"{len(found):,} of {len(view.atlas):,} tiles selected"


def test_zooming_keeps_the_selection_and_bins_anew(view):
    x, y = (float(v) for v in view.atlas.points[0])
    drag(view, square(x, y, 0.15))
    before, seen = view.atlas.selected.copy(), int(view.page.locator("canvas").get_attribute("data-seen"))
    view.page.mouse.move(*on_page(view, [(x, y)])[0])
    for _ in range(4): view.page.mouse.wheel(0, -300)
    view.page.wait_for_function(f"+document.querySelector('canvas').dataset.seen < {seen}")
    np.testing.assert_array_equal(view.atlas.selected, before)
    view.page.click(".home")
    assert int(view.page.locator("canvas").get_attribute("data-seen")) == seen == len(view.atlas)


def test_a_lasso_drawn_while_zoomed_in_is_in_the_maps_own_coordinates(view):
    x, y = (float(v) for v in view.atlas.points[0])
    view.page.mouse.move(*on_page(view, [(x, y)])[0])
    view.page.mouse.wheel(0, -300)
    view.page.wait_for_timeout(100)
    b, f = view.widget.box, np.exp(-1)
    cx, cy = x, y
    zoomed = (cx + (b[0] - cx) * f, cy + (b[1] - cy) * f, cx + (b[2] - cx) * f, cy + (b[3] - cy) * f)
    corners = square(x, y, 0.05)
    drag(view, corners, zoomed)
    expected = view.atlas.ids[in_polygon(view.atlas.points, corners)]
    assert len(set(expected) ^ set(view.atlas.selected)) <= 0.05 * len(expected) + 2 and len(expected) > 3


def test_adding_taking_away_undo_and_clear(view):
    (x, y), (u, v) = view.atlas.points[0], view.atlas.points[np.argmax(((view.atlas.points - view.atlas.points[0]) ** 2).sum(axis=1))]
    drag(view, square(x, y, 0.1))
    one = set(view.atlas.selected)
    view.page.select_option(".how", "add")
    drag(view, square(u, v, 0.1))
    assert set(view.atlas.selected) > one
    view.page.select_option(".how", "remove")
    drag(view, square(x, y, 0.12))
    assert not set(view.atlas.selected) & one and len(view.atlas.selected)
    for button, size in ((".undo", None), (".clear", 0)):
        answers = view.page.evaluate("window.answers")
        view.page.click(button)
        view.page.wait_for_function(f"window.answers > {answers}")
        assert set(view.atlas.selected) >= one if size is None else len(view.atlas.selected) == size


def test_everything_by_keyboard(view):
    page, canvas = view.page, view.page.locator("canvas")
    canvas.focus()
    press = lambda keys: [page.keyboard.press(key) for key in keys]
    press(["ArrowLeft"] * 28 + ["ArrowUp"] * 20 + [" "] + ["ArrowRight"] * 56 + [" "] + ["ArrowDown"] * 40 + [" "] + ["ArrowLeft"] * 56 + [" "])
    answers = page.evaluate("window.answers || 0")
    press(["Enter"])
    page.wait_for_function(f"window.answers > {answers}")
    everything = len(view.atlas.selected)
    assert everything > 0.9 * len(view.atlas)
    press(["x"])
    page.wait_for_function("document.querySelector('.say').textContent.startsWith('0 of')")
    press(["u"])
    page.wait_for_function("!document.querySelector('.say').textContent.startsWith('0 of')")
    assert len(view.atlas.selected) == everything
    press(["a"])
    assert page.locator(".how").input_value() == "add"
    seen = int(canvas.get_attribute("data-seen"))
    press(["+"] * 6)
    assert int(canvas.get_attribute("data-seen")) < seen
    press([" ", "ArrowUp", " ", "Escape", "Enter"])      # dropped: nothing is sent
    assert len(view.atlas.selected) == everything


def test_under_the_mouse_is_the_tiles_picture(view):
    from PIL import Image
    at = int(np.argmax(view.atlas.points[:, 0]))
    view.page.mouse.move(*on_page(view, [view.atlas.points[at]])[0])
    view.page.wait_for_selector(".look:not([hidden])")
    assert f"tile {view.atlas.ids[view.widget.looking]} ·" in view.page.locator("figcaption").inner_text()
    assert np.hypot(*(view.atlas.points[view.widget.looking] - view.atlas.points[at])) < 0.05
    assert Image.open(io.BytesIO(view.widget.picture)).size == (16, 16)


def test_what_python_selects_shows_in_the_picture(view):
    "The chosen stay as bright as they were, the others step back"
    light = lambda: np.array(view.page.evaluate("(() => { const c = document.querySelector('canvas'); return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); })()"), int).reshape(540, 720, 4)[..., :3].sum(axis=2)
    before = light()
    view.atlas.select(square(*view.atlas.points[0], 0.1))
    view.page.evaluate("() => model.save_changes()")          # the page asks for nothing, and is told what is new
    after = light()
    x0, y0, x1, y1 = view.widget.box
    col, row = (((view.atlas.points - [x0, y1]) / [x1 - x0, y0 - y1]) * [720, 540]).astype(int).T
    chosen = np.isin(view.atlas.ids, view.atlas.selected)
    far = ~in_polygon(view.atlas.points, square(*view.atlas.points[0], 0.2))
    assert (after[row[far], col[far]] < 0.5 * before[row[far], col[far]]).all()
    assert np.median(after[row[chosen], col[chosen]] / before[row[chosen], col[chosen]]) > 0.9


def test_what_a_hostile_page_may_send(view):
    "A polygon that is none is answered in words, names are never markup, points that do not exist show nothing"
    for polygon in ([], [[1, 2]], "abc", [["<b>", 1]], None): view.widget.asked = dict(n=1, what="new", polygon=polygon, r=str(polygon))
    view.widget.asked = dict(n=2, what="__import__", polygon=STAR.tolist())
    assert "expected new, add or remove" in view.widget.caption and len(view.atlas.selected) == 0
    view.widget.looking = 10 ** 9
    assert view.widget.picture == b"" and view.widget.about == ""
    view.widget.legend = [["<img src=x onerror=alert(1)>", "#f00"]]
    view.page.evaluate("() => model.save_changes()")
    assert "<img" in view.page.locator(".legend").inner_text()
    assert view.page.locator(".legend img").count() == 0


def test_the_view_carries_a_still_picture(atlas):
    pytest.importorskip("anywidget")
    data, _ = atlas.lasso("mu")._repr_mimebundle_()
    assert base64.b64decode(data["image/png"])[:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in data


def test_without_anywidget_the_extra_is_named(atlas, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "search_sdo.search.lasso", raising=False)
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[app\]"'): atlas.lasso()
