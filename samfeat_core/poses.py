"""Rigid motions: 4x4 poses and transforms, quaternions, interpolation, and how far two motions are apart.

Poses are camera-to-world. A transform T_0to1 maps coordinates of camera 0 to camera 1. Functions that say "array" take
NumPy arrays and torch tensors with leading batch dimensions, keep dtype and device, and are differentiable in torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch

    Array = TypeVar("Array", np.ndarray, torch.Tensor)
else:
    Array = TypeVar("Array")


def namespace(array: Array) -> ModuleType:
    """numpy or torch, whichever the array is of; torch is not imported for it."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def norm(vectors: Array) -> Array:
    """(..., D) -> (...) Euclidean lengths."""
    return (vectors * vectors).sum(-1) ** 0.5


def relative_pose(pose0: Array, pose1: Array) -> Array:
    """T_0to1 (..., 4, 4) of two camera-to-world poses, arrays (..., 4, 4)."""
    return namespace(pose0).linalg.inv(pose1) @ pose0


def transform_points(points: Array, transform: Array) -> Array:
    """3-D points, arrays (..., N, 3), under rigid transforms (..., 4, 4)."""
    return points @ transform[..., :3, :3].swapaxes(-1, -2) + transform[..., None, :3, 3]


def rotation_angle(rotation: Array) -> Array:
    """Angle (...) in degrees of rotations, arrays (..., 3, 3), exact for small angles too."""
    xp = namespace(rotation)
    # 2 sin of the angle times the axis; arccos of the trace alone loses all digits near 0 and 180 degrees.
    axis = xp.stack([rotation[..., i, j] - rotation[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1)
    trace = rotation[..., 0, 0] + rotation[..., 1, 1] + rotation[..., 2, 2]
    return xp.rad2deg(xp.arctan2(norm(axis), trace - 1))


def pose_error(
    R: np.ndarray, t: np.ndarray, R_gt: np.ndarray, t_gt: np.ndarray, signed: bool = False
) -> tuple[float, float]:
    """Errors of an estimated relative pose in degrees: of the rotation, and of the direction of the translation.

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


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Unit quaternion x, y, z, w of a rotation (3, 3), w >= 0."""
    turn = cv2.Rodrigues(np.ascontiguousarray(rotation, np.float64))[0].ravel()
    angle = float(np.linalg.norm(turn))
    x, y, z = turn * (np.sin(angle / 2) / angle if angle > 1e-12 else 0.5)
    return float(x), float(y), float(z), float(np.cos(angle / 2))


def pose_matrix(translation: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """(..., 4, 4) from translations (..., 3) and quaternions x y z w (..., 4), which are normalised here."""
    translation, turn = np.asarray(translation, np.float64), np.asarray(quaternion, np.float64)
    turn = turn / np.linalg.norm(turn, axis=-1, keepdims=True)
    axis, w = turn[..., :3], turn[..., 3]
    cross = np.cross(axis[..., None, :], -np.eye(3))  # rows -axis x e_i: the cross-product matrix
    outer = axis[..., :, None] * axis[..., None, :]
    matrix = np.zeros((*translation.shape[:-1], 4, 4))
    matrix[..., :3, :3] = (2 * w * w - 1)[..., None, None] * np.eye(3) + 2 * outer + 2 * w[..., None, None] * cross
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def interpolate_pose(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Pose (4, 4) between two: position linearly, rotation by the shortest turn. share: 0 = first, 1 = second."""
    pose = np.eye(4)
    turn = cv2.Rodrigues(first[:3, :3].T @ second[:3, :3])[0]
    pose[:3, :3] = first[:3, :3] @ cv2.Rodrigues(share * turn)[0]  # type: ignore[operator]
    pose[:3, 3] = (1 - share) * first[:3, 3] + share * second[:3, 3]
    return pose
