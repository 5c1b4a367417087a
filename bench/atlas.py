"""The atlas at size: drawing, circling and placing up to a million tiles, beside the plain way to do each.

    python bench/atlas.py [--data FOLDER] [--quick] [--json FILE]

Points: a million from 30 clouds of different size on a map, and rows of 256 numbers around 30 directions, fixed seed; no
observations are needed. "painted" is `search.paint.paint` at 720 x 540 px with colours; "histogram2d" is NumPy's count alone, without
colours. The lasso has 60 corners. Placing: 5,000 rows have a place, the others get the median of their ten most similar;
"UMAP.transform" is umap-learn's own way. Its shares are of newcomers whose nearest dot on the map is of their own cloud.
"""
import time

import numpy as np
from matplotlib.path import Path
from measure import arguments, median_seconds, report

from search_sdo.models.maps import project
from search_sdo.search.atlas import in_polygon, place_rest
from search_sdo.search.embed import normalise
from search_sdo.search.paint import box_around, colour, paint


def clouds(n, dim, spread, seed=0):
    "float32 [n, dim] around 30 middles, and the number of each row's cloud"
    dice = np.random.default_rng(seed)
    kind = dice.choice(30, n, p=dice.dirichlet(np.full(30, 2.0)))
    return (dice.normal(size=(30, dim))[kind] + spread * dice.standard_normal((n, dim), dtype=np.float32)).astype(np.float32), kind


def drawing(n, repeats):
    points, _ = clouds(n, 2, 0.15)
    rgb, box = colour(points[:, 0])[0], box_around(points)
    zoom = (-0.5, -0.5, 0.5, 0.5)
    turns = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    lasso = np.stack([np.cos(turns), np.sin(turns)], 1) * (1 + 0.3 * np.cos(5 * turns))[:, None]
    np.testing.assert_array_equal(in_polygon(points, lasso), Path(lasso).contains_points(points))
    return median_seconds(repeats, **{"painted": lambda: paint(points, rgb, box), "painted, zoomed in": lambda: paint(points, rgb, zoom),
                                      "histogram2d": lambda: np.histogram2d(*points.T, bins=(720, 540)),
                                      "lasso": lambda: in_polygon(points, lasso), "lasso, matplotlib": lambda: Path(lasso).contains_points(points)})


def own_kind(places, kind, points, known):
    from sklearn.neighbors import KNeighborsClassifier
    return float((KNeighborsClassifier(1).fit(points, known).predict(places) == kind).mean())


def timed(function):
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def main():
    args = arguments(__doc__)
    n, drawn = (100_000, 1000) if args.quick else (1_000_000, 5000)
    seconds = drawing(n, 3 if args.quick else 9)
    report(args, f"{n:,} points", [{"what": name, "ms": 1e3 * s} for name, s in seconds.items()])

    rows, kind = clouds(drawn + (2_000 if args.quick else 95_000), 256, 1.0)
    rows = normalise(rows)
    table = []
    for method in ("pca", "tsne", "umap"):
        points, seconds = timed(lambda: project(rows[:drawn], method))
        places, placing = timed(lambda: place_rest(rows[drawn:], rows[:drawn], points))
        table.append({"map": method, "drawing s": seconds, f"placing {len(places):,} s": placing, "newcomers at home": own_kind(places, kind[drawn:], points, kind[:drawn])})
    from umap import UMAP
    model, seconds = timed(lambda: UMAP(random_state=0, n_jobs=1).fit(rows[:drawn]))
    places, placing = timed(lambda: model.transform(rows[drawn:]))
    table.append({"map": "UMAP.transform", "drawing s": seconds, f"placing {len(places):,} s": placing, "newcomers at home": own_kind(places, kind[drawn:], model.embedding_, kind[:drawn])})
    report(args, f"A map of {drawn:,} rows of 256, and a place for the rest", table)


if __name__ == "__main__":
    main()
