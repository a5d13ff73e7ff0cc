"""What the node knows about itself: counters, latencies, rates, and their /diagnostics message.

The keys of that message are in `samfeat_ros.node_status`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from samfeat_core.measure import percentiles
from samfeat_ros.node_status import STAGES, TIMED, dropped_entries, faults, latency_entries

# Latencies of the last frames; at 30 Hz a window of half a minute.
WINDOW = 1024
# Rates and refused frames are those of the last few reports, so that they do not flicker.
RATE_REPORTS = 5
STALE_AFTER_S = 2.0

_LEVELS = {0: DiagnosticStatus.OK, 1: DiagnosticStatus.WARN, 2: DiagnosticStatus.ERROR}


class Statistics:
    """Counts of one node, safe to use from its executor and its worker thread; memory does not grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Start again from zero."""
        with self._lock:
            self.frames_in = 0
            self.frames_processed = 0
            self.dropped: Counter[str] = Counter()
            self._latencies = {stage: deque[float](maxlen=WINDOW) for stage in TIMED}
            self._start = self._clock()
            self._last_image: float | None = None
            self._last_frame = {"keypoints": 0, "matches": 0, "inlier_ratio": float("nan")}
            self._reports: deque[tuple[float, int, int, int]] = deque([(self._start, 0, 0, 0)], maxlen=RATE_REPORTS)

    def received(self) -> None:
        """Count an image that arrived."""
        with self._lock:
            self.frames_in += 1
            self._last_image = self._clock()

    def drop(self, cause: str) -> None:
        """Count a frame that gave no output, under its cause."""
        with self._lock:
            self.dropped[cause] += 1

    def processed(self, latency_s: Mapping[str, float], keypoints: int, matches: int, inlier_ratio: float) -> None:
        """Count a frame that gave output, with its seconds per stage."""
        with self._lock:
            self.frames_processed += 1
            for stage in STAGES:
                self._latencies[stage].append(latency_s[stage])
            self._latencies["total"].append(sum(latency_s[stage] for stage in STAGES))
            self._last_frame = {"keypoints": keypoints, "matches": matches, "inlier_ratio": inlier_ratio}

    def silence_s(self) -> float:
        """Seconds since the last image, or since the counts began."""
        with self._lock:
            return self._clock() - (self._start if self._last_image is None else self._last_image)

    def report(self) -> tuple[int, str, dict[str, str]]:
        """Level (0 ok, 1 warning, 2 error), one-line summary, and key-value pairs."""
        now = self._clock()
        with self._lock:
            start, frames_in, frames_out, faults_then = self._reports[0]
            elapsed = max(now - start, 1e-9)
            age = float("nan") if self._last_image is None else now - self._last_image
            faults_now = faults(self.dropped)
            values: dict[str, Any] = {
                "frames_in": self.frames_in,
                "frames_processed": self.frames_processed,
                "rate_in_hz": (self.frames_in - frames_in) / elapsed,
                "rate_out_hz": (self.frames_processed - frames_out) / elapsed,
                "dropped": sum(self.dropped.values()),
                **dropped_entries(self.dropped),
                **self._latency_entries(),
                **self._last_frame,
                "image_age_s": age,
            }
            self._reports.append((now, self.frames_in, self.frames_processed, faults_now))
        level, summary = _judge(age, faults_now - faults_then, elapsed, values)
        return level, summary, {key: _text(value) for key, value in values.items()}

    def _latency_entries(self) -> dict[str, float]:
        entries: dict[str, float] = {}
        for stage, seconds in self._latencies.items():
            entries |= latency_entries(stage, percentiles(seconds))
        return entries


def _judge(age: float, new_faults: int, elapsed: float, values: Mapping[str, Any]) -> tuple[int, str]:
    if np.isnan(age):
        return 1, "no image received yet"
    if age > STALE_AFTER_S:
        return 1, f"no image for {age:.1f} s"
    if new_faults:
        return 1, f"{new_faults} frames refused in the last {elapsed:.0f} s"
    return 0, f"{values['rate_in_hz']:.1f} Hz in, {values['rate_out_hz']:.1f} Hz out"


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def diagnostics_to_msg(
    stamp: Any, name: str, level: int, summary: str, values: Mapping[str, str], hardware_id: str = ""
) -> DiagnosticArray:
    """One status as a DiagnosticArray."""
    status = DiagnosticStatus(
        level=_LEVELS[level],
        name=name,
        message=summary,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    msg = DiagnosticArray(status=[status])
    msg.header.stamp = stamp
    return msg
