"""The memory of a tracker: tracks that were lost, where they should be by now, and how they are found again."""

from __future__ import annotations

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features
from samfeat_core.matching import match_mutual, match_nearby
from samfeat_core.tracking.motion import allowed, far_from, first_at_pixel, inside, interpolate_motion, remaining
from samfeat_core.tracking.patches import ReferencePatches
from samfeat_core.tracking.table import TrackTable
from samfeat_core.two_view import epipolar_inliers

LEAST_NEIGHBOURS = 8  # whose motion predicts that of others
LEAST_CORRELATION = 0.8  # with the reference patch, of a track that is taken back
PATCH_REACH_PX = 2.0  # a patch may move a track this far from where it is expected
STEPS = 3  # of its alignment: the view has changed more than from one frame to the next
REACH_PX, REACH = 10.0, 0.5  # a keypoint may be this far from there: pixels, and a share of the expected motion
GROUPS = 1  # frames whose lost tracks are checked at a time: each takes a millisecond
SUPPORT = 200  # visible tracks that say what the motion was

History = dict[int, tuple[np.ndarray, np.ndarray]]  # frame number -> ids (N,) and points (N, 2) of its tracks


def reach_around(expected: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(N,) pixels around the expected places (N, 2) of points last seen at (N, 2), in which they may be."""
    return np.asarray(REACH_PX + REACH * np.linalg.norm(last - expected, axis=1))


def near_expected(points: np.ndarray, expected: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, 2) may be those that are expected at (N, 2) and were last seen at (N, 2); NaN may not."""
    return np.asarray(np.linalg.norm(points - expected, axis=1) < reach_around(expected, last))


class Memory:
    """Lost tracks.

    Attributes:
        tracks: the lost ones, the newest first; `points` is where each was last seen, in frame `seen`.
    """

    def __init__(self, patches: ReferencePatches, dim: int) -> None:
        self.tracks = TrackTable.empty(dim)
        self._expected = np.zeros((0, 2), np.float32)  # in the last frame; NaN = unknown
        self._patches = patches

    def keep(self, ended: TrackTable, oldest: int, most: int) -> None:
        """Take in tracks of the last frame; forget those last seen before frame `oldest`, and those beyond `most`."""
        everyone = TrackTable.join(ended, self.tracks)
        expected = np.concatenate([ended.points, self._expected])
        kept = (everyone.seen >= oldest) & (np.arange(len(everyone)) < most)
        self._patches.free(everyone.slots[~kept])
        self.tracks, self._expected = everyone.take(np.flatnonzero(kept)), expected[kept]

    def move_along(self, before: np.ndarray, now: np.ndarray, size: tuple[int, int]) -> None:
        """Lost tracks move as their visible neighbours: from points (M, 2) of the last frame to those of this one."""
        if len(before) < LEAST_NEIGHBOURS:
            self._expected[:] = np.nan
        elif len(self.tracks):
            known = np.flatnonzero(np.isfinite(self._expected[:, 0]))
            at = self._expected[known]
            self._expected[known] = at + interpolate_motion(before, now - before, at, size)

    def find(
        self,
        number: int,
        features: Features,
        free: np.ndarray,
        grey: np.ndarray,
        visible: TrackTable,
        history: History,
        camera: Camera | None,
        threshold_px: float,
        spacing: float,
        mask: np.ndarray | None,
        most: int,
        by_patch: bool,
    ) -> tuple[TrackTable, np.ndarray]:
        """Tracks that frame `number` shows again; they leave the memory.

        A keypoint with the track's descriptor and patch brings it back where it may be, see `_plausible`; so does the
        patch alone, at the expected place.

        Args:
            free: (F,) rows of `features` that belong to no track.
            grey: (H, W) uint8, the image.
            visible: the tracks that went on.
            history: of the frames before.
            threshold_px: epipolar inlier threshold.
            spacing: pixels that a track found by its patch keeps from all others.
            mask: (H, W) uint8, 0 = no points here; None = anywhere.
            most: tracks to take back.
            by_patch: look at the expected places too.

        Returns:
            The tracks as they are in this frame, and (n,) rows of their keypoints, -1 for those found by their patch.
        """
        tracks, size = self.tracks, features.image_size
        waiting = np.flatnonzero(tracks.seen < number - 1)  # flow has just looked for the others
        keypoint, rows = self._look_alike(waiting, features, free)
        points = features.keypoints[keypoint]
        good = self._plausible(rows, points, visible, history, camera, threshold_px)
        rows, keypoint = rows[good], keypoint[good]
        last = tracks.points.copy()
        good = self._align(rows, features.keypoints[keypoint], grey, mask)
        rows, keypoint = rows[good], keypoint[good]
        self._expect_like(rows, last, size)

        still = waiting[~np.isin(waiting, rows)] if by_patch else waiting[:0]
        taken = np.concatenate([visible.points, tracks.points[rows]])
        alone = self._find_patches(still, taken, grey, spacing, mask, size)
        rows = np.concatenate([rows, alone])[:most]
        keypoint = np.concatenate([keypoint, np.full(len(alone), -1)])[:most]
        tracks.seen[rows], tracks.lengths[rows] = number, tracks.lengths[rows] + 1
        found = tracks.take(rows)
        rest = remaining(len(tracks), rows)
        self.tracks, self._expected = tracks.take(rest), self._expected[rest]
        return found, keypoint

    def _look_alike(self, waiting: np.ndarray, features: Features, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Free keypoints and waiting tracks that are each other's best match, near expected places if all are known."""
        known = np.isfinite(self._expected[waiting, 0])
        if known.all():
            expected, lost = self._expected[waiting], self.tracks
            keypoint, rows = match_nearby(
                features.matchable[free],
                features.keypoints[free],
                lost.matchable_at(waiting),
                expected,
                reach_around(expected, lost.points[waiting]),
            )
        else:
            keypoint, rows, _ = match_mutual(features.matchable[free], self.tracks.matchable_at(waiting))
        return free[keypoint], waiting[rows]

    def _plausible(
        self,
        rows: np.ndarray,
        points: np.ndarray,
        visible: TrackTable,
        history: History,
        camera: Camera | None,
        threshold_px: float,
    ) -> np.ndarray:
        """(n,) bool: lost tracks may be at these points (n, 2), which look like them.

        They are near the expected places, where these are known, and share one motion of the camera with the visible
        tracks, or with each other where none is visible, as after a dark time.
        """
        last, seen = self.tracks.points[rows], self.tracks.seen[rows]
        expected = self._expected[rows]
        near = np.isnan(expected[:, 0]) | near_expected(points, expected, last)
        good = np.zeros(len(rows), bool)
        numbers, counts = np.unique(seen[near], return_counts=True)
        for number in numbers[np.argsort(-counts, kind="stable")][:GROUPS]:
            group = np.flatnonzero(near & (seen == number))
            ids, places = history[int(number)]
            _, there, here = np.intersect1d(ids, visible.ids, assume_unique=True, return_indices=True)
            there, here = there[-SUPPORT:], here[-SUPPORT:]
            before = np.concatenate([last[group], places[there]])
            now = np.concatenate([points[group], visible.points[here]])
            good[group] = epipolar_inliers(before, now, camera, threshold_px)[: len(group)]
        return good

    def _align(self, rows: np.ndarray, points: np.ndarray, grey: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """(n,) bool: the patches of these tracks are at these points (n, 2); moves the tracks there."""
        tracks = self.tracks
        there, warps, trust = self._patches.align(
            grey, points, tracks.slots[rows], iterations=STEPS, reach=PATCH_REACH_PX
        )
        good = (trust > LEAST_CORRELATION) & (np.abs(there - points).max(axis=1, initial=0) < PATCH_REACH_PX)
        size = grey.shape[1], grey.shape[0]
        good &= inside(there, size) & allowed(there, mask, size)
        moved = rows[good]
        tracks.points[moved], tracks.trust[moved] = there[good], trust[good]
        self._patches.warps[tracks.slots[moved]] = warps[good]
        return good

    def _expect_like(self, found: np.ndarray, last: np.ndarray, size: tuple[int, int]) -> None:
        """Tracks without an expected place move as those that were found and lost in the same frame as they.

        last: (N, 2) where each track was last seen.
        """
        seen, unknown = self.tracks.seen, np.isnan(self._expected[:, 0])
        for number in np.unique(seen[unknown]):
            of = found[seen[found] == number]
            if len(of) >= LEAST_NEIGHBOURS:
                rows = np.flatnonzero(unknown & (seen == number))
                moved = self.tracks.points[of] - last[of]
                self._expected[rows] = last[rows] + interpolate_motion(last[of], moved, last[rows], size)

    def _find_patches(
        self,
        waiting: np.ndarray,
        taken: np.ndarray,
        grey: np.ndarray,
        spacing: float,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> np.ndarray:
        """Rows of waiting tracks whose patch is where they are expected, apart from the points (n, 2) taken."""
        rows = waiting[inside(self._expected[waiting], size)]
        expected = self._expected[rows]
        rows = rows[far_from(expected, taken, spacing, size)]
        rows = rows[self._align(rows, self._expected[rows], grey, mask)]
        points = self.tracks.points[rows]
        return rows[far_from(points, taken, spacing, size) & first_at_pixel(points, size)]
