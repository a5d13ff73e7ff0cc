"""OpenVINO in bfloat16, on CPUs that have it: about two thirds of the time, and nearly the same features.

Eight bits of mantissa make scores equal that are not, so that other points are among the best K: 92 % of the keypoints
of full precision are found to 0.1 px (`benchmarks/cuda_engines.py --device cpu`); `samfeat_core.engines.choice` knows
with which weights it is as accurate nevertheless.
"""

from __future__ import annotations

from samfeat_core.engines import Job, openvino
from samfeat_core.errors import EngineError


class BFloat16Engine(openvino.OpenVinoEngine):
    """Runs the graph of the `openvino` engine, the same file, with half the bits."""

    name = "openvino_bf16"
    properties = {**openvino.PROPERTIES, "INFERENCE_PRECISION_HINT": "bf16"}


cache_path = openvino.cache_path  # the graph is the same


def build(job: Job) -> openvino.OpenVinoEngine:
    """As the `openvino` engine.

    Raises:
        EngineError: also where the CPU would only imitate bfloat16.
    """
    if "BF16" not in openvino.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("this CPU has no bfloat16 instructions (AVX512-BF16, AMX or Arm's BF16)")
    return openvino.build(job, BFloat16Engine)
