"""SAMFeat's training task: runs the network on both views of each pair and computes the losses that are switched on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samfeat_core.detection import detect, refine, sample
from samfeat_core.models import DenseFeatures
from training.data.pairs import PairBatch
from training.data.photometric import Photometric
from training.loop.dense import plain_layout, split
from training.samfeat.losses import (
    descriptor_triplet,
    detection_loss,
    edge_loss,
    joint_means,
    matching,
    mixed_relation_distillation,
    relation_distillation,
    semantic_contrast,
)
from training.samfeat.losses.corner import corner_logits, corner_loss
from training.samfeat.losses.imitation import relation_imitation, score_imitation

CLOSE = 3.0  # pixels between a peak and where it belongs, up to which it is the same point


@dataclass(frozen=True)
class LossWeights:
    """Weight of every loss; 0 switches it off, and what it needs is not computed.

    Attributes:
        dis, wsc, edge, det, des: SAMFeat's five (arXiv 2309.16992, section 3).
        match, reward, repeat, matchability, reproject: see `training.samfeat.losses.matching`.
        corner: structure-tensor corners that both views show (`training.samfeat.losses.corner`).
        score, relation: another extractor's keypoints and descriptors (`training.samfeat.losses.imitation`).
    """

    dis: float = 0.0
    wsc: float = 0.0
    edge: float = 0.0
    det: float = 0.0
    des: float = 0.0
    match: float = 1.0
    reward: float = 0.0
    repeat: float = 1.0
    matchability: float = 0.3
    reproject: float = 0.2
    corner: float = 1.0
    score: float = 0.0
    relation: float = 0.0


@dataclass(frozen=True)
class FeatureTaskConfig:
    """Numbers of the losses.

    Attributes:
        points: correspondences per image for the descriptor losses, seven of eight at detected peaks.
        scale: factor on cosine similarities before the softmax of `match`.
        reward_scale, penalty: the same for `reward`, nearer to a hard decision; and how bad a wrong match is there.
        corner_steps: steps during which corners alone teach the detector, before `repeat` and the others on peaks.
        nms_radius: of the peaks.
        cell, deviation: pixels; cells of `repeat`, and how far apart two picks may be to count as one.
        relation_positions: positions per image whose relations `dis` compares.
        photometric: magnitude of the photometric change.
    """

    points: int = 512
    scale: float = 20.0
    reward_scale: float = 50.0
    penalty: float = 1.5
    corner_steps: int = 500
    nms_radius: int = 2
    cell: int = 4
    deviation: float = 0.7
    relation_positions: int = 512
    photometric: float = 1.0


class FeatureTask(nn.Module):
    """`forward(batch, step) -> dict of losses`, already weighted; their sum is the training loss."""

    def __init__(self, network: nn.Module, config: FeatureTaskConfig, loss_weights: LossWeights) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.loss_weights = loss_weights
        self.photometric = Photometric(config.photometric, network.spec.channels)  # type: ignore[arg-type, union-attr]

    def forward(self, batch: PairBatch, step: int) -> dict[str, Tensor]:
        with torch.autocast(batch.image0.device.type, enabled=False):  # views are made in full precision
            images = self.photometric(torch.cat((batch.image0, batch.image1)))
        images = images.contiguous(memory_format=torch.channels_last)
        dense = plain_layout(self.network(images))
        first, second = split(dense, len(batch))
        # Losses stay in single precision, and their means count the images of all ranks.
        with torch.autocast(images.device.type, enabled=False), joint_means():
            losses = self.descriptor_losses(first, second, batch)
            losses |= self.detector_losses(first, second, batch, step)
            losses |= self.teacher_losses(dense, batch)
            losses |= self.reference_losses(first, second, batch)
        return {name: getattr(self.loss_weights, name) * value for name, value in losses.items()}

    def descriptor_losses(self, first: DenseFeatures, second: DenseFeatures, batch: PairBatch) -> dict[str, Tensor]:
        """`match` and SAMFeat's `des` on the same correspondences, `wsc` on their points in either view."""
        on = self.loss_weights
        if not (on.match or on.des or on.wsc):
            return {}
        size = (batch.image0.shape[-1], batch.image0.shape[-2])
        points0, valid = self.choose_points(first.score.detach().float(), batch.valid01)
        points1 = matching.gather_pixels(batch.warp01, points0).nan_to_num(0)
        descriptors0, attention0 = describe_points(first, points0, size)
        descriptors1, attention1 = describe_points(second, points1, size)
        losses = {}
        if on.match:
            losses["match"] = matching.dual_softmax(
                descriptors0,
                descriptors1,
                points1,
                valid,
                self.config.scale,
                distractors=self.distractors(second, batch),
            )
        if on.des:
            losses["des"] = descriptor_triplet(
                descriptors0, descriptors1, points1, valid, attention0=attention0, attention1=attention1
            )
        if on.wsc and batch.groups0 is not None and batch.groups1 is not None:
            seen = torch.cat((torch.ones_like(valid), valid))
            groups = torch.cat((gather_groups(batch.groups0, points0), gather_groups(batch.groups1, points1)))
            scaled = torch.cat((descriptors0, descriptors1))
            if attention0 is not None and attention1 is not None:
                scaled = scaled * torch.cat((attention0, attention1))[..., None]
            losses["wsc"] = semantic_contrast(scaled, groups, valid=seen, has_teacher=batch.both("has_teacher"))
        return losses

    def distractors(self, second: DenseFeatures, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Descriptors and positions of the second view's own peaks.

        They are negatives: a matcher on a robot chooses among them.
        """
        size = (batch.image1.shape[-1], batch.image1.shape[-2])
        interior = torch.ones_like(batch.valid10)
        peaks, _ = detect(second.score.detach().float(), interior, self.config.points // 2, self.config.nms_radius)
        return second.describe_without_strength(peaks, size), peaks

    def teacher_losses(self, dense: DenseFeatures, batch: PairBatch) -> dict[str, Tensor]:
        """`dis` and `edge` on all views with teacher output, `det` on all views with keypoint labels.

        Args:
            dense: of the first views, then of the second ones.
        """
        losses = {}
        groups, edges, labels = batch.both("groups"), batch.both("edges"), batch.both("keypoints")
        embedding, has_teacher = batch.both("embedding"), torch.cat((batch.has_teacher0, batch.has_teacher1))
        if self.loss_weights.dis and dense.distill is not None and groups is not None:
            options: dict[str, Any] = {
                "attention": dense.weight,
                "has_teacher": has_teacher,
                "positions": self.config.relation_positions,
            }
            if embedding is None:
                losses["dis"] = relation_distillation(dense.distill, groups=groups, **options)
            else:  # a store may hold photographs with an embedding and without
                losses["dis"] = mixed_relation_distillation(dense.distill, embedding, groups, **options)
        if self.loss_weights.edge and dense.edge is not None and edges is not None:
            losses["edge"] = edge_loss(dense.edge, edges, has_teacher=has_teacher)
        if self.loss_weights.det and labels is not None:
            losses["det"] = detection_loss(dense.score, labels)
        return losses

    def reference_losses(self, first: DenseFeatures, second: DenseFeatures, batch: PairBatch) -> dict[str, Tensor]:
        """`score` and `relation` on the photographs that have reference features."""
        on = self.loss_weights
        if batch.reference0 is None or not (on.score or on.relation):
            return {}
        assert batch.reference1 is not None and batch.reference_logits is not None
        assert batch.reference_descriptors is not None
        losses = {}
        if on.score:
            losses["score"] = 0.5 * (
                score_imitation(first.score, batch.reference0, batch.reference_logits)
                + score_imitation(second.score, batch.reference1, batch.reference_logits)
            )
        if on.relation:
            size = (batch.image0.shape[-1], batch.image0.shape[-2])
            shown = torch.isfinite(batch.reference0).all(-1) & torch.isfinite(batch.reference1).all(-1)
            chosen = best_shown(shown, self.config.points)
            points0, points1, wanted = (
                rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[-1]))
                for rows in (batch.reference0, batch.reference1, batch.reference_descriptors)
            )
            valid = shown.gather(1, chosen)
            answer0 = first.describe_without_strength(points0.nan_to_num(0), size)
            answer1 = second.describe_without_strength(points1.nan_to_num(0), size)
            losses["relation"] = relation_imitation(answer0, answer1, wanted, valid)
        return losses

    def choose_points(self, score: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 2) whole pixels, seven of eight at detected peaks, the rest drawn at random; (B, N) bool, whether the
        second view shows that point."""
        anywhere_count = self.config.points // 8
        peaks, _ = detect(score, valid, self.config.points - anywhere_count, self.config.nms_radius)
        extent = torch.tensor([score.shape[-1], score.shape[-2]], device=score.device)
        anywhere = (torch.rand(len(score), anywhere_count, 2, device=score.device) * extent).floor().minimum(extent - 1)
        points = torch.cat((peaks, anywhere), 1)
        return points, matching.gather_pixels(valid.permute(0, 2, 3, 1), points)[..., 0]

    def detector_losses(
        self, first: DenseFeatures, second: DenseFeatures, batch: PairBatch, step: int
    ) -> dict[str, Tensor]:
        """The detector's losses: `corner` alone for the first `corner_steps` steps, then the others too."""
        on = self.loss_weights
        score0, score1 = first.score.float(), second.score.float()
        losses = {}
        if on.corner:
            target0 = corner_logits(batch.image0, batch.image1, batch.warp01)
            target1 = corner_logits(batch.image1, batch.image0, batch.warp10)
            losses["corner"] = 0.5 * (corner_loss(score0, target0) + corner_loss(score1, target1))
            if step < self.config.corner_steps:
                return losses
        if on.repeat:
            cell, deviation = self.config.cell, self.config.deviation
            offsets = [tuple(torch.randint(cell, (2,)).tolist()) for _ in range(2)]
            losses["repeat"] = matching.expected_repeatability(
                score0, score1, batch.warp01, batch.warp10, deviation, (offsets[0], offsets[1]), cell
            )
        if on.matchability or on.reproject or on.reward:
            losses |= self.peak_losses(first, second, batch)
        return losses

    def peak_losses(self, first: DenseFeatures, second: DenseFeatures, batch: PairBatch) -> dict[str, Tensor]:
        """Reward, matchability and reprojection of the peaks that either view's detector finds."""
        count, radius = self.config.points, self.config.nms_radius
        size = (batch.image0.shape[-1], batch.image0.shape[-2])
        score0, score1 = first.score.float(), second.score.float()
        interior = torch.zeros_like(score0, dtype=torch.bool)
        interior[..., 4:-4, 4:-4] = True
        peaks0, _ = detect(score0.detach(), interior, count, radius)
        peaks1, _ = detect(score1.detach(), interior, count, radius)
        with torch.set_grad_enabled(self.loss_weights.reward > 0 and torch.is_grad_enabled()):
            similarity = first.describe(peaks0, size) @ second.describe(peaks1, size).transpose(1, 2)
        warped0 = matching.gather_pixels(batch.warp01, peaks0)
        warped1 = matching.gather_pixels(batch.warp10, peaks1)
        found0 = nearest_peak(warped0, peaks1, similarity)
        found1 = nearest_peak(warped1, peaks0, similarity.transpose(1, 2))
        matchability = 0.5 * (
            matching.matchability(self._logits(score0, peaks0), found0.distance, found0.matched, found0.visible)
            + matching.matchability(self._logits(score1, peaks1), found1.distance, found1.matched, found1.visible)
        )
        refined0, _ = refine(score0, peaks0)
        refined1, _ = refine(score1, peaks1)
        carried = carry(batch.warp01, peaks0, refined0 - peaks0)
        partner = refined1.gather(1, found0.index[..., None].expand(-1, -1, 2))
        pair = found0.visible & (found0.distance < CLOSE) & torch.isfinite(carried.points).all(-1)
        losses = {
            "matchability": matchability,
            "reproject": matching.reprojection(carried.points.nan_to_num(0), partner, pair, carried.scale),
        }
        if self.loss_weights.reward:
            right = found0.near | found1.near.transpose(1, 2)
            known = found0.visible[:, :, None] | found1.visible[:, None, :]
            scaled = self.config.reward_scale * similarity
            losses["reward"] = matching.expected_reward(scaled, right, known, self.config.penalty)
        return losses

    @staticmethod
    def _logits(score: Tensor, peaks: Tensor) -> Tensor:
        return matching.gather_pixels(score.permute(0, 2, 3, 1), peaks)[..., 0]


@dataclass(frozen=True)
class Found:
    """For each peak: its geometrically nearest peak in the other view."""

    near: Tensor  # (B, K, L) bool, that peak of the other view is where this one belongs
    distance: Tensor  # (B, K) pixels
    index: Tensor  # (B, K) row of that peak
    matched: Tensor  # (B, K) bool, mutual nearest neighbour by descriptor as well
    visible: Tensor  # (B, K) bool, has a true counterpart at all


def describe_points(dense: DenseFeatures, points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Descriptors without the strength coordinate at pixels (B, N, 2), and the attention (B, N) there, or None."""
    attention = None if dense.weight is None else sample(dense.weight.float(), points, size)[..., 0]
    return dense.describe_without_strength(points, size), attention


def gather_groups(groups: Tensor, points: Tensor) -> Tensor:
    """(B, N) groups (B, H, W) at the pixels nearest to points (B, N, 2) of the image."""
    return matching.gather_pixels(groups[..., None], points.round())[..., 0]


def best_shown(shown: Tensor, count: int) -> Tensor:
    """(B, count) indices of the first `count` points (B, N) that both views show; where there are fewer, others follow.

    The points are sorted, best first."""
    rank = torch.arange(shown.shape[1], 0, -1, device=shown.device)
    return (rank + shown * len(rank)).topk(min(count, len(rank)), dim=1).indices


def nearest_peak(warped: Tensor, peaks: Tensor, similarity: Tensor) -> Found:
    """The peak (B, K, 2) nearest to each warped position (B, K, 2; NaN = no counterpart)."""
    visible = torch.isfinite(warped).all(-1)
    apart = torch.cdist(warped.nan_to_num(-1e4), peaks)
    near = apart < CLOSE
    distance, index = apart.min(2)
    best, back = similarity.argmax(2), similarity.argmax(1)
    mutual = back.gather(1, best) == torch.arange(best.shape[1], device=best.device)
    # A match counts as right when it is near the truth, whichever of two close peaks it took.
    right = mutual & near.gather(2, best[..., None])[..., 0]
    return Found(near, distance, index, right, visible)


@dataclass(frozen=True)
class Carried:
    """Sub-pixel points carried through a dense warp, and its local magnification."""

    points: Tensor  # (B, K, 2)
    scale: Tensor  # (B, K)


def carry(warp: Tensor, pixels: Tensor, offset: Tensor) -> Carried:
    """Whole pixels + offset through the warp, linearised at the pixel (central differences); NaN outside."""
    centre = matching.gather_pixels(warp, pixels)
    limit = torch.tensor([warp.shape[2] - 1, warp.shape[1] - 1], device=warp.device, dtype=pixels.dtype)
    slopes = []
    for axis in (0, 1):
        step = torch.zeros(2, device=warp.device)
        step[axis] = 1
        ahead = matching.gather_pixels(warp, (pixels + step).clamp(min=0).minimum(limit))
        behind = matching.gather_pixels(warp, (pixels - step).clamp(min=0))
        slopes.append((ahead - behind) / 2)
    jacobian = torch.stack(slopes, -1).nan_to_num(0)  # (B, K, 2, 2); a NaN would reach every gradient
    determinant = jacobian[..., 0, 0] * jacobian[..., 1, 1] - jacobian[..., 0, 1] * jacobian[..., 1, 0]
    return Carried(centre + (jacobian @ offset[..., None])[..., 0], determinant.abs().sqrt())
