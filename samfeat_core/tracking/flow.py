"""Optical flow between two frames: pyramidal Lucas-Kanade (Bouguet 2000) by OpenCV, in images of half the size.

Reference patches polish what it finds, so half a pixel is good enough.
"""

from __future__ import annotations

import cv2
import numpy as np

WIDE, NARROW = (15, 15), (11, 11)  # windows: one finds the way, the other keeps to a surface
LEVELS = 1  # pyramid levels above the halved image: the start is predicted
STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 4, 0.1)
LARGEST_GAIN = 1.1  # brightness may change by this much before flow is helped


def follow(
    previous: np.ndarray, image: np.ndarray, points: np.ndarray, start: np.ndarray, window: tuple[int, int] = WIDE
) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N, 2) of the previous image lie in another, looked for from `start` (N, 2) on.

    Args:
        previous, image: (H, W) grey uint8, both `halved`.
        points, start: pixels of the whole images.
        window: (width, height) around a point in halved pixels.

    Returns:
        points (N, 2) float32 in pixels of the whole image, and (N,) bool: found.
    """
    if not len(points):
        return np.zeros((0, 2), np.float32), np.zeros(0, bool)
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        previous, image, _in_half(points), _in_half(start),
        winSize=window, maxLevel=LEVELS, criteria=STOP, flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )  # fmt: skip
    return 2 * there[:, 0] + np.float32(0.5), found[:, 0] > 0


def halved(image: np.ndarray) -> np.ndarray:
    """The grey image (H, W) at half its size: means of 2 x 2 pixels."""
    height, width = image.shape
    return cv2.resize(image, (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA)


def _in_half(points: np.ndarray) -> np.ndarray:
    """(N, 1, 2) float32, as OpenCV likes it: pixels (N, 2) in the halved image, whose pixel centres are whole too."""
    return ((points - 0.5) / 2).astype(np.float32).reshape(-1, 1, 2)


def same_brightness(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The grey image (H, W) uint8 with the mean and deviation of another, which flow takes to be the same."""
    (mean, deviation), (mean_like, deviation_like) = (cv2.meanStdDev(part) for part in (image, like))
    gain = float(deviation_like[0, 0]) / max(float(deviation[0, 0]), 1.0)
    shift = float(mean_like[0, 0]) - gain * float(mean[0, 0])
    if 1 / LARGEST_GAIN < gain < LARGEST_GAIN and abs(shift) < 255 * (LARGEST_GAIN - 1):
        return image
    table = np.clip(np.rint(gain * np.arange(256) + shift), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
