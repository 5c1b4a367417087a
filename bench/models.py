"""Views, the input pipeline and the training step, beside those of others.

    python bench/models.py [--only PART ...] [--data FOLDER] [--quick] [--json FILE]

Parts
  views     views of 64 px per second. All: rotation by any angle, zoom by up to 1.25 either way, shift by up to a tenth,
            mirror, brightness, contrast, noise. "SEARCH, super-images" is what SEARCH did in 2023, written from its
            description: read the tile and its eight neighbours from JPEG files, stitch, then rotate, zoom, shift, mirror
            and relight the whole with OpenCV, one after the other, and cut out the middle (its fastest variant: without
            the 20 sweeps for missing neighbours). As it was: tiles of 128 px of a 4096 px disk, which show what 64 px of a
            2048 px disk show, in three channels and float64 (its own code took 16 ms a view); "lean" is the same on tiles
            of 64 px, one channel, float32. torchvision and kornia are given windows of 128 px that are cut already, in
            memory, which are wide enough for any turn; ours starts from whole frames. "kornia, one warp" goes around its
            augmentation classes: one `warp_affine` straight to 64 px.
  pipeline  pairs of views per second as a training loop receives them: ours from frames in memory, lightly's from the same
            frames as uint8 (tiles cut in memory, no files) through its SimCLR transform in two worker processes.
            Lightly's transform is the cheaper one: no noise, and its blur, grey and colour steps are turned off.
  step      a training step with views, projector, loss and optimiser, beside forward and backward of the bare backbone on a
            batch that is already there.
  end       pairs per second of whole training loops, same backbone and batch: ours, and one with lightly's data loader (two
            workers), projection head and NT-Xent loss; on a graphics card, both in bfloat16, where there is one.
  diverse   farthest-point sampling of 500 of 112,000 rows of 512 numbers, beside SEARCH's loop, which deletes each pick from
            its arrays, and the same loop made lean (one product per pick); "as defined" counts the picks that equal the plain
            definition in float64. Then what 500 picks of the labelled tiles of aia171 show: drawn at random, balanced by
            k-means, farthest; with all frames and without those that the package has flagged.
"""
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from measure import arguments, median_seconds, report

from search_sdo.models.baselines import histogram_features
from search_sdo.models.diverse import balance_kmeans
from search_sdo.models.encoder import make_backbone
from search_sdo.models.farthest import farthest_points
from search_sdo.models.simclr import SimCLR
from search_sdo.models.simsiam import SimSiam
from search_sdo.models.views import Recipe, load_frames, random_matrices, tile_places, two_views
from search_sdo.packager.frame import read_image
from search_sdo.packager.package import Package
from search_sdo.packager.tiles import Tiles

SIDE, WIDE, BATCH = 64, 128, 256


def frames_and_places(args, work):
    "Real AIA 171 in memory, and the middles of overlapping tiles"
    files = sorted((args.data / "aia171").glob("*.jpg"))[:8 if args.quick else 40]
    package = Package.build(files, work / "package")
    return load_frames(package), tile_places(Tiles.grid(package, SIDE, SIDE // 2).table)


def windows_of(frames, places, side):
    "Squares around places, cut from the frames: [B, 1, side, side]; near the edge, shifted inwards"
    corner = (places[:, 1:] - (side - 1) / 2).round().long().clamp(0, frames.shape[2] - side).tolist()
    return torch.stack([frames[int(f), :, y:y + side, x:x + side] for f, (y, x) in zip(places[:, 0], corner)])


# Views per second


def write_tiles(frames, folder, side):
    "Each frame cut into JPEG files, as SEARCH stored them"
    import cv2

    for f, frame in enumerate((255 * frames[:, 0]).to(torch.uint8).numpy()):
        for row in range(0, frame.shape[0], side):
            for col in range(0, frame.shape[1], side):
                cv2.imwrite(str(folder / f"{side}_{f}_{row}_{col}.jpg"), frame[row:row + side, col:col + side])


def super_image_view(folder, f, row, col, side, dice, flag, dtype):
    "One view as SEARCH made it: nine files, five passes over the stitched image, and a crop; [side, side] or [side, side, 3]"
    import cv2

    tiles = [[cv2.imread(str(folder / f"{side}_{f}_{row + i * side}_{col + j * side}.jpg"), flag) for j in (-1, 0, 1)] for i in (-1, 0, 1)]
    image = np.concatenate([np.concatenate(line, 1) for line in tiles]) / dtype(255)
    image = cv2.warpAffine(image, cv2.getRotationMatrix2D((1.5 * side, 1.5 * side), dice.uniform(-180, 180), 1), (3 * side, 3 * side))
    zoom = np.exp(dice.uniform(-1, 1) * np.log(1.25))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    x, y = dice.uniform(-.1, .1, 2) * side
    image = cv2.warpAffine(image, np.float32([[1, 0, x], [0, 1, y]]), image.shape[1::-1])
    if dice.random() < .5:
        image = cv2.flip(image, 1)
    image = np.abs(image) ** dice.uniform(.5, 1.5)
    top, left = ((n - side) // 2 for n in image.shape[:2])
    view = image[top:top + side, left:left + side]
    return view + dice.normal(0, dice.uniform(0, .02), view.shape)


def torchvision_views():
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomAffine(180, (.05, .05), (.8, 1.25), interpolation=v2.InterpolationMode.BILINEAR), v2.CenterCrop(SIDE),
                       v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=.05, contrast=.2), v2.GaussianNoise(sigma=.01, clip=False)])


def kornia_views():
    import kornia.augmentation as K

    return torch.nn.Sequential(K.RandomAffine(180., (.05, .05), (.8, 1.25), p=1.), K.CenterCrop(SIDE, cropping_mode="slice"), K.RandomHorizontalFlip(),
                               K.RandomBrightness((.95, 1.05), clip_output=False, p=1.), K.RandomContrast((.8, 1.2), clip_output=False, p=1.), K.RandomGaussianNoise(std=.01, p=1.))


def kornia_warp(windows):
    "Our own matrices from 64 px of view to the 128 px window, kornia's warp and light"
    from kornia.enhance import adjust_brightness_accumulative, adjust_contrast_with_mean_subtraction
    from kornia.geometry.transform import warp_affine

    n, middle = len(windows), (SIDE - 1) / 2
    to_window = random_matrices(torch.tensor([[0., (WIDE - 1) / 2, (WIDE - 1) / 2]]).expand(n, 3), SIDE, Recipe())
    to_window = torch.cat([to_window[:, :, :2], to_window[:, :, 2:] - to_window[:, :, :2].sum(2, keepdim=True) * middle], 2)
    square = torch.cat([to_window, torch.tensor([0., 0, 1]).expand(n, 1, 3)], 1)
    views = warp_affine(windows, torch.linalg.inv(square)[:, :2], (SIDE, SIDE), align_corners=True)
    views = adjust_brightness_accumulative(adjust_contrast_with_mean_subtraction(views, 1.2 ** (2 * torch.rand(n) - 1)), .95 + .1 * torch.rand(n), clip_output=False)
    return views + torch.randn_like(views) * (.02 * torch.rand(n, 1, 1, 1))


def views(args, work):
    frames, places = frames_and_places(args, work)
    folder, dice = work / "tiles", np.random.default_rng(0)
    folder.mkdir()
    few, some = frames[:8], 32 if args.quick else 128
    colour = few.repeat(1, 3, 1, 1)
    for side in (SIDE, 2 * SIDE): write_tiles(few, folder, side)
    near = places[torch.randint(len(places), (BATCH,))]
    windows = windows_of(frames, near, WIDE).repeat(2, 1, 1, 1)
    v2, kornia = torchvision_views(), kornia_views()

    def search(side, *how):
        inside = frames.shape[2] // side - 1
        for _ in range(some):
            super_image_view(folder, dice.integers(len(few)), *side * dice.integers(1, inside, 2), side, dice, *how)

    def ours(frames, batch, side):
        return lambda: two_views(frames, near[torch.randint(len(near), (batch,))] % torch.tensor([len(frames), torch.inf, torch.inf]), side)

    import cv2
    functions = {
        "SEARCH, super-images, 128 px x 3": (some, lambda: search(2 * SIDE, cv2.IMREAD_COLOR, np.float64)), "two_views, 128 px x 3": (BATCH // 2, ours(colour, BATCH // 4, 2 * SIDE)),
        "SEARCH, super-images, lean": (some, lambda: search(SIDE, cv2.IMREAD_GRAYSCALE, np.float32)), "torchvision v2, one by one": (some, lambda: [v2(w) for w in windows[:some]]),
        "kornia, batched": (2 * BATCH, lambda: kornia(windows)), "kornia, one warp": (2 * BATCH, lambda: kornia_warp(windows)), "two_views": (2 * BATCH, ours(frames, BATCH, SIDE))}
    for _, f in functions.values(): f()
    seconds = median_seconds(5 if args.quick else 31, **{name: f for name, (_, f) in functions.items()})
    rate = {name: n / seconds[name] for name, (n, _) in functions.items()}
    same = lambda name: rate["two_views, 128 px x 3" if "x 3" in name else "two_views"]
    report(args, f"Views of 64 px from {len(frames)} frames of {frames.shape[2]} px, 2 threads (bars: 50 x SEARCH, 5 x torchvision, 1.5 x kornia)",
           [{"what": name, "views per second": round(r), "two_views, same size": same(name) / r, "two_views, 64 px": rate["two_views"] / r} for name, r in rate.items()])


# The input pipeline


class TilesInMemory(torch.utils.data.Dataset):
    "Tiles of 64 px as PIL pictures through lightly's transform; cut from uint8 frames, near the edge shifted inwards"
    def __init__(self, frames, places):
        from lightly.transforms import SimCLRTransform

        self.frames, corner = (255 * frames[:, 0]).to(torch.uint8).numpy(), (places[:, 1:] - (SIDE - 1) / 2).round().long()
        self.places = torch.cat([places[:, :1].long(), corner.clamp(0, frames.shape[2] - SIDE)], 1).tolist()
        self.transform = SimCLRTransform(input_size=SIDE, cj_bright=.2, cj_contrast=.2, cj_sat=0, cj_hue=0, min_scale=.64, random_gray_scale=0,
                                         gaussian_blur=0, vf_prob=.5, rr_prob=1., rr_degrees=180, normalize=None)

    def __len__(self): return len(self.places)

    def __getitem__(self, i):
        from PIL import Image

        f, y, x = self.places[i]
        return self.transform(Image.fromarray(self.frames[f, y:y + SIDE, x:x + SIDE]))


def lightly_batches(frames, places, batches):
    "Yields pairs of views from two worker processes, after the first batch has arrived"
    loader = torch.utils.data.DataLoader(TilesInMemory(frames, places), BATCH, shuffle=True, drop_last=True, num_workers=2)
    arriving = iter(loader)
    next(arriving)
    yield
    for _ in range(batches):
        yield next(arriving)


def our_batches(frames, places, batches):
    yield
    for _ in range(batches):
        yield two_views(frames, places[torch.randint(len(places), (BATCH,))], SIDE)


def pairs_per_second(ways, use, rounds, batches):
    "Median over rounds, the ways in turn; `use` is done with each batch of a way"
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, make in ways.items():
            arriving = make(batches)
            next(arriving)
            start = time.perf_counter()
            for pair in arriving:
                use(name, pair)
            found[name].append(batches * BATCH / (time.perf_counter() - start))
    return {name: median(f) for name, f in found.items()}


def pipeline(args, work):
    frames, places = frames_and_places(args, work)
    ways = {"lightly, two workers": lambda n: lightly_batches(frames, places, n), "two_views": lambda n: our_batches(frames, places, n)}
    rate = pairs_per_second(ways, lambda name, pair: None, 3 if args.quick else 9, 12 if args.quick else 40)
    report(args, f"Pairs of augmented views of 64 px, batches of {BATCH} pairs (bar: 5 x lightly)",
           [{"what": name, "pairs per second": round(r), "ratio to lightly": r / rate["lightly, two workers"]} for name, r in rate.items()])


# The training step


def step(args, work):
    frames, places = frames_and_places(args, work)
    draw = lambda: two_views(frames, places[torch.randint(len(places), (BATCH,))], SIDE)
    batch = torch.cat(draw()).contiguous(memory_format=torch.channels_last)

    def bare(backbone):
        backbone.zero_grad(set_to_none=True)
        backbone(batch).square().mean().backward()

    def full(method, optimiser):
        optimiser.zero_grad(set_to_none=True)
        method.loss(*draw()).backward()
        optimiser.step()

    torch.manual_seed(0)
    backbone, simclr, simsiam = make_backbone(), SimCLR(make_backbone()), SimSiam(make_backbone())
    clr, siam = (torch.optim.AdamW(m.parameters(), 1e-3) for m in (simclr, simsiam))
    functions = {"two views": draw, "bare forward and backward": lambda: bare(backbone), "SimCLR step": lambda: full(simclr, clr), "SimSiam step": lambda: full(simsiam, siam)}
    for f in functions.values(): f()
    seconds = median_seconds(5 if args.quick else 30, **functions)
    base = seconds["bare forward and backward"]
    report(args, f"A step on {2 * BATCH} views of 64 px from {len(frames)} frames of {frames.shape[2]} px, 2 threads (bar: 1.10 x bare)",
           [{"what": name, "ms": 1e3 * s, "ratio to bare": s / base} for name, s in seconds.items()])


# Whole training loops


def end(args, work):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    frames, places = frames_and_places(args, work)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours = SimCLR(make_backbone()).to(device)
    theirs = torch.nn.Sequential(make_backbone(), SimCLRProjectionHead(256, 256, 128)).to(device)
    there, where = frames.to(device), places.to(device)
    contrast = NTXentLoss(temperature=.2)
    loss = {"two_views, SimCLR": ours.loss, "lightly, two workers": lambda *pair: contrast(*theirs(torch.cat(pair)).chunk(2))}
    optimiser = {name: torch.optim.AdamW(m.parameters(), 1e-3) for name, m in zip(loss, (ours, theirs))}

    def learn(name, pair):
        optimiser[name].zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss[name](*(view.to(device) for view in pair))
        value.backward()
        optimiser[name].step()
        value.item()

    ways = {"lightly, two workers": lambda n: lightly_batches(frames, places, n), "two_views, SimCLR": lambda n: our_batches(there, where, n)}
    for name in ways:
        learn(name, two_views(there, where[:BATCH], SIDE))
    rate = pairs_per_second(ways, learn, 2 if args.quick else 5, 4 if args.quick else 16)
    report(args, f"Training on pairs of views of 64 px, small_resnet, batches of {BATCH} pairs, on {device} (bar: 1 x lightly, 2 x on a graphics card)",
           [{"what": name, "pairs per second": round(r), "ratio to lightly": r / rate["lightly, two workers"]} for name, r in rate.items()])


# Diverse sampling


def search_sampler(features, n):
    "SEARCH's `diverse_sampler`, from its description: distances to the last pick, minimum, argmax, and the pick deleted from the arrays"
    features, ids, picks = features.copy(), np.arange(len(features)), [0]
    last, features, ids = features[0], np.delete(features, 0, axis=0), np.delete(ids, 0)
    near = np.full(len(features), np.inf)
    for _ in range(n - 1):
        near = np.minimum(near, np.linalg.norm(features - last, axis=1))
        far = near.argmax()
        picks.append(int(ids[far]))
        last, features, ids, near = features[far], np.delete(features, far, axis=0), np.delete(ids, far), np.delete(near, far)
    return np.array(picks)


def lean_sampler(features, n):
    "The plain loop as quick as it gets: float32, one matrix-vector product per pick, nothing deleted"
    squares, picks = np.einsum("ij,ij->i", features, features), [0]
    near = np.full(len(features), np.inf, np.float32)
    for _ in range(n - 1):
        near = np.minimum(near, squares - 2 * (features @ features[picks[-1]]) + squares[picks[-1]])
        near[picks] = -1
        picks.append(int(near.argmax()))
    return np.array(picks)


def definition(features, n):
    "The plain definition: float64, by subtraction, all rows for each pick"
    x, picks = torch.from_numpy(features).double(), [0]
    near = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for _ in range(n - 1):
        near = torch.minimum(near, torch.cdist(x, x[picks[-1:]], compute_mode="donot_use_mm_for_euclid_dist")[:, 0])
        near[picks] = -1
        picks.append(int(near.argmax()))
    return np.array(picks)


def crowds(rows, columns, seed=0):
    "Float32 [rows, columns]: forty crowds, the largest a thousand times the smallest, tight and wide"
    dice = np.random.default_rng(seed)
    share = np.logspace(0, -3, 40)
    mine = dice.choice(40, rows, p=share / share.sum())
    middles, width = 1.5 * dice.normal(size=(40, columns)), dice.uniform(.1, .6, 40)
    return (middles[mine] + width[mine, None] * dice.normal(size=(rows, columns))).astype(np.float32)


def picking_speed(args):
    rows, few = (11_200, 5) if args.quick else (112_000, 20)
    dice, n = np.random.default_rng(0), 500
    for name, x in (("forty crowds", crowds(rows, 512)), ("one even cloud", dice.normal(size=(rows, 512)).astype(np.float32))):
        ways = {"SEARCH, diverse_sampler": (search_sampler, few), "the same loop, lean": (lean_sampler, 3 * few), "ours": (farthest_points, n)}
        picks = {way: f(x, count) if f is not farthest_points else f(x, n, start=0) for way, (f, count) in ways.items()}
        seconds = median_seconds(3, **{way: partial(f, x, count) for way, (f, count) in ways.items()})
        ms = {way: 1e3 * s / ways[way][1] for way, s in seconds.items()}
        right = definition(x, n)
        report(args, f"Farthest points: {n} of {rows:,} rows of 512, {name} (the loops timed on {few} and {3 * few} picks)",
               [{"way": way, "ms a pick": ms[way], "s for 500": ms[way] * n / 1e3, "x faster": ms["SEARCH, diverse_sampler"] / ms[way],
                 "as defined": f"{(picks[way] == right[:len(picks[way])]).sum()} of {len(picks[way])}"} for way in ways])


def labelled_histograms(args, package):
    "Weak labels of all tiles of aia171, their histograms (32 bins of grey), and whether their frame is flagged"
    table = pd.read_csv(args.data / "aia171/tiles64.csv.gz").sort_values("frame", kind="stable")
    flagged = {Path(s).name for s in package.catalogue.source[package.catalogue.quality != ""]}
    values = []
    for frame, mine in table.groupby("frame"):
        image = read_image(args.data / "aia171" / frame) / 255
        values.append(histogram_features(np.stack([image[t.row:t.row + 64, t.col:t.col + 64] for t in mine.itertuples()])))
    return table.label.to_numpy(str), np.concatenate(values), table.frame.isin(flagged).to_numpy()


def what_is_found(args, work):
    package = Package.build(args.data / "aia171", work / "quality", 512)
    label, values, flagged = labelled_histograms(args, package)
    n, seeds, good = 500, range(2 if args.quick else 5), np.flatnonzero(~flagged)
    draw = lambda seed, ids: int(np.random.default_rng(seed).choice(ids))
    ways = {"random, good frames": lambda s: np.random.default_rng(s).choice(good, n, replace=False),
            "k-means, good frames": lambda s: balance_kmeans(values, n, 100, s, ~flagged),
            "k-means of k-means, good frames": lambda s: balance_kmeans(values, n, (100, 10), s, ~flagged),
            "farthest, all frames": lambda s: farthest_points(values, n, start=draw(s, len(values))),
            "farthest, good frames": lambda s: farthest_points(values, n, start=draw(s, good), keep=~flagged)}
    rows = [{"way": "all tiles", "flagged frames": 100 * flagged.mean(), **{k: 100 * (label == k).mean() for k in sorted(set(label))}, "active regions, spread": np.nan}]
    for way, pick in ways.items():
        picks = [pick(s) for s in seeds]
        share = lambda what: 100 * np.mean([what[p].mean() for p in picks])
        spread = 100 * np.std([(label[p] == "active_region").mean() for p in picks])
        rows.append({"way": way, "flagged frames": share(flagged), **{k: share(label == k) for k in sorted(set(label))}, "active regions, spread": spread})
    report(args, f"What {n} picks of {len(label):,} tiles of aia171 show, percent (weak labels; described by histograms; mean of {len(seeds)} seeds, standard deviation between them)", rows)


def diverse(args, work):
    picking_speed(args)
    what_is_found(args, work)


PARTS = dict(views=views, pipeline=pipeline, step=step, end=end, diverse=diverse)


def main():
    args = arguments(__doc__, only=dict(nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART"))
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    for name in args.only:
        with tempfile.TemporaryDirectory() as work:
            PARTS[name](args, Path(work))


if __name__ == "__main__":
    main()
