"""Tracks that last: flow carries points from frame to frame, reference patches stop their drift, the network repairs.

In every frame, in this order:

1. Some tracks are matched to the new keypoints by descriptor. Their motion predicts where all the others are.
2. Optical flow looks for every point around its prediction; its reference patch polishes the place, and the
   correlation there decides whether the point was found. Where it is low, flow back to the last frame decides.
3. A keypoint within `CONFIRM_PX` confirms a point and renews its descriptor. Tracks that flow lost go on at a free
   keypoint that looks like them, near the prediction.
4. Points that break the epipolar geometry end: to the last frame, and now and then to one some frames back.
5. Lost tracks wait for `memory` frames and may be found again (`samfeat_core.tracking.memory`).
6. Keypoints far enough from all tracks begin new ones, as many as there is room for.

Every row is a place in this very image at which a keypoint or a patch was found. Nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches
from samfeat_core.matching import match_mutual, match_nearby
from samfeat_core.tracking.base import DETECTED, FOLLOWED, RECOVERED, Tracker
from samfeat_core.tracking.flow import NARROW, follow, halved, same_brightness
from samfeat_core.tracking.memory import LEAST_NEIGHBOURS, REACH_PX, History, Memory, near_expected
from samfeat_core.tracking.motion import (
    allowed,
    far_from,
    inside,
    interpolate_motion,
    nearest_within,
    remaining,
    spread_evenly,
)
from samfeat_core.tracking.patches import ReferencePatches, compile_patches
from samfeat_core.tracking.table import TrackTable
from samfeat_core.two_view import epipolar_inliers

SCOUTS = 192  # tracks whose matches predict the motion of all
SCOUT_SPREAD = 4.0  # times the median, by which the motion of one may differ from its neighbours'
CONFIRM_PX = 1.0  # a keypoint this near to a followed point is the same point
POLISH_PX = 1.0  # a patch may move a point this far from where flow left it
RETURN_PX = 2.0  # flow back to the last frame must end this near
LEAST_CORRELATION = 0.5  # with the reference patch, of a point that was found
REPAIR_CORRELATION = 0.5  # of a keypoint that takes the place of a point that flow has lost
RENEW_CORRELATION = 0.8  # below it a confirmed point gets a new reference: its view has changed
KEYFRAME_BACK, KEYFRAME_EVERY = 8, 4  # how far back, and how often, tracks are checked over several frames
KEYFRAME_PX = 1.5  # times the inlier threshold, there
RECALL_EVERY = 2  # frames: how often lost tracks are looked for by their patch alone, in frames without that check


@dataclass(eq=False)
class _Image:
    """A frame as the tracker sees it: grey (H, W) uint8, and the same at half the size."""

    grey: np.ndarray
    half: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.grey.shape[1], self.grey.shape[0]

    @staticmethod
    def of(image: np.ndarray | None) -> _Image | None:
        if image is None:
            return None
        # A copy: the next frame looks back at it, and the caller may use its buffer again.
        grey = np.array(image, order="C") if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return _Image(grey, halved(grey))


@dataclass(eq=False)
class _Found:
    """Where the N tracks of the last frame are in the new one.

    expected: (N, 2) float32, where they were looked for. points: (N, 2) float32, where they are.
    alive: (N,) bool, found at all. aligned: (N,) bool, by its reference patch.
    trust: (N,) float32 correlation with that. keypoint: (N,) row of the keypoint detected there, -1 = none.
    """

    expected: np.ndarray
    points: np.ndarray = field(init=False)
    alive: np.ndarray = field(init=False)
    aligned: np.ndarray = field(init=False)
    trust: np.ndarray = field(init=False)
    keypoint: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.expected)
        self.points = self.expected.copy()
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
        memory: int = 20,
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
        _compile()

    def _forget(self) -> None:
        self._number = 0  # of the frame, since the restart
        self._image: _Image | None = None  # of the last frame
        self._tracks: TrackTable | None = None  # rows of the last frame
        self._history: History = {}
        self._patches = ReferencePatches()
        self._lost: Memory | None = None

    def _continue(
        self,
        features: Features,
        camera: Camera | None,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        restarted: bool,
    ) -> tuple[Features, Matches]:
        dim, size = features.descriptors.shape[1], features.image_size
        tracks = self._tracks or TrackTable.empty(dim)
        lost = self._lost = self._lost or Memory(self._patches, dim)
        frame = _Image.of(image)
        self._number += 1

        found = self._follow(tracks, frame, self._predict(tracks, features, camera))
        if self.repair:
            self._confirm(found, features)
            self._repair(found, tracks, features, frame)
        found.alive &= allowed(found.points, mask, size)
        candidates = np.flatnonzero(found.alive)[: self.max_points]
        inlier = self._verified(tracks.points[candidates], found.points[candidates], camera)
        agrees = self._agrees_with_keyframe(tracks.ids[candidates], found.points[candidates], camera)
        kept = candidates[inlier & agrees]

        taken = np.zeros(len(features), bool)
        going = self._carry_on(tracks.take(kept), found, kept, features, frame, taken)
        wrong = candidates[~agrees]
        self._patches.free(tracks.slots[wrong])  # no points of the scene: not to be found again
        self._remember(lost, tracks, remaining(len(tracks), kept, wrong))
        lost.move_along(tracks.points[kept], going.points, size)
        back = self._recover(lost, going, features, frame, camera, mask, taken)
        old = TrackTable.join(going, back)
        rows = self._choose_births(old, features, taken)
        born = self._bear(features, rows, np.concatenate([old.ids, lost.tracks.ids]))
        self._close(TrackTable.join(old, born), frame)

        sources = np.full(len(old) + len(born), DETECTED, np.uint8)
        sources[: len(going)][going.unconfirmed > 0] = FOLLOWED
        sources[len(going) : len(old)] = RECOVERED
        # Pairs that broke the geometry are told too, where their keypoint has become a new track.
        place = {int(row): len(old) + number for number, row in enumerate(rows)}
        broken = [(place[int(found.keypoint[r])], r) for r in candidates[~inlier] if int(found.keypoint[r]) in place]
        return self._answer(features, tracks, kept, np.array(broken, np.int64).reshape(-1, 2), sources, restarted)

    # ---- where the points are ----

    def _verified(self, points_prev: np.ndarray, points: np.ndarray, camera: Camera | None) -> np.ndarray:
        """(M,) bool: which pairs of points agree with one motion of the camera; all, where nothing is verified."""
        if not self.verify:
            return np.ones(len(points), bool)
        return epipolar_inliers(points_prev, points, camera, self.threshold_px)

    def _agrees_with_keyframe(self, ids: np.ndarray, points: np.ndarray, camera: Camera | None) -> np.ndarray:
        """(M,) bool: tracks agree with one motion of the camera since an earlier frame, or were not seen in it.

        What slides along an outline or drifts slowly is right from frame to frame, and wrong over several.
        """
        good = np.ones(len(ids), bool)
        keyframe = self._history.get(self._number - KEYFRAME_BACK)
        if not self.verify or keyframe is None or self._number % KEYFRAME_EVERY != 1:
            return good
        _, here, there = np.intersect1d(ids, keyframe[0], assume_unique=True, return_indices=True)
        good[here] = epipolar_inliers(keyframe[1][there], points[here], camera, KEYFRAME_PX * self.threshold_px)
        return good

    def _predict(self, tracks: TrackTable, features: Features, camera: Camera | None) -> np.ndarray:
        """(N, 2) float32 where to look for the tracks: moved as some of them that descriptors find."""
        if not self.repair:
            return tracks.points
        scouts = np.unique(np.linspace(0, len(tracks) - 1, min(SCOUTS, len(tracks))).astype(np.int64))
        keypoint, rows, _ = match_mutual(
            features.matchable, tracks.matchable_at(scouts), self.min_similarity, self.ratio
        )
        before, now = tracks.points[scouts[rows]], features.keypoints[keypoint]
        good = self._verified(before, now, camera)
        if np.count_nonzero(good) < LEAST_NEIGHBOURS:
            return tracks.points
        before, moved, size = before[good], (now - before)[good], features.image_size
        # A wrong match may lie on the right epipolar line; its neighbours tell.
        apart = np.linalg.norm(moved - interpolate_motion(before, moved, before, size), axis=1)
        alike = apart <= max(REACH_PX, SCOUT_SPREAD * float(np.median(apart)))
        return tracks.points + interpolate_motion(before[alike], moved[alike], tracks.points, size)

    def _follow(self, tracks: TrackTable, frame: _Image | None, start: np.ndarray) -> _Found:
        """Flow from the last image, polished and judged by the reference patches."""
        found = _Found(start)
        last = self._image
        if frame is None or last is None or not len(tracks):
            return found
        before = same_brightness(last.half, frame.half)
        found.points, seen = follow(before, frame.half, tracks.points, found.expected)
        rows = np.flatnonzero(seen & inside(found.points, frame.size))
        self._anchor(tracks, rows, last)
        points, warps, trust = self._patches.align(frame.grey, found.points[rows], tracks.slots[rows])
        near = np.linalg.norm(points - found.points[rows], axis=1) < POLISH_PX
        good = near & (trust > LEAST_CORRELATION) & inside(points, frame.size)
        self._patches.warps[tracks.slots[rows[good]]] = warps[good]
        found.points[rows[good]], found.trust[rows] = points[good], trust
        found.aligned[rows[good]] = found.alive[rows[good]] = True
        self._doubt(found, rows[~good], tracks, before, frame)
        return found

    @staticmethod
    def _doubt(found: _Found, rows: np.ndarray, tracks: TrackTable, before: np.ndarray, frame: _Image) -> None:
        """Flow there and back, through a narrow window, decides about these rows, which their patches do not know."""
        last = tracks.points[rows]
        there, seen = follow(before, frame.half, last, found.points[rows], NARROW)
        back, seen_back = follow(frame.half, before, there, last, NARROW)
        good = seen & seen_back & (np.linalg.norm(back - last, axis=1) < RETURN_PX) & inside(there, frame.size)
        found.points[rows[good]], found.alive[rows[good]] = there[good], True

    def _anchor(self, tracks: TrackTable, rows: np.ndarray, image: _Image | None) -> None:
        """Reference patches for those rows that have none, from the image that their points are of."""
        rows = rows[tracks.slots[rows] < 0]
        if image is not None and len(rows):
            tracks.slots[rows] = self._patches.allocate(len(rows))
            self._patches.anchor(image.grey, tracks.points[rows], tracks.slots[rows])

    @staticmethod
    def _confirm(found: _Found, features: Features) -> None:
        """Keypoints confirm the points beside them."""
        rows = np.flatnonzero(found.alive)
        found.keypoint[rows] = nearest_within(found.points[rows], features.keypoints, CONFIRM_PX, features.image_size)

    def _repair(self, found: _Found, tracks: TrackTable, features: Features, frame: _Image | None) -> None:
        """Free keypoints take the place of points that flow has lost, near the prediction, if they look like them."""
        lost = np.flatnonzero(~found.alive)
        free = remaining(len(features), found.keypoint)
        keypoint, rows, _ = match_mutual(
            features.matchable[free], tracks.matchable_at(lost), self.min_similarity, self.ratio
        )
        keypoint, rows = free[keypoint], lost[rows]
        points = features.keypoints[keypoint]
        good = near_expected(points, found.expected[rows], tracks.points[rows])
        if frame is not None and self._image is not None:
            self._anchor(tracks, rows, self._image)
            _, _, trust = self._patches.align(frame.grey, points, tracks.slots[rows])
            good &= trust > REPAIR_CORRELATION
            found.trust[rows] = trust
        rows, keypoint = rows[good], keypoint[good]
        found.points[rows], found.keypoint[rows], found.alive[rows] = points[good], keypoint, True

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
            self._patches.anchor(frame.grey, tracks.points[outdated], tracks.slots[outdated])
        return tracks

    def _remember(self, lost: Memory, tracks: TrackTable, ended: np.ndarray) -> None:
        """These rows of the last frame's tracks go to the memory."""
        if self.repair and self.memory:
            self._anchor(tracks, ended, self._image)
        else:
            self._patches.free(tracks.slots[ended])
            ended = ended[:0]
        lost.keep(tracks.take(ended), self._number - self.memory, self.max_points)

    def _recover(
        self,
        lost: Memory,
        going: TrackTable,
        features: Features,
        frame: _Image | None,
        camera: Camera | None,
        mask: np.ndarray | None,
        taken: np.ndarray,
    ) -> TrackTable:
        """Lost tracks that are found again; marks the keypoints that they have taken."""
        if frame is None:
            return TrackTable.empty(features.descriptors.shape[1])
        # After a dark time at once: new tracks would take the room of the old ones.
        by_patch = self._number % RECALL_EVERY == 0 or len(going) < self.max_points / 2
        free, most = np.flatnonzero(~taken), self.max_points - len(going)
        back, keypoint = lost.find(
            self._number, features, free, frame.grey, going, self._history, camera, self.threshold_px,
            self.spacing, mask, most, by_patch,
        )  # fmt: skip
        detected = keypoint >= 0
        back.unconfirmed = np.where(detected, 0, back.unconfirmed + 1)
        taken[keypoint[detected]] = True
        _describe(back, np.flatnonzero(detected), features, keypoint[detected])
        return back

    def _choose_births(self, old: TrackTable, features: Features, taken: np.ndarray) -> np.ndarray:
        """Rows of the keypoints that begin tracks: free, apart from all tracks, strongest (or evenly spread) first."""
        points, size = features.keypoints, features.image_size
        free = np.flatnonzero(~taken & far_from(points, old.points, self.spacing, size))
        if self.grid:
            free = free[spread_evenly(points[free], old.points, self.grid, size)]
        return free[: max(self.max_points - len(old), 0)]

    def _bear(self, features: Features, rows: np.ndarray, alive: np.ndarray) -> TrackTable:
        """New tracks at those keypoints; alive: ids that they must not have."""
        count = len(rows)
        ones, zeros = np.ones(count, np.int64), np.zeros(count, np.int64)
        return TrackTable(
            ids=self._new_ids(count, alive),
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

    def _close(self, tracks: TrackTable, frame: _Image | None) -> None:
        """The frame is over: what the next one looks back to."""
        self._tracks, self._image = tracks, frame
        self._history[self._number] = tracks.ids, tracks.points
        oldest = self._number - max(self.memory, KEYFRAME_BACK)
        for number in [number for number in self._history if number < oldest]:
            del self._history[number]

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
        similarity = np.einsum("nd,nd->n", tracks.matchable_at(index), before.matchable_at(index_prev))
        weights = None if features.weights is None else tracks.weights
        rows = Features(tracks.points, tracks.scores, tracks.descriptors, features.image_size, weights)
        order = np.argsort(index, kind="stable")
        matches = Matches(
            index[order], index_prev[order], similarity[order], inlier[order], tracks.ids, restarted, tracks.lengths,
            sources, tracks.trust,
        )  # fmt: skip
        return rows, matches


@lru_cache(1)
def _compile() -> None:
    """Compile all loops before the first frame, which should not wait for it."""
    compile_patches()
    one = np.ones((1, 2), np.float32)
    nearest_within(one, one, 1.0, (2, 2))
    far_from(one, one, 1.0, (2, 2))
    match_nearby(one, one, one, one, one[0, :1])


def _describe(tracks: TrackTable, rows: np.ndarray, features: Features, keypoint: np.ndarray) -> None:
    """Give rows of tracks what the network says of these keypoints."""
    tracks.descriptors[rows] = features.descriptors[keypoint]
    tracks.scores[rows] = features.scores[keypoint]
    if features.weights is not None:
        tracks.weights[rows] = features.weights[keypoint]
