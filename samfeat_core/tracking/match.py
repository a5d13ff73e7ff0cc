"""Frame-to-frame tracking: matches to the previous frame, their geometric check, and stable track ids."""

from __future__ import annotations

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches
from samfeat_core.matching import match_mutual
from samfeat_core.tracking.base import DETECTED, Tracker
from samfeat_core.two_view import epipolar_inliers


class MatchTracker(Tracker):
    """Mutual nearest neighbours from each frame to the next; rows are the keypoints of the network.

    A track continues through a match that is a geometric inlier (through every match with `verify=False`); every
    other keypoint begins a track under a new id.
    """

    def _forget(self) -> None:
        self._ids = np.zeros(0, np.int64)
        self._lengths = np.zeros(0, np.int64)

    def _continue(
        self,
        features: Features,
        camera: Camera | None,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        restarted: bool,
    ) -> tuple[Features, Matches]:
        index, index_prev, similarity, inlier = self._match(features, camera)
        count = len(features)
        kept, kept_prev = index[inlier], index_prev[inlier]
        ids, lengths = np.full(count, -1, np.int64), np.ones(count, np.int64)
        ids[kept] = self._ids[kept_prev]
        lengths[kept] += self._lengths[kept_prev]
        ids[ids < 0] = self._new_ids(count - len(kept), alive=ids[kept])
        self._ids, self._lengths = ids, lengths
        sources = np.full(count, DETECTED, np.uint8)
        return features, Matches(index, index_prev, similarity, inlier, ids, restarted, lengths, sources)

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
