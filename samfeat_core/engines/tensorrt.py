"""TensorRT by torch-tensorrt: half precision, static shape, built once and kept on disk.

Written from torch-tensorrt's documentation and not yet run: no machine with its libraries was at hand.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch_tensorrt  # type: ignore[import-not-found]

from samfeat_core.engines import Job, RawFeatures
from samfeat_core.engines.eager import example_inputs, extraction_graph
from samfeat_core.errors import EngineError, SamfeatError


class TensorRtEngine:
    """Runs a TensorRT module; operations that TensorRT lacks stay in PyTorch."""

    name = "tensorrt"

    def __init__(self, module: torch.nn.Module, job: Job) -> None:
        self.module = module
        self.inputs = example_inputs(job)
        self.run()

    @torch.inference_mode()
    def run(self) -> tuple[torch.Tensor, ...]:
        """Run on `inputs`, the tensors that stay on the device."""
        return self.module(*self.inputs)

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures:
        self.inputs[0].copy_(torch.from_numpy(image[None]))
        self.inputs[1].copy_(torch.from_numpy(mask[None, None]))
        keypoints, scores, descriptors, weights = (out.float().cpu().numpy() for out in self.run())
        return keypoints, scores, descriptors, weights


def cache_path(job: Job) -> Path:
    """An engine is valid for one GPU type, one pair of library versions, one graph, one shape."""
    versions = (torch.cuda.get_device_name(job.device), torch.__version__, torch_tensorrt.__version__)
    return job.cache_dir / f"{job.key(*versions)}.ep"


def keep(module: torch.nn.Module, inputs: list[torch.Tensor], path: Path) -> None:
    """Write to the cache, whole or not at all; a cache that cannot be written costs only time."""
    partial = path.with_suffix(".partial.ep")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch_tensorrt.save(module, str(partial), inputs=inputs)
        partial.replace(path)
    except Exception as error:  # a full disk, or what the exporter cannot write
        logging.getLogger(__name__).warning(f"{path} could not be written, so it will be built again: {error}")


def build(job: Job) -> TensorRtEngine:
    """From the cache, or compiled and put there; EngineError when that fails."""
    try:
        with torch.cuda.device(job.device):
            return _build(job)
    except SamfeatError:
        raise
    except Exception as error:  # the compiler leaks many types
        raise EngineError(f"{type(error).__name__}: {error}") from error


def _build(job: Job) -> TensorRtEngine:
    path = cache_path(job)
    if path.is_file():
        try:
            return TensorRtEngine(torch_tensorrt.load(str(path)).module(), job)
        except Exception:  # damaged or of another build: compile anew
            path.unlink(missing_ok=True)
    inputs = list(example_inputs(job))
    # Precisions are those of the graph: half in the network, single for positions.
    graph = extraction_graph(job, half=True)
    module = torch_tensorrt.compile(graph, ir="dynamo", inputs=inputs, use_explicit_typing=True)
    engine = TensorRtEngine(module, job)
    keep(module, inputs, path)
    return engine
