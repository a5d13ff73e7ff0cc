"""Optical flow between two frames: pyramidal Lucas-Kanade (Bouguet 2000) by OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

WINDOW = (21, 21)
LEVELS = 1  # pyramid levels above the image itself: the start is predicted
# Reference patches polish what the flow finds, so it may stop early.
STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 8, 0.1)
LARGEST_GAIN = 1.1  # brightness may change by this much before flow is helped


def follow(
    previous: np.ndarray, image: np.ndarray, points: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N, 2) of the previous grey image (H, W) uint8 lie in another, looked for from `start` (N, 2) on.

    Returns:
        points (N, 2) float32 and (N,) bool: found, and inside the image.
    """
    if not len(points):
        return np.zeros((0, 2), np.float32), np.zeros(0, bool)
    begin = np.ascontiguousarray(start, np.float32)[:, None].copy()  # OpenCV writes into it
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        previous, image, np.ascontiguousarray(points, np.float32)[:, None], begin,
        winSize=WINDOW, maxLevel=LEVELS, criteria=STOP, flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )  # fmt: skip
    there = there[:, 0]
    limit = np.array(image.shape[::-1], np.float32) - 1
    inside = np.asarray((there >= 0).all(axis=1) & (there <= limit).all(axis=1))
    return there, (found[:, 0] > 0) & inside


def returns(
    previous: np.ndarray, image: np.ndarray, points: np.ndarray, there: np.ndarray, tolerance_px: float
) -> np.ndarray:
    """(N,) bool: flow from `there` in the image back to the previous one ends within `tolerance_px` of `points`."""
    back, found = follow(image, previous, there, points)
    return found & (np.linalg.norm(back - points, axis=1) < tolerance_px)


def same_brightness(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The grey image (H, W) uint8 with the mean and deviation of another, which flow takes to be the same."""
    (mean, deviation), (mean_like, deviation_like) = (cv2.meanStdDev(part) for part in (image, like))
    gain = float(deviation_like[0, 0]) / max(float(deviation[0, 0]), 1.0)
    shift = float(mean_like[0, 0]) - gain * float(mean[0, 0])
    if 1 / LARGEST_GAIN < gain < LARGEST_GAIN and abs(shift) < 255 * (LARGEST_GAIN - 1):
        return image
    table = np.clip(np.rint(gain * np.arange(256) + shift), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
