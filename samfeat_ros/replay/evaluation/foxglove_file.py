"""`--mcap FILE`: every front-end's overlay and poses on ROS topics, for Foxglove or `ros2 bag play`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samfeat_core.files import replacing
from samfeat_ros.replay.bags import compose, typestore
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.metrics import Truth
from samfeat_ros.replay.evaluation.pictures import draw_matches, jpeg
from samfeat_ros.replay.evaluation.report import Evaluated
from samfeat_ros.topics import COMPRESSED_IMAGE

WORLD, CAMERA = "world", "camera"  # frame ids


def write_mcap(
    path: Path,
    evaluated: list[Evaluated],
    footage: Footage,
    truth: Truth | None,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Write `/NAME/overlay`, and with ground truth `/NAME/pose`, `/NAME/path`, `/ground_truth/pose` and `.../path`.

    Messages are recorded at the header stamps of the frames; a path is recorded with its first pose.

    Args:
        on_frame: called after every frame, for a progress bar.

    Raises:
        OSError: the file cannot be written.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    path.parent.mkdir(parents=True, exist_ok=True)
    names = [topic_name(item.run.name) for item in evaluated]
    poses = {"ground_truth": truth.poses} if truth else {}
    for name, item in zip(names, evaluated):
        if item.trajectory:
            poses[name] = dict(zip(item.trajectory.numbers, item.trajectory.poses))
    stamps = {frame.number: frame.stamp_ns for frame in footage.frames}
    tracked = {name: {frame.number: frame for frame in item.run.frames} for name, item in zip(names, evaluated)}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        folder = Path(scratch, "bag")
        with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            topics = _Topics(writer)
            for name, found in poses.items():
                messages = [compose.pose_stamped(stamps[number], WORLD, found[number]) for number in sorted(found)]
                topics.write(f"/{name}/path", compose.PATH, stamps[min(found)], compose.path(WORLD, messages))
                for number, message in zip(sorted(found), messages):
                    topics.write(f"/{name}/pose", compose.POSE_STAMPED, stamps[number], message)
            for frame, image in footage.images():
                for name in names:
                    if mine := tracked[name].get(frame.number):
                        picture = jpeg(draw_matches(image, mine))
                        message = compose.compressed_image(frame.stamp_ns, CAMERA, "jpeg", picture)
                        topics.write(f"/{name}/overlay", COMPRESSED_IMAGE, frame.stamp_ns, message)
                on_frame()
        with replacing(path) as partial:
            (folder / "bag.mcap").rename(partial)


class _Topics:
    """Writes messages, and makes their topics when they first come."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self._connections: dict[str, Any] = {}

    def write(self, topic: str, kind: str, stamp_ns: int, message: Any) -> None:
        if topic not in self._connections:
            self._connections[topic] = self.writer.add_connection(topic, kind, typestore=typestore())
        self.writer.write(self._connections[topic], stamp_ns, typestore().serialize_cdr(message, kind))


def topic_name(text: str) -> str:
    """The text as one token of a ROS name: letters, digits and underscores, no digit first."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "run"
    return f"run_{name}" if name[0].isdigit() else name
