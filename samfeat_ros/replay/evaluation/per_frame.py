"""What the report says of every single frame: the columns of `per_frame` in report.json, and of frames.csv."""

from __future__ import annotations

from typing import Any

import numpy as np

from samfeat_ros.replay.evaluation.metrics import FAILED_DEG, PairErrors, alive_later, coverage
from samfeat_ros.replay.evaluation.runs import TrackedFrame
from samfeat_ros.replay.evaluation.trajectory import Trajectory

ALIVE = (10, 20)  # frames later


def per_frame(frames: list[TrackedFrame]) -> dict[str, list[Any]]:
    """Columns that need no ground truth, one value for each frame that a front-end processed; None = there is none."""
    columns: dict[str, list[Any]] = {
        "number": [frame.number for frame in frames],
        "stamp_ns": [frame.stamp_ns for frame in frames],
        "keypoints": [len(frame.keypoints) for frame in frames],
        "matches": [len(frame.points) for frame in frames],
        "inliers": [int(frame.inlier.sum()) for frame in frames],
        "inlier_ratio": [float(frame.inlier.mean()) if len(frame.inlier) else 0.0 for frame in frames],
        "coverage": [coverage(frame.points[frame.inlier], frame.size) for frame in frames],
        "latency_ms": [1e3 * frame.latency_s for frame in frames],
    }
    for age in ALIVE:
        columns[f"alive_{age}"] = _by_number(frames, alive_later(frames, age))
    return columns


def per_frame_under_truth(
    frames: list[TrackedFrame], epipolar: dict[int, np.ndarray], poses: PairErrors, trajectory: Trajectory | None
) -> dict[str, list[Any]]:
    """Columns of errors.

    Args:
        epipolar: of `metrics.epipolar_by_frame`. poses: of `metrics.relative_pose_errors`.
    """
    known = {number: errors[np.isfinite(errors)] for number, errors in epipolar.items()}
    known = {number: errors for number, errors in known.items() if len(errors)}
    columns = {
        "epipolar_px": _by_number(frames, {number: float(np.median(errors)) for number, errors in known.items()}),
        "within_1px": _by_number(frames, {number: float((errors <= 1).mean()) for number, errors in known.items()}),
        "within_3px": _by_number(frames, {number: float((errors <= 3).mean()) for number, errors in known.items()}),
    }
    for gap, pairs in poses.items():
        for index, name in enumerate(("rotation", "direction")):
            degrees = {number: error[index] if error else FAILED_DEG for number, error in pairs.items()}
            columns[f"gap{gap}_{name}_deg"] = _by_number(frames, degrees)
    if trajectory:
        for name, values in (("distance_m", trajectory.distance), ("position_error_m", trajectory.errors)):
            columns[name] = _by_number(frames, dict(zip(trajectory.numbers, values.tolist())))
    return columns


def _by_number(frames: list[TrackedFrame], values: dict[int, Any]) -> list[Any]:
    return [values.get(frame.number) for frame in frames]
