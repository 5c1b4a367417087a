"A claimed false alarm is one; what is no Sun is flagged, what is one is not"
import numpy as np
import pytest
from engines import small_engine
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.embed import normalise
from search_sdo.search.engine import SearchEngine
from search_sdo.search.index import Index
from search_sdo.search.query import Query
from search_sdo.search.trust import Cloud, chance, grain, nearest_of_others, some_rows, strangers
from real_data import DATA, needs_data

SIZE, TILE = 256, 32
SUN = SmallSun(seed=3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory): return small_engine(tmp_path_factory.mktemp("trust"), SUN.frames(14, cadence="216h", size=SIZE), SIZE, TILE, (8, 16, 32))


def cloud(n=4000, seed=0):
    "Made-up vectors with something in common, at made-up moments"
    dice = np.random.default_rng(seed)
    return normalise(dice.normal(size=(n, 24)) * np.geomspace(1, 0.1, 24) + 0.8 * np.eye(24)[0]), np.repeat(np.arange(n // 20), 20)


def test_chance_is_a_count():
    pairs = np.sort(np.random.default_rng(0).normal(size=999).astype(np.float32))
    for s in (-9, pairs[0], 0.1, pairs[-1], 9): assert chance(s, pairs) == ((pairs >= np.float32(s)).sum() + 1) / 1000


def test_claims_are_kept_on_pairs_never_seen():
    "Two halves of a cloud, one claims, the other judges"
    pairs, others = (strangers(*cloud(seed=s), n=1500) for s in (0, 1))
    for claimed in (0.3, 0.1, 0.01, 0.001):
        observed = (chance(others, pairs) <= claimed).mean()
        assert claimed / 2 < observed < claimed * 2


def test_strangers_are_of_different_moments():
    vectors = np.repeat(np.eye(50), 4, axis=0)           # four copies in each moment: only they are alike
    assert strangers(vectors, np.repeat(np.arange(50), 4), 200).max() == 0


def test_rows_that_are_nan_are_never_drawn():
    vectors = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float16)
    vectors[::2] = np.nan
    rows = some_rows(vectors, 30)
    assert len(rows) == 30 and (rows % 2 == 1).all() and (np.diff(rows) > 0).all()
    assert some_rows(vectors, 1000).tolist() == list(range(1, 100, 2))


def test_nearest_of_others_equals_brute_force():
    "Also where all near neighbours are of the tile's own moment"
    vectors, times = cloud(2000)
    vectors[:100] = normalise(vectors[:1] + 1e-3 * np.random.default_rng(0).normal(size=(100, 24)))
    times[:100] = 7777
    found = nearest_of_others(Index.build(vectors), vectors, times, n=2000)
    similarity = np.where(times[:, None] == times, -1, vectors @ vectors.T)
    np.testing.assert_allclose(found, np.sort(similarity.max(1)), atol=1e-5)


def test_a_cloud_knows_its_own():
    dice = np.random.default_rng(0)
    mix = dice.normal(size=(6, 6))
    c = Cloud.of(dice.normal(size=(1000, 6)) @ mix)
    share = c.share_beyond(dice.normal(size=(2000, 6)) @ mix)
    assert abs((share < 0.1).mean() - 0.1) < 0.03 and c.share_beyond(50 * np.ones((1, 6)) @ mix)[0] == 1 / 1001


def test_grain_tells_coarse_from_fine():
    y, x = np.mgrid[:32, :32]
    fine, coarse = (x % 2).astype(float), (x // 8 % 2).astype(float)
    g = grain(np.stack([fine, coarse]))
    assert g[0, 0] == pytest.approx(0.5) and g[0, 2] > g[1, 2] and g[0, 5] < g[1, 5]


# ---- the engine


def strange(name):
    dice = np.random.default_rng(0)
    y, x = np.mgrid[:TILE, :TILE]
    if name == "text":
        from PIL import Image, ImageDraw
        page = Image.new("L", (TILE, TILE), 255)
        for row in range(3): ImageDraw.Draw(page).text((1, 10 * row), "the Sun", fill=0)
        return np.asarray(page, float) * 5
    return dict(noise=dice.uniform(0, 1400, (TILE, TILE)), checks=1400.0 * ((x // 4 + y // 4) % 2), card=np.full((TILE, TILE), 300.0))[name]


@pytest.mark.parametrize("name", ["noise", "text", "checks", "card"])
def test_what_is_no_sun_is_flagged(engine, name):
    hits = engine.search(strange(name).astype(np.float32), k=2)
    assert len(hits) == 2 and hits.unfamiliar and hits.familiar < 0.01


def test_days_that_the_archive_never_saw_are_familiar(engine):
    "Tiles of later frames of the same Sun: about one in a hundred may be flagged"
    flags = []
    for time in ("2014-05-20", "2014-06-11", "2014-07-02"):
        frame = SUN.frame(time, size=SIZE)
        flags += [engine.search(frame, box=(x, y, x + TILE, y + TILE), k=1).unfamiliar for x in range(48, 180, 24) for y in range(48, 180, 24)]
    assert np.mean(flags) < 0.06


def test_chance_falls_with_similarity(engine):
    for query, unlike in ((5, None), ([5, 60], 90)):
        p = engine.search(query, k=9, unlike=unlike, spread=None).chance
        assert ((0 < p) & (p <= 1)).all() and (np.diff(p) >= 0).all()


def test_the_least_familiar_example_counts(engine):
    tile, noise = int(engine.tiles.table.mu.argmax()), strange("noise").astype(np.float32)
    assert engine.search([tile, noise]).familiar == pytest.approx(engine.search(noise).familiar)


def test_trust_is_made_once_and_again_when_the_archive_grows(engine):
    assert engine.trust is engine.trust
    before = engine.trust
    other = SearchEngine(engine.package, engine.encoder, engine.embeddings, engine.index)
    assert other.trust is not before
    other.embeddings = type(engine.embeddings)(engine.embeddings.vectors, engine.tiles)
    kept = other.trust
    assert kept is other.trust


def test_an_archive_of_one_moment_says_it_does_not_know(engine, tmp_path):
    package = Package.build([SUN.frame("2014-01-01", size=SIZE)], tmp_path / "package", size=SIZE)
    one = SearchEngine.build(package, engine.encoder, tmp_path / "engine")
    assert np.isnan(one.search(strange("noise").astype(np.float32), k=1).familiar) and not one.search(3).unfamiliar


@needs_data
def test_on_the_real_sun_claims_are_kept_and_other_telescopes_flagged(tmp_path):
    "Six frames of AIA 171 before 2015 claim, five later ones judge; HMI upside down and text are no 171"
    from search_sdo.packager.frame import read_frame
    from search_sdo.packager.calibrate import harmonise
    files = sorted((DATA / "aia171").glob("*.jpg"))
    early, late = files[2:38:6], files[60:108:10]
    package = Package.build(early, tmp_path / "package", size=512)
    engine = SearchEngine.build(package, "aia171", tmp_path / "engine", size=32)
    later = SearchEngine.build(Package.build(late, tmp_path / "later", size=512), "aia171", tmp_path / "other", size=32)
    others = strangers(later.embeddings.vectors, later.tiles.table.time, 1000, seed=1)
    for claimed in (0.1, 0.01): assert claimed / 4 < (chance(others, engine.trust.pairs) <= claimed).mean() < claimed * 4
    flagged = [engine.trust.familiar(Query(image, "late", "display", "171"), engine) < 0.01 for image in later.tiles.images(np.arange(0, len(later), 37))]
    assert np.mean(flagged) < 0.1
    hmi = harmonise(read_frame(sorted((DATA / "deepsdo/images").glob("*HMI*"))[100]), 512).data[::-1]
    flags = [engine.search(hmi[r:r + 32, c:c + 32].copy(), k=1).unfamiliar for r in range(150, 330, 40) for c in range(150, 330, 40)]
    assert np.mean(flags) > 0.9
