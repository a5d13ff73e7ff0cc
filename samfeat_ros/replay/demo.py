"""`demo`: the real node on a bag, played over ROS at its recorded rate; ends by itself and says how it went.

Prints a table and writes, into the output folder, `report.json` (the table's numbers, `REPORT_VERSION`) and
`overlay.png` (keypoints and the tails of their tracks on the scene).

`make demo` renders the bag, a flight through a room, first; `make demo BAG=path IMAGE_TOPIC=/topic` takes one of yours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import typer

from samfeat_core.command import DEVICE_HELP, ENGINE_HELP, errors_in_one_line
from samfeat_core.files import write_bytes, write_json
from samfeat_core.measure import machine, percentiles
from samfeat_core.progress import progress
from samfeat_core.tracking import TRACKERS
from samfeat_ros import node_status
from samfeat_ros.environment import prepare_environment
from samfeat_ros.replay.interrupts import interrupt_on_signals
from samfeat_ros.replay.node_process import NodeError, NodeProcess
from samfeat_ros.replay.playback import Playback, RoundTrip
from samfeat_ros.replay.recording import ImageMessage, Recording
from samfeat_ros.stamps import NS_PER_S

REPORT_VERSION = 1
OVERLAY_FRAMES = 24  # played once more, one at a time, for the picture
OVERLAY_TAIL = 20


@dataclass
class Tally:
    """What the frames of one playback gave, in the order of arrival."""

    keypoints: list[int] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    matches: list[int] = field(default_factory=list)
    inliers: list[int] = field(default_factory=list)
    inliers_at: dict[int, int] = field(default_factory=dict)  # stamp -> inliers

    def take(self, topic: str, message: Any, trip: RoundTrip | None) -> None:
        """Callback of `Playback`."""
        from samfeat_ros.messages import keypoints_from_msg, matches_from_msg

        if trip is None:
            return
        if topic == "keypoints":
            rows = keypoints_from_msg(message)
            self.keypoints.append(len(rows.points))
            self.ids.append(rows.ids)
        elif topic == "matches":
            inlier = matches_from_msg(message).inlier
            self.matches.append(len(inlier))
            self.inliers.append(int(inlier.sum()))
            self.inliers_at[trip.stamp_ns] = self.inliers[-1]


def build_report(recording: Recording, playback: Playback, tally: Tally) -> dict[str, Any]:
    """The numbers of one playback: see the keys."""
    status, trips = playback.status, playback.round_trips
    arrived = [latency for trip in trips if (latency := trip.latency("matches")) is not None]
    seconds = trips[-1].sent - trips[0].sent if len(trips) > 1 else math.nan
    ratios = [inliers / matches for inliers, matches in zip(tally.inliers, tally.matches) if matches]
    received = int(status.get("frames_in", 0))
    return {
        "version": REPORT_VERSION,
        "bag": str(recording.bag.path),
        "bag_problems": recording.bag.problems,
        "image_topic": recording.image_topic,
        "model": status.get("model"),
        "device": status.get("device"),
        "engine": status.get("engine"),
        "machine": machine(),
        "frames_in": len(trips),
        "frames_received": received,
        "frames_processed": len(arrived),
        "dropped": len(trips) - len(arrived),
        "dropped_by_cause": {**node_status.dropped(status), "transport": max(0, len(trips) - received)},
        "seconds": seconds,
        "rate_in_hz": (len(trips) - 1) / seconds if seconds else math.nan,
        "rate_out_hz": len(arrived) / seconds if seconds else math.nan,
        "latency_ms": {
            **node_status.latencies(status),
            "image_to_matches": percentiles([1e3 * latency for latency in arrived]),
        },
        "keypoints_median": median(tally.keypoints),
        "track_length_mean": mean_length(tally.ids),
        "matches_median": median(tally.matches),
        "inliers_median": median(tally.inliers),
        "inlier_ratio_median": median(ratios),
    }


def mean_length(ids: list[np.ndarray]) -> float:
    """Frames in which a track was seen, a mean over those of two frames or more; nan without any."""
    _, counts = np.unique(np.concatenate(ids), return_counts=True) if ids else (None, np.zeros(0))
    return float(counts[counts > 1].mean()) if (counts > 1).any() else math.nan


def median(values: list[Any]) -> float:
    return float(np.median(values)) if values else math.nan


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    causes = _causes(report)
    rows = [
        ("model", f"{report['model']} on {report['device']}, engine {report['engine']}"),
        ("frames in", f"{report['frames_in']} at {_text(report['rate_in_hz'], 1)} Hz"),
        ("processed", f"{report['frames_processed']} at {_text(report['rate_out_hz'], 1)} Hz"),
        ("dropped", f"{report['dropped']}" + (f" ({causes})" if causes else "")),
        ("keypoints", f"{_text(report['keypoints_median'])} (median)"),
        ("track length", f"{_text(report['track_length_mean'], 1)} frames (mean, from two on)"),
        ("matches", f"{_text(report['matches_median'])} (median)"),
        ("inlier ratio", f"{_text(report['inlier_ratio_median'], 3)} (median)"),
    ]
    lines = [f"  {name:<18}{value}" for name, value in rows]
    lines += ["", f"  {'latency in ms':<18}{'p50':>9}{'p99':>9}"]
    for stage, values in report["latency_ms"].items():
        name = {"total": "node, total", "image_to_matches": "image -> matches"}.get(stage, stage)
        lines.append(f"  {name:<18}{_text(values['p50'], 1):>9}{_text(values['p99'], 1):>9}")
    return "\n".join(lines)


def _causes(report: dict[str, Any]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in report["dropped_by_cause"].items() if count)


def _text(value: float | None, digits: int = 0) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def within(messages: Iterable[ImageMessage], seconds: float) -> Iterator[ImageMessage]:
    """The images of the first seconds of recording."""
    start = None
    for message in messages:
        start = message.time_ns if start is None else start
        if message.time_ns - start > seconds * NS_PER_S:
            return
        yield message


def best_stretch(trips: list[RoundTrip], inliers_at: dict[int, int], length: int = OVERLAY_FRAMES) -> tuple[int, int]:
    """Indices [begin, end) of the `length` consecutive frames with the most inliers: the best place for a picture."""
    inliers = np.array([inliers_at.get(trip.stamp_ns, 0) for trip in trips])
    length = min(length, len(inliers))
    if not length:
        return 0, 0
    sums = np.convolve(inliers, np.ones(length), "valid")
    begin = int(np.argmax(sums))
    return begin, begin + length


def draw_overlay(process: NodeProcess, recording: Recording, stretch: tuple[int, int], path: Path) -> None:
    """Play a stretch of images once more, one at a time, and keep the node's last `~/overlay`.

    Raises:
        NodeError: no overlay came.
    """
    from samfeat_ros.image_input import image_from_msg

    pictures: list[np.ndarray] = []

    def take(topic: str, message: Any, trip: RoundTrip | None) -> None:
        if trip is not None:
            pictures[:] = [image_from_msg(message)]

    messages = list(islice(recording.messages(), *stretch))
    with Playback(process, ["overlay"], take) as playback:
        playback.wait_until_ready(*messages[:1])
        playback.play(messages, rate=None)
    if not pictures:
        raise NodeError("the node sent no overlay")
    write_bytes(path, cv2.imencode(".png", pictures[0])[1].tobytes())


def run(
    recording: Recording, parameters: dict[str, Any], output: Path, rate: float, seconds: float, timeout: float
) -> dict[str, Any]:
    """Play the recording to a node of its own and write report and picture.

    Returns:
        the report.

    Raises:
        NodeError: the node failed, or gave nothing back.
        BagError: the recording holds no readable image.
    """
    output.mkdir(parents=True, exist_ok=True)
    picture = output / "overlay.png"
    picture.unlink(missing_ok=True)
    tally = Tally()
    first = [recording.first, *islice(recording.messages(), 1, 5)]
    typer.echo(f"starting the node; {recording.bag.path} has {recording.count} images on {recording.image_topic}")
    with NodeProcess(parameters, recording.image_type, timeout, output / "node.log") as process:
        with Playback(process, on_message=tally.take) as playback:
            playback.wait_until_ready(*first)
            with progress(None, "playing", "frame", total=recording.count) as bar:
                playback.play(within(recording.messages(), seconds), rate, on_frame=bar.update)
            report = build_report(recording, playback, tally)
        if not report["frames_processed"]:
            causes = _causes(report) or "no answer"
            raise NodeError(f"none of {report['frames_in']} images gave keypoints and matches ({causes})")
        draw_overlay(process, recording, best_stretch(playback.round_trips, tally.inliers_at), picture)
    write_json(output / "report.json", report)
    return report


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    bag: Path = typer.Argument(..., help="Bag: ROS 2 (MCAP, sqlite3) folder or file, or a ROS 1 .bag."),
    image_topic: str | None = typer.Option(None, help="Image or CompressedImage topic; may be left out if alone."),
    camera_info_topic: str | None = typer.Option(None, help="CameraInfo topic; by default the one beside the images."),
    output: Path = typer.Option(Path("out/demo"), help="Folder for report.json, overlay.png and node.log."),
    rate: float = typer.Option(1.0, min=0.01, help="Times the recorded speed."),
    seconds: float = typer.Option(60.0, min=0.1, help="Play at most that much of the recording."),
    model: str = typer.Option("samfeat-nano", help="Network of the node."),
    weights: str = typer.Option("", help="Weights file; empty = the shipped ones."),
    device: str = typer.Option("cpu", help=DEVICE_HELP),
    engine: str = typer.Option("auto", help=ENGINE_HELP),
    tracker: str = typer.Option("hybrid", help=f"One of {', '.join(TRACKERS)}."),
    max_keypoints: int = typer.Option(1024, min=1, help="Largest number of keypoints per frame."),
    timeout: float = typer.Option(120.0, min=1, help="Seconds until the node must have answered a first image."),
) -> None:
    """Play a bag to the node over ROS, print how it did, and draw the tracks."""
    interrupt_on_signals()
    prepare_environment()
    parameters = {"model": model, "weights": weights, "device": device, "engine": engine, "tracker": tracker,
                  "max_keypoints": max_keypoints, "overlay_tail": OVERLAY_TAIL}  # fmt: skip
    with errors_in_one_line("demo"):
        recording = Recording(bag, image_topic, camera_info_topic)
        report = run(recording, parameters, output, rate, seconds, timeout)
        typer.echo(f"\n{table(report)}\n\n{output / 'report.json'}\n{output / 'overlay.png'}")
        for problem in recording.bag.problems:
            typer.echo(f"note: {problem}", err=True)


def main() -> None:
    """Console entry."""
    app(prog_name="demo")


if __name__ == "__main__":
    main()
