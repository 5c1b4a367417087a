"Index: exact search equals a brute force in NumPy, with and without filters"
import numpy as np
import pytest
from search_sdo.search.index import Index, show_tradeoff, tradeoff

N, DIM = 4000, 24


@pytest.fixture(scope="module")
def vectors():
    "Unit vectors in clusters, as embeddings are: float64, so that the reference is more exact than the index"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, DIM))[rng.integers(20, size=N)] + 0.5 * rng.normal(size=(N, DIM))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def index(vectors): return Index.build(vectors)


def brute_force(vectors, queries, k, keep=None):
    similarity = queries @ vectors.T
    if keep is not None: similarity[:, ~keep] = np.nan
    ids = np.argsort(np.where(np.isnan(similarity), np.inf, -similarity), axis=1, kind="stable")[:, :k]
    similarity = np.take_along_axis(similarity, ids, axis=1)
    return similarity, np.where(np.isnan(similarity), -1, ids)


@pytest.mark.parametrize("n_queries", [1, 7, 64])      # FAISS has another algorithm from 20 queries on
@pytest.mark.parametrize("k", [1, 10, 500])            # … for k = 1, and for large k
def test_exact_search_equals_brute_force(index, vectors, n_queries, k):
    similarity, ids = index.search(vectors[:n_queries], k)
    expected, expected_ids = brute_force(vectors, vectors[:n_queries], k)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    assert (ids == expected_ids).mean() > 0.999        # float32 may swap two that differ by less than 1e-6
    assert all(len(set(row)) == k for row in ids)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("n_queries", [1, 64])
def test_filtered_search_equals_brute_force(index, vectors, share, n_queries):
    keep = np.random.default_rng(1).random(N) < share
    similarity, ids = index.search(vectors[:n_queries], 10, keep)
    expected, expected_ids = brute_force(vectors, vectors[:n_queries], 10, keep)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    np.testing.assert_array_equal(ids, expected_ids)


def test_a_filter_that_leaves_nobody_finds_nobody(index, vectors):
    similarity, ids = index.search(vectors[:3], 5, np.zeros(N, bool))
    assert (ids == -1).all() and np.isnan(similarity).all()


def test_ties_come_once_each_and_before_anything_worse():
    vectors = np.array([[0, 1], [1, 0], [1, 0], [1, 0], [-1, 0.1]])
    similarity, ids = Index.build(vectors).search([2, 0], 4)
    assert set(ids[0, :3]) == {1, 2, 3} and ids[0, 3] == 0
    np.testing.assert_allclose(similarity[0], [1, 1, 1, 0], atol=1e-6)


def test_more_wanted_than_there_are(index, vectors):
    similarity, ids = Index.build(vectors[:3]).search(vectors[:2], 5)
    assert (np.sort(ids[:, :3]) == [0, 1, 2]).all()
    assert (ids[:, 3:] == -1).all() and np.isnan(similarity[:, 3:]).all()


@pytest.mark.parametrize("n_queries", [1, 64])
@pytest.mark.parametrize("k", [1, 10, 500, N])
def test_rows_that_were_not_measured_are_never_found(vectors, n_queries, k):
    holes = vectors.copy()
    holes[[5, 700, N - 1]] = np.nan
    holes[9] = 0
    _, ids = Index.build(holes).search(vectors[:n_queries], k)
    assert not np.isin([5, 9, 700, N - 1], ids).any()
    assert ((ids >= 0).sum(axis=1) == min(k, N - 4)).all()


def test_built_in_blocks_and_from_half_precision(vectors):
    half = vectors.astype(np.float16)
    whole, blocks = (Index.build(half, block=block).search(vectors[:5], 10) for block in (N, 7))
    np.testing.assert_array_equal(whole[1], blocks[1])
    np.testing.assert_allclose(whole[0], brute_force(vectors, vectors[:5], 10)[0], atol=2e-3)
    assert whole[0].max() <= 1 + 1e-6


def test_lengths_do_not_matter(index, vectors):
    longer = Index.build(vectors * np.linspace(1, 50, N)[:, None])
    np.testing.assert_allclose(longer.search(9 * vectors[:5], 10)[0], index.search(vectors[:5], 10)[0], atol=1e-6)


def test_save_and_open(index, vectors, tmp_path):
    index.save(tmp_path / "index.faiss")
    again = Index.open(tmp_path / "index.faiss")
    assert [p.name for p in tmp_path.iterdir()] == ["index.faiss"]
    assert len(again) == N and again.dim == DIM
    np.testing.assert_array_equal(again.search(vectors[:5], 10)[1], index.search(vectors[:5], 10)[1])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.faiss.*Index\.build"): Index.open(tmp_path / "nowhere.faiss")


def test_a_file_cut_in_half_is_named(index, tmp_path):
    index.save(tmp_path / "index.faiss")
    whole = (tmp_path / "index.faiss").read_bytes()
    (tmp_path / "index.faiss").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r"index\.faiss: not a whole FAISS index"): Index.open(tmp_path / "index.faiss")


def test_a_failed_save_keeps_the_old_file(index, vectors, tmp_path, monkeypatch):
    import faiss
    index.save(tmp_path / "index.faiss")

    def full(flat, name):
        open(name, "wb").write(b"half of it")
        raise RuntimeError("no space left on the disk")
    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(RuntimeError): Index.build(vectors[:10]).save(tmp_path / "index.faiss")
    assert len(Index.open(tmp_path / "index.faiss")) == N


@pytest.mark.parametrize("queries", [np.ones((2, DIM + 1)), np.ones(DIM - 1), np.ones((2, 2, DIM)), 3.0])
def test_queries_of_another_dimension(index, queries):
    with pytest.raises(ValueError, match=f"vectors of {DIM} numbers"): index.search(queries)


@pytest.mark.parametrize("fill", [np.nan, 0.0])
def test_a_query_without_direction(index, vectors, fill):
    with pytest.raises(ValueError, match="query 1 is NaN or all zeros"):
        index.search(np.stack([vectors[0], np.full(DIM, fill)]))


@pytest.mark.parametrize("keep", [np.ones(N), np.ones(N - 1, bool), np.arange(10)])
def test_a_filter_that_is_no_mask(index, vectors, keep):
    with pytest.raises(ValueError, match=f"one bool for each of {N} rows"): index.search(vectors[:1], 3, keep)


def test_k_must_be_positive(index, vectors):
    with pytest.raises(ValueError, match="k is 0"): index.search(vectors[:1], 0)


# ---- other kinds: nearly, by the same rules

ALL = ["flat", "hnsw", "ivf", "ivfpq"]
NEARLY = ALL[1:]


@pytest.fixture(scope="module")
def built(vectors):
    "Every kind, tuned, that never takes the way out of comparing a few rows with all"
    indexes = {kind: Index.build(vectors, kind) for kind in ALL}
    for kind in NEARLY:
        indexes[kind].tune(0.97)
        indexes[kind].few = 0
    return indexes


def found(ids, truth): return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, truth)])


@pytest.mark.parametrize("kind", NEARLY)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, None])
def test_every_kind_finds_nearly_all_and_nobody_who_may_not_answer(built, vectors, kind, share):
    keep = None if share is None else np.random.default_rng(1).random(N) < share
    similarity, ids = built[kind].search(vectors[:100], 10, keep)
    expected, truth = brute_force(vectors, vectors[:100], 10, keep)
    assert found(ids, truth) >= 0.95
    assert keep is None or keep[ids].all()
    assert (np.diff(similarity, axis=1) <= 0).all() and all(len(set(row)) == 10 for row in ids)
    np.testing.assert_allclose(similarity, np.take_along_axis(vectors[:100] @ vectors.T, ids, 1), atol=1e-6)     # exact, though found by codes


@pytest.mark.parametrize("kind", NEARLY)
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_where_few_may_answer_every_kind_is_exact(vectors, kind, share):
    keep = np.random.default_rng(1).random(N) < share
    index = Index.build(vectors, kind)
    np.testing.assert_array_equal(index.search(vectors[:30], 10, keep)[1], brute_force(vectors, vectors[:30], 10, keep)[1])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("k", [1, 500, N, N + 5])
def test_as_many_answers_as_there_are_in_every_kind(built, vectors, kind, k):
    _, ids = built[kind].search(vectors[:3], k)
    assert ((ids >= 0).sum(axis=1) == min(k, N)).all()
    keep = np.arange(N) % 8 == 0
    _, ids = built[kind].search(vectors[:3], k, keep)
    assert ((ids >= 0).sum(axis=1) == min(k, keep.sum())).all()


@pytest.mark.parametrize("kind", ALL)
def test_rows_that_were_not_measured_are_never_found_in_any_kind(vectors, kind):
    holes = vectors.copy()
    holes[[5, 700, N - 1]] = np.nan
    holes[9] = 0
    index = Index.build(holes, kind)
    _, ids = index.search(vectors[:5], N)
    assert not np.isin([5, 9, 700, N - 1], ids).any() and ((ids >= 0).sum(axis=1) == N - 4).all()
    assert index.present().sum() == N - 4


@pytest.mark.parametrize("kind", ALL)
def test_added_in_parts_and_at_once(vectors, kind):
    first = vectors.copy()[:1500]
    parts = Index.build(first, kind).add(vectors[:2200]).add(vectors)
    assert len(parts) == N and parts.present().all()
    if kind != "flat": parts.tune(0.97)
    _, ids = parts.search(vectors[:100], 10)
    assert found(ids, brute_force(vectors, vectors[:100], 10)[1]) >= (1 if kind == "flat" else 0.95)


@pytest.mark.parametrize("kind", ALL)
def test_what_an_interrupted_addition_left_behind_does_not_count_and_is_not_doubled(vectors, kind, tmp_path):
    Index.build(vectors[:1000], kind).add(vectors).save(tmp_path / "ahead")
    old = Index.open(tmp_path / "ahead", vectors[:1000])
    assert len(old) == 1000
    _, ids = old.search(vectors[1500:1520], 1000)
    assert ids.max() < 1000 and (np.sort(ids, axis=1) == np.arange(1000)).all()
    again = old.add(vectors[:2000])
    assert (np.sort(again.search(vectors[:2], 2500)[1], axis=1)[:, 500:] == np.arange(2000)).all()


@pytest.mark.parametrize("kind", ALL)
def test_removed_rows_are_gone_and_can_come_back(vectors, kind, tmp_path):
    gone = np.arange(100, 160)
    index = Index.build(vectors, kind).remove(gone)
    index.save(tmp_path / "index")
    for some in (index, Index.open(tmp_path / "index", vectors)):
        for keep in (None, np.arange(N) < 1000):      # the short way out must not bring them back
            assert not np.isin(some.search(vectors[100:120], 50, keep)[1], gone).any()
        assert len(some) == N and some.present().sum() == N - 60
    back = Index.open(tmp_path / "index", vectors).add(vectors, rows=gone[:30])
    if kind != "flat": back.tune(0.97)
    _, ids = back.search(vectors[100:130], 1)
    assert np.mean(ids[:, 0] == gone[:30]) > 0.9
    assert all((row >= 0).sum() == len(set(row[row >= 0])) for row in back.search(vectors[:20], 200)[1])


@pytest.mark.parametrize("kind", ALL)
def test_saved_and_opened_in_every_kind(built, vectors, kind, tmp_path):
    built[kind].save(tmp_path / "index")
    for mapped in (True, False):
        again = Index.open(tmp_path / "index", vectors, mapped)
        again.few = 0
        assert again.kind == kind and repr(again) == repr(built[kind])
        for keep in (None, np.arange(N) % 3 == 0):
            np.testing.assert_array_equal(again.search(vectors[:20], 10, keep)[1], built[kind].search(vectors[:20], 10, keep)[1])
    if kind != "flat":
        with pytest.raises(ValueError, match=f"index: of kind {kind}.*give vectors="): Index.open(tmp_path / "index")
    with pytest.raises(ValueError, match="expected at least"): Index.open(tmp_path / "index", vectors[:, :7])


@pytest.mark.parametrize("kind", ALL)
def test_shards_built_apart_and_merged(vectors, kind):
    first = Index.build(vectors[:2000], kind)
    second = Index.build(vectors[2000:3500], like=first).remove([1, 7])
    merged = Index.merge([first, second, Index.build(vectors[3500:], like=first)], vectors)
    assert len(merged) == N and set(np.flatnonzero(~merged.present())) == {2001, 2007}
    if kind != "flat": merged.tune(0.97)
    _, ids = merged.search(vectors[:100], 10)
    keep = ~np.isin(np.arange(N), [2001, 2007])
    assert found(ids, brute_force(vectors, vectors[:100], 10, keep)[1]) >= (1 if kind == "flat" else 0.95)
    assert not np.isin(ids, [2001, 2007]).any()


@pytest.mark.parametrize("kinds", [("ivf", "ivf"), ("ivfpq", "ivf"), ("hnsw", "flat"), ("flat", "ivf")])
def test_shards_that_learned_apart_are_merged_too(vectors, kinds):
    merged = Index.merge([Index.build(vectors[:2000], kinds[0]), Index.build(vectors[2000:], kinds[1])], vectors)
    assert merged.kind == kinds[0] and merged.present().all()
    if kinds[0] != "flat": merged.tune(0.97)
    assert found(merged.search(vectors[:50], 10)[1], brute_force(vectors, vectors[:50], 10)[1]) >= 0.95


@pytest.mark.parametrize("kind", NEARLY)
def test_tuning_reaches_the_recall_that_was_asked_for_and_no_more(vectors, kind):
    index = Index.build(vectors, kind)
    tried = index.tune(0.9, n=150)
    assert (tried.recall[:-1] < 0.9).all() and tried.recall.iloc[-1] >= 0.9
    fresh = vectors[1000:1200] + 0.01 * np.random.default_rng(3).normal(size=(200, DIM))
    fresh /= np.linalg.norm(fresh, axis=1, keepdims=True)
    assert found(index.search(fresh, 10)[1], brute_force(vectors, fresh, 10)[1]) > 0.85
    assert f"effort {tried.effort.iloc[-1]})" in repr(index)


def test_the_tradeoff_of_all_kinds_is_measured_and_drawn(vectors):
    table = tradeoff(vectors[:1500], n=20)
    assert list(table.columns) == ["kind", "effort", "recall", "ms", "MB"] and list(table.kind.unique()) == ALL
    assert table[table.kind == "flat"].recall.tolist() == [1]
    assert (table.groupby("kind").recall.last() > 0.95).all() and (table.ms > 0).all()
    size = table.groupby("kind").MB.first()
    assert size["ivfpq"] < size["ivf"] < size["flat"]
    ax = show_tradeoff(table)
    assert [line.get_label().split(",")[0] for line in ax.lines] == ALL


def test_the_kind_is_chosen_by_size_and_memory(vectors):
    assert Index.build(vectors).kind == "flat"
    assert Index.build(vectors, memory=4 * DIM * N).kind == "flat" and Index.build(vectors, memory=4 * DIM * N - 1).kind == "ivf"
    assert Index.build(vectors, memory=2 * DIM * N).kind == "ivfpq"
    with pytest.raises(ValueError, match="memory: .* expected at least"): Index.build(vectors, memory=100)
    with pytest.raises(ValueError, match="kind is 'best', expected one of flat, hnsw, ivf, ivfpq"): Index.build(vectors, "best")


@pytest.mark.parametrize("kind", ALL)
def test_the_size_that_is_told_is_the_size_of_the_file(built, kind, tmp_path):
    built[kind].save(tmp_path / "index")
    assert built[kind].nbytes == pytest.approx((tmp_path / "index").stat().st_size, rel=0.25)


def test_vectors_that_cannot_be_added_are_refused(built, vectors):
    with pytest.raises(ValueError, match=f"expected at least {N} rows of {DIM}"): built["ivf"].add(vectors[:10])
    with pytest.raises(ValueError, match=f"rows of {DIM} numbers"): built["flat"].add(np.ones((N, 3)))


@pytest.mark.parametrize("kind", NEARLY)
def test_where_nothing_was_measured_no_index_can_learn(kind):
    with pytest.raises(ValueError, match="not one row was measured"): Index.build(np.full((50, 8), np.nan), kind)


@pytest.mark.parametrize("kind", NEARLY)
def test_small_archives_will_do(kind):
    few = np.eye(8, dtype=np.float16)[:5]
    assert Index.build(few, kind).search(few, 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_file_in_blocks_gives_the_same_as_an_array(vectors, tmp_path):
    np.save(tmp_path / "v.npy", vectors.astype(np.float16))
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    for kind in ("flat", "ivf"):
        one, other = (Index.build(v, kind, block=700).search(vectors[:30], 10)[1] for v in (mapped, np.array(mapped)))
        np.testing.assert_array_equal(one, other)
