"""Homographic adaptation (SuperPoint, section 5): keypoints are what a detector finds again and again.

The photograph is warped by random homographies; what the detector finds in each view is mapped back. A position's
score is the share of the views showing it in which something was found there. Positions are mapped back exactly, not
heat maps resampled, so the average over the views also refines the position below a pixel.
"""

from __future__ import annotations

import cv2
import numpy as np

from .detectors import Detector

SIGMA = 1.0  # pixels: how far apart the findings of one point may lie and still add up
BORDER = 6  # pixels at the edge of a view's content whose detections are not trusted
BATCH = 16  # views at a time


def random_homography(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A homography (3, 3) from the photograph to a view of the same size, as a moving camera would see it.

    Scale 0.6 to 1.6, rotation up to 60 degrees, perspective up to 15 % of the sides, and a shift that keeps most of
    the content in the view.
    """
    width, height = size
    corners = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), np.float64)
    moved = corners + random.uniform(-0.15, 0.15, (4, 2))
    half = np.array((width - 1, height - 1)) / 2
    angle = np.deg2rad(random.uniform(-60, 60))
    rotation = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    scale = np.exp(random.uniform(np.log(0.6), np.log(1.6)))
    target = (moved * half) @ rotation.T * scale + half + random.uniform(-0.2, 0.2, 2) * half
    source = corners * half + half
    return cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))


def repeatability_map(grey: np.ndarray, detect: Detector, views: int, random: np.random.Generator) -> np.ndarray:
    """For every pixel, in which share of the views that show it the detector found it.

    Args:
        grey: (H, W) uint8.
        detect: the base detector.
        views: how many views, the first the photograph itself.
        random: source of the homographies.

    Returns:
        (H, W) float32 in [0, 1]: 1 at a position found in every view. 0 where less than a fifth of the views look.
    """
    height, width = grey.shape
    matrices = [np.eye(3), *(random_homography(random, (width, height)) for _ in range(views - 1))]
    hits = np.zeros((height, width), np.float32)
    seen = np.zeros((height, width), np.float32)
    for start in range(0, views, BATCH):
        batch = matrices[start : start + BATCH]
        warped = np.stack([cv2.warpPerspective(grey, matrix, (width, height)) for matrix in batch])
        for matrix, points in zip(batch, detect(warped), strict=True):
            trusted = _content(matrix, (width, height))
            back = np.linalg.inv(matrix)
            _splat(hits, _map_back(points, trusted, back))
            seen += cv2.warpPerspective(trusted, back, (width, height), flags=cv2.INTER_NEAREST)
    # Scaled so that findings at one position in every view make 1.
    blurred = cv2.GaussianBlur(hits, (0, 0), SIGMA) * (2 * np.pi * SIGMA**2)
    share = blurred / np.maximum(seen, 1)
    return np.where(seen >= 0.2 * views, np.minimum(share, 1), 0).astype(np.float32)


def peaks(score: np.ndarray, threshold: float, radius: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best local maxima of a score map (H, W), refined below the pixel by a parabola along x and along y.

    Returns:
        positions (n, 2) float32 and scores (n,) float32, n <= count, by descending score, no two within `radius`
        pixels along x and y (before refinement).
    """
    size = 2 * radius + 1
    highest = cv2.dilate(score, np.ones((size, size), np.uint8))
    y, x = np.nonzero((score == highest) & (score >= threshold) & (score > 0))
    order = np.argsort(-score[y, x], kind="stable")[:count]
    x, y = x[order], y[order]
    padded = np.pad(score, 1, mode="reflect")  # at the border the offset along it remains, the other is 0
    centre = padded[y + 1, x + 1]
    dx = _parabola(padded[y + 1, x], centre, padded[y + 1, x + 2])
    dy = _parabola(padded[y, x + 1], centre, padded[y + 2, x + 1])
    return np.stack((x + dx, y + dy), 1).astype(np.float32), centre


def _content(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: 1 where the view shows the photograph, BORDER pixels away from its edges."""
    shown = cv2.warpPerspective(np.ones(size[::-1], np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    kernel = np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8)
    return cv2.erode(shown, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _map_back(points: np.ndarray, trusted: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The view's trusted points in pixels of the photograph."""
    height, width = trusted.shape
    x, y = np.rint(points).astype(int).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    points = points[inside][trusted[y[inside], x[inside]] > 0]
    if not len(points):
        return points
    return cv2.perspectiveTransform(points[None].astype(np.float64), back)[0]


def _splat(image: np.ndarray, points: np.ndarray) -> None:
    """Adds 1 at every position, shared among the four pixels around it."""
    height, width = image.shape
    corner = np.floor(points).astype(int)
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = corner + step
        weight = (1 - np.abs(points - pixel)).prod(1)
        inside = (pixel >= 0).all(1) & (pixel < (width, height)).all(1)
        np.add.at(image, (pixel[inside, 1], pixel[inside, 0]), weight[inside])


def _parabola(before: np.ndarray, centre: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Offset in [-0.5, 0.5] of the maximum of the parabolas through three equidistant values."""
    bend = before - 2 * centre + after
    safe = np.where(bend < 0, bend, 1)
    return np.where(bend < 0, np.clip(0.5 * (before - after) / safe, -0.5, 0.5), 0)
