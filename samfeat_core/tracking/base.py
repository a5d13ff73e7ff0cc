"""What all trackers share: when tracks restart, how ids are given, and what a frame's answer holds."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches

# Back-ends of the VINS family carry ids as float32: integers are exact below this.
ID_LIMIT = 2**24

# Where the position of a row comes from (`Matches.source`).
DETECTED, FOLLOWED, RECOVERED = 0, 1, 2
SOURCES = ("detected", "followed", "recovered")


class Tracker(ABC):
    """Carries points and their ids from each frame to the next.

    Tracks restart (new ids, no matches, `Matches.restarted`) with the first frame, after `reset`, when the stamp goes
    back, after a gap longer than `max_gap_s`, and when the image size or the descriptor's dimension changes. Ids count
    up, start again at 0 after `ID_LIMIT` - 1, and never equal the id of a living track.

    Args:
        min_similarity, ratio: bounds of `match_mutual`; None = none.
        threshold_px: inlier threshold of `epipolar_inliers` in pixels.
        max_gap_s: longest time between two frames that still continues tracks.
        verify: check matches geometrically. Without it every match counts as an inlier.

    Attributes:
        current: rows of the frame last given, None before the first. Track ids, sources and lengths in `Matches` are
            of these rows.
        previous: rows of the frame before, None after a restart.

    Raises:
        ValueError: a bound is outside its range.
    """

    def __init__(
        self,
        min_similarity: float | None = None,
        ratio: float | None = None,
        threshold_px: float = 1.5,
        max_gap_s: float = 1.0,
        verify: bool = True,
    ) -> None:
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
        if not threshold_px > 0:
            raise ValueError(f"threshold_px must be positive, got {threshold_px}")
        if not max_gap_s > 0:
            raise ValueError(f"max_gap_s must be positive, got {max_gap_s}")
        self.min_similarity = min_similarity
        self.ratio = ratio
        self.threshold_px = threshold_px
        self.max_gap_s = max_gap_s
        self.verify = verify
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next `update` restarts all tracks."""
        self.previous: Features | None = None
        self.current: Features | None = None
        self._stamp_ns: int | None = None
        self._forget()

    def update(
        self,
        features: Features,
        stamp_ns: int | None = None,
        camera: Camera | None = None,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> Matches:
        """Continue the tracks into a new frame.

        Args:
            features: what the network found in the frame.
            stamp_ns: its time in nanoseconds; None = unknown, then neither gaps nor loops are noticed.
            camera: intrinsics; with them the geometric check uses the essential matrix, else the fundamental.
            image: (H, W) grey or (H, W, 3) BGR uint8, the frame itself, for trackers that follow points in images.
            mask: (H, W) uint8, 0 = no points here; for the same trackers.

        Returns:
            `Matches` of the rows of `current` to those of `previous`.
        """
        restarted = self._must_restart(features, stamp_ns)
        if restarted:
            self.reset()
        self.previous, self.current = self.current, None
        self._stamp_ns = stamp_ns
        self.current, matches = self._continue(features, camera, image, mask, restarted)
        return matches

    @abstractmethod
    def _continue(
        self,
        features: Features,
        camera: Camera | None,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        restarted: bool,
    ) -> tuple[Features, Matches]:
        """The rows of the new frame, and their matches to the rows of `previous`."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop the state of the tracker."""

    def _must_restart(self, features: Features, stamp_ns: int | None) -> bool:
        last = self.current
        if last is None or features.image_size != last.image_size:
            return True
        if features.descriptors.shape[1] != last.descriptors.shape[1]:
            return True
        if stamp_ns is None or self._stamp_ns is None:
            return False
        return not 0 <= stamp_ns - self._stamp_ns <= self.max_gap_s * 1e9

    def _new_ids(self, count: int, alive: np.ndarray) -> np.ndarray:
        """`count` ids that no living track carries, counting on from the last one."""
        candidates = (self._next_id + np.arange(count + len(alive))) % ID_LIMIT
        fresh = candidates[~np.isin(candidates, alive)][:count]
        if count:
            self._next_id = int(fresh[-1] + 1) % ID_LIMIT
        return fresh
