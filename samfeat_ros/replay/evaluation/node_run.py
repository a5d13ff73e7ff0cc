"""A model's pass over the footage: through the real node, in a process of its own, over ROS."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from samfeat_core.tracking import ID_LIMIT
from samfeat_ros import node_status
from samfeat_ros.messages import Keypoints, MatchRows, keypoints_from_msg, matches_from_msg
from samfeat_ros.replay.evaluation.footage import Footage, Frame
from samfeat_ros.replay.evaluation.runs import MODEL, Run, TrackedFrame
from samfeat_ros.replay.node_process import NodeProcess
from samfeat_ros.replay.playback import Playback, RoundTrip

ANSWER_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 600.0  # an engine may have to be built first


@dataclass(frozen=True)
class ModelChoice:
    """A model to evaluate: its name, a weights file ("" = the shipped one), and further parameters of the node."""

    name: str
    weights: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} ({Path(self.weights).name})" if self.weights else self.name


def run_model(
    choice: ModelChoice,
    footage: Footage,
    budget: int,
    rate: float | None,
    on_frame: Callable[[], None] = lambda: None,
    log: Path | None = None,
) -> Run:
    """Play the footage to the node and take in its keypoints and matches.

    Args:
        budget: largest number of keypoints.
        rate: times the recorded speed; None = one image in flight, so that every frame is processed.
        on_frame: called after every image, for a progress bar.
        log: file for the node's terminal output.

    Raises:
        NodeError: the node does not come up, or ends.
    """
    parameters = {"model": choice.name, "weights": choice.weights, "max_keypoints": budget, **choice.parameters}
    outputs = _Outputs(footage.frames)
    process = NodeProcess(parameters, footage.recording.image_type, READY_TIMEOUT_S, log)
    with process, Playback(process, ("keypoints", "matches"), outputs.take) as playback:
        playback.wait_until_ready(next(message for _, message in footage.messages()))
        usage = _Usage(process.pid)

        def after_frame() -> None:
            usage.sample()
            on_frame()

        playback.play((message for _, message in footage.messages()), rate, ANSWER_TIMEOUT_S, after_frame)
        usage.finish()
        status = playback.status
    run = Run(choice.label, MODEL, len(footage.frames))
    run.frames = outputs.tracked(playback.round_trips)
    run.seconds = _duration(playback.round_trips)
    run.cpu_percent, run.memory_mb, run.device_memory_mb = usage.result(run.seconds)
    run.stages, run.dropped = _stages(status), _drops(status, run)
    run.details = {
        "description": "the node, over ROS",
        "model": choice.name,
        "weights": choice.weights or "shipped",
        "weights_hash": status.get("weights", ""),
        "device": status.get("device", "unknown"),
        "engine": status.get("engine", "unknown"),
        "parameters": choice.parameters,
    }
    return run


class _Outputs:
    """The node's keypoints and matches, paired by their stamp."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = {frame.stamp_ns: frame for frame in frames}
        self.keypoints: dict[int, Keypoints] = {}
        self.matches: dict[int, MatchRows] = {}

    def take(self, topic: str, message: Any, trip: RoundTrip | None) -> None:
        """Callback of `Playback`."""
        if trip is None:  # of the warm-up
            return
        if topic == "keypoints":
            self.keypoints[trip.stamp_ns] = keypoints_from_msg(message)
        elif topic == "matches":
            self.matches[trip.stamp_ns] = matches_from_msg(message)

    def tracked(self, trips: list[RoundTrip]) -> list[TrackedFrame]:
        """The frames of which both came."""
        first_id: int | None = None
        found = []
        for trip in trips:
            keypoints, rows = self.keypoints.get(trip.stamp_ns), self.matches.get(trip.stamp_ns)
            if keypoints is None or rows is None:
                continue
            if first_id is None and len(keypoints.ids):
                first_id = int(keypoints.ids.min())  # the warm-up has used up the ids before
            found.append(self._tracked(trip, keypoints, rows, first_id or 0))
        return found

    def _tracked(self, trip: RoundTrip, keypoints: Keypoints, rows: MatchRows, first_id: int) -> TrackedFrame:
        previous = self.frames.get(rows.stamp_prev_ns) if rows.stamp_prev_ns is not None else None
        latency = trip.latency("matches")
        return TrackedFrame(
            **vars(self.frames[trip.stamp_ns]),
            keypoints=keypoints.points,
            ids=(keypoints.ids.astype(np.int64) - first_id) % ID_LIMIT,
            points_prev=rows.points_prev,
            points=rows.points,
            match_ids=(rows.ids.astype(np.int64) - first_id) % ID_LIMIT,
            inlier=rows.inlier,
            number_prev=previous.number if previous else None,
            latency_s=float("nan") if latency is None else latency,
        )


class _Usage:
    """CPU time and memory of the node's process."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.start = self._cpu()
        self.end = self.start
        self.memory = self.device_memory = 0.0
        self.sample()

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def sample(self) -> None:
        try:
            self.memory = max(self.memory, self.process.memory_info().rss / 2**20)
            self.end = self._cpu()
        except psutil.Error:  # it has just ended; the playback says so
            return

    def finish(self) -> None:
        self.sample()
        self.device_memory = _device_memory_mb(self.process.pid)

    def result(self, seconds: float) -> tuple[float | None, float | None, float | None]:
        """CPU in percent of a core over that time, memory and GPU memory in MB; None = not known."""
        cpu = 100 * (self.end - self.start) / seconds if seconds > 0 else None
        return cpu, self.memory or None, self.device_memory or None


def _device_memory_mb(pid: int) -> float:
    """GPU memory of a process by nvidia-smi, 0 where it does not say."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        rows = [line.split(",") for line in output.splitlines() if "," in line]
        return float(sum(float(used) for owner, used in rows if int(owner) == pid))
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0.0


def _duration(trips: list[RoundTrip]) -> float:
    """Seconds from the first image sent to the last message received."""
    if not trips:
        return 0.0
    times = [time for trip in trips for time in trip.received.values()]
    return max([*times, trips[-1].sent]) - trips[0].sent


def _stages(status: dict[str, str]) -> dict[str, dict[str, float]]:
    """Latencies by stage from the node's diagnostics, in milliseconds."""
    found = node_status.latencies(status)
    return {stage: found[stage] for stage in node_status.STAGES if all(map(np.isfinite, found[stage].values()))}


def _drops(status: dict[str, str], run: Run) -> dict[str, int]:
    """Frames without an answer by cause: what the node counted, and `lost` for those that it never saw."""
    drops = node_status.dropped(status)
    lost = run.offered - len(run.frames) - sum(drops.values())
    if lost > 0:
        drops["lost"] = lost
    return {cause: count for cause, count in drops.items() if count}
