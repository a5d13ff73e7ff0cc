"""L_edge: the student's edge map against the teacher's (SAMFeat, arXiv 2309.16992, section 3).

L_edge = mean over valid positions of (sigmoid(e) - E)^2,   E in [0, 1] from the borders of the teacher's masks
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision, image_mask, mean_over_images


@full_precision
def edge_loss(logits: Tensor, edges: Tensor, *, has_teacher: Tensor | None = None) -> Tensor:
    """L_edge, a scalar: the mean over the images that have teacher output (0 where none has).

    Args:
        logits: (B, 1, h, w), `DenseFeatures.edge`.
        edges: (B, 1, H, W), the teacher's edge map in [0, 1] (bool or float) at the image's resolution, NaN off the
            photograph.
        has_teacher: (B,) bool; None = all images.

    The teacher's map is brought to the student's bilinearly, as the authors do. A position that reads a NaN does not
    count.
    """
    target = F.interpolate(edges.to(logits.dtype), logits.shape[-2:], mode="bilinear", align_corners=False)
    known = ~target.isnan()
    square = torch.where(known, torch.sigmoid(logits) - target.nan_to_num(0), torch.zeros_like(logits)).square()
    total = known.sum((1, 2, 3))
    loss = square.sum((1, 2, 3)) / total.clamp(min=1)
    return mean_over_images(loss, image_mask(has_teacher, logits) & (total > 0))
