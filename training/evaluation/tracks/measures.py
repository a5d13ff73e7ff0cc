"""What tracks are worth: how many last, what poses they give, and how far from the truth they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from samfeat_core.poses import pose_auc
from samfeat_core.track_truth import truth_by_age
from samfeat_core.tracking import RECOVERED
from samfeat_core.two_view import epipolar_distance, fundamental_matrix
from training.evaluation.pose import AUC_THRESHOLDS, pinhole_camera, score_points
from training.evaluation.tracks.footage import Footage
from training.evaluation.tracks.front_ends import Run, TrackedFrame

GAPS = (5, 10, 20)
EVERY = 3  # frames from one start of a gap to the next
WRONG_PX = 3.0  # from the truth: not the same point any more
RETURN_FRAMES = 3  # after an event, within which a track may come back
MIN_BASELINE = 1e-3  # metres; without one there are no epipolar lines


def measure(run: Run, footage: Footage, threshold_px: float, gaps: Sequence[int] = GAPS) -> dict[str, Any]:
    """All figures of a run; those that need depth or events are there where the footage has them."""
    numbers: dict[str, Any] = {
        "points": float(np.mean([len(frame.ids) for frame in run.frames])),
        "tracker_ms": float(np.median(run.milliseconds)),
        "length": mean_length(run),
        "shared": {str(gap): shared_tracks(run, gap) for gap in gaps if gap < len(footage)},
    }
    if footage.warps is None:
        numbers["epipolar_px"] = epipolar_error(run, footage)
        numbers["auc"] = {gap: pose_accuracy(run, footage, int(gap), threshold_px) for gap in numbers["shared"]}
    if footage.depth is not None:
        numbers |= true_places(run, footage)
    if footage.events:
        numbers |= returns(run, footage)
    return numbers


def mean_length(run: Run) -> float | None:
    """Frames in which a track was seen, a mean over tracks of two frames or more; None without any."""
    if not run.frames:
        return None
    _, lengths = np.unique(np.concatenate([frame.ids for frame in run.frames]), return_counts=True)
    lengths = lengths[lengths > 1]
    return float(lengths.mean()) if len(lengths) else None


def _common(first: TrackedFrame, second: TrackedFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the tracks that both frames have."""
    _, one, two = np.intersect1d(first.ids, second.ids, assume_unique=True, return_indices=True)
    return one, two


def _starts(run: Run, gap: int) -> Iterator[tuple[int, int]]:
    return ((start, start + gap) for start in range(0, len(run.frames) - gap, EVERY))


def shared_tracks(run: Run, gap: int) -> float:
    """Mean number of tracks that two frames so far apart share."""
    return float(np.mean([len(_common(run.frames[a], run.frames[b])[0]) for a, b in _starts(run, gap)]))


def pose_accuracy(run: Run, footage: Footage, gap: int, threshold_px: float) -> dict[str, float]:
    """AUC of the error of relative poses from shared tracks, in per cent by threshold in degrees."""
    camera = pinhole_camera(footage.matrix, footage.size)
    errors = []
    for a, b in _starts(run, gap):
        first, second = run.frames[a], run.frames[b]
        one, two = _common(first, second)
        motion = footage.motion(a, b)
        errors.append(score_points(first.points[one], second.points[two], (camera, camera), motion, threshold_px)[1])
    return {str(t): 100 * auc for t, auc in zip(AUC_THRESHOLDS, pose_auc(errors, AUC_THRESHOLDS))}


def epipolar_error(run: Run, footage: Footage) -> float | None:
    """Median distance in pixels of neighbouring frames' inliers from their epipolar lines under the true motion."""
    errors = [
        epipolar_errors(frame.inliers_prev, frame.inliers, footage, number - 1, number)
        for number, frame in enumerate(run.frames)
        if number and np.linalg.norm(footage.motion(number - 1, number)[:3, 3]) > MIN_BASELINE
    ]
    joined = np.concatenate(errors) if errors else np.zeros(0)
    return float(np.median(joined)) if len(joined) else None


def epipolar_errors(points0: np.ndarray, points1: np.ndarray, footage: Footage, first: int, second: int) -> np.ndarray:
    """(n,) mean distance of points (n, 2) in two frames from their two epipolar lines."""
    F = fundamental_matrix(footage.matrix, footage.matrix, footage.motion(first, second))
    points0, points1 = points0.astype(np.float64), points1.astype(np.float64)
    return (epipolar_distance(points0, points1, F) + epipolar_distance(points1, points0, F.T)) / 2


def true_places(run: Run, footage: Footage) -> dict[str, Any]:
    """Survival and truth of tracks by age (`samfeat_core.track_truth.truth_by_age`), and false recoveries."""
    tracks = {number: (frame.ids, frame.points) for number, frame in enumerate(run.frames)}
    return truth_by_age(tracks, footage, range(len(footage))) | _recoveries(run, footage)


def _recoveries(run: Run, footage: Footage) -> dict[str, Any]:
    """How many rows were recovered, and the share in per cent of them that are not the point that they were."""
    origin: dict[int, tuple[int, np.ndarray]] = {}  # id -> frame and place in which it was last seen
    total = wrong = 0
    for number, frame in enumerate(run.frames):
        rows = np.flatnonzero(frame.sources == RECOVERED)
        seen = [origin[int(frame.ids[row])] for row in rows]
        for last in {first for first, _ in seen}:
            of = [index for index, (first, _) in enumerate(seen) if first == last]
            truth, _ = footage.carry(np.stack([seen[index][1] for index in of]), last, number)
            errors = np.linalg.norm(frame.points[rows[of]] - truth, axis=1)
            total, wrong = total + len(of), wrong + int((~(errors <= WRONG_PX)).sum())
        for name, point in zip(frame.ids.tolist(), frame.points, strict=True):
            origin[name] = number, point
    return {"recovered": total, "false_recoveries": 100 * wrong / total if total else None}


def returns(run: Run, footage: Footage) -> dict[str, Any]:
    """What the events left: share in per cent of the tracks that came back, and of those that came back right.

    With depth the tracks that are visible again are counted, and right is within `WRONG_PX` of the truth. Without it
    all tracks are counted, and right is within `WRONG_PX` of the epipolar lines.
    """
    before_all = back_all = right_all = 0
    for last, again in footage.events:
        number = min(again + RETURN_FRAMES - 1, len(run.frames) - 1)
        before, after = run.frames[last], run.frames[number]
        one, two = _common(before, after)
        if footage.depth is not None:
            truth, visible = footage.carry(before.points, last, number)
            kept = visible[one]
            errors = np.linalg.norm(after.points[two[kept]] - truth[one[kept]], axis=1)
            expected = int(visible.sum())
        else:
            errors = epipolar_errors(before.points[one], after.points[two], footage, last, number)
            expected = len(before.ids)
        before_all, back_all = before_all + expected, back_all + len(errors)
        right_all += int((errors <= WRONG_PX).sum())
    share = 100 * back_all / before_all if before_all else None
    return {"back": share, "back_right": 100 * right_all / back_all if back_all else None}
