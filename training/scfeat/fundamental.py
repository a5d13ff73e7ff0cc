"""Fundamental matrices from random 8-point samples, all batch items and samples at once (SCFeat, section III-E)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfeat_core.two_view import to_homogeneous

SAMPLE = 8


def eight_point(points0: Tensor, points1: Tensor) -> Tensor:
    """F (..., 3, 3) float64 of rank 2 with x1^T F x0 = 0 from eight matches (..., 8, 2), by Hartley's algorithm.

    The null vector of eight equations in nine unknowns is the last column of a complete QR decomposition: exact, and
    an order of magnitude faster than the singular vectors.
    """
    normal0, T0 = hartley(points0.double())
    normal1, T1 = hartley(points1.double())
    x0, x1 = to_homogeneous(normal0), to_homogeneous(normal1)
    equations = (x1.unsqueeze(-1) * x0.unsqueeze(-2)).flatten(-2)
    null = torch.linalg.qr(equations.transpose(-1, -2), mode="complete")[0][..., -1]
    full = null.unflatten(-1, (3, 3))
    # The nearest matrix of rank 2 is without the part along the weakest right singular vector.
    weakest = torch.linalg.eigh(full.transpose(-1, -2) @ full)[1][..., :1]
    return T1.transpose(-1, -2) @ (full - full @ weakest @ weakest.transpose(-1, -2)) @ T0


def hartley(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (..., N, 2) moved to mean 0 and scaled to mean length sqrt(2), and the matrix (..., 3, 3) that does it."""
    mean = points.mean(-2, keepdim=True)
    scale = 2**0.5 / (points - mean).norm(dim=-1).mean(-1).clamp(min=1e-12)
    matrix = torch.zeros(*points.shape[:-2], 3, 3, dtype=points.dtype, device=points.device)
    matrix[..., 0, 0] = matrix[..., 1, 1] = scale
    matrix[..., :2, 2] = -scale[..., None] * mean[..., 0, :]
    matrix[..., 2, 2] = 1
    return (points - mean) * scale[..., None, None], matrix


def draw_samples(weights: Tensor, samples: int, pool: int = 256) -> tuple[Tensor, Tensor]:
    """Random sets of eight different rows, rows being drawn in proportion to their weights.

    A pool of rows is drawn by systematic sampling of the weights, and every set from the pool, any set as likely.

    Args:
        weights: (B, P) >= 0; rows of weight 0 are never drawn.

    Returns:
        (B, samples, 8) int64 rows, and (B,) bool: there are eight rows to draw. Where False, the rows are arbitrary.
    """
    total = weights.cumsum(1)
    comb = (torch.arange(pool, device=weights.device) + torch.rand(len(weights), pool, device=weights.device)) / pool
    # Ascending, so that a heavy row that is drawn again follows itself.
    rows = torch.searchsorted(total, comb * total[:, -1:], right=True).clamp(max=weights.shape[1] - 1)
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    again |= weights.gather(1, rows) <= 0
    count = (~again).sum(1)
    # In random order, the rows drawn again at the end; then one row of each eighth, so that no set repeats a row.
    rows = rows.gather(1, (torch.rand_like(comb) + again).argsort(1))
    bounds = torch.arange(SAMPLE + 1, device=weights.device) * count[:, None] // SAMPLE
    low, width = bounds[:, None, :-1], bounds.diff(dim=1)[:, None]
    sets = low + (torch.rand(len(weights), samples, SAMPLE, device=weights.device) * width).long()
    return rows[:, None].expand(-1, samples, -1).gather(2, sets), count >= SAMPLE


def normalized_difference(estimate: Tensor, truth: Tensor, size0: tuple[int, int], size1: tuple[int, int]) -> Tensor:
    """Smooth-L1 distance (...) of fundamental matrices (..., 3, 3), in [0, 1].

    Both are taken to image coordinates in [-1, 1] and divided by their Frobenius norm, and the sign that is nearer
    counts. The authors divide by the last entry, in pixels: that entry may be zero, and the others are then so small
    that every estimate is nearly equal to the truth.
    """
    A0, A1 = (_to_pixels(size, truth) for size in (size0, size1))
    estimate, truth = (_unit(A1.transpose(-1, -2) @ f.to(A0.dtype) @ A0) for f in (estimate, truth))
    sign = torch.where((estimate * truth).sum((-1, -2), keepdim=True) < 0, -1.0, 1.0)
    difference = F.smooth_l1_loss(sign * estimate, truth.expand_as(estimate), reduction="none")
    return difference.sum((-1, -2))


def _to_pixels(size: tuple[int, int], like: Tensor) -> Tensor:
    """(3, 3) float64: coordinates in [-1, 1] to pixels of a (width, height) image."""
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    return torch.tensor([[x, 0, x], [0, y, y], [0, 0, 1]], dtype=torch.float64, device=like.device)


def _unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.flatten(-2).norm(dim=-1)[..., None, None].clamp(min=1e-300)


@torch.no_grad()
def fundamental_error(
    points0: Tensor,
    points1: Tensor,
    weights: Tensor,
    truth: Tensor,
    size0: tuple[int, int],
    size1: tuple[int, int],
    samples: int = 100,
    sharpness: float = 1.0,
) -> Tensor:
    """e (B,) = tanh of the least difference from the true F among random 8-point estimates; NaN below eight matches.

    The difference is smooth-L1, so quadratic where it is small, and the best of many estimates is good. For matches
    with 0.3, 1 and 3 px of noise e is 0.0002, 0.002 and 0.01 at the paper's sharpness of 1, where the reward hardly
    depends on it, and 0.006, 0.09 and 0.37 at 30 (100 matches, 640x480).

    Args:
        points0, points1: (B, N, 2), (B, M, 2) keypoints in pixels.
        weights: (B, N, M) with which a pair of them is drawn; 0 = never.
        truth: (B, 3, 3) with x1^T F x0 = 0.
        size0, size1: (width, height) of the images.
        samples: number of 8-point estimates per batch item.
        sharpness: factor on the difference before the tanh.
    """
    batch, _, columns = weights.shape
    sets, enough = draw_samples(weights.flatten(1), samples)
    item = torch.arange(batch, device=weights.device)[:, None, None]
    estimate = eight_point(points0[item, sets // columns], points1[item, sets % columns])
    difference = normalized_difference(estimate, truth[:, None], size0, size1)
    least = torch.tanh(sharpness * difference.nan_to_num(torch.inf).amin(1)).to(points0.dtype)
    return torch.where(enough, least, torch.nan)
