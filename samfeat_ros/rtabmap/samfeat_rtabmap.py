"""Learned features inside rtabmap, as its external Python detector and matcher.

One file serves both sides, because rtabmap imports it by name and calls `init` once for each:

    rtabmap --Vis/FeatureType 15 --Kp/DetectorStrategy 15 --PyDetector/Path <this file> --PyDetector/Cuda true
            --Vis/CorNNType 6 --PyMatcher/Path <this file>

rtabmap passes no options to a detector: the environment variables SAMFEAT_MODEL, SAMFEAT_WEIGHTS, SAMFEAT_ENGINE and
SAMFEAT_MAX_KEYPOINTS do. They mean what the node's parameters of these names mean. PyMatcher/Threshold is the smallest
similarity of a match; PyMatcher/Iterations and PyMatcher/Model have no meaning here.

The interpreter that rtabmap embeds must find samfeat_core: source the workspace, or set PYTHONPATH.
"""

from __future__ import annotations

import os
from threading import Lock

import numpy as np

from samfeat_core.extractor import FeatureExtractor
from samfeat_core.matching import match_mutual

# rtabmap makes a detector for odometry and one for the map of this one module, and calls them from two threads.
_lock = Lock()
_extractor: FeatureExtractor | None = None
_extractor_on: bool | None = None
_min_similarity: float | None = None


def init(*arguments: int | float | str) -> None:
    """Called by rtabmap: `init(cuda)` of the detector, `init(dim, threshold, iterations, cuda, model)` of the matcher.

    Raises:
        TypeError: neither of the two.
        SamfeatError: weights or engine cannot be had.
    """
    if len(arguments) == 1:
        _init_detector(bool(arguments[0]))
    elif len(arguments) == 5:
        _init_matcher(float(arguments[1]))
    else:
        raise TypeError(f"init takes 1 argument (detector) or 5 (matcher), got {len(arguments)}")


def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of one image.

    Args:
        image: (H, W) uint8 grey.

    Returns:
        (N, 3) float32 x, y, score, and (N, D) float32 descriptors (unit rows times their attention weight).
    """
    if _extractor is None:
        raise RuntimeError("detect was called before init(cuda)")
    # rtabmap owns the buffer and reads the answers as C arrays.
    with _lock:
        features = _extractor(np.array(image, np.uint8))
    keypoints = np.column_stack([features.keypoints, features.scores])
    return np.ascontiguousarray(keypoints, np.float32), np.ascontiguousarray(features.matchable, np.float32)


def match(
    keypoints_from: np.ndarray,
    keypoints_to: np.ndarray,
    scores_from: np.ndarray,
    scores_to: np.ndarray,
    descriptors_from: np.ndarray,
    descriptors_to: np.ndarray,
    width: int,
    height: int,
) -> np.ndarray:
    """Mutual nearest neighbours of two images' descriptors as `detect` gave them.

    Args:
        descriptors_from, descriptors_to: (N, D) and (M, D) float32; the other arguments do not matter here.

    Returns:
        (K, 2) int64 rows (from, to).
    """
    index, index_to, _ = match_mutual(
        np.array(descriptors_from, np.float32), np.array(descriptors_to, np.float32), _min_similarity
    )
    # int64: rtabmap reads uint64 twice.
    return np.ascontiguousarray(np.column_stack([index, index_to]), np.int64)


def _init_detector(cuda: bool) -> None:
    global _extractor, _extractor_on
    if _extractor_on == cuda:
        return
    _extractor = FeatureExtractor.from_pretrained(
        os.environ.get("SAMFEAT_MODEL", "samfeat-nano"),
        device="auto" if cuda else "cpu",
        engine=os.environ.get("SAMFEAT_ENGINE", "auto"),
        max_keypoints=int(os.environ.get("SAMFEAT_MAX_KEYPOINTS", "1024")),
        weights=os.environ.get("SAMFEAT_WEIGHTS") or None,
        log=lambda level, text: print(f"samfeat {level}: {text}", flush=True),
    )
    _extractor_on = cuda


def _init_matcher(threshold: float) -> None:
    global _min_similarity
    _min_similarity = threshold
