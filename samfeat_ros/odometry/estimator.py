"""Plain monocular visual odometry from tracked points: an example of a live back-end.

It knows cameras and tracks, no ROS. A first motion comes from the essential matrix; every further pose from points that
are triangulated along their tracks (perspective-n-point). With every new keyframe the last few are adjusted together
with their points (bundle adjustment in a sliding window, by GTSAM). There is no loop closure and no map. One camera
cannot see scale: lengths are in units of the first motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_ros.odometry.geometry import Pose, estimate_motion, parallax, reprojection_errors, triangulate

INITIALIZING, TRACKING, LOST = "initializing", "tracking", "lost"
_MIN_POINTS = 12  # fewer agreeing points are no pose
_MIN_COMMON = 30  # tracks needed for the first motion
_ADJUSTED_POINTS = 300  # per adjustment: more points cost time and gain little


@dataclass(frozen=True)
class Update:
    """What a frame gave.

    status: "initializing" (no pose yet), "tracking", or "lost" (the pose is a guess by constant motion).
    pose: of this frame, None while initializing. inliers: points that agree with it.
    """

    status: str
    pose: Pose | None
    inliers: int


class MonocularOdometry:
    """Camera poses from the tracks of one camera, frame by frame.

    Args:
        camera: intrinsics.
        threshold_px: largest reprojection error of an inlier in pixels.
        min_parallax_deg: smallest angle between two views of a point at which it is triangulated.
        window: keyframes that are adjusted together.

    Attributes:
        pose: of the last frame that has one, None before the first motion is known.
    """

    def __init__(
        self, camera: Camera, threshold_px: float = 1.5, min_parallax_deg: float = 1.0, window: int = 8
    ) -> None:
        self.camera = camera
        self.threshold = threshold_px / camera.focal
        self.min_parallax = np.radians(min_parallax_deg)
        self.window = window
        self.pose: Pose | None = None
        self._step = Pose()  # motion of the last frame, in the camera
        self._stamp_ns: int | None = None
        self._start()

    def reset(self) -> None:
        """Tracks have restarted: find a first motion again in the next frames, and continue from the last pose."""
        self._start()

    def _start(self) -> None:
        """Forget all tracks. Slots are the keyframes of the window; the last slot is always the newest frame."""
        self._slots = [self.pose or Pose()]
        self._ids = np.zeros(0, np.int64)
        self._seen = np.zeros((0, 1, 2))  # (tracks, slots, 2) rays, NaN where a track was not seen
        self._points = np.zeros((0, 3))  # world points, NaN where not triangulated
        self._bootstrapped = False
        self._age = 0

    def update(
        self,
        ids: np.ndarray,
        points_prev: np.ndarray,
        points: np.ndarray,
        stamp_ns: int | None = None,
        stamp_prev_ns: int | None = None,
    ) -> Update:
        """Take in the matches of a frame to the one before.

        Args:
            ids: (M,) track ids; of an id given twice the first row counts.
            points_prev, points: (M, 2) pixels in the previous frame and in this one.
            stamp_ns, stamp_prev_ns: times of the two frames. Where the previous one is not the frame of the last
                update (a message was lost), tracks continue by their ids and `points_prev` is not used.
        """
        contiguous = stamp_prev_ns is None or self._stamp_ns is None or stamp_prev_ns == self._stamp_ns
        self._stamp_ns = stamp_ns
        rays_prev, rays = self.camera.normalize(points_prev), self.camera.normalize(points)
        usable = np.isfinite(rays).all(axis=1) & np.isfinite(rays_prev).all(axis=1)
        ids, first = np.unique(np.asarray(ids, np.int64)[usable], return_index=True)
        rays_prev, rays = rays_prev[usable][first], rays[usable][first]
        self._carry_over(ids, rays_prev if contiguous else None)
        self._age += 1
        return self._track(rays) if self._bootstrapped else self._bootstrap(rays)

    def _carry_over(self, ids: np.ndarray, rays_prev: np.ndarray | None) -> None:
        """Bring the state's rows into the order of this frame's ids; tracks that ended are dropped."""
        seen = np.full((len(ids), len(self._slots), 2), np.nan)
        points = np.full((len(ids), 3), np.nan)
        _, new, old = np.intersect1d(ids, self._ids, assume_unique=True, return_indices=True)
        seen[new], points[new] = self._seen[old], self._points[old]
        if rays_prev is not None:
            fresh = ~np.isin(np.arange(len(ids)), new)
            seen[fresh, -1] = rays_prev[fresh]
        self._ids, self._seen, self._points = ids, seen, points

    # ---- the first motion ----

    def _bootstrap(self, rays: np.ndarray) -> Update:
        """First motion between the oldest slot and this frame, as soon as there is parallax."""
        common = np.isfinite(self._seen[:, 0, 0])
        if common.sum() < _MIN_COMMON:
            return self._bootstrap_again(rays)
        found = estimate_motion(self._seen[common, 0], rays[common], self.threshold)
        if found is not None and (update := self._accept_motion(rays, np.flatnonzero(common), *found)):
            return update
        if len(self._slots) == 1:  # the frame between the oldest and the newest is not kept
            self._append(rays, self._slots[0])
        else:
            self._seen[:, -1] = rays
        return self._no_pose()

    def _bootstrap_again(self, rays: np.ndarray) -> Update:
        """Too few tracks reach back to the oldest slot: this frame becomes the oldest."""
        update = self._no_pose()
        self._slots = [self.pose or Pose()]
        self._seen = rays[:, None].copy()
        self._age = 0
        return update

    def _no_pose(self) -> Update:
        """No pose yet; after a loss the one that constant motion gives, from which a new first motion goes on."""
        if self.pose is None:
            return Update(INITIALIZING, None, 0)
        self.pose = self._step.after(self.pose)
        return Update(LOST, self.pose, 0)

    def _accept_motion(self, rays: np.ndarray, rows: np.ndarray, motion: Pose, inlier: np.ndarray) -> Update | None:
        rows = rows[inlier]
        points = triangulate(Pose(), motion, self._seen[rows, 0], rays[rows])
        angles = parallax(Pose(), motion, self._seen[rows, 0], rays[rows])
        if len(rows) < _MIN_COMMON or inlier.mean() < 0.5 or np.median(angles) < self.min_parallax:
            return None
        origin = self._slots[0]
        # after a loss, the speed before it is the best guess of the scale
        known_speed = float(np.linalg.norm(self._step.translation))
        scale = known_speed * self._age if self.pose and known_speed > 0 else 1.0
        motion = Pose(motion.rotation, scale * motion.translation)
        self._slots, self._seen = [origin], self._seen[:, :1]
        self._append(rays, motion.after(origin))
        good = angles > self.min_parallax / 2
        self._points[rows[good]] = origin.inverse().apply(scale * points[good])
        self._bootstrapped = True
        turn = cv2.Rodrigues(motion.rotation)[0] / self._age
        self._step = Pose(cv2.Rodrigues(turn)[0], motion.translation / self._age)
        self.pose = self._slots[-1]
        return Update(TRACKING, self.pose, len(rows))

    # ---- every further frame ----

    def _track(self, rays: np.ndarray) -> Update:
        predicted = self._step.after(self._slots[-1])
        known = np.flatnonzero(np.isfinite(self._points[:, 0]))
        found = self._solve(known, rays, predicted)
        if found is None:
            return self._lose(predicted)
        pose, inlier = found
        self._step = pose.after(self._slots[-1].inverse())
        self._points[known[~inlier]] = np.nan
        self._seen[known[~inlier]] = np.nan  # a point that disagrees starts anew
        grown = self._last_is_keyframe()
        if grown:
            self._append(rays, pose)
        else:
            self._slots[-1] = pose
            self._seen[:, -1] = rays
        self._triangulate_new()
        if grown and len(self._slots) > 2:
            self._adjust()
        self.pose = self._slots[-1]
        return Update(TRACKING, self.pose, int(inlier.sum()))

    def _solve(self, known: np.ndarray, rays: np.ndarray, predicted: Pose) -> tuple[Pose, np.ndarray] | None:
        """Pose from triangulated points: RANSAC, then least squares over its inliers."""
        if len(known) < _MIN_POINTS:
            return None
        points, seen = self._points[known], rays[known]
        ok, turn, translation, chosen = cv2.solvePnPRansac(
            points, seen, np.eye(3), None,
            iterationsCount=200, reprojectionError=2 * self.threshold, confidence=0.999, flags=cv2.SOLVEPNP_SQPNP,
        )  # fmt: skip
        pose = Pose(cv2.Rodrigues(turn)[0], translation.ravel()) if ok else predicted
        if not ok or chosen is None or len(chosen) < _MIN_POINTS:
            pose = predicted
        for _ in range(2):
            inlier = reprojection_errors(pose, points, seen) < 2 * self.threshold
            if inlier.sum() < _MIN_POINTS or inlier.mean() < 0.3:
                return None
            turn, translation = cv2.solvePnPRefineLM(
                points[inlier], seen[inlier], np.eye(3), None, cv2.Rodrigues(pose.rotation)[0], pose.translation.copy()
            )
            pose = Pose(cv2.Rodrigues(turn)[0], translation.ravel())
        inlier = reprojection_errors(pose, points, seen) < 2 * self.threshold
        return (pose, inlier) if inlier.sum() >= _MIN_POINTS else None

    def _lose(self, predicted: Pose) -> Update:
        """Continue by constant motion, and look for a first motion again from here."""
        self.pose = predicted
        self._start()
        return Update(LOST, predicted, 0)

    def _last_is_keyframe(self) -> bool:
        """Whether the newest slot has moved enough against the one before to stay in the window."""
        if len(self._slots) < 2:
            return True
        rows = np.isfinite(self._seen[:, -2:, 0]).all(axis=1) & np.isfinite(self._points[:, 0])
        if rows.sum() < _MIN_COMMON:
            return True
        angles = parallax(self._slots[-2], self._slots[-1], self._seen[rows, -2], self._seen[rows, -1])
        return bool(np.median(angles) > self.min_parallax / 2)

    def _append(self, rays: np.ndarray, pose: Pose) -> None:
        keep = self.window - 1
        self._slots = [*self._slots[-keep:], pose]
        self._seen = np.concatenate([self._seen[:, -keep:], rays[:, None]], axis=1)

    def _triangulate_new(self) -> None:
        """Points for tracks that have none, from their oldest view in the window and the newest."""
        rows = np.flatnonzero(np.isnan(self._points[:, 0]) & np.isfinite(self._seen[:, :-1, 0]).any(axis=1))
        if not len(rows):
            return
        oldest = np.isfinite(self._seen[rows, :, 0]).argmax(axis=1)
        last = self._slots[-1]
        for slot in np.unique(oldest):
            some = rows[oldest == slot]
            first, a, b = self._slots[slot], self._seen[some, slot], self._seen[some, -1]
            points = triangulate(first, last, a, b)
            good = parallax(first, last, a, b) > self.min_parallax
            good &= (first.apply(points)[:, 2] > 0) & (last.apply(points)[:, 2] > 0)
            good &= (reprojection_errors(first, points, a) < self.threshold) & (
                reprojection_errors(last, points, b) < self.threshold
            )
            self._points[some[good]] = points[good]

    def _adjust(self) -> None:
        """Bundle adjustment of the window over the points with most views; the two oldest keyframes hold still."""
        views = np.isfinite(self._seen[:, :, 0]).sum(axis=1)
        rows = np.flatnonzero(np.isfinite(self._points[:, 0]) & (views > 2))
        if len(rows) < _MIN_POINTS:
            return
        from samfeat_ros.odometry.adjustment import adjust_bundle  # GTSAM: `main` of the node says if it is missing

        rows = rows[np.argsort(-views[rows], kind="stable")[:_ADJUSTED_POINTS]]
        slots, points = adjust_bundle(self._slots, self._points[rows], self._seen[rows], self.threshold / 2)
        self._slots, self._points[rows] = slots, points
