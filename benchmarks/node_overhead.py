"""What the node costs besides the network, and how many frames a second it can take. Prints p50 and p99 per stage.

    python benchmarks/node_overhead.py [--frames 200] [--width 640] [--height 480]
    python benchmarks/node_overhead.py --rate 120 --frames 600 --tracker match      # as many as it can

The real node runs in a process of its own on the CPU. Its own stage clocks are read from /diagnostics; the way of a
message there and back (image published to keypoints received) is measured from outside.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samfeat_core.measure import percentiles  # noqa: E402
from samfeat_ros import node_status  # noqa: E402
from samfeat_ros.environment import prepare_environment  # noqa: E402
from samfeat_ros.replay.node_process import NodeProcess  # noqa: E402
from samfeat_ros.replay.playback import Playback  # noqa: E402
from samfeat_ros.replay.recording import ImageMessage  # noqa: E402
from samfeat_ros.stamps import NS_PER_S  # noqa: E402

CAMERA_HZ = 30  # of the stamps


def main(
    frames: int = 200,
    width: int = 640,
    height: int = 480,
    rate: float = 10.0,
    weights: str = "",
    engine: str = "auto",
    tracker: str = "hybrid",
) -> None:
    """Measure the node on a moving texture, published at `rate` Hz."""
    prepare_environment()
    parameters = {
        "device": "cpu", "weights": weights, "image_width": width, "image_height": height, "engine": engine,
        "tracker": tracker,
    }  # fmt: skip
    images = list(moving_images(frames, width, height, rate))
    with NodeProcess(parameters) as process, Playback(process) as playback:
        playback.wait_until_ready(images[0])
        playback.play(images)
    latencies = [1e3 * latency for trip in playback.round_trips if (latency := trip.latency("keypoints")) is not None]
    _print(playback.status, percentiles(latencies))
    answers = [trip.received["keypoints"] for trip in playback.round_trips if "keypoints" in trip.received]
    if len(answers) > 1:
        print(f"answered: {len(answers)} of {frames}, {(len(answers) - 1) / (answers[-1] - answers[0]):.1f} a second")


def moving_images(frames: int, width: int, height: int, rate: float) -> Iterator[ImageMessage]:
    """Views of a texture that slides by two pixels a frame."""
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from samfeat_ros.messages import image_to_msg, ns_to_stamp

    wall = _texture(width, height)
    for index in range(frames):
        left = 2 * (index % 100)
        stamp_ns = NS_PER_S + index * NS_PER_S // CAMERA_HZ
        msg = image_to_msg(Header(stamp=ns_to_stamp(stamp_ns)), wall[:, left : left + width])
        yield ImageMessage(stamp_ns, round(index * NS_PER_S / rate), serialize_message(msg))


def _texture(width: int, height: int) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (height, width + 200), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)


def _print(status: dict[str, str], there_and_back: dict[str, float] | None) -> None:
    stages: dict[str, Any] = node_status.latencies(status)
    print(f"{'stage':<16}{'p50 ms':>10}{'p99 ms':>10}")
    for stage, ms in stages.items():
        print(f"{stage:<16}{ms['p50']:>10.2f}{ms['p99']:>10.2f}")
    if there_and_back:
        p50, p99 = there_and_back["p50"], there_and_back["p99"]
        print(f"{'there and back':<16}{p50:>10.2f}{p99:>10.2f}   image published to keypoints received")
    own = sum(stages[stage]["p50"] for stage in ("queue", "decode", "publish"))
    print(f"node without network and matching, p50: {own:.2f} ms; keypoints {status['keypoints']}")


if __name__ == "__main__":
    typer.run(main)
