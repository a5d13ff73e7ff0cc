"""Reader of posed image sequences in the simple folder layout that evaluation and training share.

image/*.jpg|png|...   frames, in the order of their names
poses.txt             one camera-to-world pose per frame: 12 numbers, the rows of [R | t] (KITTI's layout)
calib.txt             ``P0:`` and 12 numbers, the rows of the 3x4 projection matrix of the rectified images
depth/*.png           optional, 16 bit, millimetres, 0 and 65535 = no depth
calib_depth.txt       optional, ``P0:`` of the depth camera where it is not the colour camera
times.txt             optional, seconds, one per frame
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff"}
NO_DEPTH = 65535


@dataclass(frozen=True)
class PosedSequence:
    """Frames of one calibrated camera with known poses.

    poses: (N, 4, 4) float64 camera-to-world, metres. matrix: (3, 3) float64 camera matrix in pixels. depth_matrix: the
    depth camera's, equal to ``matrix`` where it has no calibration of its own. times: (N,) float64 seconds or None.
    """

    folder: Path
    images: tuple[Path, ...]
    poses: np.ndarray
    matrix: np.ndarray
    depths: tuple[Path, ...] | None = None
    depth_matrix: np.ndarray | None = None
    times: np.ndarray | None = None

    @classmethod
    def read(cls, folder: str | Path) -> PosedSequence:
        """Reads a folder. Raises ValueError naming the file that is missing, malformed or of another length."""
        folder = Path(folder)
        images = _list_images(folder / "image")
        poses = read_poses(folder / "poses.txt")
        _same_length(folder / "poses.txt", len(poses), len(images))
        depths = _list_images(folder / "depth") if (folder / "depth").is_dir() else None
        if depths is not None:
            _same_length(folder / "depth", len(depths), len(images))
        times = None
        if (folder / "times.txt").exists():
            times = read_numbers(folder / "times.txt", 1)[:, 0]
            _same_length(folder / "times.txt", len(times), len(images))
        matrix = read_calibration(folder / "calib.txt")
        depth_file = folder / "calib_depth.txt"
        depth_matrix = None
        if depths is not None:
            depth_matrix = read_calibration(depth_file) if depth_file.exists() else matrix
        return cls(folder, images, poses, matrix, depths, depth_matrix, times)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the first frame."""
        height, width = self.image(0).shape[:2]
        return width, height

    def relative_pose(self, first: int, second: int) -> np.ndarray:
        """(4, 4) transform of points from the camera of frame ``first`` to that of frame ``second``."""
        return np.linalg.inv(self.poses[second]) @ self.poses[first]

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) BGR uint8. Raises ValueError naming the file that cannot be decoded."""
        return read_image(self.images[index])

    def depth(self, index: int) -> np.ndarray:
        """(H, W) float32 metres at the pixels of the colour image, 0 = none.

        A depth camera with a calibration of its own is taken to share the colour camera's centre and axes, as its
        true offset (some 2.5 cm on a Kinect) is not in the layout.
        """
        if self.depths is None or self.depth_matrix is None:
            raise ValueError(f"{self.folder}: the sequence has no depth/ folder")
        path = self.depths[index]
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
            raise ValueError(f"{path}: expected a 16-bit single-channel depth image")
        metres = np.where(raw == NO_DEPTH, 0, raw).astype(np.float32) / 1000
        if np.array_equal(self.depth_matrix, self.matrix):
            return metres
        # nearest, never interpolated: a mean of foreground and background lies on neither
        colour_to_depth = self.depth_matrix @ np.linalg.inv(self.matrix)
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(metres, colour_to_depth, self.image_size, flags=flags)


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) BGR uint8. Raises ValueError naming a file that is missing or cannot be decoded."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: " + ("cannot be decoded as an image" if Path(path).exists() else "no such image"))
    return image


def read_poses(path: str | Path) -> np.ndarray:
    """(N, 4, 4) float64 from lines of 12 numbers. Raises ValueError naming file and line."""
    rows = read_numbers(Path(path), 12)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    turns = poses[:, :3, :3]
    off = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero((off > 1e-2) | (np.linalg.det(turns) < 0))
    if len(bad):
        raise ValueError(f"{path}: pose {bad[0] + 1} is not a rotation and a translation")
    return poses


def read_calibration(path: str | Path) -> np.ndarray:
    """(3, 3) float64 camera matrix from the ``P0:`` line. Raises ValueError naming the file."""
    for line in _read_lines(Path(path)):
        name, _, rest = line.partition(":")
        if name.strip() == "P0":
            numbers = _numbers(rest.split(), 12, f"{path}: P0")
            matrix = np.ascontiguousarray(numbers.reshape(3, 4)[:, :3])  # OpenCV misreads a strided camera matrix
            if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
                raise ValueError(f"{path}: P0 has focal lengths {matrix[0, 0]:g}, {matrix[1, 1]:g}; expected both > 0")
            return matrix
    raise ValueError(f"{path}: no line 'P0:' with the 12 numbers of a projection matrix")


def _list_images(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected the frames of a posed sequence")
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES))
    if not files:
        raise ValueError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _same_length(path: Path, found: int, images: int) -> None:
    if found != images:
        raise ValueError(f"{path}: {found} entries for {images} images")


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})") from error


def _numbers(words: list[str], count: int, where: str) -> np.ndarray:
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: expected {count} finite numbers, got '{' '.join(words)[:60]}'")
    return numbers


def read_numbers(path: Path, count: int) -> np.ndarray:
    """(N, count) float64 from lines of ``count`` numbers. Raises ValueError naming file and line."""
    lines = _read_lines(path)
    if not lines:
        raise ValueError(f"{path}: empty")
    return np.array([_numbers(line.split(), count, f"{path}: line {n + 1}") for n, line in enumerate(lines)])
