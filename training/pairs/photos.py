"""Photographs in memory on the training device, so that the cores train and do not decode."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}


@dataclass
class Photo:
    """One photograph with what the teacher said of it.

    Attributes:
        levels: uint8 (C, h, w) at full, half and quarter size; C = 1 grey or 3 RGB.
        groups, edges: (h, w) integer label map and binary edge map at full size, or None.
        embedding: (256, 64, 64) float16 of the SAM encoder, or None.
        keypoints: (n, 2) float32 labelled keypoints in pixels, or None.
    """

    name: str
    levels: list[Tensor]
    groups: Tensor | None = None
    edges: Tensor | None = None
    embedding: Tensor | None = None
    keypoints: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.levels[0].shape[-1], self.levels[0].shape[-2]

    @property
    def has_teacher(self) -> bool:
        return self.groups is not None or self.embedding is not None

    def level(self, step: float) -> Tensor:
        """The pyramid level to sample from when one view pixel spans `step` photograph pixels."""
        return self.levels[0 if step < 1.5 else 1 if step < 3 else 2]


@dataclass
class PhotoSource:
    """A fixed set of photographs, drawn in shuffled epochs.

    Attributes:
        photos: all of them, in memory.
        skipped: (path, reason) of those that could not be read.
    """

    photos: list[Photo]
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    _order: list[int] = field(default_factory=list)

    def draw(self, count: int) -> list[Photo]:
        """The next `count` photographs of the shuffled order (torch's global generator)."""
        while len(self._order) < count:
            self._order += torch.randperm(len(self.photos)).tolist()
        drawn, self._order = self._order[:count], self._order[count:]
        return [self.photos[index] for index in drawn]

    def state(self) -> list[int]:
        """The rest of the current epoch's order, for resuming."""
        return list(self._order)

    def restore(self, state: list[int]) -> None:
        self._order = list(state)

    def __len__(self) -> int:
        return len(self.photos)


def list_photos(folders: list[Path]) -> list[Path]:
    """Every image file below the folders, sorted; ValueError names a folder that has none."""
    paths: list[Path] = []
    for folder in folders:
        found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"{folder}: no photographs there ({', '.join(sorted(SUFFIXES))})")
        paths += found
    return paths


def read_image(path: Path, channels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB uint8; ValueError when the file is not an image that can be decoded."""
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise ValueError("not a readable image")
    return image if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_photo(path: Path, channels: int, long_side: int) -> Photo:
    """Decode one photograph, no larger than `long_side`, with its pyramid."""
    image = read_image(path, channels)
    scale = long_side / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    full = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))
    levels = [full]
    for _ in range(2):
        levels.append(F.avg_pool2d(levels[-1].float(), 2).round().to(torch.uint8))
    return Photo(path.stem, levels)


def load_photos(
    folders: list[Path], channels: int, long_side: int = 640, device: torch.device | str = "cpu", workers: int = 4
) -> PhotoSource:
    """Decode every photograph of the folders into memory; those that fail are listed and skipped."""
    paths = list_photos(folders)
    skipped: list[tuple[Path, str]] = []
    photos: list[Photo] = []
    with ThreadPoolExecutor(workers) as pool:
        for path, photo in zip(paths, tqdm(_decoded(pool, paths, channels, long_side), "photographs", len(paths))):
            if isinstance(photo, Photo):
                photo.levels = [level.to(device) for level in photo.levels]
                photos.append(photo)
            else:
                skipped.append((path, photo))
    for path, reason in skipped:
        tqdm.write(f"skipped {path}: {reason}")
    if not photos:
        raise ValueError(f"none of the {len(paths)} photographs under {', '.join(map(str, folders))} could be read")
    return PhotoSource(photos, skipped)


def _decoded(pool: ThreadPoolExecutor, paths: list[Path], channels: int, long_side: int) -> Iterator[Photo | str]:
    def decode(path: Path) -> Photo | str:
        try:
            return load_photo(path, channels, long_side)
        except (ValueError, OSError, cv2.error) as error:
            return str(error).splitlines()[0]

    return pool.map(decode, paths)
