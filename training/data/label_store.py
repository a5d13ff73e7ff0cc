"""The label store: keypoints per photograph.

A `training.data.photo_store` folder (format "samfeat keypoint labels") whose entries hold

    keypoints  (n, 2) float32  x, y in pixels of the photograph, rows by descending score
    scores     (n,) float32    in (0, 1]: in which share of the warped views the point was found
    meta       JSON string     photo (file name), version (of the format), width, height, base (the detector)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.photo_store import PhotoStore

FORMAT = "samfeat keypoint labels"


@dataclass(frozen=True)
class KeypointLabels:
    """Labelled keypoints of one photograph; see the module for the arrays.

    Attributes:
        image_size: (width, height) of the photograph in pixels.
        base: the detector under homographic adaptation.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    image_size: tuple[int, int]
    base: str = ""


class LabelStore(PhotoStore):
    """A folder of keypoint labels."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, FORMAT)

    def put(self, name: str, labels: KeypointLabels) -> None:
        """Writes an entry. StoreError: see `PhotoStore.write`."""
        self.write(name, *pack(labels))

    def labels(self, name: str) -> KeypointLabels:
        """The labels of a photograph.

        Raises:
            StoreError: no such entry, or not readable.
        """
        arrays, meta = self.read(name)
        with self.parsing(name):
            size = int(meta["width"]), int(meta["height"])  # type: ignore[call-overload]
            return KeypointLabels(arrays["keypoints"], arrays["scores"], size, str(meta["base"]))


def pack(labels: KeypointLabels) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """An entry's arrays and meta, as `training.data.photo_store.fill` writes them."""
    width, height = labels.image_size
    arrays = {"keypoints": labels.keypoints.astype(np.float32), "scores": labels.scores.astype(np.float32)}
    return arrays, {"width": width, "height": height, "base": labels.base}
