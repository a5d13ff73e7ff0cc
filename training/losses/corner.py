"""Corners that both views show: the detector's standing example.

A synthetic view changes less than the world does, so that texture of low contrast is found again in training and
never on a robot. Corners rank by contrast and are located by shape; averaged over views under random homographies
(homographic adaptation, SuperPoint section 5) and learned from disturbed images they become steadier than the operator
itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfeat_core.models.corners import Corners
from samfeat_core.models.nano import normalize_contrast

from .common import full_precision
from .matching import sample_warped


@full_precision
def corner_loss(score: Tensor, target: Tensor) -> Tensor:
    """Weighted smooth L1 distance of logits to those of `corner_logits`; corners weigh more than plain surface.

    Args:
        score, target: (B, 1, H, W) logits.
    """
    weight = 0.1 + torch.sigmoid(target)
    return (F.smooth_l1_loss(score, target, reduction="none") * weight).sum() / weight.sum()


@torch.no_grad()
def corner_logits(image: Tensor, other: Tensor, warp: Tensor) -> Tensor:
    """(B, 1, H, W): logits that rank and locate corners of `image`, averaged with those of `other` where it is seen.

    Args:
        image, other: (B, C, H, W) the views, without photometric change.
        warp: (B, H, W, 2) from pixels of `image` to `other`, NaN where it shows nothing of them.
    """
    corners = Corners().to(image.device)
    first, second = (
        F.pixel_shuffle(corners(normalize_contrast(view.mean(1, keepdim=True))), 2) for view in (image, other)
    )
    seen = torch.isfinite(warp).all(-1)[:, None]
    return torch.where(seen, (first + sample_warped(second, warp)) / 2, first)
