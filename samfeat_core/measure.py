"""What reports of all kinds say: percentiles, and the machine that the figures are from."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np

RANKS = (50, 90, 99)
_PACKAGES = ("samfeat_ros", "torch", "openvino", "onnxruntime")


def percentiles(values: Iterable[float] | np.ndarray, ranks: tuple[int, ...] = RANKS) -> dict[str, float] | None:
    """{"p50": ..., "p90": ..., "p99": ...} of the finite values; None where there are none."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.float64)
    array = array[np.isfinite(array)]
    if not len(array):
        return None
    return {f"p{rank}": float(value) for rank, value in zip(ranks, np.percentile(array, ranks))}


def cpu_name() -> str:
    """The CPU's model as Linux names it, else what Python knows."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Names of the instruction sets of an x86 CPU as Linux has them (avx2, avx512_vnni, ...); empty elsewhere."""
    return set(_cpu_info("flags").split())


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache
def _cpu_info(key: str) -> str:
    """The first value of that name in /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def gpu_name() -> str | None:
    """The GPU's name. None where torch is not loaded: nothing has run on a GPU then."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def machine() -> dict[str, object]:
    """The machine, its load, and the versions of what computes here."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": gpu_name(),
        "cpus": cpu_count(),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **versions,
    }
