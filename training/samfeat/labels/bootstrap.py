"""Train a network's detector on synthetic shapes: the method `shapes` of `python -m training.train`.

SuperPoint's first step (DeTone et al., arXiv 1712.07629, section 4); homographic adaptation of the outcome labels
photographs (`python -m training.label photos`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samfeat_core.models import ModelSpec, build_network, model_spec
from training.data.pairs import keypoint_map
from training.loop.config import RunConfig, at_least
from training.loop.trainer import Trainer, check_same_run, own_rank, write_config
from training.samfeat.labels.network import NetworkDetector
from training.samfeat.labels.shapes import render
from training.samfeat.losses import detection_loss

MOST_CORNERS = 128  # more than a rendered image has
FRESH = 10**6  # seed of the images that no training sees
THRESHOLD = 0.5  # on the sigmoid, for networks trained by L_det with positives weighted 200


@dataclass(frozen=True)
class ShapesConfig(RunConfig):
    """Everything a run depends on, besides the machine.

    Attributes:
        model: network whose detector is trained.
        size: (width, height) of the images, rounded up to the network's stride multiple.
        batch: images per step and process.
        workers: processes that render.

    Raises:
        UsageError: there is no such model.
    """

    model: str = "samfeat-nano"
    size: tuple[int, int] = (192, 160)
    batch: int = 32
    workers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("batch", self.batch, 1)
        model_spec(self.model)


class Shapes(Dataset[tuple[Tensor, Tensor]]):
    """Synthetic shapes by index: the same index is the same image, whoever renders it.

    Items are image (1, H, W) float32 in [0, 1] and corners (MOST_CORNERS, 2) float32, NaN beyond the last.
    """

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self.seed, self.size = seed, size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, corners = render(np.random.default_rng((self.seed, index)), self.size)
        padded = np.full((MOST_CORNERS, 2), np.nan, np.float32)
        padded[: len(corners)] = corners[:MOST_CORNERS]
        return torch.from_numpy(image)[None].float() / 255, torch.from_numpy(padded)


class ShapesSource:
    """Batches of `Shapes` in the order of their indices; rank r of n takes every n-th image from r on."""

    def __init__(self, shapes: Shapes, workers: int, device: torch.device, rank: int = 0, ranks: int = 1) -> None:
        self.shapes, self.workers, self.device, self.ranks = shapes, workers, device, ranks
        self._next = rank
        self._batches: Iterator[list[Tensor]] | None = None

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, 1, H, W) and corners (count, MOST_CORNERS, 2) on the device."""
        if self._batches is None:
            self._batches = iter(
                DataLoader(
                    self.shapes,
                    count,
                    sampler=range(self._next, sys.maxsize, self.ranks),
                    num_workers=self.workers,
                    pin_memory=self.device.type == "cuda",
                    generator=torch.Generator(),  # or it would draw from the global one, which resuming restores
                )
            )
        images, corners = (part.to(self.device, non_blocking=True) for part in next(self._batches))
        self._next += count * self.ranks
        return images, corners

    def state(self) -> int:
        """Index of the next image."""
        return self._next

    def restore(self, state: int) -> None:
        self._next, self._batches = state, None


class ShapesTask(nn.Module):
    """L_det on the corners of the shapes."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network, self.channels = network, spec.channels

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        images, corners = batch
        score = self.network(images.expand(-1, self.channels, -1, -1)).score
        return {"det": detection_loss(score, keypoint_map(corners, (images.shape[2], images.shape[3])))}


class ShapesValidation:
    """Precision and recall on shapes that training never sees.

    A keypoint is right, and a corner found, when the other is at most `radius` pixels away. Returns from a call:
    {"precision", "recall", "score"}, the score their harmonic mean.
    """

    def __init__(
        self, spec: ModelSpec, device: torch.device, count: int = 200, keypoints: int = 100, radius: float = 2.0
    ) -> None:
        self.spec, self.device, self.keypoints, self.radius = spec, device, keypoints, radius
        self.images = [render(np.random.default_rng((FRESH, index)), (192, 160)) for index in range(count)]

    def __call__(self, network: nn.Module) -> dict[str, float]:
        detector = NetworkDetector(network, self.spec, self.keypoints, THRESHOLD, self.device)
        found = right = corners_total = recalled = 0
        for image, corners in self.images:
            points = detector(image[None])[0]
            found, corners_total = found + len(points), corners_total + len(corners)
            if len(points) and len(corners):
                distance = np.linalg.norm(points[:, None] - corners[None], axis=2)
                right += int((distance.min(1) <= self.radius).sum())
                recalled += int((distance.min(0) <= self.radius).sum())
        precision, recall = right / max(found, 1), recalled / max(corners_total, 1)
        score = 2 * precision * recall / (precision + recall) if right else 0.0
        return {"precision": precision, "recall": recall, "score": score}


def train(config: ShapesConfig, output: Path, device: torch.device) -> float:
    """Run one configuration; returns the best validation score (`ShapesValidation`)."""
    check_same_run(config, output)
    spec, rank = model_spec(config.model), own_rank()
    torch.manual_seed(config.seed)
    network = build_network(config.model)
    multiple = spec.stride_multiple
    width, height = (-(-side // multiple) * multiple for side in config.size)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if rank == 0:
        write_config(config, output)
    trainer = Trainer(
        ShapesTask(network, spec),
        ShapesSource(Shapes(config.seed, (width, height)), config.workers, device, rank, ranks),
        ShapesValidation(spec, device),
        output,
        config,
        batch=config.batch,
        device=device,
        metadata={"model": config.model, "threshold": str(THRESHOLD)},
    )
    return trainer.run()
