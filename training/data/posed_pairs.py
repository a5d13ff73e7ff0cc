"""Pairs with true parallax from posed images with depth: `PosedPairs` reads posed sequences (`docs/data.md`).

The geometry that all sources of such pairs share is here too: `View` and `make_pair`. `python -m training.pairs posed`
stores the pairs of a sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from samfeat_core.poses import rotation_angle, transform_points
from samfeat_core.sequence import ImageSequence
from training.data.geometry import cover, scale_and_cut, warp_depth
from training.data.stored_pairs import Pair

# From the depth to the colour camera of a first-generation Kinect with nominal focal lengths (585 and 525 pixels).
# Measured on 7-Scenes kitchen by moving depth edges onto image edges: 2.5 cm to the side, a third of a degree.
KINECT_ROTATION, KINECT_TRANSLATION = (0.0045, 0.002, 0.0), (-0.025, 0.004, 0.0)

MIN_INLIERS, MIN_INLIER_SHARE = 40, 0.5  # of a refined pose
MAX_CORRECTION_DEG, MAX_CORRECTION_M = 4.0, 0.2


class View(NamedTuple):
    """One image with depth: (h, w, 3) uint8 BGR, (h, w) float32 along z with 0 = none, (3, 3) camera matrix."""

    image: np.ndarray
    depth: np.ndarray
    matrix: np.ndarray


def kinect_depth_to_colour() -> np.ndarray:
    """(4, 4) transform from the depth to the colour camera of a Kinect, see KINECT_ROTATION."""
    transform = np.eye(4)
    transform[:3, :3] = cv2.Rodrigues(np.array(KINECT_ROTATION))[0]
    transform[:3, 3] = KINECT_TRANSLATION
    return transform


def dense_warp(
    depth0: np.ndarray,
    depth1: np.ndarray,
    matrix0: np.ndarray,
    matrix1: np.ndarray,
    T_0to1: np.ndarray,
    tolerance: float = 0.05,
) -> np.ndarray:
    """Where every pixel of image 0 is in image 1: (H, W, 2) float32, NaN outside, behind a surface, without depth.

    Args:
        tolerance: the depth found there may differ by that share; more is an occlusion.
    """
    height, width = depth0.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    points = np.stack([x, y], -1).reshape(-1, 2)
    warped, _ = warp_depth(points, depth0, matrix0, matrix1, T_0to1, depth1, tolerance)
    return warped.reshape(height, width, 2).astype(np.float32)


def make_pair(
    view0: View,
    view1: View,
    T_0to1: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    tolerance: float = 0.05,
) -> Pair | None:
    """Bring two views to one size, around a place that both see, and compute the correspondence.

    Each image is scaled until it just covers (width, height) and cut to it, centred as far as possible on the two
    projections of one random common point.

    Returns:
        the pair, or None where the views have nothing in common.
    """
    common = _common_point(view0, view1, T_0to1, rng, tolerance)
    if common is None:
        return None
    view0, view1 = (_fit(view, size, centre) for view, centre in zip((view0, view1), common, strict=True))
    back = np.linalg.inv(T_0to1)
    return {
        "image0": cv2.cvtColor(view0.image, cv2.COLOR_BGR2RGB),
        "image1": cv2.cvtColor(view1.image, cv2.COLOR_BGR2RGB),
        "warp01": dense_warp(view0.depth, view1.depth, view0.matrix, view1.matrix, T_0to1, tolerance),
        "warp10": dense_warp(view1.depth, view0.depth, view1.matrix, view0.matrix, back, tolerance),
        "matrix0": view0.matrix.astype(np.float32),
        "matrix1": view1.matrix.astype(np.float32),
        "T_0to1": T_0to1.astype(np.float32),
    }


def _common_point(
    view0: View, view1: View, T_0to1: np.ndarray, rng: np.random.Generator, tolerance: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """One point (2,) of image 0 that is seen in image 1 too, and where."""
    height, width = view0.depth.shape
    points = np.floor(rng.uniform((0, 0), (width, height), (512, 2)))
    warped, valid = warp_depth(points, view0.depth, view0.matrix, view1.matrix, T_0to1, view1.depth, tolerance)
    chosen = np.flatnonzero(valid)
    if not len(chosen):
        return None
    pick = rng.choice(chosen)
    return points[pick], warped[pick]


def _fit(view: View, size: tuple[int, int], centre: np.ndarray) -> View:
    """Scale a view to cover `size` and cut it there, centred on `centre` (source pixels) where the image allows it."""
    height, width = view.image.shape[:2]
    scaled = cover((width, height), size)
    ratio = np.array(scaled) / (width, height)
    wanted = np.rint((centre + 0.5) * ratio - np.array(size) / 2)
    left, top = (int(value) for value in np.clip(wanted, 0, np.array(scaled) - size))
    image, matrix = scale_and_cut(view.image, view.matrix, scaled, (left, top), size)
    # the nearest reading, never a mean of two surfaces
    columns = ((np.arange(left, left + size[0]) + 0.5) / ratio[0]).astype(int)
    rows = ((np.arange(top, top + size[1]) + 0.5) / ratio[1]).astype(int)
    return View(image, view.depth[np.ix_(rows, columns)], matrix)


def register_depth(
    depth: np.ndarray,
    depth_matrix: np.ndarray,
    matrix: np.ndarray,
    depth_to_colour: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Depth of another camera at the pixels of the colour camera: (height, width) float32, 0 = none.

    Every reading is moved and drawn, the nearest wins. Holes of one pixel, which the change of scale leaves, are
    closed.
    """
    y, x = np.nonzero(depth > 0)
    z = depth[y, x].astype(np.float64)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(depth_matrix).T
    points = transform_points(rays * z[:, None], depth_to_colour)
    points = points[points[:, 2] > 1e-3]
    pixels = np.rint((points @ matrix.T)[:, :2] / points[:, 2:]).astype(int)
    inside = ((pixels >= 0) & (pixels < size)).all(1)
    pixels, z = pixels[inside], points[inside, 2]
    registered = np.full((size[1], size[0]), np.inf, np.float32)
    np.minimum.at(registered, (pixels[:, 1], pixels[:, 0]), z.astype(np.float32))
    missing = np.isinf(registered)
    # the far side of the neighbours: a hole between two surfaces is seen past the nearer one
    around = cv2.dilate(np.where(missing, 0, registered), np.ones((3, 3), np.uint8))
    crowded = cv2.boxFilter((~missing).astype(np.float32), -1, (3, 3), normalize=False) >= 5
    return np.where(missing, np.where(crowded, around, 0), registered).astype(np.float32)


def refine_pose(view0: View, view1: View, T_0to1: np.ndarray) -> np.ndarray | None:
    """The relative pose that the images themselves say: SIFT matches with the depth of view 0, PnP with RANSAC.

    Recorded poses of half a degree of error are several pixels off, which is too much for a keypoint.

    Returns:
        (4, 4), or None where there are too few inliers or the result contradicts the recorded pose.
    """
    points0, points1 = _sift_matches(view0.image, view1.image)
    if len(points0) < MIN_INLIERS:
        return None
    height, width = view0.depth.shape
    column, row = np.clip(np.rint(points0), 0, (width - 1, height - 1)).astype(int).T
    z = view0.depth[row, column].astype(np.float64)
    known = z > 0
    if known.sum() < MIN_INLIERS:
        return None
    pixels = np.concatenate([points0, np.ones((len(points0), 1))], 1)[known]
    points = pixels @ np.linalg.inv(view0.matrix).T * z[known, None]
    matrix = np.ascontiguousarray(view1.matrix, np.float64)
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points, points1[known].astype(np.float64), matrix, None, iterationsCount=500, reprojectionError=2.0
    )
    if not found or inliers is None or len(inliers) < max(MIN_INLIERS, MIN_INLIER_SHARE * known.sum()):
        return None
    refined = np.eye(4)
    refined[:3, :3], refined[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
    change = refined @ np.linalg.inv(T_0to1)
    small = rotation_angle(change[:3, :3]) < MAX_CORRECTION_DEG and np.linalg.norm(change[:3, 3]) < MAX_CORRECTION_M
    return refined if small else None


def _sift_matches(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (M, 2) and (M, 2) of SIFT matches that pass the ratio test."""
    sift = cv2.SIFT_create(2000)  # type: ignore[attr-defined]  # missing in OpenCV's stubs
    (keys0, rows0), (keys1, rows1) = (sift.detectAndCompute(image, None) for image in (image0, image1))
    if rows0 is None or rows1 is None or len(keys1) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    nearest = cv2.BFMatcher().knnMatch(rows0, rows1, k=2)
    good = [best for best, second in nearest if best.distance < 0.75 * second.distance]
    points0 = np.array([keys0[match.queryIdx].pt for match in good]).reshape(-1, 2)
    points1 = np.array([keys1[match.trainIdx].pt for match in good]).reshape(-1, 2)
    return points0, points1


class PosedPairs:
    """Pairs of frames of a posed sequence with depth, in the simple folder layout.

    Args:
        folder: see `samfeat_core.sequence`.
        size: (width, height) of the pairs.
        gaps: the second frame is that many frames later: smallest, largest.
        depth_to_colour: (4, 4) from the depth camera, which `calib_depth.txt` describes, to the colour camera;
            None = the same place. `kinect_depth_to_colour()` for 7-Scenes.
        refine: correct each relative pose by the images (`refine_pose`); pairs where that fails are passed over.
        min_common: smallest share of pixels of either image with a counterpart.
        tolerance: see `dense_warp`.
        seed: with the index it determines the pair.

    Raises:
        ValueError: naming the file that is missing or malformed; on indexing, where no usable pair is found.
    """

    def __init__(
        self,
        folder: str | Path,
        size: tuple[int, int] = (320, 240),
        gaps: tuple[int, int] = (3, 10),
        depth_to_colour: np.ndarray | None = None,
        refine: bool = True,
        min_common: float = 0.15,
        tolerance: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.sequence = ImageSequence.read(folder, require=("poses", "depth"))
        self.size, self.refine, self.min_common, self.tolerance = size, refine, min_common, tolerance
        self.depth_to_colour, self.seed = depth_to_colour, seed
        frames = len(self.sequence)
        candidates = [(i, i + gap) for gap in range(gaps[0], gaps[1] + 1) for i in range(frames - gap)]
        if not candidates:
            raise ValueError(f"{folder}: {frames} frames are too few for gaps of {gaps[0]} to {gaps[1]}")
        self.candidates = np.random.default_rng(seed).permutation(candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        for attempt in range(30):
            first, second = self.candidates[index if attempt == 0 else rng.integers(len(self))]
            if rng.random() < 0.5:  # either direction of time
                first, second = second, first
            pair = self._pair(int(first), int(second), rng)
            if pair is not None:
                return pair
        raise ValueError(f"{self.sequence.folder}: no usable pair around index {index} in 30 tries")

    def _pair(self, first: int, second: int, rng: np.random.Generator) -> Pair | None:
        view0, view1 = self.view(first), self.view(second)
        recorded = self.sequence.relative_pose(first, second)
        transform = refine_pose(view0, view1, recorded) if self.refine else recorded
        pair = None if transform is None else make_pair(view0, view1, transform, self.size, rng, self.tolerance)
        return pair if pair is not None and common_share(pair) >= self.min_common else None

    def view(self, index: int) -> View:
        """Frame `index` with its depth at the pixels of its image."""
        sequence = self.sequence
        image = sequence.image(index)
        if self.depth_to_colour is None:
            return View(image, sequence.depth(index), sequence.matrix)
        assert sequence.depth_matrix is not None  # as there is depth
        depth = sequence.raw_depth(index)
        size = (image.shape[1], image.shape[0])
        registered = register_depth(depth, sequence.depth_matrix, sequence.matrix, self.depth_to_colour, size)
        return View(image, registered, sequence.matrix)


def common_share(pair: Pair) -> float:
    """The smaller share of pixels with a counterpart, of the two images."""
    return min(float(np.isfinite(pair[key][..., 0]).mean()) for key in ("warp01", "warp10"))
