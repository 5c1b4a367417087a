"""The hub: pushed and loaded over its real client and a local endpoint; wrong tokens, strangers' files and broken lines end in a sentence."""
import json

import numpy as np
import pandas as pd
import pytest

from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.engine import SearchEngine
from search_sdo.search.hub import load, open_hub, push, safe_files
from search_sdo.search.local_hub import LocalHub


@pytest.fixture(scope="module")
def encoder():
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(make_backbone(widths=(8, 16), stem=2), size=16, unit="DN/s")


@pytest.fixture(scope="module")
def engine(encoder, tmp_path_factory):
    package = Package.build(SmallSun(seed=2).frames(3, cadence="40h", size=64), tmp_path_factory.mktemp("hub") / "package", size=64)
    return SearchEngine.build(package, encoder, package.path.parent / "engine")


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub: yield hub


@pytest.fixture
def to(hub): return dict(endpoint=hub.url, token=hub.token)


@pytest.fixture
def back(hub, tmp_path): return dict(endpoint=hub.url, cache=tmp_path / "cache")


def upload(hub, repo, kind="model", **files):
    "A stranger's repository: names (with __ for a dot) and bytes"
    from huggingface_hub import CommitOperationAdd
    api = open_hub(hub.token, hub.url)
    api.create_repo(repo, repo_type=kind, exist_ok=True)
    return api.create_commit(repo, [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()], commit_message="x", repo_type=kind).oid


def test_an_encoder_there_and_back(encoder, to, back):
    push(encoder, "mob/sun", onnx=True, **to)
    images = np.random.default_rng(0).uniform(0, 1000, (5, 16, 16)).astype(np.float32)
    again = load("mob/sun", **back)
    np.testing.assert_array_equal(again.embed(images), encoder.embed(images))
    assert repr(again) == repr(encoder)


def test_each_version_by_its_number(to, back, hub):
    import torch
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(Encoder(make_backbone(widths=(8, 16), stem=2), size=16, unit="DN/s"))
    first, second = [push(e, "mob/sun", **to) for e in made]
    images = np.random.default_rng(0).uniform(0, 1000, (2, 16, 16)).astype(np.float32)
    for revision, e in ((first, made[0]), (second, made[1]), (None, made[1]), ("main", made[1])):
        np.testing.assert_array_equal(load("mob/sun", revision, **back).embed(images), e.embed(images))
    with pytest.raises(FileNotFoundError, match="no revision"): load("mob/sun", "f" * 40, **back)


def test_an_engine_there_and_back(engine, to, back, tmp_path):
    push(engine, "mob/engine", frames=True, **to)
    there = load("mob/engine", folder=tmp_path / "there", endpoint=back["endpoint"])
    pd.testing.assert_frame_equal(there.search(10, k=5).table, engine.search(10, k=5).table)
    assert there.package.path == tmp_path / "there" / "package"
    card = (tmp_path / "there" / "README.md").read_text()
    assert "load('mob/engine')" in card and str(engine.package.path) not in card


def test_an_engine_without_frames_asks_for_its_package(engine, to, back):
    push(engine, "mob/bare", **to)
    with pytest.raises(FileNotFoundError, match="package="): load("mob/bare", **back)
    assert len(load("mob/bare", package=engine.package, **back)) == len(engine)


def test_wrong_and_missing_tokens(encoder, hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for token in ("hf_wrong", False):
        with pytest.raises(PermissionError, match="mob/x: .*hf auth login") as e: push(encoder, "mob/x", token=token, endpoint=hub.url)
        assert "hf_wrong" not in str(e.value)


def test_what_is_not_there(hub, back):
    with pytest.raises(FileNotFoundError, match="mob/none: no such repository"): load("mob/none", **back)
    for name in ("../x", "a/b/c", "a b/c", ""):
        with pytest.raises((ValueError, OSError)): load(name, **back)


def test_a_hub_that_is_gone(encoder, tmp_path):
    with LocalHub(tmp_path / "hub") as hub: pass
    with pytest.raises(OSError, match="cannot be reached"): load("mob/x", endpoint=hub.url, cache=tmp_path / "cache")
    with pytest.raises(OSError, match="cannot be reached"): push(encoder, "mob/x", token="hf_x", endpoint=hub.url)


def test_pickles_are_never_fetched(hub, back, tmp_path):
    upload(hub, "evil/model", pytorch_model__bin=b"\x80\x04cos\nsystem\n.", config__json=b"{}")
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle"): load("evil/model", **back)
    assert not list(tmp_path.rglob("cache/**/*.bin"))


def test_a_pickle_beside_good_files_is_passed_by(encoder, to, hub, back, tmp_path):
    push(encoder, "mob/both", **to)
    upload(hub, "mob/both", extra__pkl=b"\x80\x04.", train__py=b"import os")
    load("mob/both", **back)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".pkl", ".py")]


def test_a_pickle_in_the_clothes_of_safetensors(encoder, to, hub, back):
    push(encoder, "mob/wolf", **to)
    upload(hub, "mob/wolf", weights__safetensors=b"\x80\x04\x95" + bytes(100))
    with pytest.raises(ValueError, match="weights.safetensors: altered"): load("mob/wolf", **back)
    files = {"weights.safetensors": b"\x80\x04\x95" + bytes(100), "encoder.json": json.dumps(dict(backbone=dict(name="small_resnet", in_channels=1), channels=["171"], size=16, unit="DN/s", meta={})).encode()}
    from search_sdo.search.archive import manifest_text
    upload(hub, "mob/wolf2", MANIFEST__json=manifest_text(files), **{name.replace(".", "__"): data for name, data in files.items()})
    with pytest.raises(ValueError, match="not a safetensors file"): load("mob/wolf2", **back)


def test_without_a_manifest_nothing_is_believed(hub, back):
    upload(hub, "mob/bare", encoder__json=b"{}", weights__safetensors=b"x")
    with pytest.raises(ValueError, match="no MANIFEST.json"): load("mob/bare", **back)
    upload(hub, "mob/bare", MANIFEST__json=b'{"files": [{"name": "../x.json", "size": 1, "sha256": "' + b"0" * 64 + b'"}]}')
    with pytest.raises(ValueError, match="plain name"): load("mob/bare", **back)


def test_an_engine_that_points_outside(engine, to, hub, back):
    from search_sdo.search.archive import engine_files, manifest_text
    files = engine_files(engine) | {"engine.json": json.dumps(json.loads((engine.package.path.parent / "engine/engine.json").read_text()) | dict(package="/etc", package_from_here="../..")).encode()}
    from huggingface_hub import CommitOperationAdd
    api = open_hub(hub.token, hub.url)
    api.create_repo("evil/engine", repo_type="dataset")
    files["MANIFEST.json"] = manifest_text(files)
    api.create_commit("evil/engine", [CommitOperationAdd(n, d if isinstance(d, bytes) else str(d)) for n, d in files.items()], commit_message="x", repo_type="dataset")
    with pytest.raises(ValueError, match="evil/engine: .*outside the engine"): load("evil/engine", **back)


def test_names_that_may_be_fetched():
    names = ["encoder.json", "weights.safetensors", "../../x.json", "/abs.json", "a.py", ".gitattributes", "package/frames.zarr/frames/c/0/0/0", "x.pt"]
    assert safe_files(names) == ["encoder.json", "weights.safetensors", "package/frames.zarr/frames/c/0/0/0"]


def test_without_the_extra_the_error_names_it(monkeypatch, encoder):
    import importlib.util
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "huggingface_hub" else real(name, *a))
    with pytest.raises(ImportError, match=r"search_sdo\[hub\]"): push(encoder, "a/b")
