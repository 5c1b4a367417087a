"""What every method shares: two views in, one float32 number out, gradients where they belong, and one batch over several processes."""
import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from search_sdo.models.byol import BYOL, cosine_momentum, follow
from search_sdo.models.encoder import make_backbone
from search_sdo.models.method import Method, gather
from search_sdo.models.redundancy import BarlowTwins, VICReg
from search_sdo.models.simclr import SimCLR, decoupled_nt_xent
from search_sdo.models.simsiam import SimSiam, negative_cosine

METHODS = dict(simsiam=SimSiam, simclr=SimCLR, dcl=partial(SimCLR, decoupled=True), dclw=partial(SimCLR, decoupled=True, sigma=0.5),
               byol=BYOL, vicreg=VICReg, barlow=BarlowTwins)


def build(name, **kw):
    torch.manual_seed(0)
    return METHODS[name](make_backbone(widths=(8, 16)), **kw)


@pytest.fixture
def views():
    return torch.rand(2, 12, 1, 32, 32, generator=torch.Generator().manual_seed(1))


# One skeleton

@pytest.mark.parametrize("name", METHODS)
def test_all_have_the_same_parts(name, views):
    model = build(name).eval()
    assert isinstance(model, Method)
    assert torch.equal(model(views[0]), model.backbone(views[0])) and model(views[0]).shape == (12, 16)
    z = model.project(views[0])
    assert z.ndim == 2 and len(z) == 12 and z.dtype == torch.float32
    assert model.predictor(z).shape == z.shape
    model.after_step(0, 10)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_learns(name, views):
    model = build(name)
    loss = model.loss(*views)
    assert loss.ndim == 0 and loss.dtype == torch.float32
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    teacher = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert all(n.startswith("teacher.") for n in teacher) and bool(teacher) == (name == "byol")


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_views_does_not_matter(name, views):
    model = build(name).eval()
    assert model.loss(*views).item() == pytest.approx(model.loss(*views.flip(0)).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["simclr", "dcl", "dclw", "vicreg", "barlow"])     # the others first have to learn to predict
def test_twins_that_are_swapped_cost_more(name, views):
    model = build(name).eval()
    assert model.loss(views[0], views[0]) < model.loss(views[0], views[0].roll(1, 0))


@pytest.mark.parametrize("name", METHODS)
def test_training_makes_the_loss_smaller(name, views):
    model = build(name)
    optimiser, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3), []
    for step in range(20):
        losses.append(model.loss(*views))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
        model.after_step(step, 20)
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_float32_in_mixed_precision(name, views):
    model = build(name).eval()
    exact = model.loss(*views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(*views)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.05, abs=0.05)


def test_criterion_is_computed_in_full_precision(views):
    "bfloat16 would lose the third digit of the similarities, and with it the loss"
    model = build("simclr", temperature=0.01).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        z = [model.project(view) for view in views]
        loss = model.loss(*views)
    from search_sdo.models.simclr import nt_xent
    assert loss.item() == pytest.approx(nt_xent(*z, 0.01).item(), rel=1e-6)


# Batches that teach nothing

@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_one_is_refused_in_words(name, views):
    with pytest.raises(ValueError, match=r"1 row\(s\).*at least 2.*batch_size"):
        build(name).loss(*views[:, :1])


@pytest.mark.parametrize("name", METHODS)
def test_pictures_that_are_all_the_same_give_a_finite_loss_and_gradient(name):
    model = build(name)
    loss = model.loss(*torch.full((2, 6, 1, 32, 32), 0.5))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", METHODS)
def test_nan_is_not_hidden(name, views):
    views[0, 3] = torch.nan
    assert not build(name).loss(*views).isfinite()


# SimCLR, BYOL

def test_decoupled_is_chosen(views):
    model = build("dclw", temperature=0.3).eval()
    z = [model.project(view) for view in views]
    assert model.loss(*views).item() == pytest.approx(decoupled_nt_xent(*z, 0.3, 0.5).item(), abs=1e-5)


def test_byol_loss_is_the_papers_algorithm(views):
    "The paper: |q - z|² of unit vectors, summed over both directions; ours is the mean cosine, 4 + 4 × ours"
    model = build("byol").eval()
    for p in model.teacher.parameters(): p.data *= 1.1
    def unit(z): return z / z.norm(dim=1, keepdim=True)
    both = ((unit(model.predictor(model.project(a))) - unit(model.teacher(b))).square().sum(dim=1).mean() for a, b in (views, views.flip(0)))
    assert 4 + 4 * model.loss(*views).item() == pytest.approx(sum(both).item(), abs=1e-5)


def test_the_teacher_is_no_student(views):
    model = build("byol")
    model.loss(*views).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert not {id(p) for p in model.teacher.parameters()} & {id(p) for p in model.student.parameters()}


def test_the_teacher_follows_once_a_step_with_the_papers_momentum():
    model, expected = build("byol", momentum=0.9), 0.0
    weight, target = model.backbone[0].weight, model.teacher[0][0].weight
    torch.nn.init.zeros_(weight), torch.nn.init.zeros_(target)
    for step in range(7):
        with torch.no_grad(): weight += 1
        model.after_step(step, 7)
        expected = cosine_momentum(step, 7, 0.9) * expected + (1 - cosine_momentum(step, 7, 0.9)) * (step + 1)
        assert target.mean().item() == pytest.approx(expected, rel=1e-4)


def test_the_teacher_at_the_ends_of_momentum():
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    before = a.weight.clone()
    follow(a, b, 1.0)
    assert torch.equal(a.weight, before)
    follow(a, b, 0.0)
    assert torch.equal(a.weight, b.weight)


def test_the_teacher_is_saved_with_the_model(views):
    model = build("byol", momentum=0.5)
    with torch.no_grad(): model.backbone[0].weight += 0.3
    model.after_step(1, 10)
    torch.manual_seed(7)
    again = BYOL(make_backbone(widths=(8, 16)), momentum=0.5)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval().loss(*views), model.eval().loss(*views))


def test_a_new_teacher_agrees_with_its_student(views):
    model = build("byol").eval()
    assert torch.equal(model.teacher(views[0]), model.project(views[0]))


def test_simsiam_and_byol_take_the_others_projection_as_target(views):
    model = build("simsiam").eval()
    z1, z2 = (model.project(v) for v in views)
    expected = (negative_cosine(model.predictor(z1), z2) + negative_cosine(model.predictor(z2), z1)) / 2
    assert torch.equal(model.loss(*views), expected)


# Several processes

def test_alone_nothing_is_gathered():
    z = torch.rand(3, 4)
    assert gather(z) is z


def gradients(name, views, everything):
    "Parameter gradients in evaluation mode, in which a row does not see the batch through BatchNorm, whose memory holds `everything`"
    model = build(name)
    for layer in model.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm): layer.momentum = 1.0
    model.loss(*everything)
    loss = model.eval().loss(*views)
    loss.backward()
    return {"loss": loss.detach().reshape(1), **{n: p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None}}


def one_of_two(rank, folder):
    torch.set_num_threads(1)    # also for the whole batch: more threads add in another order, and round to another sum
    views = load_file(f"{folder}/views.safetensors")["views"]
    for name in METHODS if rank == 0 else ():
        save_file(gradients(name, views, views), f"{folder}/{name}_alone.safetensors")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = views[:, 6 * rank:6 * rank + 6]
    for name in METHODS:
        found = gradients(name, mine, views)
        for value in found.values():                      # what DDP does
            dist.all_reduce(value)
            value /= 2
        if rank == 0: save_file(found, f"{folder}/{name}.safetensors")
    z = gather(torch.full((2, 3), float(rank)))
    if rank == 1: save_file({"z": z}, f"{folder}/gathered.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    views = torch.rand(2, 12, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    save_file({"views": views}, folder / "views.safetensors")
    mp.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return folder


def test_rows_come_in_the_order_of_processes(two_processes):
    assert load_file(two_processes / "gathered.safetensors")["z"][:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_the_gradients_of_one_with_the_double_batch(name, two_processes):
    expected, found = (load_file(two_processes / f"{name}{way}.safetensors") for way in ("_alone", ""))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5 * max(1, value.abs().max().item()), rtol=0, msg=lambda m: f"{key}: {m}")


@pytest.mark.parametrize("name", ["simclr", "dcl", "vicreg", "barlow"])
def test_half_the_batch_would_not_do(name, views):
    "Without gathering the gradients are others: the test above can fail"
    whole, halves = gradients(name, views, views), [gradients(name, half, views) for half in views.chunk(2, dim=1)]
    away = max((sum(h[key] for h in halves) / 2 - value).abs().max() / value.abs().max() for key, value in whole.items())
    assert away > 0.01


def test_a_method_can_be_copied(views):
    model = build("byol").eval()
    assert torch.equal(copy.deepcopy(model).loss(*views), model.loss(*views))
