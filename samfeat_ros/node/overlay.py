"""A picture for people: keypoints, and the tail that each track has left behind."""

from __future__ import annotations

import cv2
import numpy as np

from samfeat_core.features import Features, Matches
from samfeat_core.tracking import FOLLOWED, RECOVERED

_NEW = 160  # grey
_SUBPIXEL_BITS = 4


class Overlay:
    """Draws frame after frame and remembers the recent positions of living tracks.

    Args:
        tail: length of the tails in frames; 0 = no tails.
    """

    def __init__(self, tail: int = 10) -> None:
        self.tail = tail
        self._paths: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        """Forget all tails."""
        self._paths.clear()

    def draw(self, image: np.ndarray, features: Features, matches: Matches) -> np.ndarray:
        """Draw one frame.

        Args:
            image: (H, W) grey or (H, W, 3) BGR uint8; not changed.
            features: points of the image.
            matches: their tracks. New points are grey, others from blue (short tracks) to red (long ones); a detected
                point is a circle, a followed one a dot, a recovered one a ring around a dot.

        Returns:
            (H, W, 3) BGR uint8.
        """
        canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
        self._extend(features.keypoints, matches.track_ids)
        colors = [tuple(color) for color in track_colors(matches.lengths).tolist()]
        radius = max(2, round(max(features.image_size) / 400))
        for path, color in zip(self._paths.values(), colors):
            if len(path) > 1:
                cv2.polylines(canvas, [_fixed_point(path)], False, color, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
        for (x, y), color, source in zip(_fixed_point(features.keypoints).tolist(), colors, matches.sources.tolist()):
            if source != FOLLOWED:
                cv2.circle(canvas, (x, y), radius << _SUBPIXEL_BITS, color, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
            if source in (FOLLOWED, RECOVERED):
                cv2.circle(canvas, (x, y), 1 << _SUBPIXEL_BITS, color, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        return canvas

    def _extend(self, points: np.ndarray, track_ids: np.ndarray) -> None:
        """Paths of the living tracks only, in the order of the rows: memory stays bounded by the keypoints."""
        keep = self.tail + 1
        nothing = np.zeros((0, 2), np.float32)
        self._paths = {
            identity: np.vstack([self._paths.get(identity, nothing), point])[-keep:]
            for identity, point in zip(track_ids.tolist(), points[:, None])
        }


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def track_colors(lengths: np.ndarray) -> np.ndarray:
    """(N, 3) BGR uint8 of tracks of these lengths in frames: new ones grey, others from blue (short) to red (long)."""
    if not len(lengths):
        return np.zeros((0, 3), np.uint8)
    scale = np.clip(lengths * 12, 0, 255).astype(np.uint8)
    table = cv2.applyColorMap(scale[:, None], cv2.COLORMAP_JET)[:, 0]
    return np.where(lengths[:, None] <= 1, np.uint8(_NEW), table)
