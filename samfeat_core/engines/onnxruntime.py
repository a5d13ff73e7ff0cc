"""ONNX Runtime: the exported graph on whatever it was built for, TensorRT, CUDA, CoreML or plain CPUs.

The graph is in full precision and the same on every machine. It is kept on disk: a robot that has it, built or copied
from another machine with the same version of this project, needs ONNX Runtime alone, and no torch. Only the CPU has
been tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from samfeat_core.engines import TENSORRT_TOP_K, Job, RawFeatures, cache
from samfeat_core.errors import EngineError, SamfeatError

MODEL_FILE = "engine.onnx"
TENSORRT, CUDA, COREML, CPU = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CoreML", "CPU"))
# What runs the graph on each kind of device, the fastest first; what one lacks, the next does.
PROVIDERS = {"cuda": (TENSORRT, CUDA, CPU), "cpu": (COREML, CPU)}


class OnnxRuntimeEngine:
    """Runs the graph in a session."""

    name = "onnxruntime"

    def __init__(self, model: Path | bytes, job: Job) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; the warnings are about where each operator was placed
        kind = job.device.partition(":")[0]
        providers = providers_for(job, ort.get_available_providers())
        self.session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=list(providers.items())
        )
        used = self.session.get_providers()[0]
        if kind == "cuda" and used == CPU:  # so it ends, with no exception, where a library of CUDA's is missing
            raise EngineError(
                f"no provider of onnxruntime {ort.__version__} works on CUDA, tried {', '.join(providers)}"
            )
        job.log("info", f"onnxruntime {ort.__version__} runs {job.spec.name} {job.width}x{job.height} on {used}")

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures:
        keypoints, scores, descriptors, *weights = self.session.run(
            None, {"image": image[None], "mask": mask[None, None]}
        )
        return keypoints, scores, descriptors, weights[0] if weights else np.ones_like(scores)


def providers_for(job: Job, available: list[str]) -> dict[str, Mapping[str, object]]:
    """The providers to use for a job, in order, with their options."""
    kind, _, index = job.device.partition(":")
    device = {"device_id": int(index or 0)} if kind == "cuda" else {}
    tensorrt = {
        **device,
        "trt_engine_cache_enable": True,
        # beside the graph's folder, whose checksums hold for what was written at once
        "trt_engine_cache_path": str(cache_path(job).with_suffix(".tensorrt")),
    }
    options: dict[str, Mapping[str, object]] = {TENSORRT: tensorrt, CUDA: device, COREML: {}, CPU: {}}
    too_many = job.max_keypoints > TENSORRT_TOP_K
    if too_many and TENSORRT in available:
        job.log("warning", f"TensorRT finds at most {TENSORRT_TOP_K} keypoints, not {job.max_keypoints}: left out")
    return {
        name: options[name] for name in PROVIDERS[kind] if name in available and not (name == TENSORRT and too_many)
    }


def cache_path(job: Job) -> Path:
    """Folder of the job's graph in the cache; the same for every version of ONNX Runtime."""
    return job.cache_dir / job.key("onnx")


def build(job: Job) -> OnnxRuntimeEngine:
    """From the cache, or exported and put there.

    Raises:
        EngineError: the export failed, no graph is there and torch or onnx is missing, or no provider takes it.
    """
    path = cache_path(job)
    try:
        kept = cache.load(path, job.log)
        if kept is not None:
            return OnnxRuntimeEngine(kept / MODEL_FILE, job)
        model = exported(job)
        kept = cache.store(path, lambda folder: (folder / MODEL_FILE).write_bytes(model), job.log)
        return OnnxRuntimeEngine(kept / MODEL_FILE if kept else model, job)
    except SamfeatError:
        raise
    except Exception as error:  # the runtime and the exporter leak many types
        raise EngineError(f"{type(error).__name__}: {error}") from error


def exported(job: Job) -> bytes:
    """The job's graph, its mask an input; traced on the CPU, wherever it will run."""
    from samfeat_core.export import named_graph, to_onnx

    job = replace(job, device="cpu")
    return to_onnx(named_graph(job), job).SerializeToString()
