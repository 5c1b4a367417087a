"""Boxes drawn on the real Sun: do they find such regions on other dates, and better than one tile would?

    python bench/regions.py [--data FOLDER] [--quick] [--json FILE] [--only SET ...] [--boxes N] [--keep FOLDER]

Sets: `active regions` (AIA 171, 2010 to 2019, the frames of which NOAA's list is known: later ones have no truth), `coronal
holes` (AIA 193, boxes drawn by people on daily frames, 2010 to 2011), `hole masks` (AIA 193, eleven to fifteen frames of
2014 to 2019, masks: small), `sunspots` (HMI) and `prominences` (AIA 304), as extra rows.

Queries are boxes of the set; the archive is all frames more than a solar rotation (27 days) away from the query, one answer
a frame. Every way answers with boxes of the query's size, so that all have the same chance; one row lets single tiles
answer with their own box too. An answer is right

  centre     if its middle lies in a labelled box of that class, or the middle of such a box lies in it
  iou        if it shares more than .2 (intersection over union) with one

(`active regions`: NOAA gives points, the boxes around them are drawn by spot area. `hole masks`: an answer is right if
holes fill at least half the share of it that they fill of the query.) `chance` is the same for boxes of the same size
thrown on the disk of the archive's frames; `ceiling` is the share of the archive's frames that hold the class, at most 1.
The first rows know no embedding: the box with the most similar mean brightness, and the brightest or darkest box, which
ignores the query but for its size and knows the class's name.
"""
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, report
from PIL import Image

from search_sdo.models.encoder import Encoder
from search_sdo.packager.calibrate import bin_pixels, source_pixels
from search_sdo.packager.frame import Disk
from search_sdo.packager.package import Package
from search_sdo.packager.tiles import Tiles
from search_sdo.search.embed import Embeddings
from search_sdo.search.engine import SearchEngine
from search_sdo.search.index import Index
from search_sdo.search.regions import overlap, window_sums
from search_sdo.search.scales import layers_of, look, prepared, search_region, tile_scores, window_scores

GAP = "27 days"
SETS = {
    "active regions": dict(files="aia171/*.jpg", size=2048, encoder="aia171", scales=(1, 2, 4), extreme="brightest"),
    "coronal holes": dict(files="deepsdo/images/*AIA_193*.jpg", size=512, encoder="aia193", kind="coronal_hole", scales=(1, 2), extreme="darkest"),
    "hole masks": dict(files="coronal_holes/*aia_193.jpg", size=1024, encoder="aia193", scales=(1, 2, 4), extreme="darkest"),
    "sunspots": dict(files="deepsdo/images/*HMI_Ic*.jpg", size=512, encoder="hmi_ic", kind="sunspot", scales=(1, 2), extreme="darkest"),
    "prominences": dict(files="deepsdo/images/*AIA_304*.jpg", size=512, encoder="aia304", kind="prominence", scales=(1, 2), extreme="brightest"),
}


def build_engine(recipe, data, folder, every):
    "An engine at several scales, half overlapping; frames with large holes too, which quality control takes for black"
    package = Package.build(sorted(data.glob(recipe["files"]))[::every], folder / "package", recipe["size"])
    encoder = Encoder.load(recipe["encoder"])
    tiles = Tiles.grid(package, 64, 32, scales=recipe["scales"], flagged=recipe["files"].startswith("coronal"))
    embeddings = Embeddings.build(tiles, encoder, folder / "engine")
    return SearchEngine(package, encoder, embeddings, Index.build(embeddings.vectors[:1]))


# The truth: a table of boxes (frame, x0, y0, x1, y1 in px of the package), and which of them may ask


def in_package(table, package, columns):
    "Columns (x name, y name) of the pictures, carried over to the package's frames"
    c = package.catalogue.assign(file=package.catalogue.source.map(lambda s: Path(s).name))
    table = table.merge(c[["file", "frame", "time", "source_x", "source_y", "source_radius"]], on="file")
    for x, y in columns:
        table[x], table[y] = source_pixels(table[x], table[y], Disk(table.source_x, table.source_y, table.source_radius), package.disk)
    return table


def noaa_boxes(data, package):
    "Boxes around NOAA's regions by spot area, and the frames of which the list is known"
    known = pd.read_csv(data / "aia171/frames.csv").query("srs_available").frame
    table = pd.read_csv(data / "aia171/regions.csv").rename(columns=dict(frame="file"))
    table = in_package(table, package, [("x_px", "y_px")])
    half = package.disk.radius * np.clip(.16 + .012 * np.sqrt(table.area_msh.fillna(0)), .16, .45) / 2
    table = table.assign(x0=table.x_px - 1.25 * half, x1=table.x_px + 1.25 * half, y0=table.y_px - half, y1=table.y_px + half)
    frames = package.catalogue.frame[package.catalogue.source.map(lambda s: Path(s).name).isin(known)]
    return table.assign(asks=(table.mu > .5) & (table.area_msh > 0)), set(frames)


def drawn_boxes(data, package, kind):
    "Boxes of deepsdo drawn by people"
    table = pd.read_csv(data / "deepsdo/regions.csv").query("kind == @kind")[["file", "x0", "y0", "x1", "y1"]]
    table = in_package(table, package, [("x0", "y0"), ("x1", "y1")])
    inside = (table[["x0", "y0"]].min(axis=1) >= 0) & (table[["x1", "y1"]].max(axis=1) <= package.size)
    return table.assign(asks=inside), set(package.catalogue.frame)


def mask_boxes(data, package):
    "Boxes around the holes of the masks, and the masks in the package's shape"
    from scipy.ndimage import find_objects, label
    masks, rows = {}, []
    for i, c in package.catalogue.iterrows():
        mask = np.asarray(Image.open(data / "coronal_holes" / Path(c.source).name.replace("aia_193.jpg", "mask.png")).convert("L")) > 127
        grid = np.arange(package.size)
        x, y = source_pixels(grid[None] + 0. * grid[:, None], grid[:, None] + 0. * grid[None], package.disk, Disk(c.source_x, c.source_y, c.source_radius))
        inside = (x >= 0) & (y >= 0) & (x < mask.shape[1] - 1) & (y < mask.shape[0] - 1)
        masks[i] = np.where(inside, mask[np.clip(y.round().astype(int), 0, mask.shape[0] - 1), np.clip(x.round().astype(int), 0, mask.shape[1] - 1)], False)
        found, n = label(masks[i])
        for part, (ys, xs) in zip(range(1, n + 1), find_objects(found)):
            rows.append(dict(frame=i, time=c.time, x0=xs.start, x1=xs.stop, y0=ys.start, y1=ys.stop, asks=(found == part).sum() > .01 * np.pi * package.disk.radius ** 2))
    return pd.DataFrame(rows), set(package.catalogue.frame), masks


# Is an answer right?


def share(mask, box):
    x0, y0, x1, y1 = np.clip(np.round(box), 0, len(mask)).astype(int)
    return mask[y0:y1, x0:x1].mean() if x0 < x1 and y0 < y1 else 0.


def judge(truth, masks):
    "Function: (frame, box, query) -> right by centre, right by iou"
    boxes = {frame: group[["x0", "y0", "x1", "y1"]].to_numpy(float) for frame, group in truth.groupby("frame")}

    def right(frame, box, query):
        if masks:
            return (share(masks[frame], box) >= .5 * share(masks[query.frame], query[["x0", "y0", "x1", "y1"]].to_numpy(float)),) * 2
        known = boxes.get(frame, np.empty((0, 4)))
        within = lambda x, y, b: (b[..., 0] <= x) & (x <= b[..., 2]) & (b[..., 1] <= y) & (y <= b[..., 3])
        mine = within((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, known)
        theirs = within((known[:, 0] + known[:, 2]) / 2, (known[:, 1] + known[:, 3]) / 2, np.asarray(box))
        return bool((mine | theirs).any()), bool((overlap(np.asarray(box), known) > .2).any())
    return right


# Ways to answer: each returns [(frame, box)], best first, one a frame


def best_of_frames(scores, y, x, frames, width, height, may, k=10):
    flat = np.where(may[:, None], np.nan_to_num(scores, nan=-np.inf).reshape(len(frames), -1), -np.inf)
    peak = flat.argmax(axis=1)
    order = [f for f in np.argsort(-flat.max(axis=1))[:k] if np.isfinite(flat[f, peak[f]])]
    at = [(frames[f], x[peak[f] % len(x)], y[peak[f] // len(x)]) for f in order]
    return [(f, (a - width / 2, b - height / 2, a + width / 2, b + height / 2)) for f, a, b in at]


def by_tile(engine, layer, query, box, may):
    "Answers of the archive's tile nearest to the middle of the box: (of the query's size, of its own)"
    first = [int(a + round(((b + c - layer.side) / 2 - a) / layer.step) * layer.step) for a, b, c in ((layer.col, box[0], box[2]), (layer.row, box[1], box[3]))]
    tile = (first[0], first[1], first[0] + layer.side, first[1] + layer.side)
    vector = look(engine.package.frame(query.frame), tile, layer, engine.encoder)
    if not len(vector):
        return [], []
    scores = tile_scores(engine.embeddings.vectors, vector[0], layer.ids)
    _, y, x = window_scores(scores, layer, layer.side, layer.side)
    sides = ((box[2] - box[0], box[3] - box[1]), (layer.side, layer.side))
    return [best_of_frames(scores, y, x, layer.frames, w, h, may[layer.frames]) for w, h in sides]


def by_light(small, bin_, package, frames, box, may, extreme):
    "Answers by mean brightness: most similar, and brightest or darkest"
    rows, cols = (max(1, round((b - a) / bin_)) for a, b in ((box[1], box[3]), (box[0], box[2])))
    light = window_sums(small, rows, cols) / (rows * cols)
    y, x = ((np.arange(n) + m / 2) * bin_ for n, m in zip(light.shape[1:], (rows, cols)))
    near = np.hypot(x[None] - package.disk.x, y[:, None] - package.disk.y) < package.disk.radius * (.9 if extreme == "darkest" else 1)
    return light, y, x, near


def chance(right, query, frames, disk, width, height, dice, n=40):
    hits = []
    for frame in dice.choice(frames, n):
        angle, r = dice.uniform(0, 2 * np.pi), .95 * disk.radius * np.sqrt(dice.uniform())
        x, y = disk.x + r * np.cos(angle), disk.y + r * np.sin(angle)
        hits.append(right(frame, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), query))
    return np.mean(hits, axis=0)


def run_set(name, args, folder):
    recipe = SETS[name]
    every = 4 if args.quick and recipe["files"].startswith("deepsdo") else 1
    engine = build_engine(recipe, args.data, folder, every)
    package, masks = engine.package, None
    if name == "active regions":
        truth, known = noaa_boxes(args.data, package)
    elif name == "hole masks":
        truth, known, masks = mask_boxes(args.data, package)
    else:
        truth, known = drawn_boxes(args.data, package, recipe["kind"])
    layers, right, dice = layers_of(engine.tiles), judge(truth, masks), np.random.default_rng(0)
    frames = np.array(sorted(known & set(engine.tiles.table.frame)))
    engine.filter = lambda **rules: np.isin(engine.tiles.table.frame.to_numpy(), frames)
    asks = truth[truth.asks & truth.frame.isin(frames)]
    asks = asks.sample(min(len(asks), args.boxes or (20 if args.quick else 120)), random_state=1)
    bin_ = package.size // 64
    small = np.stack([np.nan_to_num(bin_pixels(package.read(f), bin_)) for f in frames])
    times, results, seconds = package.catalogue.time.to_numpy(), {}, []
    prepared(engine.embeddings)
    for _, query in asks.iterrows():
        box = query[["x0", "y0", "x1", "y1"]].to_numpy(float)
        width, height = box[2] - box[0], box[3] - box[1]
        may = np.abs(times - np.datetime64(query.time)) > pd.Timedelta(GAP).to_timedelta64()
        score = lambda answers: np.sum([right(f, b, query) for f, b in answers] or [(0, 0)], axis=0) / 10
        row = {"chance": chance(right, query, frames[may[frames]], package.disk, width, height, dice)}
        light, y, x, near = by_light(small, bin_, package, frames, box, may, recipe["extreme"])
        x0, y0, x1, y1 = np.clip(np.round(box), 0, package.size).astype(int)
        mean = np.nanmean(package.read(int(query.frame))[y0:y1, x0:x1])
        sign = -1 if recipe["extreme"] == "darkest" else 1
        for way, values in {"most similar mean brightness": -np.abs(light - mean), f"{recipe['extreme']} box": sign * light}.items():
            row[way] = score(best_of_frames(np.where(near, values, np.nan), y, x, frames, width, height, may[frames]))
        ok = np.zeros(len(package), bool)
        ok[frames] = may[frames]
        for layer in layers:
            same, own = by_tile(engine, layer, query, box, ok)
            row[f"nearest tile, scale {layer.scale}"], row[f"nearest tile, scale {layer.scale}, its own box"] = score(same), score(own)
        plain = search_region(engine, package.frame(int(query.frame)), np.clip(box, 0, package.size), k=10, exclude_within=GAP, rounds=0).table
        row["box, asked once"] = score(list(zip(plain.frame, plain[["x0", "y0", "x1", "y1"]].to_numpy())))
        start = time.perf_counter()
        hits = search_region(engine, package.frame(int(query.frame)), np.clip(box, 0, package.size), k=10, exclude_within=GAP).table
        seconds.append(time.perf_counter() - start)
        row["box (ours)"] = score(list(zip(hits.frame, hits[["x0", "y0", "x1", "y1"]].to_numpy())))
        for way, value in row.items():
            results.setdefault(way, []).append(value)
    holds = np.mean([f in set(truth.frame) for f in frames])
    table = [dict(way=way, centre=float(np.mean(v, axis=0)[0]), iou=float(np.mean(v, axis=0)[1]), spread=float(np.std(v, axis=0)[0] / np.sqrt(len(v)))) for way, v in results.items()]
    report(args, f"{name}: precision@10 of {len(asks)} boxes, {len(frames)} frames of which {holds:.0%} hold the class, other dates: more than {GAP}; "
           f"{np.median(seconds) * 1000:.0f} ms a search of {len(engine.tiles):,} tiles", table)
    scores = {row["way"]: row["centre"] for row in table}
    tile = max((w for w in scores if w.startswith("nearest tile")), key=scores.get)
    print(f"{name}: box {scores['box (ours)']:.3f} (bar .85); {scores['box (ours)'] - scores[tile]:+.3f} over the best single tile, {tile} (bar +.10)")


def main():
    args = arguments(__doc__, only=dict(nargs="+", choices=list(SETS), default=list(SETS), help="sets (default: all)"),
                     boxes=dict(type=int, metavar="N", help="boxes that ask (default: 120 a set, 20 with --quick)"),
                     keep=dict(type=Path, help="keep packages and engines in this folder, and use those that are there"))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        for name in args.only:
            run_set(name, args, (args.keep or Path(work)) / name.replace(" ", "_"))


if __name__ == "__main__":
    main()
