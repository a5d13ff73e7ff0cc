"""The keys of the node's status on /diagnostics: what the node writes, and how others read it. Needs no ROS.

Keys (stable): state, model, weights (their hash), device, engine, frames_in, frames_processed, rate_in_hz,
rate_out_hz, dropped, dropped_<cause>, latency_<stage>_<p50|p90|p99>_ms for the stages and for their total, keypoints,
matches, inlier_ratio, image_age_s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samfeat_core.measure import RANKS
from samfeat_ros.topics import NODE

# What happens to a frame, in this order; no time is counted twice.
STAGES = ("queue", "decode", "network", "match", "publish")
TIMED = (*STAGES, "total")

# Causes of frames that were left out on purpose; every other cause is a fault.
ON_PURPOSE = frozenset({"superseded", "idle", "disabled", "inactive", "no_engine"})

_DROPPED = "dropped_"
_PERCENTILES = tuple(f"p{rank}" for rank in RANKS)


def latency_entries(stage: str, percentiles_s: Mapping[str, float] | None) -> dict[str, float]:
    """Entries of one stage from {p50: seconds, ...}; NaN where no frame has been processed yet."""
    return {_latency(stage, p): 1e3 * percentiles_s[p] if percentiles_s else float("nan") for p in _PERCENTILES}


def dropped_entries(counts: Mapping[str, int]) -> dict[str, int]:
    """Entries of {cause: count} of dropped frames."""
    return {f"{_DROPPED}{cause}": count for cause, count in sorted(counts.items())}


def latencies(status: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """{stage: {p50: milliseconds, ...}} for `TIMED`; NaN where the status does not say."""
    return {stage: {p: float(status.get(_latency(stage, p), "nan")) for p in _PERCENTILES} for stage in TIMED}


def dropped(status: Mapping[str, str]) -> dict[str, int]:
    """{cause: count} of dropped frames."""
    return {key[len(_DROPPED) :]: int(value) for key, value in status.items() if key.startswith(_DROPPED)}


def faults(counts: Mapping[str, int]) -> int:
    """How many of the dropped frames, {cause: count}, were not left out on purpose."""
    return sum(count for cause, count in counts.items() if cause not in ON_PURPOSE)


def values_from_msg(msg: Any, name: str = NODE) -> dict[str, str] | None:
    """Key-value pairs of the node's status, None when the message is another node's.

    Args:
        msg: a diagnostic_msgs/DiagnosticArray of /diagnostics.
        name: name of the node, without its namespace.
    """
    for status in msg.status:
        if status.name.split(":")[0].rstrip("/").rsplit("/", 1)[-1] == name:
            return {pair.key: pair.value for pair in status.values}
    return None


def _latency(stage: str, percentile: str) -> str:
    return f"latency_{stage}_{percentile}_ms"
