"""Footage under stress: the dark, motion blur, lost frames, exposure, roll and zoom, and something in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from training.evaluation.stress import motion_blur
from training.evaluation.tracks.footage import Footage

PERIOD = 30  # frames from one event to the next
BLUR_PX = 13  # length of the motion blur
EXPOSURE = 4.0  # brightness jumps up and down by this
ROLL_DEG, ZOOM = 4.0, 1.04  # a frame, where it is fastest
COVER = 0.5  # of either side of the image: a quarter of it


def dark(footage: Footage, frames: int) -> Footage:
    """So many black frames, every `PERIOD`."""
    starts = range(PERIOD // 2, len(footage) - frames - 2, PERIOD)
    black = {start + step for start in starts for step in range(frames)}
    everywhere = np.ones(footage.size[::-1], bool)

    def image(frame: int) -> np.ndarray:
        return np.zeros_like(footage.image(frame)) if frame in black else footage.image(frame)

    events = tuple((start - 1, start + frames) for start in starts)
    return replace(footage, image=image, hidden=lambda f: everywhere if f in black else None, events=events)


def blurred(footage: Footage) -> Footage:
    """Every second frame smeared along a direction that turns from frame to frame."""

    def image(frame: int) -> np.ndarray:
        if frame % 2 == 0:
            return footage.image(frame)
        return motion_blur(footage.image(frame), BLUR_PX, 37.0 * frame)

    return replace(footage, image=image)


def dropped(footage: Footage) -> Footage:
    """Every third frame lost on the way."""
    kept = [frame for frame in range(len(footage)) if frame % 3 != 2]
    depth = footage.depth
    return replace(
        footage,
        poses=footage.poses[kept],
        stamps_ns=tuple(footage.stamps_ns[frame] for frame in kept),
        image=lambda frame: footage.image(kept[frame]),
        depth=None if depth is None else lambda frame: depth(kept[frame]),
    )


def exposed(footage: Footage) -> Footage:
    """Brightness jumps by `EXPOSURE`, up and down in turn, every half `PERIOD`."""

    def image(frame: int) -> np.ndarray:
        dim = (frame // (PERIOD // 2)) % 2 == 1
        return cv2.convertScaleAbs(footage.image(frame), alpha=1 / EXPOSURE if dim else 1.0)

    return replace(footage, image=image)


def rolled(footage: Footage) -> Footage:
    """The image swings about its middle and back, at most `ROLL_DEG` and `ZOOM` a frame: 19 degrees, 1.45 times."""
    middle = (np.array(footage.size) - 1) / 2
    warps = []
    for frame in range(len(footage)):
        swing = np.sin(2 * np.pi * frame / PERIOD)
        turn = cv2.getRotationMatrix2D(tuple(middle), ROLL_DEG * PERIOD / (2 * np.pi) * swing, 1)
        scale = ZOOM ** (PERIOD / (2 * np.pi) * (1 + swing))
        turn[:, :2] *= scale
        turn[:, 2] = middle - turn[:, :2] @ middle
        warps.append(np.vstack([turn, [0, 0, 1]]))

    def image(frame: int) -> np.ndarray:
        return cv2.warpAffine(footage.image(frame), warps[frame][:2], footage.size, flags=cv2.INTER_LINEAR)

    return replace(footage, image=image, warps=np.stack(warps))


def occluded(footage: Footage) -> Footage:
    """A textured thing as large as a quarter of the image crosses it from side to side."""
    width, height = footage.size
    side = (round(width * COVER), round(height * COVER))
    texture = cv2.resize(footage.image(0)[height // 4 : -height // 4, width // 4 : -width // 4], side)
    texture = np.ascontiguousarray(texture[::-1])

    def place(frame: int) -> tuple[slice, slice]:
        left = round((width - side[0]) * (0.5 - 0.5 * np.cos(2 * np.pi * frame / (2 * PERIOD))))
        top = (height - side[1]) // 2
        return slice(top, top + side[1]), slice(left, left + side[0])

    def image(frame: int) -> np.ndarray:
        covered = footage.image(frame).copy()
        covered[place(frame)] = texture
        return covered

    def hidden(frame: int) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        mask[place(frame)] = True
        return mask

    return replace(footage, image=image, hidden=hidden)


STRESSES: dict[str, Callable[[Footage], Footage]] = {
    "dark 3": lambda footage: dark(footage, 3),
    "dark 10": lambda footage: dark(footage, 10),
    "blur": blurred,
    "dropped": dropped,
    "exposure": exposed,
    "roll and zoom": rolled,
    "occluder": occluded,
}
