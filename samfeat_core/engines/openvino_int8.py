"""OpenVINO with convolutions in eight bits: half of the time, and nearly the same features.

Needs the ranges that `python -m training.calibrate` measured (`samfeat_core.quantization`); those of the shipped
weights are there. 90 % of the keypoints of full precision are found to 0.1 px (`benchmarks/cuda_engines.py --device
cpu`); `samfeat_core.engines.choice` knows with which weights it is as accurate nevertheless.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samfeat_core.engines import Job, fingerprint, openvino, ranges_file
from samfeat_core.errors import EngineError, WeightsError

if TYPE_CHECKING:
    from torch import nn


class Int8Engine(openvino.OpenVinoEngine):
    """Runs a graph whose convolutions are quantized."""

    name = "openvino_int8"


def cache_path(job: Job) -> Path:
    """Folder of the job's engine in the cache; the ranges must be there."""
    return openvino.cache_path(job, fingerprint(ranges_file(job.weights)))


def build(job: Job) -> openvino.OpenVinoEngine:
    """As the `openvino` engine, from a graph of its own.

    Raises:
        EngineError: also where there are no ranges for these weights.
    """
    if not ranges_file(job.weights).is_file():  # `cache_path` reads it
        raise EngineError(f"{ranges_file(job.weights)}: no such file; python -m training.calibrate makes it")
    return openvino.build(job, Int8Engine, lambda: quantized(job), cache_path(job))


def quantized(job: Job) -> nn.Module:
    """The job's network with its convolutions in eight bits; EngineError for a file that is not its ranges."""
    from samfeat_core.quantization import quantized_network

    try:
        return quantized_network(job.spec.name, job.weights)
    except WeightsError as error:
        raise EngineError(str(error)) from error
