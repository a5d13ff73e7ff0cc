"""A model's pass over the footage: through the real node, in a process of its own, over ROS."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from samfeat_core.measure import percentiles
from samfeat_core.tracking import ID_LIMIT
from samfeat_ros.messages import Keypoints, MatchRows, keypoints_from_msg, matches_from_msg
from samfeat_ros.replay.evaluation.footage import Footage, FrameInfo
from samfeat_ros.replay.evaluation.runs import Record, Run
from samfeat_ros.replay.playback import Answer, Frame, NodeProcess, Playback

STAGES = ("queue", "decode", "network", "match", "publish")
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
        rate: times the recorded speed; None = one image in flight, so that every frame is processed.
        log: file for the node's terminal output.

    Raises:
        PlaybackError: the node does not come up, or ends.
    """
    parameters = {"model": choice.name, "weights": choice.weights, "max_keypoints": budget, **choice.parameters}
    compressed = footage.recording.image_type.endswith("CompressedImage")
    process = NodeProcess(parameters, compressed=compressed, timeout=READY_TIMEOUT_S, log=log)
    answers = _Answers(footage.frames)
    with process, Playback(process, footage.recording.image_type, ("keypoints", "matches"), answers.take) as playback:
        playback.wait_until_ready(next(frame for _, frame in footage.messages()))
        usage = _Usage(process.pid)

        def after_frame(answer: Answer) -> None:
            usage.sample()
            on_frame()

        playback.play(_frames(footage), rate, ANSWER_TIMEOUT_S, after_frame)
        usage.finish()
        run = Run(choice.label, "model", len(footage.frames))
        run.records = answers.records(playback.answers)
        run.seconds = _duration(playback.answers)
        run.cpu_percent, run.memory_mb, run.device_memory_mb = usage.result(run.seconds)
        status = playback.diagnostics[-1] if playback.diagnostics else {}
    run.stages, run.dropped = _stages(status), _drops(status, run)
    total = percentiles([1e3 * record.latency_s for record in run.records])
    run.details = {
        "description": "the node, over ROS",
        "model": choice.name,
        "weights": choice.weights or "shipped",
        "device": status.get("device", "unknown"),
        "engine": status.get("engine", "unknown"),
        "parameters": choice.parameters,
        "round_trip_ms": total,
    }
    return run


def _frames(footage: Footage) -> Iterator[Frame]:
    return (frame for _, frame in footage.messages())


class _Answers:
    """Pairs the keypoints and matches messages of each frame by their stamp."""

    def __init__(self, frames: list[FrameInfo]) -> None:
        self.frames = {frame.stamp_ns: frame for frame in frames}
        self.keypoints: dict[int, Keypoints] = {}
        self.matches: dict[int, MatchRows] = {}

    def take(self, topic: str, message: Any, answer: Answer | None) -> None:
        if answer is None:  # of the warm-up
            return
        if topic == "keypoints":
            self.keypoints[answer.stamp_ns] = keypoints_from_msg(message)
        elif topic == "matches":
            self.matches[answer.stamp_ns] = matches_from_msg(message)

    def records(self, answers: list[Answer]) -> list[Record]:
        first_id: int | None = None
        found = []
        for answer in answers:
            keypoints, rows = self.keypoints.get(answer.stamp_ns), self.matches.get(answer.stamp_ns)
            if keypoints is None or rows is None:
                continue
            if first_id is None and len(keypoints.ids):
                first_id = int(keypoints.ids.min())  # the warm-up has used up the ids before
            found.append(self._record(answer, keypoints, rows, first_id or 0))
        return found

    def _record(self, answer: Answer, keypoints: Keypoints, rows: MatchRows, first_id: int) -> Record:
        info = self.frames[answer.stamp_ns]
        previous = self.frames.get(rows.stamp_prev_ns) if rows.stamp_prev_ns is not None else None
        latency = answer.latency("matches")
        return Record(
            info.number,
            info.stamp_ns,
            info.time_ns,
            info.size,
            keypoints.points,
            (keypoints.ids.astype(np.int64) - first_id) % ID_LIMIT,
            rows.points_prev,
            rows.points,
            (rows.ids.astype(np.int64) - first_id) % ID_LIMIT,
            rows.inlier,
            previous.number if previous else None,
            float("nan") if latency is None else latency,
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


def _duration(answers: list[Answer]) -> float:
    """Seconds from the first image sent to the last answer received."""
    if not answers:
        return 0.0
    times = [time for answer in answers for time in answer.received.values()]
    return max([*times, answers[-1].sent]) - answers[0].sent


def _stages(status: dict[str, str]) -> dict[str, dict[str, float]]:
    """Latencies by stage from the node's diagnostics, in milliseconds."""
    stages = {}
    for stage in STAGES:
        values = {rank: float(status.get(f"latency_{stage}_{rank}_ms", "nan")) for rank in ("p50", "p90", "p99")}
        if all(np.isfinite(value) for value in values.values()):
            stages[stage] = values
    return stages


def _drops(status: dict[str, str], run: Run) -> dict[str, int]:
    """Frames without an answer by cause: what the node counted, and `lost` for those that it never saw."""
    prefix = "dropped_"
    drops = {key[len(prefix) :]: int(value) for key, value in status.items() if key.startswith(prefix)}
    lost = run.offered - len(run.records) - sum(drops.values())
    if lost > 0:
        drops["lost"] = lost
    return {cause: count for cause, count in drops.items() if count}
