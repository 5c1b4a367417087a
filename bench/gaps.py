"""Filling gaps in real AIA 171: how wrong, and how fast.

    python bench/gaps.py [--data FOLDER] [--quick] [--json FILE]

Super-images of 3 x 3 tiles of 64 px (128 px of the 4096 px disk), wholly on the disk, cut from the frames of `aia171`
on the grid of 64 px; of the eight neighbours of the middle tile exactly three are hidden at random (fixed seed).
Values are grey / 255 and so on a scale of 0..1; an error of 3.8 (percent) is 0.038 on it. Nothing is fitted but one number, the
power of the variogram: it is measured here on frames before 2015, and the library's default is its rounded value.

"20 sweeps, plain" is what SEARCH did in 2023, written from its description: one image at a time in NumPy; in each of
20 rounds each missing tile becomes the mean of the pixel just outside above, below, left and right of it, with
weights 1 / (0.001 + distance); beyond the super-image stands the median of the middle tile. Whole tiles are computed
at once, not pixel by pixel. "plain" computes in float64, as NumPy does unless told otherwise, and the weights for each
tile anew; "lean" computes in float32 and the weights once per image.
(The original took 83 to 147 ms for one colour super-image of 384 px, with reading its nine files: 12 times the numbers.)
"iterative" is the library's, on the whole batch. "edge of the middle tile" is SEARCH's Nearest.
Times are medians per super-image, of batches of 1,000 for "kriged" (on all cores) and of 60 for the others, taken in
turn; "kriged, first call" also computes the weights of the 56 hole shapes, which are kept.
"""
from functools import partial

import numpy as np
import pandas as pd
from measure import arguments, median_seconds, report

from search_sdo.packager.frame import read_image
from search_sdo.packager.gaps import FILLS, POWER, fill_kriged, hole_weights, missing_blocks, missing_pixels, missing_tiles, numbered_weights, variogram

BAD = "20110823", "20110924", "20120708"  # smeared and off-pointed, short exposures
SIDE = 64


def super_images(folder, years, per_frame, seed):
    "float32 [N, 192, 192], 0..1: at most `per_frame` from each frame of the years, all nine tiles on the disk"
    table, dice, found = pd.read_csv(folder / "frames.csv"), np.random.default_rng(seed), []
    for row in table.itertuples():
        if int(row.frame[:4]) not in years or row.frame.startswith(BAD):
            continue
        corner = np.stack(np.meshgrid(*2 * [np.arange(0, 2048 - 3 * SIDE + 1, SIDE)]), -1).reshape(-1, 2)
        ends = corner[:, :, None] + np.array([0, 3 * SIDE - 1]) - 1023.5
        on_disk = corner[np.hypot(abs(ends[:, 0]).max(1), abs(ends[:, 1]).max(1)) <= row.rsun_px]
        image = read_image(folder / row.frame) / 255
        found += [image[r:r + 3 * SIDE, c:c + 3 * SIDE] for r, c in dice.permutation(on_disk)[:per_frame]]
    return np.stack(found).astype(np.float32)


def sides(distance):
    "Weights of the four sides for a tile: up, down, left, right; [t, 1], [t, 1], [1, t], [1, t]"
    near = 1 / (.001 + distance)
    return near[:, None], near[::-1, None], near[None], near[None, ::-1]


def sweeps(image, hole, lean):
    "20 sweeps over the missing tiles (bool [3, 3]) of one super-image"
    image = image if lean else image.astype(float)
    wide = np.pad(image, 1, constant_values=np.median(image[SIDE:2 * SIDE, SIDE:2 * SIDE]))
    missing = np.argwhere(hole) * SIDE
    for r, c in missing:
        wide[r + 1:r + SIDE + 1, c + 1:c + SIDE + 1] = 0
    rows, cols = np.mgrid[1:SIDE + 1, 1:SIDE + 1]
    up, down, left, right = sides(np.arange(1, SIDE + 1, dtype=np.float32))
    total = up + down + left + right
    for _ in range(20):
        for r, c in missing:
            box = wide[r:r + SIDE + 2, c:c + SIDE + 2]
            if lean:
                inside = (up * box[:1, 1:-1] + down * box[-1:, 1:-1] + left * box[1:-1, :1] + right * box[1:-1, -1:]) / total
            else:
                weights = [1 / (.001 + d) for d in (rows, SIDE + 1 - rows, cols, SIDE + 1 - cols)]
                values = box[:1, 1:-1], box[-1:, 1:-1], box[1:-1, :1], box[1:-1, -1:]
                inside = sum(w * v for w, v in zip(weights, values)) / sum(weights)
            box[1:-1, 1:-1] = inside
    return wide[1:-1, 1:-1]


def one_by_one(images, lean=False):
    "`sweeps` of each image; NaN where missing"
    holes = np.isnan(images[:, SIDE // 2::SIDE, SIDE // 2::SIDE])
    return np.stack([sweeps(image, hole, lean) for image, hole in zip(images, holes)])


def middle_edge(images):
    return np.pad(images[:, SIDE:2 * SIDE, SIDE:2 * SIDE], ((0, 0), (SIDE, SIDE), (SIDE, SIDE)), mode="edge")


def wrong(images, mask, function):
    "Mean absolute error and bias over the hidden pixels, percent of the scale"
    error = (function(np.where(mask, np.float32(np.nan), images)) - images)[mask]
    return 100 * float(abs(error).mean()), 100 * float(error.mean())


def main():
    args = arguments(__doc__)
    before = super_images(args.data / "aia171", range(2010, 2015), 2 if args.quick else 16, seed=1)
    after = super_images(args.data / "aia171", range(2015, 2030), 1 if args.quick else 8, seed=2)
    steps = np.array([4, 6, 8, 12, 16, 24, 32, 48, 64, 96])
    power = np.polyfit(np.log(steps), np.log(variogram(before, steps)), 1)[0]
    tiles, tiles_before = missing_tiles(after.shape, seed=3), missing_tiles(before.shape, seed=4)
    some = after[::12]
    pixels, blocks = missing_pixels(some.shape, seed=5), missing_blocks(some.shape, 6, 16, seed=6)
    timed = np.concatenate([after, before])[:200 if args.quick else 1000]
    timed = np.where(missing_tiles(timed.shape, seed=7), np.float32(np.nan), timed)

    methods = {"edge of the middle tile": middle_edge, "20 sweeps, plain": one_by_one, "20 sweeps, lean": lambda x: one_by_one(x, lean=True), **FILLS}
    rows, batch = [], lambda name: timed if name == "kriged" else timed[:60]
    fill_kriged(timed)
    seconds = median_seconds(3 if args.quick else 9, **{name: partial(f, batch(name)) for name, f in methods.items() if name != "biharmonic"})
    seconds = {name: s / len(batch(name)) for name, s in seconds.items()}
    hole_weights.cache_clear()
    numbered_weights.cache_clear()
    seconds["kriged, first call"] = median_seconds(1, f=lambda: fill_kriged(timed))["f"] / len(timed)
    for name, f in (methods | {"kriged, first call": fill_kriged}).items():
        tile_shaped = name.startswith(("edge", "20"))
        mae, bias = (np.nan, np.nan) if name == "biharmonic" else wrong(after, tiles, f)
        rows.append({"fill": name, "tiles 2015-": mae, "tiles -2014": np.nan if name == "biharmonic" else wrong(before, tiles_before, f)[0], "bias": bias,
                     "pixels": np.nan if tile_shaped else wrong(some, pixels, f)[0], "blocks": np.nan if tile_shaped else wrong(some, blocks, f)[0],
                     "ms": 1e3 * seconds.get(name, np.nan), "x faster": seconds["20 sweeps, plain"] / seconds.get(name, np.nan)})
    report(args, f"Mean absolute error in percent of the scale: 3 of 8 neighbour tiles ({len(after)} super-images from 2015 on, {len(before)} before), 10 % of pixels, 6 blocks of 16 px\n"
                 f"power of the variogram before 2015: {power:.2f} (the library takes {POWER})", rows)


if __name__ == "__main__":
    main()
