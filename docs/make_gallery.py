"""Pictures of real results for the gallery: docs/gallery/*.jpg, from the observations in ../shared/data.

    python docs/make_gallery.py [--data FOLDER] [--keep FOLDER]

Every question is a place on the real Sun that somebody else named (NOAA's list, or a box drawn by people), chosen by a rule
and not for its answers: the largest active region near the middle of the disk, the largest coronal hole, and so on.
`--keep` holds the engines between two runs. The text is in docs/gallery.md.
"""
import argparse
import logging
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

from search_sdo.packager.calibrate import harmonise
from search_sdo.packager.channels import stretch
from search_sdo.packager.frame import read_frame
from search_sdo.packager.gaps import fill, missing_blocks, show_fills
from search_sdo.packager.package import Package
from search_sdo.search.engine import SearchEngine

HERE = Path(__file__).parent
SETS = {"aia171": ("aia171/*.jpg", 2048, (1, 2, 4)), "aia193": ("deepsdo/images/*AIA_193*.jpg", 512, (1, 2)), "aia304": ("deepsdo/images/*AIA_304*.jpg", 512, (1,))}


def engine_of(name, data, folder):
    "The engine of one of the encoders that come with the library, over the frames it may be asked about"
    files, size, scales = SETS[name]
    if (folder / name / "engine.json").exists():
        return SearchEngine.open(folder / name)
    package = Package.build(sorted(data.glob(files)), folder / f"{name}-package", size)
    return SearchEngine.build(package, name, folder / name, size=64, stride=32, scales=scales)


def largest(table, kind=None):
    "The row of the largest active region near the middle of the disk, or of the largest box of a kind"
    if kind is None:
        return table.loc[table[table.mu > .8].area_msh.idxmax()]
    table = table[table.kind.eq(kind) & table.x0.notna()]
    return table.loc[((table.x1 - table.x0) * (table.y1 - table.y0)).idxmax()]


def box_at(x, y, half):
    return x - half, y - half, x + half, y + half


def keep(figure, name):
    "As a picture small enough for a page"
    out = HERE / "gallery" / f"{name}.jpg"
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=110, bbox_inches="tight", pil_kwargs=dict(quality=82))
    plt.close(figure)
    print(f"{out.name}: {out.stat().st_size / 1e3:.0f} kB")


def active_regions(data, folder):
    "One tile, all scales of the cycle, why, and a box of any size, with AIA 171"
    engine = engine_of("aia171", data, folder)
    regions = pd.read_csv(data / "aia171/regions.csv")
    known = set(Path(p).name for p in engine.package.catalogue.source)
    one = largest(regions[regions.frame.isin(known)])
    path = data / "aia171" / one.frame
    hits = engine.search(path, box=box_at(one.x_px, one.y_px, 32), k=8, exclude_within="27 days", spread="27 days", where="scale == 1")
    keep(hits.show(), "active_region")
    keep(hits.show_why(), "why")
    wide = box_at(one.x_px, one.y_px, 110)
    keep(engine.search_region(path, wide, k=7, exclude_within="27 days", spread="27 days").show(), "regions")
    print(f"NOAA {one.noaa_ar} of {one.date}, {one.area_msh:.0f} millionths")
    return engine


def atlas(engine):
    "Every tile of the archive, similar ones together; a tile that lies there stands for each part of the map"
    keep(engine.atlas(sample=5000, seed=0).show(), "atlas")


def boxes(data, folder, name, kind, **more):
    "The largest box of a kind that people drew, and what is like it on other dates"
    engine = engine_of(name, data, folder)
    drawn = pd.read_csv(data / "deepsdo/regions.csv")
    one = largest(drawn, kind)
    keep(engine.search_region(data / "deepsdo/images" / one.file, tuple(one[["x0", "y0", "x1", "y1"]]), k=7, exclude_within="27 days", **more).show(), kind)


def gaps(data):
    "Blocks that the telemetry lost, on a real frame"
    frame = harmonise(read_frame(data / "aia171/20140409_000001_aia_171.jpg"), 1024)
    image = stretch(frame.data, frame.channel, frame.unit)[600:856, 300:556]
    lost = missing_blocks(image.shape, seed=0)
    keep(show_fills(image, lost, {"ours": fill}), "gaps")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--keep", type=Path, default=None)
    args = parser.parse_args()
    matplotlib.use("agg")
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or Path(folder)
        atlas(active_regions(args.data, folder))
        gaps(args.data)
        boxes(args.data, folder, "aia193", "coronal_hole")
        boxes(args.data, folder, "aia304", "prominence")


if __name__ == "__main__":
    main()
