"""A made scene with a camera that drives through it: tracks whose motion is known."""

from __future__ import annotations

import numpy as np

from samfeat_core.camera import Camera
from samfeat_ros.odometry.geometry import Pose

CAMERA = Camera(np.array([[400.0, 0, 320], [0, 400, 240], [0, 0, 1]]), np.zeros(0), 640, 480)


def turn(axis: int, angle: float) -> np.ndarray:
    rotation = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    rotation[i, i] = rotation[j, j] = np.cos(angle)
    rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
    return rotation


def drive(frames: int, step: float = 0.15) -> list[Pose]:
    """World-to-camera poses: forward along a bend, with a little sway."""
    poses, rotation, center = [], np.eye(3), np.zeros(3)
    for index in range(frames):
        poses.append(Pose(rotation.T, -rotation.T @ center))
        center = center + rotation @ np.array([0.03 * np.sin(index / 5), 0, step])
        rotation = rotation @ turn(1, 0.01) @ turn(0, 0.003 * np.sin(index / 7))
    return poses


class Scene:
    """Points seen by a camera in motion; `matches(i)` are those between frame i - 1 and i, with noise and outliers."""

    def __init__(self, poses: list[Pose], noise_px: float = 0.3, outliers: float = 0.0, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.points = self.rng.uniform([-15, -5, -5], [15, 5, 40], (6000, 3))
        self.poses, self.noise, self.outliers = poses, noise_px, outliers
        self.pixels = [self._look(pose) for pose in poses]

    def _look(self, pose: Pose) -> np.ndarray:
        cameras = pose.apply(self.points)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = CAMERA.project(np.where(cameras[:, 2:] > 0.3, cameras[:, :2] / cameras[:, 2:], 1e3))
        pixels += self.rng.normal(0, self.noise, pixels.shape)
        inside = ((pixels > 0) & (pixels < [640, 480])).all(axis=1) & (cameras[:, 2] > 0.3)
        return np.where(inside[:, None], pixels, np.nan)

    def matches(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        both = np.flatnonzero(np.isfinite(self.pixels[index - 1]).all(axis=1) & np.isfinite(self.pixels[index]).all(1))
        both = both[:500]
        points = self.pixels[index][both].copy()
        wrong = self.rng.random(len(both)) < self.outliers
        points[wrong] = self.rng.uniform([0, 0], [640, 480], (wrong.sum(), 2))
        return both, self.pixels[index - 1][both], points
