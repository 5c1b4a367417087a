"Every kind of question becomes the same picture; several become one direction; what makes no sense is refused"
import numpy as np
import pandas as pd
import pytest
from engines import small_engine
from search_sdo.packager.labels import boxed
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.embed import normalise
from search_sdo.search.engine import SearchEngine
from search_sdo.search.query import Region, direction, projecting

SIZE, TILE = 128, 16
SUN = SmallSun(seed=2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory): return small_engine(tmp_path_factory.mktemp("query"), SUN.frames(12, cadence="30h", size=SIZE), SIZE, TILE)


@pytest.fixture
def tile(engine): return int(engine.tiles.table.mu.argmax())


def regions(engine, tile, days=0.0):
    "NOAA's list with one region where a tile is, and one on the far side"
    t = engine.tiles.table.iloc[tile]
    time = pd.Timestamp(t.time) - pd.Timedelta(days=days)
    from search_sdo.packager.labels import turned
    table = pd.DataFrame(dict(kind="active_region", time=time, start=time - pd.Timedelta("2D"), end=time + pd.Timedelta("2D"), noaa=pd.array([11111, 11112], "Int64"),
                              lon=[turned(t.lon, t.lat, -days), 150.0], lat=[t.lat, 10.0], area=[100.0, 50.0], hale=["Beta", "Alpha"]))
    table["mcintosh"] = "Dai"
    return boxed(table, 8.0, 8.0)


# ---- one question, said in many ways


@pytest.mark.parametrize("way", ["tile", "array", "frame and box", "map", "map and box", "place", "noaa", "point", "Query", "numpy integer"])
def test_one_place_said_in_many_ways(engine, tile, way):
    t = engine.tiles.table.iloc[tile]
    box, frame = (t.col, t.row, t.col + t["size"], t.row + t["size"]), engine.package.frame(t.frame)
    one = engine.search(tile, k=1)
    engine.regions = regions(engine, tile)
    query = {"tile": tile, "array": engine.tiles.images([tile])[0], "frame and box": frame, "map": None, "map and box": frame.to_map(), "place": dict(lon=t.lon, lat=t.lat, date=t.time),
             "noaa": dict(noaa=11111, date=str(t.time)), "point": np.asarray(engine.embeddings.vectors[tile]), "Query": engine.ask(tile), "numpy integer": np.int64(tile)}[way]
    if way == "map":
        import astropy.units as u
        corners = [[t.col, SIZE - t.row - TILE], [t.col + TILE - 1, SIZE - 1 - t.row]] * u.pix
        query = frame.to_map().submap(corners[0], top_right=corners[1])
    vector = engine.embed(query, box if "box" in way else None)
    assert vector @ normalise(engine.embeddings.vectors[tile]) > 0.999
    if way not in ("array", "point"): assert engine.search(query, k=1, box=box if "box" in way else None).table.tile[0] == one.table.tile[0]


def test_a_region_is_found_where_the_sun_has_carried_it(engine, tile):
    "The list is a day and a half older than the frame: without rotation the window would be 20 degrees off"
    engine.regions = regions(engine, tile, days=1.5)
    t = engine.tiles.table.iloc[tile]
    asked = engine.ask(dict(noaa=11111, date=t.time))
    np.testing.assert_array_equal(asked.image, engine.tiles.images([tile])[0])
    assert asked.name == "AR 11111" and asked.time == t.time


def test_a_region_says_why_it_cannot_be_asked(engine, tile):
    t = engine.tiles.table.iloc[tile]
    engine.regions = None
    with pytest.raises(ValueError, match="NOAA 11111: this engine knows no regions; engine.label"): engine.search(dict(noaa=11111, date=t.time))
    engine.regions = regions(engine, tile)
    with pytest.raises(ValueError, match="NOAA 99999: not on the disk.*it is not in the list"): engine.search(dict(noaa=99999, date=t.time))
    with pytest.raises(ValueError, match="far side"): engine.search(dict(noaa=11112, date=t.time))
    with pytest.raises(ValueError, match="the nearest frame of channel 171 is of .*more than 24h away"): engine.search(dict(noaa=11111, date="2019-01-01"))
    with pytest.raises(ValueError, match="expected such as dict\\(noaa=11158"): engine.search(dict(number=3))
    with pytest.raises(ValueError, match="no place"): engine.search(Region(date=t.time))
    with pytest.raises(ValueError, match="date='soon': not a date"): engine.search(dict(lon=1, lat=2, date="soon"))


def test_a_full_map_wants_a_box(engine):
    with pytest.raises(ValueError, match="a full disk; say where to look with box"): engine.search(engine.package.frame(0).to_map())


def test_a_cut_out_in_fits_is_the_picture(engine, tile, tmp_path):
    hits = engine.search(tile, k=1)
    hits.to_maps()[0].save(tmp_path / "cut.fits")
    assert engine.embed(tmp_path / "cut.fits") @ normalise(engine.embeddings.vectors[hits.table.tile[0]]) > 0.999


@pytest.mark.parametrize("point", [np.zeros(16), np.full(16, np.nan), np.ones(15)])
def test_a_point_without_direction_or_of_another_width(engine, point):
    with pytest.raises(ValueError, match="query: a point"): engine.search(point)


def test_a_hostile_name_reaches_nothing(engine, tile, tmp_path):
    found = engine.search(tile, k=1).save(tmp_path / "found")
    name = "<img src=x onerror=alert(1)>$\\frac{1$.png"
    file = next(found.glob("01_*.png")).rename(found / name)
    hits = engine.search(file, k=2)
    hits.show().savefig(tmp_path / "x.png")
    saved = hits.save(tmp_path / "again")
    assert all(p.suffix in (".csv", ".json", ".png") and "<" not in p.name for p in saved.iterdir())


# ---- several


def test_one_example_is_itself_and_a_list_of_one_too(engine, tile):
    assert engine.search([tile], k=5).table.tile.tolist() == engine.search(tile, k=5).table.tile.tolist()


def test_examples_are_never_answers(engine, tile):
    good, bad = [tile, tile + 40], [tile + 80]
    hits = engine.search(good, unlike=bad, k=len(engine), spread=None)
    assert not set(hits.table.tile) & {*good, *bad}
    frames = set(engine.tiles.table.frame[good])
    assert not frames & set(hits.table.frame)           # the examples' own moments are no discovery
    assert engine.tiles.table.frame[bad[0]] in frames | set(hits.table.frame)
    assert hits.asked.name == "2 examples, unlike 1" and [q.tile for q in hits.asked.good] == good


def test_direction_by_hand():
    good, bad, middle = np.array([[2.0, 0, 0], [0, 1, 0]]), np.array([[0, 0, 5.0]]), np.array([0.3, 0.3, 0.3])
    expected = np.array([0.5, 0.5, 0]) - (middle + 2 * np.array([0, 0, 1])) / 3
    np.testing.assert_allclose(direction(good, bad, middle), expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(direction(good, None, middle), normalise(np.array([0.2, 0.2, -0.3])), atol=1e-6)


def test_unlike_pushes_away():
    "Two families that share a background: marking one as unwanted sends it to the end"
    dice = np.random.default_rng(0)
    common, a, b = np.eye(3, 32)
    wanted, unwanted = (normalise(3 * common + x + 0.2 * dice.normal(size=(50, 32))) for x in (a, b))
    middle = np.vstack([wanted, unwanted]).mean(0)
    start = normalise(3 * common + 0.5 * a + 0.5 * b)[None]
    scores = lambda w: (wanted[3:] @ w).mean() - (unwanted[3:] @ w).mean()
    plain, marked = scores(start[0]), scores(direction(wanted[:3], unwanted[:3], middle))
    assert abs(plain) < 0.1 < 0.25 < marked


def test_several_of_several_kinds(engine, tile):
    t = engine.tiles.table.iloc[tile]
    mixed = [tile, engine.tiles.images([tile + 1])[0], dict(lon=t.lon, lat=t.lat, date=t.time), np.asarray(engine.embeddings.vectors[tile])]
    assert len(engine.search(mixed, k=3)) == 3
    assert engine.search(pd.Series([tile, tile + 1]), k=2).asked.name == "2 examples"
    assert engine.search(np.array([tile, tile + 1]), k=2).asked.name == "2 examples"


def test_nothing_wanted(engine):
    with pytest.raises(ValueError, match="query: an empty list"): engine.search([])
    with pytest.raises(ValueError, match="query: an empty list"): engine.search([], unlike=3)


# ---- metric and layer


def test_euclidean_ranks_alike_and_tells_the_distance(engine, tile):
    hits, other = engine.search(tile, k=9), engine.search(tile, k=9, metric="euclidean")
    assert hits.table.tile.tolist() == other.table.tile.tolist()
    v = normalise(engine.embeddings.vectors)
    expected = np.linalg.norm(v[tile] - v[other.table.tile], axis=1)
    np.testing.assert_allclose(other.table.distance, expected, atol=2e-3)


def test_layers_and_metrics_that_are_not_there(engine):
    with pytest.raises(ValueError, match="keeps no projector"): engine.search(0, layer="projection")
    with pytest.raises(ValueError, match="layer='head': expected"): engine.search(0, layer="head")
    with pytest.raises(ValueError, match="metric='taxi': expected"): engine.search(0, metric="taxi")


def test_an_encoder_with_its_projector_searches_by_projection(engine):
    from torch import nn
    from search_sdo.search.embed import image_vectors
    from search_sdo.search.index import Index
    encoder = projecting(engine.encoder, nn.Linear(16, 5))
    vectors = image_vectors(engine.tiles.images(), encoder)
    other = SearchEngine(engine.package, encoder, type(engine.embeddings)(vectors, engine.tiles), Index.build(vectors))
    assert other.search(5, k=3, layer="projection").asked.vector.shape == (5,) and engine.encoder.dim == 16
