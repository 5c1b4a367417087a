"""The losses and the collapse readings: their papers' formulas, lightly's as a second opinion, known values, and where gradients may flow."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_sdo.models.byol import cosine_momentum
from search_sdo.models.collapse import alignment, collapse_level, effective_rank, plot_panel, spectrum, uniformity
from search_sdo.models.encoder import make_backbone, mlp
from search_sdo.models.redundancy import barlow_twins, cross_correlation, shortfall_and_repetition, vicreg
from search_sdo.models.simclr import SimCLR, decoupled_nt_xent, nt_xent
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


# The papers' formulas, as slow loops in float64

@pytest.fixture
def exact(pair):
    return [z.double() for z in pair]


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def strangers_and_twin(z1, z2):
    "For each of the 2N views: its similarity to its twin, and to every view but itself and its twin"
    z, n = torch.cat([z1, z2]), len(z1)
    for i in range(2 * n):
        twin = (i + n) % (2 * n)
        yield cosine(z[i], z[twin]), [cosine(z[i], z[j]) for j in range(2 * n) if j not in (i, twin)]


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_nt_xent_is_the_papers_formula(exact, t):
    rows = [-math.log(math.exp(twin / t) / (math.exp(twin / t) + sum(math.exp(s / t) for s in others))) for twin, others in strangers_and_twin(*exact)]
    assert nt_xent(*exact, t).item() == pytest.approx(np.mean(rows), abs=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_decoupled_is_the_papers_formula(exact, t):
    rows = [-twin / t + math.log(sum(math.exp(s / t) for s in others)) for twin, others in strangers_and_twin(*exact)]
    assert decoupled_nt_xent(*exact, t).item() == pytest.approx(np.mean(rows), abs=1e-6)


@pytest.mark.parametrize("t,sigma", [(0.1, 0.5), (0.5, 0.2)])
def test_weighted_decoupled_is_the_papers_formula(exact, t, sigma):
    twins = [math.exp(cosine(a, b) / sigma) for a, b in zip(*exact)]
    weight = [2 - w / np.mean(twins) for w in twins] * 2
    rows = [-w * twin / t + math.log(sum(math.exp(s / t) for s in others)) for w, (twin, others) in zip(weight, strangers_and_twin(*exact))]
    assert np.mean(weight) == pytest.approx(1)
    assert decoupled_nt_xent(*exact, t, sigma).item() == pytest.approx(np.mean(rows), abs=1e-6)


def test_weights_of_twins_get_no_gradient(exact):
    "The weights are numbers, not part of what is learned: doubling them all doubles the pull"
    def gradient(sigma):
        z = [x.clone().requires_grad_() for x in exact]
        decoupled_nt_xent(*z, 0.2, sigma).backward()
        return z[0].grad
    torch.testing.assert_close(gradient(1e9), gradient(None), atol=1e-8, rtol=1e-5)      # all weights 1


def test_cross_correlation_is_the_papers_formula(exact):
    z1, z2 = (z - z.mean(0) for z in exact)
    d = z1.shape[1]
    expected = torch.tensor([[float((z1[:, i] * z2[:, j]).sum() / (z1[:, i].square().sum().sqrt() * z2[:, j].square().sum().sqrt())) for j in range(d)] for i in range(d)])
    torch.testing.assert_close(cross_correlation(*exact, eps=1e-12).float(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cross_correlation(*exact).float(), expected, atol=1e-4, rtol=0)


def test_barlow_twins_is_the_papers_formula(exact):
    c = cross_correlation(*exact).numpy()
    on = sum((1 - c[i, i]) ** 2 for i in range(len(c)))
    off = sum(c[i, j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j)
    assert barlow_twins(*exact, 0.02).item() == pytest.approx(on + 0.02 * off, abs=1e-6)


def vicreg_of_the_paper(z1, z2, weights, eps=1e-4):
    "Equations 1 to 6 of arXiv:2105.04906: the invariance is summed over D, the two spreads are not halved"
    n, d = z1.shape
    def v(z): return np.mean([max(0, 1 - math.sqrt(np.var(z[:, j], ddof=1) + eps)) for j in range(d)])
    def c(z):
        cov = np.cov(z.T)
        return sum(cov[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    s = np.mean([((a - b) ** 2).sum() for a, b in zip(z1, z2)])
    return weights[0] * s + weights[1] * (v(z1) + v(z2)) + weights[2] * (c(z1) + c(z2))


def test_vicreg_is_the_papers_formula(exact):
    half = [0.4 * z for z in exact]                 # so narrow that the spread matters
    expected = vicreg_of_the_paper(*[z.numpy() for z in half], (25 / half[0].shape[1], 25 / 2, 1))
    assert vicreg(*half).item() == pytest.approx(expected, abs=1e-6)
    assert shortfall_and_repetition(half[0])[0] > 0.3


def test_momentum_is_the_papers_formula():
    for k in range(11): assert cosine_momentum(k, 10, 0.9) == pytest.approx(1 - (1 - 0.9) * (math.cos(math.pi * k / 10) + 1) / 2)
    assert cosine_momentum(0, 10) == 0.996 and cosine_momentum(10, 10) == cosine_momentum(12, 10) == 1
    assert [cosine_momentum(k, 50) for k in range(51)] == sorted(cosine_momentum(k, 50) for k in range(51))


# lightly's opinion

def lightlys(name, **kw):
    return getattr(pytest.importorskip("lightly.loss"), name)(**kw)


@pytest.mark.parametrize("t", [0.07, 0.2, 1.0])
def test_decoupled_equals_lightly(exact, t):
    assert abs(decoupled_nt_xent(*exact, t) - lightlys("DCLLoss", temperature=t)(*exact)) < 1e-6


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_weighted_decoupled_equals_lightly(exact):
    assert abs(decoupled_nt_xent(*exact, 0.2, 0.5) - lightlys("DCLWLoss", temperature=0.2, sigma=0.5)(*exact)) < 1e-6


@pytest.mark.parametrize("scale", [0.1, 1, 3])
def test_vicreg_equals_lightly(exact, scale):
    z = [scale * x for x in exact]
    assert abs(vicreg(*z) - lightlys("VICRegLoss")(*z)) < 1e-6
    assert abs(vicreg(*z, 10., 5., 2.) - lightlys("VICRegLoss", lambda_param=10., mu_param=5., nu_param=2.)(*z)) < 1e-6


@pytest.mark.parametrize("weight", [0.005, 0.1])
def test_barlow_twins_equals_lightly(exact, weight):
    assert abs(barlow_twins(*exact, weight) - lightlys("BarlowTwinsLoss", lambda_param=weight)(*exact)) < 1e-6


@pytest.mark.parametrize("ours,theirs", [(decoupled_nt_xent, "DCLLoss"), (vicreg, "VICRegLoss"), (barlow_twins, "BarlowTwinsLoss")])
def test_gradients_equal_lightlys(exact, ours, theirs):
    a, b = ([z.clone().requires_grad_() for z in exact] for _ in range(2))
    (ours(*a, 0.1) if ours is decoupled_nt_xent else ours(*a)).backward()
    lightlys(theirs)(*b).backward()
    for x, y in zip(a, b): torch.testing.assert_close(x.grad, y.grad, atol=1e-9, rtol=1e-6)


# What cannot be compared

LOSSES = [nt_xent, decoupled_nt_xent, barlow_twins, vicreg]


@pytest.mark.parametrize("loss", LOSSES)
def test_one_row_is_refused(loss):
    with pytest.raises(ValueError, match=r"1 row\(s\).*at least 2.*batch_size"):
        loss(torch.rand(1, 8), torch.rand(1, 8))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shapes", [((4, 8), (3, 8)), ((4, 8), (4, 7)), ((4,), (4,)), ((4, 8, 1), (4, 8, 1))])
def test_rows_that_do_not_belong_together_are_refused(loss, shapes):
    with pytest.raises(ValueError, match=r"expected \[N, D\] twice"):
        loss(*[torch.rand(s) for s in shapes])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rows_that_are_all_the_same_give_a_finite_loss_and_gradient(loss, value):
    z = [torch.full((6, 4), value, requires_grad=True) for _ in range(2)]
    loss(*z).backward()
    assert loss(*z).isfinite() and all(x.grad.isfinite().all() for x in z)


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_is_not_hidden(loss, pair):
    pair[0][3, 2] = torch.nan
    assert not loss(*pair).isfinite()


@pytest.mark.parametrize("loss", LOSSES)
def test_two_rows_are_enough(loss):
    assert loss(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 0.5], [0, 1]])).isfinite()


# What the methods use

def test_simclr_uses_its_temperature(pair):
    model, views = SimCLR(make_backbone(widths=(8, 16)), temperature=0.05), torch.rand(2, 12, 1, 32, 32)
    z1, z2 = (model.project(v) for v in views)
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


def test_spectrum_of_known_matrices():
    torch.testing.assert_close(spectrum(torch.diag(torch.tensor([1.0, 3, 0]))), torch.tensor([0.75, 0.25, 0]))
    torch.testing.assert_close(spectrum(5 * torch.eye(4)[:, :2]), torch.tensor([0.5, 0.5]))
    assert spectrum(torch.zeros(5, 3)).tolist() == [0, 0, 0]
    z = np.random.default_rng(0).normal(size=(100, 8))
    values = np.linalg.svd(z, compute_uv=False)
    np.testing.assert_allclose(spectrum(z), values / values.sum(), atol=1e-6)


@pytest.mark.parametrize("reading", [spectrum, effective_rank])
@pytest.mark.parametrize("z", [torch.zeros(0, 4), torch.ones(4), torch.tensor([[1.0, torch.nan], [0, 1]]), torch.tensor([[torch.inf, 0]])])
def test_features_without_a_spectrum_are_refused(reading, z):
    with pytest.raises(ValueError, match=r"expected finite features \[N, D\]"):
        reading(z)


@pytest.mark.parametrize("n", [0, 1])
def test_uniformity_needs_a_pair(n):
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(torch.ones(n, 4))


def test_one_row_has_collapsed_by_definition():
    assert collapse_level(torch.rand(1, 8)) == pytest.approx(1)


def test_the_panel_shows_what_was_read():
    dice = torch.Generator().manual_seed(0)
    features = {"awake": torch.randn(100, 8, generator=dice), "asleep": torch.ones(100, 8)}
    fig = plot_panel(features, {"awake": [3, 2, 1]}, "two runs")
    loss, lengths, level, rank = fig.axes
    assert list(loss.lines[0].get_ydata()) == [3, 2, 1] and len(loss.lines[1].get_ydata()) == 0
    assert [bar.get_height() for bar in level.patches] == [collapse_level(z) for z in features.values()]
    assert [bar.get_height() for bar in rank.patches] == [effective_rank(z) for z in features.values()]
    assert lengths.lines[0].get_ydata()[0] == 1 and [text.get_text() for text in lengths.get_legend().get_texts()] == ["awake", "asleep"]
    assert len(plot_panel(features).axes) == 3
