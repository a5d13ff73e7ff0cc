"""Do the clocks of the images and of the ground truth agree? Both must turn at the same times.

The camera's rotation from frame to frame comes from tracked corners, whatever front-end is evaluated; the truth's from
its poses, at shifted times. The shift with the highest correlation is the offset. Angles alone are compared, so that
neither scale nor extrinsics matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from samfeat_core.poses import rotation_angle
from samfeat_ros.odometry.geometry import estimate_motion
from samfeat_ros.replay.evaluation.classic import FRONT_ENDS
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.ground_truth import GroundTruth
from samfeat_ros.stamps import NS_PER_S

CORNERS, MAX_FRAMES, PIECES = 300, 400, 8  # of a long recording so many pieces are looked at
SEARCH_S = 3.0  # offsets up to so much, from where the clocks seem to be
STEPS = 10  # per frame
MIN_PAIRS = 20
CLEAR = 0.6  # correlation of an offset that can be relied on
GAIN = 0.3  # by which Fisher's z of another offset must be higher, and
SIGMAS = 3.0  # by so many standard errors of z, to be worth a word


@dataclass(frozen=True)
class Turns:
    """Rotation of the camera between successive frames: (N, 2) stamps in ns, (N,) angles in degrees."""

    stamps_ns: np.ndarray
    degrees: np.ndarray


@dataclass(frozen=True)
class Offset:
    """How far two clocks are apart.

    Attributes:
        seconds: to be added to the truth's stamps.
        correlation: of the angles at that offset. unshifted: without any, NaN where the spans do not overlap.
        pairs: how many angles were compared.
    """

    seconds: float
    correlation: float
    unshifted: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        return self.correlation >= CLEAR

    @property
    def is_likely(self) -> bool:
        """Whether the clocks are likely to differ by it."""
        gain = _fisher_z(self.correlation) - _fisher_z(float(np.nan_to_num(self.unshifted)))
        return self.is_clear and gain > max(GAIN, SIGMAS / np.sqrt(self.pairs))


def _fisher_z(correlation: float) -> float:
    """Of about the same standard error, 1 / sqrt(N), for every correlation of N pairs (Fisher 1915)."""
    return float(np.arctanh(np.clip(correlation, -0.999999, 0.999999)))


def camera_turns(footage: Footage, on_frame: Callable[[], None] = lambda: None) -> Turns:
    """How the camera turned, from corners under Lucas-Kanade; of a long recording from pieces of it."""
    front_end = FRONT_ENDS["lk"][1](CORNERS, 1.0, 1.0, True)
    stamps: dict[int, int] = {}
    pairs, degrees = [], []
    for frame, image in footage.images(_chosen([frame.number for frame in footage.frames])):
        on_frame()
        stamps[frame.number] = frame.stamp_ns
        camera = footage.camera_of(frame)
        tracked, _ = front_end(image, frame, camera)
        if camera is None or tracked.number_prev != frame.number - 1:
            continue
        rays = [camera.normalize(points[tracked.inlier]) for points in (tracked.points_prev, tracked.points)]
        usable = np.isfinite(np.hstack(rays)).all(axis=1)
        motion = estimate_motion(rays[0][usable], rays[1][usable], 1.0 / camera.focal)
        if motion is not None and stamps[tracked.number_prev] < frame.stamp_ns:
            pairs.append((stamps[tracked.number_prev], frame.stamp_ns))
            degrees.append(float(rotation_angle(motion[0].rotation)))
    return Turns(np.array(pairs, np.int64).reshape(-1, 2), np.array(degrees))


def _chosen(numbers: list[int]) -> list[int]:
    if len(numbers) <= MAX_FRAMES:
        return numbers
    length = MAX_FRAMES // PIECES
    starts = np.linspace(0, len(numbers) - length, PIECES).astype(int)
    return [number for start in starts for number in numbers[start : start + length]]


def find_offset(turns: Turns, truth: GroundTruth) -> Offset | None:
    """Seconds by which the truth's stamps must be moved, by the correlation of the angles; None where nothing tells.

    Offsets up to 3 s are tried; of clocks whose spans do not overlap, around the one that lets both begin together.
    """
    if len(turns.degrees) < MIN_PAIRS or len(truth.stamps_ns) < MIN_PAIRS or np.std(turns.degrees) == 0:
        return None
    origin = int(turns.stamps_ns[0, 0])
    images = (turns.stamps_ns - origin) / NS_PER_S
    known = (truth.stamps_ns - origin) / NS_PER_S
    apart = known[0] > images[-1, 1] + SEARCH_S or known[-1] < images[0, 0] - SEARCH_S
    middle = images[0, 0] - known[0] if apart else 0.0
    step = float(np.median(np.diff(images, axis=1))) / STEPS
    count = int(np.ceil(SEARCH_S / step))
    offsets = middle + step * np.arange(-count, count + 1)
    scores = np.array(
        [_correlation(turns.degrees, _true_degrees(images - offset, known, truth.poses)) for offset in offsets]
    )
    if not np.isfinite(scores).any():
        return None
    best = int(np.nanargmax(scores))
    unshifted = _correlation(turns.degrees, _true_degrees(images, known, truth.poses))
    return Offset(float(offsets[best] + step * _vertex(scores, best)), float(scores[best]), unshifted, len(images))


def _true_degrees(times: np.ndarray, known: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(N,) degrees that the truth turned between the two times of each row (N, 2); NaN outside of it."""
    rotations = np.empty((*times.shape, 3, 3))
    for row in range(3):
        for column in range(3):  # matrices between two close ones are nearly rotations, and angles hardly notice
            rotations[..., row, column] = np.interp(times, known, poses[:, row, column], np.nan, np.nan)
    return np.asarray(rotation_angle(rotations[:, 0].swapaxes(-1, -2) @ rotations[:, 1]))


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """NaN where too few are known, or nothing varies."""
    both = np.isfinite(theirs)
    if both.sum() < max(MIN_PAIRS, len(ours) / 2) or np.std(ours[both]) == 0 or np.std(theirs[both]) < 1e-9:
        return float("nan")
    return float(np.corrcoef(ours[both], theirs[both])[0, 1])


def _vertex(scores: np.ndarray, best: int) -> float:
    """Where the parabola through the best score and its neighbours is highest, in steps from the best."""
    if not 0 < best < len(scores) - 1:
        return 0.0
    left, middle, right = scores[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if np.isfinite(bend) and bend < 0 else 0.0
