"""The report: one dictionary with documented keys (docs/evaluate_bag.md), and its table for terminal and page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from samfeat_core.measure import machine
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.ground_truth import GroundTruth
from samfeat_ros.replay.evaluation.metrics import Truth, summarize, summarize_epipolar, summarize_relative_poses
from samfeat_ros.replay.evaluation.runs import CLASSIC, MODEL, Run
from samfeat_ros.replay.evaluation.trajectory import MIN_POSES, Trajectory, evaluate_trajectory

FORMAT, VERSION = "samfeat_ros/evaluate_bag", 2


@dataclass(frozen=True)
class Row:
    """One line of the table: label, how to find its value in a run's entry, format, and which end is better."""

    label: str
    value: Callable[[dict[str, Any]], float | None]
    form: str = "{:.0f}"
    better: Callable[..., float] | None = None  # max or min; None = neither


@dataclass(frozen=True)
class Evaluated:
    """A run with its entry in the report and its trajectory."""

    run: Run
    entry: dict[str, Any]
    trajectory: Trajectory | None


def evaluate_run(run: Run, footage: Footage, truth: Truth | None, gaps: list[int]) -> Evaluated:
    """All numbers of one run."""
    entry = summarize(run)
    entry.update(epipolar=None, relative_pose=None, trajectory=None)
    trajectory = None
    camera = footage.camera
    if camera is not None and truth is not None:
        frames = [frame for frame in run.frames if footage.camera_of(frame.size)]
        entry["epipolar"] = summarize_epipolar(frames, truth, camera)
        entry["relative_pose"] = summarize_relative_poses(frames, truth, camera, gaps)
        trajectory = evaluate_trajectory(frames, camera, truth.poses)
        entry["trajectory"] = trajectory.summary if trajectory else None
    entry["per_frame"] = {
        "number": [frame.number for frame in run.frames],
        "stamp_ns": [frame.stamp_ns for frame in run.frames],
        "keypoints": [len(frame.keypoints) for frame in run.frames],
        "matches": [len(frame.points) for frame in run.frames],
        "inliers": [int(frame.inlier.sum()) for frame in run.frames],
        "latency_ms": [1e3 * frame.latency_s for frame in run.frames],
    }
    return Evaluated(run, entry, trajectory)


def build_report(
    footage: Footage,
    ground_truth: GroundTruth | None,
    truth: Truth | None,
    evaluated: list[Evaluated],
    failures: dict[str, str],
    settings: dict[str, Any],
    partial: bool = False,
) -> dict[str, Any]:
    """The content of report.json. partial: the command was interrupted, and some front-ends did not run."""
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
            "association": "by frame number" if ground_truth.by_number else "by time, interpolated",
        },
        "settings": settings,
        "machine": machine(),
        "runs": [item.entry for item in evaluated],
        "failures": failures,
        "missing": _missing(footage, truth, [item.entry for item in evaluated], settings),
    }


def _missing(
    footage: Footage, truth: Truth | None, entries: list[dict[str, Any]], settings: dict[str, Any]
) -> list[str]:
    """One line, with the reason, for each figure that ground truth was given for and that could not be computed."""
    if truth is None:
        return []
    if footage.camera is None:
        return ["all errors under ground truth: there is no usable CameraInfo; give --camera-info"]
    lines = []
    for entry in entries:
        name = entry["name"]
        if not entry["epipolar"]:
            reason = f"no two frames with ground truth are {settings['min_baseline_m']} m apart (--min-baseline)"
            lines.append(f"{name}: epipolar error: {reason}")
        elif not (entry["epipolar"]["matches"] and entry["epipolar"]["inliers"]):
            lines.append(f"{name}: epipolar error: no match, or no inlier, between frames with ground truth")
        if gaps := [str(gap) for gap in settings["gaps"] if str(gap) not in (entry["relative_pose"] or {})]:
            lines.append(f"{name}: relative pose at gap {', '.join(gaps)}: no pair of frames with known motion")
        if not entry["trajectory"]:
            lines.append(f"{name}: trajectory: fewer than {MIN_POSES} frames have both ground truth and a pose")
    return lines


def rows(report: dict[str, Any]) -> list[Row]:
    """The lines of the table; those under ground truth only where some run has them."""
    lines = [
        Row("frames received", lambda r: r["frames_offered"]),
        Row("frames processed", lambda r: r["frames_processed"]),
        Row("frames dropped", lambda r: sum(r["dropped"].values()), "{:.0f}", min),
        Row("rate, Hz", lambda r: r["rate_hz"], "{:.1f}"),
        Row("latency p50, ms", _at("latency_ms", "p50"), "{:.1f}", min),
        Row("latency p90, ms", _at("latency_ms", "p90"), "{:.1f}", min),
        Row("latency p99, ms", _at("latency_ms", "p99"), "{:.1f}", min),
        Row("CPU, ms a frame", _at("cpu_ms_per_frame"), "{:.1f}", min),
        Row("memory, MB", _at("memory_mb"), "{:.0f}"),
        Row("device memory, MB", _at("device_memory_mb"), "{:.0f}"),
        Row("keypoints", _at("keypoints", "mean"), "{:.0f}"),
        Row("matches", _at("matches", "mean"), "{:.0f}", max),
        Row("inliers", _at("inliers", "mean"), "{:.0f}", max),
        Row("inliers, worst 5 %", _at("inliers", "p5"), "{:.0f}", max),
        Row("frames without a match", _at("without_match", "frames"), "{:.0f}", min),
        Row("inlier ratio", _at("inlier_ratio", "mean"), "{:.3f}", max),
        Row("coverage by inliers", _at("coverage", "inliers"), "{:.3f}", max),
        Row("track length, mean", _at("tracks", "mean_length"), "{:.1f}", max),
        Row("points alive 10 frames later", _at("tracks", "alive", "10"), "{:.0f}", max),
        Row("points alive 20 frames later", _at("tracks", "alive", "20"), "{:.0f}", max),
        Row("epipolar error, median px", _at("epipolar", "matches", "median_px"), "{:.2f}", min),
        Row("matches within 1 px", _at("epipolar", "matches", "within_1px"), "{:.3f}", max),
        Row("matches within 3 px", _at("epipolar", "matches", "within_3px"), "{:.3f}", max),
    ]
    for gap in report["settings"]["gaps"]:
        name = f"gap {gap}:"
        path = ("relative_pose", str(gap))
        lines += [
            Row(f"{name} rotation p50, deg", _at(*path, "rotation_deg", "p50"), "{:.3f}", min),
            Row(f"{name} rotation p90, deg", _at(*path, "rotation_deg", "p90"), "{:.3f}", min),
            Row(f"{name} direction p50, deg", _at(*path, "direction_deg", "p50"), "{:.2f}", min),
            Row(f"{name} direction p90, deg", _at(*path, "direction_deg", "p90"), "{:.2f}", min),
        ]
    lines += [
        Row("odometry: frames with pose", _at("trajectory", "tracking"), "{:.0f}", max),
        Row("odometry: frames lost", _at("trajectory", "lost"), "{:.0f}", min),
        Row("ATE rmse, m (scaled)", _at("trajectory", "ate_rmse_m"), "{:.3f}", min),
        Row("ATE, % of the path", _at("trajectory", "ate_percent"), "{:.2f}", min),
        Row("RPE 1 frame: position, m", _at("trajectory", "rpe", "1", "translation_rmse_m"), "{:.4f}", min),
        Row("RPE 1 frame: rotation, deg", _at("trajectory", "rpe", "1", "rotation_mean_deg"), "{:.3f}", min),
        Row("RPE 10 frames: position, m", _at("trajectory", "rpe", "10", "translation_rmse_m"), "{:.4f}", min),
        Row("RPE 10 frames: rotation, deg", _at("trajectory", "rpe", "10", "rotation_mean_deg"), "{:.3f}", min),
    ]
    return [line for line in lines if any(line.value(entry) is not None for entry in report["runs"])]


def cells(row: Row, report: dict[str, Any]) -> list[tuple[str, bool]]:
    """(text, is the best) of each run in a line of the table."""
    values = [row.value(entry) for entry in report["runs"]]
    texts = ["-" if value is None else row.form.format(value) for value in values]
    known = [value for value in values if value is not None]
    if row.better is None or len(known) < 2:
        return [(text, False) for text in texts]
    best = row.form.format(row.better(known))  # equal to the printed digit is equal
    tied = texts.count(best) == len(texts)
    return [(text, text == best and not tied) for text in texts]


def where_classic_wins(report: dict[str, Any]) -> list[str]:
    """Lines of the table in which a classic front-end is better than every model."""
    found = []
    for row in rows(report):
        models, classics = (_values(row, report, kind) for kind in (MODEL, CLASSIC))
        if row.better is None or not models or not classics:
            continue
        ours, theirs = row.better(models.values()), row.better(classics.values())
        texts = row.form.format(ours), row.form.format(theirs)
        if texts[0] != texts[1] and row.better(ours, theirs) == theirs:
            winner = next(name for name, value in classics.items() if value == theirs)
            found.append(f"{row.label}: {winner} {texts[1]}, best model {texts[0]}")
    return found


def _values(row: Row, report: dict[str, Any], kind: str) -> dict[str, float]:
    entries = [entry for entry in report["runs"] if entry["kind"] == kind]
    return {entry["name"]: value for entry in entries if (value := row.value(entry)) is not None}


def text_table(report: dict[str, Any]) -> str:
    """The table for the terminal; * marks the best of a line."""
    names = [entry["name"] for entry in report["runs"]]
    lines = [["", *names]]
    lines += [[row.label, *(f"{t} *" if best else f"{t}  " for t, best in cells(row, report))] for row in rows(report)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    text = [
        line[0].ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(line[1:], widths[1:])) for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _at(*keys: str) -> Callable[[dict[str, Any]], float | None]:
    def find(entry: dict[str, Any]) -> float | None:
        value: Any = entry
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, (int, float)) and math.isfinite(value) else None

    return find
