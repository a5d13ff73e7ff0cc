"""PyTorch as it is: the reference that every other engine must agree with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from samfeat_core.detection import ExtractionGraph
from samfeat_core.engines import Job
from samfeat_core.engines.staging import PackedGraph, StagedEngine
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
    """An image and a mask of the job's shape, for tracing."""
    image = torch.randint(0, 255, (1, job.spec.channels, job.height, job.width), dtype=torch.uint8)
    return image.to(job.device), torch.ones(1, 1, job.height, job.width, dtype=torch.uint8, device=job.device)


class EagerEngine(StagedEngine):
    """Runs the graph operation by operation."""

    name = "eager"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        changed_ns = job.weights.stat().st_mtime_ns if job.weights.exists() else 0
        network = _shared_network(job.spec.name, job.weights, changed_ns, job.device)
        self.graph = PackedGraph(extraction_graph(job, network=network))

    @torch.inference_mode()
    def run(self) -> Tensor:
        return self.graph(*self.inputs)


def build(job: Job) -> EagerEngine:
    """Raises EngineError where the GPU cannot run it: PyTorch may see one that it has no kernels for."""
    try:
        engine = EagerEngine(job)
        if job.device != "cpu":
            engine.run()
            torch.cuda.synchronize(job.device)
        return engine
    except RuntimeError as error:
        raise EngineError(f"{type(error).__name__}: {error}") from error
