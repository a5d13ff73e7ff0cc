"""The report: one dictionary with documented keys (docs/evaluate_bag.md), and its table for terminal and page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samfeat_core.measure import machine
from samfeat_core.track_truth import truth_by_age
from samfeat_ros.replay.evaluation.depth import DepthScene
from samfeat_ros.replay.evaluation.figures import Figure, figures
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.ground_truth import GroundTruth
from samfeat_ros.replay.evaluation.metrics import (
    Truth,
    epipolar_by_frame,
    relative_pose_errors,
    summarize,
    summarize_epipolar,
    summarize_relative_poses,
)
from samfeat_ros.replay.evaluation.per_frame import per_frame, per_frame_under_truth
from samfeat_ros.replay.evaluation.requirements import Requirement
from samfeat_ros.replay.evaluation.runs import CLASSIC, MODEL, Run
from samfeat_ros.replay.evaluation.trajectory import (
    MIN_POSES,
    Trajectory,
    evaluate_trajectories,
    map_runs,
    why_not,
)
from samfeat_ros.replay.evaluation.views import views_of

FORMAT, VERSION = "samfeat_ros/evaluate_bag", 2


@dataclass(frozen=True)
class Evaluated:
    """A run with its entry in the report, and its trajectory or why there is none."""

    run: Run
    entry: dict[str, Any]
    trajectory: Trajectory | None
    no_trajectory: str = ""


def judge_trajectories(
    runs: list[Run], footage: Footage, truth: Truth | None, on_step: Callable[[], None] = lambda: None
) -> list[Trajectory | str]:
    """The trajectory of each run, or why there is none. on_step: called after each repeat of each run."""
    if truth is None or footage.camera is None:
        return ["no ground truth, or no CameraInfo"] * len(runs)
    if reason := why_not():
        return [reason] * len(runs)
    if len(truth.poses) < MIN_POSES:
        return [f"{len(truth.poses)} frames have ground truth; expected {MIN_POSES} or more"] * len(runs)
    views = [views_of(run.frames, footage.camera_of) for run in runs]
    mapped = map_runs(views, footage.camera.focal, on_done=on_step)
    return evaluate_trajectories(mapped, [len(run.frames) for run in runs], truth.poses)


def evaluate_run(
    run: Run,
    footage: Footage,
    truth: Truth | None,
    gaps: list[int],
    on_step: Callable[[], None] = lambda: None,
    scene: DepthScene | None = None,
    trajectory: Trajectory | str = "",
) -> Evaluated:
    """All numbers of one run.

    Args:
        on_step: called for every frame at every gap, for a progress bar.
        scene: depth beside the truth, None = there is none.
        trajectory: of `judge_trajectories`.
    """
    entry = summarize(run)
    entry.update(epipolar=None, relative_pose=None, trajectory=None, track_truth=None, per_frame=per_frame(run.frames))
    cameras = footage.cameras
    path, reason = (None, trajectory) if isinstance(trajectory, str) else (trajectory, "")
    if cameras and truth is not None:
        frames = [frame for frame in run.frames if frame.number in cameras]
        epipolar = epipolar_by_frame(frames, truth, cameras)
        poses = relative_pose_errors(frames, truth, cameras, gaps, on_step)
        entry["epipolar"] = summarize_epipolar(frames, epipolar)
        entry["relative_pose"] = summarize_relative_poses(poses)
        entry["trajectory"] = path.summary if path else None
        entry["per_frame"] |= per_frame_under_truth(run.frames, epipolar, poses, path)
        if scene is not None and scene.known:
            tracks = {frame.number: (frame.ids, frame.keypoints) for frame in frames}
            entry["track_truth"] = truth_by_age(tracks, scene, scene.known)
    return Evaluated(run, entry, path, reason)


def build_report(
    footage: Footage,
    ground_truth: GroundTruth | None,
    truth: Truth | None,
    evaluated: list[Evaluated],
    failures: dict[str, str],
    settings: dict[str, Any],
    partial: bool = False,
    requirements: Sequence[Requirement] = (),
    time_offset_s: float = 0.0,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        partial: the command was interrupted, and some front-ends did not run.
        requirements: to be judged.
        time_offset_s: by which the stamps of the ground truth were moved.
    """
    entries = [item.entry for item in evaluated]
    sizes = sorted({frame.size for frame in footage.frames})
    camera = footage.camera
    return {
        "format": FORMAT,
        "version": VERSION,
        "partial": partial,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "bag": {
            "path": str(footage.bag.path),
            "image_topic": footage.recording.image_topic,
            "image_type": footage.recording.image_type,
            "camera_info_topic": footage.recording.camera_info_topic,
            "images": footage.total,
            "usable": len(footage.frames),
            "refused": dict(footage.refused),
            "sizes": [list(size) for size in sizes],
            "duration_s": footage.duration_s,
            "problems": footage.problems,
        },
        "camera": None
        if camera is None
        else {
            "matrix": camera.matrix.tolist(),
            "distortion": camera.distortion.tolist(),
            "model": camera.model,
            "size": [camera.width, camera.height],
        },
        "ground_truth": None
        if ground_truth is None or truth is None
        else {
            "source": ground_truth.source,
            "poses": len(ground_truth.poses),
            "frames_with_pose": len(truth.poses),
            "time_offset_s": time_offset_s,
            "association": "by frame number" if ground_truth.by_number else "by time, interpolated",
        },
        "settings": settings,
        "machine": machine(),
        "runs": entries,
        "failures": failures,
        "missing": _missing(footage, truth, evaluated, settings),
        "requirements": [result for requirement in requirements for result in requirement.judge(entries)],
    }


def _missing(footage: Footage, truth: Truth | None, evaluated: list[Evaluated], settings: dict[str, Any]) -> list[str]:
    """One line, with the reason, for each figure that ground truth was given for and that could not be computed."""
    if truth is None:
        return []
    if footage.camera is None:
        return ["all errors under ground truth: there is no usable CameraInfo; give --camera-info"]
    lines = []
    for item in evaluated:
        entry, name = item.entry, item.run.name
        if not entry["epipolar"]:
            reason = f"no two frames with ground truth are {settings['min_baseline_m']} m apart (--min-baseline)"
            lines.append(f"{name}: epipolar error: {reason}")
        elif not (entry["epipolar"]["matches"] and entry["epipolar"]["inliers"]):
            lines.append(f"{name}: epipolar error: no match, or no inlier, between frames with ground truth")
        if gaps := [str(gap) for gap in settings["gaps"] if str(gap) not in (entry["relative_pose"] or {})]:
            lines.append(f"{name}: relative pose at gap {', '.join(gaps)}: no pair of frames with known motion")
        if not entry["trajectory"]:
            lines.append(f"{name}: trajectory: {item.no_trajectory}")
    return lines


def rows(report: dict[str, Any]) -> list[Figure]:
    """The lines of the table; those under ground truth only where some run has them."""
    lines = figures(report["settings"]["gaps"])
    return [line for line in lines if any(line.of(entry) is not None for entry in report["runs"])]


def cells(row: Figure, report: dict[str, Any]) -> list[tuple[str, bool]]:
    """(text, is the best) of each run in a line of the table.

    Equal to the printed digit is equally good. Of figures with a spread, the best is one whose whole range is better
    than those of all others.
    """
    entries = report["runs"]
    known = [entry for entry in entries if row.of(entry) is not None]
    best = [
        entry in known and all(entry is other or _is_ahead(row, entry, other) for other in known) for entry in entries
    ]
    marked = len(known) > 1 and sum(best) < len(known)
    return [(row.cell(entry), marked and good) for entry, good in zip(entries, best)]


def _is_ahead(row: Figure, entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Better; or the same to the printed digit, where there is no spread."""
    same = row.limits(entry) is None and row.text(row.of(entry)) == row.text(row.of(other))
    return row.better is not None and (same or row.is_better(entry, other))


def where_classic_wins(report: dict[str, Any]) -> list[str]:
    """Lines of the table in which a classic front-end is better than every model."""
    found = []
    for row in rows(report):
        models, classics = (_entries(row, report, kind) for kind in (MODEL, CLASSIC))
        if row.better is None or not models or not classics:
            continue
        ours, theirs = (row.better(entries, key=row.of) for entries in (models, classics))
        if all(row.is_better(theirs, entry) for entry in models):
            found.append(f"{row.label}: {theirs['name']} {row.cell(theirs)}, best model {row.cell(ours)}")
    return found


def _entries(row: Figure, report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in report["runs"] if entry["kind"] == kind and row.of(entry) is not None]


def text_table(report: dict[str, Any]) -> str:
    """The table for the terminal; * marks the best of a line."""
    names = [entry["name"] for entry in report["runs"]]
    lines = [[row.label, *(f"{t} *" if best else f"{t}  " for t, best in cells(row, report))] for row in rows(report)]
    return columns([["", *names], *lines])


def columns(lines: list[list[str]]) -> str:
    """Lines of cells as text with a rule below the first; the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        line[0].ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(line[1:], widths[1:])) for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])
