"""An encoder as ONNX: torch's answers to 1e-4, for any number of pictures, with what a stranger must know and nothing of this machine."""
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from search_sdo.models.encoder import Encoder, make_backbone, network_input
from search_sdo.packager.channels import CHANNELS, get_channel
from search_sdo.search import onnx as ours
from search_sdo.search.onnx import OnnxEncoder, difference, export_onnx, stretch_tensor, trial_pictures


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(make_backbone(widths=(8, 16), stem=2), size=32, unit="DN/s", meta=dict(rsun_px=100.))


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    return OnnxEncoder(export_onnx(small, tmp_path_factory.mktemp("onnx") / "small.onnx")), small


def test_answers_are_torchs_for_any_number(exported):
    onnx_encoder, encoder = exported
    for n in (1, 2, 7, 64):
        images = trial_pictures(encoder, n)
        np.testing.assert_allclose(onnx_encoder.embed(images, batch_size=5), encoder.embed(images), atol=1e-4)
        assert difference(onnx_encoder, encoder, images) < 1e-4
    assert onnx_encoder.embed(np.empty((0, 32, 32))).shape == (0, 16)


def test_an_encoder_that_ships(tmp_path):
    encoder = Encoder.load("hmi_ic")
    assert difference(OnnxEncoder(export_onnx(encoder, tmp_path / "x.onnx")), encoder, trial_pictures(encoder, 5)) < 1e-4


def test_several_channels_and_fields_with_a_sign(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = Encoder(make_backbone(in_channels=2, widths=(8, 16), stem=2), channels=("171", "hmi_m"), size=16, unit="DN/s")
    assert difference(OnnxEncoder(export_onnx(encoder, tmp_path / "x.onnx")), encoder, trial_pictures(encoder, 5)) < 1e-4


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("unit", ["DN/s", "Gauss", "display"])
def test_the_stretch_in_the_file_is_the_librarys(channel, unit):
    top = 255 if unit == "display" else get_channel(channel).vmax
    values = np.append(np.linspace(-1.5 * top, 1.5 * top, 255, dtype=np.float32), [np.nan]).astype(np.float32).reshape(1, 1, 16, 16)
    np.testing.assert_allclose(stretch_tensor(torch.from_numpy(values), channel, unit).numpy(), network_input(values, [channel], unit, 16).numpy(), atol=1e-6)


def test_the_file_says_what_it_is_and_not_where_it_was_made(exported, tmp_path):
    onnx_encoder, encoder = exported
    path = export_onnx(encoder, tmp_path / "a.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    about = {p.key: p.value for p in model.metadata_props}
    assert json.loads(about["channels"]) == ["171"] and json.loads(about["unit"]) == "DN/s" and json.loads(about["size"]) == 32 and json.loads(about["dim"]) == 16 and json.loads(about["rsun_px"]) == 100
    assert (onnx_encoder.channels, onnx_encoder.unit, onnx_encoder.size, onnx_encoder.dim) == (["171"], "DN/s", 32, 16)
    assert str(Path(ours.__file__).parents[2]).encode() not in path.read_bytes() and b"site-packages" not in path.read_bytes()
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param and [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:] == [1, 32, 32]


def test_the_encoder_is_left_as_it_was(small, tmp_path):
    small.backbone.train()
    before = {k: v.clone() for k, v in small.backbone.state_dict().items()}
    export_onnx(small, tmp_path / "x.onnx")
    assert small.backbone.training and all(torch.equal(v, before[k]) for k, v in small.backbone.state_dict().items())
    small.backbone.eval()


def test_a_network_that_answers_otherwise_is_not_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "stretch_tensor", lambda images, channel, unit: images * 0)
    with pytest.raises(ValueError, match="away from torch"): export_onnx(small, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_and_pictures(exported, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="x.onnx: not an encoder"): OnnxEncoder(tmp_path / "x.onnx")
    with pytest.raises(FileNotFoundError, match="export_onnx"): OnnxEncoder(tmp_path / "none.onnx")
    other = onnx.helper.make_model(onnx.helper.make_graph([], "g", [onnx.helper.make_tensor_value_info("x", 1, [1])], [onnx.helper.make_tensor_value_info("x", 1, [1])]))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="not an encoder"): OnnxEncoder(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="expected 32"): exported[0].embed(np.zeros((2, 64, 64)))
    with pytest.raises(ValueError, match="shape"): exported[0].embed(np.zeros((2, 3, 32, 32)))


def test_without_the_extra_the_error_names_it(monkeypatch, small, tmp_path):
    import importlib.util
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else real(name, *a))
    with pytest.raises(ImportError, match=r"search_sdo\[onnx\]"): export_onnx(small, tmp_path / "x.onnx")
