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


def plain(logits, edges):
    """L_edge of one image by loops: logits (h, w), edges (4h, 4w).

    A bilinear copy of a quarter of the size holds the means of the middle 2x2 pixels of the cells.
    """
    values = []
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            target = float(edges[4 * y + 1 : 4 * y + 3, 4 * x + 1 : 4 * x + 3].to(torch.float64).mean())
            if not math.isnan(target):
                values.append((1 / (1 + math.exp(-float(logits[y, x]))) - target) ** 2)
    return sum(values) / len(values)


def test_value_is_that_of_loops(logits, edges):
    expected = [plain(a[0], e[0]) for a, e in zip(logits, edges, strict=True)]
    assert float(edge_loss(logits, edges)) == pytest.approx(sum(expected) / 2)
    assert float(edge_loss(logits, edges, has_teacher=torch.tensor([True, False]))) == pytest.approx(expected[0])


def test_the_target_is_as_dense_as_the_edges(logits):
    """Lines of two pixels, as the stores hold them: the share of edge in the target is theirs. The square of the error
    at sigmoid 0 is the square of the target, so two levels of one line tell it."""
    lines = torch.zeros(2, 1, 64, 64, dtype=torch.float64)
    lines[0, :, :, 9:11] = 1  # in the middle of a column of cells: read in full
    lines[1, :, :, 11:13] = 1  # shared by two columns: read by neither
    never = torch.full((2, 1, 16, 16), -1e3, dtype=torch.float64)
    found = [float(edge_loss(never[n : n + 1], lines[n : n + 1])) for n in range(2)]
    assert found == pytest.approx([1 / 16, 0])


def test_pixels_off_the_photograph_do_not_count(logits, edges):
    unknown = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(2)) < 0.05
    edges = edges.to(torch.float64).masked_fill(unknown, float("nan"))
    expected = [plain(a[0], e[0]) for a, e in zip(logits, edges, strict=True)]
    assert float(edge_loss(logits, edges)) == pytest.approx(sum(expected) / 2)
    edges[1] = float("nan")
    logits.requires_grad_()
    loss = edge_loss(logits, edges)
    assert float(loss.detach()) == pytest.approx(expected[0])
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[1].any()


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
