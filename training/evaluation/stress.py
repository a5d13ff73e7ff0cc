"""Pictures under stress: one photograph, and the same photograph as a camera in trouble would have taken it.

Where every point has gone is known exactly. So that no extractor profits from pixels that stay where they are, the
second picture is always taken from slightly elsewhere (`NUDGE`). What lies beyond the border of a photograph is its
mirror image: texture like any other, which matches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from training.data.geometry import warp_homography
from training.evaluation.extractors import TimedExtractor
from training.evaluation.images import resize_map
from training.evaluation.matchers import MUTUAL, Matcher

RIGHT_PX = 3.0
GAMMA = 2.2
WHITE_ELECTRONS, READ_ELECTRONS = 4000.0, 4.0  # a small sensor: full well, and noise of reading (standard deviation)
SHUTTER_SWINGS, FLICKER_LINES = 1.5, 7.0  # periods of the camera's shaking, and of the light, in one image
# around the image's middle: 4 % further away, tilted, and moved by parts of a pixel
NUDGE = np.array([[0.96, 0.006, 3.3], [-0.004, 0.965, -2.6], [2e-5, -3e-5, 1]])

Warp = Callable[[np.ndarray], np.ndarray]  # points (N, 2) of the first picture -> of the second


@dataclass(frozen=True)
class Stress:
    """levels: of growing trouble, in ``unit``. apply: image (H, W, 3) uint8, level, random numbers -> the second
    picture, and where the points have gone."""

    unit: str
    levels: tuple[float, ...]
    apply: Callable[[np.ndarray, float, np.random.Generator], tuple[np.ndarray, Warp]]


@dataclass(frozen=True)
class StressPair:
    """A photograph, and the level of the stress of its second picture. number: seeds what is random in it."""

    path: Path
    level: float
    number: int


def roll(image: np.ndarray, degrees: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """The camera turns about its optical axis, anticlockwise in the picture."""
    turn = cv2.getRotationMatrix2D((0, 0), degrees, 1)
    return moved(image, np.vstack([turn, [0, 0, 1]]) @ NUDGE)


def zoom(image: np.ndarray, factor: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """All of the picture, smaller: each pixel the mean of those that it covers."""
    picture, warp = moved(image)
    native = (image.shape[1], image.shape[0])
    size = (round(native[0] * factor), round(native[1] * factor))
    shrink = resize_map(native, size)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), lambda points: warp_homography(warp(points), shrink)


def motion(image: np.ndarray, length_px: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """The camera moves while the shutter is open, in any direction."""
    picture, warp = moved(image)
    return motion_blur(picture, int(length_px), random.uniform(0, 180)), warp


def exposure(image: np.ndarray, factor: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """``factor`` times the light: below 1 shot noise and reading noise show, above 1 highlights clip."""
    picture, warp = moved(image)
    electrons = WHITE_ELECTRONS * factor * (picture / 255.0) ** GAMMA
    electrons = random.poisson(electrons) + random.normal(0, READ_ELECTRONS, picture.shape)
    return developed(electrons / WHITE_ELECTRONS), warp


def jpeg(image: np.ndarray, quality: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """Compressed at JPEG's quality of 0 to 100."""
    picture, warp = moved(image)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), warp


def shutter(image: np.ndarray, amplitude_px: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """Lines are read one after another while the camera shakes from side to side."""
    picture, warp = moved(image)
    height, width = picture.shape[:2]
    phase = random.uniform(0, 2 * np.pi)

    def aside(y: np.ndarray) -> np.ndarray:
        return amplitude_px * np.sin(2 * np.pi * SHUTTER_SWINGS * y / height + phase)

    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    picture = cv2.remap(
        picture, x - aside(y).astype(np.float32), y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )

    def shaken(points: np.ndarray) -> np.ndarray:
        there = warp(points)
        return there + np.stack([aside(there[:, 1]), np.zeros(len(there))], axis=1)

    return picture, shaken


def flicker(image: np.ndarray, depth: float, random: np.random.Generator) -> tuple[np.ndarray, Warp]:
    """Lines are read one after another under a lamp that loses ``depth`` of its light and regains it."""
    picture, warp = moved(image)
    y = np.arange(len(picture))[:, None, None]
    wave = np.sin(2 * np.pi * FLICKER_LINES * y / len(picture) + random.uniform(0, 2 * np.pi))
    return developed((picture / 255.0) ** GAMMA * (1 - depth * (0.5 + 0.5 * wave))), warp


STRESSES: dict[str, Stress] = {
    "roll": Stress("deg", (15, 30, 45, 60, 90, 135, 180), roll),
    "zoom": Stress("times", (1, 0.7, 0.5, 0.35), zoom),
    "motion blur": Stress("px", (5, 9, 13), motion),
    "dark": Stress("of the light", (0.25, 0.06, 0.015), exposure),
    "over-exposure": Stress("times the light", (2, 4, 8), exposure),
    "jpeg": Stress("quality", (50, 20, 10), jpeg),
    "rolling shutter": Stress("px", (4, 8, 16), shutter),
    "flicker": Stress("of the light lost", (0.5, 0.8, 0.95), flicker),
}


def moved(image: np.ndarray, about_middle: np.ndarray = NUDGE) -> tuple[np.ndarray, Warp]:
    """The image under a homography (3, 3) of coordinates whose origin is the image's middle."""
    height, width = image.shape[:2]
    to_middle = np.array([[1, 0, (1 - width) / 2], [0, 1, (1 - height) / 2], [0, 0, 1]])
    homography = np.linalg.inv(to_middle) @ about_middle @ to_middle
    picture = cv2.warpPerspective(
        image, homography, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return picture, lambda points: warp_homography(points.astype(np.float64), homography)


def motion_blur(image: np.ndarray, length_px: int, degrees: float) -> np.ndarray:
    """The image smeared along a line of ``length_px`` pixels (odd), about its middle."""
    line = np.zeros((length_px, length_px), np.float32)
    middle = (length_px - 1) / 2
    line[length_px // 2] = 1
    turn = cv2.getRotationMatrix2D((middle, middle), degrees, 1)
    kernel = cv2.warpAffine(line, turn, (length_px, length_px), flags=cv2.INTER_LINEAR)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def developed(light: np.ndarray) -> np.ndarray:
    """uint8 picture of linear light, 1 = white; beyond that it clips."""
    return np.round(255 * np.clip(light, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def evaluate(
    stress: Stress,
    pairs: Sequence[StressPair],
    extractor: TimedExtractor,
    progress: Callable[[Sequence[StressPair]], Iterable[StressPair]] = iter,
    matcher: Matcher = MUTUAL,
) -> dict:
    """The numbers of one extractor: for each level the means over pairs of matches, of right ones (within `RIGHT_PX`)
    and of their share in per cent. A pair without matches has a share of 0."""
    counts = np.array([_count(stress, pair, extractor, matcher) for pair in progress(pairs)])
    level_of = np.array([pair.level for pair in pairs])
    keypoints, matches, _ = counts.mean(axis=0)
    return {
        "pairs": len(pairs),
        "keypoints": float(keypoints),
        "matches": float(matches),
        "levels": [_level(level, counts[level_of == level]) for level in stress.levels],
    }


def _level(level: float, counts: np.ndarray) -> dict:
    _, matches, right = counts.T
    share = float((right / np.maximum(matches, 1)).mean() * 100)
    return {"level": level, "matches": float(matches.mean()), "right": float(right.mean()), "share": share}


def _count(stress: Stress, pair: StressPair, extractor: TimedExtractor, matcher: Matcher) -> tuple[float, int, int]:
    """Keypoints (mean of both pictures), matches, and right ones."""
    image = extractor.images(pair.path).pixels
    picture, warp = stress.apply(image, pair.level, np.random.default_rng(pair.number))
    first, second = extractor(pair.path), extractor.extract(picture)
    points0, points1 = matcher(first, second)
    errors = np.linalg.norm(warp(points0) - points1, axis=1)
    return (len(first) + len(second)) / 2, len(errors), int((errors <= RIGHT_PX).sum())
