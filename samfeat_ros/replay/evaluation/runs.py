"""What a front-end did with the footage: one `TrackedFrame` per processed frame, and what it cost."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samfeat_ros.replay.evaluation.footage import Frame

MODEL, CLASSIC = "model", "classic"  # kinds of front-ends


@dataclass(frozen=True)
class TrackedFrame(Frame):
    """A frame of the footage with what one front-end found in it.

    Attributes:
        keypoints: (N, 2) float32 pixels. ids: (N,) int64 track ids.
        points_prev, points: (M, 2) float32 matched pixels in the previous processed frame and in this one.
        match_ids: (M,) int64. inlier: (M,) bool.
        number_prev: the previous frame's number, None where there is no match.
        latency_s: from the image's arrival to its matches, NaN where unknown.
    """

    keypoints: np.ndarray
    ids: np.ndarray
    points_prev: np.ndarray
    points: np.ndarray
    match_ids: np.ndarray
    inlier: np.ndarray
    number_prev: int | None
    latency_s: float = float("nan")

    @property
    def inlier_ratio(self) -> float:
        """NaN where there is no match."""
        return float(self.inlier.mean()) if len(self.inlier) else float("nan")


@dataclass
class Run:
    """One front-end's pass over the footage.

    Attributes:
        name: as in the report. kind: `MODEL` (the real node) or `CLASSIC` (OpenCV, in this process).
        offered: frames that it was given; dropped: cause -> count of those it did not process.
        frames: those that it processed, in order.
        seconds: how long the pass took on the play's clock.
        stages: stage -> its latencies in milliseconds, {"p50": ..., "p90": ..., "p99": ...}.
        cpu_percent: of one core, mean over the pass. memory_mb: largest resident memory of the node's process.
        device_memory_mb: GPU memory of that process. None = not known.
        details: for the report (engine, device, model, description).
    """

    name: str
    kind: str
    offered: int
    frames: list[TrackedFrame] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_percent: float | None = None
    memory_mb: float | None = None
    device_memory_mb: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 over keypoints, ids and matches of all frames: equal digests mean equal results to the bit."""
        sha = hashlib.sha256()
        for frame in self.frames:
            sha.update(np.int64(frame.number).tobytes())
            for part in (frame.keypoints, frame.ids, frame.points_prev, frame.points, frame.inlier):
                sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()
