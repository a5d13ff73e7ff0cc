"""Rigid motions: numpy and torch agree with each other and with slow plain formulations."""

import cv2
import numpy as np
import pytest
import torch

from samfeat_core import poses

RNG = np.random.default_rng(0)
K0 = np.array([[400.0, 0, 160], [0, 410.0, 120], [0, 0, 1]])
K1 = np.array([[380.0, 0.5, 155], [0, 390.0, 125], [0, 0, 1]])


def transform(vector, shift) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(np.array(vector, float))[0], shift
    return T


T01 = transform([0.03, -0.08, 0.02], [0.3, -0.1, 0.05])


def both(function, *arrays):
    """The answer for numpy, after the check that torch gives the same, with a batch dimension too."""
    answer = function(*arrays)
    tensors = [torch.from_numpy(np.asarray(a)) for a in arrays]
    batched = function(*[torch.stack([t, t]) for t in tensors])
    for one, plain, many in zip(_tuple(answer), _tuple(function(*tensors)), _tuple(batched), strict=True):
        np.testing.assert_allclose(plain.numpy(), one, atol=1e-9)
        np.testing.assert_allclose(many.numpy(), np.stack([one, one]), atol=1e-9)
    return answer


def _tuple(answer):
    return answer if isinstance(answer, tuple) else (answer,)


def test_relative_pose():
    pose0, pose1 = transform([0.1, 0.2, 0.3], [1, 2, 3]), transform([-0.2, 0.1, 0], [0, 1, 2])
    point_in_0 = np.array([[0.3, -0.2, 4.0]])
    through_world = poses.transform_points(poses.transform_points(point_in_0, pose0), np.linalg.inv(pose1))
    np.testing.assert_allclose(
        poses.transform_points(point_in_0, both(poses.relative_pose, pose0, pose1)), through_world, atol=1e-12
    )


@pytest.mark.parametrize("degrees", [1e-5, 0.1, 45, 90, 179.9, 180])
def test_rotation_angle(degrees):
    axis = np.array([0.36, 0.48, 0.8])
    rotation = transform(np.radians(degrees) * axis, [0, 0, 0])[:3, :3]
    assert both(poses.rotation_angle, rotation) == pytest.approx(degrees, rel=1e-4, abs=1e-5)


def test_pose_error():
    R, t = T01[:3, :3], T01[:3, 3]
    assert poses.pose_error(R, 7 * t, R, t) == pytest.approx((0, 0), abs=1e-6)
    turned = transform(np.radians([0, 0, 5]), [0, 0, 0])[:3, :3]
    assert poses.pose_error(R @ turned, turned @ t, R, t)[0] == pytest.approx(5)
    assert poses.pose_error(R, [0, 0, 1], R, [0, 1, 1])[1] == pytest.approx(45)
    assert poses.pose_error(R, -t, R, t)[1] == pytest.approx(0, abs=1e-6)
    assert poses.pose_error(R, -t, R, t, signed=True)[1] == pytest.approx(180)
    assert poses.pose_error(np.full((3, 3), np.nan), np.zeros(3), R, t) == (180, 90)


def slow_auc(errors, threshold, steps=200_000):
    """The area under the piecewise linear recall curve, by a fine Riemann sum up to the last error below the
    threshold and flat from there."""
    errors = sorted(errors)
    x = (np.arange(steps) + 0.5) / steps * threshold
    below = [e for e in errors if e < threshold]
    knots_x, knots_y = [0.0, *below, threshold], [0.0, *[(i + 1) / len(errors) for i in range(len(below))]]
    knots_y.append(knots_y[-1])
    return np.interp(x, knots_x, knots_y).mean()


def test_pose_auc():
    errors = RNG.uniform(0, 30, 25)
    for threshold, area in zip((5, 10, 20), poses.pose_auc(errors), strict=True):
        assert area == pytest.approx(slow_auc(errors, threshold), abs=1e-4)
    assert poses.pose_auc([0, 0, 0]) == pytest.approx([1, 1, 1])
    assert poses.pose_auc([np.nan, np.inf, 90]) == [0, 0, 0]
    assert poses.pose_auc([0, np.nan])[0] == pytest.approx(0.5)
    assert np.isnan(poses.pose_auc([])).all()
