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

from samfeat_core.errors import EngineError, UsageError, one_line
from samfeat_core.models import ModelSpec

RawFeatures = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Log = Callable[[str, str], None]

# Engines of each device in order of preference. The module of an engine is samfeat_core.engines.<name>.
BY_DEVICE = {
    "cuda": ("tensorrt", "compile", "eager", "onnxruntime"),
    "cpu": ("openvino", "onnxruntime", "eager", "compile", "openvino_bf16", "openvino_int8"),
}
# The package that each engine runs on.
LIBRARY = {
    "eager": "torch",
    "compile": "torch",
    "tensorrt": "torch_tensorrt",
    "openvino": "openvino",
    "openvino_bf16": "openvino",
    "openvino_int8": "openvino",
    "onnxruntime": "onnxruntime",
}
ENGINES = ("auto", *LIBRARY)
TENSORRT_TOP_K = 3840  # keypoints that a TensorRT engine can find: the K of its TopK layer ends there
DEVICES = ("auto", "cuda", "cpu")
# Not as near to eager as engines promise: `auto` takes one only where its accuracy was measured, see `choice`.
INEXACT = ("openvino_bf16", "openvino_int8")


@dataclass(frozen=True)
class Job:
    """What an engine is built for.

    Attributes:
        weights: weights file.
        height, width: of the network's input, multiples of the model's stride.
        device: cpu, cuda or cuda:N.
        cache_dir: where engines that can be kept are kept; see `samfeat_core.engines.cache`.
        nms_passes, refine: see `samfeat_core.models.Detection`.
        log: called with (level, text): what the engine runs on where that is not plain, and what is odd about it.
    """

    spec: ModelSpec
    weights: Path
    height: int
    width: int
    max_keypoints: int
    nms_radius: int
    device: str
    cache_dir: Path
    log: Log = lambda level, text: None
    nms_passes: int = 1
    refine: bool = True

    def key(self, *versions: str) -> str:
        """Name of the engine in the cache: the same only if graph, weights, shape and versions are."""
        source = Path(__file__).parent.parent
        code = (
            *(source / name for name in ("detection.py", "export.py", "quantization.py")),
            *(source / "models").glob("*.py"),
            *(source / "engines").glob("*.py"),
        )
        detection = self.max_keypoints, self.nms_radius, self.nms_passes, self.refine
        parts = fingerprint(self.weights), fingerprint(*code), detection, versions
        return f"{self.spec.name}-{self.width}x{self.height}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


class Engine(Protocol):
    """Callable: image (C, H, W) uint8 and mask (H, W) uint8 -> keypoints (K, 2), scores (K,), descriptors (K, D)
    and weights (K,), all float32 and owned by the caller; rows of score 0 are not keypoints."""

    name: str

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures: ...


def fingerprint(*paths: Path) -> str:
    """First 16 hex digits of the SHA-256 over the files; of a folder, over the .pth weights in it."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        for file in sorted(path.glob("*.pth")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def ranges_file(weights: Path) -> Path:
    """Where the ranges for engines in eight bits are, of a weights file: see `samfeat_core.quantization`."""
    return weights.with_suffix(".int8.json")


def cuda_devices() -> int:
    """Number of CUDA devices that the driver reports; asks the driver itself, which costs no torch import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except OSError:
        return 0


def check_choice(device: str, engine: str) -> None:
    """UsageError, a ValueError, unless the names exist and the engine runs on that device.

    Args:
        device: auto, cpu, cuda, or one GPU of several: cuda:0, cuda:1, ...
        engine: auto or one of `LIBRARY`.
    """
    kind, _, index = device.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())) or device.endswith(":"):
        raise UsageError(f"device is {device!r}, expected one of {', '.join(DEVICES)}, cuda:N")
    if engine not in ENGINES:
        raise UsageError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if kind != "auto" and engine != "auto" and engine not in BY_DEVICE[kind]:
        raise UsageError(f"engine {engine} does not run on {kind}, expected one of auto, {', '.join(BY_DEVICE[kind])}")


def choose_device(device: str, engine: str = "auto") -> tuple[str, str]:
    """The device to use (cpu, cuda or cuda:N) and why, for a device and an engine as `check_choice` takes them.

    Raises:
        ValueError: see `check_choice`. EngineError: cuda is asked for and cannot be used.
    """
    check_choice(device, engine)
    if device == "cpu":
        return "cpu", "as asked"
    if device == "auto" and engine != "auto" and engine not in BY_DEVICE["cuda"]:
        return "cpu", f"{engine} runs on the CPU"
    problem = cuda_problem(int(device.partition(":")[2] or 0), engine)
    if problem is None:
        return ("cuda", "CUDA device found") if device == "auto" else (device, "as asked")
    if device != "auto":
        raise EngineError(f"device {device} cannot be used: {problem}")
    return "cpu", problem


def cuda_problem(index: int = 0, engine: str = "auto") -> str | None:
    """Why that CUDA device cannot be used, or None."""
    count = cuda_devices()
    if count == 0:
        return "no CUDA device or driver"
    if index >= count:
        return f"there are {count} CUDA devices"
    if engine == "onnxruntime" or find_spec("torch") is None:  # ONNX Runtime brings its own kernels
        return _onnxruntime_problem()
    import torch

    return None if torch.cuda.is_available() else f"PyTorch {torch.__version__} was built without CUDA or finds none"


def _onnxruntime_problem() -> str | None:
    if find_spec("onnxruntime") is None:
        return "neither PyTorch with CUDA nor onnxruntime is installed"
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return None if has_cuda else f"onnxruntime {onnxruntime.__version__} was built without CUDA"


def candidates(engine: str, device: str) -> tuple[list[str], list[str]]:
    """Engines to try in order on cpu, cuda or cuda:N, and why better ones are not among them.

    Raises:
        ValueError: see `check_choice`. EngineError: `auto`, and nothing is installed.
    """
    check_choice(device, engine)
    exact = [name for name in BY_DEVICE[device.partition(":")[0]] if name not in INEXACT]
    if engine != "auto":
        return [engine, *(name for name in exact if name != engine)], []
    there = [name for name in exact if find_spec(LIBRARY[name]) is not None]
    better = exact[: exact.index(there[0])] if there else exact
    notes = [f"{name}: {LIBRARY[name]} is not installed" for name in better]
    if not there:
        raise EngineError(f"nothing runs a network on {device}: {'; '.join(notes)}")
    return there, notes


def build_engine(names: list[str], job: Job, log: Log) -> Engine:
    """The first of the named engines that can be built; every failure is logged as an error.

    Raises:
        EngineError: none could be built. WeightsError: the weights are not the model's.
    """
    for name in names:
        try:
            engine = engine_module(name).build(job)
            warm_up(engine, job)
            return engine
        except EngineError as error:
            reason = one_line(error, 300)
            log("error", f"engine {name} for {job.width}x{job.height} could not be built, trying the next: {reason}")
    raise EngineError(f"no engine could be built on {job.device}: tried {', '.join(names)}")


def warm_up(engine: Engine, job: Job) -> None:
    """Run once, so that the first image takes no longer than the others: memory is laid out at the first run.

    Raises:
        EngineError: it does not run.
    """
    image = np.zeros((job.spec.channels, job.height, job.width), np.uint8)
    try:
        engine(image, np.ones(image.shape[1:], np.uint8))
    except Exception as error:  # the runtimes leak many types
        raise EngineError(f"{engine.name} does not run ({type(error).__name__}: {error})") from error


def kept_at(name: str, job: Job) -> Path | None:
    """Where the cache has the job's engine, or will have it; None for an engine that cannot be kept, or not built here.

    It is there when that is a folder.
    """
    try:
        path_of = getattr(engine_module(name), "cache_path", None)
        return path_of(job) if path_of else None
    except Exception:  # the library is missing, or a file of the engine's own: `build` says which
        return None


def engine_module(name: str) -> ModuleType:
    """The module of an engine, whose `build(job)` makes one.

    Raises:
        EngineError: the library it runs on is not installed, or cannot be loaded.
    """
    library = LIBRARY[name]
    if find_spec(library) is None:
        raise EngineError(f"{library} is not installed")
    try:
        return import_module(f"samfeat_core.engines.{name}")
    except Exception as error:  # a shared object that is missing or of another version: OSError, ImportError, ..
        raise EngineError(f"{library} cannot be loaded ({type(error).__name__}: {error})") from error
