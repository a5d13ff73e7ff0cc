"""Where points of one view are in another: through scaling and cutting, homographies, and depth.

Points are NumPy arrays and torch tensors alike, as `samfeat_core.poses`.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from samfeat_core.poses import Array, namespace, transform_points
from samfeat_core.two_view import normalize_points, to_homogeneous

# Depth readings around a point further apart than this belong to two surfaces: none of their means lies on either.
_DEPTH_EDGE = 0.05


def cover(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image after it was scaled until it just covers the (width, height) `size`."""
    scale = max(size[0] / image_size[0], size[1] / image_size[1])
    return max(size[0], round(image_size[0] * scale)), max(size[1], round(image_size[1] * scale))


def scale_and_cut(
    image: np.ndarray, matrix: np.ndarray, scaled: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, ...) scaled to (width, height) `scaled`, then cut to `size` at `corner` (left, top).

    Returns:
        the image, and its camera matrix (3, 3) float64.
    """
    height, width = image.shape[:2]
    (left, top), ratio = corner, np.array(scaled) / (width, height)
    if scaled != (width, height):
        image = cv2.resize(image, scaled, interpolation=cv2.INTER_AREA if ratio.min() < 1 else cv2.INTER_LINEAR)
    moved = matrix.astype(np.float64)
    moved[:2] *= ratio[:, None]
    moved[:2, 2] += 0.5 * ratio - 0.5 - corner
    return np.ascontiguousarray(image[top : top + size[1], left : left + size[0]]), moved


def colmap_to_pixels(matrix: np.ndarray) -> np.ndarray:
    """Camera matrices (..., 3, 3) of COLMAP, to which the first pixel's centre is (0.5, 0.5), with that at (0, 0)."""
    moved = np.array(matrix, np.float64)
    moved[..., :2, 2] -= 0.5
    return moved


def warp_homography(points: Array, homography: Array) -> Array:
    """Points (..., N, 2) under homographies (..., 3, 3). Points on the horizon come out infinite or NaN."""
    warped = to_homogeneous(points) @ homography.swapaxes(-1, -2)
    return warped[..., :2] / warped[..., 2:]


def sampling_grid(points: Tensor, image_size: tuple[float, float] | tuple[Tensor, Tensor]) -> Tensor:
    """Pixel positions (..., 2) of the (width, height) image as `grid_sample` wants them: -1 to 1 from edge to edge.

    image_size: numbers, or of images of several sizes tensors (...) on the device.
    """
    width, height = image_size
    x, y = points.unbind(-1)
    return torch.stack(((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1), -1)


def sample_depth(depth: Array, points: Array) -> Array:
    """Depth (..., N) at sub-pixel points (..., N, 2) of maps (..., H, W); NaN where there is none.

    Bilinear among readings of one surface, the nearest reading at a depth edge. Readings that are not positive and
    finite are missing, and so is everything outside the map.
    """
    xp = namespace(depth)
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
    xp = namespace(points)
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
    return torch.arange(count, device=like.device) if isinstance(like, Tensor) else np.arange(count)


def _long(values: Array) -> Array:
    return values.long() if isinstance(values, Tensor) else values.astype(np.int64)
