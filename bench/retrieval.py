"""Retrieval on the real Sun: do neighbours in the embedding show the same kind of thing, years later, and the same region, days later?

    python bench/retrieval.py [--data FOLDER] [--quick] [--json FILE] [--only SET ...] [--keep FOLDER] [--search STEPS]

For each set (`aia171` of one solar cycle; 193, 304 and the HMI continuum of `deepsdo`): labelled 64 px windows, at most
400 a class on either side; the gallery is earlier than SPLIT by a solar rotation or more, the queries are later. Labels
are weak, and noisy near the limb.

  macro      precision@10, mean over classes; by cosine for networks, as the engine searches, and by cosine or standardised
             Euclidean distance, whichever is kinder, for trivial descriptions
  matched    the same, but all answers are about as bright as the query (`matched_precision`)
  region     mean average precision of finding the same NOAA region on another calendar day, among all windows with a region
  later      the same for queries after SPLIT: regions that no network has seen

Ours are the encoders that ship with the library; they learned without labels from the gallery's side of SPLIT alone.
Beside them, in this run: trivial descriptions, the untrained network, the same network trained with the gallery's labels
(the ceiling that these labels allow), and the way of SEARCH (2023): SimSiam on a ResNet-18 with its augmentations and its
filled super-images, trained on the same frames for --search steps.
"""
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import arguments, report

from search_sdo.models.baselines import trivial_features
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.evaluate import compare, region_retrieval, standardise
from search_sdo.models.simsiam import SimSiam
from search_sdo.models.train import warmup_cosine
from search_sdo.models.trained import SETS, build_package, write_card
from search_sdo.models.views import Recipe, load_frames, sample, two_views, view_matrix
from search_sdo.packager.gaps import fill

TILE = 64


def labelled_windows(data, name, package):
    "All labelled windows of the source pictures, as places in the package's frames"
    recipe = SETS[name]
    table = pd.read_csv(data / recipe["labels"]).rename(columns={"frame": "file", "row": "y0", "col": "x0"})
    catalogue = package.catalogue.assign(file=package.catalogue.source.map(lambda s: Path(s).name)).drop(columns="channel")
    table = table.merge(catalogue, on="file")
    table["zoom"] = package.disk.radius / table.source_radius
    table["x"] = package.disk.x + (table.x0 + 31.5 - table.source_x) * table.zoom
    table["y"] = package.disk.y + (table.y0 + 31.5 - table.source_y) * table.zoom
    table["part"] = np.select([table.time >= pd.Timestamp(recipe["split"]), table.time < pd.Timestamp(recipe["before"])], ["query", "gallery"], "gap")
    return table


def balanced(table, per_class, seed=0):
    "At most so many windows of each class on either side of the split"
    table = table[table.part != "gap"]
    return pd.concat([group.sample(min(per_class, len(group)), random_state=seed) for _, group in table.groupby(["part", "label"])])


def look(frames, table):
    "The labelled windows themselves, unturned: [n, 1, 64, 64], stretched"
    places, n = torch.tensor(table[["frame", "y", "x"]].to_numpy(), dtype=torch.float32), len(table)
    matrices = view_matrix(places, torch.zeros(n), torch.tensor(table.zoom.to_numpy(), dtype=torch.float32), torch.zeros(n, 2), torch.ones(n))
    return sample(frames, places[:, 0].long(), matrices, TILE)


@torch.no_grad()
def features(backbone, images):
    "Float32 [n, D] features in evaluation mode"
    return torch.cat([backbone.eval()(part) for part in images.split(512)]).numpy()


def supervised(frames, table, config, recipe, steps, seed=0):
    "The same backbone, trained to name the gallery's classes from gently changed views"
    torch.manual_seed(seed)
    backbone = make_backbone(**config)
    network = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.dim, table.label.nunique())).train()
    places = torch.tensor(table[["frame", "y", "x"]].to_numpy(), dtype=torch.float32)
    codes = torch.tensor(table.label.factorize()[0])
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * warmup_cosine(step, steps)
        pick = torch.randint(len(places), (128,))
        views = torch.cat(two_views(frames, places[pick], TILE, recipe, wander=0.05))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(views), codes[pick].repeat(2)).backward()
        optimiser.step()
    return backbone


# The way of SEARCH (2023), written from its description


def search_view(image, dice):
    "One random view: some of its seven changes in random order, on the stitched 192 px, then the middle 64 px"
    import cv2

    changes = dict(
        rotate=lambda x: cv2.warpAffine(x, cv2.getRotationMatrix2D((95.5, 95.5), dice.uniform(-180, 180), 1), (192, 192)),
        zoom=lambda x: cv2.warpAffine(x, cv2.getRotationMatrix2D((95.5, 95.5), 0, dice.uniform(.8, 1.2)), (192, 192)),
        translate=lambda x: cv2.warpAffine(x, np.float32([[1, 0, dice.integers(-10, 11)], [0, 1, dice.integers(-10, 11)]]), (192, 192)),
        brighten=lambda x: np.abs(x) ** dice.uniform(.5, 1.5), blur=lambda x: cv2.blur(x, (2, 2)),
        h_flip=lambda x: x[:, ::-1], v_flip=lambda x: x[::-1])
    for name in dice.permutation(list(changes))[:dice.integers(1, len(changes) + 1)]:
        image = np.ascontiguousarray(changes[name](image), dtype=np.float32)
    return image[TILE:2 * TILE, TILE:2 * TILE]


def super_images(frames, tiles, known):
    "Tiles with their eight neighbours, stitched from those `known`; what is missing is filled by 20 sweeps: float32 [n, 192, 192]"
    stitched = np.stack([frames[f, 0, r - TILE:r + 2 * TILE, c - TILE:c + 2 * TILE].numpy() for f, r, c in tiles])
    for image, (f, r, c) in zip(stitched, tiles):
        for i in range(3):
            for j in range(3):
                if (f, r + (i - 1) * TILE, c + (j - 1) * TILE) not in known:
                    image[i * TILE:(i + 1) * TILE, j * TILE:(j + 1) * TILE] = np.nan
    return fill(stitched, method="iterative")


def trained_as_search(frames, disk, steps, seed=0):
    "SimSiam on a ResNet-18 from scratch: tiles of a fixed grid, four fifths of them at random, SGD without momentum"
    dice, size = np.random.default_rng(seed), frames.shape[2]
    grid = [(f, r, c) for f in range(len(frames)) for r in range(TILE, size - 2 * TILE + 1, TILE) for c in range(TILE, size - 2 * TILE + 1, TILE)
            if max(abs(r + 31.5 - disk.y), abs(c + 31.5 - disk.x)) < 1.1 * disk.radius]
    known = {grid[i] for i in dice.permutation(len(grid))[:int(.8 * len(grid))]}
    tiles = sorted(known)
    torch.manual_seed(seed)
    method = SimSiam(make_backbone("resnet18"), dim_projection=512, dim_hidden=128).train()
    optimiser = torch.optim.SGD(method.parameters(), .05 * 64 / 256)
    for step in range(steps):
        images = super_images(frames, [tiles[i] for i in dice.integers(len(tiles), size=64)], known)
        views = [torch.from_numpy(np.stack([search_view(image, dice) for image in images]))[:, None] for _ in range(2)]
        optimiser.zero_grad()
        method.loss(*views).backward()
        optimiser.step()
    return method.backbone


# The table


def scores(args, name, work):
    "DataFrame: one row per way to describe the windows of a set"
    package = build_package(name, args.data, work / name)
    frames, encoder = load_frames(package), Encoder.load(name)
    every = labelled_windows(args.data, name, package)
    table = balanced(every, 60 if args.quick else 400)
    gallery = (table.part == "gallery").to_numpy()
    images, regions = look(frames, table), every[every.noaa_ar.notna()] if "noaa_ar" in every else every[:0]
    config = encoder.backbone.config
    torch.manual_seed(0)
    networks = {"untrained, same network": make_backbone(**config)}
    rows = np.flatnonzero((package.catalogue.time < pd.Timestamp(SETS[name]["before"])) & (package.catalogue.quality == ""))
    if args.search:
        networks[f"SEARCH's way, {64 * args.search:,} pairs"] = trained_as_search(frames[rows], package.disk, args.search)
    networks["ours, no labels"] = encoder.backbone
    gentle = Recipe() if name == "aia171" else Recipe(exposure=.15, contrast=1.5)
    networks["supervised (ceiling)"] = supervised(frames, table[gallery], config, gentle, 20 if args.quick else 900)
    flat = images[:, 0].numpy()
    ways = {way: (values, "best") for way, values in trivial_features(flat, gallery).items() if way != "untrained network"}
    ways |= {way: features(net, images) for way, net in networks.items()}
    result = compare(ways, table.label, gallery, values=flat.mean((1, 2)))
    if len(regions):
        windows, late = look(frames, regions), (regions.part == "query").to_numpy()
        own = {way: values for way, values in trivial_features(windows[:, 0].numpy()).items() if way != "untrained network"}
        ways = {way: ((values, "cosine"), (values, "euclidean"), (standardise(values, np.ones(len(values), bool)), "euclidean")) for way, values in own.items()}
        ways |= {way: ((features(net, windows), "cosine"),) for way, net in networks.items()}
        for column, asked in (("region", None), ("later", late)):
            result[column] = [max(region_retrieval(x, regions.noaa_ar, regions.time, "day", asked, metric)["map"] for x, metric in tried) for tried in ways.values()]
    return result.dropna(axis=1, how="all")


def main():
    args = arguments(__doc__, only=dict(nargs="+", choices=list(SETS), default=list(SETS), help="sets (default: all)"),
                     keep=dict(type=Path, help="keep packages in this folder, and use those that are there"),
                     search=dict(type=int, default=None, metavar="STEPS", help="steps of training SEARCH's way (default 400; 0 leaves it out)"),
                     card=dict(action="store_true", help="write the table into the cards of the encoders that ship"))
    if args.search is None:
        args.search = 10 if args.quick else 400
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        for name in args.only:
            start = time.perf_counter()
            result = scores(args, name, args.keep or Path(work))
            report(args, f"{name}: precision@10, queries from {SETS[name]['split']} on, gallery before {SETS[name]['before']}; {(time.perf_counter() - start) / 60:.0f} minutes",
                   [dict(way=way, **row) for way, row in result.round(3).to_dict("index").items()])
            bars(name, result)
            if args.card and not args.quick:
                write_card(name, result)


def bars(name, result):
    "How ours stands to the ceiling and to the best description without learning"
    ours, ceiling = result.loc["ours, no labels"], result.loc["supervised (ceiling)"]
    light, goal = result.loc[["16 x 16 pixels", "mean and std", "histogram", "PCA"]], dict(aia193=.70, aia304=.72, hmi_ic=.30)
    if "region" in result:
        print(f"{name}, same region: {ours.region:.3f} (bar {goal[name]:.2f}), {ours.later:.3f} for regions of later dates; best without learning {light.region.max():.3f}, {light.later.max():.3f}")
    for column in [c for c in ("macro", "matched") if c in result]:
        print(f"{name}, {column}: {ours[column] / ceiling[column]:.3f} x supervised (bar .97); {ours[column] - light[column].max():+.3f} over {light[column].idxmax()} (bar +.05);"
              f" {ours[column] - result[column]['ten textures']:+.3f} over ten textures")


if __name__ == "__main__":
    main()
