"""The losses and the collapse readings: known values, lightly's as a second opinion, and where gradients may flow."""
import math

import pytest
import torch
import torch.nn.functional as F

from search_sdo.models.collapse import alignment, collapse_level, effective_rank, uniformity
from search_sdo.models.encoder import make_backbone, mlp
from search_sdo.models.simclr import SimCLR, nt_xent
from search_sdo.models.simsiam import SimSiam, negative_cosine


@pytest.fixture
def pair():
    "Projections of two views, correlated as after some training"
    dice = torch.Generator().manual_seed(0)
    z = torch.randn(48, 32, generator=dice)
    return z, z + 0.7 * torch.randn(48, 32, generator=dice)


# NT-Xent

@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5, 1.0])
def test_nt_xent_equals_lightly(pair, temperature):
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature, gather_distributed=False)
    assert abs(nt_xent(*pair, temperature) - loss(*pair)) < 1e-6


def test_nt_xent_gradient_equals_lightly(pair):
    loss = pytest.importorskip("lightly.loss").NTXentLoss(0.2, gather_distributed=False)
    ours, theirs = ([z.clone().requires_grad_() for z in pair] for _ in range(2))
    nt_xent(*ours, 0.2).backward()
    loss(*theirs).backward()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_nt_xent_of_identical_rows_is_the_price_of_guessing():
    z = torch.ones(10, 4)
    assert nt_xent(z, z).item() == pytest.approx(math.log(19), abs=1e-5)


def test_nt_xent_of_two_opposite_places():
    # each row: twin at similarity 1, two strangers at -1
    z = torch.tensor([[1.0, 0], [-1, 0]])
    expected = math.log(math.exp(1) + 2 * math.exp(-1)) - 1
    assert nt_xent(z, z, 1.0).item() == pytest.approx(expected, abs=1e-6)


def test_nt_xent_ignores_length_and_the_order_of_views(pair):
    a, b = pair
    assert nt_xent(5 * a, 0.1 * b).item() == pytest.approx(nt_xent(b, a).item(), abs=1e-5)


def test_nt_xent_sees_swapped_partners(pair):
    a, b = pair
    assert nt_xent(a, b.roll(1, 0)) > nt_xent(a, b) + 1


# SimSiam

def test_negative_cosine_equals_lightly(pair):
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    assert abs(negative_cosine(*pair) - loss(*pair)) < 1e-6


def test_negative_cosine_of_known_arrows():
    p = torch.tensor([[3.0, 0], [0, 2], [1, 1]])
    z = torch.tensor([[7.0, 0], [0, -1], [1, -1]])   # same, opposite, at right angles
    assert negative_cosine(p, z).item() == pytest.approx(0.0, abs=1e-6)
    assert negative_cosine(p, p).item() == pytest.approx(-1.0, abs=1e-6)


def test_gradient_stops_at_the_target(pair):
    p, z = (x.clone().requires_grad_() for x in pair)
    negative_cosine(p, z).backward()
    assert p.grad.abs().sum() > 0
    assert z.grad is None


def test_simsiam_loss_is_the_papers_algorithm():
    torch.manual_seed(0)
    model, views = SimSiam(make_backbone(widths=(8, 16))), torch.rand(2, 12, 1, 32, 32)
    z1, z2 = (model.projector(model.backbone(v)) for v in views)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    expected = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
    assert model.loss(*views).item() == pytest.approx(expected.item(), abs=1e-6)


def test_simsiam_target_branch_gets_no_gradient():
    "With a predictor that ignores its input only its last bias can learn: all other paths to the loss are targets"
    torch.manual_seed(0)
    model, views = SimSiam(make_backbone(widths=(8, 16))), torch.rand(2, 12, 1, 32, 32)
    torch.nn.init.zeros_(model.predictor[-1].weight)
    model.loss(*views).backward()
    assert model.predictor[-1].bias.grad.abs().sum() > 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in [*model.backbone.parameters(), *model.projector.parameters()])


# What the methods share

@pytest.mark.parametrize("method", [SimSiam, SimCLR])
def test_every_parameter_learns(method):
    torch.manual_seed(0)
    model = method(make_backbone(widths=(8, 16)))
    loss = model.loss(*torch.rand(2, 12, 1, 32, 32))
    assert loss.ndim == 0 and loss.dtype == torch.float32
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("method", [SimSiam, SimCLR])
def test_forward_gives_backbone_features(method):
    model = method(make_backbone(widths=(8, 16))).eval()
    x = torch.rand(3, 1, 32, 32)
    assert torch.equal(model(x), model.backbone(x)) and model(x).shape == (3, 16)


@pytest.mark.parametrize("method", [SimSiam, SimCLR])
def test_loss_is_float32_in_mixed_precision(method):
    model = method(make_backbone(widths=(8, 16)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(*torch.rand(2, 12, 1, 32, 32))
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_simclr_uses_its_temperature(pair):
    model, views = SimCLR(make_backbone(widths=(8, 16)), temperature=0.05), torch.rand(2, 12, 1, 32, 32)
    z1, z2 = (model.projector(model(v)) for v in views)
    assert model.loss(*views).item() == pytest.approx(nt_xent(z1, z2, 0.05).item(), abs=1e-4)


def test_mlp_layers():
    kinds = lambda net: [type(layer).__name__ for layer in net]
    assert kinds(mlp(4, 3)) == ["Linear"]
    assert kinds(mlp(4, 3, 2)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(mlp(4, 3, 2, norm_last=True)) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert mlp(4, 3, 2)[0].bias is None and mlp(4, 3, 2)[-1].bias is not None


# Collapse readings

def test_collapse_level_at_its_ends():
    spread = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert collapse_level(spread) == pytest.approx(0, abs=0.01)
    assert collapse_level(torch.full((100, 64), 3.0)) == pytest.approx(1, abs=1e-6)
    assert collapse_level(torch.eye(2).repeat(50, 1)) == pytest.approx(1 - math.sqrt(2) / 2, abs=1e-6)


def test_collapse_level_equals_lightly():
    std_of_l2_normalized = pytest.importorskip("lightly.utils.debug").std_of_l2_normalized
    z = torch.randn(3000, 32, generator=torch.Generator().manual_seed(1)) + 1
    assert collapse_level(z) == pytest.approx(1 - math.sqrt(32) * std_of_l2_normalized(z).item(), abs=1e-3)


@pytest.mark.parametrize("n,dim", [(1, 8), (5, 64), (500, 3)])
def test_collapse_level_stays_between_0_and_1(n, dim):
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(2))
    assert -1e-6 <= collapse_level(z) <= 1 + 1e-6


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(7)) == pytest.approx(7, rel=1e-4)
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1, rel=1e-3)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1, 0, 0]))) == pytest.approx(2, rel=1e-4)
    share = torch.tensor([0.5, 0.25, 0.25])   # entropy 1.5 bits
    assert effective_rank(torch.diag(share)) == pytest.approx(2 ** 1.5, rel=1e-4)
    assert effective_rank(torch.zeros(10, 4)) == pytest.approx(1, rel=1e-4)


def test_effective_rank_ignores_scale_and_rotation():
    z = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 17))
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    assert effective_rank(100 * z @ turn) == pytest.approx(effective_rank(z), rel=1e-4)


def test_alignment_and_uniformity_of_known_points():
    poles = torch.tensor([[1.0, 0], [-1, 0]])
    assert alignment(poles, 2 * poles) == pytest.approx(0, abs=1e-6)
    assert alignment(poles, -poles) == pytest.approx(4, abs=1e-6)
    assert uniformity(poles) == pytest.approx(-8, abs=1e-5)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("reading", [collapse_level, effective_rank, uniformity])
def test_readings_take_arrays_and_tensors_that_learn(reading):
    z = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    values = reading(z), reading(z.numpy()), reading(z.clone().requires_grad_())
    assert all(isinstance(v, float) for v in values) and len(set(values)) == 1
