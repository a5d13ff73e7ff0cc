"""L_det: the score map against pseudo-labelled keypoints (SAMFeat, arXiv 2309.16992, section 3).

With s the logits and y the label map,

    L_det = - mean over valid pixels of ( 200 y log sigmoid(s) + (1 - y) log(1 - sigmoid(s)) )
"""

from __future__ import annotations

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
