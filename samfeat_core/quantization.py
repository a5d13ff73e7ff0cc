"""Convolutions in eight bits, for CPUs that multiply bytes several at a time (VNNI).

The input of a convolution is rounded to 256 steps of a range, its weights to 255 steps of each output channel's own
(Jacob et al., arXiv 1712.05877, section 2.1). Here that is only imitated, in floats; OpenVINO recognises the rounding
and computes in bytes. `python -m training.calibrate` measures the ranges on photographs and writes them beside the
weights, `NAME.int8.json`:

    format   "samfeat activation ranges", version 1
    weights  fingerprint of the weights file that they were measured with
    ranges   convolution -> [low, high] of its input; a convolution that is not named stays in full precision
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from samfeat_core.engines import fingerprint
from samfeat_core.errors import WeightsError

FORMAT = "samfeat activation ranges"
VERSION = 1
STEPS = 255  # between the ends of a range
WEIGHT_STEPS = 127  # either way from 0
TINY = 1e-8  # avoids division by zero for channels whose weights are all zero

Ranges = Mapping[str, tuple[float, float]]


class QuantizedConv(nn.Module):
    """A convolution of rounded inputs with rounded weights; its output is not rounded.

    Args:
        low, high: range of the inputs; widened to hold 0, which is met exactly.
    """

    weight_step: Tensor
    weight_zero: Tensor

    def __init__(self, conv: nn.Conv2d, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        self.conv = conv
        self.step = max(high - low, TINY) / STEPS
        self.zero = round(-low / self.step)
        largest = conv.weight.detach().abs().amax((1, 2, 3)).clamp(min=TINY)
        self.register_buffer("weight_step", largest / WEIGHT_STEPS)
        self.register_buffer("weight_zero", torch.zeros(conv.out_channels, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, STEPS)
        # Rounded here and not once for all: what OpenVINO is to recognise must be in the graph.
        weight = torch.fake_quantize_per_channel_affine(
            conv.weight, self.weight_step, self.weight_zero, 0, -WEIGHT_STEPS, WEIGHT_STEPS
        )
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """In place: batch norms that follow a convolution in a `Sequential` become part of it. Evaluation mode only."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                conv, norm = module[i], module[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """All convolutions of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def quantize(network: nn.Module, ranges: Ranges) -> nn.Module:
    """In place: the named convolutions in eight bits, batch norms folded first.

    Raises:
        ValueError: a range for a convolution that the network does not have.
    """
    fold_batch_norms(network)
    known = convolutions(network)
    if unknown := [name for name in ranges if name not in known]:
        raise ValueError(f"a range for {unknown[0]}, which is no convolution of {type(network).__name__}")
    for name, (low, high) in ranges.items():
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, QuantizedConv(known[name], low, high))
    return network


def write_ranges(path: Path, weights: Path, ranges: Ranges) -> None:
    """The file beside the weights, as the module's docstring says."""
    rounded = {name: [float(f"{end:.5g}") for end in span] for name, span in ranges.items()}
    content = {"format": FORMAT, "version": VERSION, "weights": fingerprint(weights), "ranges": rounded}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_ranges(path: Path, weights: Path) -> dict[str, tuple[float, float]]:
    """The ranges that were measured with these weights.

    Raises:
        WeightsError: not such a file, or measured with other weights.
    """
    try:
        content = json.loads(path.read_text())
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        owner = content["weights"]
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not readable as {FORMAT} ({type(error).__name__}: {error})") from error
    if owner != fingerprint(weights):
        raise WeightsError(f"{path}: measured with other weights than {weights}; run python -m training.calibrate")
    return ranges
