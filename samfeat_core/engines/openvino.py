"""OpenVINO: the CPU engine. The converted graph is kept on disk, so that later starts need no torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samfeat_core.engines import Job, RawFeatures
from samfeat_core.errors import EngineError, SamfeatError

# OpenVINO's converter reports every use to its makers from threads that fork. A fork while NumPy multiplies matrices
# in another thread can stop both for good, and a robot reports to nobody unasked: let it find no telemetry package.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

# Said outright: bfloat16, OpenVINO's default on CPUs that have it, changes more than the tolerance; see openvino_bf16.
PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoEngine:
    """Runs the compiled graph; one request, reused."""

    name = "openvino"
    properties = PROPERTIES

    def __init__(self, model: ov.Model) -> None:
        self.request = ov.Core().compile_model(model, "CPU", self.properties).create_infer_request()

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures:
        self.request.infer([image[None], mask[None, None]], share_inputs=True)
        keypoints, scores, descriptors, weights = (self.request.get_output_tensor(i).data.copy() for i in range(4))
        return keypoints, scores, descriptors, weights


def build(
    job: Job,
    engine: type[OpenVinoEngine] = OpenVinoEngine,
    network: Callable[[], nn.Module] | None = None,
    *variant: str,
) -> OpenVinoEngine:
    """From the cache, or converted and put there.

    Args:
        network: makes the network to convert; None = the job's own.
        variant: what tells such a network from others of the same weights.

    Raises:
        EngineError: conversion or compilation failed.
    """
    try:
        path = job.cache_dir / f"{job.key(ov.get_version(), *variant)}.xml"
        if path.is_file():
            try:
                return engine(ov.Core().read_model(path))
            except RuntimeError:
                path.unlink(missing_ok=True)  # damaged: convert anew
        model = convert(job, network and network())
        keep(model, path)
        return engine(model)
    except SamfeatError:
        raise
    except Exception as error:  # the runtime and the tracer leak many types
        raise EngineError(f"{type(error).__name__}: {error}") from error


def convert(job: Job, network: nn.Module | None = None) -> ov.Model:
    """Trace the job's graph at its static shape, with its network or another."""
    from samfeat_core.engines.eager import example_inputs, extraction_graph

    inputs = example_inputs(job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that are constants here on purpose
        return ov.convert_model(
            extraction_graph(job, network=network),
            example_input=inputs,
            input=[tuple(tensor.shape) for tensor in inputs],
        )


def keep(model: ov.Model, path: Path) -> None:
    """Write to the cache, whole or not at all; a cache that cannot be written costs only time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.partial.xml")
        ov.save_model(model, partial, compress_to_fp16=False)
        partial.with_suffix(".bin").replace(path.with_suffix(".bin"))
        partial.replace(path)
    except (OSError, RuntimeError):
        with suppress(OSError):  # nor can a file system be changed that is only to be read
            path.unlink(missing_ok=True)
