"""Retrieval on the real Sun: do neighbours in the embedding show the same kind of thing, years later?

    python bench/retrieval.py [--data FOLDER] [--quick] [--json FILE] [--epochs N] [--keep FOLDER]

Queries are tiles of frames from 2015 on, the gallery holds tiles of earlier frames, at most 400 tiles a class in
each (weak labels of `aia171/tiles64.csv.gz`, noisy near the limb). The score is precision@10 per class, and its
mean over classes: by cosine for networks, as the engine searches, and by cosine or standardised Euclidean distance,
whichever is kinder, for trivial descriptions. The encoder learns without labels from frames before 2015. Beside it:
trivial descriptions, the untrained network, and the same network trained with the gallery's labels, as the
ceiling that these labels allow.
"""
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import arguments, report

from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.evaluate import histogram_features, mean_std, pca_features, pixel_features, precision_at_k
from search_sdo.models.train import train, warmup_cosine
from search_sdo.models.views import load_frames, sample, two_views, view_matrix
from search_sdo.packager.package import Package

SPLIT, SIZE, TILE = pd.Timestamp("2015-01-01"), 2048, 64


def labelled_tiles(data, package, per_class, seed=0):
    "Labelled 64 px windows of the source pictures, as places in the package's frames; balanced in each part"
    table = pd.read_csv(data / "aia171/tiles64.csv.gz").rename(columns={"frame": "file"})
    table = table.merge(package.catalogue.assign(file=package.catalogue.source.map(lambda s: Path(s).name)), on="file")
    table["zoom"] = package.disk.radius / table.source_radius
    table["x"] = package.disk.x + (table.col + 31.5 - table.source_x) * table.zoom
    table["y"] = package.disk.y + (table.row + 31.5 - table.source_y) * table.zoom
    table["part"] = np.where(table.time >= SPLIT, "query", "gallery")
    picks = [group.sample(min(per_class, len(group)), random_state=seed) for _, group in table.groupby(["part", "label"])]
    return pd.concat(picks, ignore_index=True)


def look(frames, table):
    "The labelled windows themselves, unturned: [n, 1, 64, 64], stretched"
    places, n = torch.tensor(table[["frame", "y", "x"]].to_numpy(), dtype=torch.float32), len(table)
    matrices = view_matrix(places, torch.zeros(n), torch.tensor(table.zoom.to_numpy(), dtype=torch.float32), torch.zeros(n, 2), torch.ones(n))
    return sample(frames, places[:, 0].long(), matrices, TILE)


@torch.no_grad()
def features(backbone, images):
    "Float32 [n, D] features in evaluation mode"
    return torch.cat([backbone.eval()(part) for part in images.split(512)]).numpy()


def supervised(frames, table, steps, seed=0):
    "The same backbone, trained to name the gallery's classes from the same kind of views"
    torch.manual_seed(seed)
    backbone = make_backbone()
    network = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.dim, table.label.nunique())).train()
    places = torch.tensor(table[["frame", "y", "x"]].to_numpy(), dtype=torch.float32)
    codes = torch.tensor(table.label.factorize()[0])
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * warmup_cosine(step, steps)
        pick = torch.randint(len(places), (128,))
        views = torch.cat(two_views(frames, places[pick], TILE, wander=0.05))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(views), codes[pick].repeat(2)).backward()
        optimiser.step()
    return backbone


def precision(values, gallery, labels, metric):
    "Precision@10 per class; Euclidean distances on features standardised over the gallery"
    if metric == "euclidean":
        values = (values - values[gallery].mean(0)) / (values[gallery].std(0) + 1e-8)
    return dict(precision_at_k(values[~gallery], values[gallery], labels[~gallery], labels[gallery], k=10, metric=metric).precision.astype(float))


def best(*scores):
    "The kinder of two metrics, so that no baseline loses by the choice"
    return max(scores, key=lambda s: s["macro"])


def main():
    args = arguments(__doc__, epochs=dict(type=int, default=None, help="passes over all places (default 3; 1 with --quick)"),
                     keep=dict(type=Path, help="keep package and encoder in this folder, and use those that are there"))
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    epochs = args.epochs or (1 if args.quick else 3)
    with tempfile.TemporaryDirectory() as work:
        work = args.keep or Path(work)
        package = Package.build(args.data / "aia171", work / "package", SIZE)
        start = time.perf_counter()
        if not (work / "encoder/encoder.json").exists():
            train(package, work / "encoder", epochs=epochs, tile=TILE, before=SPLIT, progress=False)
        minutes, encoder = (time.perf_counter() - start) / 60, Encoder.load(work / "encoder")
        frames = load_frames(package)
    table = labelled_tiles(args.data, package, 60 if args.quick else 400)
    images = look(frames, table)
    flat = images[:, 0].numpy()
    gallery = (table.part == "gallery").to_numpy()
    ceiling = supervised(frames, table[gallery], 20 if args.quick else 600)
    torch.manual_seed(0)
    baselines = {"16x16 pixels": pixel_features(flat), "mean and std": mean_std(flat), "histogram": histogram_features(flat), "PCA": pca_features(flat[gallery], flat)}
    networks = {"untrained network": make_backbone(), "SimCLR, no labels": encoder.backbone, "supervised (ceiling)": ceiling}
    score = lambda values, metric: precision(values, gallery, table.label, metric)
    rows = [dict(way=name, **best(score(v, "cosine"), score(v, "euclidean"))) for name, v in baselines.items()]
    rows += [dict(way=name, **score(features(net, images), "cosine")) for name, net in networks.items()]
    counts = table.groupby(["part", "label"]).size().unstack()
    report(args, f"Precision@10, queries from {SPLIT:%Y} on, gallery before; {encoder.meta.get('training', {}).get('epochs')} epochs, trained for {minutes:.1f} minutes in this run", rows)
    print(f"\n{counts.to_string()}")


if __name__ == "__main__":
    main()
