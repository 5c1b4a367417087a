"SearchEngine: a query in, hits out; equal to a brute force under every filter; every fault says what to do"
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.calibrate import bin_pixels
from search_sdo.packager.frame import Disk, Frame
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles
from search_sdo.search.embed import Embeddings, normalise
from search_sdo.search.engine import SearchEngine
from search_sdo.search.filters import apart_in_time
from search_sdo.search.folder import FILES
from search_sdo.search.query import ask_box
from search_sdo.search.index import Index

SIZE, TILE = 128, 16
SUN = SmallSun(seed=2)


@pytest.fixture(scope="module")
def encoder():
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(make_backbone(widths=(8, 16), stem=2), size=TILE, unit="DN/s")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    frames = SUN.frames(20, cadence="5h", size=SIZE)
    for frame in frames: frame.meta.pop("b0", None)       # seen from the Earth, as sunpy's maps are
    return Package.build(frames, tmp_path_factory.mktemp("engine") / "package", size=SIZE)


@pytest.fixture(scope="module")
def folder(package, encoder):
    SearchEngine.build(package, encoder, package.path.parent / "engine")
    return package.path.parent / "engine"


@pytest.fixture(scope="module")
def engine(folder): return SearchEngine.open(folder)


@pytest.fixture
def copied(folder, tmp_path):
    "An engine that may be broken; its package stays where it is"
    return shutil.copytree(folder, tmp_path / "engine")


def bright(engine): return int(np.nanmean(engine.tiles.images(), axis=(1, 2)).argmax())


def box_of(tile): return tile.col, tile.row, tile.col + tile["size"], tile.row + tile["size"]


def brute_force(engine, vector, keep, k, spread):
    "Numbers of the best tiles: all similarities, sorted, then one by one"
    vectors, times = normalise(engine.embeddings.vectors).astype(float), engine.tiles.table.time
    similarity = np.where(keep, vectors @ normalise(vector).astype(float), -np.inf)
    best = []
    for i in np.argsort(-similarity):
        if len(best) == k or similarity[i] == -np.inf: break
        if spread is None or all(abs(times[i] - times[j]) >= pd.Timedelta(spread) for j in best): best.append(i)
    return best, similarity[best]


# ---- what can be asked


def test_a_tile_finds_others_but_not_its_own_frame(engine):
    hits = engine.search(bright(engine), k=5)
    own = engine.tiles.table.frame[bright(engine)]
    assert len(hits) == 5 and own not in set(hits.table.frame)
    assert hits.table.similarity.is_monotonic_decreasing and hits.table["rank"].tolist() == [1, 2, 3, 4, 5]


def test_an_array_finds_the_tile_it_came_from(engine):
    hits = engine.search(engine.tiles.images(bright(engine))[0], k=3)
    assert hits.table.tile[0] == bright(engine)
    assert hits.table.similarity[0] == pytest.approx(1, abs=1e-3)


def test_a_picture_file_finds_the_tile_it_shows(engine, tmp_path):
    found = engine.search(bright(engine), k=4).save(tmp_path / "found")
    file = sorted(found.glob("01_*.png"))[0].rename(tmp_path / "picture.png")      # nobody knows when it was taken
    hits = engine.search(file, k=3)
    assert hits.table.tile[0] == engine.search(bright(engine), k=1).table.tile[0]
    assert hits.table.similarity[0] > 0.99
    assert engine.search(str(file), k=3).table.equals(hits.table)


def test_a_box_around_a_tile_is_that_tile(engine, package):
    tile = engine.tiles.table.iloc[bright(engine)]
    hits = engine.search(package.frame(tile.frame), box=box_of(tile), k=5)
    np.testing.assert_allclose(hits.query, engine.tiles.images(bright(engine))[0], rtol=1e-3, atol=0.05)
    assert hits.table.tile.tolist() == engine.search(bright(engine), k=5).table.tile.tolist()


def test_a_file_with_a_box_is_a_frame(engine, tmp_path):
    frame = SUN.frame("2014-01-02T06:00", size=2 * SIZE)
    file = tmp_path / "20140102_060000_aia_171.png"
    from PIL import Image
    from search_sdo.packager.channels import stretch
    Image.fromarray((255 * stretch(frame.data, "171", "DN/s")).astype(np.uint8)).save(file)
    box = (90, 100, 122, 132)
    from_file, from_frame = engine.search(file, box=box, k=3), engine.search(frame, box=box, k=3)
    assert from_file.asked.time == pd.Timestamp("2014-01-02T06:00") and from_file.asked.unit == "display"
    seen, measured = (normalise(hits.asked.embed(engine.encoder)) for hits in (from_file, from_frame))
    assert seen @ measured > 0.98


@pytest.mark.parametrize("roll", [0, 30, -100, 180])
def test_a_box_is_found_again_in_a_turned_shifted_and_larger_frame(roll):
    "A blob in the box and a fainter one north of it: what the query shows is the place in the box, at the package's scale, north up"
    disk, size = Disk(300, 220, 150, roll), SIZE
    turn = np.radians(roll)
    y, x = np.mgrid[:480, :560]
    right, up = (x - disk.x) / disk.radius, (disk.y - y) / disk.radius
    west, north = right * np.cos(turn) - up * np.sin(turn), right * np.sin(turn) + up * np.cos(turn)
    data = np.exp(-((west - 0.3) ** 2 + (north - 0.2) ** 2) / 0.002) + 0.7 * np.exp(-((west - 0.3) ** 2 + (north - 0.35) ** 2) / 0.002)
    frame = Frame(data.astype(np.float32), pd.Timestamp("2014-01-01").to_pydatetime(), "171", disk, "DN/s")
    peak = np.unravel_index(data.argmax(), data.shape)
    in_box = (peak[1] - 40, peak[0] - 40, peak[1] + 41, peak[0] + 41)
    image = ask_box(frame, in_box, size).image
    assert image.shape == (round(81 * 0.4 * size / 150),) * 2
    middle = (image.shape[0] - 1) / 2
    first = np.array(np.unravel_index(image.argmax(), image.shape))
    image[max(0, first[0] - 3):first[0] + 4, max(0, first[1] - 3):first[1] + 4] = 0
    second = np.array(np.unravel_index(image.argmax(), image.shape))
    assert np.abs(first - middle).max() <= 1.5
    assert abs(second[1] - first[1]) <= 1 and abs(first[0] - second[0] - 0.15 * 0.4 * size) <= 1


def test_a_window_beyond_the_frame_is_filled_with_nan(package):
    image = ask_box(package.frame(0), (0, 50, 20, 54), SIZE).image
    assert image.shape == (20, 20) and np.isfinite(image[:, 5:]).all()
    corner = ask_box(package.frame(0), (0, 0, 4, 20), SIZE).image
    assert np.isnan(corner[:, :8]).all() and np.isfinite(corner[:, 8:]).all()


# ---- filters


FILTERS = [dict(), dict(lon=(-40, 40), where="lat > 0"), dict(mu=(None, .6)), dict(after="2014-01-02"), dict(before="2014-01-02T13:00"), dict(after="2014-01-01T10:00", before="2014-01-03"),
           dict(channel="171"), dict(channel=[171, "AIA 171"]), dict(exclude_within="11h"), dict(exclude_within="10h", after="2014-01-03")]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("spread", ["12h", "2 days", None])
def test_search_equals_brute_force(engine, filters, spread):
    query, table = bright(engine), engine.tiles.table
    asked = engine.ask(query)
    keep = (table.time != asked.time).to_numpy(copy=True)
    if "after" in filters: keep &= (table.time >= filters["after"]).values
    if "before" in filters: keep &= (table.time < filters["before"]).values
    if "lon" in filters: keep &= table.lon.between(-40, 40).values & (table.lat > 0).values
    if "mu" in filters: keep &= (table.mu <= .6).values
    if "exclude_within" in filters: keep &= (abs(table.time - asked.time) > filters["exclude_within"]).values
    expected, similarity = brute_force(engine, asked.embed(engine.encoder), keep, 10, spread)
    hits = engine.search(query, k=10, spread=spread, **filters)
    assert hits.table.tile.tolist() == expected and len(expected) > 0
    np.testing.assert_allclose(hits.table.similarity, similarity, atol=1e-6)


def test_before_is_exclusive_and_after_is_not(engine):
    times = engine.tiles.table.time
    moment = times.unique()[7]
    assert (times[engine.filter(after=moment)] >= moment).all() and (times[engine.filter(after=moment)] == moment).any()
    assert (times[engine.filter(before=moment)] < moment).all()
    assert engine.filter().all() and engine.filter().shape == (len(engine),)


def test_an_engine_of_two_channels(encoder, tmp_path):
    frames = SUN.frames(6, size=SIZE)
    for frame in frames[1::2]: frame.channel = "193"
    package = Package.build(frames, tmp_path / "package", size=SIZE)
    assert set(SearchEngine.build(package, encoder, tmp_path / "one").tiles.table.channel) == {"171"}
    engine = SearchEngine.build(package, encoder, tmp_path / "two", channels=["171", 193])
    for channel in ("171", "193"):
        assert set(engine.search(0, k=9, spread=None, channel=channel).table.channel) == {channel}
    hits = engine.search(package.frame(1), box=(50, 50, 70, 70), k=9, spread=None, channel=["171", "193"])
    assert set(hits.table.channel) == {"171", "193"}
    other = int(np.flatnonzero(engine.tiles.table.channel == "193")[0])
    assert engine.search(other, k=1, channel="171").asked.channel == "193"


def test_spread_takes_the_best_of_each_moment_however_deep_it_lies(engine):
    hits = engine.search(bright(engine), k=20, spread="5h")
    assert sorted(hits.table.time) == sorted(set(engine.tiles.table.time) - {engine.tiles.table.time[bright(engine)]})


def test_spread_is_relative_to_hits_that_were_taken():
    "The hit at 3 h is dropped for the one at 0 h, so it does not keep the one at 6 h out"
    hours = np.array([0, 3, 6], "timedelta64[h]") + np.datetime64("2014-01-01")
    assert apart_in_time(hours, np.timedelta64(5, "h"), 9).tolist() == [0, 2]


def test_filters_that_leave_nobody_give_no_hits(engine, tmp_path):
    hits = engine.search(bright(engine), after="2030")
    assert len(hits) == 0 and hits.images().shape[0] == 0 and hits.to_maps() == [] and "0 for tile" in repr(hits)
    assert (hits.save(tmp_path) / "hits.png").exists()


def test_tiles_that_were_not_measured_are_never_found(encoder, tmp_path):
    frames = SUN.frames(4, size=SIZE)
    frames[1].data[48:64, :64] = np.nan     # a tenth of the disk: not enough to be flagged
    engine = SearchEngine.build(Package.build(frames, tmp_path / "package", size=SIZE), encoder, tmp_path / "engine")
    lost = np.isnan(engine.tiles.images()).all(axis=(1, 2))
    hits = engine.search(int(np.flatnonzero(~lost)[0]), k=len(engine), spread=None)
    assert lost.any() and not lost[hits.table.tile].any()
    with pytest.raises(ValueError, match=rf"tile {lost.argmax()}: nothing was measured"): engine.search(int(lost.argmax()))


# ---- hits


def test_hits_know_their_pixels(engine):
    hits = engine.search(bright(engine), k=4)
    np.testing.assert_array_equal(hits.images(), engine.tiles.images(hits.table.tile.values))
    np.testing.assert_array_equal(hits.query, engine.tiles.images(bright(engine))[0])


def test_saved_hits(engine, tmp_path):
    hits = engine.search(bright(engine), k=3)
    hits.save(tmp_path / "a/b")
    table = pd.read_csv(tmp_path / "a/b/hits.csv", parse_dates=["time"], dtype={"channel": str})
    assert table.columns.tolist() == ["rank", "similarity", "tile", "time", "channel", "frame", "row", "col", "size", "scale", "lon", "lat", "mu"]
    assert table.time.tolist() == hits.table.time.tolist()
    names = [f"{h.rank:02d}_{h.time:%Y%m%d_%H%M%S}_171.png" for h in hits.table.itertuples()]
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == sorted(["hits.csv", "hits.json", "hits.png", *names])


def test_maps_have_the_pixels_and_the_place_of_their_hits(engine):
    from sunpy.coordinates import frames
    hits = engine.search(bright(engine), k=6)
    assert hits.table.mu.notna().sum() > 2
    for m, hit, image in zip(hits.to_maps(), hits.table.itertuples(), hits.images()):
        np.testing.assert_array_equal(m.data, image[::-1])
        assert pd.Timestamp(m.date.datetime) == hit.time
        middle = m.center.transform_to(frames.HeliographicStonyhurst(obstime=m.date))
        if hit.mu > 0:
            assert middle.lon.deg == pytest.approx(hit.lon, abs=0.5) and middle.lat.deg == pytest.approx(hit.lat, abs=0.5)


def test_hits_of_two_scales_know_their_pixels_and_their_place(package, encoder, tmp_path):
    tiles = Tiles.grid(package, TILE, scales=(1, 2))
    embeddings = Embeddings.build(tiles, encoder, tmp_path / "two")
    engine = SearchEngine(package, encoder, embeddings, Index.build(embeddings.vectors))
    large = int(np.flatnonzero(tiles.table.scale == 2)[3])
    hits = engine.search(large, k=60, spread=None)
    assert set(hits.table.scale) == {1, 2}
    np.testing.assert_array_equal(hits.query, tiles.images(large)[0])
    np.testing.assert_array_equal(hits.images(), tiles.images(hits.table.tile.values))
    for m, hit, image in zip(hits.to_maps(), hits.table.itertuples(), hits.images()):
        np.testing.assert_allclose(bin_pixels(m.data[::-1], int(hit.scale)), image, rtol=1e-6)


# ---- the folder


def test_build_and_open_agree_and_the_folder_is_whole(engine, folder, package, encoder):
    assert all((folder / name).exists() for name in FILES) and not list(folder.glob("*.part"))
    facts = json.loads((folder / "engine.json").read_text())
    assert facts["size"] == TILE and facts["stride"] == TILE and facts["package_from_here"] == "../package"
    assert len(engine) == len(engine.tiles) == len(engine.index) == facts["tiles"]
    assert f"{len(engine):,} tiles of 16 px in 20 frames, 171" in repr(engine)


def test_paths_and_other_sizes_will_do(package, encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    engine = SearchEngine.build(str(package.path), tmp_path / "encoder", tmp_path / "engine", size=32, stride=16)
    assert engine.tiles.table["size"].eq(32).all()
    assert np.unique(np.diff(np.unique(engine.tiles.table.col))).tolist() == [16]
    image = engine.tiles.images(5)[0]
    assert engine.search(image, k=1).table.similarity[0] == pytest.approx(1, abs=1e-3)


def test_an_engine_and_its_package_move_together(folder, package, tmp_path):
    shutil.copytree(package.path.parent, tmp_path / "elsewhere")
    moved = SearchEngine.open(tmp_path / "elsewhere/engine")
    assert moved.package.path.resolve() == (tmp_path / "elsewhere/package").resolve()


def test_a_package_that_has_grown_still_fits(folder, package, tmp_path):
    shutil.copytree(package.path.parent, tmp_path / "grown")
    frames = [SUN.frame("2014-02-01", size=SIZE)]
    Package.build(frames, tmp_path / "grown/package", size=SIZE)
    assert len(SearchEngine.open(tmp_path / "grown/engine").search(3, k=2)) == 2


def test_a_build_that_was_stopped_goes_on(package, encoder, folder, tmp_path, monkeypatch):
    def stop(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr("search_sdo.search.folder.Index.build", stop)
    with pytest.raises(KeyboardInterrupt): SearchEngine.build(package, encoder, tmp_path / "engine")
    with pytest.raises(FileNotFoundError, match="engine.json"): SearchEngine.open(tmp_path / "engine")
    monkeypatch.undo()
    monkeypatch.setattr("search_sdo.search.embed.tile_vectors", stop)      # what was embedded is not embedded again
    again = SearchEngine.build(package, encoder, tmp_path / "engine")
    assert (tmp_path / "engine/embeddings.npy").read_bytes() == (folder / "embeddings.npy").read_bytes() and len(again) > 0


# ---- faults


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_remedy(copied, name):
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: missing.*search-sdo index PACKAGE ENCODER --out .*engine"): SearchEngine.open(copied)


def test_a_package_that_is_gone(copied, package):
    facts = json.loads((copied / "engine.json").read_text())
    (copied / "engine.json").write_text(json.dumps(facts | dict(package="/gone/package")))
    with pytest.raises(FileNotFoundError, match=r"/gone/package: .*SearchEngine\.open\(.*package=\.\.\.\)"): SearchEngine.open(copied)
    assert len(SearchEngine.open(copied, package=package.path)) > 0


def test_a_damaged_engine_json_is_named(copied):
    (copied / "engine.json").write_text('{"package": "/some')
    with pytest.raises(ValueError, match=r"engine\.json: damaged"): SearchEngine.open(copied)


def test_the_wrong_package(copied, tmp_path):
    other = Package.build(SUN.frames(20, start="2015-01-01", size=SIZE), tmp_path / "other", size=SIZE)
    with pytest.raises(ValueError, match="other: not the package"): SearchEngine.open(copied, package=other)
    short = Package.build(SUN.frames(3, cadence="5h", size=SIZE), tmp_path / "short", size=SIZE)
    with pytest.raises(ValueError, match="short: not the package"): SearchEngine.open(copied, package=short)


def test_an_encoder_for_another_channel(package, tmp_path):
    other = Encoder(make_backbone(widths=(8,)), channels=("304",), size=TILE, unit="DN/s")
    with pytest.raises(ValueError, match="package: no good frames in 304, .* it holds 171"): SearchEngine.build(package, other, tmp_path / "engine")


@pytest.mark.parametrize("query", [np.zeros((TILE, TILE, 3)), np.zeros((TILE, TILE + 1)), np.zeros((0, 0))])
def test_a_query_of_the_wrong_shape(engine, query):
    with pytest.raises(ValueError, match="array: (shape .* expected one square picture|nothing was measured)"): engine.search(query)


def test_a_full_disk_needs_a_box(engine, package):
    with pytest.raises(ValueError, match=r"128 px wide.*box="): engine.search(package.frame(0).data)
    with pytest.raises(ValueError, match=r"Frame\(171.*a full disk; say where to look with box="): engine.search(package.frame(0))


def test_a_full_disk_file_needs_a_box(engine, package, tmp_path):
    from PIL import Image
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / "sun.png")
    with pytest.raises(ValueError, match=r"sun\.png: 128 px wide.*box="): engine.search(tmp_path / "sun.png")
    package.frame(0).to_map().save(tmp_path / "sun.fits")
    with pytest.raises(ValueError, match=r"sun\.fits: .*box="): engine.search(tmp_path / "sun.fits")


def test_a_file_that_is_not_there_or_no_picture(engine, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"): engine.search(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="text.png"): engine.search(tmp_path / "text.png")


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (20, 10, 10, 20), (100, 100, 140, 110), (-1, 0, 10, 10), (0, 0, float("nan"), 9)])
def test_a_box_outside_the_frame_or_empty(engine, package, box):
    with pytest.raises(ValueError, match="box .*: empty or not inside the picture of 128 x 128 px"): engine.search(package.frame(0), box=box)


@pytest.mark.parametrize("box", [(1, 2, 3), 7, "here", (0, 0, None, 9)])
def test_a_box_that_is_not_four_numbers(engine, package, box):
    with pytest.raises(ValueError, match="box .*: expected four numbers"): engine.search(package.frame(0), box=box)


def test_a_box_where_nothing_was_measured(engine, package):
    frame = replace(package.frame(0), data=package.frame(0).data.copy())
    frame.data[:, :64] = np.nan
    with pytest.raises(ValueError, match="box: nothing was measured"): engine.search(frame, box=(20, 60, 30, 70))


@pytest.mark.parametrize("query", [3, np.zeros((TILE, TILE))], ids=["tile", "array"])
def test_a_box_goes_with_frames_only(engine, query):
    with pytest.raises(ValueError, match="goes with a Frame or a file"): engine.search(query, box=(0, 0, 8, 8))


def test_a_frame_of_another_channel(engine, package):
    with pytest.raises(ValueError, match="channel 304, this engine holds 171"):
        engine.search(replace(package.frame(0), channel="304"), box=(50, 50, 70, 70))


@pytest.mark.parametrize("number", [-1, 10 ** 9])
def test_a_tile_that_does_not_exist(engine, number):
    with pytest.raises(ValueError, match=f"tile {number}: no such tile, expected 0 to {len(engine) - 1}"): engine.search(number)


def test_unknown_and_absent_channels(engine):
    with pytest.raises(ValueError, match="'sunny' is not known; choose from 94"): engine.search(0, channel="sunny")
    with pytest.raises(ValueError, match="channel 304: not in this engine, which holds 171"): engine.search(0, channel=["171", 304])


@pytest.mark.parametrize("name", ["after", "before"])
@pytest.mark.parametrize("date", ["last tuesday", "2014-13-01", "", float("nan")])
def test_a_date_that_cannot_be_read(engine, name, date):
    with pytest.raises(ValueError, match=f"{name}=.*: not a date; write 2014-06-30"): engine.search(0, **{name: date})


@pytest.mark.parametrize("name", ["spread", "exclude_within"])
@pytest.mark.parametrize("span", ["soon", "-3h", "", 24, "24", 1.5])
def test_a_span_that_cannot_be_read(engine, name, span):
    with pytest.raises(ValueError, match=f"{name}=.*: not a length of time; write 12h or 3 days"): engine.search(0, **{name: span})


def test_exclude_within_needs_a_time(engine):
    with pytest.raises(ValueError, match="nothing says when array was taken; use after and before"):
        engine.search(engine.tiles.images(0)[0], exclude_within="1 day")


def test_k_must_be_positive(engine):
    with pytest.raises(ValueError, match="k is 0"): engine.search(0, k=0)


def test_tiles_show_as_much_of_the_sun_as_the_encoder_learned_on(package, encoder, tmp_path):
    learned = replace_meta(encoder, rsun_px=package.disk.radius / 2)      # on frames half as large
    engine = SearchEngine.build(package, learned, tmp_path / "engine")
    assert set(engine.tiles.table["size"]) == {2 * TILE}


def replace_meta(encoder, **meta):
    return Encoder(encoder.backbone, encoder.channels, encoder.size, encoder.unit, meta)


def test_a_saved_hit_knows_its_moment_and_does_not_find_itself(folder, tmp_path):
    engine = SearchEngine.open(folder)
    hits = engine.search(50, k=1)
    hits.save(tmp_path / "hits")
    picture = next((tmp_path / "hits").glob("01_*.png"))
    asked = engine.ask(picture)
    assert abs(asked.time - hits.table.time[0]) < pd.Timedelta("1s") and asked.channel == "171"
    far = engine.search(picture, k=3, exclude_within="24h")
    assert ((far.table.time - asked.time).abs() > pd.Timedelta("24h")).all()


def test_a_box_that_is_too_large_says_how_large_it_may_be(folder):
    engine = SearchEngine.open(folder)
    with pytest.raises(ValueError, match=f"expected at most {4 * TILE}.*draw a smaller box"):
        engine.search(engine.package.frame(0), box=(0, 0, 100, 100))


def test_add_brings_an_engine_up_to_its_package(encoder, tmp_path):
    frames = SUN.frames(n=6, cadence="9D", size=SIZE)
    package = Package.build(frames[:4], tmp_path / "package", size=SIZE)
    engine = SearchEngine.build(package, encoder, tmp_path / "engine")
    before, n = np.array(engine.embeddings.vectors), len(engine)
    assert engine.add(frames) is engine and engine.package.catalogue.shape[0] == 6 and len(engine) > n
    assert np.array_equal(engine.embeddings.vectors[:n], before, equal_nan=True)
    hits = engine.search(len(engine) - 1, k=3)
    at_once = SearchEngine.build(Package.build(frames, tmp_path / "all", size=SIZE), encoder, tmp_path / "other")
    assert sorted(map(bytes, np.array(at_once.embeddings.vectors))) == sorted(map(bytes, np.array(engine.embeddings.vectors)))
    assert len(hits) == 3 and len(SearchEngine.open(tmp_path / "engine")) == len(engine)
