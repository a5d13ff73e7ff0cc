"""The feature store: what an extractor finds in photographs, for a network to imitate.

A `training.data.photo_store` folder (format "samfeat reference features") whose entries hold, for n keypoints of all
octaves,

    keypoints    (n, 2) float32  x, y in pixels of the photograph
    scores       (n,) float32    the extractor's own, in [0, 1]
    octaves      (n,) uint8      o: found in the photograph reduced 2^o times, after it was reduced to the store's
                                 setting `long_side` where it was larger
    descriptors  (n, D) float16  unit rows
    meta         JSON string     photo (file name), version (of the format), width, height, extractor
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from samfeat_core.classic import Extractor
from samfeat_core.features import Features
from training.data.photo_store import PhotoStore, SkipPhoto, StoreError

FORMAT = "samfeat reference features"
FORMER_FORMAT = "samfeat example features"  # of stores that were begun before 0.2.0; the entries are the same
SMALLEST = 64  # pixels on the shorter side of an octave


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of one photograph; see the module for the arrays."""

    keypoints: np.ndarray
    scores: np.ndarray
    octaves: np.ndarray
    descriptors: np.ndarray
    image_size: tuple[int, int]


class FeatureStore(PhotoStore):
    """A folder of reference features."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, FORMAT, FORMER_FORMAT)

    def features(self, name: str) -> ReferenceFeatures:
        """The features of a photograph.

        Raises:
            StoreError: no such entry, or not readable.
        """
        arrays, meta = self.read(name)
        with self.parsing(name):
            size = int(meta["width"]), int(meta["height"])  # type: ignore[call-overload]
            keypoints, scores = arrays["keypoints"], arrays["scores"]
            return ReferenceFeatures(keypoints, scores, arrays["octaves"], arrays["descriptors"], size)

    def pixel_width(self, octave: int, size: tuple[int, int]) -> float:
        """Width of an octave's pixels, in pixels of the photograph of that (width, height)."""
        return 1 / scale_of(octave, size, self._long_side)

    @cached_property
    def _long_side(self) -> float:
        return float(self.settings().get("long_side", math.inf))  # type: ignore[arg-type]


def scale_of(octave: int, size: tuple[int, int], long_side: float) -> float:
    """By what a photograph of that (width, height) is multiplied for an octave, in a store of that setting."""
    return min(1.0, long_side / max(size)) / 2**octave


def pack(features: ReferenceFeatures, extractor: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """An entry's arrays and meta, as `training.data.photo_store.fill` writes them."""
    width, height = features.image_size
    arrays: dict[str, np.ndarray] = {
        "keypoints": features.keypoints.astype(np.float32),
        "scores": features.scores.astype(np.float32),
        "octaves": features.octaves.astype(np.uint8),
        "descriptors": features.descriptors.astype(np.float16),
    }
    return arrays, {"width": width, "height": height, "extractor": extractor}


def look(image: np.ndarray, extractor: Extractor, octaves: int, long_side: int) -> ReferenceFeatures:
    """What the extractor finds in a photograph (H, W, 3) BGR uint8 and in its halves.

    Args:
        long_side: a larger photograph is reduced to it first.

    Raises:
        SkipPhoto: the photograph is too small.
        StoreError: the extractor's scores are no probabilities.
    """
    height, width = image.shape[:2]
    parts: list[Features] = []
    for octave in range(octaves):
        scale = scale_of(octave, (width, height), long_side)
        if min(height, width) * scale < SMALLEST:
            break
        reduced = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = extractor(reduced)
        if len(found) and not (found.scores.min() >= 0 and found.scores.max() <= 1):
            raise StoreError(f"the extractor's scores reach {np.abs(found.scores).max():g}, expected to be in [0, 1]")
        ratio = np.array((width / reduced.shape[1], height / reduced.shape[0]), np.float32)
        at = (found.keypoints + 0.5) * ratio - 0.5
        parts.append(Features(at.astype(np.float32), found.scores, found.descriptors, (width, height)))
    if not parts:
        raise SkipPhoto(f"{width}x{height} pixels are too few: at least {SMALLEST} on each side")
    return ReferenceFeatures(
        np.concatenate([part.keypoints for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([np.full(len(part), octave) for octave, part in enumerate(parts)]),
        np.concatenate([part.descriptors for part in parts]),
        (width, height),
    )
