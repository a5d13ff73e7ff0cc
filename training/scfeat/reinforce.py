"""Stage 2, detector: policy gradient with the fundamental-matrix-error reward (SCFeat, section III-E)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samfeat_core.models import DenseFeatures
from samfeat_core.two_view import to_homogeneous
from training.scfeat.fundamental import fundamental_error


@dataclass(frozen=True)
class DetectorConfig:
    """Numbers of the detector stage.

    Attributes:
        cell: at most one keypoint is drawn in every cell of this many pixels.
        temperature: factor on cosine similarities before the softmax.
        threshold: a pair is good where both its epipolar distances are below this, in pixels.
        fundamental: reward by the fundamental-matrix error; False is the constant reward of the ablation.
        samples: random 8-point estimates per image pair.
        sharpness: of the fundamental-matrix error; 1 is the paper's, which hardly tells good matches from noisy ones.
        good, bad: the constant rewards, also used where no matrix can be estimated.
        penalty: reward of every keypoint, whatever it matches.
        photometric: magnitude of the random photometric change.
    """

    cell: int = 8
    temperature: float = 60.0
    threshold: float = 2.0
    fundamental: bool = True
    samples: int = 100
    sharpness: float = 1.0
    good: float = 1.0
    bad: float = -0.25
    penalty: float = -0.001
    photometric: float = 1.0


class Drawn(NamedTuple):
    """Keypoints drawn from a score map: points (B, N, 2) pixels, log_p (B, N), accepted (B, N) bool."""

    points: Tensor
    log_p: Tensor
    accepted: Tensor


def draw_keypoints(score: Tensor, cell: int) -> Drawn:
    """Draw one pixel per cell by the softmax of its logits, and accept it with the sigmoid of its logit (as DISK does).

    Args:
        score: (B, 1, H, W) logits. A border that does not fill a cell is left out.
    """
    height, width = (side // cell for side in score.shape[-2:])
    inner = score[:, 0, : height * cell, : width * cell].float()
    logits = inner.unflatten(2, (width, cell)).unflatten(1, (height, cell)).transpose(2, 3).flatten(3).flatten(1, 2)
    log_share = logits.log_softmax(-1)
    pick = torch.multinomial(log_share.detach().exp().flatten(0, 1), 1).view(*logits.shape[:2], 1)
    logit = logits.gather(2, pick)[..., 0]
    accepted = torch.rand_like(logit) < logit.detach().sigmoid()
    log_p = log_share.gather(2, pick)[..., 0] + F.logsigmoid(torch.where(accepted, logit, -logit))
    index = torch.arange(height * width, device=score.device)
    corner = torch.stack((index % width, index // width), -1) * cell
    points = corner + torch.stack((pick[..., 0] % cell, pick[..., 0] // cell), -1)
    return Drawn(points.float(), log_p, accepted)


def match_probability(descriptors0: Tensor, descriptors1: Tensor, temperature: float) -> Tensor:
    """P (B, N, M) that points choose each other: softmax over either side of temperature times cosine, multiplied."""
    similarity = temperature * descriptors0 @ descriptors1.transpose(1, 2)
    return similarity.softmax(2) * similarity.softmax(1)


def good_pairs(points0: Tensor, points1: Tensor, fundamental: Tensor, threshold: float) -> Tensor:
    """(B, N, M) bool: either point is nearer than `threshold` pixels to the other's epipolar line."""
    x0, x1 = to_homogeneous(points0), to_homogeneous(points1)
    good = torch.ones((), dtype=torch.bool, device=points0.device)
    for lines, points, to_rows in ((x0 @ fundamental.transpose(1, 2), x1, False), (x1 @ fundamental, x0, True)):
        unit = lines / lines[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-8)
        near = (unit @ points.transpose(1, 2)).abs() < threshold
        good = good & (near.transpose(1, 2) if to_rows else near)
    return good


def pair_reward(good: Tensor, error: Tensor | None, config: DetectorConfig) -> Tensor:
    """Reward (B, N, M) of every pair.

    Args:
        good: (B, N, M) bool.
        error: (B,) fundamental-matrix error e in [0, 1): 1 - e for good pairs, -e for bad ones. Where it is NaN, or
            with None, the constant rewards.
    """
    constant = torch.where(good, config.good, config.bad)
    if error is None:
        return constant
    e = error[:, None, None]
    return torch.where(torch.isnan(e), constant, good.to(e.dtype) - e)


def detector_loss(
    first: DenseFeatures,
    second: DenseFeatures,
    fundamental: Tensor,
    size: tuple[int, int],
    config: DetectorConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """REINFORCE: minus the rewards of accepted pairs, each weighted by its match probability, times log-probability.

    Args:
        first, second: what the network says of each view; gradients flow into the scores alone.
        fundamental: (B, 3, 3) with x1^T F x0 = 0.
        size: (width, height) of both images.

    Returns:
        the loss per image pair, and figures to log.
    """
    drawn0, drawn1 = draw_keypoints(first.score, config.cell), draw_keypoints(second.score, config.cell)
    with torch.no_grad():
        descriptors = (first.describe(drawn0.points, size), second.describe(drawn1.points, size))
        accepted = drawn0.accepted[:, :, None] & drawn1.accepted[:, None, :]
        probability = match_probability(*descriptors, config.temperature) * accepted
        good = good_pairs(drawn0.points, drawn1.points, fundamental, config.threshold)
        error = None
        if config.fundamental:
            error = fundamental_error(
                drawn0.points,
                drawn1.points,
                probability * good,
                fundamental,
                size,
                size,
                config.samples,
                config.sharpness,
            )
        gain = probability * pair_reward(good, error, config)
    # A pair's log-probability is the sum of its two keypoints': one weight for each keypoint is enough.
    loss = gain.new_zeros(())
    for drawn, weight in ((drawn0, gain.sum(2)), (drawn1, gain.sum(1))):
        loss = loss - ((weight + config.penalty * drawn.accepted) * drawn.log_p).sum()
    figures = {
        "good_share": (probability * good).sum() / probability.sum().clamp(min=1e-8),
        "keypoints": (drawn0.accepted.sum() + drawn1.accepted.sum()) / (2.0 * len(first.score)),
        "matches": probability.sum() / len(first.score),
    }
    if error is not None:
        figures["fundamental_error"] = error.nanmean()
    return loss / len(first.score), figures
