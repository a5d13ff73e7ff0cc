"""Trajectories of the runs, from repeated draws of their tracks, and their errors by evo.

A trajectory depends on chance: on which tracks are taken and on the samples of RANSAC. So each is computed several
times, every figure is a median with a spread, and all runs are compared over the same frames.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from samfeat_core.errors import one_line
from samfeat_core.poses import relative_pose, rotation_angle
from samfeat_ros.replay.evaluation.views import View, draw_tracks

REPEATS = 5
TRACKS_PER_VIEW = 300
MIN_POSES = 10
MIN_SHARE = 0.5  # of the frames that could have a pose; a run with fewer is not compared
RPE_FRAMES = (1, 10)

Poses = dict[int, np.ndarray]  # camera-to-world (4, 4) by frame number


@dataclass(frozen=True)
class Trajectory:
    """A run's trajectory after alignment with the ground truth: of its repeats, the one with the median error.

    Attributes:
        summary: what the report says, documented in docs/evaluate_bag.md.
        numbers: (K,) of the frames that are compared.
        poses: (K, 4, 4) camera-to-world, aligned by rotation, translation and scale.
        reference: (K, 4, 4) the true ones.
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


@dataclass(frozen=True)
class _Errors:
    """One repeat against the truth; `values` is flat: ate_rmse_m, rpe.1.translation_rmse_m, ..."""

    numbers: list[int]
    poses: np.ndarray
    reference: np.ndarray
    path_length_m: float
    scale: float
    values: dict[str, float]


def why_not() -> str | None:
    """Why trajectories cannot be computed here, None if they can."""
    if importlib.util.find_spec("pycolmap") is None:
        return "pycolmap is not installed (pip install pycolmap)"
    return None


def map_runs(
    runs: Sequence[Sequence[View]],
    focal: float,
    repeats: int = REPEATS,
    on_done: Callable[[], None] = lambda: None,
) -> list[list[Poses] | str]:
    """Poses of each run from `repeats` random draws of its tracks; the reason where a run's could not be computed.

    In processes of their own, one for each core. The same input gives the same poses to the bit.

    Args:
        runs: views of each, in order of time.
        focal: length in pixels by which errors are measured.
        on_done: called after each of the len(runs) * repeats mappings, for a progress bar.
    """
    # spawned, not forked: this process may run threads of ROS
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), initializer=_prepare_worker) as pool:
        waiting = [[pool.submit(_map_draw, views, focal, seed) for seed in range(repeats)] for views in runs]
        try:
            return [_results(futures, on_done) for futures in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _results(futures: list[Future[Poses]], on_done: Callable[[], None]) -> list[Poses] | str:
    poses = []
    for future in futures:
        try:
            poses.append(future.result())
        except Exception as error:  # one run's fault, even a crash in native code, must not cost the report
            return one_line(f"{type(error).__name__}: {error}")
        on_done()
    return poses


def _prepare_worker() -> None:
    """Ctrl-C in a terminal reaches every process: the command's own ends the pool."""
    import samfeat_ros.replay.evaluation.mapping  # noqa: F401 (pycolmap takes SIGTERM, which shall just end a worker)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _map_draw(views: Sequence[View], focal: float, seed: int) -> Poses:
    from samfeat_ros.replay.evaluation.mapping import map_tracks

    return map_tracks(draw_tracks(views, TRACKS_PER_VIEW, seed), focal, seed)


def evaluate_trajectories(
    mapped: Sequence[list[Poses] | str], frames: Sequence[int], truth: Poses
) -> list[Trajectory | str]:
    """ATE and RPE of each run after alignment by rotation, translation and scale; the reason where there is none.

    All are compared over the same frames: those that have ground truth and that every run has posed in most of its
    repeats. A run that poses too few is not compared, and a repeat that poses less than half of those frames failed.

    Args:
        mapped: of `map_runs`. frames: how many frames each run has processed.
        truth: true camera-to-world poses (4, 4) by frame number.
    """
    checked = [
        repeats if isinstance(repeats, str) else _not_comparable(repeats, count, truth) or repeats
        for repeats, count in zip(mapped, frames)
    ]
    posed = [_posed_in_most(repeats) for repeats in checked if not isinstance(repeats, str)]
    compared = set.intersection(*posed) & truth.keys() if posed else set()
    return [
        repeats if isinstance(repeats, str) else _evaluate(repeats, count, compared, truth)
        for repeats, count in zip(checked, frames)
    ]


def _not_comparable(repeats: Sequence[Poses], frames: int, truth: Poses) -> str | None:
    posed = _posed_in_most(repeats)
    known = len(posed & truth.keys())
    if known < MIN_POSES:
        return f"{known} frames have both a pose and ground truth; expected {MIN_POSES} or more"
    if len(posed) < MIN_SHARE * frames:
        return f"{len(posed)} of {frames} frames have a pose; expected half of them"
    return None


def _posed_in_most(repeats: Sequence[Poses]) -> set[int]:
    counts = Counter(number for poses in repeats for number in poses)
    return {number for number, count in counts.items() if 2 * count > len(repeats)}


def _evaluate(repeats: Sequence[Poses], frames: int, compared: set[int], truth: Poses) -> Trajectory | str:
    if len(compared) < MIN_POSES:
        return f"only {len(compared)} frames have a pose by every front-end; expected {MIN_POSES} or more"
    good = [errors for poses in repeats if (errors := _errors(poses, compared, truth))]
    if 2 * len(good) <= len(repeats):
        return f"{len(repeats) - len(good)} of {len(repeats)} repeats cannot be aligned with the ground truth"
    good.sort(key=lambda errors: errors.values["ate_rmse_m"])
    middle = good[len(good) // 2]
    tracking = [len(poses) for poses in repeats]
    values = {"tracking": _Spread.of(tracking), "lost": _Spread.of([frames - count for count in tracking])}
    for key in middle.values:
        values[key] = _Spread.of([errors.values.get(key, np.nan) for errors in good])
    summary: dict[str, Any] = {
        "frames": frames,
        "poses": len(middle.numbers),
        "repeats": len(repeats),
        "failed_repeats": len(repeats) - len(good),
        "scale_from_ground_truth": middle.scale,
        "path_length_m": middle.path_length_m,
        "spread": {},
    }
    for key, value in values.items():
        _put(summary, key, value.median)
        _put(summary["spread"], key, [value.low, value.high])
    return Trajectory(summary, middle.numbers, middle.poses, middle.reference)


@dataclass(frozen=True)
class _Spread:
    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> _Spread:
        array = np.array([value for value in values if np.isfinite(value)], float)
        return _Spread(float(np.median(array)), float(array.min()), float(array.max()))


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *branches, leaf = key.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
    tree[leaf] = value


def _errors(poses: Poses, compared: set[int], truth: Poses) -> _Errors | None:
    """One repeat over those of the compared frames that it has posed; None where these are too few, or in one place."""
    from evo.core.geometry import GeometryException
    from evo.core.trajectory import PosePath3D

    numbers = sorted(compared & poses.keys())
    if len(numbers) < max(MIN_POSES, MIN_SHARE * len(compared)):
        return None
    estimate = PosePath3D(poses_se3=[poses[number] for number in numbers])
    reference = PosePath3D(poses_se3=[truth[number] for number in numbers])
    try:
        _, _, scale = estimate.align(reference, correct_scale=True)
    except GeometryException:
        return None
    length = float(reference.path_length)
    ate = _ape(reference, estimate)
    values = {"ate_rmse_m": ate}
    if length > 0:
        values["ate_percent"] = 100 * ate / length
    found, true = np.array(estimate.poses_se3), np.array(reference.poses_se3)
    for delta in RPE_FRAMES:
        for key, value in (_rpe(numbers, true, found, delta) or {}).items():
            values[f"rpe.{delta}.{key}"] = value
    return _Errors(numbers, found, true, length, float(scale), values)


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
