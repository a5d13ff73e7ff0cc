"""Corners and the loss that teaches them, against plain second formulations."""

import cv2
import numpy as np
import pytest
import torch

from samfeat_core.models.nano import normalize_contrast
from training.data.pairs import pixel_grid
from training.samfeat.losses.corner import (
    DEVIATION,
    FLOOR,
    RADIUS,
    SHARPNESS,
    USUAL,
    corner_logits,
    corner_loss,
    corners,
)

SIZE = (40, 56)
INNER = np.s_[2 * RADIUS : -2 * RADIUS, 2 * RADIUS : -2 * RADIUS]


def picture(seed=0):
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.random(SIZE, np.float32), (0, 0), 1.5)
    cv2.rectangle(image, (12, 10), (30, 24), 1.0, -1)
    return image


def eigenvalues(image):
    """The smaller eigenvalue of the structure tensor, by OpenCV's filters and numpy's solver."""
    span = np.arange(-RADIUS, RADIUS + 1, dtype=np.float64)
    smooth = np.exp(-(span**2) / (2 * DEVIATION**2))
    smooth /= smooth.sum()
    slope = smooth * span / (smooth * span**2).sum()
    dx, dy = cv2.sepFilter2D(image, -1, slope, smooth), cv2.sepFilter2D(image, -1, smooth, slope)
    xx, yy, xy = (cv2.sepFilter2D(p, -1, smooth, smooth) for p in (dx * dx, dy * dy, dx * dy))
    return np.linalg.eigvalsh(np.stack((np.stack((xx, xy), -1), np.stack((xy, yy), -1)), -2))[..., 0]


def test_logits_are_those_of_the_structure_tensor():
    image = picture()
    logits = corners(torch.from_numpy(image)[None, None])[0, 0].numpy()
    expected = SHARPNESS * np.log((eigenvalues(image).clip(min=0) + FLOOR) / USUAL)
    assert logits.shape == SIZE
    np.testing.assert_allclose(logits[INNER], expected[INNER], atol=2e-3)


def test_the_corners_of_a_rectangle_are_found():
    image = np.zeros(SIZE, np.float32)
    cv2.rectangle(image, (12, 10), (30, 24), 1.0, -1)
    logits = corners(torch.from_numpy(image)[None, None])[0, 0]
    y, x = divmod(int(logits.argmax()), SIZE[1])
    assert min(np.hypot(x - u, y - v) for u in (12, 30) for v in (10, 24)) < 1.5


def test_corner_logits_average_both_views_where_both_see():
    image, other = (torch.from_numpy(picture(seed))[None, None] for seed in (1, 2))
    own, others = (corners(normalize_contrast(view)) for view in (image, other))
    warp = pixel_grid(*SIZE)[None].clone()
    warp[:, :, 30:] = float("nan")
    logits = corner_logits(image.expand(1, 3, *SIZE), other.expand(1, 3, *SIZE), warp)
    torch.testing.assert_close(logits[..., :30], ((own + others) / 2)[..., :30], atol=1e-3, rtol=0)
    torch.testing.assert_close(logits[..., 30:], own[..., 30:], atol=1e-3, rtol=0)


def test_corner_loss_is_the_weighted_mean_and_pulls_towards_the_target():
    g = torch.Generator().manual_seed(0)
    score, target = (torch.randn(1, 1, 4, 5, generator=g) * 2 for _ in range(2))
    total = weights = 0.0
    for s, t in zip(score.flatten().tolist(), target.flatten().tolist()):
        weight = 0.1 + 1 / (1 + np.exp(-t))
        distance = abs(s - t)
        total += weight * (0.5 * distance**2 if distance < 1 else distance - 0.5)
        weights += weight
    score.requires_grad_()
    loss = corner_loss(score, target)
    loss.backward()
    assert loss.item() == pytest.approx(total / weights, rel=1e-5)
    assert torch.equal(score.grad.sign(), (score - target).sign())
    assert float(corner_loss(target, target)) == 0
