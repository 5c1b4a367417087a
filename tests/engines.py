"""A small engine with an untrained encoder, for tests that ask what an engine does and not what it has learned."""
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.search.engine import SearchEngine


def small_engine(path, frames, size, tile, widths=(8, 16)):
    "An engine over `frames` (of `size` px, in tiles of `tile` px) in the folder `path`, the same each time"
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(make_backbone(widths=widths, stem=2), size=tile, unit="DN/s")
    return SearchEngine.build(Package.build(frames, path / "package", size=size), encoder, path / "engine")
