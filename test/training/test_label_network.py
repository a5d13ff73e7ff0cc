"""A network as base detector, and its bootstrap on synthetic shapes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from samfeat_core.errors import UsageError, WeightsError
from samfeat_core.models import DenseFeatures, model_spec
from training.data.label_store import LabelStore
from training.label import app as label_app
from training.label import label
from training.loop.config import OptimizerConfig
from training.samfeat.labels.bootstrap import MOST_CORNERS, Shapes, ShapesConfig, ShapesSource, ShapesValidation, train
from training.samfeat.labels.detectors import load_detector
from training.samfeat.labels.network import NetworkDetector
from training.samfeat.labels.shapes import render
from training.train import app as train_app

CPU = torch.device("cpu")


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


def test_ranks_share_the_shapes_and_a_restored_source_continues():
    shapes = Shapes(3, (64, 64))
    both = [ShapesSource(shapes, 0, CPU, rank, 2) for rank in (0, 1)]
    state = torch.get_rng_state()
    seen = [source.sample(2)[0] for _ in range(2) for source in both]
    assert torch.equal(torch.get_rng_state(), state)
    order = (0, 2), (1, 3), (4, 6), (5, 7)
    for images, indices in zip(seen, order, strict=True):
        assert torch.equal(images, torch.stack([shapes[index][0] for index in indices]))
    later = ShapesSource(shapes, 0, CPU, 0, 2)
    later.restore(both[0].state())
    images, corners = later.sample(2)
    assert torch.equal(images, torch.stack([shapes[8][0], shapes[10][0]])) and corners.shape == (2, MOST_CORNERS, 2)


def test_validation_counts_what_is_near_a_corner(monkeypatch):
    """A detector that answers every corner but the last twice, each 1.5 pixels off, and as many points far away."""
    validate = ShapesValidation(model_spec("samfeat-nano"), CPU, count=30)
    corners = iter([points for _, points in validate.images])

    def detect(self, views):
        known = next(corners)[:-1]
        return [np.concatenate((known + (1.5, 0), known + (0, 1.5), np.full((2 * len(known), 2), -50.0)))]

    monkeypatch.setattr(NetworkDetector, "__call__", detect)
    scores = validate(Harris())
    found = total = 0
    for _, points in validate.images:
        total += len(points)
        for corner in points:  # the last one, too, where another is near it
            apart = [
                float(np.hypot(*(known + step - corner))) for known in points[:-1] for step in ((1.5, 0), (0, 1.5))
            ]
            found += min(apart, default=9) <= 2
    assert scores["precision"] == pytest.approx(0.5)
    assert scores["recall"] == pytest.approx(found / total) and total / 2 < found < total
    assert scores["score"] == pytest.approx(2 / (1 / scores["precision"] + 1 / scores["recall"]))


def small(**changes):
    optimizer = OptimizerConfig(weight_decay=0.0, warmup=0, clip=1.0, ema=0.0)
    options = {"steps": 4, "batch": 2, "size": (60, 64), "workers": 0, "validate_every": 2, "optimizer": optimizer}
    return ShapesConfig(**{"precision": "fp32", **options, **changes})


@pytest.fixture
def few(monkeypatch):
    """Validation on few images."""
    monkeypatch.setattr(ShapesValidation.__init__, "__defaults__", (3, 100, 2.0))


def test_bootstrap_resumes_to_the_same_weights(few, tmp_path):
    constant = replace(small().optimizer, cooldown=0)  # a rate that does not depend on the number of steps
    train(small(optimizer=constant), tmp_path / "whole", CPU)
    train(small(optimizer=constant, steps=2), tmp_path / "parts", CPU)
    train(small(optimizer=constant), tmp_path / "parts", CPU)
    whole, parts = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4 and whole["random"][0]["source"] == parts["random"][0]["source"] == 8
    for name, tensor in whole["network"].items():
        torch.testing.assert_close(parts["network"][name], tensor, rtol=0, atol=0)


def test_a_network_s_weights_know_their_model_and_threshold(few, tmp_path):
    train(small(steps=1), tmp_path, CPU)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata().items() >= {"model": "samfeat-nano", "threshold": "0.5"}.items()
    detector = NetworkDetector.load(tmp_path / "best.safetensors", 10, "samfeat", "cpu")
    assert detector.spec.name == "samfeat-nano" and detector.threshold == 0.5
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match="foreign.pth"):
        load_detector(str(tmp_path / "foreign.pth"), 10)
    with pytest.raises(UsageError, match="unknown model 'superglue': expected one of samfeat-nano"):
        load_detector(str(tmp_path / "foreign.pth"), 10, "superglue")


def test_commands(few, tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/square.png"), corner_image()[0])
    overrides = [word for change in ("steps=2", "batch=2", "workers=1") for word in ("--set", change)]
    arguments = ["--config", "config/train/shapes.yaml", "--output", str(tmp_path / "shapes"), "--device", "cpu"]
    result = CliRunner().invoke(train_app, [*arguments, *overrides])
    assert result.exit_code == 0, result.output
    assert "precision" in result.output and "recall" in result.output
    base = tmp_path / "shapes" / "best.safetensors"
    arguments = ["photos", str(tmp_path / "photos"), str(tmp_path / "store"), "--base", str(base), "--views", "3"]
    result = CliRunner().invoke(label_app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert LabelStore(tmp_path / "store").labels("square").base == "best.safetensors"


@pytest.mark.slow
def test_bootstrapped_detector_finds_corners(tmp_path):
    optimizer = OptimizerConfig(lr=2e-3, weight_decay=0.0, warmup=0, clip=1.0, ema=0.0)
    train(
        small(steps=1500, batch=8, size=(192, 160), workers=1, validate_every=500, optimizer=optimizer), tmp_path, CPU
    )
    detector = NetworkDetector.load(tmp_path / "best.safetensors", 100, "samfeat-nano", "cpu")
    scores = ShapesValidation(detector.spec, CPU)(detector.network)
    assert scores["precision"] > 0.5 and scores["recall"] > 0.5
