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

from search_sdo.models.baselines import histogram_features, mean_std, pca_features, pixel_features, texture_features
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.evaluate import compare, region_retrieval
from search_sdo.models.train import warmup_cosine
from search_sdo.models.trained import SETS, build_package
from search_sdo.models.views import Recipe, load_frames, sample, two_views, view_matrix

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
