"""Front-ends: an extractor and a tracker together, ours and the classic ones, run over footage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from samfeat_core.classic import CLASSIC, Extractor
from samfeat_core.features import Features
from samfeat_core.tracking import TRACKERS, CornerTracker, Tracker, make_tracker
from training.evaluation.tracks.footage import Footage

VINS_POINTS, VINS_SPACING = 150, 30.0  # VINS-Fusion's max_cnt and min_dist


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class TrackedFrame:
    """What a front-end says of a frame: ids (n,), points (n, 2), sources (n,), and pairs of points (m, 2) that it takes
    for inliers, from the frame before."""

    ids: np.ndarray
    points: np.ndarray
    sources: np.ndarray
    inliers_prev: np.ndarray
    inliers: np.ndarray


@dataclass(frozen=True)
class Run:
    """A front-end on footage: its frames, and the milliseconds that its tracker took for each."""

    frames: list[TrackedFrame]
    milliseconds: list[float] = field(default_factory=list)


class FeatureCache:
    """An extractor that remembers the features of one footage, as several trackers look at it in turn."""

    def __init__(self, extractor: Extractor, max_keypoints: int) -> None:
        self.extractor, self.max_keypoints = extractor, max_keypoints
        self._footage: Footage | None = None
        self._features: dict[int, Features] = {}

    def __call__(self, footage: Footage, frame: int) -> Features:
        if footage is not self._footage:
            self._footage, self._features = footage, {}
        if frame not in self._features:
            from training.evaluation.extractors import cut

            self._features[frame] = cut(self.extractor(footage.image(frame)), self.max_keypoints)
        return self._features[frame]


@dataclass(frozen=True)
class FrontEnd:
    """features: (footage, frame) -> Features, None = the tracker looks at the image alone. tracker: makes a new one."""

    features: Callable[[Footage, int], Features] | None
    tracker: Callable[[], Tracker]

    def run(self, footage: Footage, progress: Callable[[range], Iterable[int]] = iter) -> Run:
        """Tracks over the whole footage."""
        tracker, run = self.tracker(), Run([])
        for frame in progress(range(len(footage))):
            image = footage.image(frame)
            features = Features.empty(footage.size, 0) if self.features is None else self.features(footage, frame)
            # Warped footage has no one camera matrix: there the fundamental matrix has to do.
            known = footage.camera if footage.warps is None else None
            start = time.perf_counter()
            matches = tracker.update(features, footage.stamps_ns[frame], known, image)
            run.milliseconds.append((time.perf_counter() - start) * 1e3)
            run.frames.append(_frame(tracker, matches))
        return run


def _frame(tracker: Tracker, matches) -> TrackedFrame:
    current, previous = tracker.current, tracker.previous
    assert current is not None
    now, before = matches.index[matches.inlier], matches.index_prev[matches.inlier]
    earlier = np.zeros((0, 2), np.float32) if previous is None else previous.keypoints[before]
    return TrackedFrame(matches.track_ids, current.keypoints, matches.sources, earlier, current.keypoints[now])


def front_ends(extractors: dict[str, Extractor], max_keypoints: int) -> dict[str, FrontEnd]:
    """Every tracker on every extractor of ours, frame-to-frame matches on the others, and corners under flow.

    Args:
        extractors: by the label of the evaluation; OpenCV's bring the classic front-ends with them.
    """
    chosen: dict[str, FrontEnd] = {}
    for label, extractor in extractors.items():
        features = FeatureCache(extractor, max_keypoints)
        names = ("match",) if label in CLASSIC else TRACKERS
        for name in names:
            chosen[f"{label} {name}"] = FrontEnd(features, partial(make_tracker, name, max_keypoints))
    if any(label in CLASSIC for label in extractors):
        chosen["corners"] = FrontEnd(None, partial(CornerTracker, max_keypoints))
        chosen["corners vins"] = FrontEnd(None, partial(CornerTracker, VINS_POINTS, VINS_SPACING))
    return chosen
