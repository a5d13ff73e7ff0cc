"""L_edge: the student's edge map against the teacher's (SAMFeat, arXiv 2309.16992, section 3).

L_edge = mean over valid positions of (sigmoid(e) - E)^2,   E in {0, 1} from the borders of the teacher's masks
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision, image_mask, mean_over_images


@full_precision
def edge_loss(
    logits: Tensor, edges: Tensor, *, valid: Tensor | None = None, has_teacher: Tensor | None = None
) -> Tensor:
    """L_edge, a scalar: the mean over the images that have teacher output (0 where none has).

    Args:
        logits: (B, 1, h, w), `DenseFeatures.edge`.
        edges: (B, 1, H, W), the teacher's edge map in [0, 1] (bool or float) at the image's resolution.
        valid: (B, 1, H, W) bool, pixels that show the photograph; None = all. A position of the student's map
            counts where its whole cell is valid.
        has_teacher: (B,) bool; None = all images.

    At a lower resolution a position is an edge where any pixel of its cell is one: interpolating lines one or two
    pixels wide would thin them out or lose them, depending on where they fall.
    """
    size = logits.shape[-2:]
    target = F.adaptive_max_pool2d(edges.to(logits.dtype), size)
    weight = torch.ones_like(target)
    if valid is not None:
        weight = 1 - F.adaptive_max_pool2d(1 - valid.to(logits.dtype), size)
    square = (torch.sigmoid(logits) - target).square()
    total = weight.sum((1, 2, 3))
    loss = (square * weight).sum((1, 2, 3)) / total.clamp(min=1)
    return mean_over_images(loss, image_mask(has_teacher, logits) & (total > 0))
