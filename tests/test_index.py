"Index: exact search equals a brute force in NumPy, with and without filters"
import numpy as np
import pytest
from search_sdo.search.index import Index

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
