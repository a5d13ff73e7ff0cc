"""Small recordings for tests that play to the real node, and a look at processes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from samfeat_core.sequence import ImageSequence
from samfeat_ros.replay.sequence_to_bag import frame_times, write_bag

FRAMES, RATE = 10, 20.0


def sliding_window(folder: Path) -> ImageSequence:
    """FRAMES grey images of 320x240: a window that slides by 4 pixels a frame over a picture."""
    (folder / "image").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (60, 120), np.uint8)
    picture = cv2.resize(noise, (480, 240), interpolation=cv2.INTER_CUBIC)
    for index in range(FRAMES):
        cv2.imwrite(str(folder / "image" / f"{index:03d}.png"), picture[:, 4 * index : 4 * index + 320])
    (folder / "calib.txt").write_text("P0: 300 0 160 0 0 300 120 0 0 0 1 0\n")
    return ImageSequence.read(folder)


def make_bag(sequence: ImageSequence, output: Path, **options) -> Path:
    """The bag folder; options are those of `write_bag`."""
    assert len(list(write_bag(sequence, output, frame_times(sequence, RATE), **options))) == FRAMES
    return output


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False
