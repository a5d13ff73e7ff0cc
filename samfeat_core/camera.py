"""Cameras: pixels to rays and back.

Lens models are those of sensor_msgs/CameraInfo: `plumb_bob` (k1 k2 p1 p2 [k3]), `rational_polynomial` (8, 12 or 14
coefficients) and `equidistant` (fisheye, 4 coefficients; Kannala and Brandt).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from samfeat_core.errors import one_line, quoted

_COEFFICIENTS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8, 12, 14), "equidistant": (0, 4)}
# No image is so large that its optical axis lies further away.
_MAX_CENTER_PX = 1e6
# Rays further than this from the optical axis have no useful place in the normalised plane (tan 89 deg).
_MAX_NORMALIZED = 57.0
# Undistortion iterates; where the lens polynomial is not invertible it ends anywhere. Such points are dropped.
_ROUND_TRIP_PX = 0.5


@dataclass(frozen=True, eq=False)  # arrays have no single truth value: cameras compare by identity
class Camera:
    """Intrinsics of one camera.

    Args:
        matrix: (3, 3) float64, pixels, centre of the top-left pixel at (0, 0).
        distortion: (n,) float64 coefficients in OpenCV's order; empty = none.
        width, height: image size in pixels.
        model: "plumb_bob", "rational_polynomial" or "equidistant".

    Raises:
        ValueError: a matrix that is not [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths and a centre
            within a million pixels; an unknown model; a wrong number of coefficients.
    """

    matrix: np.ndarray
    distortion: np.ndarray
    width: int
    height: int
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        distortion = np.array(self.distortion, dtype=np.float64).ravel()
        if not _is_camera_matrix(matrix):
            raise ValueError(
                f"camera matrix is {matrix.tolist()}, expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]], all finite, "
                "focal lengths positive"
            )
        if self.model not in _COEFFICIENTS:
            raise ValueError(
                f"unknown distortion model {quoted(self.model)}, expected one of {', '.join(_COEFFICIENTS)}"
            )
        if distortion.size not in _COEFFICIENTS[self.model] or not np.isfinite(distortion).all():
            expected = " or ".join(map(str, _COEFFICIENTS[self.model]))
            raise ValueError(
                f"{self.model} has {expected} finite coefficients, got {one_line(distortion.tolist(), 120)}"
            )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "distortion", distortion)

    @cached_property
    def focal(self) -> float:
        """Mean focal length in pixels."""
        return float(self.matrix[0, 0] + self.matrix[1, 1]) / 2

    def normalize(self, points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) to undistorted normalised coordinates (N, 2) float64 = (X/Z, Y/Z).

        Rows are NaN where the lens model has no answer: at 89 degrees from the axis and beyond, or outside the
        region in which the polynomial can be inverted.
        """
        pixels = np.ascontiguousarray(points, dtype=np.float64).reshape(-1, 2)
        if not np.any(self.distortion) and self.model != "equidistant":
            homogeneous = np.column_stack([pixels, np.ones(len(pixels))])
            with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are no lens's
                rays = (homogeneous @ np.linalg.inv(self.matrix).T)[:, :2]
            return np.where((np.abs(rays) < _MAX_NORMALIZED).all(axis=1)[:, None], rays, np.nan)
        if not len(pixels):
            return pixels
        # OpenCV may hang or fail on NaN; rows are refused before and marked after.
        finite = np.asarray(np.isfinite(pixels).all(axis=1))
        rays = self._undistort(np.where(finite[:, None], pixels, self.matrix[:2, 2]))
        usable = finite & (np.abs(rays) < _MAX_NORMALIZED).all(axis=1)
        rays = np.where(usable[:, None], rays, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):  # as above
            usable &= np.linalg.norm(self.project(rays) - pixels, axis=1) < _ROUND_TRIP_PX
        return np.where(usable[:, None], rays, np.nan)

    def project(self, rays: np.ndarray) -> np.ndarray:
        """Normalised coordinates (N, 2) to distorted pixels (N, 2) float64: the inverse of `normalize`."""
        rays = np.ascontiguousarray(rays, dtype=np.float64).reshape(-1, 2)
        if not len(rays):
            return rays
        if self.model == "equidistant":
            pixels = cv2.fisheye.distortPoints(rays[:, None], self.matrix, self._fisheye)
        else:
            homogeneous = np.column_stack([rays, np.ones(len(rays))])
            pixels, _ = cv2.projectPoints(homogeneous, np.zeros(3), np.zeros(3), self.matrix, self.distortion)
        return pixels.reshape(-1, 2)

    @property
    def _fisheye(self) -> np.ndarray:
        return self.distortion if self.distortion.size else np.zeros(4)

    def _undistort(self, pixels: np.ndarray) -> np.ndarray:
        if self.model == "equidistant":
            return cv2.fisheye.undistortPoints(pixels[:, None], self.matrix, self._fisheye).reshape(-1, 2)
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-9)
        rays = cv2.undistortPointsIter(pixels[:, None], self.matrix, self.distortion, np.eye(3), np.eye(3), stop)
        return rays.reshape(-1, 2)


def _is_camera_matrix(matrix: np.ndarray) -> bool:
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return False
    upper = np.array_equal(matrix[[1, 2, 2, 2], [0, 0, 1, 2]], (0, 0, 0, 1))
    return bool(upper and (matrix[[0, 1], [0, 1]] > 0).all() and (np.abs(matrix[:2, 2]) <= _MAX_CENTER_PX).all())
