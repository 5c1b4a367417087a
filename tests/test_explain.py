"""Explanations: against captum and cases done by hand, contributions that add up to the cosine, and a network left as it was."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.explain import (
    grad_cam, last_map, match_maps, match_pairs, maximise, occlusion, randomised, rank_correlation, saliency, sanity,
    show_map, similarity_to)
from search_sdo.models.finetune import fine_tune


def classifier(name, **kw):
    torch.manual_seed(0)
    backbone = make_backbone(name, in_channels=2, **kw)
    return nn.Sequential(backbone, nn.Linear(backbone.dim, 3)).eval()


NETWORKS = dict(small=lambda: classifier("small_resnet", widths=(8, 16, 32)), resnet18=lambda: classifier("resnet18"))
LAST = dict(small=lambda net: net[0][-3], resnet18=lambda net: net[0].layer4)


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


@pytest.fixture
def x():
    return torch.rand(4, 2, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(make_backbone(widths=(8, 16, 32)), size=32)


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(0, 255, (6, 32, 32)).astype(np.float32)


# Against captum

def test_saliency_equals_captum(network, x):
    attr = pytest.importorskip("captum.attr")
    theirs = attr.Saliency(network).attribute(x.clone().requires_grad_(), target=1)
    np.testing.assert_allclose(saliency(network, x, score=1), theirs.detach(), atol=1e-5)


def test_gradient_times_input_equals_captum(network, x):
    attr = pytest.importorskip("captum.attr")
    theirs = attr.InputXGradient(network).attribute(x.clone().requires_grad_(), target=[0, 1, 2, 0])
    np.testing.assert_allclose(saliency(network, x, score=[0, 1, 2, 0], times_input=True), theirs.detach(), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_grad_cam_equals_captum_and_finds_the_last_map_itself(name, x):
    attr = pytest.importorskip("captum.attr")
    network = NETWORKS[name]()
    theirs = attr.LayerGradCam(network, LAST[name](network)).attribute(x.clone().requires_grad_(), target=2, relu_attributions=True)
    ours = grad_cam(network, x, score=2, full_size=False)
    assert ours.max() > 0
    np.testing.assert_allclose(ours, theirs[:, 0].detach(), atol=1e-5)


def test_grad_cam_of_another_layer_equals_captum(x):
    attr = pytest.importorskip("captum.attr")
    net = NETWORKS["resnet18"]()
    layer = net[0].layer2
    theirs = attr.LayerGradCam(net, layer).attribute(x.clone().requires_grad_(), target=0, relu_attributions=True)
    np.testing.assert_allclose(grad_cam(net, x, 0, layer=layer, full_size=False), theirs[:, 0].detach(), atol=1e-5)


@pytest.mark.parametrize("patch, stride", [(16, 16), (24, 16)])
def test_occlusion_equals_captum(x, patch, stride):
    attr = pytest.importorskip("captum.attr")
    net = NETWORKS["small"]()
    theirs = attr.Occlusion(net).attribute(x, (2, patch, patch), (2, stride, stride), baselines=0, target=1)
    np.testing.assert_allclose(occlusion(net, x, score=1, patch=patch, stride=stride), theirs[:, 0], atol=1e-5)


# By hand

class Corner(nn.Module):
    "Twice the first pixel; the square of another"
    def forward(self, x):
        return torch.stack([2 * x[:, 0, 0, 0], x[:, 0, 1, 2] ** 2], 1)


def test_saliency_of_a_known_function():
    x = torch.full((1, 1, 3, 4), 0.5)
    expected = np.zeros((2, 3, 4))
    expected[0, 0, 0], expected[1, 1, 2] = 2, 2 * 0.5
    assert np.allclose(saliency(Corner(), x, 0)[0], expected[0]) and np.allclose(saliency(Corner(), x, 1)[0], expected[1])
    assert saliency(Corner(), x, 1, times_input=True).sum() == pytest.approx(0.5)
    assert np.array_equal(saliency(Corner(), x), saliency(Corner(), x, score=0))        # 1 > 0.25


def test_grad_cam_of_a_known_network():
    "One convolution that copies, an average, a weight of 3: the map is 3 x the picture / the number of pixels"
    copy, head = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 1, bias=False)
    copy.weight.data.fill_(1)
    head.weight.data.fill_(3)
    x = torch.rand(2, 1, 4, 4)
    net = nn.Sequential(copy, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    np.testing.assert_allclose(grad_cam(net, x, 0), 3 * x[:, 0] / 16, atol=1e-6)
    assert not grad_cam(net, x, lambda output: -output[:, 0]).any()


def test_activation_that_changes_in_place_does_not_disturb_the_map(x):
    "The map of a convolution followed by an in-place ReLU is the convolution's own output"
    conv = nn.Conv2d(2, 4, 3)
    net = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _, seen = last_map(net, x, layer=conv)
    assert torch.equal(seen, conv(x)) and (seen < 0).any()


def test_occlusion_finds_the_only_pixel_that_counts():
    x = torch.ones(1, 1, 12, 12)
    heat = occlusion(Corner(), x, 0, patch=4, stride=4)[0]
    assert np.allclose(heat[:4, :4], 2) and heat.sum() == pytest.approx(2 * 16)


def test_maximise_raises_the_score_and_stays_a_picture(encoder):
    score = lambda z: z[:, 3]
    value = lambda picture: encoder.backbone.eval()(torch.from_numpy(picture[None]))[0, 3].item()
    start, end = (maximise(encoder, score, steps=n) for n in (0, 40))
    assert end.shape == (1, 32, 32) and end.min() >= 0 and end.max() <= 1
    assert value(end) > value(start)
    np.testing.assert_allclose(end, maximise(encoder, score, steps=40), atol=1e-3)


def test_coarse_grain_makes_smoother_pictures(encoder):
    fine, coarse = (np.abs(np.diff(maximise(encoder, 3, steps=40, grain=g))).mean() for g in (1, 8))
    assert coarse < fine / 2


# Why two match

@pytest.mark.parametrize("name, size", [("small_resnet", 64), ("resnet18", 96)])
def test_contributions_add_up_to_the_cosine(name, size):
    torch.manual_seed(0)
    encoder = Encoder(make_backbone(name), size=size)
    a, b = np.random.default_rng(0).uniform(0, 255, (2, 3, size, size))
    cosine = F.cosine_similarity(*(torch.from_numpy(encoder.embed(p)) for p in (a, b))).numpy()
    pairs, (map_a, map_b) = match_pairs(encoder, a, b), match_maps(encoder, a, b)
    assert pairs.shape[1] > 1 and pairs.shape == (3, *map_a.shape[1:], *map_b.shape[1:])
    for part in (pairs, map_a, map_b):
        np.testing.assert_allclose(part.reshape(3, -1).sum(1), cosine, atol=1e-5)


def test_the_place_that_two_pictures_share_contributes_most(encoder, images):
    same = images[:1].copy()
    same[0, :16] = 0
    a, b = match_maps(encoder, images[:1], images[:1])
    np.testing.assert_allclose(a, b, atol=1e-6)
    pairs = match_pairs(encoder, images[:1], same)
    assert pairs[0, 2:, :, 2:, :].sum() > pairs[0, :2, :, :2, :].sum()


def test_match_refuses_what_is_no_average(images):
    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dim = nn.Conv2d(1, 4, 3), 4
        def forward(self, x): return self.conv(x).amax((2, 3))
    with pytest.raises(ValueError, match="does not end in an average over places"):
        match_maps(Encoder(Largest(), size=32), images, images)


def test_match_needs_pairs(encoder, images):
    with pytest.raises(ValueError, match="6 and 5; expected pairs"):
        match_maps(encoder, images, images[:5])


def test_similarity_can_be_the_score(encoder, images):
    score = similarity_to(encoder, images[0])
    assert score(torch.from_numpy(encoder.embed(images[:1]))).item() == pytest.approx(1, abs=1e-5)
    assert saliency(encoder, images[1:], score).shape == (5, 1, 32, 32) and grad_cam(encoder, images[1:], score).shape == (5, 32, 32)


# Sanity

def test_randomised_forgets_from_the_output_down():
    net = NETWORKS["resnet18"]()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    none, head, all_of_it = (randomised(net, share) for share in (0.0, 0.03, 1.0))
    differs = lambda other: [k for k, v in other.named_parameters() if "weight" in k and v.ndim > 1 and not torch.equal(v, before[k])]
    assert differs(none) == [] and differs(head) == ["1.weight"] and "0.conv1.weight" in differs(all_of_it)
    assert differs(net) == []
    assert all(torch.equal(a, b) for a, b in zip(randomised(net, seed=3).parameters(), randomised(net, seed=3).parameters()))


def test_sanity_leaves_torchs_dice_alone(encoder, images):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sanity(saliency, encoder, images, score=0)
    assert torch.equal(torch.rand(1), expected)


def test_a_map_that_ignores_the_network_fails_the_sanity_check(images):
    "Trained to tell left from right; an edge detector passes for an explanation, until the network forgets"
    left = np.random.default_rng(1).uniform(0, 40, (24, 32, 32))
    left[:12, 12:20, 4:12] = left[12:, 12:20, 20:28] = 250
    torch.manual_seed(0)
    model = fine_tune(Encoder(make_backbone(widths=(8, 16, 32)), size=32), left, [0] * 12 + [1] * 12)
    edges = lambda network, x: np.abs(np.gradient(x[:, 0].numpy(), axis=2))
    assert (sanity(edges, model, left).similarity == 1).all()
    table = sanity(grad_cam, model, left, score=1, full_size=False)
    assert list(table.columns) == ["similarity", "lowest", "highest", "blank"] and list(table.index) == [0.25, 0.5, 1.0]
    assert abs(table.similarity[1.0]) < 0.9 and (table.lowest <= table.highest).all()


def test_rank_correlation_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).integers(0, 5, (2, 8, 8))
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert np.isnan(rank_correlation(a, np.ones((8, 8))))


# The house rules

def test_the_network_is_left_as_it_was(encoder, images):
    encoder.backbone.train()
    encoder.backbone[1].eval()
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    modes = [m.training for m in encoder.backbone.modules()]
    for explain in (saliency, grad_cam, occlusion):
        explain(encoder, images, score=0)
    maximise(encoder, 0, steps=2)
    match_maps(encoder, images, images)
    assert [m.training for m in encoder.backbone.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in encoder.backbone.state_dict().items())
    assert all(p.grad is None for p in encoder.backbone.parameters())
    assert not any(m._forward_hooks for m in encoder.backbone.modules())


def test_gaps_are_black_and_one_picture_is_enough(encoder, images):
    gap = images[:1].copy()
    gap[:, :8] = np.nan
    for explain in (saliency, grad_cam, occlusion):
        assert np.isfinite(explain(encoder, gap, score=0)).all()


def test_a_model_with_a_head_is_explained_by_its_class(encoder, images):
    model = fine_tune(encoder, images, list("abcabc"))
    assert saliency(model, images, score=2).shape == (6, 1, 32, 32)
    with pytest.raises(ValueError, match="class 3, expected 0 to 2"):
        grad_cam(model, images, score=3)


def test_faults_say_what_was_found(encoder, images):
    with pytest.raises(ValueError, match=r"shape \[3, 64, 64\], expected \[N, C, H, W\]"):
        saliency(NETWORKS["small"](), torch.rand(3, 64, 64), 0)
    with pytest.raises(ValueError, match="one number for each of 6 pictures"):
        saliency(encoder, images, score=lambda z: z)
    with pytest.raises(ValueError, match="no feature map of more than one place"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(1, 1, 4, 4), 0)
    with pytest.raises(ValueError, match="patch: 32 px, expected 1 to 31"):
        occlusion(encoder, images, 0, patch=32)


def test_picture_of_a_map():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    ax = show_map(np.zeros((32, 32)), np.eye(4), title="evidence")
    assert ax.get_title() == "evidence" and len(ax.images) == 2 and ax.get_xlim() == (-0.5, 31.5)
    plt.close("all")
