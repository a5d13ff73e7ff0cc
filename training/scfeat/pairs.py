"""Image pairs with intrinsics and relative pose, and nothing more: SCFeat's supervision.

Two layouts are read: posed sequences (`samfeat_core.sequence`; a `depth/` folder is not looked at) and CAPS-MegaDepth
as published (`SCENE/dense*/aligned/{images/, img_cam.txt, pairs.txt}`).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samfeat_core.files import read_image, read_lines
from samfeat_core.poses import relative_pose, rotation_angle
from samfeat_core.sequence import ImageSequence
from samfeat_core.two_view import fundamental_matrix, normalize_points
from training.data.geometry import cover, scale_and_cut
from training.loop.config import at_least

# How far surfaces may be, in multiples of the baseline, when nothing is known but poses. Nearer ones move across half
# of the image from one view to the other, further ones show no parallax.
DEPTHS = (3.0, 10.0, 30.0)
# A drawn pair may be thrown away for its crops; after that many the data are unusable.
ATTEMPTS = 50


@dataclass(frozen=True)
class PoseDataConfig:
    """What is trained on.

    Attributes:
        folders: posed sequences in the simple layout.
        caps: folders with scenes of CAPS-MegaDepth.
        size: (width, height) of the views, multiples of 16.
        batch: pairs per step and process.
        gap: smallest and largest number of frames between the two frames of a pair of a sequence.
        min_overlap: smallest share of either image that the other may see (`overlap`).
        max_rotation: largest relative rotation in degrees.
        min_baseline: smallest distance of the cameras, in the unit of the poses: without a baseline there are no lines.
        validation: share of every sequence's frames, its last ones, and of CAPS's scenes, that training never sees.
        per_scene: at most that many pairs of a CAPS scene, so that large scenes do not outweigh the others.
    """

    folders: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    size: tuple[int, int] = (640, 480)
    batch: int = 2
    gap: tuple[int, int] = (4, 20)
    min_overlap: float = 0.3
    max_rotation: float = 80.0
    min_baseline: float = 0.05
    validation: float = 0.1
    per_scene: int = 5000

    def __post_init__(self) -> None:
        at_least("data.batch", self.batch, 1)


class PosedImage(NamedTuple):
    """An image that is not read yet: path, (3, 3) camera matrix, (width, height), (4, 4) camera-to-world pose."""

    path: Path
    matrix: np.ndarray
    size: tuple[int, int]
    pose: np.ndarray


class PosedImagePair(NamedTuple):
    """Two posed images of one scene."""

    first: PosedImage
    second: PosedImage

    @property
    def T_0to1(self) -> np.ndarray:
        return relative_pose(self.first.pose, self.second.pose)


@dataclass
class PoseBatch:
    """A batch on the training device.

    Attributes:
        image0, image1: (B, 3, H, W) float32 RGB in [0, 1].
        fundamental: (B, 3, 3) float32 with x1^T F x0 = 0 in pixels, of unit norm.
    """

    image0: Tensor
    image1: Tensor
    fundamental: Tensor

    def __len__(self) -> int:
        return len(self.image0)

    @property
    def size(self) -> tuple[int, int]:
        return self.image0.shape[-1], self.image0.shape[-2]


def overlap(pair: PosedImagePair, depths: tuple[float, ...] = DEPTHS, grid: int = 12) -> float:
    """Share of either image (the smaller one) that the other camera may see, as far as poses can tell.

    A grid of pixels is placed at several depths, multiples of the baseline, so that the unit of the poses, which is
    arbitrary in a reconstruction from photographs, does not matter. A pixel is seen to the share of depths that fall
    inside.
    """
    forward = _seen(pair.first, pair.second, pair.T_0to1, depths, grid)
    return min(forward, _seen(pair.second, pair.first, np.linalg.inv(pair.T_0to1), depths, grid))


def _seen(source: PosedImage, target: PosedImage, transform: np.ndarray, depths: tuple[float, ...], grid: int) -> float:
    x, y = np.meshgrid(*((np.arange(grid) + 0.5) / grid * side - 0.5 for side in source.size))
    rays = normalize_points(np.stack([x, y], -1).reshape(-1, 2), source.matrix)
    baseline = max(float(np.linalg.norm(transform[:3, 3])), 1e-9)
    points = np.concatenate([rays, np.ones((len(rays), 1))], 1) * baseline * np.array(depths)[:, None, None]
    moved = points @ transform[:3, :3].T + transform[:3, 3]
    pixels = moved @ target.matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = pixels[..., :2] / pixels[..., 2:]
    inside = (moved[..., 2] > 0) & ((pixels >= -0.5) & (pixels < np.array(target.size) - 0.5)).all(-1)
    return float(inside.mean())


def is_usable(pair: PosedImagePair, config: PoseDataConfig) -> bool:
    """Whether a pair is within the configuration's limits of rotation, baseline and overlap."""
    transform = pair.T_0to1
    return (
        float(rotation_angle(transform[:3, :3])) <= config.max_rotation
        and float(np.linalg.norm(transform[:3, 3])) >= config.min_baseline
        and overlap(pair) >= config.min_overlap
    )


def read_sequence(folder: str | Path, config: PoseDataConfig) -> tuple[list[PosedImagePair], list[PosedImagePair]]:
    """Pairs of a posed sequence for training and for validation: of its first frames, and of its last ones.

    Raises:
        ValueError: naming the file that is missing or malformed, or the folder when it has no pair within the limits.
    """
    sequence = ImageSequence.read(folder, require=("poses",))
    size = sequence.image_size
    assert sequence.poses is not None
    frames = [PosedImage(p, sequence.matrix, size, T) for p, T in zip(sequence.images, sequence.poses, strict=True)]
    held = round(len(frames) * config.validation)
    low, high = config.gap
    parts = []
    for part in (frames[: len(frames) - held], frames[len(frames) - held :]):
        candidates = (PosedImagePair(part[i], part[i + g]) for g in range(low, high + 1) for i in range(len(part) - g))
        parts.append([pair for pair in candidates if is_usable(pair, config)])
    if not parts[0]:
        raise ValueError(
            f"{folder}: no pair of its {len(frames)} frames is within the limits (gap {low} to {high} frames, "
            f"overlap >= {config.min_overlap}, rotation <= {config.max_rotation} deg, "
            f"baseline >= {config.min_baseline})"
        )
    return parts[0], parts[1]


def read_caps(root: str | Path, config: PoseDataConfig) -> tuple[list[PosedImagePair], list[PosedImagePair]]:
    """Pairs of CAPS-MegaDepth for training and for validation; which scene is which depends on its name alone.

    The publishers chose the pairs by their overlap; the limits of rotation and overlap are applied on top. The baseline
    has no unit there and must only not be zero.

    Raises:
        ValueError: naming the file that is missing or malformed, or the root when nothing usable is in it.
    """
    limits = PoseDataConfig(min_overlap=config.min_overlap, max_rotation=config.max_rotation, min_baseline=1e-6)
    training: list[PosedImagePair] = []
    validation: list[PosedImagePair] = []
    folders = sorted(Path(root).glob("*/dense*/aligned"))
    if not folders:
        raise ValueError(f"{root}: no scene of CAPS-MegaDepth there (SCENE/dense*/aligned)")
    for folder in folders:
        scene = folder.parent.parent.name
        images = read_img_cam(folder / "img_cam.txt")
        pairs = list(_listed_pairs(folder / "pairs.txt", images))
        order = np.random.default_rng(zlib.crc32(scene.encode())).permutation(len(pairs))
        kept: list[PosedImagePair] = []
        for index in order:
            if len(kept) == config.per_scene:
                break
            if is_usable(pairs[index], limits):
                kept.append(pairs[index])
        (validation if zlib.crc32(scene.encode()) % 1000 < config.validation * 1000 else training).extend(kept)
    if not training:
        raise ValueError(f"{root}: no pair of its {len(folders)} scenes is within the limits")
    return training, validation


def read_img_cam(path: Path) -> dict[str, PosedImage]:
    """Images of a CAPS scene by name: `name w h fx fy cx cy`, 9 numbers of R and 3 of t, world to camera, a line."""
    images = {}
    for number, line in _lines(path):
        words = line.split()
        try:
            values = np.array([float(word) for word in words[1:19]])
        except ValueError:
            values = np.zeros(0)
        if len(words) < 19 or not np.isfinite(values).all() or len(values) != 18 or min(values[:4]) <= 0:
            raise ValueError(f"{path}: line {number}: expected a name and 18 numbers (w h fx fy cx cy R t)")
        w, h, fx, fy, cx, cy = values[:6]
        to_camera = np.eye(4)
        to_camera[:3, :3], to_camera[:3, 3] = values[6:15].reshape(3, 3), values[15:]
        if abs(np.linalg.det(to_camera[:3, :3]) - 1) > 1e-2:
            raise ValueError(f"{path}: line {number}: R is not a rotation")
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        images[words[0]] = PosedImage(
            path.parent / "images" / words[0], matrix, (int(w), int(h)), np.linalg.inv(to_camera)
        )
    return images


def _listed_pairs(path: Path, images: dict[str, PosedImage]) -> Iterator[PosedImagePair]:
    for number, line in _lines(path):
        names = line.split()
        if len(names) != 2:
            raise ValueError(f"{path}: line {number}: expected the names of two images")
        unknown = [name for name in names if name not in images]
        if unknown:
            raise ValueError(f"{path}: line {number}: {unknown[0]} is not in img_cam.txt")
        yield PosedImagePair(images[names[0]], images[names[1]])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are neither empty nor comments."""
    return ((number, line) for number, line in read_lines(path) if not line.startswith("#"))


def read_posed_pairs(config: PoseDataConfig) -> tuple[list[PosedImagePair], list[PosedImagePair]]:
    """All pairs of a configuration, for training and for validation."""
    training: list[PosedImagePair] = []
    validation: list[PosedImagePair] = []
    for read, folders in ((read_sequence, config.folders), (read_caps, config.caps)):
        for folder in folders:
            some, held = read(folder, config)
            training += some
            validation += held
    if not training:
        raise ValueError("data.folders and data.caps are empty: expected at least one folder of posed images")
    return training, validation


def fit(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image until it just covers (width, height), cut it to that, and return it with its camera matrix.

    Args:
        shift: (2,) in [0, 1], where along the excess the cut is made.
    """
    scaled = cover((image.shape[1], image.shape[0]), size)
    left, top = (int(s * (a - b) + 0.5) for s, a, b in zip(shift, scaled, size, strict=True))
    return scale_and_cut(image, matrix, scaled, (left, top), size)


class PoseSource:
    """Random batches of pairs, drawn by torch's generator so that a resumed run continues as it would have.

    An image that cannot be read is reported once and its pairs are passed over.

    Args:
        cache: number of decoded images kept in memory.

    Attributes:
        skipped: one line for every image that could not be read.
    """

    def __init__(
        self, pairs: list[PosedImagePair], size: tuple[int, int], device: torch.device | str = "cpu", cache: int = 1000
    ) -> None:
        if not pairs:
            raise ValueError("no image pairs to draw from")
        self.pairs, self.size, self.device = pairs, size, torch.device(device)
        self.skipped: list[str] = []
        self._read = lru_cache(maxsize=cache)(read_image)

    def sample(self, count: int) -> PoseBatch:
        """`count` pairs, crops at random, either view first."""
        return self.stack([self._draw() for _ in range(count)])

    def stack(self, views: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> PoseBatch:
        images = [torch.from_numpy(np.stack([view[i] for view in views])) for i in (0, 1)]
        image0, image1 = (
            image.to(self.device, non_blocking=True).flip(3).permute(0, 3, 1, 2).float() / 255 for image in images
        )
        fundamental = torch.from_numpy(np.stack([view[2] for view in views])).float().to(self.device)
        return PoseBatch(image0.contiguous(), image1.contiguous(), fundamental)

    def load(self, pair: PosedImagePair, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Two BGR uint8 crops (H, W, 3) and their fundamental matrix (3, 3), of unit norm.

        Raises:
            ValueError: naming the file that cannot be read.
        """
        crops = [
            fit(self._read(view.path), view.matrix, self.size, shift)
            for view, shift in zip((pair.first, pair.second), shifts, strict=True)
        ]
        F = fundamental_matrix(crops[0][1], crops[1][1], pair.T_0to1)
        return crops[0][0], crops[1][0], F / np.linalg.norm(F)

    def _draw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for _ in range(ATTEMPTS):
            pair = self.pairs[int(torch.randint(len(self.pairs), ()))]
            if torch.rand(()) < 0.5:
                pair = PosedImagePair(pair.second, pair.first)
            shifts = torch.rand(2, 2).numpy().astype(np.float64)
            try:
                return self.load(pair, shifts)
            except ValueError as error:
                if str(error) not in self.skipped:
                    self.skipped.append(str(error))
                    print(f"skipped {error}", file=sys.stderr)
        raise ValueError(f"no readable pair in {ATTEMPTS} draws; the last: {self.skipped[-1]}")

    def state(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        """Nothing to restore: the draws are torch's."""
