"""A small network imitates a large one that is trained: where its keypoints are, and what resembles what.

Descriptors of the two live in spaces of different dimension; what can be compared is the relation between points,
the cosine similarity of every pair (as L_dis does with SAM's embedding, and SAMFeat -> samfeat-nano here).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfeat_core.models import DenseFeatures
from training.losses.matching import CELL

POINTS = 512


def imitation(student: DenseFeatures, example: DenseFeatures, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the keypoint distributions in 8x8 cells, plus the mean difference of descriptor relations.

    Args:
        student, example: answers for the same views (B, ...); the example's carry no gradient.
        temperature: softens the example's keypoint distribution.
    """
    return keypoint_imitation(student.score, example.score, temperature) + relation_imitation(student, example)


def keypoint_imitation(student: Tensor, example: Tensor, temperature: float) -> Tensor:
    """Mean over cells of KL(example | student) of where in the cell a keypoint is, and whether there is one."""
    mine, other = (F.pixel_unshuffle(score.float(), CELL) for score in (student, example))
    target = (other.detach() / temperature).log_softmax(1)
    location = F.kl_div(mine.log_softmax(1), target, log_target=True, reduction="none").sum(1)
    presence = torch.sigmoid(other.detach().amax(1))
    found = F.binary_cross_entropy_with_logits(mine.amax(1), presence)
    return (location * presence).mean() / presence.mean().clamp(min=1e-3) * 0.1 + found


def relation_imitation(student: DenseFeatures, example: DenseFeatures) -> Tensor:
    """Mean absolute difference of the cosine similarities of all pairs of random points."""
    batch, _, height, width = student.score.shape
    size = (width, height)
    extent = torch.tensor([width - 1, height - 1], dtype=torch.float32, device=student.score.device)
    points = torch.rand(batch, POINTS, 2, device=extent.device) * extent
    mine, other = (dense.describe(points, size) for dense in (student, example))
    return (mine @ mine.transpose(1, 2) - (other @ other.transpose(1, 2)).detach()).abs().mean()
