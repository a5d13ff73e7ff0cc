"""A folder of camera frames, the layout that evaluation, training and `sequence_to_bag` share.

image/*.jpg|png|...   frames of one size, in the order of their names
calib.txt             `P0:` and 12 numbers, the rows of the 3x4 projection matrix of the rectified images (KITTI)
poses.txt             optional, one camera-to-world pose a frame: 12 numbers, the rows of [R | t] (KITTI)
times.txt             optional, one time a frame in seconds, increasing
depth/*.png           optional, 16 bit, millimetres, 0 and 65535 = no depth
calib_depth.txt       optional, `P0:` of the depth camera where it is not the colour camera
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from samfeat_core.errors import FileError
from samfeat_core.files import list_images, parse_numbers, read_image, read_lines, read_numbers
from samfeat_core.poses import relative_pose

NO_DEPTH = 65535


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class ImageSequence:
    """N frames of one calibrated camera.

    Attributes:
        folder: where it was read from.
        images: N paths.
        projection: (3, 4) float64 of the rectified images.
        poses: (N, 4, 4) float64 camera-to-world in metres, or None.
        times: (N,) float64 seconds, or None.
        depths: N paths, or None.
        depth_matrix: (3, 3) camera matrix of the depth camera, the colour camera's where it has none; None without
            depth.
    """

    folder: Path
    images: tuple[Path, ...]
    projection: np.ndarray
    poses: np.ndarray | None = None
    times: np.ndarray | None = None
    depths: tuple[Path, ...] | None = None
    depth_matrix: np.ndarray | None = None

    @classmethod
    def read(cls, folder: str | Path, require: Collection[str] = ()) -> ImageSequence:
        """Read and check a folder; images are looked at when they are asked for.

        Args:
            require: of "poses", "times" and "depth", what must be there.

        Raises:
            FileError: a file is missing, malformed, or of another length than the images; names file and line.
        """
        folder = Path(folder)
        images = list_images(folder / "image")
        poses = times = depths = depth_matrix = None
        if (folder / "poses.txt").exists() or "poses" in require:
            poses = read_poses(folder / "poses.txt")
            _same_length(folder / "poses.txt", len(poses), len(images))
        if (folder / "times.txt").exists() or "times" in require:
            times = read_times(folder / "times.txt")
            _same_length(folder / "times.txt", len(times), len(images))
        projection = read_projection(folder / "calib.txt")
        if (folder / "depth").is_dir() or "depth" in require:
            depths = list_images(folder / "depth")
            _same_length(folder / "depth", len(depths), len(images))
            own = folder / "calib_depth.txt"
            depth_matrix = _square(read_projection(own) if own.exists() else projection)
        return cls(folder, images, projection, poses, times, depths, depth_matrix)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 camera matrix in pixels."""
        return _square(self.projection)

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the first frame."""
        height, width = self.image(0).shape[:2]
        return width, height

    def relative_pose(self, first: int, second: int) -> np.ndarray:
        """(4, 4) transform of points from the camera of frame `first` to that of frame `second`.

        Raises:
            FileError: the sequence has no poses.
        """
        if self.poses is None:
            raise FileError(f"{self.folder}: the sequence has no poses.txt")
        return relative_pose(self.poses[first], self.poses[second])

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) BGR uint8. Raises FileError naming the file that cannot be decoded."""
        return read_image(self.images[index])

    def depth(self, index: int) -> np.ndarray:
        """(H, W) float32 metres at the pixels of the colour image, 0 = none.

        A depth camera with a calibration of its own is taken to share the colour camera's centre and axes, as its
        true offset (some 2.5 cm on a Kinect) is not in the layout.

        Raises:
            FileError: the sequence has no depth, or the file is no such image.
        """
        metres = self.raw_depth(index)
        assert self.depth_matrix is not None  # as there is depth
        if np.array_equal(self.depth_matrix, self.matrix):
            return metres
        # nearest, never interpolated: a mean of foreground and background lies on neither
        colour_to_depth = self.depth_matrix @ np.linalg.inv(self.matrix)
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(metres, colour_to_depth, self.image_size, flags=flags)

    def raw_depth(self, index: int) -> np.ndarray:
        """(H, W) float32 metres at the pixels of the depth camera, 0 = none. Raises FileError as `depth` does."""
        if self.depths is None:
            raise FileError(f"{self.folder}: the sequence has no depth/ folder")
        raw = read_image(self.depths[index], cv2.IMREAD_UNCHANGED)
        if raw.dtype != np.uint16 or raw.ndim != 2:
            raise FileError(f"{self.depths[index]}: expected a 16-bit single-channel depth image")
        return np.where(raw == NO_DEPTH, 0, raw).astype(np.float32) / 1000


def posed_folders(root: Path) -> list[Path]:
    """The folders in `root` that hold a sequence with poses, sorted; none where there is no such folder."""
    return sorted(path for path in root.iterdir() if (path / "poses.txt").is_file()) if root.is_dir() else []


def read_poses(path: str | Path) -> np.ndarray:
    """(N, 4, 4) float64 from lines of 12 numbers. Raises FileError naming file and line or pose."""
    rows = read_numbers(Path(path), 12)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    turns = poses[:, :3, :3]
    off = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero((off > 1e-2) | (np.linalg.det(turns) < 0))
    if len(bad):
        raise FileError(f"{path}: pose {bad[0] + 1} is not a rotation and a translation")
    return poses


def read_times(path: str | Path) -> np.ndarray:
    """(N,) float64 increasing seconds from 0 on. Raises FileError naming file and line."""
    rows = [(line, parse_numbers(text, 1, f"{path}: line {line}")[0]) for line, text in read_lines(Path(path))]
    before = -np.inf
    for line, time in rows:
        if time < 0:
            raise FileError(f"{path}: line {line}: {time:g} s is negative, which no ROS stamp can be")
        if time <= before:
            raise FileError(f"{path}: line {line}: {time:g} s is not after the line before")
        before = time
    return np.array([time for _, time in rows])


def read_projection(path: str | Path) -> np.ndarray:
    """(3, 4) float64 projection matrix of the line `P0:`. Raises FileError naming file and line."""
    for number, line in read_lines(Path(path)):
        name, _, rest = line.partition(":")
        if name.strip() == "P0":
            matrix = parse_numbers(rest, 12, f"{path}: line {number}").reshape(3, 4)
            if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
                raise FileError(
                    f"{path}: line {number}: focal lengths {matrix[0, 0]:g}, {matrix[1, 1]:g}; expected both > 0"
                )
            return matrix
    raise FileError(f"{path}: no line 'P0:' with the 12 numbers of a projection matrix")


def _square(projection: np.ndarray) -> np.ndarray:
    """Its first three columns; contiguous, as OpenCV misreads a strided camera matrix."""
    return np.ascontiguousarray(projection[:, :3])


def _same_length(path: Path, found: int, images: int) -> None:
    if found != images:
        raise FileError(f"{path}: {found} entries for {images} images")
