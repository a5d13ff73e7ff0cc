"""Convolutions in eight bits, for CPUs that multiply bytes several at a time (VNNI), and in sixteen, for GPUs.

The input of a convolution is rounded to 256 steps of a range, its weights to 255 steps of each output channel's own
(Jacob et al., arXiv 1712.05877, section 2.1). Here that is only imitated, in floats; OpenVINO recognises the rounding
and computes in bytes. `python -m training.calibrate` measures the ranges on photographs and writes them beside the
weights, `NAME.int8.json`:

    format   "samfeat activation ranges", version 1
    weights  fingerprint of the weights file that they were measured with
    ranges   convolution -> [low, high] of its input; a convolution that is not named stays in full precision
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from samfeat_core.engines import fingerprint, ranges_file
from samfeat_core.errors import WeightsError
from samfeat_core.weights import load_network

FORMAT = "samfeat activation ranges"
VERSION = 1
STEPS = 255  # between the ends of a range
WEIGHT_STEPS = 127  # either way from 0
SIGNED = (-128, 127)  # the bytes of weights, -128 being met by none
TINY = 1e-8  # avoids division by zero for channels whose weights are all zero

Ranges = Mapping[str, tuple[float, float]]


class QuantizedConv(nn.Module):
    """A convolution of rounded inputs with rounded weights; its output is not rounded.

    Args:
        low, high: range of the inputs; widened to hold 0, which is met exactly.
        symmetric: bytes with a sign and 0 in the middle, the only ones that TensorRT takes: 127 steps either way.
    """

    weight_step: Tensor
    weight_zero: Tensor

    def __init__(self, conv: nn.Conv2d, low: float, high: float, symmetric: bool = False) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        self.conv = conv
        if symmetric:
            self.step, self.zero = max(-low, high, TINY) / WEIGHT_STEPS, 0
        else:
            self.step = max(high - low, TINY) / STEPS
            self.zero = round(-low / self.step)
        self.bytes = SIGNED if symmetric else (0, STEPS)
        largest = conv.weight.detach().abs().amax((1, 2, 3)).clamp(min=TINY)
        self.register_buffer("weight_step", largest / WEIGHT_STEPS)
        self.register_buffer("weight_zero", torch.zeros(conv.out_channels, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, *self.bytes)
        # Rounded here and not once for all: what a runtime is to recognise must be in the graph.
        weight = torch.fake_quantize_per_channel_affine(conv.weight, self.weight_step, self.weight_zero, 0, *SIGNED)
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """In place: batch norms become part of the convolution before them. Evaluation mode only.

    Before them is the last child of the same module: so it is in a `Sequential`, and in the blocks of a ResNet.
    """
    for module in network.modules():
        children = list(module.named_children())
        for (name, conv), (norm_name, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """All convolutions of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def halve(network: nn.Module) -> nn.Module:
    """A copy whose convolutions take and give half precision, batch norms folded; the rest takes what it is given.

    The conversions are operations of the graph, so that every compiler sees them; `torch.autocast` is a state.
    """
    network = fold_batch_norms(copy.deepcopy(network))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.PReLU)):
            module.half().register_forward_pre_hook(lambda _, inputs: inputs[0].half())
        elif isinstance(module, nn.GroupNorm):  # sums over many pixels
            module.register_forward_pre_hook(lambda _, inputs: inputs[0].float())
    return network


def quantize(network: nn.Module, ranges: Ranges, symmetric: bool = False) -> nn.Module:
    """In place: the named convolutions in eight bits, batch norms folded first.

    Args:
        symmetric: see `QuantizedConv`.

    Raises:
        ValueError: a range for a convolution that the network does not have.
    """
    fold_batch_norms(network)
    known = convolutions(network)
    if unknown := [name for name in ranges if name not in known]:
        raise ValueError(f"a range for {unknown[0]}, which is no convolution of {type(network).__name__}")
    for name, (low, high) in ranges.items():
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, QuantizedConv(known[name], low, high, symmetric))
    return network


def quantized_network(name: str, weights: Path, symmetric: bool = False) -> nn.Module:
    """The network of that name with a weights file, its convolutions in eight bits by the ranges beside the file.

    Raises:
        WeightsError: the weights are not the network's, or there are no ranges of them.
    """
    ranges = read_ranges(ranges_file(weights), weights)
    try:
        return quantize(load_network(name, weights).eval().requires_grad_(False), ranges, symmetric)
    except ValueError as error:
        raise WeightsError(f"{ranges_file(weights)}: {error}") from error


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
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; python -m training.calibrate makes it")
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
