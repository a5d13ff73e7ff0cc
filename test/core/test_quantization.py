"""Convolutions in eight bits: the arithmetic, the file of ranges, and the tool that measures them."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from samfeat_core.engines import ranges_file
from samfeat_core.errors import WeightsError
from samfeat_core.extractor import SHIPPED_WEIGHTS
from samfeat_core.models import build_network
from samfeat_core.quantization import (
    QuantizedConv,
    convolutions,
    fold_batch_norms,
    halve,
    quantize,
    read_ranges,
    write_ranges,
)
from training import calibrate


@pytest.fixture
def network():
    """A samfeat-nano whose batch norms have seen something."""
    torch.manual_seed(0)
    network = build_network("samfeat-nano").train()
    with torch.no_grad():
        network(torch.rand(2, 1, 64, 96))
    return network.eval().requires_grad_(False)


def maps(network, image):
    with torch.inference_mode():
        dense = network(image)
    return dense.score, dense.descriptors


@pytest.mark.parametrize(("low", "high"), [(-1.5, 2.0), (0.0, 3.0), (0.5, 3.0)])
def test_a_quantized_convolution_is_the_convolution_of_whole_numbers(low, high):
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).requires_grad_(False)
    x = torch.empty(1, 3, 9, 10).uniform_(low - 0.2, high + 0.2)

    step = (high - min(low, 0)) / 255
    zero = round(-min(low, 0) / step)
    whole = (np.rint(x.double().numpy() / step) + zero).clip(0, 255) - zero
    weight = conv.weight.double().numpy()
    weight_step = np.abs(weight).max((1, 2, 3)) / 127
    whole_weight = np.rint(weight / weight_step[:, None, None, None]).clip(-127, 127)
    sums = torch.conv2d(torch.from_numpy(whole), torch.from_numpy(whole_weight), None, 2, 1)
    assert torch.equal(sums, sums.round())
    wanted = sums * step * torch.from_numpy(weight_step)[:, None, None] + conv.bias.double()[:, None, None]

    torch.testing.assert_close(QuantizedConv(conv, low, high)(x).double(), wanted, atol=1e-5, rtol=0)


def test_symmetric_bytes_have_their_zero_in_the_middle():
    conv = nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)
    nn.init.ones_(conv.weight)
    x = torch.tensor([-3.0, -0.49, 0.0, 0.51, 1.0, 9.0]).view(1, 1, 1, 6)
    found = QuantizedConv(conv, -1.27, 0.4, symmetric=True)(x * 0.01).flatten()  # a step is 0.01
    torch.testing.assert_close(found, torch.tensor([-0.03, 0.0, 0.0, 0.01, 0.01, 0.09]))
    found = QuantizedConv(conv, -1.27, 0.4, symmetric=True)(x).flatten()
    torch.testing.assert_close(found, torch.tensor([-1.28, -0.49, 0.0, 0.51, 1.0, 1.27]))


@pytest.mark.parametrize("name", ["samfeat-nano", "samfeat", "scfeat"])
def test_halving_is_nearly_the_network_and_leaves_it_as_it_is(name):
    torch.manual_seed(0)
    network = build_network(name, **({"encoder": "resnet18"} if name == "scfeat" else {})).eval().requires_grad_(False)
    image = torch.rand(1, network.spec.channels, 64, 96)
    before = maps(network, image)
    half = halve(network)
    assert {conv.weight.dtype for conv in convolutions(half).values()} == {torch.float16}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in half.modules())
    for wanted, found in zip(before, maps(half, image)):
        error = (found.float() - wanted).abs().max() / wanted.std()
        assert 0 < error < 0.05
    assert all(torch.equal(wanted, found) for wanted, found in zip(before, maps(network, image)))


def test_folding_batch_norms_changes_nothing_but_their_place(network):
    image = torch.rand(1, 1, 64, 96)
    before = maps(network, image)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    fold_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for folded, wanted in zip(maps(network, image), before):
        torch.testing.assert_close(folded, wanted, atol=1e-4, rtol=1e-4)


def test_only_the_named_convolutions_are_quantized(network):
    image = torch.rand(1, 1, 64, 96)
    before = maps(network, image)
    quantize(network, {"score.5": (0.0, 1.0)})
    assert [name for name, module in network.named_modules() if isinstance(module, QuantizedConv)] == ["score.5"]
    score, descriptors = maps(network, image)
    torch.testing.assert_close(descriptors, before[1], atol=1e-4, rtol=1e-4)
    assert 0 < (score - before[0]).abs().max() < 0.5 * before[0].std()


def test_a_range_for_what_is_no_convolution_is_refused(network):
    with pytest.raises(ValueError, match="a range for describe, which is no convolution of SamfeatNano"):
        quantize(network, {"describe": (0.0, 1.0)})


def test_measured_ranges_are_the_mean_of_each_images_extremes():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1)).requires_grad_(False)
    nn.init.constant_(network[0].weight, -2.0)
    images = [torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 3.0]).view(1, 1, 1, 2)]
    assert calibrate.measure(network, images) == {"0": (0.25, 2.0), "1": (-4.0, -0.5)}


def test_ranges_come_back_from_their_file(tmp_path):
    weights = tmp_path / "x.safetensors"
    weights.write_bytes(b"weights")
    ranges = {"a.0": (-1.25, 3.0), "b": (0.0, 0.1)}
    write_ranges(ranges_file(weights), weights, ranges)
    assert ranges_file(weights).name == "x.int8.json"
    assert read_ranges(ranges_file(weights), weights) == ranges


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: {**content, "weights": "0"}, "measured with other weights than .*x.safetensors"),
        (lambda content: {**content, "version": 2}, "version 2"),
        (lambda content: {**content, "ranges": {"a": [1]}}, "ValueError"),
        (lambda content: {"format": content["format"]}, "KeyError: 'version'"),
        (lambda content: [1], "TypeError"),
    ],
)
def test_a_file_that_is_not_the_ranges_of_these_weights_is_refused(tmp_path, change, text):
    weights = tmp_path / "x.safetensors"
    weights.write_bytes(b"weights")
    path = ranges_file(weights)
    write_ranges(path, weights, {"a": (0.0, 1.0)})
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(WeightsError, match=f"x.int8.json: .*{text}"):
        read_ranges(path, weights)


def test_the_shipped_ranges_are_of_the_shipped_weights():
    weights = SHIPPED_WEIGHTS / "samfeat-nano.safetensors"
    ranges = read_ranges(ranges_file(weights), weights)
    assert set(ranges) == set(convolutions(build_network("samfeat-nano"))) - {"distill"}


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (70, 90, 3), np.uint8))
    (folder / "3.png").write_bytes(b"no picture")
    return folder


def test_calibrate_writes_the_ranges_beside_the_weights(network, photographs, tmp_path):
    weights = tmp_path / "nano.safetensors"
    save_file(network.state_dict(), weights)
    done = CliRunner().invoke(calibrate.app, [str(photographs), "--weights", str(weights), "--long-side", "64"])
    assert done.exit_code == 0, done.output
    assert "3.png" in done.output and "22 of 23 convolutions in eight bits" in done.output
    ranges = read_ranges(ranges_file(weights), weights)
    assert set(ranges) == set(convolutions(network)) - {"distill"}  # that one runs in training only
    low, high = ranges["stage2.0.0"]
    assert -4 < low < -1 and 1 < high < 4  # contrast is normalised
    assert ranges["stage2.1.0"][0] == 0  # behind a ReLU


def test_calibrate_says_what_it_cannot_use(photographs, tmp_path):
    def said(*arguments, code=1):
        done = CliRunner().invoke(calibrate.app, [str(argument) for argument in arguments])
        assert done.exit_code == code
        assert "Traceback" not in done.output
        return done.output

    assert "none.safetensors: no such weights file" in said(photographs, "--weights", tmp_path / "none.safetensors")
    assert "unknown model 'sift'" in said(photographs, "--model", "sift", code=2)
    assert "no such folder" in said(tmp_path / "nowhere")
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    shutil.copy(photographs / "3.png", only_bad)
    assert "none of 1 photographs can be read" in said(only_bad)
