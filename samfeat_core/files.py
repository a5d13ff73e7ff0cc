"""Files: which are images, tables of numbers, and writing that leaves whole files or none."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from samfeat_core.errors import FileError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def is_image(path: Path) -> bool:
    """By the name: one of `IMAGE_SUFFIXES`, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> tuple[Path, ...]:
    """The images of a folder in the order of their names.

    Raises:
        FileError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder; expected images there")
    images = tuple(sorted(path for path in folder.iterdir() if is_image(path)))
    if not images:
        raise FileError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return images


def read_image(path: str | Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """An image as OpenCV's flags say; by default (H, W, 3) BGR uint8.

    Raises:
        FileError: the file is missing or cannot be decoded.
    """
    image = cv2.imread(str(path), flags)
    if image is None:
        raise FileError(f"{path}: " + ("cannot be decoded as an image" if Path(path).exists() else "no such image"))
    return image


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of the lines of a text file that are not empty. Raises FileError naming the file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def parse_numbers(text: str, count: int, where: str) -> np.ndarray:
    """(count,) float64 from words. Raises FileError that begins with `where`."""
    try:
        numbers = np.array([float(word) for word in text.split()])
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise FileError(f"{where}: expected {count} finite numbers, got '{text.strip()[:60]}'")
    return numbers


def read_numbers(path: Path, count: int) -> np.ndarray:
    """(N, count) float64 from lines of `count` numbers. Raises FileError naming file and line."""
    lines = read_lines(path)
    if not lines:
        raise FileError(f"{path}: empty")
    return np.array([parse_numbers(line, count, f"{path}: line {number}") for number, line in lines])


@contextmanager
def replacing(path: Path, shared: bool = True) -> Iterator[Path]:
    """Yields a path beside `path` to write to; at the end that file, on the disk, takes the place of `path`.

    After an exception `path` is as it was and nothing is left beside it.

    Args:
        shared: processes may write the same path at the same time: each has a file of its own, and the last one stays.
            False: one process alone writes it. What a killed process left beside it is overwritten by the next one.
    """
    own = f".{os.getpid()}" if shared else ""
    partial = path.with_name(f".{path.stem}{own}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, shared: bool = True) -> None:
    """Write a file that is there whole or not at all (`replacing`). Raises OSError."""
    with replacing(path, shared) as partial:
        partial.write_bytes(data)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Strict JSON: numbers that are not finite become null. The file is there whole or not at all."""
    write_bytes(path, (json.dumps(finite(content), indent=indent, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The value with plain Python numbers for NumPy's, and None for numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
