"""A network learns from another extractor's features of the photographs (`training.data.feature_store`).

Where its keypoints are and how sure it is of them is drawn into a map of logits that the score map follows.
Descriptors of the two live in spaces of different dimension; what can be compared is which points resemble which:
the relation between all points of a batch, across views and photographs (as L_dis does with SAM's embedding).
Both losses are ours, in no paper. With s the score logits, t the drawn ones, q_i a normal distribution around point i
over the pixels there, l_i its logit, f and g descriptors of the two views, e the reference's, c the scale:

    L_score    = sum_x w(x) H(sigmoid t(x), sigmoid s(x)) / sum_x w(x), w = 0.1 + sigmoid t
                 + sum_i sigmoid(l_i) KL(q_i | softmax s) / sum_i sigmoid(l_i)
    L_relation = mean_i ( KL(softmax_j c e_i.e_j | softmax_j c f_i.g_j)
                        + KL(softmax_j c e_i.e_j | softmax_j c g_i.f_j) ) / 2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.pairs import keypoint_map

from .common import full_precision, mean_over_images

FLOOR = -5.0  # logit where there is no keypoint
DEVIATION = 0.7  # pixels; a keypoint's logits fall off as those of a normal distribution over positions
RADIUS = 2  # pixels, of a drawn keypoint
NEVER = -1e4  # logit of a candidate that is none; infinite ones make NaN where there are no others


@full_precision
def score_imitation(score: Tensor, points: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropies of score logits (B, 1, H, W): is there a keypoint at a pixel, and where around it exactly.

    Args:
        points: (B, N, 2) the reference's keypoints in pixels of the view, NaN where it does not show them.
        logits: (B, N) log-odds of the reference's scores; sure ones weigh more.
    Images without any point do not count.
    """
    probability = torch.sigmoid(draw(points, logits, score))
    weight = 0.1 + probability
    presence = F.binary_cross_entropy_with_logits(score, probability, reduction="none")
    per_image = (presence * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    seen = points.isfinite().all(-1)
    return mean_over_images(per_image + location(score, points, torch.sigmoid(logits) * seen), seen.any(1))


def location(score: Tensor, points: Tensor, weight: Tensor) -> Tensor:
    """(B,): weighted mean over points of KL(reference | student) of the position among the pixels around a point.

    The student's distribution is the softmax of its logits, whose expectation `samfeat_core.detection.refine` takes.
    """
    height, width = score.shape[-2:]
    pixel, apart = around(points)
    x, y = pixel.long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    whole = inside.all(-1) & (weight > 0)
    index = torch.where(whole[..., None], y * width + x, 0)
    own = score.flatten(1).gather(1, index.flatten(1)).view(index.shape).log_softmax(-1)
    target = (-apart / (2 * DEVIATION**2)).log_softmax(-1)
    divergence = (target.exp() * (target - own)).sum(-1)
    weight = weight * whole
    return (divergence * weight).sum(1) / weight.sum(1).clamp(min=1e-3)


def around(points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, N, P, 2) of the square around each point (B, N, 2), and their squared distances (B, N, P) to it.

    Those of a point that is NaN are outside any image.
    """
    span = torch.arange(-RADIUS, RADIUS + 1, device=points.device, dtype=points.dtype)
    offsets = torch.stack(torch.meshgrid(span, span, indexing="xy"), -1).view(1, 1, -1, 2)
    centre = points.nan_to_num(-1e4)[:, :, None]
    pixel = centre.round() + offsets
    return pixel, (pixel - centre).square().sum(-1)


@torch.no_grad()
def draw(points: Tensor, logits: Tensor, like: Tensor) -> Tensor:
    """(B, 1, H, W) logits: FLOOR, and around each point its own logit less d^2 / 2 DEVIATION^2.

    The softmax expectation around a keypoint is then its exact position, which lies between the pixels.
    """
    pixel, apart = around(points)
    above = logits[..., None] - apart / (2 * DEVIATION**2) - FLOOR
    return FLOOR + keypoint_map(pixel.flatten(1, 2), (like.shape[-2], like.shape[-1]), above.flatten(1))


@full_precision
def relation_imitation(
    descriptors0: Tensor, descriptors1: Tensor, reference: Tensor, valid: Tensor, scale: float = 10.0
) -> Tensor:
    """Mean over points and both directions of KL(reference | student) of which point of the other views is alike.

    Args:
        descriptors0, descriptors1: (B, N, D) unit rows of the same points in both views of each pair.
        reference: (B, N, E) unit rows, the reference's descriptors of these points.
        valid: (B, N) bool, points that both views show. The others are no candidates either.
        scale: factor on cosine similarities before the softmax.
    """
    first, second, wanted = (rows.flatten(0, 1) for rows in (descriptors0, descriptors1, reference))
    absent = ~valid.flatten()
    target = (scale * wanted @ wanted.T).masked_fill(absent, NEVER).log_softmax(1)
    similarity = scale * first @ second.T
    total = torch.zeros_like(valid, dtype=similarity.dtype)
    for answer in (similarity, similarity.T):
        own = answer.masked_fill(absent, NEVER).log_softmax(1)
        divergence = (target.exp() * (target - own)).sum(1)
        total = total + divergence.view_as(total)
    counts = valid.sum(1)
    per_image = torch.where(valid, total, torch.zeros_like(total)).sum(1) / counts.clamp(min=1)
    return 0.5 * mean_over_images(per_image, counts > 0)
