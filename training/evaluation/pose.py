"""Relative pose from matches: poselib's LO-RANSAC on the essential matrix, AUC of the pose error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import poselib

from samfeat_core.features import Features
from samfeat_core.poses import pose_auc, pose_error
from samfeat_core.sequence import ImageSequence
from training.evaluation.extractors import TimedExtractor
from training.evaluation.images import EvalImage
from training.evaluation.matchers import MUTUAL, Matcher
from training.evaluation.sweep import THRESHOLDS, best_threshold

AUC_THRESHOLDS = (5, 10, 20)
ESTIMATOR = "poselib LO-RANSAC, essential matrix"


@dataclass(frozen=True)
class PosePair:
    """Two image files, their (3, 3) camera matrices, the (4, 4) transform from camera 0 to camera 1.

    calibrated_sizes: (width, height) that each camera matrix refers to; None: that of the image file.
    turns: quarter turns counter-clockwise that bring each image upright; the extractor sees it upright, matrices and
    transform are those of the image as stored.
    """

    first: Path
    second: Path
    matrix0: np.ndarray
    matrix1: np.ndarray
    transform: np.ndarray
    calibrated_sizes: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None)
    turns: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PoseScore:
    """error: the larger of rotation and translation-direction error, degrees; inf where no pose was found.
    swept: the same at each of `sweep.THRESHOLDS`."""

    keypoints: float
    matches: int
    inliers: int
    error: float
    swept: np.ndarray


def sequence_pairs(sequence: ImageSequence, gaps: Sequence[int], every: int) -> list[PosePair]:
    """Pairs (i, i + gap) of a posed sequence, i every ``every``-th frame, for every gap."""
    return [
        PosePair(
            sequence.images[first],
            sequence.images[first + gap],
            sequence.matrix,
            sequence.matrix,
            sequence.relative_pose(first, first + gap),
        )
        for gap in gaps
        for first in range(0, len(sequence) - gap, every)
    ]


def score_pair(
    pair: PosePair, extractor: TimedExtractor, threshold_px: float = 1.0, matcher: Matcher = MUTUAL
) -> PoseScore:
    """Extracts, matches, estimates the pose and compares it to the true one."""
    features0 = turn_back(extractor(pair.first, pair.turns[0]), pair.turns[0])
    features1 = turn_back(extractor(pair.second, pair.turns[1]), pair.turns[1])
    points0, points1 = matcher(features0, features1)
    cameras = (
        _camera(pair.matrix0, pair.calibrated_sizes[0], extractor.images(pair.first)),
        _camera(pair.matrix1, pair.calibrated_sizes[1], extractor.images(pair.second)),
    )
    at = {
        threshold: score_points(points0, points1, cameras, pair.transform, threshold)
        for threshold in {threshold_px, *THRESHOLDS}
    }
    inliers, error = at[threshold_px]
    swept = np.array([at[threshold][1] for threshold in THRESHOLDS])
    return PoseScore((len(features0) + len(features1)) / 2, len(points0), inliers, error, swept)


def score_points(
    points0: np.ndarray,
    points1: np.ndarray,
    cameras: tuple[dict, dict],
    transform: np.ndarray,
    threshold_px: float,
    seed: int = 0,
) -> tuple[int, float]:
    """Inliers and pose error of corresponding pixels (M, 2) in images of two poselib cameras; inf for fewer than 5.

    seed: of RANSAC's draws.
    """
    if len(points0) < 5:
        return 0, float("inf")
    options = {"max_epipolar_error": threshold_px, "seed": seed}
    pose, info = poselib.estimate_relative_pose(
        points0.astype(np.float64), points1.astype(np.float64), *cameras, options, {}
    )
    error = max(pose_error(pose.R, pose.t, transform[:3, :3], transform[:3, 3]))
    return int(info["num_inliers"]), float(error) if np.isfinite(error) else float("inf")


def turn_back(features: Features, turns: int) -> Features:
    """Features of an image that was turned ``turns`` quarter turns counter-clockwise, in the image as it was."""
    points, (width, height) = features.keypoints, features.image_size
    for _ in range(turns):
        points = np.stack([height - 1 - points[:, 1], points[:, 0]], axis=1)
        width, height = height, width
    return replace(features, keypoints=points, image_size=(width, height)) if turns else features


def _camera(matrix: np.ndarray, calibrated_size: tuple[int, int] | None, image: EvalImage) -> dict:
    """poselib's camera for the image as the extractor saw it."""
    return pinhole_camera(image.from_size(calibrated_size) @ matrix, image.size)


def pinhole_camera(matrix: np.ndarray, size: tuple[int, int]) -> dict:
    """poselib's camera of a (3, 3) camera matrix and an image of (width, height)."""
    parameters = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    return {"model": "PINHOLE", "width": size[0], "height": size[1], "params": parameters}


def evaluate(
    pairs: Sequence[PosePair],
    extractor: TimedExtractor,
    threshold_px: float = 1.0,
    progress: Callable[[Sequence[PosePair]], Iterable[PosePair]] = iter,
    matcher: Matcher = MUTUAL,
) -> dict:
    """The numbers of one extractor on all pairs: AUC in per cent, means of counts over pairs."""
    scores = [score_pair(pair, extractor, threshold_px, matcher) for pair in progress(pairs)]
    errors = np.array([score.error for score in scores])
    auc = pose_auc(errors, AUC_THRESHOLDS)
    return {
        "pairs": len(scores),
        "keypoints": float(np.mean([score.keypoints for score in scores])),
        "matches": float(np.mean([score.matches for score in scores])),
        "inliers": float(np.mean([score.inliers for score in scores])),
        "failed": int(np.isinf(errors).sum()),
        "auc": {str(t): float(value) * 100 for t, value in zip(AUC_THRESHOLDS, auc, strict=True)},
        "best": best_threshold(np.stack([score.swept for score in scores]), AUC_THRESHOLDS),
        "median_error_deg": float(np.median(errors)) if np.isfinite(np.median(errors)) else None,
    }
