"""Numbers of a run: what was found, followed and missed, and how true it is under known camera poses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.measure import percentiles
from samfeat_core.poses import pose_error
from samfeat_core.two_view import epipolar_distance, skew
from samfeat_ros.odometry.estimator import Pose, relative_pose
from samfeat_ros.replay.evaluation.runs import Record, Run

GRID = (12, 9)  # cells across and down for the coverage of the image
FAILED_DEG = 180.0  # what an unsolved relative pose counts as
RELATIVE_POSE_THRESHOLD_PX = 1.0
SURVIVAL_FRAMES = (1, 2, 3, 5, 10, 20, 30, 50, 100)


@dataclass(frozen=True)
class Truth:
    """Known camera-to-world poses (4, 4) by frame number, and how far two cameras must be apart to count."""

    poses: dict[int, np.ndarray]
    min_baseline_m: float

    def motion(self, first: int, second: int) -> Pose | None:
        """Motion of points from camera `first` into camera `second`; None where unknown or too short."""
        if first not in self.poses or second not in self.poses:
            return None
        matrix = np.linalg.inv(self.poses[second]) @ self.poses[first]
        if np.linalg.norm(matrix[:3, 3]) < self.min_baseline_m:
            return None
        return Pose(matrix[:3, :3], matrix[:3, 3])


def summarize(run: Run) -> dict[str, Any]:
    """Counts, coverage, tracks and cost of a run: no ground truth needed."""
    records = run.records
    follow = [record for record in records if record.number_prev is not None]
    return {
        "name": run.name,
        "kind": run.kind,
        "details": run.details,
        "frames_offered": run.offered,
        "frames_processed": len(records),
        "dropped": run.dropped,
        "rate_hz": len(records) / run.seconds if run.seconds > 0 else None,
        "seconds": run.seconds,
        "latency_ms": percentiles([1e3 * record.latency_s for record in records]),
        "stages_ms": run.stages,
        "cpu_percent": run.cpu_percent,
        "memory_mb": run.memory_mb,
        "device_memory_mb": run.device_memory_mb,
        "keypoints": _spread(len(record.keypoints) for record in records),
        "matches": _spread(len(record.points) for record in follow),
        "inliers": _spread(int(record.inlier.sum()) for record in follow),
        "inlier_ratio": _spread(record.inlier_ratio for record in follow),
        "coverage": {
            "keypoints": _mean(coverage(record.keypoints, record.size) for record in records),
            "inliers": _mean(coverage(record.points[record.inlier], record.size) for record in follow),
        },
        "tracks": summarize_tracks(records),
        "digest": run.digest(),
    }


def coverage(points: np.ndarray, size: tuple[int, int]) -> float:
    """Share of the cells of a 12 x 9 grid that hold at least one point."""
    if not len(points):
        return 0.0
    cells = np.floor((points + 0.5) / np.array(size) * np.array(GRID)).astype(int)
    cells = np.clip(cells, 0, np.array(GRID) - 1)
    return len(np.unique(cells, axis=0)) / (GRID[0] * GRID[1])


def track_lengths(records: list[Record]) -> np.ndarray:
    """Frames that each track was seen in, one entry per track. An id that pauses begins a new track."""
    alive: dict[int, int] = {}
    lengths: list[int] = []
    for record in records:
        now = {int(number): alive.pop(int(number), 0) + 1 for number in record.ids}
        lengths += alive.values()
        alive = now
    return np.array([*lengths, *alive.values()], np.int64)


def summarize_tracks(records: list[Record]) -> dict[str, Any]:
    """Number and lengths of tracks, and the share of tracks that are at least k frames long."""
    lengths = track_lengths(records)
    if not len(lengths):
        return {"count": 0, "mean_length": None, "survival": {}}
    ranked = percentiles(lengths) or {}
    # where a tracked point of an average frame stands: long tracks count in every frame they live
    per_point = float((lengths.astype(float) ** 2).sum() / lengths.sum())
    return {
        "count": len(lengths),
        "mean_length": float(lengths.mean()),
        "length": ranked,
        "mean_length_of_a_point": per_point,
        "survival": {str(k): float((lengths >= k).mean()) for k in SURVIVAL_FRAMES if k <= len(records)},
    }


def epipolar_errors(record: Record, motion: Pose, camera: Camera) -> np.ndarray:
    """(M,) mean distance in pixels of each match from its two epipolar lines under the true motion; NaN off the lens.

    Pixels are those of the undistorted image at the mean focal length.
    """
    a, b = camera.normalize(record.points_prev), camera.normalize(record.points)
    essential = skew(motion.translation) @ motion.rotation
    return camera.focal * (epipolar_distance(a, b, essential) + epipolar_distance(b, a, essential.T)) / 2


def summarize_epipolar(records: list[Record], truth: Truth, camera: Camera) -> dict[str, Any] | None:
    """Epipolar error of all matches and of the inliers; None where no pair of frames has a known motion."""
    every, good, pairs = [], [], 0
    for record in records:
        motion = None if record.number_prev is None else truth.motion(record.number_prev, record.number)
        if motion is None:
            continue
        errors = epipolar_errors(record, motion, camera)
        every.append(errors)
        good.append(errors[record.inlier])
        pairs += 1
    if not pairs:
        return None
    return {"pairs": pairs, "matches": _errors(np.concatenate(every)), "inliers": _errors(np.concatenate(good))}


def summarize_relative_poses(
    records: list[Record], truth: Truth, camera: Camera, gaps: Iterable[int]
) -> dict[str, dict[str, Any]]:
    """Errors of the motion between frames that are `gap` apart, from the tracks that both have.

    The motion is that of the essential matrix. A pair without a solution counts as 180 degrees.
    """
    by_number = {record.number: record for record in records}
    rays = {record.number: camera.normalize(record.keypoints) for record in records}
    result = {}
    for gap in gaps:
        rotations, directions, solved = [], [], 0
        for number in sorted(by_number):
            motion = truth.motion(number, number + gap) if number + gap in by_number else None
            if motion is None:
                continue
            errors = _pair_error(by_number[number], by_number[number + gap], rays, motion, camera)
            solved += errors is not None
            rotation, direction = errors or (FAILED_DEG, FAILED_DEG)
            rotations.append(rotation)
            directions.append(direction)
        if rotations:
            result[str(gap)] = {
                "pairs": len(rotations),
                "solved": solved,
                "rotation_deg": percentiles(rotations),
                "direction_deg": percentiles(directions),
            }
    return result


def _pair_error(
    first: Record, second: Record, rays: dict[int, np.ndarray], motion: Pose, camera: Camera
) -> tuple[float, float] | None:
    """Rotation and translation-direction error in degrees; None where there is no solution."""
    _, a, b = np.intersect1d(first.ids, second.ids, return_indices=True)
    rays_a, rays_b = rays[first.number][a], rays[second.number][b]
    usable = np.isfinite(rays_a).all(axis=1) & np.isfinite(rays_b).all(axis=1)
    found = relative_pose(rays_a[usable], rays_b[usable], RELATIVE_POSE_THRESHOLD_PX / camera.focal)
    if found is None:
        return None
    estimate = found[0]
    return pose_error(estimate.rotation, estimate.translation, motion.rotation, motion.translation, signed=True)


def worst_frames(records: list[Record], count: int) -> list[Record]:
    """The frames with the fewest inliers among those that follow another frame."""
    follow = [record for record in records[1:] if record.number_prev is not None or not len(record.points)]
    return sorted(follow, key=lambda record: int(record.inlier.sum()))[:count]


def _errors(values: np.ndarray) -> dict[str, float] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return {
        "count": len(values),
        "median_px": float(np.median(values)),
        "within_1px": float((values <= 1).mean()),
        "within_3px": float((values <= 3).mean()),
    }


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    array = np.array(list(values), np.float64)
    array = array[np.isfinite(array)]
    if not len(array):
        return None
    low, middle = np.percentile(array, [5, 50])
    return {"mean": float(array.mean()), "median": float(middle), "p5": float(low)}


def _mean(values: Iterable[float]) -> float | None:
    array = np.array(list(values), np.float64)
    return float(array.mean()) if len(array) else None
