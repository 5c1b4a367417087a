"""Views of 64 px per second from real frames in memory, and the cost of a training step beside the bare network.

    python bench/views.py [--data FOLDER] [--quick] [--json FILE]

The bare step is forward and backward of the same backbone on a batch of the same shape that is already there;
the training step also samples both views, projects, computes the loss and steps the optimiser.
"""
import tempfile
from pathlib import Path

import torch
from measure import arguments, median_seconds, report

from search_sdo.models.encoder import make_backbone
from search_sdo.models.simclr import SimCLR
from search_sdo.models.simsiam import SimSiam
from search_sdo.models.views import load_frames, tile_places, two_views
from search_sdo.packager.package import Package
from search_sdo.packager.tiles import Tiles


def main():
    args = arguments(__doc__)
    torch.set_num_threads(2)
    files = sorted((args.data / "aia171").glob("*.jpg"))[:8 if args.quick else 60]
    with tempfile.TemporaryDirectory() as work:
        package = Package.build(files, Path(work) / "package")
        frames, places = load_frames(package), tile_places(Tiles.grid(package, 64, 32).table)
    batch, dice = 256, torch.Generator().manual_seed(0)
    draw = lambda: two_views(frames, places[torch.randint(len(places), (batch,), generator=dice)], 64)
    views = torch.cat(draw()).contiguous(memory_format=torch.channels_last)

    def bare(backbone):
        backbone.zero_grad(set_to_none=True)
        backbone(views).square().mean().backward()

    def step(method, optimiser):
        optimiser.zero_grad(set_to_none=True)
        method.loss(*draw()).backward()
        optimiser.step()

    torch.manual_seed(0)
    backbone, simclr, simsiam = make_backbone(), SimCLR(make_backbone()), SimSiam(make_backbone())
    clr, siam = (torch.optim.AdamW(m.parameters(), 1e-3) for m in (simclr, simsiam))
    functions = {"two views": draw, "bare forward and backward": lambda: bare(backbone), "SimCLR step": lambda: step(simclr, clr), "SimSiam step": lambda: step(simsiam, siam)}
    for f in functions.values(): f()
    seconds = median_seconds(5 if args.quick else 30, **functions)
    base = seconds["bare forward and backward"]
    report(args, f"{2 * batch} views of 64 px from {len(frames)} frames of {package.size} px, 2 threads",
           [{"what": k, "ms": 1e3 * s, "ratio to bare": s / base, "views per second": round(2 * batch / s)} for k, s in seconds.items()])


if __name__ == "__main__":
    main()
