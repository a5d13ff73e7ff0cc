import math

import pytest
import torch
import torch.nn.functional as F

from training.samfeat.losses import semantic_contrast


def plain(descriptors, groups, margin=0.07, temperature=5.0):
    """L_wsc of one image by loops, None where a kind of pair is missing."""
    same, different = [], []
    for i in range(len(groups)):
        for j in range(len(groups)):
            if i == j or groups[i] == 0 or groups[j] == 0:
                continue
            (same if groups[i] == groups[j] else different).append(float((descriptors[i] - descriptors[j]).norm()))
    if not same or not different:
        return None
    attract = math.exp(-max(sum(same) / len(same), margin) / temperature)
    repel = math.exp(-sum(different) / len(different) / temperature)
    return -math.log(attract / (attract + repel))


@pytest.fixture
def descriptors():
    values = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.normalize(values, dim=-1)


GROUPS = torch.tensor([[0, 1, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3], [0] * 11 + [1], [5] * 6 + [900] * 6])


def test_value_is_that_of_loops(descriptors):
    first, third = plain(descriptors[0], GROUPS[0]), plain(descriptors[2], GROUPS[2])
    # The second image has no pair of either kind and does not count.
    assert plain(descriptors[1], GROUPS[1]) is None
    assert float(semantic_contrast(descriptors, GROUPS)) == pytest.approx((first + third) / 2)
    flags = torch.tensor([True, True, False])
    assert float(semantic_contrast(descriptors, GROUPS, has_teacher=flags)) == pytest.approx(first)


def test_masked_points_do_not_count(descriptors):
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[:, 3:5] = False
    expected = [plain(d[v], g[v]) for d, g, v in zip(descriptors, GROUPS, valid, strict=True)]
    dirty = descriptors.clone()
    dirty[:, 3:5] = torch.nan
    assert float(semantic_contrast(dirty, GROUPS, valid=valid)) == pytest.approx((expected[0] + expected[2]) / 2)


def test_the_margin_stops_the_pull():
    """Same-group points nearer than M on average get no gradient."""
    descriptors = torch.tensor([[[1.0, 0], [1, 0.05], [0, 1], [0.05, 1]]], requires_grad=True)
    groups = torch.tensor([[1, 1, 2, 2]])
    semantic_contrast(descriptors, groups, margin=0.07).backward()
    between = descriptors.grad.clone()
    descriptors.grad = None
    semantic_contrast(descriptors, groups, margin=0.01).backward()
    assert not torch.allclose(between, descriptors.grad)
    loss = semantic_contrast(descriptors, groups, margin=0.07)
    assert float(loss) == pytest.approx(plain(descriptors[0].detach(), groups[0]), rel=1e-5)


def test_gradient(descriptors):
    descriptors.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: semantic_contrast(d, GROUPS), descriptors)


@pytest.mark.parametrize("groups", [torch.zeros(3, 12), torch.ones(3, 12), torch.arange(1, 13).expand(3, 12)])
def test_no_pairs_of_one_kind(descriptors, groups):
    descriptors.requires_grad_()
    loss = semantic_contrast(descriptors, groups.long())
    loss.backward()
    assert float(loss.detach()) == 0 and float(descriptors.grad.abs().max()) == 0


def test_equal_descriptors_have_finite_gradients():
    descriptors = torch.ones(1, 4, 8, requires_grad=True)
    semantic_contrast(descriptors, torch.tensor([[1, 1, 2, 2]])).backward()
    assert descriptors.grad.isfinite().all()


def test_under_autocast_it_computes_in_float32(descriptors):
    half = descriptors.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = semantic_contrast(half, GROUPS)
    assert loss.dtype == torch.float32 and float(loss) == float(semantic_contrast(half.float(), GROUPS))
