"""A network's score map as base detector, and bootstrapping it on synthetic shapes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from samfeat_core.detection import detect, refine
from samfeat_core.errors import WeightsError
from samfeat_core.models import MODELS, ModelSpec, build_network, model_spec
from samfeat_core.weights import load_network
from training.data.photo_store import StoreError, store_error, write_atomically
from training.samfeat.losses import detection_loss, keypoint_map

from .shapes import render

RADIUS = 4  # non-maximum suppression in a view, pixels
BOOTSTRAP_THRESHOLD = 0.5  # on the sigmoid, for networks trained by L_det with positives weighted 200
MOST_CORNERS = 128  # more than a rendered image has


class NetworkDetector:
    """Keypoints of a network's score map: `detector(views) -> [positions]`.

    Args:
        network: answers `DenseFeatures` for (B, C, H, W) in [0, 1].
        spec: its constants.
        count: at most this many keypoints per view.
        threshold: least score, after the sigmoid.
        device: where it runs.
    """

    def __init__(
        self, network: nn.Module, spec: ModelSpec, count: int, threshold: float, device: str | torch.device = "cpu"
    ) -> None:
        self.network, self.spec = network.to(device).eval(), spec
        self.count, self.threshold, self.device = count, threshold, torch.device(device)

    @classmethod
    def load(cls, path: str | Path, count: int, model: str, device: str) -> NetworkDetector:
        """From a weights file; its own metadata (model, threshold) comes first.

        Raises:
            StoreError: unknown model, or not a weights file of it.
        """
        metadata: dict[str, str] = {}
        if Path(path).suffix == ".safetensors":
            try:
                with safe_open(str(path), "pt") as file:
                    metadata = file.metadata() or {}
            except (OSError, SafetensorError) as error:
                raise StoreError(f"{path}: not a readable weights file: {error}") from error
        model = metadata.get("model", model)
        try:
            spec = model_spec(model)
            threshold = float(metadata.get("threshold", spec.usual.threshold))
            return cls(load_network(model, path), spec, count, threshold, device)
        except (ValueError, WeightsError) as error:
            raise StoreError(str(error)) from error

    @torch.inference_mode()
    def __call__(self, views: np.ndarray) -> list[np.ndarray]:
        height, width = views.shape[1:]
        multiple = self.spec.stride_multiple
        images = torch.from_numpy(views).to(self.device)[:, None].float() / 255
        # Zeros would draw an edge; the border's own pixels do not.
        images = F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            score = self.network(images.expand(-1, self.spec.channels, -1, -1)).score
        score = score.float()[..., :height, :width].contiguous()
        points, scores = detect(score, None, min(self.count, height * width), RADIUS)
        points, _ = refine(score, points)
        found = (scores >= self.threshold).cpu().numpy()
        return [point[keep] for point, keep in zip(points.cpu().numpy(), found, strict=True)]


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


def bootstrap(
    output: str | Path,
    model: str = "samfeat-nano",
    steps: int = 20000,
    batch: int = 32,
    size: tuple[int, int] = (192, 160),
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 2,
    state_every: int = 500,
) -> None:
    """Trains a network's detector on synthetic shapes by L_det and writes its weights (safetensors).

    Every `state_every` steps the state is saved beside the output (`<output>.state`); a killed run continues from
    there to the same result. It is removed when the weights are written.

    Args:
        size: (width, height) of the images, rounded up to the network's stride multiple.

    Raises:
        StoreError: unknown model; the output cannot be written; the state there is of another run.
    """
    if model not in MODELS:
        raise StoreError(f"unknown model {model!r}: expected one of {', '.join(MODELS)}")
    spec = MODELS[model]
    torch.manual_seed(seed)
    network = build_network(model).to(device).train()
    width, height = (-(-side // spec.stride_multiple) * spec.stride_multiple for side in size)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = LinearLR(optimizer, 1.0, 0.01, steps)
    settings = {"model": model, "steps": steps, "batch": batch, "size": [width, height], "seed": seed}
    state_path = Path(f"{output}.state")
    first = _restore(state_path, settings, network, optimizer, schedule)

    loader = DataLoader(
        Shapes(seed, (width, height)),
        batch,
        sampler=range(first * batch, steps * batch),
        num_workers=workers,
        pin_memory=device.startswith("cuda"),
    )
    with tqdm(total=steps, initial=first, desc=f"{model} on shapes", unit="step") as bar:
        for step, (images, corners) in enumerate(loader, first + 1):
            images, corners = images.to(device, non_blocking=True), corners.to(device, non_blocking=True)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device.startswith("cuda")):
                score = network(images.expand(-1, spec.channels, -1, -1)).score
            loss = detection_loss(score, keypoint_map(corners, (height, width)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 50 == 0 or step == steps:  # reading the loss waits for the device
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
            if step % state_every == 0 and step < steps:
                state = {"step": step, "settings": settings, "network": network.state_dict()}
                state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                buffer = io.BytesIO()
                torch.save(state, buffer)
                _write(state_path, buffer.getvalue())
    metadata = {"model": model, "threshold": str(BOOTSTRAP_THRESHOLD), "trained": f"{steps} steps on synthetic shapes"}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    _write(Path(output), save(tensors, metadata))
    state_path.unlink(missing_ok=True)


def score_on_shapes(
    detector: NetworkDetector, count: int = 200, seed: int = 10**6, radius: float = 2.0
) -> tuple[float, float]:
    """Precision and recall of a detector on fresh shapes: found within `radius` pixels of a corner, and reverse."""
    found = right = corners_total = recalled = 0
    for image, corners in _fresh(seed, count):
        points = detector(image[None])[0]
        found, corners_total = found + len(points), corners_total + len(corners)
        if len(points) and len(corners):
            distance = np.linalg.norm(points[:, None] - corners[None], axis=2)
            right += int((distance.min(1) <= radius).sum())
            recalled += int((distance.min(0) <= radius).sum())
    return right / max(found, 1), recalled / max(corners_total, 1)


def _fresh(seed: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (render(np.random.default_rng((seed, index)), (192, 160)) for index in range(count))


def _restore(
    path: Path, settings: dict[str, object], network: nn.Module, optimizer: Optimizer, schedule: LRScheduler
) -> int:
    """Loads the state of an unfinished run; returns the steps it has done, 0 where there is none."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise StoreError(f"{path}: unreadable state of an unfinished run: remove it to start again") from error
    if state["settings"] != settings:
        raise StoreError(f"{path} is of an unfinished run with {state['settings']}: finish that one or remove the file")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise store_error(error, path) from error
