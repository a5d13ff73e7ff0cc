"""A network as base detector, and its bootstrap on synthetic shapes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from samfeat_core.models import DenseFeatures, model_spec
from training.data.photo_store import StoreError
from training.label import app, label
from training.samfeat.labels import LabelStore
from training.samfeat.labels.network import NetworkDetector, Shapes, bootstrap, score_on_shapes
from training.samfeat.labels.shapes import render


class Harris(torch.nn.Module):
    """Stands for a network: OpenCV's corner measure as logits, which peaks at the pixel inside of a corner."""

    def forward(self, image):
        response = [cv2.cornerMinEigenVal(cv2.GaussianBlur(x[0].numpy(), (0, 0), 1), 3) for x in image]
        score = 2000 * torch.from_numpy(np.stack(response))[:, None] - 1
        return DenseFeatures(score, torch.zeros(len(image), 1, 1, 1))


def corner_image():
    image = np.full((75, 107), 60, np.uint8)
    image[22:53, 31:80] = 200
    return image, np.array([[31, 22], [79, 22], [79, 52], [31, 52]])


def test_network_finds_the_corners_of_a_square_at_any_size():
    """The sides are no multiples of the stride: padding neither shifts nor adds keypoints."""
    image, corners = corner_image()
    detector = NetworkDetector(Harris(), model_spec("samfeat-nano"), 50, 0.5)
    points = detector(np.stack((image, 255 - image)))
    assert len(points) == 2
    for found in points:
        assert len(found) == 4
        assert np.linalg.norm(corners[:, None] - found[None], axis=2).min(1).max() < 1.5
    adapted, scores = label(image, detector, 20, np.random.default_rng(0), threshold=0.5)
    assert len(adapted) == 4 and np.linalg.norm(corners[:, None] - adapted[None], axis=2).min(1).max() < 1.5


def test_shapes_by_index():
    shapes = Shapes(3, (96, 64))
    image, corners = shapes[5]
    expected, points = render(np.random.default_rng((3, 5)), (96, 64))
    assert image.shape == (1, 64, 96) and torch.equal((image[0] * 255).round(), torch.from_numpy(expected).float())
    torch.testing.assert_close(corners[: len(points)], torch.from_numpy(points))
    assert corners[len(points) :].isnan().all()


SMALL = {"model": "samfeat-nano", "steps": 7, "batch": 2, "size": (60, 64), "workers": 0, "state_every": 3}


def test_bootstrap_continues_to_the_same_weights(tmp_path):
    """The disk is full when the weights are to be written; the second run starts at the last state."""
    bootstrap(tmp_path / "whole.safetensors", **SMALL)
    output = tmp_path / "base.safetensors"
    (tmp_path / ".base.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="base.safetensors: the disk is full"):
        bootstrap(output, **SMALL)
    state = Path(f"{output}.state")
    assert torch.load(state, weights_only=True)["step"] == 6
    with pytest.raises(StoreError, match="base.safetensors.state is of an unfinished run with"):
        bootstrap(output, **{**SMALL, "seed": 1})
    bootstrap(output, **SMALL)
    assert not state.exists()
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(output)
    assert whole.keys() == resumed.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)
    state.write_bytes(b"")
    with pytest.raises(StoreError, match="unreadable state of an unfinished run"):
        bootstrap(output, **SMALL)


def test_bootstrap_names_an_unknown_model(tmp_path):
    with pytest.raises(StoreError, match="unknown model 'superglue': expected one of samfeat-nano"):
        bootstrap(tmp_path / "x.safetensors", "superglue")


def test_weights_of_another_model(tmp_path):
    bootstrap(tmp_path / "base.safetensors", **{**SMALL, "steps": 1})
    assert NetworkDetector.load(tmp_path / "base.safetensors", 10, "samfeat", "cpu").spec.name == "samfeat-nano"
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(StoreError, match="foreign.pth"):
        NetworkDetector.load(tmp_path / "foreign.pth", 10, "samfeat-nano", "cpu")


def test_commands(tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/square.png"), corner_image()[0])
    base = tmp_path / "base.safetensors"
    result = CliRunner().invoke(app, ["bootstrap", str(base), "--steps", "2", "--batch", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "precision" in result.output and "recall" in result.output
    arguments = ["photos", str(tmp_path / "photos"), str(tmp_path / "store"), "--base", str(base), "--views", "3"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert LabelStore(tmp_path / "store").labels("square").base == "base.safetensors"


@pytest.mark.slow
def test_bootstrapped_detector_finds_corners(tmp_path):
    bootstrap(tmp_path / "base.safetensors", steps=1500, batch=8, learning_rate=2e-3, workers=1)
    detector = NetworkDetector.load(tmp_path / "base.safetensors", 100, "samfeat-nano", "cpu")
    precision, recall = score_on_shapes(detector)
    assert precision > 0.5 and recall > 0.5
