"""Base detectors for homographic adaptation: OpenCV's, which need no training, and networks.

A detector takes views (N, H, W) uint8 and returns for each view the positions (n, 2) float32 of its keypoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from samfeat_core.errors import UsageError

Detector = Callable[[np.ndarray], list[np.ndarray]]

OPENCV = ("shi-tomasi", "sift")


def load_detector(base: str, count: int, model: str = "samfeat-nano", device: str = "cpu") -> Detector:
    """A base detector by name, or of a network's weights file.

    Args:
        base: "shi-tomasi", "sift", or a weights file (e.g. of the method `shapes`).
        count: at most this many keypoints per view.
        model: the network that a weights file is of, where the file itself does not say.
        device: where a network runs.

    Raises:
        UsageError: neither a name nor a file, or an unknown model. WeightsError: not a weights file of the network.
    """
    if base == "shi-tomasi":
        return lambda views: [shi_tomasi(view, count) for view in views]
    if base == "sift":
        sift = cv2.SIFT.create(count)
        return lambda views: [_positions(sift.detect(view, None), count) for view in views]
    if not Path(base).is_file():
        raise UsageError(f"{base}: neither one of {', '.join(OPENCV)} nor a weights file")
    from training.samfeat.labels.network import NetworkDetector  # imports torch

    return NetworkDetector.load(base, count, model, device)


def shi_tomasi(view: np.ndarray, count: int) -> np.ndarray:
    """Corners by the smaller eigenvalue of the structure tensor, (n, 2) float32, refined below the pixel."""
    corners = cv2.goodFeaturesToTrack(view, count, qualityLevel=0.01, minDistance=4, blockSize=3)
    if corners is None:
        return np.empty((0, 2), np.float32)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 0.05)
    return cv2.cornerSubPix(view, corners, (2, 2), (-1, -1), stop).reshape(-1, 2)


def _positions(keypoints: Sequence[cv2.KeyPoint], count: int) -> np.ndarray:
    # OpenCV keeps ties beyond the count, and one entry per orientation.
    best = sorted(keypoints, key=lambda point: -point.response)[:count]
    return np.array([point.pt for point in best], np.float32).reshape(-1, 2)
