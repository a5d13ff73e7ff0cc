"""The state of many tracks, one array per attribute."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(eq=False)
class TrackTable:
    """N tracks.

    Attributes:
        ids: (N,) int64.
        points: (N, 2) float32 pixels in the frame in which the track was last seen.
        descriptors: (N, D) float32 unit rows, of the keypoint that was last detected there.
        scores, weights: (N,) float32 of that keypoint.
        lengths: (N,) int64 frames in which the track was seen.
        unconfirmed: (N,) int64 frames since a keypoint was last detected there.
        slots: (N,) int64 of the reference patch, -1 = none.
        trust: (N,) float32 correlation with the reference in the frame in which the track was last seen.
        seen: (N,) int64 number of that frame.
    """

    ids: np.ndarray
    points: np.ndarray
    descriptors: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    unconfirmed: np.ndarray
    slots: np.ndarray
    trust: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def empty(dim: int) -> TrackTable:
        """No tracks, with descriptors of that dimension."""
        none, number = np.zeros(0, np.float32), np.zeros(0, np.int64)
        return TrackTable(
            number, np.zeros((0, 2), np.float32), np.zeros((0, dim), np.float32), none, none, number, number, number,
            none, number,
        )  # fmt: skip

    def matchable_at(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32: descriptors of those rows times their weights."""
        return self.descriptors[rows] * self.weights[rows, None]

    def take(self, rows: np.ndarray) -> TrackTable:
        """A copy of those rows."""
        return TrackTable(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def join(*tables: TrackTable) -> TrackTable:
        """All rows, one table after the other."""
        return TrackTable(*(np.concatenate([getattr(t, field.name) for t in tables]) for field in fields(TrackTable)))
