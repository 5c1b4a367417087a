"""`Encoder` and its backbones: what goes in, what comes out, and what a broken folder says."""
import json

import numpy as np
import pytest
import torch

from search_sdo.models.encoder import Encoder, make_backbone


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


def test_config_rebuilds_the_same_network():
    net = make_backbone(in_channels=2, widths=(8, 16), stem=1)
    twin = make_backbone(**json.loads(json.dumps(net.config)))
    assert str(twin) == str(net) and net.config["stem"] == 1 and twin.dim == 16


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
    assert facts["backbone"] == {"name": "small_resnet", "in_channels": 1, "widths": [16, 32, 64, 128, 256], "stem": 2}
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


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path):
    net = torch.nn.Flatten()
    net.dim = 1024
    with pytest.raises(ValueError, match="make_backbone"):
        Encoder(net, size=32).save(tmp_path / "encoder")
    with pytest.raises(TypeError):
        Encoder(make_backbone(), meta={"when": object()}).save(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_embeds_where_the_backbone_is(encoder, images):
    on_cpu = encoder.embed(images)
    on_gpu = encoder.to("cuda").embed(images)
    encoder.to("cpu")
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-2)
