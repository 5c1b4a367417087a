"""`Encoder` and its backbones: what goes in, what comes out, and what a broken folder says."""
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import search_sdo.models.encoder as module
from search_sdo.models.encoder import Encoder, fit_channels, make_backbone, read_tensors, shipped_encoders, trial_dim


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(make_backbone(), channels=["171"], size=32, unit="DN/s", meta={"epochs": 3})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1400, (7, 32, 32)).astype(np.float32)


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


# Backbones

def test_small_resnet_size_and_layout():
    net = make_backbone()
    assert 1.1e6 < sum(p.numel() for p in net.parameters()) < 1.3e6
    assert net.dim == 256 and net(torch.rand(2, 1, 64, 64)).shape == (2, 256)
    assert net[0].weight.stride() == net[0].weight.contiguous(memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("size", [16, 31, 64, 128])
def test_small_resnet_takes_any_size(size):
    assert make_backbone(widths=(8, 16, 32))(torch.rand(2, 1, size, size)).shape == (2, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_resnet_with_any_number_of_channels(channels):
    net = make_backbone("resnet18", channels)
    assert net.dim == 512 and net.eval()(torch.rand(2, channels, 64, 64)).shape == (2, 512)


def test_unknown_backbone_names_the_choices():
    with pytest.raises(ValueError, match="'resnet19' is not known; choose small_resnet, .*resnet18"):
        make_backbone("resnet19")


def test_small_resnet_with_a_coarse_stem():
    net = make_backbone(widths=(32, 64, 128, 256), stem=4, kernel=7)
    assert net[0].kernel_size == (7, 7) and net[0].stride == (4, 4) and net.dim == 256
    shapes = []
    net[-2].register_forward_hook(lambda layer, given, out: shapes.append(tuple(given[0].shape)))
    assert net(torch.rand(2, 1, 64, 64)).shape == (2, 256) and shapes == [(2, 256, 2, 2)]


def test_photo_resnet_with_a_stem_for_tiles():
    net = make_backbone("resnet18", 9, stem=1, kernel=3, pool=False).eval()
    shapes = []
    net.layer1.register_forward_hook(lambda layer, given, out: shapes.append(tuple(out.shape)))
    assert net(torch.rand(1, 9, 32, 32)).shape == (1, 512) and shapes == [(1, 64, 32, 32)]
    assert str(make_backbone(**json.loads(json.dumps(net.config)))) == str(net)


def test_timm_networks_with_any_number_of_channels():
    pytest.importorskip("timm")
    net = make_backbone("timm:test_resnet", 9)
    assert net.eval()(torch.rand(2, 9, 64, 64)).shape == (2, net.dim)
    vit = make_backbone("timm:test_vit", 2, img_size=64, pretrained=False)
    assert vit.eval()(torch.rand(2, 2, 64, 64)).shape == (2, vit.dim)
    assert vit.config == {"name": "timm:test_vit", "in_channels": 2, "img_size": 64}
    with pytest.raises(ValueError, match="'resnet19'.*timm.list_models"):
        make_backbone("timm:resnet19")
    with pytest.raises(ValueError, match="hf-hub:somebody/model"):
        make_backbone("timm:hf-hub:somebody/model")


def test_timm_encoder_survives_the_folder(tmp_path):
    pytest.importorskip("timm")
    encoder = Encoder(make_backbone("timm:test_vit", 2, img_size=32), ["171", "193"], size=32)
    encoder.save(tmp_path)
    x = np.random.default_rng(0).uniform(0, 255, (2, 2, 32, 32))
    assert np.array_equal(Encoder.load(tmp_path).embed(x), encoder.embed(x))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "search_sdo\[timm\]"'):
        make_backbone("timm:test_vit")


def test_config_rebuilds_the_same_network():
    net = make_backbone(in_channels=2, widths=(8, 16), stem=1)
    twin = make_backbone(**json.loads(json.dumps(net.config)))
    assert str(twin) == str(net) and net.config["stem"] == 1 and twin.dim == 16


# One's own network

class Own(nn.Module):
    def __init__(self, channels=1, dim=5):
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, 3)

    def forward(self, x): return self.conv(x).mean(dim=(2, 3))


def test_an_own_network_needs_nothing_but_rows(images):
    encoder = Encoder(Own(), size=32, unit="DN/s")
    assert encoder.dim == 5 and encoder.embed(images).shape == (7, 5)
    assert repr(encoder) == "Encoder(Own, 171 in DN/s, 32 px -> 5 numbers)"
    assert make_backbone(Own(3), 3).dim == 5


def test_the_trial_run_leaves_the_network_as_it_was():
    net = make_backbone(widths=(8, 16)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert trial_dim(net, 1, 32) == 16 and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_network_without_parameters_is_a_network():
    assert Encoder(nn.Flatten(), size=8).embed(np.zeros((2, 8, 8))).shape == (2, 64)


@pytest.mark.parametrize("net,found", [(nn.Conv2d(1, 4, 3), r"\[2, 4, 30, 30\]"), (nn.Linear(32, 1), r"\[2, 1, 32, 1\]"), (nn.LSTM(32, 4), "cannot take"), (nn.Linear(5, 1), "cannot take"), (Own(3), "cannot take")])
def test_an_own_network_that_gives_no_rows(net, found):
    with pytest.raises(ValueError, match=f"backbone .*{found}"):
        Encoder(net, size=32)


def test_an_own_network_is_brought_along_to_be_read(tmp_path, images):
    encoder = Encoder(Own(), size=32, unit="DN/s")
    encoder.save(tmp_path)
    with pytest.raises(ValueError, match=r"encoder.json.*Own, a network of its author's own.*Encoder.load\(folder, backbone=...\)"):
        Encoder.load(tmp_path)
    assert np.array_equal(Encoder.load(tmp_path, backbone=Own()).embed(images), encoder.embed(images))
    with pytest.raises(ValueError, match="weights.safetensors: not the parameters of Own"):
        Encoder.load(tmp_path, backbone=Own(dim=6))


# Starting from a file

def write_weights(net, path, **more):
    save_file({**{k: v.contiguous() for k, v in net.state_dict().items()}, **more}, path)
    return path


def test_start_from_weights_of_the_same_network(tmp_path):
    torch.manual_seed(3)
    trained = make_backbone(widths=(8, 16)).eval()
    path = write_weights(trained, tmp_path / "w.safetensors", **{"fc.weight": torch.rand(10, 16)})   # a classifier is left out
    net, x = make_backbone(widths=(8, 16), weights=path).eval(), torch.rand(2, 1, 32, 32)
    assert torch.equal(net(x), trained(x)) and "weights" not in net.config


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_weights_for_photographs_answer_to_grey_as_before(tmp_path, channels):
    torch.manual_seed(3)
    photo = make_backbone("resnet18", 3).eval()
    net = make_backbone("resnet18", channels, weights=write_weights(photo, tmp_path / "w.safetensors")).eval()
    grey = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(net(grey.repeat(1, channels, 1, 1)), photo(grey.repeat(1, 3, 1, 1)), atol=1e-4, rtol=1e-4)


def test_only_the_input_channels_of_convolutions_are_fitted():
    assert fit_channels(torch.ones(4, 3, 5, 5), (4, 2, 5, 5)).shape == (4, 2, 5, 5)
    assert fit_channels(torch.ones(4, 3, 5, 5), (4, 6, 5, 5)).sum() == 4 * 3 * 25
    for weight in (torch.rand(4), torch.rand(4, 3), torch.rand(4, 3, 5, 5)): assert fit_channels(weight, (4, 3, 5, 5)) is weight
    assert fit_channels(torch.ones(4, 3, 1, 1), (4,)).shape == (4, 3, 1, 1)


def test_weights_of_another_kind_are_refused(tmp_path):
    path = write_weights(make_backbone("resnet18"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="w.safetensors: has no 0.weight, .* are missing"):
        make_backbone(weights=path)
    wide = write_weights(make_backbone(widths=(8, 32)), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="wide.safetensors: of another network"):
        make_backbone(widths=(8, 16), weights=wide)
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: missing"):
        make_backbone(weights=tmp_path / "nowhere.safetensors")


# No pickle is opened

class Trap:
    "A pickle that leaves a mark when it is opened"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return (Path.touch, (self.mark,))


def set_trap(path, kind):
    mark = path.with_name("sprung")
    if kind == "torch": torch.save({"0.weight": Trap(mark)}, path)
    else: path.write_bytes(pickle.dumps({"0.weight": Trap(mark)}, protocol=0 if kind == "text pickle" else 4))
    return mark


KINDS = ["pickle", "text pickle", "torch"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_trap_works(tmp_path, kind):
    mark = set_trap(tmp_path / "net.pt", kind)
    if kind == "torch": torch.load(tmp_path / "net.pt", weights_only=False)
    else: pickle.loads((tmp_path / "net.pt").read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_the_folder_is_refused_and_does_not_run(folder, kind):
    mark = set_trap(folder / "weights.safetensors", kind)
    with pytest.raises(ValueError, match="weights.safetensors: not a safetensors file.*may run a program when it is opened"):
        Encoder.load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.ckpt", "net.bin", "net.safetensors"])
def test_starting_weights_that_are_a_pickle_are_refused_and_do_not_run(tmp_path, kind, name):
    mark = set_trap(tmp_path / name, kind)
    with pytest.raises(ValueError, match=f"{name}: not a safetensors file.*save_file.*weights_only=True"):
        make_backbone(weights=tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_a_strangers_json_cannot_make_timm_open_one(folder, key):
    pytest.importorskip("timm")
    mark = set_trap(folder / "net.pth", "torch")
    facts = json.loads((folder / "encoder.json").read_text())
    facts["backbone"] = {"name": "timm:test_resnet", "in_channels": 1, "pretrained": key != "checkpoint_path", key: str(folder / "net.pth") if key == "checkpoint_path" else {"file": str(folder / "net.pth")}}
    (folder / "encoder.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=f"{key}: not taken"):
        Encoder.load(folder)
    assert not mark.exists()


def test_a_strangers_json_fetches_and_reads_nothing(encoder, folder, images):
    facts = json.loads((folder / "encoder.json").read_text())
    facts["backbone"] |= {"weights": str(folder / "nowhere.pt"), "pretrained": True}
    (folder / "encoder.json").write_text(json.dumps(facts))
    assert np.array_equal(Encoder.load(folder).embed(images), encoder.embed(images))


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100, b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"{}" + b"x" * 9])
def test_damaged_tensors_name_the_file(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="w.safetensors: "):
        read_tensors(path)


# What goes in

def test_embed_gives_one_float32_row_per_picture(encoder, images):
    z = encoder.embed(images)
    assert z.shape == (7, 256) and z.dtype == np.float32 and np.isfinite(z).all()
    assert np.array_equal(z, encoder.embed(images[:, None]))


def test_a_row_does_not_depend_on_its_neighbours_or_the_batch(encoder, images):
    z = encoder.embed(images)
    np.testing.assert_allclose(encoder.embed(images, batch_size=2), z, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(images[3:4])[0], z[3], atol=1e-5)


def test_embed_leaves_the_backbone_as_it_was(encoder, images):
    encoder.backbone.train()
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    encoder.embed(images)
    assert encoder.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.backbone.state_dict().items())
    encoder.backbone.eval()


def test_no_pictures_no_rows(encoder):
    assert encoder.embed(np.zeros((0, 32, 32))).shape == (0, 256)


def test_pictures_are_not_changed(encoder, images):
    copy = images.copy()
    copy[0, 0, 0] = np.nan
    keep = copy.copy()
    encoder.embed(copy)
    assert np.array_equal(copy, keep, equal_nan=True)


def test_nan_is_black(encoder, images):
    gap, black = images.copy(), images.copy()
    gap[:, :9], black[:, :9] = np.nan, 0
    assert np.array_equal(encoder.embed(gap), encoder.embed(black))
    assert np.isfinite(encoder.embed(np.full((1, 32, 32), np.nan))).all()


def test_unit_and_channel_choose_the_stretch():
    from search_sdo.packager.channels import stretch
    raw = np.random.default_rng(0).uniform(0, 255, (2, 16, 16))
    for channel, unit in [("171", "display"), ("193", "DN/s"), ("hmi_m", "Gauss")]:
        x = Encoder(make_backbone(widths=(8, 16)), [channel], 16, unit).prepare(raw)
        np.testing.assert_array_equal(x[:, 0].numpy(), stretch(raw, channel, unit))


def test_shrinking_averages_and_keeps_the_mean():
    encoder = Encoder(make_backbone(widths=(8, 16)), size=16)
    stripes = np.tile([0.0, 255.0], (1, 64, 32))            # one bright column, one dark
    x = encoder.prepare(stripes)
    assert x.shape == (1, 1, 16, 16) and abs(x - 0.5).max() < 0.05
    assert encoder.prepare(stripes[:, :8, :8]).shape == (1, 1, 16, 16)


def test_several_channels():
    torch.manual_seed(0)
    encoder = Encoder(make_backbone(in_channels=3), ["171", "193", 211], size=32, unit="DN/s")
    images = np.random.default_rng(0).uniform(0, 1000, (4, 3, 32, 32))
    assert encoder.channels == ("171", "193", "211") and encoder.embed(images).shape == (4, 256)
    with pytest.raises(ValueError, match=r"shape \[4, 32, 32\], expected \[N, 3, H, H\]"):
        encoder.embed(images[:, 0])


@pytest.mark.parametrize("shape", [(32, 32), (4, 2, 32, 32), (4, 32, 16), (32,), (1, 1, 1, 32, 32)])
def test_wrong_shape_says_what_came_and_what_was_expected(encoder, shape):
    with pytest.raises(ValueError) as e:
        encoder.embed(np.zeros(shape))
    assert str(list(shape)) in str(e.value) and "expected [N, H, H]" in str(e.value) and "images[None]" in str(e.value)


def test_channels_must_fit_the_backbone():
    with pytest.raises(ValueError, match="171, 193, but the backbone has 1 input"):
        Encoder(make_backbone(), ["171", "193"])
    with pytest.raises(ValueError, match="'172' is not known"):
        Encoder(make_backbone(), ["172"])


# The folder

def test_saved_and_loaded_is_the_same_to_the_last_bit(encoder, folder, images):
    again = Encoder.load(folder)
    assert np.array_equal(again.embed(images), encoder.embed(images))
    assert (again.channels, again.size, again.unit, again.meta) == (("171",), 32, "DN/s", {"epochs": 3})
    assert repr(again) == repr(encoder) == "Encoder(small_resnet, 171 in DN/s, 32 px -> 256 numbers)"


def test_torchvision_backbone_survives_the_folder(tmp_path):
    encoder = Encoder(make_backbone("resnet18", 2), ["171", "193"], size=32)
    encoder.save(tmp_path)
    x = np.random.default_rng(0).uniform(0, 255, (2, 2, 32, 32))
    assert np.array_equal(Encoder.load(tmp_path).embed(x), encoder.embed(x))


def test_the_folder_holds_data_only(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.json", "weights.safetensors"]
    facts = json.loads((folder / "encoder.json").read_text())
    assert facts["backbone"] == {"name": "small_resnet", "in_channels": 1, "widths": [16, 32, 64, 128, 256], "stem": 2, "kernel": 3}
    header = (folder / "weights.safetensors").read_bytes()
    assert header[8:9] == b"{" and not header.startswith((b"\x80", b"PK"))      # neither pickle nor torch's zip


def test_saving_twice_leaves_the_newer(encoder, folder):
    torch.manual_seed(1)
    other = Encoder(make_backbone(), ["171"], 32, "DN/s")
    other.save(folder)
    assert torch.equal(Encoder.load(folder).backbone[0].weight, other.backbone[0].weight)


@pytest.mark.parametrize("name", ["encoder.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: missing.*search-sdo train"):
        Encoder.load(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Encoder.load(tmp_path / "nowhere")


def test_truncated_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="weights.safetensors"):
        Encoder.load(folder)


def test_weights_of_another_network(folder, tmp_path):
    Encoder(make_backbone(widths=(8, 16))).save(tmp_path / "other")
    (tmp_path / "other" / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors: .*small_resnet"):
        Encoder.load(folder)


@pytest.mark.parametrize("text", ["", "{}", '["a"]', '{"backbone": {"name": "resnet19"}, "channels": ["171"]}'])
def test_a_json_that_is_no_encoder(folder, text):
    (folder / "encoder.json").write_text(text)
    with pytest.raises(ValueError, match="encoder.json: does not describe an encoder"):
        Encoder.load(folder)


def test_a_folder_of_an_earlier_version_is_read(encoder, folder, images):
    facts = json.loads((folder / "encoder.json").read_text())
    del facts["backbone"]["kernel"]
    (folder / "encoder.json").write_text(json.dumps(facts))
    assert np.array_equal(Encoder.load(folder).embed(images), encoder.embed(images))


def test_what_json_cannot_hold_is_not_saved(tmp_path):
    with pytest.raises(TypeError):
        Encoder(make_backbone(), meta={"when": object()}).save(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


# Encoders that come with the library

@pytest.fixture
def shipped(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRAINED", tmp_path / "trained")
    for name in ("aia304", "aia171"): encoder.save(tmp_path / "trained" / name)
    return tmp_path / "trained"


def test_shipped_encoders_load_by_name(encoder, shipped, images):
    assert shipped_encoders() == ["aia171", "aia304"]
    assert np.array_equal(Encoder.load("aia171").embed(images), encoder.embed(images))


def test_an_unknown_name_lists_those_that_are_shipped(shipped):
    with pytest.raises(FileNotFoundError, match=r"aia172: missing.*\(aia171, aia304\).*search-sdo train"):
        Encoder.load("aia172")


@pytest.mark.parametrize("name", ["", "../trained/aia171", "aia171/", "AIA171"])
def test_only_the_names_themselves_are_names(shipped, name, monkeypatch):
    monkeypatch.chdir(shipped.parent)
    if name:
        with pytest.raises(FileNotFoundError): Encoder.load(name)
    else:
        with pytest.raises(FileNotFoundError, match="encoder.json: missing"): Encoder.load(name)


def test_a_folder_of_ones_own_goes_first(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Encoder(make_backbone(widths=(8, 16))).save("aia171")
    assert Encoder.load("aia171").dim == 16


def test_without_shipped_encoders_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRAINED", tmp_path / "trained")
    with pytest.raises(FileNotFoundError, match=r"aia171: missing.*\(none\)"):
        Encoder.load("aia171")


def test_shipped_encoders_lie_beside_the_module():
    assert module.TRAINED == Path(module.__file__).parent / "trained"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_embeds_where_the_backbone_is(encoder, images):
    on_cpu = encoder.embed(images)
    on_gpu = encoder.to("cuda").embed(images)
    encoder.to("cpu")
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-2)


def test_a_folder_of_pictures_does_not_hide_an_encoder_that_ships(tmp_path, monkeypatch):
    name = shipped_encoders()[0]
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert Encoder.load(name).dim > 0
