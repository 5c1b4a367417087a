"""What a mark is worth: a head on 60 marks that the tool asked for, beside heads on marks at random, on real labels.

    python bench/curate.py [--data FOLDER] [--quick] [--json FILE] [--only SET ...] [--keep FOLDER] [--seeds N]

The pool are all labelled windows of the gallery's dates, in the mix the labels come in; the weak labels answer, as a person
would. Tested on all labelled windows of later dates (a solar rotation or more away) by balanced accuracy: the mean over the
classes of the share named rightly. Both ways use the same head (`fit_head` with its defaults) on the same embeddings of the
encoder that ships. The defaults of head and mix were chosen on gallery dates alone, split once more by time.

  mean, std       over seeds: for the tool they draw the questions and the clusters, for random the marks
  of the rarest   marks that went to the class with the fewest windows

A last table says how long the head takes on 100,000 tiles.
"""
import logging
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
from measure import arguments, median_seconds, report
from retrieval import features, labelled_windows, look

from search_sdo.models.encoder import Encoder
from search_sdo.models.trained import SETS, build_package
from search_sdo.models.views import load_frames
from search_sdo.search.curate import Curator, balanced_accuracy, fit_head, middle_and_scale
from search_sdo.search.embed import normalise
from search_sdo.packager.tiles import Tiles

CHOSEN, RANDOM = (20, 30, 40, 50, 60), (60, 120, 240, 480)


def embedded(data, name, work):
    "Labelled windows of a set and their embeddings; kept in `work`, since they take minutes"
    table_file, vectors_file = work / f"{name}.parquet", work / f"{name}.npy"
    if not vectors_file.exists():
        package = build_package(name, data, work / name)
        table = labelled_windows(data, name, package)
        table = table[table.part != "gap"].reset_index(drop=True)
        frames, encoder = load_frames(package), Encoder.load(name)
        parts = [features(encoder.backbone, look(frames, table.iloc[i:i + 2048])) for i in range(0, len(table), 2048)]
        table.to_parquet(table_file)
        np.save(vectors_file, normalise(np.concatenate(parts)).astype(np.float16))
    return pd.read_parquet(table_file), np.load(vectors_file)


def pool_engine(table, vectors, name):
    "As much of a `SearchEngine` as a `Curator` needs, over windows"
    tiles = pd.DataFrame(dict(frame=table.frame, row=table.y.round().astype(int), col=table.x.round().astype(int), size=64, scale=1.,
                              lon=0., lat=0., mu=np.nan, time=table.time, channel=name)).reset_index(drop=True)
    tiles["row"] = np.arange(len(tiles))    # nobody reads their pixels, and rounded corners may coincide
    return SimpleNamespace(tiles=Tiles(tiles, None), embeddings=SimpleNamespace(vectors=vectors))


def asked_for(engine, truth, classes, by, seed, folder):
    "Numbers of the tiles that the tool asked for, in order"
    curator = Curator(engine, classes, Path(folder) / f"{time.time_ns()}.jsonl", seed=seed)
    while len(curator) < CHOSEN[-1]:
        for tile in curator.suggest(20 if len(curator) == 0 else 10, by):
            curator.mark(tile, truth[tile], how=by)
    return curator.lessons().index.to_numpy()


class Test(NamedTuple):
    "The windows of later dates, and what all heads of a set share"
    rows: np.ndarray       # of the table
    vectors: np.ndarray    # [N, D] of the whole table
    centre: tuple          # from `middle_and_scale`, of the pool


def learning_curve(marks, sizes, pool, test, truth, classes):
    "Balanced accuracy on later dates after the first so many marks; NaN while there is one class only"
    def score(size):
        rows = pool[marks[:size]]
        if len(set(truth[rows])) < 2:
            return np.nan
        head = fit_head(test.vectors[rows], truth[rows], classes, *test.centre)
        return balanced_accuracy(truth[test.rows], np.array(classes)[head.probabilities(test.vectors[test.rows]).argmax(axis=1)])
    return {size: score(size) for size in sizes if size <= len(marks)}


def scores(args, name, work, folder):
    "Rows of the table of one set"
    table, vectors = embedded(args.data, name, work)
    truth, classes = table.label.to_numpy(), sorted(table.label.unique())
    pool, late = np.flatnonzero(table.part == "gallery"), np.flatnonzero(table.part == "query")
    test = Test(late, vectors, middle_and_scale(vectors[pool]))
    engine, seeds = pool_engine(table.iloc[pool].reset_index(drop=True), vectors[pool], name), range(2 if args.quick else args.seeds)
    ways = {"chosen, " + by: (lambda seed, by=by: asked_for(engine, truth[pool], classes, by, seed, folder), CHOSEN) for by in (("mix",) if args.quick else ("mix", "uncertain", "diverse", "typical"))}
    ways["random"] = (lambda seed: np.random.default_rng(seed).permutation(len(pool))[:RANDOM[-1]], RANDOM)
    rows, means = [], {}
    for way, (marks, sizes) in ways.items():
        tried = [marks(seed) for seed in seeds]
        curves = pd.DataFrame([learning_curve(m, sizes, pool, test, truth, classes) for m in tried])
        means[way] = curves.mean()
        for size in curves:
            if way == "random" or size in (20, 60):
                rarest = np.mean([(truth[pool[m[:size]]] == pd.Series(truth[pool]).value_counts().index[-1]).sum() for m in tried])
                rows.append({"way": way, "marks": size, "mean": curves[size].mean(), "std": curves[size].std(ddof=0), "of the rarest": rarest, "seeds": len(tried)})
    print(f"\n{name}: {len(pool):,} windows before {SETS[name]['before']} ({', '.join(f'{c} {n:,}' for c, n in pd.Series(truth[pool]).value_counts().items())}), "
          f"{len(late):,} from {SETS[name]['split']} on; {len(seeds)} seeds")
    chosen, random = means["chosen, mix"], means["random"]
    print(f"{name}: 60 chosen {chosen[60]:.3f}, 240 random {random[240]:.3f}, difference {chosen[60] - random[240]:+.3f} (bar: 0 or more); 60 random {random[60]:.3f}")
    return rows


def head_seconds(args):
    "How long the head takes on 100,000 tiles of 256 numbers: to learn from 60 and from 240 marks, and to name all"
    dice, n = np.random.default_rng(0), 10_000 if args.quick else 100_000
    vectors = normalise(dice.normal(size=(n, 256)) + 4 * dice.normal(size=(4, 256))[np.arange(n) % 4]).astype(np.float16)
    labels, classes = np.array(list("abcd"))[np.arange(n) % 4], list("abcd")
    centre = middle_and_scale(vectors)
    head = fit_head(vectors[:60], labels[:60], classes, *centre)
    times = median_seconds(5, **{"centre": lambda: middle_and_scale(vectors), "learn from 60": lambda: fit_head(vectors[:60], labels[:60], classes, *centre),
                                 "learn from 240": lambda: fit_head(vectors[:240], labels[:240], classes, *centre), "name all": lambda: head.probabilities(vectors)})
    return [dict(step=step, seconds=seconds) for step, seconds in times.items()]


def main():
    args = arguments(__doc__, only=dict(nargs="+", choices=list(SETS), default=list(SETS), help="sets (default: all)"),
                     keep=dict(type=Path, help="keep packages and embeddings in this folder, and use those that are there"),
                     seeds=dict(type=int, default=10, help="(default: %(default)s)"))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        work = args.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            start = time.perf_counter()
            rows = scores(args, name, work, folder)
            report(args, f"{name}: balanced accuracy on dates from {SETS[name]['split']} on; {(time.perf_counter() - start) / 60:.1f} minutes", rows)
    report(args, "The head on 100,000 tiles x 256" if not args.quick else "The head on 10,000 tiles x 256", head_seconds(args))


if __name__ == "__main__":
    main()
