"""The teacher store: the one format that every teacher writes and training reads.

A `training.data.photo_store` folder (format "samfeat teacher") whose entries hold, for a photograph of W x H pixels,

    groups     (K, H, W) uint16         K alternative label maps (K annotators; 1 from SAM): 1..n, 0 = no group
    edges      (K, H, ceil(W/8)) uint8  the border maps of the K, 8 pixels a byte along x (numpy.packbits)
    embedding  (256, 64, 64) float16    SAM's image embedding, where the teacher has one
    meta       JSON string              photo (file name), version (of the format), width, height, teacher, sources (K)

The embedding covers the square of side S = max(W, H) whose top-left part is the photograph, as SAM pads it: pixel p
is at (p + 0.5) * 64 / S - 0.5. Pixels are those of the photograph turned as its EXIF tag says, as OpenCV reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.data.photo_store import PhotoStore

FORMAT = "samfeat teacher"


@dataclass(frozen=True)
class TeacherEntry:
    """What the teacher says about one photograph.

    Attributes:
        groups: (K, H, W) uint16 label maps, 0 = no group. With several, draw one per epoch, or the same one always.
        edges: (K, H, W) bool, the border map of each.
        embedding: (256, 64, 64) float16, or None.
        teacher: who made it, e.g. "sam vit_h" or "annotations".
        sources: where each of the K maps comes from.
    """

    groups: np.ndarray
    edges: np.ndarray
    embedding: np.ndarray | None = None
    teacher: str = ""
    sources: tuple[str, ...] = field(default=())

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the photograph in pixels."""
        return self.groups.shape[2], self.groups.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays as stored."""
        stored = {"groups": self.groups, "edges": np.packbits(self.edges, axis=-1)}
        return stored if self.embedding is None else {**stored, "embedding": self.embedding}

    def meta(self) -> dict[str, object]:
        """The metadata as stored."""
        width, height = self.image_size
        return {"width": width, "height": height, "teacher": self.teacher, "sources": list(self.sources)}


class TeacherStore(PhotoStore):
    """A folder of teacher entries."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, FORMAT)

    def entry(self, name: str, embedding: bool = True) -> TeacherEntry:
        """The entry of a photograph; `embedding=False` leaves out the 2 MB of it.

        Raises:
            StoreError: no such entry, or not readable.
        """
        keys = ("groups", "edges", "embedding") if embedding else ("groups", "edges")
        arrays, meta = self.read(name, *keys)
        with self.parsing(name):
            groups = arrays["groups"]
            edges = np.unpackbits(arrays["edges"], axis=-1, count=groups.shape[2]).astype(bool)
            sources = tuple(str(source) for source in meta["sources"])  # type: ignore[attr-defined]
            return TeacherEntry(groups, edges, arrays.get("embedding"), str(meta["teacher"]), sources)


def borders(labels: np.ndarray) -> np.ndarray:
    """The pixels of (..., H, W) labels or masks that have a 4-neighbour of another value: lines two pixels wide.

    Both sides of a border count, so that the line is centred on it. The image frame is no border.
    """
    edge = np.zeros(labels.shape, bool)
    across = labels[..., :, 1:] != labels[..., :, :-1]
    down = labels[..., 1:, :] != labels[..., :-1, :]
    edge[..., :, 1:] |= across
    edge[..., :, :-1] |= across
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down
    return edge


def compact(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered 1..n as uint16, in the order of their ids; 0 stays 0. For ids below 65,536."""
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    number = np.cumsum(present)
    number[0] = 0
    return number.astype(np.uint16)[labels]
