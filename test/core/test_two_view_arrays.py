"""Two-view geometry of arrays: numpy and torch agree with each other and with plain formulations."""

import cv2
import numpy as np
import pytest
import torch

from samfeat_core import two_view

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


def test_fundamental_matrix_and_distance():
    world = RNG.uniform([-1, -1, 3], [1, 1, 8], (40, 3))
    moved = world @ T01[:3, :3].T + T01[:3, 3]
    p0, p1 = (world @ K0.T)[:, :2] / world[:, 2:], (moved @ K1.T)[:, :2] / moved[:, 2:]
    F = both(two_view.fundamental_matrix, K0, K1, T01)
    assert both(two_view.epipolar_distance, p0, p1, F).max() < 1e-8
    for i in range(40):  # move each point by 3 px along the normal of its line
        line = F @ [*p0[i], 1]
        normal = line[:2] / np.linalg.norm(line[:2])
        assert two_view.epipolar_distance(p0[i : i + 1], p1[i : i + 1] + 3 * normal, F)[0] == pytest.approx(3)
    np.testing.assert_allclose(two_view.epipolar_distance(p1, p0 + 1, F.T) > 0.1, True)
    no_line = two_view.epipolar_distance(p0, p1, np.zeros((3, 3)))
    assert np.isinf(no_line).all()


def test_normalize_points_inverts_the_camera_matrix():
    points = RNG.uniform(0, 300, (10, 2))
    expected = (np.linalg.inv(K1) @ np.c_[points, np.ones(10)].T).T[:, :2]
    np.testing.assert_allclose(both(two_view.normalize_points, points, K1), expected, atol=1e-12)
