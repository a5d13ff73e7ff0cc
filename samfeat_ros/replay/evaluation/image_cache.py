"""Decoded images on disk, so that every front-end and the report get them without decoding them again."""

from __future__ import annotations

import os
import shutil
import tempfile

import numpy as np

LIMIT_BYTES = 32 * 2**30


class ImageCache:
    """A sequence of images in a temporary file. It grows until the limit, or the disk, is full, and stops there.

    Args:
        limit_bytes: largest size of the file; None = 32 GiB, but no more than half of what is free on the disk.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        self._room = min(LIMIT_BYTES, free // 2) if limit_bytes is None else limit_bytes
        self._file = tempfile.TemporaryFile(prefix="samfeat_images_", buffering=0)  # noqa: SIM115
        self._places: list[tuple[int, tuple[int, ...], np.dtype]] = []  # offset, shape and type

    def __len__(self) -> int:
        """How many images are kept: the first ones that were added."""
        return len(self._places)

    def append(self, image: np.ndarray) -> None:
        """Keep an image, if there is room and there was room for all before it."""
        if image.nbytes > self._room:
            self._room = 0
            return
        offset = self._file.tell()
        try:
            written = self._file.write(np.ascontiguousarray(image).data)
        except OSError:
            written = 0
        if written != image.nbytes:
            self._room = 0
            return
        self._room -= image.nbytes
        self._places.append((offset, image.shape, image.dtype))

    def __getitem__(self, index: int) -> np.ndarray:
        """The image, read-only."""
        offset, shape, kind = self._places[index]
        data = os.pread(self._file.fileno(), int(np.prod(shape)) * kind.itemsize, offset)
        return np.frombuffer(data, kind).reshape(shape)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
