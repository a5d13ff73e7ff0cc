"""Adapters of public networks: what they make of the authors' answers. Small checkouts stand for the authors' code."""

import sys

import numpy as np
import pytest
import torch

from samfeat_core.errors import UsageError
from samfeat_core.features import Features
from training.evaluation.extractors import resolve
from training.evaluation.matchers import resolve_matcher

EDGEPOINT2 = """
import torch
class EdgePoint2Wrapper(torch.nn.Module):
    def __init__(self, name, top_k):
        super().__init__()
        self.rows = torch.load("weights/rows.pth")[:top_k]  # as the authors' code, from where it runs
    def forward(self, x):
        colour = x.mean((2, 3))
        rows = self.rows
        return [{"keypoints": rows, "scores": rows[:, 0], "descriptors": colour.repeat(len(rows), 1)}]
"""
ALIKED = """
import sys
assert sys.modules["custom_ops"] is None
class ALIKED:
    def __init__(self, name, device, top_k):
        self.top_k = top_k
    def extract_dense_map(self, x):
        return x, x[:, :1]
    def dkd(self, score):
        import torch
        points = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])[: self.top_k]
        return [points], [torch.full((len(points),), 0.5)], None
    def desc_head(self, features, points):
        return [points[0]], None
"""


LIGHTGLUE = """
import torch
class LightGlue(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        assert features == "aliked"
    def forward(self, data):
        first, second = data["image0"], data["image1"]
        assert first["image_size"].tolist() == [[21.0, 11.0]] and first["keypoints"].shape == (1, 3, 2)
        similarity = first["descriptors"][0] @ second["descriptors"][0].T
        best = similarity.argmax(1)
        return {"matches": [torch.stack((torch.arange(len(best)), best), 1)[1:]]}
"""


@pytest.fixture
def checkouts(tmp_path, monkeypatch):
    edgepoint2, aliked = tmp_path / "edgepoint2", tmp_path / "aliked"
    (edgepoint2 / "weights").mkdir(parents=True)
    (aliked / "nets").mkdir(parents=True)
    (edgepoint2 / "edgepoint2.py").write_text(EDGEPOINT2)
    torch.save(torch.tensor([[7.0, 3.0], [0.0, 0.0], [-5.0, 2.0]]), edgepoint2 / "weights" / "rows.pth")
    (aliked / "nets" / "aliked.py").write_text(ALIKED)
    monkeypatch.setenv("EDGEPOINT2", str(edgepoint2))
    monkeypatch.setenv("ALIKED", str(aliked))
    for name in ("edgepoint2", "nets", "nets.aliked", "custom_ops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("edgepoint2", "nets", "nets.aliked", "custom_ops"):
        sys.modules.pop(name, None)


IMAGE = np.zeros((11, 21, 3), np.uint8)
IMAGE[..., 0] = 255  # blue


def test_edgepoint2_gives_odds_like_ours_and_sees_rgb(checkouts):
    found = resolve("training.evaluation.peers:edgepoint2_e64", 2)(IMAGE)
    np.testing.assert_array_equal(found.keypoints, [[7, 3], [0, 0]])
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.5, 0.7])), rtol=1e-6)
    np.testing.assert_array_equal(found.descriptors, [[0, 0, 1]] * 2)
    assert found.image_size == (21, 11) and found.scores.dtype == np.float32


def test_aliked_answers_pixels(checkouts):
    found = resolve("training.evaluation.peers:aliked_n32", 3)(IMAGE)
    np.testing.assert_array_equal(found.keypoints, [[0, 0], [20, 10], [10, 5]])
    assert found.scores.tolist() == [0.5] * 3


def test_keypoints_of_one_with_descriptors_of_the_other(checkouts):
    found = resolve("training.evaluation.peers:edgepoint2_e64_described_by_aliked_n32", 2)(IMAGE[..., 1])
    np.testing.assert_array_equal(found.keypoints, [[7, 3], [0, 0]])
    np.testing.assert_allclose(found.descriptors, [[-0.3, -0.4], [-1, -1]], atol=1e-6)


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_without_a_checkout_one_line_names_the_variable(tmp_path, monkeypatch, folder):
    monkeypatch.delenv("ALIKED", raising=False)
    if folder:
        monkeypatch.setenv("ALIKED", str(tmp_path / folder))
    with pytest.raises(UsageError, match="ALIKED is .*, expected a checkout of it, with nets/aliked.py in it"):
        resolve("training.evaluation.peers:aliked_n32", 100)


def test_lightglue_matches_features(tmp_path, monkeypatch):
    (tmp_path / "lightglue").mkdir()
    (tmp_path / "lightglue" / "lightglue.py").write_text(LIGHTGLUE)
    (tmp_path / "lightglue" / "__init__.py").write_text("from .lightglue import LightGlue")
    monkeypatch.setenv("LIGHTGLUE", str(tmp_path))
    points = np.float32([[1, 1], [2, 2], [3, 3]])
    first = Features(points, np.ones(3, np.float32), np.eye(3, 128, dtype=np.float32), (21, 11))
    second = Features(points[::-1] + 9, first.scores, first.descriptors[::-1].copy(), (21, 11))
    matcher = resolve_matcher("training.evaluation.peers:lightglue_aliked")
    points0, points1 = matcher(first, second)
    np.testing.assert_array_equal(points0, [[2, 2], [3, 3]])
    np.testing.assert_array_equal(points1, [[11, 11], [12, 12]])
    assert len(matcher(first, Features.empty((21, 11), 128))[0]) == 0
    for name in ("lightglue", "lightglue.lightglue"):
        sys.modules.pop(name, None)
