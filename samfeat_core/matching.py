"""Mutual-nearest-neighbour matching: one matrix product, everything else vectorised."""

from __future__ import annotations

import cv2
import numpy as np

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
