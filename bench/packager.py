"""Packaging 111 real full disks at 1024 px, beside decoding their JPEGs alone.

    python bench/packager.py [--data FOLDER] [--quick] [--json FILE]

Decoding is Pillow's, one file after the other, and again on as many threads as packaging uses.
"""
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, median_seconds, report
from PIL import Image

from search_sdo.packager.package import Package


def decode(path):
    with Image.open(path) as image:
        np.asarray(image)


def main():
    args = arguments(__doc__)
    folder = args.data / "aia171"
    files = sorted(folder.glob("*.jpg"))[:24 if args.quick else None]
    logging.disable()
    pool, packages = ThreadPoolExecutor(os.cpu_count()), []
    with tempfile.TemporaryDirectory() as work:
        Package.build(files[:2], Path(work) / "warm up")
        seconds = median_seconds(1 if args.quick else 3,
                                 decode=lambda: [decode(f) for f in files],
                                 decode_threads=lambda: list(pool.map(decode, files)),
                                 package=lambda: packages.append(Package.build(files, Path(work) / str(len(packages)))))
        package = packages[-1]
        size = sum(f.stat().st_size for f in package.path.rglob("*") if f.is_file()) / 1e6
    report(args, f"Packaging {len(files)} frames of 2048 px at 1024 px: {len(package)} packaged, {len(package.skipped)} left out, {size:.0f} MB",
           [{"step": name, "seconds": s, "ms per frame": 1e3 * s / len(files), "ratio to decode": s / seconds["decode"]} for name, s in seconds.items()])

    truth = pd.read_csv(folder / "frames.csv").set_index("frame").rsun_px
    c = package.catalogue
    error = abs(c.source_radius.to_numpy() / truth[c.source.map(lambda s: Path(s).name)].to_numpy() - 1)
    print(f"\nradius within 0.5 % on {(error < 0.005).sum()} of {len(c)} frames, median error {100 * np.median(error):.3f} %")
    for row in c[c.quality != ""].itertuples():
        print(f"flagged: {Path(row.source).name}: {row.quality}")


if __name__ == "__main__":
    main()
