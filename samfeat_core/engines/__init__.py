"""Engines: what runs an extraction graph on a device. One small interface, chosen by name or by `auto`.

An engine is built for one image shape. Building may take seconds (compiling), running must not.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from samfeat_core.errors import EngineError
from samfeat_core.models import ModelSpec

RawFeatures = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Log = Callable[[str, str], None]

# In order of preference on each device. Module of each engine: samfeat_core.engines.<name>.
BY_DEVICE = {
    "cuda": ("tensorrt", "compile", "eager"),
    "cpu": ("openvino", "eager", "compile", "openvino_bf16", "openvino_int8"),
}
NEEDS = {
    "eager": "torch",
    "compile": "torch",
    "tensorrt": "torch_tensorrt",
    "openvino": "openvino",
    "openvino_bf16": "openvino",
    "openvino_int8": "openvino",
}
CPU_ONLY = set(BY_DEVICE["cpu"]) - set(BY_DEVICE["cuda"])
# Not as near to eager as engines promise: only where asked for.
INEXACT = ("openvino_bf16", "openvino_int8")


@dataclass(frozen=True)
class Job:
    """What an engine is built for.

    Attributes:
        weights: weights file.
        height, width: of the network's input, multiples of the model's stride.
        device: cuda or cpu.
        cache_dir: where engines that can be kept are kept.
    """

    spec: ModelSpec
    weights: Path
    height: int
    width: int
    max_keypoints: int
    nms_radius: int
    device: str
    cache_dir: Path

    def key(self, *versions: str) -> str:
        """Name of the engine in the cache: the same only if graph, weights, shape and versions are."""
        source = Path(__file__).parent.parent
        code = (
            source / "detection.py",
            source / "quantization.py",
            *(source / "models").glob("*.py"),
            *(source / "engines").glob("*.py"),
        )
        parts = fingerprint(self.weights), fingerprint(*code), self.max_keypoints, self.nms_radius, versions
        return f"{self.spec.name}-{self.width}x{self.height}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


class Engine(Protocol):
    """Callable: image (C, H, W) uint8 and mask (H, W) uint8 -> keypoints (K, 2), scores (K,), descriptors (K, D)
    and weights (K,), all float32 and owned by the caller; rows of score 0 are not keypoints."""

    name: str

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures: ...


def fingerprint(*paths: Path) -> str:
    """What tells files of one name apart by their content; of a folder, the .pth weights in it."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        for file in sorted(path.glob("*.pth")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def cuda_devices() -> int:
    """Number of CUDA devices that the driver reports; asks the driver itself, which costs no torch import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except OSError:
        return 0


def choose_device(device: str, engine: str = "auto") -> tuple[str, str]:
    """(cuda or cpu, why) for auto, cuda or cpu, and for an engine that may run on one of them only.

    Raises:
        ValueError: another name. EngineError: cuda is asked for and cannot be used.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device is {device!r}, expected auto, cuda or cpu")
    if device == "cpu":
        return "cpu", "as asked"
    if device == "auto" and engine in CPU_ONLY:
        return "cpu", f"{engine} runs on the CPU"
    problem = cuda_problem()
    if problem is None:
        return "cuda", "as asked" if device == "cuda" else "CUDA device found"
    if device == "cuda":
        raise EngineError(f"device cuda cannot be used: {problem}")
    return "cpu", problem


def cuda_problem() -> str | None:
    """Why CUDA cannot be used, or None."""
    if cuda_devices() == 0:
        return "no CUDA device or driver"
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch.cuda.is_available() else f"PyTorch {torch.__version__} was built without CUDA or finds none"


def candidates(engine: str, device: str) -> tuple[list[str], list[str]]:
    """Engines to try in order, and why better ones are not among them.

    Raises:
        ValueError: no such engine, or not on that device. EngineError: `auto`, and nothing is installed.
    """
    known = BY_DEVICE[device]
    exact = [name for name in known if name not in INEXACT]
    if engine != "auto":
        if engine not in NEEDS:
            raise ValueError(f"engine is {engine!r}, expected auto, {', '.join(NEEDS)}")
        if engine not in known:
            raise ValueError(f"engine {engine} does not run on {device}, expected auto, {', '.join(known)}")
        return [engine, *(name for name in exact if name != engine)], []
    missing = [name for name in exact if find_spec(NEEDS[name]) is None]
    notes = [f"{name}: {NEEDS[name]} is not installed" for name in missing]
    if missing == exact:
        raise EngineError(f"nothing runs a network on {device}: {'; '.join(notes)}")
    return [name for name in exact if name not in missing], notes


def build_engine(names: list[str], job: Job, log: Log) -> Engine:
    """The first of the named engines that can be built; every failure is logged as an error.

    Raises:
        EngineError: none could be built. WeightsError: the weights are not the model's.
    """
    for name in names:
        try:
            return engine_module(name).build(job)
        except EngineError as error:
            reason = " ".join(str(error).split())[:300]
            log("error", f"engine {name} for {job.width}x{job.height} could not be built, trying the next: {reason}")
    raise EngineError(f"no engine could be built on {job.device}: tried {', '.join(names)}")


def engine_module(name: str) -> ModuleType:
    """The module of an engine, whose `build(job)` makes one.

    Raises:
        EngineError: the library it runs on is not installed, or cannot be loaded.
    """
    library = NEEDS[name]
    if find_spec(library) is None:
        raise EngineError(f"{library} is not installed")
    try:
        return import_module(f"samfeat_core.engines.{name}")
    except Exception as error:  # a shared object that is missing or of another version: OSError, ImportError, ..
        raise EngineError(f"{library} cannot be loaded ({type(error).__name__}: {error})") from error
