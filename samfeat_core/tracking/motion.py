"""Where points are expected: the motion of their neighbours, and what lies near what in an image."""

from __future__ import annotations

import cv2
import numpy as np

from samfeat_core.compiled import compiled

CELLS = 16  # of the motion field along the longer side of the image
BLUR = 1.5  # cells, deviation of the Gaussian by which neighbours count


def interpolate_motion(points: np.ndarray, motion: np.ndarray, at: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) float32 motion at points (N, 2), from the motion (M, 2) of M >= 1 points (M, 2) around them.

    A weighted mean of the neighbours, the nearer the more: sums over cells of the (width, height) image, blurred.
    """
    cell = max(size) / CELLS
    columns, lines = (int(side / cell) + 1 for side in size)
    known, asked = (np.clip((part / cell).astype(np.int64), 0, (columns - 1, lines - 1)) for part in (points, at))
    index = known[:, 1] * columns + known[:, 0]
    sums = [np.bincount(index, weights, columns * lines) for weights in (np.ones(len(points)), *motion.T)]
    field = np.stack(sums, axis=1).reshape(lines, columns, 3)
    blurred = cv2.GaussianBlur(field, (0, 0), BLUR, borderType=cv2.BORDER_CONSTANT)
    count, dx, dy = blurred[asked[:, 1], asked[:, 0]].T
    # Far from all neighbours the blurred count vanishes, and the mean of all takes over.
    little = 1e-6
    mean = motion.mean(axis=0)
    return (np.stack([dx + little * mean[0], dy + little * mean[1]], 1) / (count + little)[:, None]).astype(np.float32)


def nearest_within(points: np.ndarray, keypoints: np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    """(N,) row of the keypoint (K, 2) nearest to each point (N, 2), -1 where none is within the radius in pixels.

    No keypoint is given to two points: the nearer one gets it.
    """
    reach = int(np.ceil(radius + 1))
    width, height = size
    # A picture of the keypoints' rows, with a margin: who is near is read from the pixels around a point.
    picture = np.full((height + 2 * reach, width + 2 * reach), -1, np.int32)
    at = pixels(keypoints, size) + reach
    picture[at[::-1, 1], at[::-1, 0]] = np.arange(len(keypoints))[::-1]  # of two in one pixel the stronger stays
    nearest = np.full(len(points), -1, np.int64)
    _nearest(points, pixels(points, size), keypoints, picture, radius, nearest)
    return nearest


@compiled
def _nearest(points, centres, keypoints, picture, radius, nearest):
    """`nearest_within` into `nearest` (N,); centres (N, 2) are the points' pixels, without the picture's margin."""
    owner = np.full(len(keypoints), -1)  # the point that has a keypoint
    distance = np.empty(len(points))
    side = 2 * int(np.ceil(radius + 1)) + 1
    for n in range(len(points)):
        best, least = -1, np.inf
        for line in range(centres[n, 1], centres[n, 1] + side):
            for column in range(centres[n, 0], centres[n, 0] + side):
                row = picture[line, column]
                if row >= 0:
                    apart = np.hypot(keypoints[row, 0] - points[n, 0], keypoints[row, 1] - points[n, 1])
                    if apart < least:
                        best, least = row, apart
        if best < 0 or least > radius or (owner[best] >= 0 and distance[owner[best]] <= least):
            continue
        if owner[best] >= 0:
            nearest[owner[best]] = -1
        owner[best], nearest[n], distance[n] = n, best, least


def far_from(points: np.ndarray, others: np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    """(N,) bool: no other point (M, 2) is within the radius in pixels of a point (N, 2), to the pixel."""
    if radius <= 0 or not len(others):
        return np.ones(len(points), bool)
    reach, (width, height) = int(radius), size
    near = np.zeros((height + 2 * reach, width + 2 * reach), np.uint8)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    _stamp(near, pixels(others, size), disk)
    at = pixels(points, size) + reach
    return near[at[:, 1], at[:, 0]] == 0


@compiled
def _stamp(picture, at, disk):
    """Set the disk's ones in the picture, with its top left corner at each of these pixels (N, 2)."""
    for n in range(len(at)):
        for line in range(disk.shape[0]):
            for column in range(disk.shape[1]):
                picture[at[n, 1] + line, at[n, 0] + column] |= disk[line, column]


def remaining(count: int, *rows: np.ndarray) -> np.ndarray:
    """The numbers below count that are in none of these arrays, ascending; negative numbers are nobody's."""
    free = np.ones(count, bool)
    for some in rows:
        free[some[some >= 0]] = False
    return np.flatnonzero(free)


def spread_evenly(points: np.ndarray, others: np.ndarray, cells: int, size: tuple[int, int]) -> np.ndarray:
    """(N,) rows of points (N, 2) in the order that fills a grid evenly, beside the other points (M, 2) there already.

    Args:
        points: strongest first.
        cells: of the grid along either side of the (width, height) image.
    """
    index, taken = (
        np.clip((part * cells / np.array(size)).astype(np.int64), 0, cells - 1) @ (1, cells)
        for part in (points, others)
    )
    by_cell = np.argsort(index, kind="stable")
    begins = np.searchsorted(index[by_cell], np.arange(cells * cells))
    rank = np.empty(len(points), np.int64)
    rank[by_cell] = np.arange(len(points)) - begins[index[by_cell]]
    rank += np.bincount(taken, minlength=cells * cells)[index]
    return np.argsort(rank, kind="stable")


def pixels(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) int64 pixels (x, y) of points (N, 2), clipped into the (width, height) image."""
    return np.clip(np.rint(points), 0, (size[0] - 1, size[1] - 1)).astype(np.int64)


def inside(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(N,) bool: points (N, 2) lie between the outermost pixel centres of the (width, height) image; NaN does not."""
    return np.asarray((points >= 0).all(axis=1) & (points <= np.array(size, np.float32) - 1).all(axis=1))


def first_at_pixel(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,) bool: no earlier point (N, 2) is in the same pixel."""
    at = pixels(points, size)
    first = np.zeros(len(points), bool)
    first[np.unique(at[:, 1] * size[0] + at[:, 0], return_index=True)[1]] = True
    return first


def allowed(points: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """(N,) bool: the mask (H, W) is not 0 at these points (N, 2)."""
    if mask is None:
        return np.ones(len(points), bool)
    at = pixels(points, size)
    return mask[at[:, 1], at[:, 0]] > 0
