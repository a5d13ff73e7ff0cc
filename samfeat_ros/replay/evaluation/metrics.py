"""Metrics of a run: keypoints, matches, tracks and cost, and errors under known camera poses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.measure import percentiles
from samfeat_core.poses import pose_error, relative_pose
from samfeat_core.two_view import epipolar_distance, essential_matrix
from samfeat_ros.odometry.geometry import estimate_motion
from samfeat_ros.replay.evaluation.runs import Run, TrackedFrame

GRID = (12, 9)  # cells across and down for the coverage of the image
FAILED_DEG = 180.0  # what an unsolved relative pose counts as
RELATIVE_POSE_THRESHOLD_PX = 1.0
SURVIVAL_FRAMES = (1, 2, 3, 5, 10, 20, 30, 50, 100)


Cameras = Mapping[int, Camera]  # by frame number


@dataclass(frozen=True)
class Truth:
    """Known camera-to-world poses (4, 4) by frame number, and the least baseline of a pair of cameras that counts."""

    poses: dict[int, np.ndarray]
    min_baseline_m: float

    def motion(self, first: int, second: int) -> np.ndarray | None:
        """(4, 4) transform of points from camera `first` to camera `second`; None where unknown or too short."""
        if first not in self.poses or second not in self.poses:
            return None
        motion = relative_pose(self.poses[first], self.poses[second])
        return None if np.linalg.norm(motion[:3, 3]) < self.min_baseline_m else motion


def summarize(run: Run) -> dict[str, Any]:
    """Counts, coverage, tracks and cost of a run: no ground truth needed.

    Every processed frame but the first counts, with zeros where nothing was matched: a blackout shows.
    """
    frames = run.frames
    follow = frames[1:]
    return {
        "name": run.name,
        "kind": run.kind,
        "details": run.details,
        "frames_offered": run.offered,
        "frames_processed": len(frames),
        "frames_dropped": sum(run.dropped.values()),
        "dropped": run.dropped,
        "rate_hz": len(frames) / run.seconds if run.seconds > 0 else None,
        "seconds": run.seconds,
        "latency_ms": percentiles([1e3 * frame.latency_s for frame in frames]),
        "stages_ms": run.stages,
        "cpu_percent": run.cpu_percent,
        "cpu_ms_per_frame": _cpu_ms_per_frame(run),
        "memory_mb": run.memory_mb,
        "device_memory_mb": run.device_memory_mb,
        "keypoints": _spread(len(frame.keypoints) for frame in frames),
        "matches": _spread(len(frame.points) for frame in follow),
        "inliers": _spread(int(frame.inlier.sum()) for frame in follow),
        "inlier_ratio": _spread(frame.inlier_ratio if len(frame.inlier) else 0.0 for frame in follow),
        "without_match": _without_match(follow),
        "coverage": {
            "keypoints": _mean(coverage(frame.keypoints, frame.size) for frame in frames),
            "inliers": _mean(coverage(frame.points[frame.inlier], frame.size) for frame in follow),
        },
        "tracks": summarize_tracks(frames),
        "digest": run.digest(),
    }


def _cpu_ms_per_frame(run: Run) -> float | None:
    """CPU time of all cores per processed frame: comparable at every rate, unlike a share of the time."""
    if run.cpu_percent is None or not run.frames:
        return None
    return 10 * run.cpu_percent * run.seconds / len(run.frames)


def _without_match(frames: list[TrackedFrame]) -> dict[str, int]:
    """How many frames have no match to the one before, and the most of them in a row."""
    longest = current = total = 0
    for frame in frames:
        current = 0 if len(frame.points) else current + 1
        total += current > 0
        longest = max(longest, current)
    return {"frames": total, "in_a_row": longest}


def coverage(points: np.ndarray, size: tuple[int, int]) -> float:
    """Share of the cells of a 12 x 9 grid that hold at least one point."""
    if not len(points):
        return 0.0
    cells = np.floor((points + 0.5) / np.array(size) * np.array(GRID)).astype(int)
    cells = np.clip(cells, 0, np.array(GRID) - 1)
    return len(np.unique(cells, axis=0)) / (GRID[0] * GRID[1])


def track_lengths(frames: list[TrackedFrame]) -> np.ndarray:
    """Frames that each track was seen in, one entry per track. An id that pauses begins a new track."""
    alive: dict[int, int] = {}
    lengths: list[int] = []
    for frame in frames:
        now = {int(number): alive.pop(int(number), 0) + 1 for number in frame.ids}
        lengths += alive.values()
        alive = now
    return np.array([*lengths, *alive.values()], np.int64)


def alive_later(frames: list[TrackedFrame], age: int) -> dict[int, int]:
    """{frame number: how many of its points are still tracked `age` frames later}, where the recording goes on so long.

    A track that pauses and returns under its id is alive again. Frames are counted by their number in the recording:
    a frame that was dropped has lost its points.
    """
    ids = {frame.number: frame.ids for frame in frames}
    nothing = np.zeros(0, np.int64)
    return {
        number: len(np.intersect1d(first, ids.get(number + age, nothing)))
        for number, first in ids.items()
        if number + age <= max(ids)
    }


def points_alive(frames: list[TrackedFrame]) -> dict[str, float]:
    """{k: points of a frame that are still tracked k frames later}, mean over the frames."""
    counts = {str(age): list(alive_later(frames, age).values()) for age in SURVIVAL_FRAMES}
    return {age: float(np.mean(values)) for age, values in counts.items() if values}


def summarize_tracks(frames: list[TrackedFrame]) -> dict[str, Any]:
    """Number and lengths of tracks of two frames or more: a keypoint that never matched is no track."""
    lengths = track_lengths(frames)
    single = int((lengths == 1).sum())
    lengths = lengths[lengths > 1]
    if not len(lengths):
        return {"count": 0, "never_matched": single, "mean_length": None, "survival": {}, "alive": points_alive(frames)}
    ranked = percentiles(lengths) or {}
    # a track counts in every frame it lives in
    per_point = float((lengths.astype(float) ** 2).sum() / lengths.sum())
    return {
        "count": len(lengths),
        "never_matched": single,
        "mean_length": float(lengths.mean()),
        "length": ranked,
        "mean_length_of_a_point": per_point,
        "survival": {str(k): float((lengths >= k).mean()) for k in SURVIVAL_FRAMES if 1 < k <= len(frames)},
        "alive": points_alive(frames),
    }


def epipolar_errors(
    frame: TrackedFrame, motion: np.ndarray, camera: Camera, camera_prev: Camera | None = None
) -> np.ndarray:
    """(M,) mean distance in pixels of each match from its two epipolar lines under the true motion, a (4, 4) transform.

    Pixels are those of the undistorted image at the mean focal length. NaN where the lens model has no ray.

    Args:
        camera: of the frame. camera_prev: of the frame before, None = the same.
    """
    a, b = (camera_prev or camera).normalize(frame.points_prev), camera.normalize(frame.points)
    essential = essential_matrix(motion)
    return camera.focal * (epipolar_distance(a, b, essential) + epipolar_distance(b, a, essential.T)) / 2


def epipolar_by_frame(frames: list[TrackedFrame], truth: Truth, cameras: Cameras) -> dict[int, np.ndarray]:
    """{frame number: epipolar errors of its matches}, where the motion and both cameras are known."""
    errors = {}
    for frame in frames:
        before = frame.number_prev
        if before is None or not {before, frame.number} <= cameras.keys():
            continue
        motion = truth.motion(before, frame.number)
        if motion is not None:
            errors[frame.number] = epipolar_errors(frame, motion, cameras[frame.number], cameras[before])
    return errors


def summarize_epipolar(frames: list[TrackedFrame], errors: dict[int, np.ndarray]) -> dict[str, Any] | None:
    """Epipolar error of all matches and of the inliers; None where no pair of frames has a known motion.

    Args:
        errors: of `epipolar_by_frame`.
    """
    if not errors:
        return None
    good = [errors[frame.number][frame.inlier] for frame in frames if frame.number in errors]
    every = np.concatenate(list(errors.values()))
    return {"pairs": len(errors), "matches": _errors(every), "inliers": _errors(np.concatenate(good))}


PairErrors = dict[int, dict[int, "tuple[float, float] | None"]]


def relative_pose_errors(
    frames: list[TrackedFrame],
    truth: Truth,
    cameras: Cameras,
    gaps: Iterable[int],
    on_pair: Callable[[], None] = lambda: None,
) -> PairErrors:
    """{gap: {number of the first frame: error of the motion to the frame `gap` later}}, from the tracks of both.

    The motion is that of the essential matrix; its error is (rotation, direction) in degrees, None without a solution.

    Args:
        on_pair: called for every frame at every gap, for a progress bar.
    """
    by_number = {frame.number: frame for frame in frames if frame.number in cameras}
    rays = {number: cameras[number].normalize(frame.keypoints) for number, frame in by_number.items()}
    errors: PairErrors = {gap: {} for gap in gaps}
    for gap, found in errors.items():
        for number in sorted(by_number):
            on_pair()
            motion = truth.motion(number, number + gap) if number + gap in by_number else None
            if motion is not None:
                found[number] = _pair_error(by_number[number], by_number[number + gap], rays, motion, cameras)
    return errors


def summarize_relative_poses(errors: PairErrors) -> dict[str, dict[str, Any]]:
    """Percentiles of `relative_pose_errors` by gap. A pair without a solution counts as 180 degrees."""
    result = {}
    for gap, pairs in errors.items():
        if pairs:
            rotations, directions = zip(*(error or (FAILED_DEG, FAILED_DEG) for error in pairs.values()))
            result[str(gap)] = {
                "pairs": len(pairs),
                "solved": sum(error is not None for error in pairs.values()),
                "rotation_deg": percentiles(rotations),
                "direction_deg": percentiles(directions),
            }
    return result


def _pair_error(
    first: TrackedFrame, second: TrackedFrame, rays: dict[int, np.ndarray], motion: np.ndarray, cameras: Cameras
) -> tuple[float, float] | None:
    """Rotation and translation-direction error in degrees; None where there is no solution."""
    _, a, b = np.intersect1d(first.ids, second.ids, return_indices=True)
    rays_a, rays_b = rays[first.number][a], rays[second.number][b]
    usable = np.isfinite(rays_a).all(axis=1) & np.isfinite(rays_b).all(axis=1)
    found = estimate_motion(rays_a[usable], rays_b[usable], RELATIVE_POSE_THRESHOLD_PX / cameras[second.number].focal)
    if found is None:
        return None
    estimate = found[0]
    return pose_error(estimate.rotation, estimate.translation, motion[:3, :3], motion[:3, 3], signed=True)


def worst_frames(frames: list[TrackedFrame], count: int) -> list[TrackedFrame]:
    """The frames with the fewest inliers; the first one, which has none, aside."""
    return sorted(frames[1:], key=lambda frame: int(frame.inlier.sum()))[:count]


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
    ranked = percentiles(array, (5, 50))
    if ranked is None:
        return None
    return {"mean": float(array[np.isfinite(array)].mean()), "median": ranked["p50"], "p5": ranked["p5"]}


def _mean(values: Iterable[float]) -> float | None:
    array = np.array(list(values), np.float64)
    return float(array.mean()) if len(array) else None
