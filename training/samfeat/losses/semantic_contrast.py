"""L_wsc: weakly supervised contrast on semantic groups (SAMFeat, arXiv 2309.16992, section 3).

Among points sampled in one image, D+ is the mean descriptor distance of the pairs of one group, D- that of the pairs
of different groups:

    L_wsc = -log( exp(-max(D+, M) / T) / (exp(-max(D+, M) / T) + exp(-D- / T)) ),   M = 0.07, T = 5

Below the margin M same-group points attract no further: they must stay distinct to be matched.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision, image_mask, mean_over_images, pairwise_distance


@full_precision
def semantic_contrast(
    descriptors: Tensor,
    groups: Tensor,
    *,
    valid: Tensor | None = None,
    has_teacher: Tensor | None = None,
    margin: float = 0.07,
    temperature: float = 5.0,
) -> Tensor:
    """L_wsc, a scalar: the mean over the images with pairs of both kinds (0 where there is none).

    Args:
        descriptors: (B, N, D) at sampled points: unit rows, or scaled by the attention as matching does.
        groups: (B, N) integer group of each point; points of group 0 do not count.
        valid: (B, N) bool, points to be used; None = all.
        has_teacher: (B,) bool; None = all images.
        margin: M, the distance below which same-group points are near enough.
        temperature: T.

    A pair of points is taken once in either order; a point with itself is no pair.
    """
    grouped = groups > 0 if valid is None else (groups > 0) & valid
    safe = torch.where(grouped[..., None], descriptors, torch.zeros_like(descriptors))
    distance = pairwise_distance(safe, safe)
    pair = grouped[:, :, None] & grouped[:, None, :]
    alike = groups[:, :, None] == groups[:, None, :]
    itself = torch.eye(groups.shape[1], dtype=torch.bool, device=groups.device)
    near, positives = _mean_pair(distance, pair & alike & ~itself)
    far, negatives = _mean_pair(distance, pair & ~alike)
    # -log(e^-p / (e^-p + e^-n)) = log(1 + e^(p - n))
    loss = F.softplus((near.clamp(min=margin) - far) / temperature)
    return mean_over_images(loss, image_mask(has_teacher, descriptors) & (positives > 0) & (negatives > 0))


def _mean_pair(distance: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance (B,) over the marked pairs of (B, N, N), and their number (B,)."""
    number = pairs.sum((1, 2)).to(distance.dtype)
    return (distance * pairs).sum((1, 2)) / number.clamp(min=1), number
