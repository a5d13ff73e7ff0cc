"""What a trajectory is computed from: the tracks of a run, frame by frame, and random draws of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from samfeat_core.camera import Camera
from samfeat_ros.replay.evaluation.runs import TrackedFrame


@dataclass(frozen=True)
class View:
    """The tracks of one frame.

    Attributes:
        number: of the frame in the recording.
        ids: (N,) int64 track ids, ascending, none twice.
        rays: (N, 2) float64 undistorted normalised coordinates (X/Z, Y/Z).
    """

    number: int
    ids: np.ndarray
    rays: np.ndarray

    def common(self, other: View) -> tuple[np.ndarray, np.ndarray]:
        """(M, 2) rays in this view and in the other of the tracks that both see."""
        _, a, b = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        return self.rays[a], other.rays[b]


def views_of(frames: Sequence[TrackedFrame], camera_of: Callable[[TrackedFrame], Camera | None]) -> list[View]:
    """The inlier matches of a run as views, in order: one of each frame that has a camera, empty where nothing matched.

    A match places its track in both of its frames. A track that pauses and returns under its id is one track.
    """
    cameras = {frame.number: camera for frame in frames if (camera := camera_of(frame)) is not None}
    seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {number: [] for number in cameras}
    for frame in frames:
        keep = frame.inlier
        for number, points in ((frame.number_prev, frame.points_prev), (frame.number, frame.points)):
            if number in seen:
                seen[number].append((frame.match_ids[keep], points[keep]))
    return [_view(number, seen[number], cameras[number]) for number in sorted(cameras)]


def _view(number: int, seen: list[tuple[np.ndarray, np.ndarray]], camera: Camera) -> View:
    if not seen:
        return View(number, np.zeros(0, np.int64), np.zeros((0, 2)))
    ids, first = np.unique(np.concatenate([ids for ids, _ in seen]), return_index=True)
    rays = camera.normalize(np.concatenate([points for _, points in seen])[first])
    usable = np.isfinite(rays).all(axis=1)
    return View(number, ids[usable].astype(np.int64), rays[usable])


def draw_tracks(views: Sequence[View], per_view: int, seed: int) -> list[View]:
    """The same views with a random choice of tracks: about `per_view` in each, a long one with the better chance.

    Weighted sampling without replacement (Efraimidis and Spirakis 2006): the weight of a track is its length, and it is
    kept if it is among the first `per_view` of one of its views.
    """
    if not views:
        return []
    ids, lengths = np.unique(np.concatenate([view.ids for view in views]), return_counts=True)
    key = np.random.default_rng(seed).random(len(ids)) ** (1 / lengths)
    keep = np.zeros(len(ids), bool)
    rows = [np.searchsorted(ids, view.ids) for view in views]
    for row in rows:
        keep[row[np.argsort(-key[row], kind="stable")[:per_view]]] = True
    return [View(view.number, view.ids[keep[row]], view.rays[keep[row]]) for view, row in zip(views, rows)]
