"""Which views show the same place on the turning Sun, and a loss that takes none of them for a stranger."""
import math

import pytest
import torch
import torch.nn.functional as F

from search_sdo.models.encoder import make_backbone
from search_sdo.models.places import KinCLR, PlaceHint, kin, kin_loss
from search_sdo.models.simclr import decoupled_nt_xent
from search_sdo.models.sky import Sky, partners
from search_sdo.packager.frame import Disk

SUN = Disk(127.5, 127.5, 102.4)


def sky_of_days(*days):
    return Sky(torch.tensor(days).double(), torch.full((len(days),), .1), SUN, torch.tensor([False]))


def test_places_that_are_followed_are_kin_and_others_are_not():
    sky = sky_of_days(0., 1., 2.5, 4.)
    torch.manual_seed(0)
    places = torch.cat([torch.randint(4, (60, 1)).float(), 127.5 + 50 * (2 * torch.rand(60, 2) - 1)], 1)
    both = torch.cat([places, partners(places, sky, 3.)])
    moved = both[:60, 0] != both[60:, 0]
    assert moved.sum() > 40
    assert kin(both, sky, near=.5)[:60, 60:].diagonal()[moved].all()
    apart = kin(both, sky, near=.5)
    assert torch.equal(apart, apart.T) and apart[:60, :60].sum() < 120    # chance meetings apart, only with itself


def test_nobody_is_kin_beyond_the_limb_in_undated_frames_or_half_a_turn_later():
    sky = sky_of_days(0., 14., math.nan)
    middle, beyond = [127.5, 127.5], [127.5, 240.]
    views = torch.tensor([[0, *middle], [0, *beyond], [2, *middle], [2, *middle], [1, *middle]])
    assert kin(views, sky, near=180.).nonzero().tolist() == [[0, 0], [4, 4]]
    assert kin(views, sky, near=180., days=15.).nonzero().tolist() == [[0, 0], [0, 4], [4, 0], [4, 4]]


def test_without_kin_it_is_the_decoupled_loss_and_the_definition_with_them():
    torch.manual_seed(1)
    z1, z2 = torch.randn(2, 6, 4)
    alone = torch.zeros(12, 12, dtype=torch.bool)
    torch.testing.assert_close(kin_loss(z1, z2, alone, .3), decoupled_nt_xent(z1, z2, .3))
    same = alone.clone()
    same[0, 3] = same[3, 0] = True
    z, total = F.normalize(torch.cat([z1, z2]), dim=1), 0
    for i in range(12):
        twin, kins = (i + 6) % 12, same[i].nonzero().flatten().tolist()
        strangers = [j for j in range(12) if j not in (i, twin, *kins)]
        pull = (z[i] @ z[twin] + .5 * sum(z[i] @ z[j] for j in kins)) / (1 + .5 * len(kins))
        total += torch.logsumexp(torch.stack([z[i] @ z[j] / .3 for j in strangers]), 0) - pull / .3
    torch.testing.assert_close(kin_loss(z1, z2, same, .3, attract=.5), total / 12)


def test_a_batch_of_one_family_still_has_a_finite_loss_and_gradient():
    z1, z2 = torch.randn(2, 4, 3, requires_grad=True)
    loss = kin_loss(z1, z2, torch.ones(8, 8, dtype=torch.bool))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, z1)[0].isfinite().all()


def test_the_hint_tells_the_method_what_it_asks_for():
    torch.manual_seed(0)
    method = KinCLR(make_backbone(widths=(8, 16))).train()
    views, sky = torch.rand(2, 6, 1, 32, 32), sky_of_days(0., 1.)
    middles = torch.cat([torch.zeros(12, 1), torch.full((12, 2), 127.5)], 1)
    middles[3:9, 2] -= 60
    hint = PlaceHint(method.backbone.dim, SUN)
    assert hint(method, *views, middles, dict(middles=middles, sky=sky)) != hint(method, *views, middles)


@pytest.mark.parametrize("wrong", [dict(near=-1), dict(days=-1), dict(attract=-.1)])
def test_negative_options_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 0 or more"):
        KinCLR(make_backbone(widths=(8, 16)), **wrong)
