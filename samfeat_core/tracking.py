"""Frame-to-frame tracking: matches to the previous frame, their geometric check, and stable track ids."""

from __future__ import annotations

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches
from samfeat_core.matching import match_mutual
from samfeat_core.two_view import epipolar_inliers

# Back-ends of the VINS family carry ids as float32: integers are exact below this.
ID_LIMIT = 2**24


class FrameTracker:
    """Follows keypoints from each frame to the next.

    A track continues through a match that is a geometric inlier (through every match with `verify=False`); every
    other keypoint begins a track under a new id. Ids count up, start again at 0 after `ID_LIMIT` - 1, and never equal
    the id of a living track.

    Tracks restart (new ids, no matches, `Matches.restarted`) with the first frame, after `reset`, when the stamp goes
    back, after a gap longer than `max_gap_s`, and when the image size or the descriptor's dimension changes.

    Args:
        min_similarity, ratio: bounds of `match_mutual`; None = none.
        threshold_px: inlier threshold of `epipolar_inliers` in pixels.
        max_gap_s: longest time between two frames that still continues tracks.
        verify: check matches geometrically. Without it every match counts as an inlier.

    Attributes:
        previous: `Features` of the frame before the one last given, None after a restart.
        track_lengths: (N,) int64 frames that each row of the last frame has been tracked, 1 = new.

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
        self.previous: Features | None = None
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: the next `update` restarts all tracks."""
        self.previous = None
        self._last: Features | None = None
        self._stamp_ns: int | None = None
        self._ids = np.zeros(0, np.int64)
        self.track_lengths = np.zeros(0, np.int64)

    def update(self, features: Features, stamp_ns: int | None = None, camera: Camera | None = None) -> Matches:
        """Match a new frame to the last one and carry the track ids over.

        Args:
            features: of the new frame.
            stamp_ns: its time in nanoseconds; None = unknown, then neither gaps nor loops are noticed.
            camera: intrinsics; with them the geometric check uses the essential matrix, else the fundamental.

        Returns:
            `Matches` of the new frame to the one before.
        """
        restarted = self._must_restart(features, stamp_ns)
        if restarted:
            self.reset()
        self.previous, self._last = self._last, features
        self._stamp_ns = stamp_ns

        index, index_prev, similarity, inlier = self._match(features, camera)
        count = len(features)
        kept, kept_prev = index[inlier], index_prev[inlier]
        ids, lengths = np.full(count, -1, np.int64), np.ones(count, np.int64)
        ids[kept] = self._ids[kept_prev]
        lengths[kept] += self.track_lengths[kept_prev]
        ids[ids < 0] = self._new_ids(count - len(kept), alive=ids[kept])
        self._ids, self.track_lengths = ids, lengths
        return Matches(index, index_prev, similarity, inlier, ids, restarted)

    def _must_restart(self, features: Features, stamp_ns: int | None) -> bool:
        if self._last is None or features.image_size != self._last.image_size:
            return True
        if features.descriptors.shape[1] != self._last.descriptors.shape[1]:
            return True
        if stamp_ns is None or self._stamp_ns is None:
            return False
        return not 0 <= stamp_ns - self._stamp_ns <= self.max_gap_s * 1e9

    def _match(
        self, features: Features, camera: Camera | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        before = self.previous or Features.empty(features.image_size, features.descriptors.shape[1])
        index, index_prev, similarity = match_mutual(
            features.matchable, before.matchable, self.min_similarity, self.ratio
        )
        if not self.verify:
            return index, index_prev, similarity, np.ones(len(index), bool)
        inlier = epipolar_inliers(before.keypoints[index_prev], features.keypoints[index], camera, self.threshold_px)
        return index, index_prev, similarity, inlier

    def _new_ids(self, count: int, alive: np.ndarray) -> np.ndarray:
        """`count` ids that no living track carries, counting on from the last one."""
        candidates = (self._next_id + np.arange(count + len(alive))) % ID_LIMIT
        fresh = candidates[~np.isin(candidates, alive)][:count]
        if count:
            self._next_id = int(fresh[-1] + 1) % ID_LIMIT
        return fresh
