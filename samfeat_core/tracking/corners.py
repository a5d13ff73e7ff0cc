"""Corners under optical flow: the classic front-end of the VINS family, as a yardstick for the other trackers."""

from __future__ import annotations

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches
from samfeat_core.tracking.base import DETECTED, FOLLOWED, Tracker
from samfeat_core.two_view import epipolar_inliers

WINDOW, LEVELS = (21, 21), 3
RETURN_PX = 0.5  # flow back to the last frame must end this near
QUALITY = 0.001  # of the weakest corner, relative to the strongest (Shi and Tomasi 1994)


class CornerTracker(Tracker):
    """Good features to track, followed by pyramidal Lucas-Kanade both ways and replenished in every frame.

    Uses the image alone: features given to `update` are not looked at, and rows have descriptors of dimension 0.
    Tracks continue through epipolar inliers.

    Args:
        max_points: most rows of a frame.
        spacing: pixels between two points; None = as far apart as an even spread of `max_points` allows.
        bounds: see `Tracker`; those of matching have no meaning here.
    """

    def __init__(self, max_points: int = 1024, spacing: float | None = None, **bounds: float | bool | None) -> None:
        self.max_points, self.spacing = max_points, spacing
        super().__init__(**bounds)  # type: ignore[arg-type]

    def _forget(self) -> None:
        self._grey: np.ndarray | None = None
        self._points = np.zeros((0, 2), np.float32)
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
        if image is None:
            raise ValueError("CornerTracker needs the image of every frame")
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        rows, points = self._follow(grey)
        inlier = np.ones(len(points), bool)
        if self.verify:
            inlier = epipolar_inliers(self._points[rows], points, camera, self.threshold_px)
        kept, points = rows[inlier], points[inlier]
        new = self._find(grey, points, mask)
        ids = np.concatenate([self._ids[kept], self._new_ids(len(new), self._ids[kept])])
        lengths = np.concatenate([self._lengths[kept] + 1, np.ones(len(new), np.int64)])
        points = np.concatenate([points, new])
        self._grey, self._points, self._ids, self._lengths = grey, points, ids, lengths

        count = len(kept)
        sources = np.full(len(points), DETECTED, np.uint8)
        sources[:count] = FOLLOWED
        nothing = np.zeros((len(points), 0), np.float32)
        current = Features(points, np.ones(len(points), np.float32), nothing, features.image_size)
        similarity, every = np.ones(count, np.float32), np.ones(count, bool)
        return current, Matches(np.arange(count), kept, similarity, every, ids, restarted, lengths, sources)

    def _must_restart(self, features: Features, stamp_ns: int | None) -> bool:
        nothing = np.zeros((len(features), 0), np.float32)
        return super()._must_restart(
            Features(features.keypoints, features.scores, nothing, features.image_size), stamp_ns
        )

    def _follow(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the last frame that were found in this one, and (M, 2) float32 where."""
        if self._grey is None or not len(self._points):
            return np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
        there, found = _flow(self._grey, grey, self._points)
        back, found_back = _flow(grey, self._grey, there)
        good = found & found_back & (np.linalg.norm(back - self._points, axis=1) < RETURN_PX)
        good &= ((there >= 0) & (there <= np.array(grey.shape[::-1]) - 1)).all(axis=1)
        return np.flatnonzero(good), there[good]

    def _find(self, grey: np.ndarray, points: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """New corners (n, 2) float32, apart from each other and from the points (M, 2)."""
        missing = self.max_points - len(points)
        if missing <= 0:
            return np.zeros((0, 2), np.float32)
        distance = self.spacing or max(3.0, 0.6 * float(np.sqrt(grey.size / self.max_points)))
        allowed = np.full(grey.shape, 255, np.uint8) if mask is None else np.where(mask > 0, 255, 0).astype(np.uint8)
        for x, y in points:
            cv2.circle(allowed, (round(float(x)), round(float(y))), round(distance), 0, -1)
        corners = cv2.goodFeaturesToTrack(grey, missing, QUALITY, distance, mask=allowed)
        return np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2).astype(np.float32)


def _flow(image: np.ndarray, other: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N, 2) of one image lie in another, and which were found."""
    moved, found, _ = cv2.calcOpticalFlowPyrLK(  # type: ignore[call-overload]
        image, other, points[:, None], None, winSize=WINDOW, maxLevel=LEVELS
    )
    return moved[:, 0], found[:, 0] > 0
