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
from samfeat_core.features import Features
from samfeat_core.measure import percentiles
from samfeat_core.tracking import ID_LIMIT, FrameTracker
from samfeat_core.two_view import epipolar_inliers
from samfeat_ros.replay.evaluation.footage import Footage, FrameInfo
from samfeat_ros.replay.evaluation.runs import Record, Run

INLIER_THRESHOLD_PX = 1.5  # the node's default
MAX_GAP_S = 1.0

FrontEnd = Callable[[np.ndarray, FrameInfo, "Camera | None"], "tuple[Record, dict[str, float]]"]


class DetectAndMatch:
    """An OpenCV detector and descriptor, and the node's own tracker.

    Args:
        name: "orb" or "sift".
        budget: largest number of keypoints.
        threshold_px, max_gap_s: of the epipolar test and of a restart, as the node's parameters.
    """

    def __init__(self, name: str, budget: int, threshold_px: float, max_gap_s: float) -> None:
        opencv: Any = cv2  # its stubs lack these
        self.detector = opencv.ORB_create(nfeatures=budget) if name == "orb" else opencv.SIFT_create(nfeatures=budget)
        self.describe = _orb_rows if name == "orb" else _root_sift_rows
        self.dim, self.budget = (256, budget) if name == "orb" else (128, budget)
        self.tracker = FrameTracker(threshold_px=threshold_px, max_gap_s=max_gap_s)
        self.number_prev: int | None = None

    def __call__(self, image: np.ndarray, info: FrameInfo, camera: Camera | None) -> tuple[Record, dict[str, float]]:
        start = time.perf_counter()
        features = self._extract(_grey(image), info.size)
        extracted = time.perf_counter()
        matches = self.tracker.update(features, info.stamp_ns, camera)
        seconds = {"detect": extracted - start, "match": time.perf_counter() - extracted}
        previous = self.tracker.previous
        points = features.keypoints[matches.index]
        record = Record(
            info.number,
            info.stamp_ns,
            info.time_ns,
            info.size,
            features.keypoints,
            matches.track_ids,
            previous.keypoints[matches.index_prev] if previous is not None else points,
            points,
            matches.track_ids[matches.index],
            matches.inlier,
            self.number_prev if len(matches) else None,
        )
        self.number_prev = info.number
        return record, seconds

    def _extract(self, image: np.ndarray, size: tuple[int, int]) -> Features:
        found, raw = self.detector.detectAndCompute(image, None)
        if raw is None or not found:
            return Features.empty(size, self.dim)
        scores = np.array([keypoint.response for keypoint in found], np.float32)
        order = np.argsort(-scores, kind="stable")[: self.budget]
        points = np.array([keypoint.pt for keypoint in found], np.float32)[order]
        return Features(points, scores[order], self.describe(raw[order]), size)


def _orb_rows(raw: np.ndarray) -> np.ndarray:
    """Unit rows of +-1/16 for 256 bits: the dot product falls with the Hamming distance."""
    return (np.unpackbits(raw, axis=1).astype(np.float32) - 0.5) / 8.0


def _root_sift_rows(raw: np.ndarray) -> np.ndarray:
    """Unit rows by the Hellinger kernel: the square root of the L1-normalised histogram."""
    return np.sqrt(raw / np.maximum(raw.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


class LucasKanade:
    """Good features to track, followed by pyramidal Lucas-Kanade both ways, replenished in every frame.

    Tracks go on through epipolar inliers, as they do for the others; this is the front-end of the VINS family.
    """

    def __init__(self, budget: int, threshold_px: float, max_gap_s: float) -> None:
        self.budget, self.threshold_px, self.max_gap_s = budget, threshold_px, max_gap_s
        self.next_id = 0
        self._forget()

    def _forget(self) -> None:
        self.image: np.ndarray | None = None
        self.info: FrameInfo | None = None
        self.points = np.zeros((0, 2), np.float32)
        self.ids = np.zeros(0, np.int64)

    def __call__(self, image: np.ndarray, info: FrameInfo, camera: Camera | None) -> tuple[Record, dict[str, float]]:
        start = time.perf_counter()
        grey = _grey(image)
        if self._must_restart(info):
            self._forget()
        number_prev = None if self.info is None else self.info.number
        before, points, ids = self._follow(grey)
        inlier = epipolar_inliers(before, points, camera, self.threshold_px)
        tracked = time.perf_counter()
        self.image, self.info = grey, info
        # a point that left the epipolar geometry ends its track
        match_ids = np.where(inlier, ids, -1)
        new = self._replenish(grey, points[inlier])
        self.points = np.concatenate([points[inlier], new])
        self.ids = np.concatenate([ids[inlier], self._new_ids(len(new))])
        seconds = {"match": tracked - start, "detect": time.perf_counter() - tracked}
        number = info.number
        record = Record(
            number, info.stamp_ns, info.time_ns, info.size, self.points, self.ids, before, points, match_ids, inlier,
            number_prev if len(points) else None,
        )  # fmt: skip
        return record, seconds

    def _must_restart(self, info: FrameInfo) -> bool:
        if self.info is None or info.size != self.info.size:
            return True
        return not 0 <= info.stamp_ns - self.info.stamp_ns <= self.max_gap_s * 1e9

    def _follow(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        distance = max(3.0, 0.6 * np.sqrt(grey.size / self.budget))
        mask = np.full(grey.shape, 255, np.uint8)
        for x, y in points:
            cv2.circle(mask, (round(float(x)), round(float(y))), round(distance), 0, -1)
        if missing <= 0:
            return np.zeros((0, 2), np.float32)
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


BASELINES: dict[str, tuple[str, Callable[[int, float, float], FrontEnd]]] = {
    "orb": ("OpenCV ORB, the node's matcher on the Hamming distance", partial(DetectAndMatch, "orb")),
    "sift": ("OpenCV SIFT as RootSIFT, the node's matcher", partial(DetectAndMatch, "sift")),
    "lk": ("good features to track, pyramidal Lucas-Kanade forward and back", LucasKanade),
}


def run_baseline(
    name: str,
    footage: Footage,
    budget: int,
    rate: float | None,
    on_frame: Callable[[], None] = lambda: None,
    threshold_px: float = INLIER_THRESHOLD_PX,
    max_gap_s: float = MAX_GAP_S,
) -> Run:
    """Run a classic front-end over the footage in this process.

    At a rate, what it would do on a robot is computed from its measured times: an image that arrives while it works
    waits, and a newer one takes its place (the node's policy). Transport and image decoding are not in its latency.

    Args:
        rate: times the recorded speed; None = every frame is processed.
        threshold_px, max_gap_s: of the epipolar test and of a restart, as the node's parameters.
    """
    description, make = BASELINES[name]
    front_end, run = make(budget, threshold_px, max_gap_s), Run(name, "baseline", len(footage.frames))
    run.details["description"] = description
    worker, cpu = _Worker(), 0.0
    stages: dict[str, list[float]] = {}
    for image, info, arrival in worker.frames(footage, rate, on_frame):
        before = time.process_time()
        record, seconds = front_end(image, info, footage.camera_of(info.size))
        cpu += time.process_time() - before
        worker.free_at = max(worker.free_at, arrival) + sum(seconds.values())
        run.records.append(replace(record, latency_s=worker.free_at - arrival))
        for stage, value in seconds.items():
            stages.setdefault(stage, []).append(1e3 * value)
    if worker.dropped:
        run.dropped["superseded"] = worker.dropped
    run.stages = {stage: found for stage, values in stages.items() if (found := percentiles(values))}
    run.seconds = max(worker.free_at, footage.duration_s / rate) if rate else worker.free_at
    run.cpu_percent = 100 * cpu / run.seconds if run.seconds else None
    return run


class _Worker:
    """A worker with one waiting slot, on the play's clock. The caller moves `free_at` by the time a frame took."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.dropped = 0

    def frames(
        self, footage: Footage, rate: float | None, on_frame: Callable[[], None]
    ) -> Iterator[tuple[np.ndarray, FrameInfo, float]]:
        """The frames that get processed, each with the time of its arrival (rate None: when the worker is free)."""
        waiting: tuple[np.ndarray, FrameInfo, float] | None = None
        for info, image in footage.images():
            on_frame()
            if rate is None:
                yield image, info, self.free_at
                continue
            arrival = info.time_ns * 1e-9 / rate
            if waiting and self.free_at <= arrival:
                yield waiting
                waiting = None
            if waiting is None and self.free_at <= arrival:
                yield image, info, arrival
                continue
            self.dropped += waiting is not None
            waiting = (image, info, arrival)
        if waiting:
            yield waiting


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
