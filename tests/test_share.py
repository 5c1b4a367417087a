"""Archives from friends and villains, cards that claim nothing, and the level that the evidence carries."""
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from search_sdo.models.encoder import TRAINED, Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.archive import KINDS, archive, check_manifest, check_name, checksum, engine_files, put, unpack
from search_sdo.search.engine import SearchEngine
from search_sdo.search.share import LEVELS, encoder_card, engine_card, evidence, facts, level, readiness_card, shipped_as, table_in


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(make_backbone(widths=(8, 16), stem=2), size=16, unit="DN/s")
    package = Package.build(SmallSun(seed=2).frames(4, cadence="40h", size=64), tmp_path_factory.mktemp("share") / "package", size=64)
    return SearchEngine.build(package, encoder, package.path.parent / "engine")


@pytest.fixture(scope="module")
def tar(engine, tmp_path_factory): return archive(engine, tmp_path_factory.mktemp("tar") / "engine.tar", frames=True)


def content(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made(path, entries, files=None):
    "A tar whose manifest tells the truth about `entries` [(TarInfo, bytes)], unless `files` lists something else"
    files = [dict(name=e.name, size=len(b), sha256=hashlib.sha256(b).hexdigest()) for e, b in entries] if files is None else files
    with tarfile.open(path, "w") as out:
        put(out, "MANIFEST.json", json.dumps(dict(files=files)).encode())
        for entry, data in entries:
            entry.size = len(data) if entry.isreg() else 0
            out.addfile(entry, io.BytesIO(data))
    return path


FACTS = json.dumps(dict(package="package", package_from_here="")).encode()


# ---- archives of friends


def test_there_and_back(engine, tar, tmp_path):
    there = SearchEngine.open(unpack(tar, tmp_path / "a" / "there"))
    assert there.package.path == tmp_path / "a" / "there" / "package"
    pd.testing.assert_frame_equal(there.search(10, k=5).table, engine.search(10, k=5).table)
    pd.testing.assert_frame_equal(there.tiles.table, engine.tiles.table)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["there"]


def test_without_frames_the_package_is_asked_for(engine, tmp_path):
    folder = unpack(archive(engine, tmp_path / "e.tar"), tmp_path / "there")
    with pytest.raises(FileNotFoundError, match="package=") as e: SearchEngine.open(folder)
    assert str(engine.package.path) not in str(e.value)
    assert len(SearchEngine.open(folder, engine.package.path)) == len(engine)


def test_same_engine_same_bytes_and_no_paths(engine, tar, tmp_path):
    assert archive(engine, tmp_path / "again.tar", frames=True).read_bytes() == tar.read_bytes()
    assert archive(tar.parent.parent / "x" if False else engine.package.path.parent / "engine", tmp_path / "by path.tar", frames=True).read_bytes() == tar.read_bytes()
    assert str(engine.package.path).encode() not in archive(engine, tmp_path / "bare.tar").read_bytes()


def test_an_archive_of_an_archive_is_the_same(tar, tmp_path):
    there = SearchEngine.open(unpack(tar, tmp_path / "there"))
    assert archive(there, tmp_path / "second.tar", frames=True).read_bytes() == tar.read_bytes()


def test_half_written_files_hidden_ones_and_links_stay(engine, tmp_path):
    import shutil
    folder = shutil.copytree(engine.package.path.parent / "engine", tmp_path / "engine")
    for name in ("index.faiss.part", ".secret.json", "engine.lock"): (folder / name).write_text("x")
    (folder / "link.json").symlink_to("/etc/hostname")
    assert not {"index.faiss.part", ".secret.json", "engine.lock", "link.json"} & set(engine_files(folder))
    (folder / "model.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match="never read"): archive(folder, tmp_path / "x.tar")
    assert not list(tmp_path.glob("x.tar*"))


def test_a_folder_with_something_in_it_is_left_alone(tar, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"): unpack(tar, tmp_path / "there")
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    with pytest.raises(FileNotFoundError): unpack(tmp_path / "none.tar", tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="not a whole engine"): archive(tmp_path / "there", tmp_path / "y.tar")


# ---- archives of villains


def test_every_altered_byte_is_found_or_harmless(tar, tmp_path):
    "One byte changed in 150 places: refused, and nothing left, or the very same engine comes out"
    whole, rng = tar.read_bytes(), np.random.default_rng(0)
    good = content(unpack(tar, tmp_path / "good"))
    found = 0
    for i, at in enumerate(np.concatenate([rng.integers(0, 3000, 50), rng.integers(0, len(whole), 100)])):
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << rng.integers(8)
        (tmp_path / "spoilt.tar").write_bytes(spoilt)
        try: assert content(unpack(tmp_path / "spoilt.tar", tmp_path / f"out{i}")) == good
        except ValueError as e:
            found += 1
            assert "spoilt.tar" in str(e) and not (tmp_path / f"out{i}").exists()
    assert found > 75 and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("share", [0, .001, .1, .5, .9, .999])
def test_what_is_cut_off_is_refused(tar, tmp_path, share):
    whole = tar.read_bytes()
    with tarfile.open(tar) as t: end = max(m.offset_data + m.size for m in t)
    (tmp_path / "cut.tar").write_bytes(whole[:int(share * end)])
    with pytest.raises(ValueError, match="cut.tar"): unpack(tmp_path / "cut.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_devices_and_folders(tmp_path, kind):
    entry = tarfile.TarInfo("engine.json")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError): unpack(made(tmp_path / "x.tar", [(entry, b"")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../up.json", "/abs.json", "a/../../up.json", "..\\up.json", "C:/x.json", "a/./b.json", "a//b.json", ".hidden.json", "a/.git/config.json", "x.pkl", "x.pt", "x.py", "run.sh", "x.json\0", "x.json ", "é.json", "a" * 300 + ".json",
                                  "CON", "frames.zarr/../../x", "~/x.json", "$HOME/x.json"])
def test_names_that_reach_out_or_run(tmp_path, name):
    with pytest.raises(ValueError): check_name(name)
    files = [dict(name=name, size=2, sha256=hashlib.sha256(b"{}").hexdigest())]
    with pytest.raises(ValueError): unpack(made(tmp_path / "x.tar", [(tarfile.TarInfo(name.replace("\0", "")), b"{}")], files), tmp_path / "deep" / "er" / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "er", "x.tar"]


def test_a_name_in_the_tar_that_the_manifest_does_not_say(tmp_path):
    entry = tarfile.TarInfo("../evil.json")
    path = made(tmp_path / "x.tar", [(entry, FACTS)], [dict(name="engine.json", size=len(FACTS), sha256=hashlib.sha256(FACTS).hexdigest())])
    with pytest.raises(ValueError, match="altered"): unpack(path, tmp_path / "out")


def test_more_than_announced_twice_and_too_much(tmp_path):
    one, two = (tarfile.TarInfo("engine.json"), FACTS), (tarfile.TarInfo("b.json"), b"{}")
    entry = lambda name, data, **more: dict(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) | more
    for entries, files, said in (([one, two], [entry("engine.json", FACTS)], "more than"), ([one], [entry("engine.json", FACTS), entry("b.json", b"")], "missing"),
                                 ([one, one], None, "twice"), ([one, two], [entry("engine.json", FACTS), entry("ENGINE.json", b"{}")], "twice"), ([one], [entry("engine.json", FACTS), entry("engine.json/b.json", b"")], "twice"),
                                 ([one], [entry("engine.json", FACTS, size=10**18)], "fill your disk"), ([one], [entry("engine.json", FACTS, size=-1)], "not a list"), ([one], [entry("engine.json", FACTS, size=True)], "not a list")):
        with pytest.raises(ValueError, match=said): unpack(made(tmp_path / "x.tar", entries, files), tmp_path / "out")


def test_an_engine_that_points_outside(tmp_path):
    for facts_ in (dict(package="/etc", package_from_here=""), dict(package="package", package_from_here="../.."), dict(), dict(package=["package"], package_from_here=""), []):
        data = json.dumps(facts_).encode()
        with pytest.raises(ValueError, match="outside the engine"): unpack(made(tmp_path / "x.tar", [(tarfile.TarInfo("engine.json"), data)]), tmp_path / "out")


def test_a_compressed_bomb_is_no_archive(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as out: put(out, "MANIFEST.json", bytes(10_000_000))
    with pytest.raises(ValueError): unpack(tmp_path / "x.tar", tmp_path / "out")


def test_a_header_that_promises_the_moon_takes_no_memory(tmp_path):
    "A pax header of 2^40 bytes in a file of 1 kB"
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 2**40
    (tmp_path / "x.tar").write_bytes(entry.tobuf() + bytes(512))
    with pytest.raises(ValueError): unpack(tmp_path / "x.tar", tmp_path / "out")


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_any_bytes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    (folder / "x.tar").write_bytes(data)
    with pytest.raises(ValueError): unpack(folder / "x.tar", folder / "out")
    with pytest.raises(ValueError): check_manifest(data)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_name_that_passes_stays_inside(name):
    try: check_name(name)
    except ValueError: return
    assert not os.path.isabs(name) and os.path.normpath(name) == name and not name.startswith("..") and (name.endswith(KINDS) or ".zarr/" in name)


def test_killed_half_way_leaves_no_half_engine(tar, tmp_path):
    "The process is killed after its first files; then the same call does it all"
    slow = f"import search_sdo.search.archive as a, time, pathlib\nreal = a.take\ndef take(*args): real(*args); print('one', flush=True); time.sleep(.5)\na.take = take\na.unpack({str(tar)!r}, {str(tmp_path / 'out')!r})"
    process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert len(SearchEngine.open(unpack(tar, tmp_path / "out"))) > 0


def test_a_full_disk_is_said_before_anything_is_written(tar, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), dict(free=10))())
    with pytest.raises(OSError, match="make room"): unpack(tar, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_checksum_is_sha256(tmp_path):
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "x").write_bytes(data)
    assert checksum(tmp_path / "x") == hashlib.sha256(data).hexdigest() == checksum(tmp_path / "x", block=7919)


# ---- cards


def test_facts_are_counted(engine):
    known, table = facts(engine), engine.tiles.table
    assert json.loads(json.dumps(known)) == known
    assert known["tiles"] == len(table) and known["frames"] == table.frame.nunique() and known["numbers"] == engine.embeddings.vectors.shape[1]
    assert known["not_measured"] == np.isnan(np.asarray(engine.embeddings.vectors, float)).any(axis=1).sum()


def test_the_level_is_that_below_the_first_gap():
    rows = lambda *pairs: pd.DataFrame(pairs, columns=["level", "answer"])
    assert level(rows((0, "yes"), (1, "yes"), (3, "yes"), (3, "not measured"), (4, "yes"))) == 2
    assert level(rows((0, "yes"), (9, "yes"))) == 9 and level(rows((0, "no"))) == -1 and len(LEVELS) == 10


def test_nothing_is_claimed_that_was_not_measured(engine):
    found = evidence(engine)
    assert set(found.level) == set(range(10)) and level(found) < 3
    assert dict(zip(found.question, found.answer))["Does it beat simple ways, on later dates?"] == "not measured"
    assert found[found.answer == "yes"].because.str.len().gt(0).all()
    card = readiness_card(engine, found)
    assert f"**Level {level(found)}" in card and "nobody yet" in card and "not measured" in card


def test_evidence_follows_what_is_handed_over(engine):
    worse = pd.DataFrame(dict(macro=[.7, .6, .9]), index=["pixels", "ours, no labels", "supervised (ceiling)"])
    answer = lambda question, **how: evidence(engine, **how).set_index("question").answer[question]
    simple, load = "Does it beat simple ways, on later dates?", "Does it stand load: no error, p99 under 500 ms?"
    assert answer(simple, scores=worse) == "no" and answer(simple, scores=worse.assign(macro=[.5, .6, .9])) == "yes"
    measured = dict(clients=50, seconds=60., tiles=100_000, requests=9000, errors=0, p99_ms=450.)
    assert answer(load, load=measured) == "yes" and answer(load, load=measured | dict(errors=1)) == "no" and answer(load, load=measured | dict(p99_ms=501.)) == "no"
    question = "Does somebody else's system use it?"
    assert answer(question, told={question: ("yes", "Ada's pipeline, says Ada")}) == "yes"
    with pytest.raises(ValueError, match="not a question"): evidence(engine, told={"Is it nice?": ("yes", "I think")})
    drawn = "Are the frames observations?"
    assert answer(drawn) == "no" and answer(drawn, told={drawn: ("yes", "I wish")}) == "no"      # what was counted cannot be talked away


@pytest.mark.parametrize("name", ["aia171", "aia193", "aia304", "hmi_ic"])
def test_shipped_encoders_are_known_by_their_weights(name, tmp_path):
    Encoder.load(name).save(tmp_path / "other")
    encoder = Encoder.load(tmp_path / "other")
    assert shipped_as(encoder) == name and encoder_card(encoder) == (TRAINED / name / "README.md").read_text()
    scores = table_in(encoder_card(encoder))
    assert scores.index.str.startswith("ours").sum() >= 1 and scores.index.str.startswith("supervised").any() and scores.notna().any(axis=None)
    assert shipped_as(Encoder(make_backbone(widths=(8, 16)), size=16)) is None


def test_cards_have_a_head_that_parses(engine):
    yaml = pytest.importorskip("yaml")
    for card in (engine_card(engine), encoder_card(engine.encoder)):
        head = yaml.safe_load(card.split("---")[1])
        assert head["library_name"] == "search_sdo"
    assert "Not measured." in engine_card(engine) and f"{len(engine):,}" in engine_card(engine) and "Not recorded" in encoder_card(engine.encoder)
    assert str(engine.package.path.parent) not in engine_card(engine)
