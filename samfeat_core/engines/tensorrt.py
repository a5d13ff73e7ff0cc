"""TensorRT by torch-tensorrt: half precision, static shape, built once and kept on disk.

Written from torch-tensorrt's documentation and not yet run: no machine with its libraries was at hand.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch_tensorrt  # type: ignore[import-not-found]
from torch import Tensor

from samfeat_core.engines import TENSORRT_TOP_K, Job, cache
from samfeat_core.engines.eager import example_inputs, extraction_graph
from samfeat_core.engines.staging import PackedGraph, StagedEngine
from samfeat_core.errors import EngineError, SamfeatError

MODULE_FILE = "engine.ep"


class TensorRtEngine(StagedEngine):
    """Runs a TensorRT module; operations that TensorRT lacks stay in PyTorch."""

    name = "tensorrt"

    def __init__(self, module: torch.nn.Module, job: Job) -> None:
        super().__init__(job)
        self.module = module
        self.run()

    @torch.inference_mode()
    def run(self) -> Tensor:
        return self.module(*self.inputs)


def cache_path(job: Job) -> Path:
    """An engine is valid for one GPU type, one pair of library versions, one graph, one shape."""
    versions = (torch.cuda.get_device_name(job.device), torch.__version__, torch_tensorrt.__version__)
    return job.cache_dir / job.key(*versions)


def build(job: Job) -> TensorRtEngine:
    """From the cache, or compiled and put there.

    Raises:
        EngineError: that fails, or it is for more keypoints than TensorRT can find.
    """
    if job.max_keypoints > TENSORRT_TOP_K:
        raise EngineError(f"TensorRT finds at most {TENSORRT_TOP_K} keypoints, not {job.max_keypoints}")
    try:
        with torch.cuda.device(job.device):
            return _build(job)
    except SamfeatError:
        raise
    except Exception as error:  # the compiler leaks many types
        raise EngineError(f"{type(error).__name__}: {error}") from error


def _build(job: Job) -> TensorRtEngine:
    path = cache_path(job)
    kept = cache.load(path, job.log)
    if kept is None:
        inputs = list(example_inputs(job))
        # Precisions are those of the graph: half in the network, single for positions.
        graph = PackedGraph(extraction_graph(job, half=True))
        module = torch_tensorrt.compile(graph, ir="dynamo", inputs=inputs, use_explicit_typing=True)
        kept = cache.store(
            path, lambda folder: torch_tensorrt.save(module, str(folder / MODULE_FILE), inputs=inputs), job.log
        )
        if kept is None:
            return TensorRtEngine(module, job)
    # Always the file, so that every start is the same.
    return TensorRtEngine(torch_tensorrt.load(str(kept / MODULE_FILE)).module(), job)
