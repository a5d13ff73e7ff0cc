"""The frames that the page shows: which ones, their pictures, and the matches that it draws over them."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from samfeat_core.files import finite
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.metrics import worst_frames
from samfeat_ros.replay.evaluation.report import Evaluated
from samfeat_ros.replay.evaluation.runs import TrackedFrame

PICTURED = 100  # frames spread evenly over the recording
WORST = 3  # besides, the frames of each run with the fewest inliers
WIDTH, QUALITY = 640, 60
JPEG_QUALITY = 80  # in recordings for viewers
SUBPIXEL = 16  # matches are whole numbers of this share of a pixel of the picture


def pictured(evaluated: list[Evaluated], footage: Footage) -> list[dict[str, Any]]:
    """The frames of the page's viewer, in order.

    Returns:
        `number`, `seconds`, `stamp` and `image` (a data URL) of each, and `runs`: what each run found there, None
        where it did not process the frame; see `_found`.
    """
    rows = [{frame.number: index for index, frame in enumerate(item.run.frames)} for item in evaluated]
    frames = []
    for frame, image in footage.images(_chosen(evaluated, footage)):
        small, scale = _small(image)
        found = [
            _found(item, own[frame.number], scale) if frame.number in own else None
            for item, own in zip(evaluated, rows)
        ]
        seconds, nanoseconds = divmod(frame.stamp_ns, 10**9)
        frames.append(
            {
                "number": frame.number,
                "seconds": round(frame.time_ns * 1e-9, 3),
                "stamp": f"{seconds}.{nanoseconds:09d}",
                "image": _data_url(small),
                "runs": found,
            }
        )
    return frames


def _chosen(evaluated: list[Evaluated], footage: Footage) -> set[int]:
    numbers = [frame.number for frame in footage.frames]
    even = np.unique(np.linspace(0, len(numbers) - 1, min(PICTURED, len(numbers))).round().astype(int))
    worst = {frame.number for item in evaluated for frame in worst_frames(item.run.frames, WORST)}
    return {numbers[index] for index in even} | worst


def _small(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image at the width of the page, and its scale."""
    scale = min(1.0, WIDTH / image.shape[1])
    return (cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image), scale


def _found(item: Evaluated, row: int, scale: float) -> dict[str, Any]:
    """`numbers` of the frame, `matches` in base64 (int16: x and y before, x and y now, inliers first), and how many
    of them are `inliers`."""
    frame = item.run.frames[row]
    per_frame = item.entry["per_frame"]
    numbers = {
        name: finite(per_frame[name][row])
        for name in ("keypoints", "matches", "inliers", "latency_ms", "epipolar_px", "position_error_m")
        if name in per_frame
    }
    return {"numbers": numbers, "matches": _packed(frame, scale), "inliers": numbers["inliers"]}


def _packed(frame: TrackedFrame, scale: float) -> str:
    order = np.argsort(~frame.inlier, kind="stable")
    ends = np.hstack([frame.points_prev, frame.points])[order] * scale * SUBPIXEL
    whole = np.clip(np.round(ends), -(2**15), 2**15 - 1).astype("<i2")
    return base64.b64encode(whole.tobytes()).decode()


def _data_url(image: np.ndarray) -> str:
    data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1]
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def jpeg(image: np.ndarray) -> np.ndarray:
    """(n,) uint8: a picture as the recordings hold it."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].reshape(-1)


def draw_matches(image: np.ndarray, frame: TrackedFrame) -> np.ndarray:
    """(h, w, 3) BGR picture of a frame with its matches: inliers green, the others red; no wider than `WIDTH`."""
    small, scale = _small(image)
    canvas = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR) if small.ndim == 2 else small.copy()
    ends = np.stack([frame.points_prev, frame.points], axis=1) * scale
    for good, colour in ((False, (60, 60, 230)), (True, (70, 200, 60))):
        lines = np.round(ends[frame.inlier == good]).astype(np.int32)
        cv2.polylines(canvas, list(lines), False, colour, 1, cv2.LINE_AA)
        for x, y in lines[:, 1].tolist():
            cv2.circle(canvas, (x, y), 1, colour, -1)
    return canvas
