"""Images of the evaluation sets: decoded once, resized once, kept within a byte budget for the next extractor."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from samfeat_core.files import read_image


@dataclass(frozen=True)
class EvalImage:
    """pixels: (H, W, 3) BGR uint8. native: (width, height) in the file. to_resized: (3, 3) affine map of native
    pixel coordinates to those of ``pixels`` (half-pixel centres: x' = (x + 0.5) s - 0.5)."""

    pixels: np.ndarray
    native: tuple[int, int]
    to_resized: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of ``pixels``."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def from_size(self, size: tuple[int, int] | None) -> np.ndarray:
        """(3, 3) map to ``pixels`` from a copy of the image of another (width, height); None: the file's own."""
        return self.to_resized if size is None else resize_map(size, self.size)


class ImageStore:
    """Reads images, each shrunk so that its long side is at most ``long_side`` pixels (None: as it is).

    Instead of ``long_side``, ``size`` forces (width, height), as ScanNet's 640x480 does, and ``short_side`` makes
    images smaller or larger until that is their short side.
    """

    def __init__(
        self,
        long_side: int | None = None,
        size: tuple[int, int] | None = None,
        budget: int = 1 << 30,
        short_side: int | None = None,
    ):
        self.long_side = long_side
        self.size = size
        self.short_side = short_side
        self.budget = budget
        self._kept: OrderedDict[Path, EvalImage] = OrderedDict()
        self._bytes = 0

    def __call__(self, path: Path) -> EvalImage:
        """Raises ValueError naming a file that is missing or cannot be decoded."""
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        image = self._load(path)
        self._kept[path] = image
        self._bytes += image.pixels.nbytes
        while self._bytes > self.budget and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].pixels.nbytes
        return image

    def _load(self, path: Path) -> EvalImage:
        pixels = read_image(path)
        native = (pixels.shape[1], pixels.shape[0])
        size = self._size(native)
        if size != native:
            shrinks = size[0] < native[0]
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return EvalImage(pixels, native, resize_map(native, size))

    def _size(self, native: tuple[int, int]) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        scale = 1.0 if self.long_side is None else min(1.0, self.long_side / max(native))
        if self.short_side is not None:
            scale = self.short_side / min(native)
        return round(native[0] * scale), round(native[1] * scale)


def resize_map(native: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(3, 3) map of pixel coordinates from an image of ``native`` (width, height) to its copy of ``size``."""
    x, y = size[0] / native[0], size[1] / native[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
