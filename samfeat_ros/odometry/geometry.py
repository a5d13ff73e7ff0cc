"""Geometry of calibrated views in normalised coordinates: poses, a first motion, triangulation, errors."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np


@dataclass(frozen=True)
class Pose:
    """Rigid motion of world points into the camera: x_camera = rotation @ x_world + translation."""

    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    translation: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @staticmethod
    def of_camera(matrix: np.ndarray) -> Pose:
        """The pose whose `camera_to_world` is this (4, 4)."""
        return Pose(matrix[:3, :3], matrix[:3, 3]).inverse()

    @property
    def center(self) -> np.ndarray:
        """(3,) position of the camera in the world."""
        return -self.rotation.T @ self.translation

    @property
    def camera_to_world(self) -> np.ndarray:
        """(4, 4) pose of the camera in the world."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation.T, self.center
        return matrix

    def apply(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) in the camera frame."""
        return points @ self.rotation.T + self.translation

    def after(self, first: Pose) -> Pose:
        """This motion applied after `first`."""
        return Pose(self.rotation @ first.rotation, self.rotation @ first.translation + self.translation)

    def inverse(self) -> Pose:
        return Pose(self.rotation.T, self.center)


def estimate_motion(rays_prev: np.ndarray, rays: np.ndarray, threshold: float) -> tuple[Pose, np.ndarray] | None:
    """Motion between two views of one camera by the essential matrix (OpenCV's USAC MAGSAC).

    Args:
        rays_prev, rays: (N, 2) normalised undistorted points of the same scene points in two frames.
        threshold: largest epipolar distance in normalised units (pixels / focal length).

    Returns:
        the motion from the first to the second camera, translation of unit length, and the inliers (N,) bool;
        None when there are fewer than 8 points or no motion explains them.
    """
    if len(rays) < 8:
        return None
    a, b = np.ascontiguousarray(rays_prev, np.float64), np.ascontiguousarray(rays, np.float64)
    try:
        essential, mask = cv2.findEssentialMat(a, b, np.eye(3), cv2.USAC_MAGSAC, 0.9999, threshold)
    except cv2.error:
        return None
    if essential is None or essential.shape != (3, 3) or mask is None:
        return None
    inlier = mask.ravel().astype(bool)
    first, second, direction = cv2.decomposeEssentialMat(essential)
    candidates = [Pose(r, sign * direction.ravel()) for r in (first, second) for sign in (1.0, -1.0)]
    in_front = [_in_front_of_both(pose, a[inlier], b[inlier]) for pose in candidates]
    best = int(np.argmax([mask.sum() for mask in in_front]))
    if in_front[best].sum() < 8:
        return None
    inlier[inlier] = in_front[best]
    return candidates[best], inlier


def triangulate(pose_a: Pose, pose_b: Pose, rays_a: np.ndarray, rays_b: np.ndarray) -> np.ndarray:
    """World points (N, 3) seen at normalised rays (N, 2) of two cameras; the linear two-view solution."""
    if not len(rays_a):
        return np.zeros((0, 3))
    first, second = (np.column_stack([pose.rotation, pose.translation]) for pose in (pose_a, pose_b))
    homogeneous = cv2.triangulatePoints(first, second, rays_a.T.astype(np.float64), rays_b.T.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (homogeneous[:3] / homogeneous[3]).T


def _in_front_of_both(pose: Pose, rays_a: np.ndarray, rays_b: np.ndarray) -> np.ndarray:
    points = triangulate(Pose(), pose, rays_a, rays_b)
    return (points[:, 2] > 0) & (pose.apply(points)[:, 2] > 0)


def reprojection_errors(pose: Pose, points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(N,) reprojection errors in normalised units; infinite behind the camera."""
    cameras = pose.apply(points)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.linalg.norm(cameras[:, :2] / cameras[:, 2:] - rays, axis=1)
    return np.where((cameras[:, 2] > 0) & np.isfinite(error), error, np.inf)


def parallax(pose_a: Pose, pose_b: Pose, rays_a: np.ndarray, rays_b: np.ndarray) -> np.ndarray:
    """(N,) angle in radians between the two lines of sight of each point."""
    lines = []
    for pose, rays in ((pose_a, rays_a), (pose_b, rays_b)):
        line = np.column_stack([rays, np.ones(len(rays))]) @ pose.rotation
        lines.append(line / np.linalg.norm(line, axis=1, keepdims=True))
    return np.arccos(np.clip(np.einsum("ni,ni->n", *lines), -1, 1))
