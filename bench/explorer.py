"""How long the search page takes from a wish to pictures that are ready to be sent, on 100,000 tiles.

One engine is made of a real package (frames of `aia171` in --data) with the shipped encoder; its tiles overlap until there are enough of them.
Each row is the median, and the slowest, over boxes drawn at random places of random frames: what `Page.hear` takes, from the browser's message to state,
thumbnails and Sun as bytes. Beside it the search alone, and the bare FAISS index under it. The bar: under 300 ms.
"""
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from measure import arguments, report

from search_sdo.models.encoder import Encoder
from search_sdo.packager.package import Package
from search_sdo.search.engine import SearchEngine
from search_sdo.search.explorer import Explorer
from search_sdo.search.page import Page


def engine_of(data, folder, quick):
    "An engine of at least 100,000 tiles (5,000 with --quick) over real frames"
    package = Package.build(sorted((data / "aia171").glob("*.jpg"))[:8 if quick else 110], folder / "package", size=1024)
    return SearchEngine.build(package, Encoder.load("aia171"), folder / "engine", stride=64 if quick else 50)


def sent(page):
    "Bytes that would go to the browser"
    return len(page.sun) + len(page.question) + len(page.answers)


def timed(function, wishes):
    "Milliseconds of each call, the first (which imports and warms up) left out"
    times = []
    for wish in wishes:
        start = time.perf_counter()
        function(wish)
        times.append(1000 * (time.perf_counter() - start))
    return times[1:]


def row(name, times, size=""):
    return {"what": name, "median ms": statistics.median(times), "slowest ms": max(times), "under 300 ms": str(max(times) < 300), "kB sent": size}


def main():
    args = arguments(__doc__, engine=dict(type=Path, metavar="FOLDER", help="an engine that is there already, instead of building one"))
    n = 6 if args.quick else 31
    with tempfile.TemporaryDirectory() as folder:
        engine = SearchEngine.open(args.engine) if args.engine else engine_of(args.data, Path(folder), args.quick)
        rng, page = np.random.default_rng(0), Page(Explorer(engine).search())
        size, tiles = engine.package.size, engine.tiles.table

        def boxes(side): return [dict(do="draw", box=[int(x), int(y), int(x + side), int(y + side)]) for x, y in rng.integers(.25 * size, .7 * size, (n, 2))]

        vectors = [np.asarray(engine.embeddings.vectors[i], np.float32)[None] for i in rng.integers(len(engine), size=n)]
        rows = [row("raw FAISS, 12 neighbours", timed(lambda v: engine.index.search(v, 12), vectors)),
                row("engine.search alone, a tile", timed(lambda i: engine.search(int(i)), rng.integers(len(engine), size=n)))]
        for name, wishes in [("draw a box of 64 px", boxes(64)), ("draw a box of 256 px", boxes(256)), ("random view", [dict(do="augment")] * n),
                             ("filters: mu, dates", [dict(do="filter", mu=[.1 * (i % 5), 1], after=f"201{i % 5}-06-01") for i in range(n)]),
                             ("draw a box, 60 answers", boxes(64)), ("step to the next frame", [dict(do="step", by=-1)] * n)]:
            page.hear(dict(do="neighbours", k=60 if "60" in name else 12))
            times = timed(page.hear, wishes)
            assert not page.view["said"]["error"], page.view["said"]
            rows.append(row(name, times, f"{sent(page) / 1000:.0f}"))
        page.hear(dict(do="draw", box=[size // 2, size // 2, size // 2 + 64, size // 2 + 64]))
        for hit in page.view["hits"][:5]:
            page.hear(dict(do="mark", tile=hit["tile"], verdict="good" if hit is not page.view["hits"][1] else "bad"))
        rows.append(row("search again, 5 marks", timed(page.hear, [dict(do="search")] * n), f"{sent(page) / 1000:.0f}"))
        report(args, f"From a wish to pictures, {len(tiles):,} tiles x {engine.index.dim} in {len(engine.package)} frames of {size} px, {faiss.omp_get_max_threads()} threads", rows)


if __name__ == "__main__":
    main()
