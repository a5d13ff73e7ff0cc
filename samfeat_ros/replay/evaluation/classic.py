"""Classic front-ends on the same frames: ORB and SIFT under the node's matcher, and corners under Lucas-Kanade."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.classic import CLASSIC as EXTRACTORS
from samfeat_core.classic import Extractor
from samfeat_core.features import Features
from samfeat_core.measure import percentiles
from samfeat_core.tracking import CornerTracker, MatchTracker, Tracker
from samfeat_ros.node.parameters import Parameters
from samfeat_ros.replay.evaluation.footage import Footage, Frame
from samfeat_ros.replay.evaluation.runs import CLASSIC, Run, TrackedFrame


class FrontEnd:
    """A tracker of the node's library, on the features of an OpenCV detector or on the image alone.

    Args:
        extract: image -> Features; None = the tracker looks at the image alone.
        tracker: gives ids and matches.
    """

    def __init__(self, extract: Extractor | None, tracker: Tracker) -> None:
        self.extract, self.tracker = extract, tracker
        self.number_prev: int | None = None

    def __call__(self, image: np.ndarray, frame: Frame, camera: Camera | None) -> tuple[TrackedFrame, dict[str, float]]:
        """What it found in a frame, and its seconds by stage."""
        start = time.perf_counter()
        features = Features.empty(frame.size, 0) if self.extract is None else self.extract(image)
        extracted = time.perf_counter()
        matches = self.tracker.update(features, frame.stamp_ns, camera, image)
        seconds = {"detect": extracted - start, "match": time.perf_counter() - extracted}
        current, previous = self.tracker.current, self.tracker.previous
        assert current is not None
        points = current.keypoints[matches.index]
        tracked = TrackedFrame(
            **vars(frame),
            keypoints=current.keypoints,
            ids=matches.track_ids,
            points_prev=previous.keypoints[matches.index_prev] if previous is not None else points,
            points=points,
            match_ids=matches.track_ids[matches.index],
            inlier=matches.inlier,
            number_prev=self.number_prev if len(matches) else None,
        )
        self.number_prev = frame.number
        return tracked, seconds


def _detect_and_match(name: str, budget: int, threshold_px: float, max_gap_s: float, verify: bool) -> FrontEnd:
    tracker = MatchTracker(threshold_px=threshold_px, max_gap_s=max_gap_s, verify=verify)
    return FrontEnd(EXTRACTORS[name](budget), tracker)


def _corners(budget: int, threshold_px: float, max_gap_s: float, verify: bool) -> FrontEnd:
    return FrontEnd(None, CornerTracker(budget, threshold_px=threshold_px, max_gap_s=max_gap_s, verify=verify))


# Name -> description for the report, and what makes the front-end from budget, threshold_px, max_gap_s and verify.
FRONT_ENDS: dict[str, tuple[str, Callable[[int, float, float, bool], FrontEnd]]] = {
    "orb": ("OpenCV ORB, the node's matcher on the Hamming distance", partial(_detect_and_match, "orb")),
    "sift": ("OpenCV SIFT as RootSIFT, the node's matcher", partial(_detect_and_match, "sift")),
    "lk": ("good features to track, pyramidal Lucas-Kanade forward and back", _corners),
}


def run_classic(
    name: str,
    footage: Footage,
    budget: int,
    rate: float | None,
    on_frame: Callable[[], None] = lambda: None,
    threshold_px: float = Parameters.inlier_threshold,
    max_gap_s: float = Parameters.max_gap,
    verify: bool = Parameters.verify,
) -> Run:
    """Run a classic front-end over the footage in this process.

    At a rate, what it would do on a robot is computed from its measured times: an image that arrives while it works
    waits, and a newer one takes its place (the node's policy). Transport and image decoding are not in its latency.

    Args:
        name: of `FRONT_ENDS`.
        budget: largest number of keypoints.
        rate: times the recorded speed; None = every frame is processed.
        on_frame: called after every image, for a progress bar.
        threshold_px, max_gap_s, verify: of the epipolar test and of a restart; the defaults are the node's.
    """
    description, make = FRONT_ENDS[name]
    front_end, run = make(budget, threshold_px, max_gap_s, verify), Run(name, CLASSIC, len(footage.frames))
    run.details["description"] = description
    worker, cpu = _Worker(), 0.0
    stages: dict[str, list[float]] = {}
    for image, frame, arrival in worker.frames(footage, rate, on_frame):
        before = time.process_time()
        tracked, seconds = front_end(image, frame, footage.camera_of(frame))
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
