"""Two-view geometry for training and evaluation, for numpy arrays and torch tensors alike.

Points are pixels (x, y) with the centre of the top-left pixel at (0, 0). Every function takes leading batch dimensions
where its arguments share them, keeps dtype and device, and, in torch, is differentiable in its points and matrices.
Rigid transforms T_0to1 (4, 4) map coordinates of camera 0 to camera 1; poses are camera-to-world.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Depth readings around a point further apart than this belong to two surfaces: none of their means lies on either.
_DEPTH_EDGE = 0.05


def _namespace(array: np.ndarray | torch.Tensor) -> ModuleType:
    return torch if isinstance(array, torch.Tensor) else np


def _norm(vectors: Array) -> Array:
    return (vectors * vectors).sum(-1) ** 0.5


def to_homogeneous(points: Array) -> Array:
    """(..., N, D) -> (..., N, D + 1) with a last column of ones."""
    xp = _namespace(points)
    return xp.concatenate([points, xp.ones_like(points[..., :1])], -1)


def transform_points(points: Array, transform: Array) -> Array:
    """3-D points (..., N, 3) under rigid transforms (..., 4, 4)."""
    return points @ transform[..., :3, :3].swapaxes(-1, -2) + transform[..., None, :3, 3]


def warp_homography(points: Array, homography: Array) -> Array:
    """Points (..., N, 2) under homographies (..., 3, 3). Points on the horizon come out infinite or NaN."""
    warped = to_homogeneous(points) @ homography.swapaxes(-1, -2)
    return warped[..., :2] / warped[..., 2:]


def normalize_points(points: Array, matrix: Array) -> Array:
    """Pixels (..., N, 2) to normalised coordinates under camera matrices (..., 3, 3) with or without skew."""
    y = (points[..., 1] - matrix[..., None, 1, 2]) / matrix[..., None, 1, 1]
    x = (points[..., 0] - matrix[..., None, 0, 2] - matrix[..., None, 0, 1] * y) / matrix[..., None, 0, 0]
    return _namespace(points).stack([x, y], -1)


def skew(vectors: Array) -> Array:
    """(..., 3) -> (..., 3, 3) with skew(v) @ w = v x w."""
    xp = _namespace(vectors)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    zero = xp.zeros_like(x)
    rows = [xp.stack(row, -1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])]
    return xp.stack(rows, -2)


def relative_pose(pose0: Array, pose1: Array) -> Array:
    """T_0to1 (..., 4, 4) of two camera-to-world poses (..., 4, 4)."""
    return _namespace(pose0).linalg.inv(pose1) @ pose0


def essential_matrix(T_0to1: Array) -> Array:
    """E (..., 3, 3) with x1^T E x0 = 0 in normalised coordinates."""
    return skew(T_0to1[..., :3, 3]) @ T_0to1[..., :3, :3]


def fundamental_matrix(K0: Array, K1: Array, T_0to1: Array) -> Array:
    """F (..., 3, 3) with x1^T F x0 = 0 in pixels, unnormalised."""
    inv = _namespace(K0).linalg.inv
    return inv(K1).swapaxes(-1, -2) @ essential_matrix(T_0to1) @ inv(K0)


def epipolar_distance(points0: Array, points1: Array, F: Array) -> Array:
    """Distance (..., N) in pixels of points1 to the epipolar lines F x0 of points0, both (..., N, 2).

    For the other direction call with the points exchanged and F transposed. Infinite where F has no line for a point
    (it is the epipole, or the cameras share their centre).
    """
    lines = to_homogeneous(points0) @ F.swapaxes(-1, -2)
    residual = abs((lines * to_homogeneous(points1)).sum(-1))
    length = _norm(lines[..., :2])
    xp = _namespace(points0)
    none = length <= 0
    return xp.where(none, xp.full_like(residual, xp.inf), residual / xp.where(none, xp.ones_like(length), length))


def rotation_angle(rotation: Array) -> Array:
    """Angle (...) in degrees of rotations (..., 3, 3), exact for small angles too."""
    xp = _namespace(rotation)
    # 2 sin of the angle times the axis; arccos of the trace alone loses all digits near 0 and 180 degrees.
    axis = xp.stack([rotation[..., i, j] - rotation[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1)
    trace = rotation[..., 0, 0] + rotation[..., 1, 1] + rotation[..., 2, 2]
    return xp.rad2deg(xp.arctan2(_norm(axis), trace - 1))


def pose_error(
    R: np.ndarray, t: np.ndarray, R_gt: np.ndarray, t_gt: np.ndarray, signed: bool = False
) -> tuple[float, float]:
    """Errors of an estimated relative pose, in degrees: of the rotation, and of the direction of the translation.

    Two views do not give the length of t. By convention (SuperGlue and after) its sign does not count either,
    unless `signed`. A zero or non-finite t counts as 180 degrees wrong (90 unsigned), a non-finite R as 180.
    """
    rotation = R_gt.T @ R
    rot_deg = float(rotation_angle(rotation)) if np.isfinite(rotation).all() else 180.0
    t, t_gt = np.ravel(t), np.ravel(t_gt)
    cross, dot = float(np.linalg.norm(np.cross(t_gt, t))), float(t_gt @ t)
    usable = np.isfinite([cross, dot]).all() and np.linalg.norm(t) > 0 and np.linalg.norm(t_gt) > 0
    trans_deg = float(np.degrees(np.arctan2(cross, dot))) if usable else 180.0
    if not signed:
        trans_deg = min(trans_deg, 180.0 - trans_deg) if usable else 90.0
    return rot_deg, trans_deg


def pose_auc(errors: Sequence[float] | np.ndarray, thresholds: Sequence[float] = (5, 10, 20)) -> list[float]:
    """Area under the recall curve of pose errors up to each threshold in degrees, divided by the threshold: 0..1.

    The trapezoid rule over the sorted errors, as the field computes it. NaN counts as a failure. NaN for no errors.
    """
    errors = np.asarray(errors, np.float64)
    if not errors.size:
        return [float("nan")] * len(thresholds)
    errors = np.sort(np.where(np.isnan(errors), np.inf, errors))
    recall = np.arange(1, len(errors) + 1) / len(errors)
    errors, recall = np.r_[0.0, errors], np.r_[0.0, recall]
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(errors, threshold))
        x, y = np.r_[errors[:last], threshold], np.r_[recall[:last], recall[last - 1]]
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return areas


def sampling_grid(points: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Pixel positions (..., 2) of the (width, height) image as `grid_sample` wants them: -1 to 1 from edge to edge."""
    width, height = image_size  # as numbers: a tensor of them would have to be sent to the GPU and waited for
    x, y = points.unbind(-1)
    return torch.stack(((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1), -1)


def sample_depth(depth: Array, points: Array) -> Array:
    """Depth (..., N) at sub-pixel points (..., N, 2) of maps (..., H, W); NaN where there is none.

    Bilinear among readings of one surface, the nearest reading at a depth edge. Readings that are not positive and
    finite are missing, and so is everything outside the map.
    """
    xp = _namespace(depth)
    single = depth.ndim == 2
    if single:
        depth, points = depth[None], points[None]
    batch, height, width = depth.shape
    x, y = points[..., 0], points[..., 1]
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    x, y = xp.where(inside, x, xp.zeros_like(x)), xp.where(inside, y, xp.zeros_like(y))
    x0, y0 = xp.floor(x), xp.floor(y)
    rows = _arange_like(batch, depth)[:, None]

    def read(column: Array, row: Array) -> Array:
        return depth[rows, _long(row), _long(column)]

    corners, shares = [], []
    for dx in (0, 1):
        for dy in (0, 1):
            share = abs(1 - dx - (x - x0)) * abs(1 - dy - (y - y0))
            corners.append(read(xp.clip(x0 + dx, 0, width - 1), xp.clip(y0 + dy, 0, height - 1)))
            shares.append(share)
    values, weights = xp.stack(corners, -1), xp.stack(shares, -1)
    used = weights > 1e-6
    bad = used & ~(xp.isfinite(values) & (values > 0))
    values = xp.where(used & ~bad, values, xp.zeros_like(values))
    mean = (values * weights).sum(-1) / xp.where(used, weights, xp.zeros_like(weights)).sum(-1)
    spread = xp.amax(abs(xp.where(used, values - mean[..., None], xp.zeros_like(values))), -1)
    nearest = read(xp.round(x), xp.round(y))
    result = xp.where(spread <= _DEPTH_EDGE * mean, mean, nearest)
    missing = ~inside | bad.any(-1) | ~(xp.isfinite(result) & (result > 0))
    result = xp.where(missing, xp.full_like(result, xp.nan), result)
    return result[0] if single else result


def warp_depth(
    points: Array,
    depth: Array,
    K0: Array,
    K1: Array,
    T_0to1: Array,
    depth1: Array | None = None,
    relative_tolerance: float = 0.05,
) -> tuple[Array, Array]:
    """Points of image 0 in image 1, through their depth and the relative pose.

    Args:
        points: (..., N, 2) pixels of image 0.
        depth: (..., H, W) depth of image 0 along the optical axis, in the unit of the pose; <= 0 or NaN = unknown.
        K0, K1: (..., 3, 3).
        T_0to1: (..., 4, 4).
        depth1: (..., H1, W1) depth of image 1. With it, points that fall outside, on unknown depth, or on a surface
            whose depth differs by more than `relative_tolerance` (occluded) are not valid.

    Returns:
        points1 (..., N, 2), NaN where not valid, and valid (..., N) bool.
    """
    xp = _namespace(points)
    z0 = sample_depth(depth, points)
    inside = transform_points(to_homogeneous(normalize_points(points, K0)) * z0[..., None], T_0to1)
    z1 = inside[..., 2]
    valid = z1 > 1e-6
    rays = inside / xp.where(valid, z1, xp.ones_like(z1))[..., None]
    points1 = (rays @ K1.swapaxes(-1, -2))[..., :2]
    if depth1 is not None:
        seen = sample_depth(depth1, xp.where(valid[..., None], points1, xp.full_like(points1, -1.0)))
        valid = valid & (abs(seen - z1) <= relative_tolerance * z1)
    return xp.where(valid[..., None], points1, xp.full_like(points1, xp.nan)), valid


def _arange_like(count: int, like: Array) -> Array:
    return torch.arange(count, device=like.device) if isinstance(like, torch.Tensor) else np.arange(count)


def _long(values: Array) -> Array:
    return values.long() if isinstance(values, torch.Tensor) else values.astype(np.int64)
