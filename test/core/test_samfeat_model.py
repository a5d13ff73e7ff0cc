"""The samfeat network against a second formulation: plain loops and functional calls on its state_dict."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samfeat_core.extractor import FeatureExtractor
from samfeat_core.models import MODELS, build_network

SHAPES = {
    **{f"conv{i}.weight": (o, n, 3, 3) for i, o, n in [
        ("1a", 64, 3), ("1b", 64, 64), ("2a", 64, 64), ("2b", 64, 64),
        ("3a", 128, 64), ("3b", 128, 128), ("4a", 128, 128), ("4b", 128, 128), ("_des", 128, 384),
    ]},
    "dist_conv_feat.weight": (256, 128, 3, 3),
    "dist_conv_fushion.weight": (128, 256, 3, 3),
    **{f"heatmap{i}.weight": (1, n, 3, 3) for i, n in [(1, 64), (2, 64), (3, 128), (4, 128)]},
    **{f"fuse_weight_{i}": (1,) for i in (1, 2, 3, 4)},
    "scalemap.weight": (1, 1, 3, 3),
    "conv_edg.weight": (1, 384, 1, 1),
    "conv_det.weight": (1, 384, 1, 1),
    **{f"egde_module.{part}_conv.weight": (384, 384, 1, 1) for part in ("query", "key", "value")},
}  # fmt: skip
SHAPES |= {name.replace("weight", "bias"): (shape[0],) for name, shape in SHAPES.items() if name.endswith(".weight")}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("samfeat")


def test_tensors_carry_the_authors_names_and_shapes(network):
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == SHAPES
    assert sum(p.numel() for p in network.parameters()) == 2_109_652
    assert [round(getattr(network, f"fuse_weight_{i}").item(), 6) for i in (1, 2, 3, 4)] == [0.1, 0.2, 0.3, 0.4]


def second_formulation(state, image):
    """score map, descriptors, weight, edge map and distillation feature, one image (3, H, W), in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def layer(x, name, padding=1):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def pair(x, level):
        return layer(layer(x, f"conv{level}a").clamp(min=0), f"conv{level}b").clamp(min=0)

    def to(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def halve(x):
        return torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)

    c1 = pair(image.double()[None] * 2 - 1, 1)
    c2 = pair(halve(c1), 2)
    c3 = pair(halve(c2), 3)
    c4 = pair(halve(c3), 4)
    distill = layer(c4, "dist_conv_feat")
    c4 = c4 + layer(distill, "dist_conv_fushion")
    quarter, full = c3.shape[2:], c1.shape[2:]
    stack = torch.cat([to(c1, quarter), to(c2, quarter), c3, to(c4, quarter)], 1)
    edge = 1 / (1 + torch.exp(-layer(stack, "conv_edg", 0)))
    levels = [c1, c2, c3 * (1 + edge), c4]
    score = sum(state[f"fuse_weight_{i}"] * to(layer(c, f"heatmap{i}"), full) for i, c in enumerate(levels, 1))

    query, key, value = (layer(edge * stack, f"egde_module.{part}_conv", 0)[0] for part in ("query", "key", "value"))
    attended = stack[0].clone()
    for channel in range(384):
        for row in range(quarter[0]):
            scores = [float(query[channel, row] @ key[channel, other]) / 100 for other in range(quarter[0])]
            shares = torch.tensor([math.exp(s - max(scores)) for s in scores], dtype=torch.float64)
            attended[channel, row] += (shares / shares.sum()) @ value[channel]
    weight = torch.log1p(torch.exp(layer(attended.mean(0, keepdim=True)[None], "scalemap")))
    return score, layer(attended[None], "conv_des"), weight, edge, distill


def test_forward_equals_the_second_formulation(network):
    image = torch.rand(3, 24, 40)
    score, descriptors, weight, edge, distill = second_formulation(network.state_dict(), image)
    trained = network.train()(image[None])
    resized = F.interpolate(edge, size=(24, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(trained.score, (score + resized).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained.descriptors, descriptors.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained.weight, weight.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained.edge.sigmoid(), edge.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained.distill, distill.float(), rtol=1e-4, atol=1e-4)

    inferred = network.eval()(image[None])
    torch.testing.assert_close(inferred.score, trained.score)
    torch.testing.assert_close(inferred.descriptors, trained.descriptors)
    assert inferred.edge is None and inferred.distill is None


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (56, 24)])
def test_shapes_for_any_multiple_of_the_stride(network, size):
    height, width = size
    dense = network.train()(torch.rand(2, 3, height, width))
    assert dense.score.shape == (2, 1, height, width)
    assert dense.descriptors.shape == (2, MODELS["samfeat"].descriptor_dim, height // 4, width // 4)
    assert dense.weight.shape == dense.edge.shape == (2, 1, height // 4, width // 4)
    assert dense.distill.shape == (2, 256, height // 8, width // 8)
    assert (dense.weight > 0).all()


def test_every_parameter_that_trains_gets_a_gradient(network):
    dense = network.train()(torch.rand(1, 3, 32, 48))
    sum(part.square().mean() for part in dense if part is not None).backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {"conv_det.weight", "conv_det.bias"}
    assert not network.conv_det.weight.requires_grad
    network.zero_grad()


def test_it_traces(network):
    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network.eval()

        def forward(self, image):
            return tuple(part for part in self.network(image) if part is not None)

    image = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        traced = torch.jit.trace(Outputs(), torch.rand(1, 3, 32, 40))
        for a, b in zip(traced(image), Outputs()(image), strict=True):
            torch.testing.assert_close(a, b)


def test_it_compiles_without_a_graph_break(network):
    compiled = torch.compile(network.eval(), backend="eager", fullgraph=True)
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        for a, b in zip(compiled(image)[:2], network(image)[:2], strict=True):
            torch.testing.assert_close(a, b)


def test_a_checkpoint_of_the_authors_is_detected_with_as_they_do(network, tmp_path):
    """Greedy suppression within 9x9, best first, of scores from 0.9 on, at whole pixels, 4 pixels off the border."""
    torch.save(network.state_dict(), tmp_path / "model_29.pth")
    options = dict(device="cpu", engine="eager", max_keypoints=4096, weights=tmp_path / "model_29.pth")
    extractor = FeatureExtractor.from_pretrained("samfeat", cache_dir=tmp_path, log=lambda level, text: None, **options)
    random = np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 256, (30, 40, 3), dtype=np.uint8), (160, 120))
    with torch.inference_mode():
        rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        logits = network.eval()(rgb).score[0, 0].numpy()
    expected, alive = set(), np.ones(logits.shape, bool)
    for index in np.argsort(-logits, axis=None):
        y, x = np.unravel_index(index, alive.shape)
        if alive[y, x] and logits[y, x] >= np.log(9):
            alive[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5] = False
            if 4 <= x < 156 and 4 <= y < 116:
                expected.add((int(x), int(y)))
    found = {(float(x), float(y)) for x, y in extractor(image).keypoints}
    assert len(expected) > 50 and found <= expected and len(found) >= 0.93 * len(expected)

    between = FeatureExtractor.from_pretrained("samfeat", refine=True, log=lambda level, text: None, **options)(image)
    assert (between.keypoints != between.keypoints.round()).mean() > 0.9
    local = FeatureExtractor.from_pretrained("samfeat", nms_passes=1, log=lambda level, text: None, **options)(image)
    assert len(local) < 0.7 * len(found)
