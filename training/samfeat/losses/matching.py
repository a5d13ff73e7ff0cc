"""Losses that make points findable again: what frame-to-frame matching rewards, stated directly.

- `dual_softmax`: the descriptor of a point is nearest to its counterpart's, both ways (LoFTR, eq. 1).
- `expected_repeatability`: the detector is a distribution over the pixels of each cell; the loss is minus the
  exact expectation of the reward "the other view picks the same point", of which policy gradient
  (DISK, SCFeat) is the sampled estimate.
- `expected_reward`: right mutual nearest neighbours less wrong ones, in expectation: points that have no counterpart
  should be nobody's mutual neighbour.
- `matchability`: the score of a peak is the probability that it is found and matched correctly.
- `reprojection`: sub-pixel positions of a point in both views agree (ALIKED, section IV-A).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.geometry import sampling_grid

from .common import full_precision, mean_over_images

CELL = 8


def gather_pixels(plane: Tensor, points: Tensor) -> Tensor:
    """Values (B, N, C) of planes (B, H, W, C) at whole pixel positions (B, N, 2)."""
    width = plane.shape[2]
    index = (points[..., 1].long() * width + points[..., 0].long()).unsqueeze(-1)
    return plane.flatten(1, 2).gather(1, index.expand(-1, -1, plane.shape[-1]))


def dual_softmax(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points1: Tensor,
    valid: Tensor,
    scale: float = 20.0,
    safe_radius: float = 4.0,
    distractors: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean over valid points of -log P(i -> i) - log P(i <- i), P the softmax of scaled cosine similarities.

    Points of view 0 without a counterpart and keypoints of view 1 that are nobody's counterpart are never right, and
    always there to be taken for it: both are negatives.

    Args:
        descriptors0, descriptors1: (B, N, D) unit rows; row i of one is the counterpart of row i of the other.
        points1: (B, N, 2) pixels in view 1; points nearer to each other than `safe_radius` are no negatives.
        valid: (B, N) bool, rows that are correspondences.
        distractors: (B, M, D) and (B, M, 2), descriptors and positions of further points of view 1.
    """
    similarity = scale * descriptors0.float() @ descriptors1.float().transpose(1, 2)
    diagonal = torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    pairs = valid[:, :, None] & valid[:, None, :]
    near = (torch.cdist(points1.float(), points1.float()) < safe_radius) & pairs & ~diagonal
    # An invalid column is no point of view 1; an invalid row is one of view 0.
    forward = similarity.masked_fill(near | ~(valid[:, None, :] | diagonal), float("-inf"))
    backward = similarity.masked_fill(near, float("-inf"))
    if distractors is not None:
        others = scale * descriptors0.float() @ distractors[0].float().transpose(1, 2)
        same = torch.cdist(points1.float(), distractors[1].float()) < safe_radius
        forward = torch.cat((forward, others.masked_fill(same & valid[:, :, None], float("-inf"))), 2)
    log_p = forward.diagonal(dim1=1, dim2=2) - forward.logsumexp(2)
    log_p = log_p + backward.diagonal(dim1=1, dim2=2) - backward.logsumexp(1)
    return -masked_mean(log_p, valid)


def cell_distribution(score: Tensor, offset: tuple[int, int], cell: int = CELL) -> Tensor:
    """(B, 1, H, W): softmax of the logits within square cells whose grid begins at `offset` (x, y); 0 outside cells."""
    ox, oy = offset
    height, width = ((size - o) // cell * cell for size, o in zip(score.shape[-2:], (oy, ox)))
    inner = score[..., oy : oy + height, ox : ox + width].float()
    probability = F.pixel_shuffle(F.pixel_unshuffle(inner, cell).softmax(1), cell)
    return F.pad(probability, (ox, score.shape[-1] - ox - width, oy, score.shape[-2] - oy - height))


def proximity(probability: Tensor, deviation: float) -> Tensor:
    """(B, 1, H, W): sum over pixels y of p(y) exp(-|x - y|^2 / 2 deviation^2): chance of a pick near x."""
    radius = int(3 * deviation + 0.5)
    span = torch.arange(-radius, radius + 1, device=probability.device, dtype=probability.dtype)
    kernel = torch.exp(-(span**2) / (2 * deviation**2))
    return separable(probability, kernel, kernel, padding=radius)


def separable(plane: Tensor, along_x: Tensor, along_y: Tensor, padding: int = 0) -> Tensor:
    """Correlation of (B, 1, H, W) with a kernel along x and one along y; zeros around it where it is padded."""
    rows = F.conv2d(plane, along_x.view(1, 1, 1, -1), padding=(0, padding))
    return F.conv2d(rows, along_y.view(1, 1, -1, 1), padding=(padding, 0))


def sample_warped(plane: Tensor, warp: Tensor) -> Tensor:
    """(B, C, H, W): planes (B, C, H, W) of the other view at warp (B, H, W, 2); 0 where the warp is NaN."""
    grid = torch.nan_to_num(sampling_grid(warp, (plane.shape[-1], plane.shape[-2])), nan=-2.0)
    return F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def expected_repeatability(
    score0: Tensor,
    score1: Tensor,
    warp01: Tensor,
    warp10: Tensor,
    deviation: float = 0.8,
    offsets: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    cell: int = CELL,
) -> Tensor:
    """Minus the expected repeatability, both ways, of one pick per cell.

    For a pick x in view 0 the reward is exp(-d^2 / 2 deviation^2), d the distance in pixels from its true
    position in view 1 to a pick there; the expectation over both pick distributions is taken exactly.

    Args:
        score0, score1: (B, 1, H, W) logits.
        warp01, warp10: (B, H, W, 2), NaN where there is no counterpart; such pixels give no reward, and
            cells without any counterpart do not count.
        offsets: origin (x, y) of either cell grid, drawn anew each step so that no pixel is special.
        cell: side of a cell in pixels: how near to each other keypoints may be.
    """
    picks = [cell_distribution(score, offset, cell) for score, offset in zip((score0, score1), offsets)]
    return 0.5 * (
        _one_way(picks[0], picks[1], warp01, deviation, offsets[0], cell)
        + _one_way(picks[1], picks[0], warp10, deviation, offsets[1], cell)
    )


def _one_way(pick: Tensor, other: Tensor, warp: Tensor, deviation: float, offset: tuple[int, int], cell: int) -> Tensor:
    reward = sample_warped(proximity(other, deviation), warp)
    valid = torch.isfinite(warp).all(-1).unsqueeze(1).float()
    mass = (pick * valid)[..., offset[1] :, offset[0] :]
    gained = (pick * reward)[..., offset[1] :, offset[0] :]
    # A cell counts as much as its share of pixels that have a counterpart.
    cells = F.avg_pool2d(valid[..., offset[1] :, offset[0] :], cell)
    per_cell = F.avg_pool2d(gained, cell) * cell**2 / (F.avg_pool2d(mass, cell) * cell**2).clamp(min=0.1)
    per_image = (per_cell * cells).sum((1, 2, 3)) / cells.sum((1, 2, 3)).clamp(min=1)
    return -per_image.mean()


@full_precision
def expected_reward(similarity: Tensor, right: Tensor, known: Tensor, penalty: float = 1.0) -> Tensor:
    """Minus the expected number of right mutual nearest neighbours less `penalty` times that of wrong ones, a keypoint.

        P_ij = softmax_j(s_ij) softmax_i(s_ij)                                    (the dual softmax)
        L    = -1/N sum_ij P_ij known_ij (right_ij - penalty (1 - right_ij))

    The reward of DISK (arXiv 2006.13566), its expectation taken exactly. `dual_softmax` asks that a point's counterpart
    be its nearest; this asks of the points without one, too, that they rather agree with each other on a common
    neighbour than each find a wrong match of its own.

    Args:
        similarity: (B, N, M) scaled cosine similarities of the keypoints of both views.
        right: (B, N, M) bool, pairs that show the same point.
        known: (B, N, M) bool, pairs of which it is known whether they do. Images without any do not count.
    """
    matched = similarity.softmax(2) * similarity.softmax(1)
    reward = torch.where(right, 1.0, -penalty) * known
    per_image = (matched * reward).sum((1, 2)) / similarity.shape[1]
    return -mean_over_images(per_image, known.flatten(1).any(1))


def matchability(logits: Tensor, distance: Tensor, matched: Tensor, visible: Tensor, deviation: float = 1.0) -> Tensor:
    """Binary cross-entropy of peak logits to "found again and matched right".

    Args:
        logits: (B, K) score logits at the peaks.
        distance: (B, K) pixels from the true position in the other view to the nearest peak there.
        matched: (B, K) bool, the mutual nearest neighbour by descriptor is that peak.
        visible: (B, K) bool, the peak has a counterpart in the other view; others do not count.
    """
    target = torch.exp(-(distance**2) / (2 * deviation**2)) * matched
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.detach(), reduction="none")
    return masked_mean(loss, visible)


def reprojection(refined0: Tensor, refined1: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Mean smooth L1 distance in pixels of paired sub-pixel positions (B, K, 2), in the frame of view 1.

    Args:
        refined0: positions of view 0 carried over to view 1.
        scale: (B, K) local magnification of the carrying, by which distances are divided where it is > 1.
    """
    loss = F.smooth_l1_loss(refined0.float(), refined1.float(), reduction="none", beta=0.5).sum(-1)
    return masked_mean(loss / scale.clamp(min=1), valid)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the batch of each image's mean over its mask; 0 where the mask is empty.

    Per image first, so that joint and distributed batches weigh images alike.
    """
    values = torch.where(mask, values, torch.zeros_like(values)).flatten(1)
    return (values.sum(1) / mask.flatten(1).sum(1).clamp(min=1)).mean()
