"""How long the node takes to start, with empty caches (cold) and with full ones (warm), and its first images.

    python benchmarks/node_start.py [--warm 3] [--engine auto]

Ready is when the node waits for images, by the clock of its log, from the start of its process. Cold means that the
engine is chosen and built, and that the tracker is compiled; Python's own compiled modules are there. The images that
follow are published one at a time, each when the answers to the last one are there.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import typer

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from node_overhead import moving_images  # noqa: E402

from samfeat_core.measure import cpu_count, cpu_name  # noqa: E402
from samfeat_ros.environment import prepare_environment  # noqa: E402
from samfeat_ros.replay.node_process import NodeProcess  # noqa: E402
from samfeat_ros.replay.playback import Playback  # noqa: E402

READY = re.compile(r"\[INFO\] \[(\d+\.\d+)\] .*waiting for images")
IMAGES = 20


def main(warm: int = 3, engine: str = "auto", width: int = 640, height: int = 480) -> None:
    """Measure starts of the node: one cold, several warm."""
    prepare_environment()
    print(f"{cpu_name()}, {cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {width}x{height}, engine {engine}")
    print(f"{'start':<8}{'ready s':>9}{'torch':>7}{'image 1':>10}{'image 2':>10}{'10 to 20 ms':>13}")
    for name, start in zip(["cold", *["warm"] * warm], starts(1 + warm, engine, width, height)):
        first, second, *_ = start["images_ms"]
        later = float(np.median(start["images_ms"][9:]))
        torch = "yes" if start["torch"] else "no"
        print(f"{name:<8}{start['ready_s']:>9.2f}{torch:>7}{first:>10.1f}{second:>10.1f}{later:>13.1f}")


def starts(count: int, engine: str, width: int, height: int) -> list[dict[str, Any]]:
    """Starts of the node, the first one with empty caches.

    Returns:
        each {"ready_s", "torch" (its process has loaded it), "images_ms" (IMAGES of them)}.
    """
    with tempfile.TemporaryDirectory(prefix="samfeat_start_") as cache:
        os.environ["NUMBA_CACHE_DIR"] = f"{cache}/numba"
        parameters = {"device": "cpu", "engine": engine, "cache_dir": cache}
        parameters |= {"image_width": width, "image_height": height}
        return [_start(parameters, width, height) for _ in range(count)]


def _start(parameters: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    images = list(moving_images(IMAGES, width, height, 10.0))
    began = time.time()
    with NodeProcess(parameters) as process:
        while not (ready := READY.search(process.output())):
            process.check()
            time.sleep(0.05)
        with Playback(process) as playback:
            playback.wait_until_heard()
            playback.play(images, rate=None)
        torch = "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    latencies = [trip.latency("keypoints") for trip in playback.round_trips]
    return {
        "ready_s": float(ready[1]) - began,
        "torch": torch,
        "images_ms": [1e3 * seconds if seconds is not None else float("nan") for seconds in latencies],
    }


if __name__ == "__main__":
    typer.run(main)
