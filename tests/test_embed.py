"Embeddings: one row per tile, resumable after a kill with the same bytes as without one"
import os
import subprocess
import sys

import numpy as np
import pytest
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles
from search_sdo.search.embed import Embeddings, blocks, image_vectors, normalise

BATCH = 40  # a frame has 32 tiles: blocks of two frames


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    frames = SmallSun(seed=1).frames(7, size=128)
    frames[2].data[:64] = np.nan       # the northern half was lost: flagged, and some tiles hold nothing at all
    return Package.build(frames, tmp_path_factory.mktemp("embed") / "package", size=128)


@pytest.fixture(scope="module")
def tiles(package): return Tiles.grid(package, size=16, flagged=True)


@pytest.fixture(scope="module")
def encoder(package):
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(make_backbone(widths=(8, 16)), size=16, unit="DN/s")


@pytest.fixture(scope="module")
def whole(tiles, encoder, tmp_path_factory):
    "The bytes of a build that nobody disturbed"
    folder = tmp_path_factory.mktemp("whole")
    Embeddings.build(tiles, encoder, folder, BATCH)
    return (folder / "embeddings.npy").read_bytes()


class Stops:
    "The encoder, until it has embedded so many frames"
    def __init__(self, encoder, after): self.encoder, self.left = encoder, after
    def __getattr__(self, name): return getattr(self.encoder, name)
    def embed(self, *args, **kw):
        if self.left == 0: raise KeyboardInterrupt
        self.left -= 1
        return self.encoder.embed(*args, **kw)


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_every_row_belongs_to_its_tile(tiles, encoder, tmp_path):
    order = np.random.default_rng(0).permutation(len(tiles))
    straight = Embeddings.build(tiles, encoder, tmp_path / "straight", BATCH)
    mixed = Embeddings.build(tiles[order], encoder, tmp_path / "mixed", BATCH)
    np.testing.assert_allclose(mixed.vectors, straight.vectors[order], atol=2e-3)
    np.testing.assert_array_equal(mixed.tiles.table.row, tiles.table.row.values[order])
    expected = normalise(encoder.embed(tiles.images([33])))
    np.testing.assert_allclose(straight.vectors[[33]], expected, atol=2e-3)


def test_tiles_of_two_scales_are_embedded_as_they_are_read(package, encoder, tmp_path):
    tiles = Tiles.grid(package, size=16, scales=(1, 2))
    built = Embeddings.build(tiles, encoder, tmp_path, BATCH)
    assert set(built.tiles.table.scale) == {1, 2}
    whole = package.read(0)
    for i, (x0, y0, x1, y1) in enumerate(tiles.boxes(tiles.table.index[tiles.table.frame == 0])):
        image = whole[y0:y1, x0:x1].reshape(16, (y1 - y0) // 16, 16, -1).mean((1, 3))
        np.testing.assert_allclose(built.vectors[i], normalise(encoder.embed(image[None]))[0], atol=2e-3)


def test_every_channel_and_unit_is_stretched_in_its_own_way(encoder, tmp_path):
    from search_sdo.packager.channels import stretch
    frames = SmallSun(seed=1).frames(3, size=128)
    frames[1].channel = "304"
    frames[2].data, frames[2].unit = 255 * stretch(frames[2].data, "171", "DN/s"), "display"
    tiles = Tiles.grid(Package.build(frames, tmp_path / "package", size=128), size=16)
    vectors = Embeddings.build(tiles, encoder, tmp_path / "out").vectors.astype(np.float32)
    for frame, (channel, unit) in enumerate([("171", "DN/s"), ("304", "DN/s"), ("171", "display")]):
        mine = (tiles.table.frame == frame).values
        alone = Encoder(encoder.backbone, (channel,), 16, unit)
        np.testing.assert_allclose(vectors[mine], normalise(alone.embed(tiles[mine].images())), atol=2e-3)


def test_an_encoder_of_several_channels_at_once_is_refused(tiles, tmp_path):
    together = Encoder(make_backbone(in_channels=2, widths=(8,)), ("171", "193"), 16, "DN/s")
    with pytest.raises(ValueError, match="sees 171, 193 together"): Embeddings.build(tiles, together, tmp_path)


def test_rows_are_half_precision_of_length_one_and_mapped(tiles, encoder, tmp_path):
    vectors = Embeddings.build(tiles, encoder, tmp_path).vectors
    assert isinstance(vectors, np.memmap) and vectors.dtype == np.float16 and vectors.shape == (len(tiles), encoder.dim)
    length = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert np.nanmax(np.abs(length - 1)) < 2e-3


def test_tiles_without_a_measured_pixel_are_nan_and_no_others(tiles, encoder, tmp_path):
    lost = np.isnan(tiles.images()).all(axis=(1, 2))
    assert 0 < lost.sum() < len(tiles)
    np.testing.assert_array_equal(np.isnan(Embeddings.build(tiles, encoder, tmp_path).vectors).any(axis=1), lost)


def test_a_tile_with_one_measured_pixel_has_an_embedding(encoder):
    image = np.full((1, 16, 16), np.nan, np.float32)
    image[0, 3, 3] = 50
    assert np.isfinite(image_vectors(image, encoder)).all()


@pytest.mark.parametrize("after", [0, 1, 2, 3, 6])
def test_an_interrupted_build_goes_on_with_the_same_bytes(tiles, encoder, whole, tmp_path, after):
    with pytest.raises(KeyboardInterrupt): Embeddings.build(tiles, Stops(encoder, after), tmp_path, BATCH)
    assert not (tmp_path / "embeddings.npy").exists()
    counted = Stops(encoder, 99)
    Embeddings.build(tiles, counted, tmp_path, BATCH)
    assert (tmp_path / "embeddings.npy").read_bytes() == whole
    assert 99 - counted.left == 7 - 2 * (after // 2)      # no block was embedded twice; a block has two frames
    assert names(tmp_path) == ["embeddings.fingerprint", "embeddings.npy", "tiles.parquet"]


@pytest.mark.parametrize("torn", [1, 500, 2 * 16 * 50])
def test_half_a_block_on_disk_is_not_counted(tiles, encoder, whole, tmp_path, torn):
    with pytest.raises(KeyboardInterrupt): Embeddings.build(tiles, Stops(encoder, 2), tmp_path, BATCH)
    part = next(tmp_path.glob("*.part"))
    part.write_bytes(part.read_bytes() + b"\x55" * torn)
    Embeddings.build(tiles, encoder, tmp_path, BATCH)
    assert (tmp_path / "embeddings.npy").read_bytes() == whole


def test_killed_and_started_again(tiles, encoder, package, whole, tmp_path):
    encoder.save(tmp_path / "encoder")
    child = f"""
import os, signal
from search_sdo.models.encoder import Encoder
from search_sdo.packager.package import Package
from search_sdo.packager.tiles import Tiles
from search_sdo.search.embed import Embeddings
calls = []
class Killed(Encoder):
    def embed(self, *args, **kw):
        calls.append(1)
        if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(*args, **kw)
encoder = Encoder.load({str(tmp_path / 'encoder')!r})
encoder.__class__ = Killed
Embeddings.build(Tiles.grid(Package.open({str(package.path)!r}), size=16, flagged=True), encoder, {str(tmp_path / 'out')!r}, {BATCH})
"""
    done = subprocess.run([sys.executable, "-c", child], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -9
    assert len(list((tmp_path / "out").glob("*.part"))) == 1 and not (tmp_path / "out/embeddings.npy").exists()
    Embeddings.build(tiles, encoder, tmp_path / "out", BATCH)
    assert (tmp_path / "out/embeddings.npy").read_bytes() == whole


def test_a_finished_build_is_not_made_again(tiles, encoder, whole, tmp_path):
    Embeddings.build(tiles, encoder, tmp_path, BATCH)
    assert len(Embeddings.build(tiles, Stops(encoder, 0), tmp_path, BATCH)) == len(tiles)
    (tmp_path / "embeddings.npy").write_bytes(whole[:-1])            # somebody cut the file short
    Embeddings.build(tiles, Stops(encoder, 1), tmp_path, BATCH)
    assert (tmp_path / "embeddings.npy").read_bytes() == whole


def test_another_encoder_starts_from_the_beginning(tiles, encoder, whole, tmp_path):
    other = Encoder(make_backbone(widths=(8, 16)), size=16, unit="DN/s")
    with pytest.raises(KeyboardInterrupt): Embeddings.build(tiles, Stops(other, 2), tmp_path, BATCH)
    Embeddings.build(tiles, encoder, tmp_path, BATCH)
    assert (tmp_path / "embeddings.npy").read_bytes() == whole


def test_old_embeddings_do_not_stay_beside_new_tiles(tiles, encoder, tmp_path):
    Embeddings.build(tiles, encoder, tmp_path, BATCH)
    with pytest.raises(KeyboardInterrupt): Embeddings.build(tiles[5:], Stops(encoder, 1), tmp_path, BATCH)
    with pytest.raises(FileNotFoundError, match=r"embeddings\.npy: missing"): Embeddings.open(tmp_path, tiles.package)


@pytest.mark.parametrize("name", ["embeddings.npy", "tiles.parquet"])
def test_a_missing_file_is_named(tiles, encoder, tmp_path, name):
    Embeddings.build(tiles, encoder, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: missing; build it again"): Embeddings.open(tmp_path, tiles.package)


def test_tiles_and_rows_of_different_number_are_refused(tiles, encoder, tmp_path):
    Embeddings.build(tiles, encoder, tmp_path)
    tiles[3:].save(tmp_path / "tiles.parquet")
    with pytest.raises(ValueError, match=f"{len(tiles)} rows .* {len(tiles) - 3} in tiles.parquet"): Embeddings.open(tmp_path, tiles.package)


def test_no_tiles_are_refused(tiles, encoder, tmp_path):
    with pytest.raises(ValueError, match="no tiles to embed"): Embeddings.build(tiles[:0], encoder, tmp_path)


def test_blocks_end_where_frames_end():
    frames = np.repeat([3, 4, 7, 7, 9], [5, 1, 2, 2, 4])
    for at_least in (1, 3, 6, 100):
        cut = blocks(frames, at_least)
        assert [i for s in cut for i in range(s.start, s.stop)] == list(range(len(frames)))
        assert all(s.stop == len(frames) or frames[s.stop - 1] != frames[s.stop] for s in cut)
        assert all(s.stop - s.start >= at_least for s in cut[:-1])


def test_workers_of_dask_make_the_same_bytes(tiles, encoder, whole, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        Embeddings.build(tiles, encoder, tmp_path, BATCH, client=client)
    assert (tmp_path / "embeddings.npy").read_bytes() == whole


def test_new_tiles_are_added_behind_those_that_are_there(package, tiles, encoder, whole, tmp_path):
    first = tiles[(tiles.table.frame < 4).to_numpy()]
    begun = Embeddings.build(first, encoder, tmp_path, BATCH)
    before = np.array(begun.vectors)
    grown = begun.add(tiles[(tiles.table.frame >= 4).to_numpy()], encoder)
    assert len(grown) == len(tiles) and np.array_equal(grown.vectors[:len(before)], before, equal_nan=True)
    assert (tmp_path / "embeddings.npy").read_bytes() == whole      # parts give what all at once gives
