"""L_det: the score map against pseudo-labelled keypoints (SAMFeat, arXiv 2309.16992, section 3).

With s the logits and y the label map,

    L_det = - mean over valid pixels of ( 200 y log sigmoid(s) + (1 - y) log(1 - sigmoid(s)) )
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision, image_mask, mean_over_images


@full_precision
def detection_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    has_labels: Tensor | None = None,
    positive_weight: float = 200.0,
) -> Tensor:
    """L_det, a scalar: the mean over the labelled images with valid pixels (0 where there is none).

    Args:
        logits: (B, 1, H, W), `DenseFeatures.score`.
        labels: (B, 1, H, W) in [0, 1], 1 at keypoints (`keypoint_map`); NaN where unknown, as invalid.
        valid: (B, 1, H, W) bool, pixels that count (inside the photograph, known to be labelled); None = all.
        has_labels: (B,) bool; None = all images. An image without any keypoint is still labelled.
        positive_weight: how much a keypoint weighs against a background pixel.
    """
    unknown = labels.isnan()
    target = labels.to(logits.dtype).masked_fill(unknown, 0)
    entropy = F.binary_cross_entropy_with_logits(
        logits, target, reduction="none", pos_weight=logits.new_tensor(positive_weight)
    )
    counts = ~unknown if valid is None else ~unknown & (valid > 0)
    weight = counts.to(logits.dtype)
    total = weight.sum((1, 2, 3))
    loss = (entropy * weight).sum((1, 2, 3)) / total.clamp(min=1)
    return mean_over_images(loss, image_mask(has_labels, logits) & (total > 0))


def keypoint_map(points: Tensor, size: tuple[int, int], scores: Tensor | None = None) -> Tensor:
    """The label map (B, 1, H, W) float32 of keypoints: 1 (or the score) at the pixel nearest to each point.

    Args:
        points: (B, N, 2) x, y in pixels; rows that are NaN (padding) or outside the image are left out.
        size: (H, W).
        scores: (B, N) values, at least 0, for soft labels; the greatest wins where several fall on one pixel.
    """
    height, width = size
    finite = points.isfinite().all(-1)
    x, y = torch.nan_to_num(points).round().long().unbind(-1)
    inside = finite & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # One spare cell at the end takes the rows left out: no boolean indexing, so no wait for the device.
    index = torch.where(inside, y * width + x, height * width)
    values = torch.ones_like(index, dtype=torch.float32) if scores is None else scores.float()
    flat = torch.zeros(len(points), height * width + 1, device=points.device)
    flat = flat.scatter_reduce(1, index, values, "amax")
    return flat[:, :-1].reshape(-1, 1, height, width)
