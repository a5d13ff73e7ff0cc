"""Corners that both views show: what the detector begins with.

A synthetic view changes less than the world does, so that texture of low contrast is found again in training and
never on a robot. Corners (Shi and Tomasi 1994) rank by contrast and are located by shape; averaged over views under
random homographies (homographic adaptation, SuperPoint section 5) and learned from disturbed images they become
steadier than the operator itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfeat_core.models.nano import normalize_contrast

from .common import full_precision
from .matching import sample_warped, separable

DEVIATION = 0.8  # pixels, of the derivative's and of the window's Gaussian
RADIUS = 2  # of both, in pixels
SHARPNESS = 2.0  # logit = SHARPNESS * log(eigenvalue / USUAL)
USUAL = 0.01  # eigenvalue worth a probability of one half, for grey values of unit deviation
FLOOR = 1e-4  # eigenvalues below it are noise


@full_precision
def corner_loss(score: Tensor, target: Tensor) -> Tensor:
    """Weighted smooth L1 distance of logits to those of `corner_logits`; corners weigh more than plain surface.

    Args:
        score, target: (B, 1, H, W) logits.
    """
    weight = 0.1 + torch.sigmoid(target)
    loss = F.smooth_l1_loss(score, target, reduction="none") * weight
    return (loss.sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()


@torch.no_grad()
def corner_logits(image: Tensor, other: Tensor, warp: Tensor) -> Tensor:
    """(B, 1, H, W): logits that rank and locate corners of `image`, averaged with those of `other` where it is seen.

    Args:
        image, other: (B, C, H, W) the views, without photometric change.
        warp: (B, H, W, 2) from pixels of `image` to `other`, NaN where it shows nothing of them.
    """
    first, second = (corners(normalize_contrast(view.mean(1, keepdim=True))) for view in (image, other))
    seen = torch.isfinite(warp).all(-1)[:, None]
    return torch.where(seen, (first + sample_warped(second, warp)) / 2, first)


@full_precision
def corners(image: Tensor) -> Tensor:
    """(B, 1, H, W) corner logits of images of unit deviation: the smaller eigenvalue of the structure tensor."""
    span = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32, device=image.device)
    smooth = torch.exp(-(span**2) / (2 * DEVIATION**2))
    smooth /= smooth.sum()
    slope = smooth * span / (smooth * span**2).sum()
    image = F.pad(image, (2 * RADIUS,) * 4, mode="replicate")
    dx, dy = separable(image, slope, smooth), separable(image, smooth, slope)
    xx, yy, xy = (separable(product, smooth, smooth) for product in (dx * dx, dy * dy, dx * dy))
    eigenvalue = (xx + yy - torch.sqrt((xx - yy).square() + 4 * xy.square())) / 2
    return SHARPNESS * torch.log((eigenvalue.clamp(min=0) + FLOOR) / USUAL)
