"""Relevance feedback on the real Sun: what three good and three bad marks do for the answers.

    python bench/feedback.py [--data FOLDER] [--quick] [--json FILE] [--keep FOLDER] [--engine FOLDER]

AIA 171, one frame a month over a solar cycle, encoder `aia171`. Questions are labelled tiles from 2015 on; answers come
from before 2015 and a solar rotation, through the engine's filters. For each question somebody marks the first three good
and the first three bad tiles among the best 200 answers (where there are as many), and searches again. Marked tiles are
taken out of the answers of every way, before and after, so that no way is paid for what it was told. precision@20 per
class of the question, mean over questions; labels are weak, and the hardest class is the one where a single tile does worst.

  one tile       the question alone
  mean           the middle of question and good marks
  Rocchio        question + .75 middle of the good - .15 middle of the bad (Manning et al. 2008, ch. 9; Rocchio 1971)
  good only      engine.search(good): seen from the middle of the archive
  good and bad   engine.search(good, unlike=bad): what the engine does with marks
  whitened       the same, in the metric of the archive's covariance (exemplar LDA: Hariharan et al. 2012)
"""
import logging
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, report
from retrieval import labelled_windows

from search_sdo.models.trained import SETS, build_package
from search_sdo.packager.tiles import ROTATION
from search_sdo.search.embed import normalise
from search_sdo.search.engine import SearchEngine
from search_sdo.search.query import direction


def tile_labels(engine, data):
    "Weak label of each tile of the engine, that of the labelled window whose middle is within half a window; '' where there is none"
    from scipy.spatial import cKDTree
    windows, table = labelled_windows(data, "aia171", engine.package), engine.tiles.table
    labels, middle = np.full(len(table), "", object), (table["size"] * table.scale - 1) / 2
    for frame, known in windows.groupby("frame"):
        rows = np.flatnonzero(table.frame == frame)
        if not len(rows):
            continue
        away, which = cKDTree(known[["x", "y"]]).query(np.c_[table.col.iloc[rows] + middle.iloc[rows], table.row.iloc[rows] + middle.iloc[rows]])
        labels[rows] = np.where(away <= 34, known.label.to_numpy()[which], "")
    return labels.astype(str)


def whitened(good, bad, middle, vectors, ridge=1.0):
    "The engine's direction times the inverse of the archive's covariance, shrunk"
    spread = np.cov((vectors - middle).T)
    leave = (middle + 2 * bad.mean(0)) / 3 if len(bad) else middle
    return np.linalg.solve(spread + ridge * np.trace(spread) / len(spread) * np.eye(len(spread)), good.mean(0) - leave)


def marks(engine, labels, question, gallery, n=3, depth=200):
    "Tiles that somebody marks good and bad among the best answers"
    _, ids = engine.index.search(engine.embeddings.vectors[question], depth, gallery)
    right = labels[ids[0]] == labels[question]
    return ids[0][right][:n], ids[0][~right][:n]


def ways(engine, question, good, bad, sample):
    "name -> vector to search with"
    v, middle = normalise(engine.embeddings.vectors), engine.middle
    wanted, unwanted = np.vstack([v[[question]], v[good]]), v[bad]
    rocchio = v[question] + .75 * (v[good].mean(0) if len(good) else 0) - .15 * (unwanted.mean(0) if len(bad) else 0)
    return {"one tile": v[question], "mean": wanted.mean(0), "Rocchio": rocchio, "good only": direction(wanted, None, middle),
            "good and bad": direction(wanted, unwanted if len(bad) else None, middle), "whitened": whitened(wanted, unwanted, middle, sample)}


def scores(engine, labels, per_class, seed=0):
    "One row per class: questions, marks, precision@20 of each way"
    times, dice, rows = engine.tiles.table.time, np.random.default_rng(seed), []
    known, split = labels != "", pd.Timestamp(SETS["aia171"]["split"])
    gallery = known & (times < split - pd.Timedelta(days=ROTATION)).to_numpy()
    engine.embeddings.vectors = np.asarray(engine.embeddings.vectors, np.float32)
    sample = normalise(engine.embeddings.vectors[dice.permutation(len(engine))[:5000]])
    for kind in sorted(set(labels[gallery])):
        asked = dice.permutation(np.flatnonzero((labels == kind) & (times >= split).to_numpy()))[:per_class]
        found, given = {}, []
        for question in asked:
            good, bad = marks(engine, labels, question, gallery)
            keep = gallery.copy()
            keep[[*good, *bad]] = False
            given.append((len(good), len(bad)))
            for way, vector in ways(engine, question, good, bad, sample).items():
                _, ids = engine.index.search(vector, 20, keep)
                found.setdefault(way, []).append((labels[ids[0]] == kind).mean())
        share = (labels[gallery] == kind).mean()
        rows.append(dict(kind=kind, questions=len(asked), good=float(np.mean(given, 0)[0]), bad=float(np.mean(given, 0)[1]), chance=float(share), **{w: float(np.mean(p)) for w, p in found.items()}))
    return rows


def main():
    args = arguments(__doc__, keep=dict(type=Path, help="keep package and engine in this folder, and use those that are there"),
                     engine=dict(type=Path, help="a ready engine of AIA 171; nothing is written into it"))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        work = args.keep or Path(work)
        if args.engine:
            engine = SearchEngine.open(args.engine)
        else:
            engine = SearchEngine.build(build_package("aia171", args.data, work / "aia171"), "aia171", work / "engine171")
        rows = scores(engine, tile_labels(engine, args.data), 15 if args.quick else 120)
    report(args, "AIA 171: precision@20 after three good and three bad marks", rows)
    hardest = min(rows, key=lambda row: row["one tile"])
    gain = hardest["good and bad"] - hardest["one tile"]
    print(f"\nhardest class {hardest['kind']}: {hardest['one tile']:.3f} before, {hardest['good and bad']:.3f} after marks: +{gain:.3f} (bar +.15); Rocchio {hardest['Rocchio'] - hardest['one tile']:+.3f}")


if __name__ == "__main__":
    main()
