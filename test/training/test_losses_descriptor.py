import math

import pytest
import torch
import torch.nn.functional as F

from training.samfeat.losses import descriptor_triplet

NAN = float("nan")


def plain(d0, d1, points1, valid, a0, a1, points0=None, margin=1.0, radius=8.0, temperature=14.0):
    """L_des of one pair by loops; None without any point that has a negative."""
    d0, d1 = d0 * a0[:, None], d1 * a1[:, None]
    terms = []
    for i in range(len(d0)):
        negatives = []
        for j in range(len(d0)):
            near = float((points1[i] - points1[j]).norm()) <= radius
            if points0 is not None:
                near = near or float((points0[i] - points0[j]).norm()) <= radius
            if valid[j] and not near and i != j:
                negatives.append(float((d0[i] - d1[j]).norm()))
                if points0 is not None:
                    negatives.append(float((d0[j] - d1[i]).norm()))
        if valid[i] and negatives:
            violation = max(0.0, margin + float((d0[i] - d1[i]).norm()) - min(negatives))
            terms.append((math.exp(float(a0[i]) / temperature), violation))
    if not terms:
        return None
    return sum(w * v for w, v in terms) / sum(w for w, _ in terms)


@pytest.fixture
def pair():
    random = torch.Generator().manual_seed(0)
    d0 = F.normalize(torch.randn(2, 10, 6, generator=random, dtype=torch.float64), dim=-1)
    d1 = F.normalize(d0 + 0.5 * torch.randn(2, 10, 6, generator=random, dtype=torch.float64), dim=-1)
    points0 = 40 * torch.rand(2, 10, 2, generator=random, dtype=torch.float64)
    points1 = points0 + 5 * torch.randn(2, 10, 2, generator=random, dtype=torch.float64)
    attention = 4 * torch.rand(2, 2, 10, generator=random, dtype=torch.float64) + 0.2
    return d0, d1, points0, points1, attention[0], attention[1]


def test_value_is_that_of_loops(pair):
    d0, d1, points0, points1, a0, a1 = pair
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[0, 2:5] = False
    expected = [plain(*one) for one in zip(d0, d1, points1, valid, a0, a1, strict=True)]
    assert min(expected) > 0
    loss = descriptor_triplet(d0, d1, points1, valid, attention0=a0, attention1=a1)
    assert float(loss) == pytest.approx(sum(expected) / 2)
    flags = torch.tensor([False, True])
    one = descriptor_triplet(d0, d1, points1, valid, attention0=a0, attention1=a1, include=flags)
    assert float(one) == pytest.approx(expected[1])
    both = [plain(*one) for one in zip(d0, d1, points1, valid, a0, a1, points0, strict=True)]
    loss = descriptor_triplet(d0, d1, points1, valid, attention0=a0, attention1=a1, points0=points0)
    assert float(loss) == pytest.approx(sum(both) / 2) and float(loss) != pytest.approx(sum(expected) / 2)


def test_without_attention_points_weigh_equally(pair):
    d0, d1, _, points1, _, _ = pair
    valid = torch.ones(2, 10, dtype=torch.bool)
    ones = torch.ones(2, 10)
    expected = [plain(*one) for one in zip(d0, d1, points1, valid, ones, ones, strict=True)]
    assert float(descriptor_triplet(d0, d1, points1)) == pytest.approx(sum(expected) / 2)


def test_gradient_reaches_descriptors_and_attention(pair):
    d0, d1, _, points1, a0, a1 = pair
    tensors = [t.requires_grad_() for t in (d0, d1, a0, a1)]
    assert torch.autograd.gradcheck(
        lambda d0, d1, a0, a1: descriptor_triplet(d0, d1, points1, attention0=a0, attention1=a1), tensors
    )


def test_invalid_points_take_no_part(pair):
    """Neither as anchors nor as negatives, whatever garbage was sampled there."""
    d0, d1, _, points1, a0, a1 = pair
    clean = descriptor_triplet(d0[:, :7], d1[:, :7], points1[:, :7], attention0=a0[:, :7], attention1=a1[:, :7])
    points1, d1 = points1.clone(), d1.clone()
    points1[:, 7:] = NAN
    d1[:, 7:] = NAN
    a0.requires_grad_()
    d0.requires_grad_()
    loss = descriptor_triplet(d0, d1, points1, attention0=a0, attention1=a1)
    assert float(loss.detach()) == pytest.approx(float(clean))
    loss.backward()
    assert d0.grad.isfinite().all() and a0.grad.isfinite().all() and float(a0.grad[:, 7:].abs().max()) == 0


@pytest.mark.parametrize("case", ["no correspondence", "all near", "one point"])
def test_nothing_to_learn_from(pair, case):
    d0, d1, _, points1, a0, _ = pair
    count = 1 if case == "one point" else 10
    points1 = points1[:, :count] * (0 if case == "all near" else 1) + (NAN if case == "no correspondence" else 0)
    d0, a0 = d0[:, :count].requires_grad_(), a0[:, :count].requires_grad_()
    loss = descriptor_triplet(d0, d1[:, :count], points1, attention0=a0)
    loss.backward()
    assert float(loss.detach()) == 0 and float(d0.grad.abs().max()) == 0 and float(a0.grad.abs().max()) == 0


def test_identical_descriptors_have_finite_gradients():
    descriptors = torch.ones(1, 3, 4, requires_grad=True)
    loss = descriptor_triplet(descriptors, descriptors, torch.tensor([[[0.0, 0], [50, 0], [0, 50]]]))
    loss.backward()
    assert float(loss) == pytest.approx(1) and descriptors.grad.isfinite().all()


def test_under_autocast_it_computes_in_float32(pair):
    d0, d1, _, points1, _, _ = pair
    d0, d1, points1 = d0.bfloat16(), d1.bfloat16(), points1.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = descriptor_triplet(d0, d1, points1)
    assert loss.dtype == torch.float32
    assert float(loss) == float(descriptor_triplet(d0.float(), d1.float(), points1))
