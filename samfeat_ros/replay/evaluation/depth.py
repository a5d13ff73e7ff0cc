"""Depth images of a bag beside its frames: with known poses they tell where every point truly is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.track_truth import carry_points, silhouette
from samfeat_ros.image_input import ImageError, depth_from_msg
from samfeat_ros.replay.bags import Bag, BagError, decode
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.image_cache import ImageCache
from samfeat_ros.replay.evaluation.metrics import Truth
from samfeat_ros.stamps import NS_PER_S, stamp_to_ns
from samfeat_ros.topics import IMAGE

MAX_APART_NS = NS_PER_S // 50  # between a frame and its depth image


class DepthScene:
    """Frames of known depth and pose (`samfeat_core.track_truth.Scene`). Close it after use.

    The depth must be registered to the images: a pixel of the one is that pixel of the other.

    Args:
        topic: of depth images, 16UC1 in millimetres or 32FC1 in metres.
        camera: of the images.
        on_message: called after every depth image, for a progress bar.

    Attributes:
        known: numbers of the frames that have depth and pose.
        problems: one line for each thing that a reader of the report should know.

    Raises:
        BagError: there is no such topic.
    """

    def __init__(
        self, footage: Footage, topic: str, truth: Truth, camera: Camera, on_message: Callable[[], None] = lambda: None
    ) -> None:
        self.topic = footage.bag.require(topic, (IMAGE,)).name
        self.truth, self.camera = truth, camera
        self._images = ImageCache()
        self._index: dict[int, int] = {}
        self.problems: list[str] = []
        self._read(footage, on_message)
        if not self._index:
            self.problems.append(f"{self.topic}: no depth image fits a frame with ground truth: no truth of tracks")

    @property
    def known(self) -> set[int]:
        return set(self._index)

    def close(self) -> None:
        """Drop the depth images."""
        self._images.close()

    def depth(self, frame: int) -> np.ndarray:
        """(H, W) float32 metres, 0 = none."""
        return self._images[self._index[frame]]

    def carry(self, points: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """True places (n, 2) in the second frame of points (n, 2) of the first, and (n,) bool: visible there."""
        motion = np.linalg.inv(self.truth.poses[second]) @ self.truth.poses[first]
        return carry_points(points, self.depth(first), self.depth(second), motion, self.camera)

    def on_silhouette(self, points: np.ndarray, frame: int) -> np.ndarray:
        """(n,) bool: points (n, 2) lie where depth jumps."""
        return silhouette(points, self.depth(frame))

    def _read(self, footage: Footage, on_message: Callable[[], None]) -> None:
        frames = [frame for frame in footage.frames if frame.number in self.truth.poses]
        stamps = np.array([frame.stamp_ns for frame in frames], np.int64)
        order = np.argsort(stamps)
        refused = 0
        for message in footage.bag.messages([self.topic]):
            on_message()
            try:
                content = decode(message)
            except BagError:
                refused += 1
                continue
            row = _nearest(stamps, order, stamp_to_ns(content.header.stamp))
            if row is None or frames[row].number in self._index:
                continue
            try:
                image = depth_from_msg(content)
            except ImageError:
                refused += 1
                continue
            if image.shape[::-1] != frames[row].size:
                refused += 1
                continue
            kept = len(self._images)
            self._images.append(image)
            if len(self._images) > kept:
                self._index[frames[row].number] = kept
        if refused:
            self.problems.append(
                f"{self.topic}: {refused} depth images are refused (damaged, or not of the images' size)"
            )


def _nearest(stamps: np.ndarray, order: np.ndarray, stamp: int) -> int | None:
    """Row of the stamp that is nearest, None where none is within `MAX_APART_NS`."""
    if not len(stamps):
        return None
    after = int(np.searchsorted(stamps, stamp, sorter=order))
    near = [int(order[place]) for place in (after - 1, after) if 0 <= place < len(stamps)]
    best = min(near, key=lambda row: abs(int(stamps[row]) - stamp))
    return best if abs(int(stamps[best]) - stamp) <= MAX_APART_NS else None


def find_depth_topic(bag: Bag, image_topic: str) -> str | None:
    """The only topic of images, besides the evaluated one, that has "depth" in its name."""
    named = [t.name for t in bag.topics.values() if t.type == IMAGE and "depth" in t.name and t.name != image_topic]
    return named[0] if len(named) == 1 else None
