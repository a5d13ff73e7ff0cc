"""PyTorch as it is: the reference that every other engine must agree with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from samfeat_core.detection import ExtractionGraph
from samfeat_core.engines import Job, RawFeatures
from samfeat_core.errors import EngineError
from samfeat_core.quantization import halve
from samfeat_core.weights import load_network


def extraction_graph(job: Job, half: bool = False, network: nn.Module | None = None) -> ExtractionGraph:
    """The job's graph in evaluation mode on its device, with its weights or with a network that has them.

    half: the convolutions compute in half precision.
    """
    network = network or load_network(job.spec.name, job.weights).eval().requires_grad_(False)
    count = min(job.max_keypoints, job.height * job.width)
    network = halve(network) if half else network
    graph = ExtractionGraph(network, count, job.nms_radius, job.nms_passes, job.refine)
    return graph.eval().to(job.device)


@lru_cache(maxsize=1)
def _shared_network(name: str, weights: Path, changed_ns: int, device: str) -> nn.Module:
    """One network for the engines of all image sizes: reading it takes longer than most images do."""
    return load_network(name, weights).eval().requires_grad_(False).to(device)


def example_inputs(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a mask of the job's shape, for tracing and warming up."""
    image = torch.randint(0, 255, (1, job.spec.channels, job.height, job.width), dtype=torch.uint8)
    return image.to(job.device), torch.ones(1, 1, job.height, job.width, dtype=torch.uint8, device=job.device)


class EagerEngine:
    """Runs the graph operation by operation."""

    name = "eager"

    def __init__(self, job: Job) -> None:
        self.device = job.device
        changed_ns = job.weights.stat().st_mtime_ns if job.weights.exists() else 0
        self.graph = extraction_graph(job, network=_shared_network(job.spec.name, job.weights, changed_ns, job.device))

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures:
        tensors = (torch.from_numpy(array).to(self.device) for array in (image[None], mask[None, None]))
        keypoints, scores, descriptors, weights = (out.cpu().numpy() for out in self.graph(*tensors))
        return keypoints, scores, descriptors, weights


def build(job: Job) -> EagerEngine:
    """Raises EngineError where the GPU cannot run it: PyTorch may see one that it has no kernels for."""
    try:
        engine = EagerEngine(job)
        if job.device != "cpu":
            with torch.inference_mode():
                engine.graph(*example_inputs(job))
            torch.cuda.synchronize(job.device)
        return engine
    except RuntimeError as error:
        raise EngineError(f"{type(error).__name__}: {error}") from error
