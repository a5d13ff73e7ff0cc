"""How fast this CPU is at what the engines of OpenVINO spend their time on: a small stack of convolutions.

A network of its own, so that the answer is there in half a second, before any engine is built and without torch.
"""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from samfeat_core.engines.openvino import OpenVinoEngine
from samfeat_core.engines.openvino_bf16 import BFloat16Engine
from samfeat_core.engines.openvino_int8 import Int8Engine

ENGINES = {engine.name: engine for engine in (OpenVinoEngine, BFloat16Engine, Int8Engine)}
SIZE = (240, 320)  # rows and columns of the first layer
WIDTHS = (16, 32, 64, 96)  # channels of two convolutions each, at 1/1 .. 1/8 of the size
RANGE = 8.0  # of what the eight-bit convolutions take in


def measure(engines: list[str], budget_s: float) -> dict[str, float]:
    """Least milliseconds of a run by engine, the fastest first. They take turns until the time is spent.

    The least ones, because whatever else the machine does only adds to them.
    """
    requests = {name: _compile(name) for name in engines}
    inputs = [np.random.default_rng(0).random((1, WIDTHS[0], *SIZE), np.float32)]
    for request in requests.values():
        request.infer(inputs)
    times = dict.fromkeys(engines, float("inf"))
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end:
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer(inputs)
            times[name] = min(times[name], (time.perf_counter() - start) * 1e3)
    return dict(sorted(times.items(), key=lambda item: item[1]))


def _compile(engine: str) -> ov.InferRequest:
    model = stack(eight_bits=ENGINES[engine] is Int8Engine)
    return ENGINES[engine](model).request


def stack(eight_bits: bool) -> ov.Model:
    """Two 3x3 convolutions with ReLU for each of `WIDTHS`, with 2x2 mean pooling between."""
    random = np.random.default_rng(0)

    def rounded(x: ov.Node, low: float, high: float, levels: int) -> ov.Node:
        return ops.fake_quantize(x, low, high, low, high, levels) if eight_bits else x

    image = ops.parameter([1, WIDTHS[0], *SIZE], np.float32)
    x, inputs = image, WIDTHS[0]
    for level, width in enumerate(WIDTHS):
        if level:
            x = ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], True)
        for channels in (inputs, width):
            weight = random.normal(0, (2 / 9 / channels) ** 0.5, (width, channels, 3, 3)).astype(np.float32)
            kernel = rounded(ops.constant(weight), -1.0, 1.0, 255)
            x = ops.relu(ops.convolution(rounded(x, 0.0, RANGE, 256), kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
        inputs = width
    return ov.Model([ops.result(x)], [image])
