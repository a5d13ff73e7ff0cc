"""Two-view geometry: essential and fundamental matrices, epipolar distances, and which matches agree with them.

Points are pixels (x, y) with the centre of the top-left pixel at (0, 0). Functions that say "array" take NumPy arrays
and torch tensors, as in `samfeat_core.poses`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.poses import Array, namespace, norm

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


def to_homogeneous(points: Array) -> Array:
    """Array (..., N, D) -> (..., N, D + 1) with a last column of ones."""
    xp = namespace(points)
    return xp.concatenate([points, xp.ones_like(points[..., :1])], -1)


def normalize_points(points: Array, matrix: Array) -> Array:
    """Pixels (..., N, 2) to normalised coordinates under camera matrices, arrays (..., 3, 3), with or without skew.

    For lenses with distortion see `Camera.normalize`.
    """
    y = (points[..., 1] - matrix[..., None, 1, 2]) / matrix[..., None, 1, 1]
    x = (points[..., 0] - matrix[..., None, 0, 2] - matrix[..., None, 0, 1] * y) / matrix[..., None, 0, 0]
    return namespace(points).stack([x, y], -1)


def skew(vectors: Array) -> Array:
    """Array (..., 3) -> (..., 3, 3) with skew(v) @ w = v x w."""
    xp = namespace(vectors)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    zero = xp.zeros_like(x)
    rows = [xp.stack(row, -1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])]
    return xp.stack(rows, -2)


def essential_matrix(T_0to1: Array) -> Array:
    """E (..., 3, 3) with x1^T E x0 = 0 in normalised coordinates, of transforms, arrays (..., 4, 4)."""
    return skew(T_0to1[..., :3, 3]) @ T_0to1[..., :3, :3]


def fundamental_matrix(K0: Array, K1: Array, T_0to1: Array) -> Array:
    """F (..., 3, 3) with x1^T F x0 = 0 in pixels, unnormalised; arrays (..., 3, 3) and (..., 4, 4)."""
    inv = namespace(K0).linalg.inv
    return inv(K1).swapaxes(-1, -2) @ essential_matrix(T_0to1) @ inv(K0)


def epipolar_distance(points0: Array, points1: Array, F: Array) -> Array:
    """Distance (..., N) of points1 to the epipolar lines F x0 of points0, both arrays (..., N, 2), in their unit.

    For the other direction call with the points exchanged and F transposed. Infinite where F has no line for a point
    (it is the epipole, or the cameras share their centre).
    """
    lines = to_homogeneous(points0) @ F.swapaxes(-1, -2)
    residual = abs((lines * to_homogeneous(points1)).sum(-1))
    length = norm(lines[..., :2])
    xp = namespace(points0)
    none = length <= 0
    return xp.where(none, xp.full_like(residual, xp.inf), residual / xp.where(none, xp.ones_like(length), length))


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
