"""The trajectory of a plain monocular visual odometry on a run's matches, and its errors by evo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.poses import relative_pose, rotation_angle
from samfeat_ros.odometry.estimator import LOST, TRACKING, MonocularOdometry
from samfeat_ros.replay.evaluation.runs import TrackedFrame

MIN_POSES = 10
RPE_FRAMES = (1, 10)


@dataclass(frozen=True)
class Trajectory:
    """Poses of a run after alignment, and their errors.

    Attributes:
        summary: what the report says, documented in docs/evaluate_bag.md.
        numbers: (K,) of the frames.
        poses: (K, 4, 4) camera-to-world after alignment; reference: (K, 4, 4) the true ones.
    """

    summary: dict[str, Any]
    numbers: list[int]
    poses: np.ndarray
    reference: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """(K, 3)."""
        return self.poses[:, :3, 3]

    @property
    def true_positions(self) -> np.ndarray:
        """(K, 3)."""
        return self.reference[:, :3, 3]

    @property
    def errors(self) -> np.ndarray:
        """(K,) metres from the true positions."""
        return np.linalg.norm(self.positions - self.true_positions, axis=1)

    @property
    def distance(self) -> np.ndarray:
        """(K,) metres along the true path."""
        return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self.true_positions, axis=0), axis=1))])


def run_odometry(frames: list[TrackedFrame], camera: Camera) -> tuple[dict[int, np.ndarray], dict[str, int]]:
    """Camera-to-world poses (4, 4) by frame number, and how many frames had which status.

    The same code as the node `visual_odometry`, fed with the same inliers. Poses guessed while lost are left out.
    """
    odometry = MonocularOdometry(camera)
    poses: dict[int, np.ndarray] = {}
    statuses: dict[str, int] = {}
    for frame in frames:
        keep = frame.inlier
        update = odometry.update(
            frame.match_ids[keep], frame.points_prev[keep], frame.points[keep], frame.number, frame.number_prev
        )
        statuses[update.status] = statuses.get(update.status, 0) + 1
        if update.status == TRACKING and update.pose is not None:
            poses[frame.number] = update.pose.camera_to_world
    return poses, statuses


def evaluate_trajectory(frames: list[TrackedFrame], camera: Camera, truth: dict[int, np.ndarray]) -> Trajectory | None:
    """ATE and RPE after alignment by rotation, translation and scale; None where fewer than 10 poses can be compared.

    Args:
        truth: true camera-to-world poses (4, 4) by frame number.
    """
    from evo.core.geometry import GeometryException
    from evo.core.trajectory import PosePath3D

    poses, statuses = run_odometry(frames, camera)
    numbers = [number for number in sorted(poses) if number in truth]
    if len(numbers) < MIN_POSES:
        return None
    estimate = PosePath3D(poses_se3=[poses[number] for number in numbers])
    reference = PosePath3D(poses_se3=[truth[number] for number in numbers])
    try:
        _, _, scale = estimate.align(reference, correct_scale=True)
    except GeometryException:  # all positions the same: nothing to align
        return None
    length = float(reference.path_length)
    ate = _ape(reference, estimate)
    summary = {
        "frames": len(frames),
        "poses": len(numbers),
        "tracking": statuses.get(TRACKING, 0),
        "lost": statuses.get(LOST, 0),
        "scale_from_ground_truth": float(scale),
        "path_length_m": length,
        "ate_rmse_m": ate,
        "ate_percent": 100 * ate / length if length > 0 else None,
        "rpe": {
            str(delta): found
            for delta in RPE_FRAMES
            if (found := _rpe(numbers, np.array(reference.poses_se3), np.array(estimate.poses_se3), delta))
        },
    }
    return Trajectory(summary, numbers, np.array(estimate.poses_se3), np.array(reference.poses_se3))


def _ape(reference: Any, estimate: Any) -> float:
    from evo.core import metrics

    metric = metrics.APE(metrics.PoseRelation.translation_part)
    metric.process_data((reference, estimate))
    return float(metric.get_statistic(metrics.StatisticsType.rmse))


def _rpe(numbers: list[int], reference: np.ndarray, estimate: np.ndarray, delta: int) -> dict[str, float] | None:
    """Relative pose error over `delta` frames of the recording: root mean square of position, mean of rotation.

    Args:
        numbers: of the frames that have both poses (N, 4, 4); only pairs exactly `delta` apart count.
    """
    row = {number: index for index, number in enumerate(numbers)}
    first = [row[number] for number in numbers if number + delta in row]
    second = [row[number + delta] for number in numbers if number + delta in row]
    if not first:
        return None
    true, found = (relative_pose(poses[second], poses[first]) for poses in (reference, estimate))
    error = np.linalg.inv(true) @ found
    squared = (error[:, :3, 3] ** 2).sum(axis=1)
    return {
        "translation_rmse_m": float(np.sqrt(squared.mean())),
        "rotation_mean_deg": float(rotation_angle(error[:, :3, :3]).mean()),
    }
