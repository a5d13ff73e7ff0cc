"""Files for other tools: frames as CSV, trajectories as TUM files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samfeat_core.files import write_bytes
from samfeat_core.poses import quaternion
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.metrics import Truth
from samfeat_ros.replay.evaluation.report import Evaluated
from samfeat_ros.stamps import split_ns


def write_frames(evaluated: list[Evaluated], footage: Footage, path: Path) -> None:
    """CSV with a row for every front-end and usable frame; the figures of a frame that it did not process are empty."""
    columns = list(evaluated[0].entry["per_frame"])[2:]  # after number and stamp
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "number", "stamp_ns", "time_s", "processed", *columns])
    for item in evaluated:
        figures = item.entry["per_frame"]
        rows = dict(zip(figures["number"], zip(*(figures[name] for name in columns))))
        for frame in footage.frames:
            row = rows.get(frame.number)
            head = [item.run.name, frame.number, frame.stamp_ns, f"{frame.time_ns * 1e-9:.6f}", int(row is not None)]
            table.writerow([*head, *(_cell(value) for value in row or [None] * len(columns))])
    write_bytes(path, text.getvalue().encode())


def _cell(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def write_trajectories(evaluated: list[Evaluated], footage: Footage, truth: Truth | None, folder: Path) -> None:
    """`NAME.tum` of every trajectory, aligned to the truth, and `ground_truth.tum`: the poses of the frames."""
    stamps = {frame.number: frame.stamp_ns for frame in footage.frames}
    poses = {"ground_truth": truth.poses} if truth else {}
    for item in evaluated:
        if item.trajectory:
            poses[item.run.name] = dict(zip(item.trajectory.numbers, item.trajectory.poses))
    if poses:
        folder.mkdir(exist_ok=True)
    for name, found in poses.items():
        lines = tum_lines((stamps[number], found[number]) for number in sorted(found))
        write_bytes(folder / f"{file_name(name)}.tum", ("\n".join(lines) + "\n").encode())


def tum_lines(poses: Iterator[tuple[int, np.ndarray]]) -> Iterator[str]:
    """Lines of the TUM format from (stamp in ns, (4, 4) camera-to-world): seconds x y z qx qy qz qw."""
    for stamp_ns, pose in poses:
        seconds, nanoseconds = split_ns(stamp_ns)
        numbers = (*pose[:3, 3], *quaternion(pose[:3, :3]))
        yield f"{seconds}.{nanoseconds:09d} " + " ".join(f"{number:.9g}" for number in numbers)


def file_name(text: str) -> str:
    """The text with what a file's name should not hold replaced."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"
