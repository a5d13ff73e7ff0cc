"""The scfeat network: its normalisation and peakiness against plain loops, its variants, names and errors."""

import math
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from samfeat_core import FeatureExtractor
from samfeat_core.errors import EngineError, WeightsError
from samfeat_core.models import MODELS, build_network
from samfeat_core.models.scfeat import CouplingBridgeNorm, DetectionHead, Maps, Scfeat, peakiness
from samfeat_core.weights import load_into, load_network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("scfeat", encoder="resnet18").eval()


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def test_coupling_bridge_norm_by_loops():
    torch.manual_seed(1)
    norm = CouplingBridgeNorm().double()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    answer = norm(x)
    share = 0.7 / (0.7 + 0.3)
    for b in range(2):
        means = x[b].mean(0)
        padded = F.pad(means, (3, 3, 3, 3))
        for i in range(9):
            for j in range(8):
                window = padded[i : i + 7, j : j + 7]
                gain = (window * norm.gain.weight[0, 0]).sum() + norm.gain.bias[0]
                bias = (window * norm.bias.weight[0, 0]).sum() + norm.bias.bias[0]
                pixel = x[b, :, i, j]
                spread = ((pixel - means[i, j]).square().sum() / 5 + 1e-5).sqrt()
                for c in range(6):
                    plane = x[b, c]
                    variance = plane.square().mean() - plane.mean() ** 2
                    by_channel = (plane[i, j] - plane.mean()) / (variance + 1e-5).sqrt()
                    by_position = (pixel[c] - means[i, j]) / spread * gain + bias
                    expected = share * by_position + (1 - share) * by_channel
                    assert answer[b, c, i, j].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_mix_stays_convex_for_any_weights():
    norm = CouplingBridgeNorm()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        norm.position_weight.fill_(3.0)
        norm.channel_weight.fill_(1.0)
    torch.testing.assert_close(norm(x), 0.75 * norm.position_wise(x) + 0.25 * norm.channel_wise(x))


def test_peakiness_by_loops():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    assert x.amax((1, 2, 3)).min() > 1
    answer = peakiness(x)
    for b in range(2):
        scaled = x[b] / x[b].max()
        for i in range(5):
            for j in range(6):
                values = []
                for c in range(3):
                    rows = [abs(i + d) if i + d < 5 else 2 * 4 - (i + d) for d in (-1, 0, 1)]  # mirrored at the border
                    columns = [abs(j + d) if j + d < 6 else 2 * 5 - (j + d) for d in (-1, 0, 1)]
                    local = sum(scaled[c, r, s].item() for r in rows for s in columns) / 9
                    across = scaled[:, i, j].mean().item()
                    value = scaled[c, i, j].item()
                    values.append(softplus(value - local) * softplus(value - across))
                assert answer[b, 0, i, j].item() == pytest.approx(max(values), abs=1e-9)


def test_peakiness_peaks_where_the_image_does_even_in_the_dark():
    image = torch.full((1, 3, 9, 9), -2.0)
    image[..., 4, 4] = -1.0
    answer = peakiness(image)
    assert answer.flatten().argmax() == 4 * 9 + 4 and torch.isfinite(answer).all()
    assert torch.isfinite(peakiness(torch.zeros(1, 3, 4, 4))).all()


@pytest.mark.parametrize("brightest", [-0.5, 0.0, 1e-4, 1e-3, 0.02, 0.5])
def test_a_dim_image_has_no_larger_peaks_than_a_bright_one(brightest):
    """As an image darkens past the mean of ImageNet, its greatest value passes 0: nothing happens there."""
    torch.manual_seed(1)
    image = torch.rand(1, 3, 12, 12)
    image = image - image.max() + brightest
    assert peakiness(image).max() < 2
    assert (peakiness(image) - peakiness(image + 1e-3)).abs().max() < 2e-3
    torch.testing.assert_close(peakiness(image), peakiness(image - 0.3))  # only differences count


@pytest.mark.parametrize("gated", [True, False])
def test_the_head_by_its_formula(gated):
    torch.manual_seed(2)
    head = DetectionHead(gated).double()
    fused, stem = torch.randn(1, 128, 6, 8, dtype=torch.float64), torch.randn(1, 64, 6, 8, dtype=torch.float64)
    maps = Maps(fused, fused, stem)
    image = torch.randn(1, 3, 24, 32, dtype=torch.float64)

    def layer(x, conv):
        x = F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x

    def prelu(x):
        return torch.where(x > 0, x, 0.25 * x)

    features = torch.cat([maps.descriptors, maps.stem], 1)
    gate, gate_image = (peakiness(features), peakiness(image)) if gated else (1, 1)
    up = {"size": (24, 32), "mode": "bilinear", "align_corners": False}
    x = F.interpolate(prelu(layer(gate * features, head.mix)), **up)
    y = prelu(layer(gate_image * image, head.image))
    z = prelu(layer(torch.cat([x, y], 1), head.join))
    expected = torch.log1p(torch.exp(layer(z, head.score)))
    if gated:
        expected = expected * F.interpolate(gate, **up) * gate_image
    torch.testing.assert_close(head(maps, image), expected)
    assert expected.min() >= 0


def test_outputs_and_spec(network):
    dense = network(torch.rand(2, 3, 48, 80))
    assert dense.score.shape == (2, 1, 48, 80) and dense.descriptors.shape == (2, 128, 12, 20)
    assert dense.weight is None and (dense.score >= 0).all()
    network.with_detection = False
    assert not network(torch.rand(1, 3, 32, 32)).score.any()
    network.with_detection = True


def test_black_and_white_images_stay_finite(network):
    for level in (0.0, 1.0):
        dense = network(torch.full((1, 3, 32, 48), level))
        assert torch.isfinite(dense.score).all() and torch.isfinite(dense.descriptors).all()


def test_detection_sends_no_gradient_into_the_backbone():
    network = build_network("scfeat", encoder="resnet18")
    network(torch.rand(1, 3, 32, 48)).score.sum().backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    assert all(p.grad is not None for p in network.head.parameters())
    network(torch.rand(1, 3, 32, 48)).descriptors.square().sum().backward()
    assert all(p.grad is not None for p in network.backbone.parameters())


VARIANTS = [
    {"encoder": "resnet18"},
    {"encoder": "resnet34", "fusion": False},
    {"encoder": "resnet18", "normalize": False},
    {"encoder": "resnet18", "fusion": False, "normalize": False, "peakiness": False},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_a_weights_file_tells_its_variant(options, tmp_path):
    network = build_network("scfeat", **options).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_network("scfeat", tmp_path / "w.safetensors").eval()
    image = torch.rand(1, 3, 32, 32)
    for a, b in zip(network(image)[:2], loaded(image)[:2], strict=True):
        assert torch.equal(a, b)


def test_the_authors_two_files_load_through_the_table(network, tmp_path):
    back = {ours: theirs for theirs, ours in Scfeat.renames.items()}

    def theirs(name):
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            if ".".join(parts[:count]) in back:
                return ".".join([back[".".join(parts[:count])], *parts[count:]])
        return name

    files = {"backbone": {}, "localheader": {}}
    for name, tensor in network.state_dict().items():
        if name != "head.with_peakiness":
            part, rest = theirs(name).split(".", 1)
            files[part][rest] = tensor
    assert "firstconv.weight" in files["backbone"] and "upconv3.conv.conv.weight" in files["backbone"]
    assert {"fuse_weight_fusion_1", "fusion_pn.conv2.bias", "side3.conv.gn.weight"} <= set(files["backbone"])
    assert set(files["localheader"]) == {f"{n}.{p}" for n in ("conv1", "conv2", "conv3", "convimg")
                                         for p in ("weight", "bias")} | {"relu.weight"}  # fmt: skip
    for part, state in files.items():
        torch.save(state, tmp_path / f"{part}.pth")
    loaded = load_network("scfeat", tmp_path).eval()
    image = torch.rand(1, 3, 32, 48)
    assert torch.equal(network(image).score, loaded(image).score)
    # the authors extract from the map before its normalisation, and so it is with their files
    maps = network.backbone((image - network.mean) / network.std)
    assert torch.equal(loaded(image).descriptors, maps.fused) and torch.equal(
        network.backbone.norm(maps.fused), maps[0]
    )
    loaded.raw = False  # type: ignore[assignment]
    assert torch.equal(loaded(image).descriptors, network(image).descriptors)
    assert MODELS["scfeat"].detection(tmp_path) == (1, 0.731, 1, True)


def test_weights_of_another_encoder_are_refused(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="not weights of Scfeat"):
        load_into(build_network("scfeat", encoder="resnet34"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="not weights of Scfeat"):
        torch.save({"conv1a.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "samfeat.pth")
        load_network("scfeat", tmp_path / "samfeat.pth")


def test_imagenet_weights_come_from_a_local_file(tmp_path):
    from torchvision import models

    resnet = models.resnet18(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    network = build_network("scfeat", encoder="resnet18", imagenet=tmp_path / "resnet18.pth")
    assert torch.equal(network.backbone.stem[0].weight, resnet.conv1.weight)
    assert torch.equal(network.backbone.level16[1].conv2.weight, resnet.layer3[1].conv2.weight)
    for encoder in ("resnet34", "resnet50"):
        with pytest.raises(WeightsError, match=f"resnet18.pth: not ImageNet weights of {encoder}"):
            build_network("scfeat", encoder=encoder, imagenet=tmp_path / "resnet18.pth")


def test_without_torchvision_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(EngineError, match="scfeat needs torchvision"):
        build_network("scfeat")


def test_unknown_encoder():
    with pytest.raises(ValueError, match="unknown encoder 'vgg'.*resnet18"):
        build_network("scfeat", encoder="vgg")


def test_it_compiles_without_a_graph_break(network):
    compiled = torch.compile(network.eval(), backend="eager", fullgraph=True)
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        for a, b in zip(compiled(image)[:2], network(image)[:2], strict=True):
            torch.testing.assert_close(a, b)


def test_the_extractor_runs_a_trained_variant_on_either_cpu_engine(network, tmp_path):
    pytest.importorskip("openvino")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    noise = np.random.default_rng(0).integers(0, 255, (13, 18, 3), np.uint8)
    image = cv2.resize(noise, (90, 61), interpolation=cv2.INTER_CUBIC)  # no multiple of anything
    found = {}
    for engine in ("eager", "openvino"):
        extractor = FeatureExtractor.from_pretrained(
            "scfeat", "cpu", engine, max_keypoints=64, weights=tmp_path / "w.safetensors", cache_dir=tmp_path
        )
        assert extractor.engine_name == engine
        found[engine] = extractor(image)
        assert len(extractor(image[..., 0])) > 5  # grey
    eager, other = found["eager"], found["openvino"]
    assert len(eager) > 5 and eager.descriptors.shape[1] == 128
    gaps = np.linalg.norm(eager.keypoints[:, None] - other.keypoints[None], axis=2)
    near = gaps.min(1) < 0.1
    assert near.mean() > 0.98
    cosine = np.einsum("nd,nd->n", eager.descriptors, other.descriptors[gaps.argmin(1)])
    assert cosine[near].min() > 0.999
