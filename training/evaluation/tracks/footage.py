"""Image sequences under known camera motion, and the true place of a point of one frame in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.poses import relative_pose
from samfeat_core.sequence import ImageSequence
from samfeat_core.track_truth import carry_points, silhouette
from samfeat_core.tracking.motion import inside as within
from samfeat_core.tracking.motion import pixels
from samfeat_core.two_view import to_homogeneous
from training.data.scenes import SCENES, fly_through, load_textures, pinhole

UNTIMED_HZ = 15.0  # of sequences without times
SIZE, FIELD_OF_VIEW, RATE_HZ = (640, 480), 75.0, 20.0  # of rendered flights
CACHED = 64  # frames kept in memory


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Footage:
    """N frames of one camera.

    Attributes:
        name: of it.
        matrix: (3, 3) camera matrix in pixels.
        poses: (N, 4, 4) camera-to-world, metres.
        size: (width, height).
        stamps_ns: N times in nanoseconds.
        image: frame number -> (H, W, 3) BGR uint8 as the front-end sees it.
        depth: frame number -> (H, W) float32 metres as the camera sees it, 0 = none; None without depth.
        warps: (N, 3, 3) homography from the camera's pixels to the image's: identity where the image is as taken.
        hidden: frame number -> (H, W) bool, where the image does not show the scene; None = nowhere.
        events: (last frame before, first frame after) each time that the image was lost.
    """

    name: str
    matrix: np.ndarray
    poses: np.ndarray
    size: tuple[int, int]
    stamps_ns: tuple[int, ...]
    image: Callable[[int], np.ndarray]
    depth: Callable[[int], np.ndarray] | None = None
    warps: np.ndarray | None = None
    hidden: Callable[[int], np.ndarray | None] | None = None
    events: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.poses)

    @cached_property
    def camera(self) -> Camera:
        return Camera(self.matrix, np.zeros(0), *self.size)

    def warp(self, frame: int) -> np.ndarray:
        """(3, 3) from the camera's pixels to the image's."""
        return np.eye(3) if self.warps is None else self.warps[frame]

    def motion(self, first: int, second: int) -> np.ndarray:
        """(4, 4) transform of points from the camera of the first frame to that of the second."""
        return relative_pose(self.poses[first], self.poses[second])

    def carry(self, points: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """True places (n, 2) in the second frame of points (n, 2) of the first, and (n,) bool: visible there.

        Needs depth. NaN where the depth of a point is unknown.
        """
        assert self.depth is not None
        taken = apply_homography(np.linalg.inv(self.warp(first)), points)
        depths = self.depth(first), self.depth(second)
        places, visible = carry_points(taken, *depths, self.motion(first, second), self.camera)
        shown = apply_homography(self.warp(second), places)
        return shown, visible & self._shown(shown, second)

    def on_silhouette(self, points: np.ndarray, frame: int) -> np.ndarray:
        """(n,) bool: depth jumps near a point, so that what is seen there belongs to two surfaces. Needs depth."""
        assert self.depth is not None
        return silhouette(apply_homography(np.linalg.inv(self.warp(frame)), points), self.depth(frame))

    def _shown(self, points: np.ndarray, frame: int) -> np.ndarray:
        """(n,) bool: a place (n, 2) lies in the image, where it shows the scene."""
        inside = within(points, self.size)
        hidden = None if self.hidden is None else self.hidden(frame)
        if hidden is not None:
            at = pixels(np.where(inside[:, None], points, 0), self.size)
            inside &= ~hidden[at[:, 1], at[:, 0]]
        return np.asarray(inside)


def recorded(sequence: ImageSequence, name: str, every: int = 1) -> Footage:
    """Every n-th frame of a posed sequence."""
    assert sequence.poses is not None
    chosen = range(0, len(sequence), every)
    seconds = np.arange(len(sequence)) / UNTIMED_HZ if sequence.times is None else sequence.times
    image = lru_cache(CACHED)(lambda frame: sequence.image(chosen[frame]))
    return Footage(
        name if every == 1 else f"{name}/{every}",
        sequence.matrix,
        sequence.poses[list(chosen)],
        sequence.image_size,
        tuple(round(seconds[index] * 1e9) for index in chosen),
        image,
    )


def rendered(
    kind: str, frames: int, seed: int, speed: float, turn_deg_s: float = 14.0, textures: str = "skimage"
) -> Footage:
    """A flight through a scene (`training.data.scenes`), rendered frame by frame as it is asked for.

    Args:
        speed, turn_deg_s: metres and degrees of yaw per second, see `fly_through`.

    Raises:
        ValueError: an unknown kind, or no textures.
    """
    if kind not in SCENES:
        raise ValueError(f"scene {kind!r}: expected one of {', '.join(SCENES)}")
    random = np.random.default_rng(seed)
    scene = SCENES[kind](random, load_textures(textures))
    poses = fly_through(scene, random, frames, RATE_HZ, speed, turn_deg_s)
    matrix = pinhole(SIZE, FIELD_OF_VIEW)
    view = lru_cache(frames)(lambda frame: scene.render(matrix, SIZE, poses[frame]))
    return Footage(
        kind,
        matrix,
        np.stack(poses),
        SIZE,
        tuple(round(frame * 1e9 / RATE_HZ) for frame in range(frames)),
        lambda frame: view(frame).image,
        lambda frame: view(frame).depth,
    )


def shortened(footage: Footage, frames: int) -> Footage:
    """The first frames of it."""
    return replace(footage, poses=footage.poses[:frames], stamps_ns=footage.stamps_ns[:frames])


def apply_homography(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) under a homography (3, 3)."""
    mapped = to_homogeneous(points.astype(np.float64)) @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]
