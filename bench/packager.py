"""The packager beside what it replaces: decoding alone, sunpy and aiapy, SDOML's chunks, one worker.

    python bench/packager.py [--only PART ...] [--data FOLDER] [--quick] [--json FILE]

Parts: decode, level1, tiles, dask, memory, quality. The level-1 file is made from a real 4096 px image (Helioviewer's
JPEG 2000 of AIA 193) and the header of a real level-1 file: shifted, scaled and turned as SDO's are, with photon noise.
"""
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, median_seconds, report
from PIL import Image

from search_sdo.packager.calibrate import Calibration, harmonise, source_pixels
from search_sdo.packager.channels import stretch
from search_sdo.packager.frame import Frame, fit_limb, read_frame
from search_sdo.packager.package import Package, create_array, open_array, store, verify

warnings.simplefilter("ignore")
PARTS = {}


def part(function):
    PARTS[function.__name__] = function
    return function


def pictures(args, quick=24):
    return sorted((args.data / "aia171").glob("*.jpg"))[:quick if args.quick else None]


def run(code, *words):
    "Standard output of Python code in a process of its own"
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True).stdout


@part
def decode(args, work):
    "Packaging real full disks at 1024 px, beside decoding their JPEGs"
    files, packages, pool = pictures(args), [], ThreadPoolExecutor(os.cpu_count())

    def read(path):
        with Image.open(path) as image:
            np.asarray(image)
    Package.build(files[:2], work / "warm up")
    seconds = median_seconds(1 if args.quick else 3, decode=lambda: [read(f) for f in files], decode_threads=lambda: list(pool.map(read, files)),
                             package=lambda: packages.append(Package.build(files, work / f"d{len(packages)}")))
    size = sum(f.stat().st_size for f in packages[-1].path.rglob("*") if f.is_file()) / 1e6
    report(args, f"Packaging {len(files)} frames of 2048 px at 1024 px: {len(packages[-1])} packaged, {len(packages[-1].skipped)} left out, {size:.0f} MB",
           [{"step": name, "seconds": s, "ms per frame": 1e3 * s / len(files), "ratio to decode": s / seconds["decode"]} for name, s in seconds.items()])
    truth, c = pd.read_csv(args.data / "aia171/frames.csv").set_index("frame").rsun_px, packages[-1].catalogue
    error = abs(c.source_radius.to_numpy() / truth[c.source.map(lambda s: Path(s).name)].to_numpy() - 1)
    print(f"\nradius within 0.5 % on {(error < 0.005).sum()} of {len(c)} frames, median error {100 * np.median(error):.3f} %")


def level1_file(args, work, minute=31):
    "A 4096 px RICE-compressed level-1 FITS file"
    import glymur
    from astropy.io import fits
    from scipy.ndimage import affine_transform
    path = work / f"aia.lev1_euv_12s.2013-06-24T17{minute:02d}30Z.193.image_lev1.fits"
    grey = glymur.Jp2k(args.data / "jp2/2013_06_24__17_31_30_84__SDO_AIA_AIA_193.jp2")[:][::-1].astype("f4")
    counts = np.exp(grey / 255 * np.log(15000 / 7)) * 7 - 7
    turn, scale, centre = np.radians(0.0579), 0.600714 / 0.6, np.array([2047.41, 2041.65])
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * scale
    image = affine_transform(counts, matrix, offset=np.array([2047.5, 2047.5]) - matrix @ centre, order=1)
    image = np.random.default_rng(0).poisson(image).clip(0, 16383).astype("i2")
    with fits.open(args.data / "fits/aia.lev1_euv_12s.2012-07-19T073001Z.193.image.fits") as units:
        header = fits.Header([c for c in units[1].header.cards if c.keyword not in ("COMMENT", "HISTORY", "", "CHECKSUM", "DATASUM") and not c.keyword.startswith("Z")])
    header.update({"DATE-OBS": f"2013-06-24T17:{minute:02d}:30.84", "T_OBS": f"2013-06-24T17:{minute:02d}:31.84", "T_REC": f"2013-06-24T17:{minute:02d}:30", "WAVELNTH": 193, "EXPTIME": 1.999637,
                   "CRPIX1": 2042.65, "CRPIX2": 2048.41, "CDELT1": 0.600714, "CDELT2": 0.600714, "CROTA2": 0.0579, "RSUN_OBS": 944.30828, "R_SUN": 944.30828 / 0.600714, "DSUN_OBS": 1.5202748e11,
                   "CRLN_OBS": 181.29062, "CRLT_OBS": 2.154088, "HGLT_OBS": 2.154088, "HGLN_OBS": 0.0, "CAR_ROT": 2138, "INST_ROT": 0.057789, "SAT_ROT": 8.1e-5, "IMSCL_MP": 0.600714,
                   "X0_MP": 2041.65, "Y0_MP": 2047.41, "DATAMIN": 0, "TOTVALS": 16777216, "DATAVALS": 16777216, "MISSVALS": 0})
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, header, compression_type="RICE_1", tile_shape=(1, 4096))]).writeto(path)
    return path


@part
def level1(args, work):
    "A level-1 file to a stored frame, beside reading it and beside sunpy and aiapy"
    from importlib.util import find_spec

    import aiapy.calibrate
    import astropy.units as u
    import sunpy.map
    from astropy.io import fits
    path = level1_file(args, work)
    create_array(work / "l1.zarr", 1024).resize((1, 1024, 1024))
    plain = Calibration(degradation=False)

    def read():
        with fits.open(path, memmap=False) as units:
            units[1].data

    def register(method):
        m = sunpy.map.Map(path)
        m = aiapy.calibrate.register(m, method=method)
        return m / m.exposure_time

    def shrink(method):
        return register(method).resample([1024, 1024] * u.pix)
    ours = lambda: store(path, work / "l1.zarr", 0, 1024, plain)
    ours()
    seconds = median_seconds(3 if args.quick else 7, read=read, ours=ours)
    seconds |= median_seconds(1 if args.quick else 3, **{f"sunpy_aiapy_{m}": lambda m=m: shrink(m) for m in ("scipy", "opencv") if m == "scipy" or find_spec("cv2")})
    report(args, "A 4096 px RICE-compressed level-1 FITS to a stored 1024 px frame",
           [{"way": k, "seconds": s, "x ours": s / seconds["ours"], "ours / it": seconds["ours"] / s} for k, s in seconds.items()])

    theirs = Frame.from_map(register("scipy").superpixel([4, 4] * u.pix, func=np.mean))
    mine = harmonise(read_frame(path), 1024, plain)
    y, x = np.indices(mine.shape)
    on = np.hypot(x - mine.disk.x, y - mine.disk.y) < 0.95 * mine.disk.radius
    from scipy.ndimage import map_coordinates
    columns, rows = source_pixels(x, y, mine.disk, theirs.disk)
    there = map_coordinates(theirs.data, [rows, columns], order=1)
    a, b = (fit_limb(np.nan_to_num(stretch(f.data, "193", a=0.005)), f.disk)[0] for f in (mine, theirs))
    zoom = mine.disk.radius / theirs.disk.radius
    print(f"\nagainst register and 4 x 4 means: median difference of DN/s {100 * np.median(mine.data[on] / there[on] - 1):+.3f} %, "
          f"limb centre {np.hypot((a.x - mine.disk.x) - (b.x - theirs.disk.x) * zoom, (a.y - mine.disk.y) - (b.y - theirs.disk.y) * zoom):.3f} px apart, radius {abs(a.radius - b.radius * zoom):.3f} px")


def bytes_read(function):
    "Bytes that this process asks its files for while `function` runs"
    count = lambda: int(Path("/proc/self/io").read_text().split()[1])
    before = count()
    function()
    return count() - before


@part
def tiles(args, work):
    "A random tile and a sequential read, beside SDOML's chunks and raw Zarr"
    import zarr
    package = Package.build(pictures(args), work / "tiles")
    n, size = len(package), 512
    small = np.stack([package.read(i)[::2, ::2] for i in range(n)])
    sdoml = zarr.create_array(work / "sdoml.zarr", shape=small.shape, chunks=(15, size, size), dtype="float32", zarr_format=2)
    sdoml[:] = small
    rng = np.random.default_rng(0)
    where = [(int(rng.integers(n)), int(rng.integers(size - 64)), int(rng.integers(size - 64))) for _ in range(20 if args.quick else 100)]
    ours = lambda: [package.read(i, 2 * r, 2 * c, 64) for i, r, c in where]
    theirs = lambda: [sdoml[i, r:r + 64, c:c + 64] for i, r, c in where[:10]]
    seconds = median_seconds(3, ours=ours, sdoml=theirs)
    each = {"ours": seconds["ours"] / len(where), "sdoml": seconds["sdoml"] / 10}
    read, chunk = bytes_read(ours) / len(where), bytes_read(theirs) / 10
    report(args, f"A random 64 px tile of {n} frames",
           [{"store": "ours, 64 px chunks in a shard a frame", "ms": 1e3 * each["ours"], "kB read": read / 1e3, "time ratio": 1.0, "bytes ratio": 1.0},
            {"store": "SDOML v2, chunks of 15 x 512 x 512", "ms": 1e3 * each["sdoml"], "kB read": chunk / 1e3, "time ratio": each["sdoml"] / each["ours"], "bytes ratio": chunk / read}])

    raw = open_array(package.path / "frames.zarr")
    plain = zarr.create_array(work / "plain.zarr", shape=raw.shape, chunks=(1, package.size, package.size), dtype="float32", compressors=None)
    plain[:] = raw[:]
    seconds = median_seconds(3, package=lambda: [package.read(i) for i in range(n)], same_array_raw=lambda: [raw[i] for i in range(n)], raw_zarr_frame_chunks=lambda: [plain[i] for i in range(n)])
    report(args, f"All {n} frames one after the other", [{"way": k, "seconds": s, "MB/s": raw.nbytes / 1e6 / s, "speed against package": seconds["package"] / s} for k, s in seconds.items()])


@part
def dask(args, work):
    "Packaging with one Dask worker and with two"
    from distributed import Client, LocalCluster
    files, seconds, digests = pictures(args), {}, {}
    for workers in (1, 2, 1, 2):
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
            Package.build(files[:2 * workers], work / f"warm{workers}{len(digests)}", client=client)
            start = time.perf_counter()
            package = Package.build(files, work / f"dask{workers}{len(digests)}", client=client)
            seconds.setdefault(workers, []).append(time.perf_counter() - start)
            digests[f"{workers}{len(digests)}"] = list(package.catalogue.sha256)
    best = {k: float(np.median(v)) for k, v in seconds.items()}
    report(args, f"Packaging {len(files)} frames with Dask", [{"workers": k, "seconds": s, "speed-up": best[1] / s} for k, s in best.items()])
    print(f"\nbyte-identical files of frames: {len(set(map(tuple, digests.values()))) == 1}")


MEMORY = """
import logging, re, sys
from search_sdo.packager.package import Package
logging.disable()
package = Package.build(sys.argv[1], sys.argv[2])
print(len(package), int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


@part
def memory(args, work):
    "Peak memory of a build, of few and of many frames"
    rows, source = [], pictures(args)
    for n in (10, 50) if args.quick else (50, 500):
        folder = work / f"m{n}"
        folder.mkdir()
        for i in range(n):
            shutil.copy(source[i % len(source)], folder / f"{pd.Timestamp('2012-01-01') + pd.Timedelta(hours=i):%Y%m%d_%H%M%S}_aia_171.jpg")
        frames, peak = run(MEMORY, folder, work / f"mp{n}").split()
        rows.append({"input": "JPEG, 2048 px", "frames": int(frames), "peak MB": float(peak)})
        shutil.rmtree(folder)
    folder = work / "fits"
    folder.mkdir()
    for minute in range(10, 14 if args.quick else 22):
        level1_file(args, folder, minute)
    frames, peak = run(MEMORY, folder, work / "mpf").split()
    report(args, "Peak memory of packaging on all cores", [*rows, {"input": "level-1 FITS, 4096 px", "frames": int(frames), "peak MB": float(peak)}])


@part
def quality(args, work):
    "Which frames are flagged"
    files = sorted((args.data / "aia171").glob("*.jpg"))
    package = Package.build(files, work / "quality")
    c = package.catalogue
    print(f"\nQuality: {(c.quality != '').sum()} of {len(c)} frames flagged; verify finds {len(verify(package))} problems")
    for row in c[c.quality != ""].itertuples():
        print(f"  {Path(row.source).name}: score {row.score:.1f}: {row.quality}")


def main():
    args = arguments(__doc__, only=dict(nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART"))
    logging.disable()
    for name in args.only:
        with tempfile.TemporaryDirectory() as work:
            PARTS[name](args, Path(work))


if __name__ == "__main__":
    main()
