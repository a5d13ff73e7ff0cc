"""`--rerun FILE`: images, keypoints, tracks and trajectories on one timeline, for the viewer of rerun.io."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samfeat_core.errors import SamfeatError
from samfeat_core.files import replacing
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.metrics import Truth
from samfeat_ros.replay.evaluation.pictures import jpeg
from samfeat_ros.replay.evaluation.plots import colour
from samfeat_ros.replay.evaluation.report import Evaluated
from samfeat_ros.replay.evaluation.runs import TrackedFrame

TAIL = 10  # frames
FIGURES = ("inliers", "latency_ms", "position_error_m")  # as curves
TRUTH_COLOUR = "#888888"


class RerunError(SamfeatError):
    """rerun-sdk is not installed."""


def require_rerun() -> None:
    """Raises RerunError where rerun-sdk is not installed."""
    try:
        import rerun  # noqa: F401
    except ImportError as error:
        raise RerunError(f"--rerun: {error}; expected the extra 'rerun' (pip install rerun-sdk)") from error


def write_rerun(
    path: Path,
    evaluated: list[Evaluated],
    footage: Footage,
    truth: Truth | None,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Write a recording of rerun.

    Entities: `camera/image` with `NAME/keypoints` and `NAME/tracks` below it; `figures/.../NAME`; with ground truth
    `world/NAME/path` and `world/NAME/camera`. Timelines: `frame` (number) and `time` (header stamp).

    Args:
        on_frame: called after every frame, for a progress bar.

    Raises:
        RerunError: rerun-sdk is not installed. OSError: the file cannot be written.
    """
    require_rerun()
    import rerun

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        recording = rerun.RecordingStream("samfeat_ros_evaluate_bag")
        recording.save(partial)
        tracked = [{frame.number: frame for frame in item.run.frames} for item in evaluated]
        tails = [_Tails() for _ in evaluated]
        rows = [{frame.number: row for row, frame in enumerate(item.run.frames)} for item in evaluated]
        poses = _log_paths(recording, evaluated, truth)
        recording.send_blueprint(_layout(bool(poses)))
        for index, item in enumerate(evaluated):
            line = rerun.SeriesLines(colors=[_rgb(colour(index))], names=[item.run.name])
            for name in FIGURES:
                recording.log(["figures", name, item.run.name], line, static=True)
        for frame, image in footage.images():
            recording.set_time("frame", sequence=frame.number)
            recording.set_time("time", timestamp=np.datetime64(frame.stamp_ns, "ns"))
            picture = rerun.EncodedImage(contents=jpeg(image).tobytes(), media_type="image/jpeg")
            recording.log("camera/image", picture)
            for index, item in enumerate(evaluated):
                if mine := tracked[index].get(frame.number):
                    _log_points(recording, ["camera", "image", item.run.name], mine, tails[index], colour(index))
                    _log_figures(recording, item, rows[index][frame.number])
            for name, found in poses.items():
                if frame.number in found:
                    pose = found[frame.number]
                    transform = rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
                    recording.log(["world", name, "camera"], transform)
            on_frame()
        recording.flush()
        recording.disconnect()


def _layout(paths: bool) -> Any:
    """What the viewer opens with: the pictures, the paths where there are some, and the curves, each by its name."""
    import rerun.blueprint as blueprint

    camera = blueprint.Spatial2DView(origin="camera/image", name="camera")
    trajectories = [blueprint.Spatial3DView(origin="world", name="trajectories")] if paths else []
    curves = [blueprint.TimeSeriesView(origin=f"figures/{name}", name=name) for name in FIGURES]
    left, right = blueprint.Vertical(camera, *trajectories), blueprint.Vertical(*curves)
    return blueprint.Blueprint(blueprint.Horizontal(left, right, column_shares=[2, 1]), collapse_panels=True)


def _log_paths(recording: Any, evaluated: list[Evaluated], truth: Truth | None) -> dict[str, dict[int, np.ndarray]]:
    """Whole paths, at all times. Returns the poses (4, 4) by frame number of each."""
    import rerun

    poses: dict[str, dict[int, np.ndarray]] = {}
    colours = {"ground_truth": TRUTH_COLOUR}
    if truth:
        poses["ground_truth"] = truth.poses
    for index, item in enumerate(evaluated):
        if item.trajectory:
            poses[item.run.name] = dict(zip(item.trajectory.numbers, item.trajectory.poses))
            colours[item.run.name] = colour(index)
    for name, found in poses.items():
        line = np.array([found[number][:3, 3] for number in sorted(found)])
        strip = rerun.LineStrips3D([line], colors=[_rgb(colours[name])])
        recording.log(["world", name, "path"], strip, static=True)
        recording.log(["world", name, "camera"], rerun.TransformAxes3D(1.0), static=True)
    return poses


def _log_points(recording: Any, entity: list[str], frame: TrackedFrame, tails: _Tails, shade: str) -> None:
    import rerun

    points = frame.keypoints + 0.5  # rerun has the corner of the top-left pixel at (0, 0)
    recording.log([*entity, "keypoints"], rerun.Points2D(points, radii=1.5, colors=[_rgb(shade)]))
    recording.log(
        [*entity, "tracks"], rerun.LineStrips2D(tails.after(frame.ids, points), radii=0.5, colors=[_rgb(shade)])
    )


def _log_figures(recording: Any, item: Evaluated, row: int) -> None:
    import rerun

    for name in FIGURES:
        value = item.entry["per_frame"].get(name, [None] * (row + 1))[row]
        if value is not None and np.isfinite(value):
            recording.log(["figures", name, item.run.name], rerun.Scalars(float(value)))


def _rgb(text: str) -> list[int]:
    return list(bytes.fromhex(text[1:]))


class _Tails:
    """The last positions of every living track."""

    def __init__(self) -> None:
        self._paths: dict[int, list[np.ndarray]] = {}

    def after(self, ids: np.ndarray, points: np.ndarray) -> list[np.ndarray]:
        """(k, 2) positions of each track that has more than one, with a frame's ids (n,) and points (n, 2) added."""
        pairs = zip(ids.tolist(), points)
        self._paths = {name: [*self._paths.get(name, [])[-TAIL:], point] for name, point in pairs}
        return [np.array(path) for path in self._paths.values() if len(path) > 1]
