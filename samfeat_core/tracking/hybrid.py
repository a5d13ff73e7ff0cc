"""Tracks that last: flow carries points from frame to frame, reference patches stop their drift, the network repairs.

In every frame, in this order:

1. Descriptors of all tracks are matched to the new keypoints. The motion of the matches predicts where the others are.
2. Optical flow looks for every point around its prediction; its reference patch polishes the place, and the
   correlation there decides whether the point was found. Where it is low, flow back to the last frame decides.
3. A keypoint within `CONFIRM_PX` confirms a point and renews its descriptor. Tracks that flow lost but descriptors
   found continue at the keypoint.
4. Points that break the epipolar geometry end.
5. Lost tracks wait for `memory` frames. A keypoint with their descriptor brings them back under their id, where the
   patch agrees; so does the patch alone, at the place that the motion of the neighbours predicts.
6. Keypoints far enough from all tracks begin new ones, as many as there is room for.

Every row is a place in this very image at which a keypoint or a patch was found. Nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches
from samfeat_core.matching import match_mutual
from samfeat_core.tracking.base import DETECTED, FOLLOWED, RECOVERED, Tracker
from samfeat_core.tracking.flow import follow, returns, same_brightness
from samfeat_core.tracking.motion import far_from, interpolate_motion, nearest_within, pixels, spread_evenly
from samfeat_core.tracking.patches import ReferencePatches
from samfeat_core.tracking.table import TrackTable
from samfeat_core.two_view import epipolar_inliers

CONFIRM_PX = 2.0  # a keypoint this near to a followed point is the same point
POLISH_PX = 1.0  # a patch may move a point this far from where flow left it
RETURN_PX = 1.0  # flow back to the last frame must end this near
LEAST_CORRELATION = 0.5  # with the reference patch, of a point that was found
RENEW_CORRELATION = 0.8  # below it a confirmed point gets a new reference: its view has changed
RECOVER_CORRELATION = 0.8  # of a lost point that is taken back
RECOVER_PX = 2.0  # a patch may move a recovered point this far
LEAST_NEIGHBOURS = 8  # whose motion predicts that of others


@dataclass(eq=False)
class _Image:
    """A frame as the tracker sees it: grey (H, W) uint8, and the same as float32."""

    grey: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(image: np.ndarray | None) -> _Image | None:
        if image is None:
            return None
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return _Image(grey, grey.astype(np.float32))


@dataclass(eq=False)
class _Found:
    """Where the N tracks of the last frame are in the new one.

    points: (N, 2) float32. alive: (N,) bool, found at all. aligned: (N,) bool, by its reference patch.
    trust: (N,) float32 correlation with that. keypoint: (N,) row of the keypoint detected there, -1 = none.
    """

    points: np.ndarray
    alive: np.ndarray = field(init=False)
    aligned: np.ndarray = field(init=False)
    trust: np.ndarray = field(init=False)
    keypoint: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.points)
        self.alive, self.aligned = np.zeros(count, bool), np.zeros(count, bool)
        self.trust, self.keypoint = np.zeros(count, np.float32), np.full(count, -1)


class HybridTracker(Tracker):
    """See the module. Rows are the tracks that went on, older ones first, then recovered ones, then new keypoints.

    A followed row keeps descriptor, score and weight of the keypoint that was last detected there. Without an image
    (`update(image=None)`) tracks go on through matches alone.

    Args:
        max_points: most rows of a frame; tracks come before new keypoints.
        repair: let the network confirm, repair and find again; False: it only gives birth to points.
        memory: frames for which a lost track can be found again; 0 = never.
        spacing: pixels that a new point keeps from every track.
        grid: cells along either side of the image over which new points are spread evenly; 0 = the strongest ones.
        bounds: see `Tracker`.

    All may be set while running.
    """

    def __init__(
        self,
        max_points: int = 1024,
        repair: bool = True,
        memory: int = 10,
        spacing: float = 3.0,
        grid: int = 0,
        **bounds: float | bool | None,
    ) -> None:
        limits = {"max_points": (max_points, 1), "memory": (memory, 0), "spacing": (spacing, 0), "grid": (grid, 0)}
        for name, (value, low) in limits.items():
            if not value >= low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        self.max_points, self.repair, self.memory, self.spacing, self.grid = max_points, repair, memory, spacing, grid
        super().__init__(**bounds)  # type: ignore[arg-type]

    def _forget(self) -> None:
        self._number = 0  # of the frame, since the restart
        self._image: _Image | None = None  # of the last frame
        self._tracks: TrackTable | None = None  # rows of the last frame
        self._lost: TrackTable | None = None
        self._places: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # frame -> ids and points, while memory lasts
        self._patches = ReferencePatches()

    def _continue(
        self,
        features: Features,
        camera: Camera | None,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        restarted: bool,
    ) -> tuple[Features, Matches]:
        empty = TrackTable.empty(features.descriptors.shape[1])
        tracks, lost = self._tracks or empty, self._lost or empty
        frame = _Image.of(image)
        self._number += 1

        matched, keypoint = self._match(tracks, features, camera)
        found = self._follow(tracks, frame, self._predict(tracks, features, matched, keypoint))
        if self.repair:
            self._confirm(found, features, matched, keypoint)
        found.alive &= _allowed(found.points, mask, features.image_size)
        candidates = np.flatnonzero(found.alive)[: self.max_points]
        inlier = self._verified(tracks.points[candidates], found.points[candidates], camera)
        kept = candidates[inlier]

        taken = np.zeros(len(features), bool)
        going = self._carry_on(tracks.take(kept), found, kept, features, frame, taken)
        lost = self._lose(lost, tracks.take(np.setdiff1d(np.arange(len(tracks)), kept)))
        back, lost = self._recover(lost, going, features, frame, mask, taken)
        old = TrackTable.join(going, back)
        rows = self._choose_births(old, features, taken)
        born = self._bear(features, rows, old, lost)
        self._remember(TrackTable.join(old, born), lost, frame)

        sources = np.full(len(old) + len(born), DETECTED, np.uint8)
        sources[: len(going)][going.unconfirmed > 0] = FOLLOWED
        sources[len(going) : len(old)] = RECOVERED
        # Pairs that broke the geometry are told too, where their keypoint has become a new track.
        place = {int(row): len(old) + number for number, row in enumerate(rows)}
        broken = [(place[int(found.keypoint[r])], r) for r in candidates[~inlier] if int(found.keypoint[r]) in place]
        return self._answer(features, tracks, kept, np.array(broken, np.int64).reshape(-1, 2), sources, restarted)

    # ---- where the points are ----

    def _match(self, tracks: TrackTable, features: Features, camera: Camera | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows of tracks and of the keypoints that match them by descriptor and in one motion of the camera."""
        if not self.repair:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        keypoint, rows, _ = match_mutual(features.matchable, tracks.matchable, self.min_similarity, self.ratio)
        good = self._verified(tracks.points[rows], features.keypoints[keypoint], camera)
        return rows[good], keypoint[good]

    def _verified(self, points_prev: np.ndarray, points: np.ndarray, camera: Camera | None) -> np.ndarray:
        """(M,) bool: which pairs of points agree with one motion of the camera; all, where nothing is verified."""
        if not self.verify:
            return np.ones(len(points), bool)
        return epipolar_inliers(points_prev, points, camera, self.threshold_px)

    def _predict(self, tracks: TrackTable, features: Features, matched: np.ndarray, keypoint: np.ndarray) -> np.ndarray:
        """(N, 2) float32 where to look for the tracks: moved as the matched ones around them."""
        if len(matched) < LEAST_NEIGHBOURS:
            return tracks.points
        before = tracks.points[matched]
        moved = features.keypoints[keypoint] - before
        return tracks.points + interpolate_motion(before, moved, tracks.points, features.image_size)

    def _follow(self, tracks: TrackTable, frame: _Image | None, start: np.ndarray) -> _Found:
        """Flow from the last image, polished and judged by the reference patches."""
        found = _Found(start.copy())
        last = self._image
        if frame is None or last is None or not len(tracks):
            return found
        before = same_brightness(last.grey, frame.grey)
        found.points, seen = follow(before, frame.grey, tracks.points, start)
        rows = np.flatnonzero(seen)
        self._anchor(tracks, rows, last)
        points, warps, trust = self._patches.align(frame.values, found.points[rows], tracks.slots[rows])
        near = np.linalg.norm(points - found.points[rows], axis=1) < POLISH_PX
        good = near & (trust > LEAST_CORRELATION) & _inside(points, frame.grey)
        self._patches.warps[tracks.slots[rows[good]]] = warps[good]
        found.points[rows[good]], found.trust[rows] = points[good], trust
        found.aligned[rows[good]] = found.alive[rows[good]] = True
        doubtful = rows[~good]
        came_back = returns(before, frame.grey, tracks.points[doubtful], found.points[doubtful], RETURN_PX)
        found.alive[doubtful[came_back]] = True
        return found

    def _anchor(self, tracks: TrackTable, rows: np.ndarray, image: _Image | None) -> None:
        """Reference patches for those rows that have none, from the image that their points are of."""
        rows = rows[tracks.slots[rows] < 0]
        if image is not None and len(rows):
            tracks.slots[rows] = self._patches.allocate(len(rows))
            self._patches.anchor(image.values, tracks.points[rows], tracks.slots[rows])

    @staticmethod
    def _confirm(found: _Found, features: Features, matched: np.ndarray, keypoint: np.ndarray) -> None:
        """Keypoints confirm the points beside them, and take the place of points that flow has lost."""
        rows = np.flatnonzero(found.alive)
        found.keypoint[rows] = nearest_within(found.points[rows], features.keypoints, CONFIRM_PX, features.image_size)
        lost = ~found.alive[matched] & ~np.isin(keypoint, found.keypoint)
        rows, keypoint = matched[lost], keypoint[lost]
        found.points[rows], found.keypoint[rows] = features.keypoints[keypoint], keypoint
        found.alive[rows] = True

    # ---- what becomes of the tracks ----

    def _carry_on(
        self,
        tracks: TrackTable,
        found: _Found,
        kept: np.ndarray,
        features: Features,
        frame: _Image | None,
        taken: np.ndarray,
    ) -> TrackTable:
        """The tracks that go on, as they are in the new frame; marks the keypoints that they have taken."""
        keypoint, aligned = found.keypoint[kept], found.aligned[kept]
        tracks.points, tracks.trust = found.points[kept].astype(np.float32), found.trust[kept]
        tracks.lengths, tracks.seen = tracks.lengths + 1, np.full(len(kept), self._number)
        detected = keypoint >= 0
        tracks.unconfirmed = np.where(detected, 0, tracks.unconfirmed + 1)
        taken[keypoint[detected]] = True
        _describe(tracks, np.flatnonzero(detected), features, keypoint[detected])
        outdated = (~aligned | (detected & (tracks.trust < RENEW_CORRELATION))) & (tracks.slots >= 0)
        if frame is not None:
            self._patches.anchor(frame.values, tracks.points[outdated], tracks.slots[outdated])
        return tracks

    def _lose(self, lost: TrackTable, ended: TrackTable) -> TrackTable:
        """All lost tracks that are still remembered."""
        if not self.repair or not self.memory:
            self._patches.free(ended.slots)
            return ended.take(np.zeros(0, np.int64))
        self._anchor(ended, np.arange(len(ended)), self._image)
        everyone = TrackTable.join(ended, lost)  # the newest first
        remembered = (self._number - everyone.seen <= self.memory) & (np.arange(len(everyone)) < self.max_points)
        self._patches.free(everyone.slots[~remembered])
        return everyone.take(np.flatnonzero(remembered))

    def _recover(
        self,
        lost: TrackTable,
        going: TrackTable,
        features: Features,
        frame: _Image | None,
        mask: np.ndarray | None,
        taken: np.ndarray,
    ) -> tuple[TrackTable, TrackTable]:
        """Lost tracks that are found again, and those that are not; marks the keypoints that they have taken."""
        if frame is None:
            return lost.take(np.zeros(0, np.int64)), lost
        waiting = np.flatnonzero(lost.seen < self._number - 1)  # flow has just looked for the others
        by_keypoint = self._recover_by_keypoint(lost, waiting, features, frame, taken)
        still = waiting[~np.isin(waiting, by_keypoint)]
        visible = TrackTable.join(going, lost.take(by_keypoint))
        by_patch = self._recover_by_patch(lost, still, visible, frame, mask, features.image_size)
        rows = np.concatenate([by_keypoint, by_patch])[: self.max_points - len(going)]
        back = lost.take(rows)
        back.lengths = back.lengths + 1
        return back, lost.take(np.setdiff1d(np.arange(len(lost)), rows))

    def _recover_by_keypoint(
        self, lost: TrackTable, waiting: np.ndarray, features: Features, frame: _Image, taken: np.ndarray
    ) -> np.ndarray:
        """Rows of lost tracks whose descriptor and patch a free keypoint has; updates them."""
        free = np.flatnonzero(~taken)
        keypoint, rows, _ = match_mutual(
            features.matchable[free], lost.take(waiting).matchable, self.min_similarity, self.ratio
        )
        keypoint, rows = free[keypoint], waiting[rows]
        good = self._accept(lost, rows, frame, features.keypoints[keypoint])
        keypoint, rows = keypoint[good], rows[good]
        taken[keypoint] = True
        lost.unconfirmed[rows] = 0
        _describe(lost, rows, features, keypoint)
        return rows

    def _recover_by_patch(
        self,
        lost: TrackTable,
        waiting: np.ndarray,
        visible: TrackTable,
        frame: _Image,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> np.ndarray:
        """Rows of lost tracks whose patch is where the motion of their neighbours since then leads; updates them."""
        expected = np.full((len(lost), 2), np.nan, np.float32)
        for number in np.unique(lost.seen[waiting]):
            ids, points = self._places[int(number)]
            _, there, here = np.intersect1d(ids, visible.ids, assume_unique=True, return_indices=True)
            if len(there) >= LEAST_NEIGHBOURS:
                rows = waiting[lost.seen[waiting] == number]
                moved = visible.points[here] - points[there]
                expected[rows] = lost.points[rows] + interpolate_motion(points[there], moved, lost.points[rows], size)
        rows = waiting[_inside(expected[waiting], frame.grey)]
        rows = rows[_allowed(expected[rows], mask, size) & far_from(expected[rows], visible.points, self.spacing, size)]
        rows = rows[self._accept(lost, rows, frame, expected[rows])]
        lost.unconfirmed[rows] += 1
        apart = far_from(lost.points[rows], visible.points, self.spacing, size)
        return rows[apart & _first_at_pixel(lost.points[rows], size)]

    def _accept(self, lost: TrackTable, rows: np.ndarray, frame: _Image, points: np.ndarray) -> np.ndarray:
        """(n,) bool: the patches of these rows are at these points (n, 2); moves the rows there."""
        there, warps, trust = self._patches.align(
            frame.values, points, lost.slots[rows], iterations=4, reach=RECOVER_PX
        )
        good = (trust > RECOVER_CORRELATION) & (np.abs(there - points).max(axis=1, initial=0) < RECOVER_PX)
        good &= _inside(there, frame.grey)
        moved = rows[good]
        lost.points[moved], lost.trust[moved], lost.seen[moved] = there[good], trust[good], self._number
        self._patches.warps[lost.slots[moved]] = warps[good]
        return good

    def _choose_births(self, old: TrackTable, features: Features, taken: np.ndarray) -> np.ndarray:
        """Rows of the keypoints that begin tracks: free, apart from all tracks, strongest (or evenly spread) first."""
        points, size = features.keypoints, features.image_size
        free = np.flatnonzero(~taken & far_from(points, old.points, self.spacing, size))
        if self.grid:
            free = free[spread_evenly(points[free], old.points, self.grid, size)]
        return free[: max(self.max_points - len(old), 0)]

    def _bear(self, features: Features, rows: np.ndarray, old: TrackTable, lost: TrackTable) -> TrackTable:
        """New tracks at those keypoints."""
        count = len(rows)
        ones, zeros = np.ones(count, np.int64), np.zeros(count, np.int64)
        return TrackTable(
            ids=self._new_ids(count, np.concatenate([old.ids, lost.ids])),
            points=features.keypoints[rows],
            descriptors=features.descriptors[rows],
            scores=features.scores[rows],
            weights=np.ones(count, np.float32) if features.weights is None else features.weights[rows],
            lengths=ones,
            unconfirmed=zeros,
            slots=-ones,
            trust=np.ones(count, np.float32),
            seen=self._number * ones,
        )

    def _remember(self, tracks: TrackTable, lost: TrackTable, frame: _Image | None) -> None:
        self._tracks, self._lost, self._image = tracks, lost, frame
        self._places[self._number] = tracks.ids, tracks.points
        for number in [number for number in self._places if number < self._number - self.memory]:
            del self._places[number]

    def _answer(
        self,
        features: Features,
        before: TrackTable,
        kept: np.ndarray,
        broken: np.ndarray,
        sources: np.ndarray,
        restarted: bool,
    ) -> tuple[Features, Matches]:
        """Rows and matches of the frame. broken: (B, 2) rows of now and of before that are no inliers."""
        tracks = self._tracks
        assert tracks is not None
        index = np.concatenate([np.arange(len(kept)), broken[:, 0]])
        index_prev = np.concatenate([kept, broken[:, 1]])
        inlier = np.arange(len(index)) < len(kept)
        similarity = np.einsum("nd,nd->n", tracks.matchable[index], before.matchable[index_prev])
        weights = None if features.weights is None else tracks.weights
        rows = Features(tracks.points, tracks.scores, tracks.descriptors, features.image_size, weights)
        order = np.argsort(index, kind="stable")
        matches = Matches(
            index[order], index_prev[order], similarity[order], inlier[order], tracks.ids, restarted, tracks.lengths,
            sources, tracks.trust,
        )  # fmt: skip
        return rows, matches


def _describe(tracks: TrackTable, rows: np.ndarray, features: Features, keypoint: np.ndarray) -> None:
    """Give rows of tracks what the network says of these keypoints."""
    tracks.descriptors[rows] = features.descriptors[keypoint]
    tracks.scores[rows] = features.scores[keypoint]
    if features.weights is not None:
        tracks.weights[rows] = features.weights[keypoint]


def _inside(points: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """(n,) bool: points (n, 2) between the first and the last pixel centres; NaN is not."""
    limit = np.array(grey.shape[::-1], np.float32) - 1
    return np.asarray((points >= 0).all(axis=1) & (points <= limit).all(axis=1))


def _allowed(points: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """(n,) bool: the mask is not 0 at these points (n, 2)."""
    if mask is None:
        return np.ones(len(points), bool)
    at = pixels(points, size)
    return mask[at[:, 1], at[:, 0]] > 0


def _first_at_pixel(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n,) bool: no earlier point (n, 2) is in the same pixel."""
    at = pixels(points, size)
    first = np.zeros(len(points), bool)
    first[np.unique(at[:, 1] * size[0] + at[:, 0], return_index=True)[1]] = True
    return first
