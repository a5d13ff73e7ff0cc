"""Classic front-ends on the same frames: ORB and SIFT under the node's matcher, and corners under Lucas-Kanade."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.classic import CLASSIC as EXTRACTORS
from samfeat_core.measure import percentiles
from samfeat_core.tracking import ID_LIMIT, FrameTracker
from samfeat_core.two_view import epipolar_inliers
from samfeat_ros.node.parameters import Parameters
from samfeat_ros.replay.evaluation.footage import Footage, Frame
from samfeat_ros.replay.evaluation.runs import CLASSIC, Run, TrackedFrame

# Takes an image, its frame and the camera; gives what it found, and its seconds by stage.
FrontEnd = Callable[[np.ndarray, Frame, "Camera | None"], "tuple[TrackedFrame, dict[str, float]]"]


class DetectAndMatch:
    """An OpenCV detector and descriptor, and the node's own tracker.

    Args:
        name: of `samfeat_core.classic`.
        budget: largest number of keypoints.
        threshold_px, max_gap_s: of the epipolar test and of a restart, as the node's parameters.
    """

    def __init__(self, name: str, budget: int, threshold_px: float, max_gap_s: float) -> None:
        self.extract = EXTRACTORS[name](budget)
        self.tracker = FrameTracker(threshold_px=threshold_px, max_gap_s=max_gap_s)
        self.number_prev: int | None = None

    def __call__(self, image: np.ndarray, frame: Frame, camera: Camera | None) -> tuple[TrackedFrame, dict[str, float]]:
        start = time.perf_counter()
        features = self.extract(image)
        extracted = time.perf_counter()
        matches = self.tracker.update(features, frame.stamp_ns, camera)
        seconds = {"detect": extracted - start, "match": time.perf_counter() - extracted}
        previous = self.tracker.previous
        points = features.keypoints[matches.index]
        tracked = TrackedFrame(
            **vars(frame),
            keypoints=features.keypoints,
            ids=matches.track_ids,
            points_prev=previous.keypoints[matches.index_prev] if previous is not None else points,
            points=points,
            match_ids=matches.track_ids[matches.index],
            inlier=matches.inlier,
            number_prev=self.number_prev if len(matches) else None,
        )
        self.number_prev = frame.number
        return tracked, seconds


class LucasKanade:
    """Good features to track, followed by pyramidal Lucas-Kanade both ways, replenished in every frame.

    Tracks continue through epipolar inliers only, as those of the others do; this is the front-end of the VINS family.
    """

    def __init__(self, budget: int, threshold_px: float, max_gap_s: float) -> None:
        self.budget, self.threshold_px, self.max_gap_s = budget, threshold_px, max_gap_s
        self.next_id = 0
        self._forget()

    def _forget(self) -> None:
        self.image: np.ndarray | None = None
        self.frame: Frame | None = None
        self.points = np.zeros((0, 2), np.float32)
        self.ids = np.zeros(0, np.int64)

    def __call__(self, image: np.ndarray, frame: Frame, camera: Camera | None) -> tuple[TrackedFrame, dict[str, float]]:
        start = time.perf_counter()
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if self._must_restart(frame):
            self._forget()
        number_prev = None if self.frame is None else self.frame.number
        before, points, ids = self._follow(grey)
        inlier = epipolar_inliers(before, points, camera, self.threshold_px)
        tracked_at = time.perf_counter()
        self.image, self.frame = grey, frame
        new = self._replenish(grey, points[inlier])
        self.points = np.concatenate([points[inlier], new])
        self.ids = np.concatenate([ids[inlier], self._new_ids(len(new))])
        seconds = {"match": tracked_at - start, "detect": time.perf_counter() - tracked_at}
        tracked = TrackedFrame(
            **vars(frame),
            keypoints=self.points,
            ids=self.ids,
            points_prev=before,
            points=points,
            match_ids=np.where(inlier, ids, -1),  # a point that left the epipolar geometry has ended its track
            inlier=inlier,
            number_prev=number_prev if len(points) else None,
        )
        return tracked, seconds

    def _must_restart(self, frame: Frame) -> bool:
        if self.frame is None or frame.size != self.frame.size:
            return True
        return not 0 <= frame.stamp_ns - self.frame.stamp_ns <= self.max_gap_s * 1e9

    def _follow(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points in the previous image and in this one, (M, 2) float32, and their ids (M,)."""
        if self.image is None or not len(self.points):
            return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
        there, found = _flow(self.image, grey, self.points[:, None])
        back, found_back = _flow(grey, self.image, there)
        there, back = there[:, 0], back[:, 0]
        good = (found.ravel() > 0) & (found_back.ravel() > 0)
        good &= np.linalg.norm(back - self.points, axis=1) < 0.5
        good &= ((there >= 0) & (there <= np.array(grey.shape[::-1]) - 1)).all(axis=1)
        return self.points[good], there[good], self.ids[good]

    def _replenish(self, grey: np.ndarray, points: np.ndarray) -> np.ndarray:
        """New corners, as far from each other and from the tracked points as an even spread of the budget allows."""
        missing = self.budget - len(points)
        if missing <= 0:
            return np.zeros((0, 2), np.float32)
        distance = max(3.0, 0.6 * np.sqrt(grey.size / self.budget))
        mask = np.full(grey.shape, 255, np.uint8)
        for x, y in points:
            cv2.circle(mask, (round(float(x)), round(float(y))), round(distance), 0, -1)
        corners = cv2.goodFeaturesToTrack(grey, missing, 0.001, distance, mask=mask)
        return np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2).astype(np.float32)

    def _new_ids(self, count: int) -> np.ndarray:
        ids = (self.next_id + np.arange(count)) % ID_LIMIT
        self.next_id = (self.next_id + count) % ID_LIMIT
        return ids


def _flow(image: np.ndarray, other: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N, 1, 2) of one image lie in another, and which were found."""
    lucas_kanade: Any = cv2.calcOpticalFlowPyrLK  # OpenCV's stubs do not know the empty start
    moved, found, _ = lucas_kanade(image, other, points, None, winSize=(21, 21), maxLevel=3)
    return moved, found


# Name -> description for the report, and what makes the front-end from budget, threshold_px and max_gap_s.
FRONT_ENDS: dict[str, tuple[str, Callable[[int, float, float], FrontEnd]]] = {
    "orb": ("OpenCV ORB, the node's matcher on the Hamming distance", partial(DetectAndMatch, "orb")),
    "sift": ("OpenCV SIFT as RootSIFT, the node's matcher", partial(DetectAndMatch, "sift")),
    "lk": ("good features to track, pyramidal Lucas-Kanade forward and back", LucasKanade),
}


def run_classic(
    name: str,
    footage: Footage,
    budget: int,
    rate: float | None,
    on_frame: Callable[[], None] = lambda: None,
    threshold_px: float = Parameters.inlier_threshold,
    max_gap_s: float = Parameters.max_gap,
) -> Run:
    """Run a classic front-end over the footage in this process.

    At a rate, what it would do on a robot is computed from its measured times: an image that arrives while it works
    waits, and a newer one takes its place (the node's policy). Transport and image decoding are not in its latency.

    Args:
        name: of `FRONT_ENDS`.
        budget: largest number of keypoints.
        rate: times the recorded speed; None = every frame is processed.
        on_frame: called after every image, for a progress bar.
        threshold_px, max_gap_s: of the epipolar test and of a restart; the defaults are the node's.
    """
    description, make = FRONT_ENDS[name]
    front_end, run = make(budget, threshold_px, max_gap_s), Run(name, CLASSIC, len(footage.frames))
    run.details["description"] = description
    worker, cpu = _Worker(), 0.0
    stages: dict[str, list[float]] = {}
    for image, frame, arrival in worker.frames(footage, rate, on_frame):
        before = time.process_time()
        tracked, seconds = front_end(image, frame, footage.camera_of(frame.size))
        cpu += time.process_time() - before
        worker.free_at = max(worker.free_at, arrival) + sum(seconds.values())
        run.frames.append(replace(tracked, latency_s=worker.free_at - arrival))
        for stage, value in seconds.items():
            stages.setdefault(stage, []).append(1e3 * value)
    if worker.dropped:
        run.dropped["superseded"] = worker.dropped
    run.stages = {stage: found for stage, values in stages.items() if (found := percentiles(values))}
    run.seconds = max(worker.free_at, footage.duration_s / rate) if rate else worker.free_at
    run.cpu_percent = 100 * cpu / run.seconds if run.seconds else None
    return run


class _Worker:
    """A worker with one waiting slot, on the play's clock. The caller moves `free_at` by the time that a frame took."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.dropped = 0

    def frames(
        self, footage: Footage, rate: float | None, on_frame: Callable[[], None]
    ) -> Iterator[tuple[np.ndarray, Frame, float]]:
        """The frames that get processed, each with the time of its arrival (rate None: when the worker is free)."""
        waiting: tuple[np.ndarray, Frame, float] | None = None
        for frame, image in footage.images():
            on_frame()
            if rate is None:
                yield image, frame, self.free_at
                continue
            arrival = frame.time_ns * 1e-9 / rate
            if waiting and self.free_at <= arrival:
                yield waiting
                waiting = None
            if waiting is None and self.free_at <= arrival:
                yield image, frame, arrival
                continue
            self.dropped += waiting is not None
            waiting = (image, frame, arrival)
        if waiting:
            yield waiting
