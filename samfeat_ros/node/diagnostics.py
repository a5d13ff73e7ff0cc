"""What the node knows about itself: counters, latencies, rates, and their /diagnostics message.

Keys of the status (stable; `values_from_msg` reads them): state, model, device, engine, frames_in, frames_processed,
rate_in_hz, rate_out_hz, dropped, dropped_<cause>, latency_<stage>_p50_ms, _p90_ms and _p99_ms for the stages queue,
decode, network, match, publish and for their total, keypoints, matches, inlier_ratio, image_age_s.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

STAGES = ("queue", "decode", "network", "match", "publish")
# Latencies of the last frames; at 30 Hz a window of half a minute.
WINDOW = 1024
# Rates are taken over the last few reports, so that they do not flicker.
RATE_REPORTS = 5
STALE_AFTER_S = 2.0

# Frames that were left out on purpose; every other cause is a fault.
HARMLESS = frozenset({"superseded", "idle", "disabled", "inactive"})

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
            self._latencies = {stage: deque[float](maxlen=WINDOW) for stage in (*STAGES, "total")}
            self._last_image: float | None = None
            self._last_frame = {"keypoints": 0, "matches": 0, "inlier_ratio": float("nan")}
            self._reports: deque[tuple[float, int, int]] = deque([(self._clock(), 0, 0)], maxlen=RATE_REPORTS)
            self._faults_reported = 0

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

    def report(self) -> tuple[int, str, dict[str, str]]:
        """Level (0 ok, 1 warning, 2 error), one-line summary, and key-value pairs."""
        now = self._clock()
        with self._lock:
            start, frames_in, frames_out = self._reports[0]
            elapsed = max(now - start, 1e-9)
            age = float("nan") if self._last_image is None else now - self._last_image
            faults = sum(count for cause, count in self.dropped.items() if cause not in HARMLESS)
            new_faults, self._faults_reported = faults - self._faults_reported, faults
            values: dict[str, Any] = {
                "frames_in": self.frames_in,
                "frames_processed": self.frames_processed,
                "rate_in_hz": (self.frames_in - frames_in) / elapsed,
                "rate_out_hz": (self.frames_processed - frames_out) / elapsed,
                "dropped": sum(self.dropped.values()),
                **{f"dropped_{cause}": count for cause, count in sorted(self.dropped.items())},
                **{
                    key: value
                    for stage, seconds in self._latencies.items()
                    for key, value in _percentiles(stage, seconds)
                },
                **self._last_frame,
                "image_age_s": age,
            }
            self._reports.append((now, self.frames_in, self.frames_processed))
        level, summary = _judge(age, new_faults, values)
        return level, summary, {key: _text(value) for key, value in values.items()}


def _percentiles(stage: str, seconds: deque[float]) -> list[tuple[str, float]]:
    ranks = (50, 90, 99)
    values = np.percentile(seconds, ranks) * 1e3 if seconds else np.full(len(ranks), np.nan)
    return [(f"latency_{stage}_p{rank}_ms", float(value)) for rank, value in zip(ranks, values)]


def _judge(age: float, new_faults: int, values: Mapping[str, Any]) -> tuple[int, str]:
    if np.isnan(age):
        return 1, "no image received yet"
    if age > STALE_AFTER_S:
        return 1, f"no image for {age:.1f} s"
    if new_faults:
        return 1, f"{new_faults} frames refused since the last report"
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


def values_from_msg(msg: DiagnosticArray, name: str = "samfeat") -> dict[str, str] | None:
    """Key-value pairs of the node's status, None when the message is another node's.

    Args:
        msg: a message of /diagnostics.
        name: name of the node, without its namespace.
    """
    for status in msg.status:
        if status.name.split(":")[0].rstrip("/").rsplit("/", 1)[-1] == name:
            return {pair.key: pair.value for pair in status.values}
    return None
