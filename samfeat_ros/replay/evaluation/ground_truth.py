"""Ground truth: known camera poses, from a topic of the bag or from a TUM, EuRoC or KITTI file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samfeat_core.errors import SamfeatError
from samfeat_core.poses import interpolate_pose, pose_matrix, relative_pose, rotation_angle
from samfeat_ros.replay.bags import Bag, BagError, BagMessage, decode
from samfeat_ros.stamps import NS_PER_S, stamp_to_ns

POSE_TYPES = {
    "geometry_msgs/msg/PoseStamped": lambda m: (m.pose.position, m.pose.orientation),
    "geometry_msgs/msg/PoseWithCovarianceStamped": lambda m: (m.pose.pose.position, m.pose.pose.orientation),
    "nav_msgs/msg/Odometry": lambda m: (m.pose.pose.position, m.pose.pose.orientation),
    "geometry_msgs/msg/TransformStamped": lambda m: (m.transform.translation, m.transform.rotation),
}
TF, TF_STATIC = "tf2_msgs/msg/TFMessage", "/tf_static"
TF_TOLERANCE_NS = 100_000_000  # transforms of a chain are interpolated over twice this, or taken from so far away
LEAST_NS = 10**14  # times from here on are in nanoseconds: as seconds they were three million years
JUMP = 5.0  # a step so many times as fast as its neighbours, and
JUMP_OF_ALL = 3.0  # so many times as fast as nine tenths of all


class GroundTruthError(SamfeatError):
    """Ground truth that cannot be used. One line; names the file or topic."""


@dataclass(frozen=True)
class GroundTruth:
    """Poses over time.

    Attributes:
        source: topic or file.
        stamps_ns: (N,) int64, strictly ascending; for a file without times the numbers 0..N-1 of the frames.
        poses: (N, 4, 4) float64 camera-to-world (x right, y down, z forward in the camera).
        by_number: the poses belong to frames by their number, not by time.
        problems: one line for each thing that a reader of the report should know.
    """

    source: str
    stamps_ns: np.ndarray
    poses: np.ndarray
    by_number: bool = False
    problems: tuple[str, ...] = ()

    def at(self, stamps_ns: np.ndarray, numbers: np.ndarray, tolerance_s: float) -> np.ndarray:
        """(M, 4, 4) poses of frames, NaN where there is none.

        Between two poses at most twice `tolerance_s` apart the pose is interpolated (position linearly, rotation by
        the shortest turn); else the nearest pose counts if it is within `tolerance_s`.

        Args:
            stamps_ns: (M,) header stamps of the frames.
            numbers: (M,) numbers of the frames in the recording, 0 = first image of the topic.
        """
        if self.by_number:
            poses = np.full((len(numbers), 4, 4), np.nan)
            inside = numbers < len(self.poses)
            poses[inside] = self.poses[numbers[inside]]
            return poses
        tolerance = round(tolerance_s * NS_PER_S)
        return (
            np.stack([self._at(int(stamp), tolerance) for stamp in stamps_ns])
            if len(stamps_ns)
            else np.zeros((0, 4, 4))
        )

    def _at(self, stamp: int, tolerance: int) -> np.ndarray:
        after = int(np.searchsorted(self.stamps_ns, stamp))
        if 0 < after < len(self.stamps_ns):
            before = after - 1
            first, second = int(self.stamps_ns[before]), int(self.stamps_ns[after])
            if second - first <= 2 * tolerance:
                return interpolate_pose(self.poses[before], self.poses[after], (stamp - first) / (second - first))
        near = [i for i in (after - 1, after) if 0 <= i < len(self.stamps_ns)]
        best = min(near, key=lambda i: abs(int(self.stamps_ns[i]) - stamp))
        if abs(int(self.stamps_ns[best]) - stamp) <= tolerance:
            return self.poses[best]
        return np.full((4, 4), np.nan)

    def with_camera_at(self, extrinsics: np.ndarray) -> GroundTruth:
        """The poses of the camera where these are of a body, given (4, 4) the camera's pose in the body."""
        return replace(self, poses=self.poses @ extrinsics)

    def shifted(self, seconds: float) -> GroundTruth:
        """The same poses, each so many seconds later."""
        return replace(self, stamps_ns=self.stamps_ns + round(seconds * NS_PER_S))


def read_ground_truth(source: str, bag: Bag, count: int, cut: bool = False, recorded: bool = False) -> GroundTruth:
    """Ground truth from a file where one of that name exists, else from a topic of the bag.

    Args:
        source: path of a TUM file (time x y z qx qy qz qw), a EuRoC file (commas, time in nanoseconds, x y z qw qx qy
            qz, further columns) or a KITTI file (12 numbers, row i = image i); or a topic of type PoseStamped,
            PoseWithCovarianceStamped, Odometry or TransformStamped; or TOPIC:PARENT,CHILD, frames of a TFMessage topic.
        count: number of images of the recording, which a KITTI file must match.
        cut: `count` is of the first images only, so that a KITTI file may have more rows.
        recorded: take the times of recording of a topic's messages, not those of their headers.

    Raises:
        GroundTruthError: the file or topic cannot be used. BagError: there is no such topic.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, count, cut)
    name, separator, frames = source.partition(":")
    try:
        topic = bag.require(name, (*POSE_TYPES, TF))
    except BagError as error:
        raise BagError(f"{error} (and no such file)") from error
    if topic.type == TF:
        parent, comma, child = frames.partition(",")
        if not (parent and comma and child):
            raise GroundTruthError(f"{source}: a topic of TFMessage; expected {name}:PARENT,CHILD")
        return _read_tf(bag, topic.name, parent.strip(), child.strip(), recorded)
    if separator:
        raise GroundTruthError(f"{source}: only a topic of TFMessage has frames; expected {name}")
    return _read_topic(bag, topic.name, recorded)


def parse_extrinsics(text: str) -> np.ndarray:
    """(4, 4) from "x y z qx qy qz qw"; "ros" is a camera that looks along the x axis of a body (x ahead, z up).

    Raises:
        GroundTruthError: the text is neither.
    """
    if text == "ros":
        return pose_matrix(np.zeros(3), np.array([-0.5, 0.5, -0.5, 0.5]))
    try:
        values = np.array([float(word) for word in text.replace(",", " ").split()])
    except ValueError:
        values = np.zeros(0)
    if values.shape != (7,) or not np.isfinite(values).all() or np.linalg.norm(values[3:]) < 1e-6:
        raise GroundTruthError(f"extrinsics {text!r}: expected 'x y z qx qy qz qw' or 'ros'")
    return pose_matrix(values[:3], values[3:])


def _read_file(path: Path, count: int, cut: bool) -> GroundTruth:
    try:
        lines = _lines(path)
        words = [line.replace(",", " ").split() for line in lines]
        rows = [[float(word) for word in line] for line in words]
        widths = {len(row) for row in rows}
        stamps = np.array([_time_ns(line[0]) for line in words], np.int64) if widths <= {8, 17} else None
    except (OSError, ValueError, OverflowError) as error:
        raise GroundTruthError(f"{path}: not a TUM, EuRoC or KITTI trajectory ({error})") from error
    if widths == {12}:
        return _from_kitti(path, np.array(rows)[: count if cut else None], count)
    if stamps is None or len(widths) != 1:
        raise GroundTruthError(
            f"{path}: rows of {sorted(widths)} numbers, expected 8 (TUM), 8 or 17 (EuRoC) or 12 (KITTI)"
        )
    values = np.array(rows)
    # EuRoC has commas and nanoseconds, and w first; 17 numbers are its state estimates
    euroc = widths == {17} or (
        all("," in line for line in lines) and (stamps > LEAST_NS).all() and "." not in words[0][0]
    )
    turns = values[:, [5, 6, 7, 4]] if euroc else values[:, 4:]
    return _checked(str(path), stamps, values[:, 1:4], turns)


def _time_ns(word: str) -> int:
    """Seconds or, from 10^14 on, nanoseconds; these exact."""
    value = float(word)
    if not np.isfinite(value):
        return 0  # the row is left out as not finite
    if abs(value) >= LEAST_NS:
        return int(word) if word.isdigit() else round(value)
    return round(value * NS_PER_S)


def _lines(path: Path) -> list[str]:
    text = path.read_text()
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _from_kitti(path: Path, rows: np.ndarray, count: int) -> GroundTruth:
    if len(rows) != count:
        raise GroundTruthError(f"{path}: {len(rows)} poses for {count} images; a KITTI file has one row for each")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    if not np.isfinite(poses).all():
        raise GroundTruthError(f"{path}: holds numbers that are not finite")
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = u @ vt  # printed numbers are rotations only to their last digit
    return GroundTruth(str(path), np.arange(len(rows)), poses, True)


def _read_topic(bag: Bag, name: str, recorded: bool) -> GroundTruth:
    stamps, positions, turns = [], [], []
    for message, content in _decoded(bag, name):
        position, turn = POSE_TYPES[message.type](content)
        stamps.append(message.time_ns if recorded else stamp_to_ns(content.header.stamp))
        positions.append((position.x, position.y, position.z))
        turns.append((turn.x, turn.y, turn.z, turn.w))
    return _checked_lists(f"{bag.path}: topic {name}", stamps, positions, turns)


def _decoded(bag: Bag, name: str) -> Iterator[tuple[BagMessage, Any]]:
    refused = 0
    for message in bag.messages([name]):
        try:
            content = decode(message)
        except BagError:
            refused += 1
            continue
        yield message, content
    if refused:
        bag.problems.append(f"{name}: {refused} poses could not be decoded")


def _read_tf(bag: Bag, topic: str, parent: str, child: str, recorded: bool) -> GroundTruth:
    """Poses of the frame `child` in `parent`, along the tree of the topic and of /tf_static."""
    edges = _tf_edges(bag, topic, recorded)
    source = f"{bag.path}: topic {topic}, {child} in {parent}"
    chain: list[GroundTruth] = []
    frame = child
    while frame != parent:
        if frame not in edges or len(chain) > len(edges):
            known = ", ".join(f"{above} > {below}" for below, (above, _) in sorted(edges.items()))
            raise GroundTruthError(f"{source}: the transforms do not lead from {parent} to {child}; there are {known}")
        frame, edge = edges[frame]
        chain.append(edge)
    densest = max(chain, key=lambda edge: len(edge.stamps_ns), default=None)
    if densest is None:
        raise GroundTruthError(f"{source}: expected two different frames")
    poses = np.stack([np.eye(4)] * len(densest.stamps_ns))
    numbers = np.arange(len(poses))
    for edge in chain:
        static = len(edge.stamps_ns) == 1
        poses = (edge.poses[0] if static else edge.at(densest.stamps_ns, numbers, TF_TOLERANCE_NS / NS_PER_S)) @ poses
    whole = np.isfinite(poses).all(axis=(1, 2))
    if not whole.any():
        raise GroundTruthError(f"{source}: the transforms of the chain have no times in common")
    problems = tuple(dict.fromkeys(line for edge in chain for line in edge.problems))
    return GroundTruth(source, densest.stamps_ns[whole], poses[whole], problems=problems)


def _tf_edges(bag: Bag, topic: str, recorded: bool) -> dict[str, tuple[str, GroundTruth]]:
    """Child frame -> its parent, and its poses in it."""
    rows: dict[tuple[str, str], list[tuple[int, tuple[float, ...], tuple[float, ...]]]] = {}
    topics = [topic, *([TF_STATIC] if TF_STATIC in bag.topics and topic != TF_STATIC else [])]
    for name in topics:
        for message, content in _decoded(bag, name):
            for transform in content.transforms:
                shift, turn = transform.transform.translation, transform.transform.rotation
                stamp = message.time_ns if recorded else stamp_to_ns(transform.header.stamp)
                edge = transform.child_frame_id.lstrip("/"), transform.header.frame_id.lstrip("/")
                rows.setdefault(edge, []).append((stamp, (shift.x, shift.y, shift.z), (turn.x, turn.y, turn.z, turn.w)))
    return {
        child: (parent, _checked_lists(f"{bag.path}: {topic}, {child} in {parent}", *map(list, zip(*found))))
        for (child, parent), found in rows.items()
    }


def _checked_lists(source: str, stamps: list[int], positions: list[Any], turns: list[Any]) -> GroundTruth:
    return _checked(
        source, np.array(stamps, np.int64), np.array(positions).reshape(-1, 3), np.array(turns).reshape(-1, 4)
    )


def _checked(source: str, stamps: np.ndarray, positions: np.ndarray, turns: np.ndarray) -> GroundTruth:
    """Sorted by time, without rows that are not finite or have no rotation; what was wrong is in `problems`."""
    usable = (
        np.isfinite(positions).all(axis=1) & np.isfinite(turns).all(axis=1) & (np.linalg.norm(turns, axis=1) > 1e-6)
    )
    problems = []
    if not usable.all():
        problems.append(f"{source}: {(~usable).sum()} of {len(usable)} poses are not finite or have no rotation")
    stamps = stamps[usable]
    if backward := int((np.diff(stamps) < 0).sum()):
        problems.append(f"{source}: the stamps go back {backward} times; the poses are sorted by them")
    stamps, first = np.unique(stamps, return_index=True)
    if not len(stamps):
        raise GroundTruthError(f"{source}: holds no usable pose")
    poses = pose_matrix(positions[usable][first], turns[usable][first])
    problems += [f"{source}: {line}" for line in _jumps(stamps, poses)]
    return GroundTruth(source, stamps, poses, problems=tuple(problems))


def _jumps(stamps: np.ndarray, poses: np.ndarray) -> list[str]:
    """Steps that no camera makes: much faster than the steps around them, and than nearly all."""
    seconds = np.diff(stamps) / NS_PER_S
    steps = relative_pose(poses[1:], poses[:-1])
    lines = []
    for size, unit in ((np.linalg.norm(steps[:, :3, 3], axis=1), "m"), (rotation_angle(steps[:, :3, :3]), "degrees")):
        speed = size / seconds
        padded = np.pad(speed, 2)
        around = np.max([padded[shift : shift + len(speed)] for shift in (0, 1, 3, 4)], axis=0)
        odd = (speed > JUMP * around) & (speed > JUMP_OF_ALL * np.percentile(speed, 90)) if len(speed) > 4 else []
        for index in np.flatnonzero(odd)[:3]:
            lines.append(
                f"jumps by {size[index]:.3g} {unit} in {seconds[index]:.3g} s at {stamps[index + 1] * 1e-9:.3f} s"
            )
    return lines
