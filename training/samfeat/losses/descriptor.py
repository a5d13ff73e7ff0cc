"""L_des: attention-weighted triplet loss with the hardest in-batch negative (SAMFeat, arXiv 2309.16992, section 3).

With d_i, d'_i the matchable descriptors (unit descriptor times attention weight) of the corresponding points i in the
two images, and a_i the attention at point i of the first,

    D_i+ = |d_i - d'_i|,   D_i- = min over j not near i of |d_i - d'_j|
    L_des = sum_i softmax_i(a / T) max(0, 1 + D_i+ - D_i-),   T = 14
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import full_precision, image_mask, mean_over_images, pairwise_distance


@full_precision
def descriptor_triplet(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points1: Tensor,
    valid: Tensor | None = None,
    *,
    attention0: Tensor | None = None,
    attention1: Tensor | None = None,
    points0: Tensor | None = None,
    include: Tensor | None = None,
    margin: float = 1.0,
    safe_radius: float = 8.0,
    temperature: float = 14.0,
) -> Tensor:
    """L_des, a scalar: the mean over the pairs in which any point has a negative (0 where there is none).

    Row i of both descriptor sets belongs to one scene point; negatives are searched among the other points of the
    same pair.

    Args:
        descriptors0, descriptors1: (B, N, D) unit rows, sampled in image 0 and at the true positions in image 1.
        points1: (B, N, 2) those positions, pixels of image 1: points within `safe_radius` are no negatives.
        valid: (B, N) bool, rows that are true correspondences, by default those of finite `points1`. The others
            take no part, neither as anchors nor as negatives.
        attention0, attention1: (B, N) positive attention at the points, or None (unit descriptors, equal weights).
            Their gradient flows: this loss is what teaches the attention.
        points0: (B, N, 2) positions in image 0. Where given, the hardest negative of i is the nearer of |d_i - d'_j|
            and |d_j - d'_i| (HardNet's mining), without points near in either image. The paper searches image 1 only.
        include: (B,) bool, pairs to be used; None = all.
        margin, safe_radius (pixels), temperature: the constants of the equation.
    """
    finite = points1.isfinite().all(-1)
    valid = finite if valid is None else valid & finite
    first = _matchable(descriptors0, attention0, valid)
    second = _matchable(descriptors1, attention1, valid)
    distance = pairwise_distance(first, second)
    positive = distance.diagonal(dim1=1, dim2=2)

    excluded = _near(points1, safe_radius) | ~valid[:, None, :]
    if points0 is not None:
        excluded = excluded | _near(points0, safe_radius)
        distance = torch.minimum(distance, distance.transpose(1, 2))
    negative = distance.masked_fill(excluded, torch.inf).amin(2)
    used = valid & negative.isfinite()
    # An infinite negative would be harmless in relu, but not its gradient times zero.
    violation = torch.relu(margin + positive - torch.where(used, negative, positive))

    attention = torch.zeros_like(positive) if attention0 is None else attention0
    logits = (attention / temperature).masked_fill(~used, -torch.inf)
    any_used = used.any(1)
    weight = torch.softmax(torch.where(any_used[:, None], logits, torch.zeros_like(logits)), 1)
    weight = torch.where(used, weight, torch.zeros_like(weight))
    return mean_over_images((weight * violation).sum(1), any_used & image_mask(include, descriptors0))


def _matchable(descriptors: Tensor, attention: Tensor | None, valid: Tensor) -> Tensor:
    scaled = descriptors if attention is None else descriptors * attention[..., None]
    return torch.where(valid[..., None], scaled, torch.zeros_like(scaled))


def _near(points: Tensor, radius: float) -> Tensor:
    """(B, N, N) bool: the two positions of (B, N, 2) are within `radius` pixels, each point near itself."""
    offset = points[:, :, None] - points[:, None, :]
    itself = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    return (offset.square().sum(-1) <= radius**2) | itself
