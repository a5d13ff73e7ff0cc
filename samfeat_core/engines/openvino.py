"""OpenVINO: the CPU engine. The converted graph is kept on disk, so that later starts need no torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samfeat_core.engines import Job, RawFeatures, cache
from samfeat_core.errors import EngineError, SamfeatError

# OpenVINO's converter reports every use to its makers from threads that fork. A fork while NumPy multiplies matrices
# in another thread can stop both for good, and a robot reports to nobody unasked: let it find no telemetry package.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

# Said outright: bfloat16, OpenVINO's default on CPUs that have it, changes more than the tolerance; see openvino_bf16.
MODEL_FILE = "engine.xml"  # and engine.bin, its weights
PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


@lru_cache(1)
def core() -> ov.Core:
    """OpenVINO's one Core in this process, which is never destroyed.

    Its plugin for CPUs gives the thread an alternate signal stack, and puts the former one back when it goes. Two that
    go in the order in which they came leave one that is no longer there: the next signal, as Ctrl-C, is a segmentation
    fault.
    """
    return ov.Core()


class OpenVinoEngine:
    """Runs the compiled graph; one request, reused."""

    name = "openvino"
    properties = PROPERTIES

    def __init__(self, model: ov.Model) -> None:
        self.request = core().compile_model(model, "CPU", self.properties).create_infer_request()

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures:
        self.request.infer([image[None], mask[None, None]], share_inputs=True)
        keypoints, scores, descriptors, weights = (self.request.get_output_tensor(i).data.copy() for i in range(4))
        return keypoints, scores, descriptors, weights


def cache_path(job: Job, *variant: str) -> Path:
    """Folder of the job's engine in the cache.

    variant: what tells its network from others of the same weights.
    """
    return job.cache_dir / job.key(ov.get_version(), *variant)


def build(
    job: Job,
    engine: type[OpenVinoEngine] = OpenVinoEngine,
    network: Callable[[], nn.Module] | None = None,
    path: Path | None = None,
) -> OpenVinoEngine:
    """From the cache, or converted and put there. What is compiled is always the file, so that every start is the same.

    Args:
        network: makes the network to convert; None = the job's own.
        path: see `cache_path`; None = that of the job's own network.

    Raises:
        EngineError: conversion or compilation failed.
    """
    path = path or cache_path(job)
    try:
        kept = cache.load(path, job.log)
        if kept is not None:
            return engine(core().read_model(kept / MODEL_FILE))
        from samfeat_core.engines.eager import example_inputs, extraction_graph

        model = convert(extraction_graph(job, network=network and network()), example_inputs(job))
        kept = cache.store(path, lambda folder: ov.save_model(model, folder / MODEL_FILE, False), job.log)
        return engine(core().read_model(kept / MODEL_FILE) if kept else model)
    except SamfeatError:
        raise
    except Exception as error:  # the runtime and the tracer leak many types
        raise EngineError(f"{type(error).__name__}: {error}") from error


def convert(graph: nn.Module, inputs: tuple[Tensor, ...]) -> ov.Model:
    """Trace a graph at the static shape of its inputs."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that are constants here on purpose
        # Traced here, because the converter would have the trace checked by further runs, for half of the build.
        traced = torch.jit.trace(graph, inputs, check_trace=False)
        return ov.convert_model(traced, example_input=inputs, input=[tuple(tensor.shape) for tensor in inputs])
