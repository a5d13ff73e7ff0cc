"""OpenCV's detectors as extractors with the same call as ours: ``extractor(image) -> Features``.

They are the yardsticks that every result table of this project carries. All run at OpenCV's defaults with the budget
of keypoints set (AKAZE has no budget: its best by response are kept); SIFT's descriptors become RootSIFT
(Arandjelovic and Zisserman, CVPR 2012).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from samfeat_core.features import Features

Extractor = Callable[[np.ndarray], Features]


class OpenCvExtractor:
    """Wraps a ``cv2.Feature2D``.

    ``describe`` turns its raw descriptors (N, ...) into float32 unit rows (N, dim) whose dot product orders neighbours
    as the descriptor's own distance does.
    """

    def __init__(self, detector: cv2.Feature2D, describe: Callable[[np.ndarray], np.ndarray], dim: int, budget: int):
        self.detector = detector
        self.describe = describe
        self.dim = dim
        self.budget = budget

    def __call__(self, image: np.ndarray) -> Features:
        """Features of an (H, W) or (H, W, 3) BGR uint8 image, at most ``budget`` of them, best response first."""
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        size = (grey.shape[1], grey.shape[0])
        found, raw = self.detector.detectAndCompute(grey, None)
        if raw is None or not found:
            return Features.empty(size, self.dim)
        scores = np.array([point.response for point in found], np.float32)
        best = np.argsort(-scores, kind="stable")[: self.budget]
        points = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
        return Features(points[best], scores[best], self.describe(raw[best]), size)


def binary_to_unit(bits: np.ndarray) -> np.ndarray:
    """Packed binary descriptors (N, B) uint8 to (N, 8 B) float32 unit rows: dot product = 1 - 2 * Hamming / (8 B)."""
    signs = np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1
    return signs / np.sqrt(np.float32(signs.shape[1]))


def root_sift(histograms: np.ndarray) -> np.ndarray:
    """SIFT histograms (N, 128) to RootSIFT: the square root of the L1-normalised histogram, a unit row."""
    total = np.maximum(histograms.sum(axis=1, keepdims=True), 1e-12)
    return np.sqrt(histograms / total).astype(np.float32)


def orb(max_keypoints: int = 1024) -> Extractor:
    return OpenCvExtractor(cv2.ORB.create(nfeatures=max_keypoints), binary_to_unit, 256, max_keypoints)


def sift(max_keypoints: int = 1024) -> Extractor:
    return OpenCvExtractor(cv2.SIFT.create(nfeatures=max_keypoints), root_sift, 128, max_keypoints)


def akaze(max_keypoints: int = 1024) -> Extractor:
    # 61 bytes; the last two of the 488 bits are padding, always equal, and so do not change the order of neighbours
    return OpenCvExtractor(cv2.AKAZE.create(), binary_to_unit, 488, max_keypoints)


CLASSIC: dict[str, Callable[[int], Extractor]] = {"orb": orb, "sift": sift, "akaze": akaze}
