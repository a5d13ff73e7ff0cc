"""Stored pairs with known correspondence: their file format, folders of them, and batches (`PairBatch`) made of them.

Every source of posed pairs (`PosedPairs`, `MegaDepthPairs`, `ScenePairs`, `StoredPairs`) answers `len(source)` and
`source[index]`, the same pair for the same seed and index, as a dict of numpy arrays (a `Pair`):

    image0, image1    (H, W, 3) uint8 RGB
    warp01, warp10    (H, W, 2) float32: for each pixel centre its position (x, y) in the other image, NaN = none
    matrix0, matrix1  (3, 3) float32 camera matrices in pixels of these images
    T_0to1            (4, 4) float32 transform from the first to the second camera, metres

and, where the images are cut out of photographs that a teacher may have seen,

    photo0, photo1        str, the file below the photographs' folder
    content0, content1    str, `content_hash` of it
    crop0, crop1          (3, 3) float64 map from pixels of the image to pixels of the photograph

One pair is one uncompressed `.npz` of these arrays, the warps as int16 in units of 1 / `warp_scale` pixel with -32768
for "none": a fifth of the size, below 0.01 px of rounding at 640 pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from tqdm import tqdm

from samfeat_core.errors import FileError
from samfeat_core.files import replacing, write_json
from samfeat_core.progress import progress
from training.data.pairs import PairBatch

Pair = dict[str, np.ndarray]

NO_WARP = np.int16(-32768)
SETTINGS_FILE = "pairs.json"
_KEYS = ("image0", "image1", "matrix0", "matrix1", "T_0to1")
_OF_PHOTOS = ("photo0", "photo1", "content0", "content1", "crop0", "crop1")


class PairSource(Protocol):
    """What a source of pairs answers; fits torch's DataLoader as a map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


def write_pair(path: Path, pair: Pair) -> None:
    """Write one pair; a reader never sees half a file."""
    height, width = pair["image0"].shape[:2]
    scale = np.float32(32000 / max(width, height))
    arrays: dict[str, Any] = {key: pair[key] for key in (*_KEYS, *_OF_PHOTOS) if key in pair}
    arrays["warp_scale"] = scale
    for key in ("warp01", "warp10"):
        missing = ~np.isfinite(pair[key])
        arrays[key] = np.where(missing, NO_WARP, np.rint(np.where(missing, 0, pair[key]) * scale)).astype(np.int16)
    with replacing(path, shared=False) as partial:
        np.savez(partial, **arrays)


def read_pair(path: Path) -> Pair:
    """Read what `write_pair` wrote. ValueError names a file that is no such pair."""
    try:
        with np.load(path) as arrays:
            pair = {key: arrays[key] for key in (*_KEYS, *(key for key in _OF_PHOTOS if key in arrays))}
            for key in ("warp01", "warp10"):
                stored = arrays[key]
                pair[key] = np.where(stored == NO_WARP, np.float32(np.nan), stored / arrays["warp_scale"])
        return pair
    except Exception as error:  # zipfile, struct, key and value errors of a damaged file
        raise ValueError(f"{path}: not a stored pair ({type(error).__name__}: {error})") from error


class StoredPairs:
    """All pairs of a folder that `store_pairs` filled. ValueError where there are none."""

    def __init__(self, folder: str | Path) -> None:
        self.paths = sorted(Path(folder).rglob("pair_*.npz"))
        if not self.paths:
            raise ValueError(f"{folder}: no stored pairs (pair_*.npz) there")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Pair:
        return read_pair(self.paths[index])


class AllPairs:
    """The pairs of several folders, one after the other."""

    def __init__(self, folders: Sequence[StoredPairs]) -> None:
        self.paths = [path for folder in folders for path in folder.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Pair:
        return read_pair(self.paths[index])


def kept_pairs(source: AllPairs, memory: float) -> PairSource:
    """The pairs in memory, if they take no more bytes; else the source itself, which reads them one by one."""
    if not len(source):
        return []
    needed = sum(part.nbytes for part in source[0].values()) * len(source)
    if needed <= memory:
        return [source[index] for index in range(len(source))]
    tqdm.write(f"{len(source):,} pairs take {needed / 1e9:.2g} GB: they are read when they are needed")
    return source


def store_pairs(source: PairSource, folder: Path, settings: dict[str, Any], description: str = "pairs") -> None:
    """Compute every pair of a source once and keep it; pairs that are there already are not computed again.

    Args:
        settings: what the source was made with; the folder remembers it.

    Raises:
        FileError: the folder holds pairs of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings, default=str))
    if record.exists() and json.loads(record.read_text()) != settings:
        raise FileError(f"{folder}: holds pairs of other settings, see {record.name}; take another folder or empty it")
    write_json(record, settings)
    for index in progress(range(len(source)), description, "pair"):
        path = folder / f"pair_{index:06d}.npz"
        if not path.exists():
            write_pair(path, source[index])


def crop_pair(pair: Pair, size: tuple[int, int], rng: np.random.Generator) -> Pair:
    """A window of (width, height) of both images, the same in both, at a random place; warps follow.

    Raises:
        ValueError: the images are smaller.
    """
    height, width = pair["image0"].shape[:2]
    if size == (width, height):
        return pair
    if size[0] > width or size[1] > height:
        raise ValueError(f"cannot cut {size[0]}x{size[1]} out of a stored pair of {width}x{height}")
    left, top = (int(rng.integers(0, full - part + 1)) for full, part in zip((width, height), size, strict=True))
    window = np.s_[top : top + size[1], left : left + size[0]]
    cropped = {key: pair[key][window] for key in ("image0", "image1")}
    for key in ("warp01", "warp10"):
        warp = pair[key][window] - np.array([left, top], np.float32)
        outside = (warp < 0) | (warp > np.array(size, np.float32) - 1)
        warp[outside.any(-1)] = np.nan
        cropped[key] = warp
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float32)
    for key in ("crop0", "crop1"):
        if key in pair:
            cropped[key] = pair[key] @ np.linalg.inv(shift)
    return {**pair, **cropped, "matrix0": shift @ pair["matrix0"], "matrix1": shift @ pair["matrix1"]}


def to_batch(pairs: Sequence[Pair], channels: int = 1, device: torch.device | str = "cpu") -> PairBatch:
    """A `PairBatch` of pairs of one size, on the device, grey (channels 1) or RGB (3), without teacher output."""

    def images(key: str) -> torch.Tensor:
        arrays = [pair[key] for pair in pairs]
        if channels == 1:
            arrays = [cv2.cvtColor(array, cv2.COLOR_RGB2GRAY)[..., None] for array in arrays]
        stacked = torch.from_numpy(np.stack(arrays)).to(device, non_blocking=True)
        return stacked.permute(0, 3, 1, 2).float() / 255

    def warps(key: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([pair[key] for pair in pairs])).to(device, non_blocking=True).float()

    untaught = torch.zeros(len(pairs), dtype=torch.bool, device=device)
    return PairBatch(images("image0"), images("image1"), warps("warp01"), warps("warp10"), untaught, untaught)


class PairSampler:
    """Endless `PairBatch`es out of a source, in shuffled epochs, like `HomographyPairs`.

    Args:
        source: any of the pair sources; all pairs of one size.
        size: (width, height) to cut out of them, None = as they are.
        channels: 1 grey, 3 RGB.
        teach: adds teacher output to a batch of these pairs; None = they have none.
    """

    def __init__(
        self,
        source: PairSource,
        size: tuple[int, int] | None = None,
        channels: int = 1,
        device: torch.device | str = "cpu",
        teach: Callable[[PairBatch, Sequence[Pair]], None] | None = None,
    ) -> None:
        self.teach = teach
        self.source, self.size, self.channels, self.device = source, size, channels, device
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self.source)

    def state(self) -> list[int]:
        """The rest of the current epoch's order; with torch's random state it resumes the sequence."""
        return list(self._order)

    def restore(self, state: list[int]) -> None:
        self._order = list(state)

    def sample(self, count: int) -> PairBatch:
        """`count` pairs; randomness is torch's global generator, so a saved state resumes the sequence."""
        while len(self._order) < count:
            self._order += torch.randperm(len(self.source)).tolist()
        drawn, self._order = self._order[:count], self._order[count:]
        pairs = [self.source[index] for index in drawn]
        if self.size is not None:
            rng = np.random.default_rng(int(torch.randint(2**31, ())))
            pairs = [crop_pair(pair, self.size, rng) for pair in pairs]
        batch = to_batch(pairs, self.channels, self.device)
        if self.teach is not None:
            self.teach(batch, pairs)
        return batch
