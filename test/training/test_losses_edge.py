import math

import pytest
import torch

from training.samfeat.losses import edge_loss


@pytest.fixture
def logits():
    return torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def edges():
    return torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(1)) > 0.93


def plain(logits, edges, valid=None):
    """L_edge of one image by loops: logits (h, w), edges and valid (4h, 4w)."""
    values = []
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            cell = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
            if valid is None or bool(valid[cell].all()):
                predicted = 1 / (1 + math.exp(-float(logits[y, x])))
                values.append((predicted - float(edges[cell].any())) ** 2)
    return sum(values) / len(values)


def test_value_is_that_of_loops(logits, edges):
    assert 0 < int(torch.nn.functional.max_pool2d(edges.float(), 4).sum()) < 24
    expected = [plain(a[0], e[0]) for a, e in zip(logits, edges, strict=True)]
    assert float(edge_loss(logits, edges)) == pytest.approx(sum(expected) / 2)
    assert float(edge_loss(logits, edges, has_teacher=torch.tensor([True, False]))) == pytest.approx(expected[0])


def test_masked_pixels_do_not_count(logits, edges):
    valid = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(2)) > 0.03
    expected = [plain(a[0], e[0], v[0]) for a, e, v in zip(logits, edges, valid, strict=True)]
    assert float(edge_loss(logits, edges, valid=valid)) == pytest.approx(sum(expected) / 2)
    valid[1] = False
    assert float(edge_loss(logits, edges, valid=valid)) == pytest.approx(expected[0])


def test_gradient(logits, edges):
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: edge_loss(x, edges), logits)


def test_without_teacher_output_it_is_zero(logits, edges):
    logits.requires_grad_()
    loss = edge_loss(logits, edges, has_teacher=torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0 and float(logits.grad.abs().max()) == 0


def test_under_autocast_it_computes_in_float32(logits, edges):
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = edge_loss(half, edges)
    assert loss.dtype == torch.float32 and float(loss) == float(edge_loss(half.float(), edges))
