"""Cameras and two-view inliers.

Lens models are those of sensor_msgs/CameraInfo: `plumb_bob` (k1 k2 p1 p2 [k3]), `rational_polynomial` (8, 12 or 14
coefficients) and `equidistant` (fisheye, 4 coefficients; Kannala and Brandt).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

_COEFFICIENTS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8, 12, 14), "equidistant": (0, 4)}
# Rays further than this from the optical axis have no useful place in the normalised plane (tan 89 deg).
_MAX_NORMALIZED = 57.0
# Undistortion iterates; where the lens polynomial is not invertible it ends anywhere. Such points are dropped.
_ROUND_TRIP_PX = 0.5

_MIN_MATCHES = 8
# Measured on 1,024 matches, 20 to 70 % wrong: USAC_FAST finds what USAC_DEFAULT, _ACCURATE and _MAGSAC find, in
# 1-3 ms while at least half of the matches are right. Iterations bound the hard frames to about 10 ms.
_USAC = cv2.USAC_FAST
_CONFIDENCE = 0.999
_BUDGET: dict[str, Any] = {"maxIters": 1000}
# The first OpenCV 4.5 releases have no bound on the essential matrix.
_BUDGET_ESSENTIAL: dict[str, Any] = {"maxIters": 600} if "maxIters" in (cv2.findEssentialMat.__doc__ or "") else {}
# Below this share of inliers the scene may be one on which two-view geometry is ill-posed (see epipolar_inliers).
_TRUSTED_SHARE = 0.7


@dataclass(frozen=True, eq=False)  # arrays have no single truth value: cameras compare by identity
class Camera:
    """Intrinsics of one camera.

    Args:
        matrix: (3, 3) float64, pixels, centre of the top-left pixel at (0, 0).
        distortion: (n,) float64 coefficients in OpenCV's order; empty = none.
        width, height: image size in pixels.
        model: "plumb_bob", "rational_polynomial" or "equidistant".

    Raises:
        ValueError: a wrong shape, a focal length that is not positive and finite, an unknown model, a wrong number of
            coefficients.
    """

    matrix: np.ndarray
    distortion: np.ndarray
    width: int
    height: int
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        distortion = np.array(self.distortion, dtype=np.float64).ravel()
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise ValueError(f"camera matrix must be (3, 3), finite, focal lengths positive, got {matrix.tolist()}")
        if self.model not in _COEFFICIENTS:
            raise ValueError(f"unknown distortion model {self.model!r}, expected one of {', '.join(_COEFFICIENTS)}")
        if distortion.size not in _COEFFICIENTS[self.model] or not np.isfinite(distortion).all():
            expected = " or ".join(map(str, _COEFFICIENTS[self.model]))
            raise ValueError(f"{self.model} has {expected} finite coefficients, got {distortion.tolist()}")
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
            return (homogeneous @ np.linalg.inv(self.matrix).T)[:, :2]
        if not len(pixels):
            return pixels
        # OpenCV may hang or fail on NaN; rows are refused before and marked after.
        finite = np.asarray(np.isfinite(pixels).all(axis=1))
        rays = self._undistort(np.where(finite[:, None], pixels, self.matrix[:2, 2]))
        usable = finite & (np.abs(rays) < _MAX_NORMALIZED).all(axis=1)
        rays = np.where(usable[:, None], rays, 0.0)
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


def epipolar_inliers(
    points_prev: np.ndarray,
    points: np.ndarray,
    camera: Camera | None = None,
    threshold_px: float = 1.0,
) -> np.ndarray:
    """Which matches agree with one rigid motion of the camera.

    With a camera the essential matrix is fitted to undistorted normalised points, without one the fundamental matrix
    to pixels; both by OpenCV's USAC, whose random numbers are seeded: the same input gives the same answer. A camera
    that stands still or only turns, and a scene that is one plane, leave that matrix undetermined. Where it explains
    few of the matches, a homography and "nothing moved" are tried too, and what explains most is taken.

    Args:
        points_prev, points: (M, 2) pixels of the matches in the previous and the current image.
        camera: intrinsics of both images.
        threshold_px: largest distance from the model in pixels.

    Returns:
        (M,) bool; all False below 8 usable matches. Rows with NaN are False.

    Raises:
        ValueError: the shapes differ or are not (M, 2), or the threshold is not positive.
    """
    points_prev, points = np.asarray(points_prev, np.float64), np.asarray(points, np.float64)
    if points_prev.shape != points.shape or points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be two arrays (M, 2), got {points_prev.shape} and {points.shape}")
    if not threshold_px > 0:
        raise ValueError(f"threshold_px must be positive, got {threshold_px}")

    inlier = np.zeros(len(points), bool)
    if len(points) < _MIN_MATCHES:
        return inlier
    threshold = threshold_px
    if camera is not None:
        points_prev, points = camera.normalize(points_prev), camera.normalize(points)
        threshold = threshold_px / camera.focal
    usable = np.flatnonzero(np.isfinite(points_prev).all(axis=1) & np.isfinite(points).all(axis=1))
    if len(usable) < _MIN_MATCHES:
        return inlier
    a, b = points_prev[usable], points[usable]
    model = "fundamental" if camera is None else "essential"
    matrix, best = _fit(model, a, b, threshold)
    if matrix is not None and camera is not None and camera.model == "equidistant":
        best = _angle_to_epipolar_plane(matrix, a, b) <= threshold
    if best.mean() < _TRUSTED_SHARE:
        still = np.linalg.norm(b - a, axis=1) <= threshold
        # A homography moves both coordinates of a point where an epipolar line binds one: hence the sqrt(2).
        best = max((best, _fit("homography", a, b, threshold * np.sqrt(2))[1], still), key=np.count_nonzero)
    if np.count_nonzero(best) >= _MIN_MATCHES:
        inlier[usable[best]] = True
    return inlier


def _fit(model: str, a: np.ndarray, b: np.ndarray, threshold: float) -> tuple[np.ndarray | None, np.ndarray]:
    """One USAC fit: the (3, 3) matrix and its inliers (M,) bool; None and no inliers where OpenCV finds no model."""
    try:
        if model == "essential":
            matrix, mask = cv2.findEssentialMat(a, b, np.eye(3), _USAC, _CONFIDENCE, threshold, **_BUDGET_ESSENTIAL)
        elif model == "fundamental":
            matrix, mask = cv2.findFundamentalMat(a, b, _USAC, threshold, _CONFIDENCE, **_BUDGET)
        else:
            matrix, mask = cv2.findHomography(a, b, _USAC, threshold, confidence=_CONFIDENCE, **_BUDGET)
    except cv2.error:  # OpenCV's way to say that no model was found, in some versions
        return None, np.zeros(len(a), bool)
    if mask is None or matrix is None or matrix.shape != (3, 3):
        return None, np.zeros(len(a), bool)
    return matrix, mask.ravel().astype(bool)


def _angle_to_epipolar_plane(essential: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Larger of the two angles (M,) in radians between the rays of a match and the epipolar plane of the other.

    A fisheye image has one pixel size per angle, not per length in the normalised plane.
    """
    rays_a, rays_b = (np.column_stack([points, np.ones(len(points))]) for points in (a, b))
    rays_a /= np.linalg.norm(rays_a, axis=1, keepdims=True)
    rays_b /= np.linalg.norm(rays_b, axis=1, keepdims=True)
    plane_b, plane_a = rays_a @ essential.T, rays_b @ essential
    residual = np.abs(np.einsum("nd,nd->n", rays_b, plane_b))
    shorter = np.minimum(np.linalg.norm(plane_a, axis=1), np.linalg.norm(plane_b, axis=1))
    return np.arcsin(np.minimum(residual / np.maximum(shorter, 1e-12), 1.0))
