"""Ground truth: known camera poses, from a topic of the bag, or from a TUM or KITTI file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samfeat_core.errors import SamfeatError
from samfeat_core.poses import interpolate_pose, pose_matrix
from samfeat_ros.replay.bags import Bag, BagError, decode
from samfeat_ros.stamps import NS_PER_S, stamp_to_ns

POSE_TYPES = {
    "geometry_msgs/msg/PoseStamped": lambda m: (m.pose.position, m.pose.orientation),
    "geometry_msgs/msg/PoseWithCovarianceStamped": lambda m: (m.pose.pose.position, m.pose.pose.orientation),
    "nav_msgs/msg/Odometry": lambda m: (m.pose.pose.position, m.pose.pose.orientation),
    "geometry_msgs/msg/TransformStamped": lambda m: (m.transform.translation, m.transform.rotation),
}


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
    """

    source: str
    stamps_ns: np.ndarray
    poses: np.ndarray
    by_number: bool = False

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
        return GroundTruth(self.source, self.stamps_ns, self.poses @ extrinsics, self.by_number)


def read_ground_truth(source: str, bag: Bag, count: int, cut: bool = False) -> GroundTruth:
    """Ground truth from a file where one of that name exists, else from a topic of the bag.

    Args:
        source: path of a TUM file (time x y z qx qy qz qw) or a KITTI file (12 numbers, row i = image i), or a topic
            of type PoseStamped, PoseWithCovarianceStamped, Odometry or TransformStamped.
        count: number of images of the recording, which a KITTI file must match.
        cut: `count` is of the first images only, so that a KITTI file may have more rows.

    Raises:
        GroundTruthError: the file or topic cannot be used. BagError: there is no such topic.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, count, cut)
    try:
        topic = bag.require(source, tuple(POSE_TYPES))
    except BagError as error:
        raise BagError(f"{error} (and no such file)") from error
    return _read_topic(bag, topic.name)


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
        rows = [[float(word) for word in line.replace(",", " ").split()] for line in _lines(path)]
    except (OSError, ValueError) as error:
        raise GroundTruthError(f"{path}: not a TUM or KITTI trajectory ({error})") from error
    widths = {len(row) for row in rows}
    if widths == {8}:
        values = np.array(rows)
        stamps = np.round(values[:, 0] * NS_PER_S).astype(np.int64)
        return _checked(str(path), stamps, values[:, 1:4], values[:, 4:])
    if widths == {12}:
        return _from_kitti(path, np.array(rows)[: count if cut else None], count)
    raise GroundTruthError(f"{path}: rows of {sorted(widths)} numbers, expected 8 (TUM) or 12 (KITTI)")


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
    return GroundTruth(str(path), np.arange(len(rows)), poses, by_number=True)


def _read_topic(bag: Bag, name: str) -> GroundTruth:
    stamps, positions, turns = [], [], []
    refused = 0
    for message in bag.messages([name]):
        try:
            content = decode(message)
        except BagError:
            refused += 1
            continue
        position, turn = POSE_TYPES[message.type](content)
        stamps.append(stamp_to_ns(content.header.stamp))
        positions.append((position.x, position.y, position.z))
        turns.append((turn.x, turn.y, turn.z, turn.w))
    if refused:
        bag.problems.append(f"{name}: {refused} poses could not be decoded")
    source = f"{bag.path}: topic {name}"
    return _checked(
        source, np.array(stamps, np.int64), np.array(positions).reshape(-1, 3), np.array(turns).reshape(-1, 4)
    )


def _checked(source: str, stamps: np.ndarray, positions: np.ndarray, turns: np.ndarray) -> GroundTruth:
    """Sorted by time, without rows that are not finite or have no rotation."""
    usable = (
        np.isfinite(positions).all(axis=1) & np.isfinite(turns).all(axis=1) & (np.linalg.norm(turns, axis=1) > 1e-6)
    )
    stamps, first = np.unique(stamps[usable], return_index=True)
    if not len(stamps):
        raise GroundTruthError(f"{source}: holds no usable pose")
    return GroundTruth(source, stamps, pose_matrix(positions[usable][first], turns[usable][first]))
