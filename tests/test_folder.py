"An engine's folder: it grows as at once, and whatever kills it, the engine of before opens and the next call goes on"
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.embed import alone, tile_keys
from search_sdo.search.folder import FILES, grow_engine, ranges, read_engine, write_engine

SUN, SIZE, TILE = SmallSun(seed=4), 128, 16
GRID = (TILE, None, ["171"])


@pytest.fixture(scope="module")
def encoder():
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(make_backbone(widths=(8, 16)), size=TILE, unit="DN/s")


@pytest.fixture(scope="module")
def small(encoder, tmp_path_factory):
    "A package of four frames and its engine, never to be changed"
    folder = tmp_path_factory.mktemp("small")
    package = Package.build(SUN.frames(4, size=SIZE), folder / "package", size=SIZE)
    write_engine(package, encoder, folder / "engine", *GRID)
    return folder


@pytest.fixture
def here(small, tmp_path): return Path(shutil.copytree(small, tmp_path / "here"))


def grow_package(folder, n): return Package.build(SUN.frames(n, size=SIZE), folder / "package", size=SIZE)


def answers(engine):
    "Places that answer to each of some tiles, by key, best first, and how similar they are"
    package, _, embeddings, index = engine
    keys, measured = tile_keys(embeddings.tiles.table), np.flatnonzero(np.isfinite(np.asarray(embeddings.vectors)[:, 0]))
    asked = measured[np.argsort(keys[measured])][::max(1, len(measured) // 15)]
    similarity, ids = index.search(embeddings.vectors[asked], 12)
    return keys[asked].tolist(), keys[ids].tolist(), similarity


def same(one, other):
    for a, b in zip(answers(one)[:2], answers(other)[:2]): assert a == b
    np.testing.assert_allclose(answers(one)[2], answers(other)[2], atol=1e-6)


def test_added_in_parts_and_at_once(here, encoder, tmp_path):
    for n in (6, 7): grow_engine(here / "engine", grow_package(here, n))
    package = Package.open(here / "package")
    write_engine(package, encoder, tmp_path / "once", *GRID)
    for name in ("embeddings.npy", "index.faiss"):
        assert (here / "engine" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    parts, once = read_engine(here / "engine"), read_engine(tmp_path / "once")
    assert parts[2].tiles.table.equals(once[2].tiles.table)
    same(parts, once)


def test_what_is_there_is_not_embedded_again(here, monkeypatch):
    import search_sdo.search.embed as embed
    seen, real = [], embed.tile_vectors
    monkeypatch.setattr(embed, "tile_vectors", lambda tiles, *a, **kw: seen.append(set(tiles.table.frame)) or real(tiles, *a, **kw))
    grow_engine(here / "engine")
    assert seen == []
    grow_engine(here / "engine", grow_package(here, 6))
    assert set.union(*seen) == {4, 5}


def test_frames_are_packaged_on_the_way(here, encoder, tmp_path):
    grow_engine(here / "engine", frames=SUN.frames(6, size=SIZE)[4:])
    package, _, embeddings, index = read_engine(here / "engine")
    assert len(package) == 6 and embeddings.tiles.table.frame.nunique() == 6 and len(index) == len(embeddings)


def flag(package, frames, quality="dark"):
    "Change the quality of some frames in the catalogue"
    table = package.catalogue.copy()
    table.loc[frames, "quality"] = quality
    table.to_parquet(package.path / "frames.parquet")
    return Package.open(package.path)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "ivfpq"])
def test_a_frame_that_was_flagged_is_left_out_and_can_come_back(here, encoder, kind, tmp_path):
    shutil.rmtree(here / "engine")
    write_engine(Package.open(here / "package"), encoder, here / "engine", *GRID, kind=kind)
    before = read_engine(here / "engine")
    frames = before[2].tiles.table.frame.to_numpy()
    package = flag(grow_package(here, 6), [1])
    grow_engine(here / "engine", package)
    after = read_engine(here / "engine")
    assert after[3].kind == kind
    np.testing.assert_array_equal(after[2].tiles.table.frame[:len(frames)], frames)            # row numbers stay
    out = (after[2].tiles.table.frame == 1).to_numpy()
    assert np.isnan(after[2].vectors[out]).all() and not after[3].present()[out].any()
    for keep in (None, np.arange(len(out)) % 2 == 0):
        assert not out[after[3].search(before[2].vectors[frames == 1][:5], 20, keep)[1]].any()
    write_engine(package, encoder, tmp_path / "once", *GRID, kind="flat")
    if kind == "flat": same(after, read_engine(tmp_path / "once"))
    grow_engine(here / "engine", flag(package, [1], ""))
    back = read_engine(here / "engine")
    assert len(back[2]) == len(after[2]) and back[3].present().sum() == np.isfinite(np.asarray(back[2].vectors)[:, 0]).sum()
    assert (back[3].search(before[2].vectors[frames == 1], 1)[1][:, 0] == np.flatnonzero(frames == 1)).mean() > 0.8


def test_a_frame_that_became_good_follows_the_others(here, encoder, tmp_path):
    package = flag(Package.open(here / "package"), [2])
    write_engine(package, encoder, here / "later", *GRID)
    grow_engine(here / "later", flag(package, [2], ""))
    parts, once = read_engine(here / "later"), read_engine(here / "engine")
    assert parts[2].tiles.table.frame.drop_duplicates().tolist() == [0, 1, 3, 2]
    assert sorted(tile_keys(parts[2].tiles.table)) == sorted(tile_keys(once[2].tiles.table))
    same(parts, once)


def test_another_moment_under_an_old_number_is_left_out_and_the_new_one_added(here):
    package = Package.open(here / "package")
    table = package.catalogue.copy()
    table.loc[3, "time"] += np.timedelta64(1, "h")
    table.to_parquet(package.path / "frames.parquet")
    with pytest.raises(ValueError, match="not the package"): read_engine(here / "engine")
    grow_engine(here / "engine", Package.open(package.path))
    _, _, embeddings, index = read_engine(here / "engine")
    times = embeddings.tiles.table.time[index.present()]
    assert table.time[3] in set(times) and package.catalogue.time[3] not in set(times)


# ---- kills

CHILD = """
import os, signal, sys
from pathlib import Path
from search_sdo.packager.package import Package
from search_sdo.models.encoder import Encoder
from search_sdo.search import embed, folder, index
import faiss, tqdm.auto

def killed_at(moment, work):
    "Run `work` in a process that kills itself at its so manieth step; whether it was killed"
    child = os.fork()
    if child: return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    steps = [0]
    def counted(function):
        def step(*args, **kw):
            for after in (False, True):
                steps[0] += 1
                if steps[0] == moment: os.kill(os.getpid(), signal.SIGKILL)
                if not after: result = function(*args, **kw)
            return result
        return step
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    embed.tile_vectors, embed.finish, embed.write_plan = counted(embed.tile_vectors), counted(embed.finish), counted(embed.write_plan)
    faiss.write_index = counted(faiss.write_index)
    work()
    os._exit(0)

what, base, folders = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
for moment, path in enumerate(map(Path, folders), start=1):
    def work():
        import torch
        torch.set_num_threads(1)
        embed.os.fsync = lambda n: None
        if what == 'grow': folder.grow_engine(path / 'engine')
        else: folder.write_engine(Package.open(path / 'package'), Encoder.load(base / 'encoder'), path / 'engine', *eval(what))      # not before the fork: zarr has a thread
    if not killed_at(moment * 2 - 1 if what == 'grow' else moment, work): break
    (path / 'killed').touch()
"""


def kill_at_every_step(what, small, prepare, tmp_path, at_most):
    "Folders of engines that were killed at their first, second … step"
    folders = [tmp_path / f"{i}" for i in range(at_most)]
    for folder in folders: prepare(folder)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run(timeout=120, args=[sys.executable, "-c", CHILD, what, str(small / "engine"), *map(str, folders)], env=env, check=True)
    killed = [folder for folder in folders if (folder / "killed").exists()]
    assert 5 < len(killed) < at_most      # it was killed often, and in the end it came through
    return killed


def test_killed_while_adding_the_old_engine_opens_and_the_next_call_goes_on(small, encoder, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(small, grown)
    grow_package(grown, 7)
    shutil.copytree(grown, tmp_path / "once")
    grow_engine(tmp_path / "once/engine")
    old, once = read_engine(small / "engine"), read_engine(tmp_path / "once/engine")
    half = 0
    for folder in kill_at_every_step("grow", small, lambda f: shutil.copytree(grown, f), tmp_path / "k", 40):
        found = read_engine(folder / "engine")
        assert len(found[2]) in (len(old[2]), len(once[2])) and len(found[2]) == len(found[3])
        half += len(found[2]) == len(old[2])
        same(found, old if len(found[2]) == len(old[2]) else once)
        grow_engine(folder / "engine")
        for name in ("embeddings.npy", "index.faiss", "tiles.parquet"):
            assert (folder / "engine" / name).read_bytes() == (tmp_path / "once/engine" / name).read_bytes(), (folder, name)
        assert not list((folder / "engine").glob("*.part"))
    assert half > 3


def test_killed_while_building(small, encoder, tmp_path):
    def prepare(folder): shutil.copytree(small / "package", folder / "package")
    expected = read_engine(small / "engine")
    for folder in kill_at_every_step(repr(GRID), small, prepare, tmp_path, 40):
        if (folder / "engine/engine.json").exists(): same(read_engine(folder / "engine"), expected)
        else:
            with pytest.raises(FileNotFoundError, match="not a whole engine"): read_engine(folder / "engine")
        write_engine(Package.open(folder / "package"), encoder, folder / "engine", *GRID)
        for name in ("embeddings.npy", "index.faiss"): assert (folder / "engine" / name).read_bytes() == (small / "engine" / name).read_bytes()
        assert not list((folder / "engine").glob("*.part"))


def test_killed_while_an_engine_of_other_tiles_is_built_in_its_place(small, encoder, tmp_path):
    other = (TILE, 8, ["171"])
    def prepare(folder): shutil.copytree(small, folder)
    write_engine(Package.open(small / "package"), encoder, tmp_path / "expected", *other)
    old, new = read_engine(small / "engine"), read_engine(tmp_path / "expected", small / "package")
    opened = 0
    for folder in kill_at_every_step(repr(other), small, prepare, tmp_path / "k", 60):
        if (folder / "engine/engine.json").exists():
            found = read_engine(folder / "engine")
            opened += len(found[2]) == len(old[2])
            same(found, old if len(found[2]) == len(old[2]) else new)
        write_engine(Package.open(folder / "package"), encoder, folder / "engine", *other)
        same(read_engine(folder / "engine"), new)
        assert not (folder / "engine/new").exists()
    assert opened > 5


# ---- the folder


def test_two_programs_do_not_write_into_one_engine(here):
    with alone(here / "engine/engine.lock"):
        with pytest.raises(OSError, match="another program is writing here"): grow_engine(here / "engine")
    grow_engine(here / "engine")


def test_other_tiles_take_the_place_of_the_old_ones_and_nothing_else_is_touched(here, encoder):
    (here / "engine/notes.txt").write_text("mine")
    write_engine(Package.open(here / "package"), encoder, here / "engine", 32, None, ["171"])
    assert read_engine(here / "engine")[2].tiles.table["size"].eq(32).all()
    assert (here / "engine/notes.txt").read_text() == "mine" and not (here / "engine/new").exists()


def test_scales_and_kinds_are_remembered(here, encoder):
    package = Package.open(here / "package")
    write_engine(package, encoder, here / "two", TILE, None, ["171"], scales=(1, 2), kind="ivf")
    grow_engine(here / "two", grow_package(here, 6))
    _, _, embeddings, index = read_engine(here / "two")
    assert index.kind == "ivf" and index.mapped_from
    assert embeddings.tiles.table.groupby("frame").scale.nunique().eq(2).all() and embeddings.tiles.table.frame.nunique() == 6
    facts = json.loads((here / "two/engine.json").read_text())
    assert (facts["scales"], facts["kind"], facts["tiles"], facts["left_out"]) == ([1, 2], "ivf", len(embeddings), [])


def test_another_kind_makes_a_new_index(here, encoder):
    write_engine(Package.open(here / "package"), encoder, here / "engine", *GRID, kind="ivf")
    assert read_engine(here / "engine")[3].kind == "ivf"
    write_engine(Package.open(here / "package"), encoder, here / "engine", *GRID)
    assert read_engine(here / "engine")[3].kind == "ivf"


def test_an_open_engine_answers_while_the_folder_grows(here):
    open_before = read_engine(here / "engine")
    before = answers(open_before)
    grow_engine(here / "engine", grow_package(here, 7))
    assert answers(open_before)[:2] == before[:2]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(here, name):
    (here / "engine" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: missing"): read_engine(here / "engine")


def test_rows_that_engine_json_counts_must_be_there(here):
    facts = json.loads((here / "engine/engine.json").read_text())
    (here / "engine/engine.json").write_text(json.dumps(facts | dict(tiles=facts["tiles"] + 5)))
    with pytest.raises(ValueError, match="engine.json counts .* build the engine again"): read_engine(here / "engine")


def test_runs_of_rows():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.random(30) < 0.4
        again = np.zeros(30, bool)
        for start, stop in ranges(rows): again[start:stop] = True
        assert (again == rows).all()
