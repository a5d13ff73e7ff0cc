"""Selects the best checkpoint: matching accuracy on held-out pairs, with the detection that is used on the robot."""

from __future__ import annotations

from statistics import mean

import torch
from torch import Tensor, nn

from samfeat_core.detection import detect, refine, sample
from training.data.pairs import PairBatch
from training.samfeat.task import carry


class MatchingValidation:
    """Mean matching accuracy of mutual nearest neighbours on fixed batches of pairs.

    Args:
        batches: photometrically changed already; the same in every validation.
        keypoints: per image.
        nms_radius: in pixels, as it will be used.
    Returns from a call: {"mma1", "mma3", "matches", "score"}; the score is the mean of mma1 and mma3. A match of a
    point that the other view does not show is wrong, as it is on a robot.
    """

    def __init__(self, batches: list[PairBatch], nms_radius: int, keypoints: int = 400) -> None:
        self.batches, self.keypoints, self.nms_radius = batches, keypoints, nms_radius

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        errors, shares = [], []
        for batch in self.batches:
            pixels0, points0, descriptors0 = self._extract(network, batch.image0)
            _, points1, descriptors1 = self._extract(network, batch.image1)
            similarity = descriptors0 @ descriptors1.transpose(1, 2)
            best, back = similarity.argmax(2), similarity.argmax(1)
            mutual = back.gather(1, best) == torch.arange(best.shape[1], device=best.device)
            truth = carry(batch.warp01, pixels0, points0 - pixels0).points
            error = (points1.gather(1, best[..., None].expand(-1, -1, 2)) - truth).norm(dim=-1)
            error = error.nan_to_num(nan=torch.inf)
            errors += [row[keep] for row, keep in zip(error, mutual, strict=True)]
            shares.append(mutual.float().sum(1))
        accuracy = {f"mma{limit}": mean([share_below(error, limit) for error in errors]) for limit in (1, 3)}
        return {
            **accuracy,
            "matches": mean(torch.cat(shares).tolist()),
            "score": (accuracy["mma1"] + accuracy["mma3"]) / 2,
        }

    def _extract(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dense = network(image)
        score = dense.score.float()
        mask = torch.zeros_like(score)
        mask[..., 4:-4, 4:-4] = 1
        pixels, _ = detect(score, mask, self.keypoints, self.nms_radius)
        points, _ = refine(score, pixels)
        size = (image.shape[-1], image.shape[-2])
        descriptors = dense.describe(points, size)
        if dense.weight is not None:
            descriptors = descriptors * sample(dense.weight.float(), points, size)
        return pixels, points, descriptors


def share_below(errors: Tensor, limit: float) -> float:
    """Share of matches whose error in pixels is below the limit; 0 where there are no matches."""
    return float((errors < limit).float().mean()) if len(errors) else 0.0
