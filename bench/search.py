"""Exact, filtered and large: the search engine beside raw FAISS, LanceDB, Qdrant's local mode and scikit-learn, in one run.

    python bench/search.py [--data FOLDER] [--quick] [--json FILE] [--only PART ...] [--engine FOLDER] [--keep FOLDER]

  engine     exact search through the engine (its own table, filters and hits) and raw FAISS, 100,000 x 256
  filtered   each kind of index with 0.1, 1, 10 and 100 % of the rows allowed, against brute force
  million    1,000,000 x 256: IVF-PQ with a second look; time to build, size, recall@10, ms a query
  ten        10,000,000 x 256: the same, built from a memory-mapped float16 file by a process whose peak memory is measured
  peers      the same vectors in LanceDB, Qdrant's local mode and scikit-learn (100,000; LanceDB a million too)

Vectors are drawn around real embeddings: a tile of --engine (built from --data with the shipped encoder if there is none),
moved towards one of its ten nearest by a random share, plus a random difference of two other neighbours. Questions are
drawn in the same way and are not in the index. Files stay in --keep: a part that was stopped goes on there, and an index
that stands there with its report is not built again.
"""
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from measure import arguments, median_seconds, report

from search_sdo.packager.tiles import Tiles
from search_sdo.search.embed import Embeddings, normalise
from search_sdo.search.index import Index, share_found
from search_sdo.search.kinds import scan

PARTS = ["engine", "filtered", "million", "ten", "peers"]


# ---- vectors

def real_embeddings(args):
    "float32 [N, 256] of the shipped encoder on the real observations"
    folder = args.engine or args.keep / "engine"
    if not (folder / "embeddings.npy").exists():
        from search_sdo.models.encoder import Encoder
        from search_sdo.models.trained import build_package
        from search_sdo.search.engine import SearchEngine
        SearchEngine.build(build_package("aia171", args.data, args.keep / "package"), Encoder.load("aia171"), folder)
    vectors = normalise(np.load(folder / "embeddings.npy"))
    return vectors[np.isfinite(vectors[:, 0])]


def drawn(real, near, n, rng):
    "float32 [n, D] around real vectors, whose nearest ones are `near` [N, 10]"
    neighbour = lambda rows: near[rows, rng.integers(near.shape[1], size=len(rows))]
    a, c = rng.integers(len(real), size=n), rng.integers(len(real), size=n)
    share, more = rng.random((n, 1), np.float32), 0.5 * rng.standard_normal((n, 1), np.float32)
    return normalise(real[a] + share * (real[neighbour(a)] - real[a]) + more * (real[c] - real[neighbour(c)]))


def vectors_file(args, n, block=100_000):
    "Memory-mapped float16 [n, D]; made in --keep, and again where an earlier call stopped"
    path, progress = args.keep / f"drawn_{n}.npy", args.keep / f"drawn_{n}.done"
    real = real_embeddings(args)
    if not (args.keep / "near.npy").exists(): np.save(args.keep / "near.npy", Index.build(real, "ivf").search(real, 11)[1][:, 1:])
    near = np.load(args.keep / "near.npy")
    if not path.exists() or progress.exists():
        done = int(progress.read_text() or 0) if progress.exists() else 0
        progress.write_text(str(done))
        out = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, (n, real.shape[1]))
        for first in range(done, n, block):
            out[first:first + block] = drawn(real, near, min(block, n - first), np.random.default_rng(first))
            progress.write_text(str(first + block))
        out.flush()
        progress.unlink()
    return np.load(path, mmap_mode="r"), drawn(real, near, 1000, np.random.default_rng(2**32 - 1))


def answers(search, queries):
    "(row numbers [Q, k], median milliseconds of one query)"
    search(queries[:1])
    took, ids = [], []
    for q in queries:
        start = time.perf_counter()
        ids.append(search(q[None])[0])
        took.append(time.perf_counter() - start)
    return np.stack(ids), 1000 * float(np.median(took))


# ---- parts

def engine_part(args):
    "Raw FAISS, the index, and the engine with its table and hits"
    from search_sdo.search.engine import SearchEngine
    n = 20_000 if args.quick else 100_000
    vectors, queries = vectors_file(args, n)
    old = SearchEngine.open(args.engine or args.keep / "engine")
    table = pd.concat([old.tiles.table] * (n // len(old) + 1))[:n]
    engine = SearchEngine(old.package, old.encoder, Embeddings(vectors, Tiles(table, old.package)), Index.build(vectors, "flat"))
    raw = faiss.IndexFlatIP(vectors.shape[1])
    raw.add(normalise(vectors))
    queries, turn = queries[:200], iter(range(10**9))
    ask = lambda: queries[next(turn) % len(queries)]
    middle = str(table.time.sort_values().iloc[n // 2])
    times = median_seconds(20 if args.quick else 200, **{
        "raw FAISS": lambda: raw.search(ask()[None], 12),
        "Index.search": lambda: engine.index.search(ask(), 12),
        "engine.search, hits": lambda: engine.search(ask(), k=12, spread=None),
        "engine.search, spread 12 h": lambda: engine.search(ask(), k=12),
        "engine.search, after a date": lambda: engine.search(ask(), k=12, spread=None, after=middle)})
    rows = [dict(what=name, ms=1000 * t, ratio=t / times["raw FAISS"]) for name, t in times.items()]
    report(args, f"Exact search, {n:,} x {vectors.shape[1]}, one query at a time, k = 12", rows)


def filtered_part(args):
    "Every kind at every share of rows that may answer"
    n = 20_000 if args.quick else 300_000
    vectors, queries = vectors_file(args, n)
    queries, rng, rows = queries[:100 if args.quick else 300], np.random.default_rng(0), []
    masks = {share: rng.random(n) < share for share in (0.001, 0.01, 0.1, 1.0)}
    truth = {share: scan(queries, 10, vectors, np.flatnonzero(keep))[1] for share, keep in masks.items()}
    for kind in ("flat", "ivf", "hnsw", "ivfpq"):
        index = Index.build(vectors, kind)
        if kind != "flat": index.tune(0.97)
        for share, keep in masks.items():
            ids, ms = answers(lambda q: index.search(q, 10, keep)[1], queries)
            rows.append({"kind": kind, "may answer": f"{share:.1%}", "recall@10": share_found(ids, truth[share]), "equal": bool((ids == truth[share]).all()), "ms": ms})
    report(args, f"Filtered search, {n:,} x {vectors.shape[1]}, against brute force", rows)


def large(args, n, kind="ivfpq", recall=0.95):
    "A row of figures of an index of n vectors, built by a process of its own"
    vectors, queries = vectors_file(args, n)
    path, told = args.keep / f"{kind}_{n}.faiss", args.keep / f"{kind}_{n}.json"
    if not told.exists(): subprocess.run([sys.executable, __file__, "--build", str(args.keep / f"drawn_{n}.npy"), kind, str(path), str(told), str(recall)], check=True)
    facts, index = json.loads(told.read_text()), Index.open(path, vectors, mapped=False)
    queries = queries[:100 if args.quick else 300]
    truth = scan(queries, 10, vectors)[1]
    ids, ms = answers(lambda q: index.search(q, 10)[1], queries)
    return {"what": f"{kind}, {n:,}", "build min": facts["seconds"] / 60, "peak GB": facts["peak"] / 1e9, "index MB": path.stat().st_size / 1e6,
            "effort": index.ann.nprobe, "recall@10": share_found(ids, truth), "ms": ms}


def build(vectors, kind, path, told, recall):
    "Build, tune and save one index; write seconds and peak memory"
    start, vectors = time.time(), np.load(vectors, mmap_mode="r")
    index = Index.build(vectors, kind)
    seconds = time.time() - start
    index.save(path)
    Path(told).write_text(json.dumps(dict(seconds=seconds, peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)))
    index.tune(float(recall))
    index.save(path)


def million_part(args): report(args, "A million vectors of 256 numbers", [large(args, 50_000 if args.quick else 1_000_000, kind, 0.96) for kind in ("ivfpq", "ivf")])
def ten_part(args): report(args, "Ten million vectors of 256 numbers", [large(args, 100_000 if args.quick else 10_000_000, "ivfpq", 0.92)])


def lancedb_search(args, vectors):
    import lancedb
    import pyarrow as pa
    folder = args.keep / f"lance_{len(vectors)}"
    shutil.rmtree(folder, ignore_errors=True)
    start, db, dim = time.time(), lancedb.connect(folder), vectors.shape[1]
    batches = (pa.record_batch([pa.FixedSizeListArray.from_arrays(pa.array(normalise(vectors[i:i + 50_000]).ravel()), dim), pa.array(np.arange(i, min(i + 50_000, len(vectors))))], names=["vector", "id"])
               for i in range(0, len(vectors), 50_000))
    table = db.create_table("v", batches, schema=pa.schema([("vector", pa.list_(pa.float32(), dim)), ("id", pa.int64())]))
    table.create_index(metric="cosine", num_partitions=int(len(vectors) ** 0.5), num_sub_vectors=dim // 4)
    seconds = time.time() - start
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return lambda q: np.array([table.search(q[0]).distance_type("cosine").nprobes(40).refine_factor(20).limit(10).to_arrow()["id"].to_numpy()]), seconds, size


def qdrant_search(args, vectors):
    from qdrant_client import QdrantClient, models
    start, client = time.time(), QdrantClient(":memory:")
    client.create_collection("v", vectors_config=models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE))
    client.upload_collection("v", vectors=normalise(vectors), ids=range(len(vectors)))
    return lambda q: np.array([[p.id for p in client.query_points("v", query=q[0].tolist(), limit=10).points]]), time.time() - start, vectors.size * 4


def sklearn_search(args, vectors):
    from sklearn.neighbors import NearestNeighbors
    start = time.time()
    model = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(normalise(vectors))
    return lambda q: model.kneighbors(q, return_distance=False), time.time() - start, vectors.size * 4


def our_search(args, vectors, kind):
    start = time.time()
    index = Index.build(vectors, kind)
    if kind != "flat": index.tune(0.96)
    return lambda q: index.search(q, 10)[1], time.time() - start, index.nbytes


def peers_part(args):
    "The same vectors and questions for everybody"
    rows = []
    for n in (20_000,) if args.quick else (100_000, 1_000_000):
        vectors, queries = vectors_file(args, n)
        queries = queries[:50 if args.quick else 200]
        truth = scan(queries, 10, vectors)[1]
        makers = {"search_sdo flat": lambda: our_search(args, vectors, "flat"), "search_sdo ivfpq": lambda: our_search(args, vectors, "ivfpq"), "LanceDB IVF_PQ": lambda: lancedb_search(args, vectors)}
        if n <= 100_000: makers |= {"search_sdo ivf": lambda: our_search(args, vectors, "ivf"), "search_sdo hnsw": lambda: our_search(args, vectors, "hnsw"),
                                    "Qdrant local": lambda: qdrant_search(args, vectors), "scikit-learn": lambda: sklearn_search(args, vectors)}
        for name, make in makers.items():
            try: search, seconds, size = make()
            except ImportError as e:
                print(f"{name}: left out ({e}); pip install search_sdo[bench]")
                continue
            ids, ms = answers(search, queries)
            rows.append({"what": name, "vectors": f"{n:,}", "build s": seconds, "MB": size / 1e6, "recall@10": share_found(ids, truth), "ms": ms})
    report(args, "Beside others, on the same vectors", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]: sys.exit(build(*sys.argv[2:]))
    args = arguments(__doc__, only=dict(nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="some of: %(choices)s"),
                     engine=dict(type=Path, metavar="FOLDER", help="an engine of the shipped encoder, to draw around its embeddings"),
                     keep=dict(type=Path, default=Path("/tmp/search_bench"), metavar="FOLDER", help="where vectors and indexes stay (default: %(default)s)"))
    args.keep.mkdir(parents=True, exist_ok=True)
    for part in args.only: globals()[f"{part}_part"](args)
