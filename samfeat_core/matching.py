"""Mutual-nearest-neighbour matching: of everything by one matrix product, or of what is near by a compiled loop."""

from __future__ import annotations

import cv2
import numpy as np

from samfeat_core.compiled import compiled

_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def match_mutual(
    descriptors: np.ndarray,
    descriptors_prev: np.ndarray,
    min_similarity: float | None = None,
    ratio: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match rows that are each other's nearest neighbour by dot product.

    Args:
        descriptors: (N, D) float32 rows of the current frame: unit length, or unit length times a weight.
        descriptors_prev: (M, D) float32 rows of the previous frame.
        min_similarity: keep matches whose dot product is at least this.
        ratio: Lowe's bound in (0, 1]: keep a match if its distance is below `ratio` times the distance to the second
            best previous row.

    Returns:
        index (K,) int64 ascending, index_prev (K,) int64, similarity (K,) float32. No row appears twice.

    Raises:
        ValueError: the arrays are not 2-D with the same D, or `ratio` is outside (0, 1].
    """
    current = np.ascontiguousarray(descriptors, dtype=np.float32)
    previous = np.ascontiguousarray(descriptors_prev, dtype=np.float32)
    if current.ndim != 2 or previous.ndim != 2 or current.shape[1] != previous.shape[1]:
        raise ValueError(
            f"descriptors must be (N, D) and (M, D) with the same D, got {current.shape} and {previous.shape}"
        )
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    if not len(current) or not len(previous):
        return _NONE

    # Not NumPy's product: the threads of its OpenBLAS spin on after it and take cores from the next frame's network.
    nothing = np.zeros((0, 0), np.float32)
    similarity = cv2.gemm(current, previous, 1, nothing, 0, flags=cv2.GEMM_2_T)
    # Rows that are not numbers must not take the others with them.
    similarity[~np.isfinite(current.sum(axis=1))] = -np.inf
    similarity[:, ~np.isfinite(previous.sum(axis=1))] = -np.inf
    rows = np.arange(len(current))
    best = similarity.argmax(axis=1)
    value = similarity[rows, best]
    # The maximum of a column is much cheaper than its argmax; equality with it means the same.
    keep = value == similarity.max(axis=0)[best]
    keep &= value > -np.inf
    keep &= _first_claim(best, keep, len(previous))
    if min_similarity is not None:
        keep &= value >= min_similarity
    if ratio is not None and len(previous) > 1:
        similarity[rows, best] = -np.inf
        second = similarity.argmax(axis=1)
        distance = _squared_distance(current, previous[best], value)
        distance_second = _squared_distance(current, previous[second], similarity[rows, second])
        keep &= distance < ratio * ratio * distance_second
    index = np.flatnonzero(keep)
    return index, best[index], value[index]


def _first_claim(best: np.ndarray, keep: np.ndarray, count_prev: int) -> np.ndarray:
    """True for the first kept row that points at each previous row: exact duplicates may tie for one."""
    owner = np.full(count_prev, -1)
    claims = np.flatnonzero(keep)[::-1]
    owner[best[claims]] = claims
    return owner[best] == np.arange(len(best))


def _squared_distance(a: np.ndarray, b: np.ndarray, dot: np.ndarray) -> np.ndarray:
    return np.maximum(np.einsum("nd,nd->n", a, a) + np.einsum("nd,nd->n", b, b) - 2 * dot, 0)


def match_nearby(
    descriptors: np.ndarray,
    points: np.ndarray,
    descriptors_prev: np.ndarray,
    expected: np.ndarray,
    reach: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Match rows that are each other's nearest neighbour by dot product, among those that lie within reach.

    Args:
        descriptors: (N, D) float32 rows of the current frame.
        points: (N, 2) float32 where they are.
        descriptors_prev: (M, D) float32 rows of previous frames.
        expected: (M, 2) float32 where these should be by now; NaN = nowhere.
        reach: (M,) float32 pixels around there.

    Returns:
        index (K,) int64 and index_prev (K,) int64 ascending. No row appears twice.
    """
    best = np.full(len(expected), -1, np.int64)
    by_height = np.argsort(points[:, 1], kind="stable")
    sorted_points, sorted_descriptors = points[by_height], descriptors[by_height]
    first = np.searchsorted(sorted_points[:, 1], expected[:, 1] - reach)
    _best_nearby(
        sorted_descriptors, sorted_points, np.ascontiguousarray(descriptors_prev), expected, reach, first, best
    )
    matched = np.flatnonzero(best >= 0)
    return by_height[best[matched]], matched


@compiled
def _best_nearby(descriptors, points, descriptors_prev, expected, reach, first, best):
    """The partner of each previous row into best (M,), -1 = none.

    Points (N, 2) ascend in y; from row first (M,) on they are within reach of a previous row, or below it.
    """
    owner = np.full(len(points), -1)
    highest = np.full(len(points), -np.inf)
    for m in range(len(expected)):
        most = -np.inf
        for n in range(first[m], len(points)):
            x, y = points[n, 0] - expected[m, 0], points[n, 1] - expected[m, 1]
            if y > reach[m]:
                break
            if x * x + y * y < reach[m] * reach[m]:
                similarity = np.float32(0)
                for d in range(descriptors.shape[1]):
                    similarity += descriptors[n, d] * descriptors_prev[m, d]
                if similarity > most:
                    best[m], most = n, similarity
                if similarity > highest[n]:
                    owner[n], highest[n] = m, similarity
    for m in range(len(expected)):
        if best[m] >= 0 and owner[best[m]] != m:
            best[m] = -1
