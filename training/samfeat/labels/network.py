"""A network's score map as base detector for homographic adaptation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from samfeat_core.detection import detect, refine
from samfeat_core.errors import WeightsError
from samfeat_core.models import ModelSpec, model_spec
from samfeat_core.weights import load_network

RADIUS = 4  # non-maximum suppression in a view, pixels


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
            UsageError: unknown model. WeightsError: not a weights file of it.
        """
        metadata: dict[str, str] = {}
        if Path(path).suffix == ".safetensors":
            try:
                with safe_open(str(path), "pt") as file:
                    metadata = file.metadata() or {}
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{path}: not a readable weights file: {error}") from error
        model = metadata.get("model", model)
        spec = model_spec(model)
        threshold = float(metadata.get("threshold", spec.usual.threshold))
        return cls(load_network(model, path), spec, count, threshold, device)

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
