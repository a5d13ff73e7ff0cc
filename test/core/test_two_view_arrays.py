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


def test_skew_is_the_cross_product():
    vectors, others = RNG.normal(size=(2, 7, 3))
    matrices = both(two_view.skew, vectors)
    np.testing.assert_allclose((matrices @ others[:, :, None])[:, :, 0], np.cross(vectors, others))


def test_homogeneous_points_end_in_one():
    points = RNG.normal(size=(4, 2))
    np.testing.assert_array_equal(both(two_view.to_homogeneous, points), np.c_[points, np.ones(4)])


def test_essential_matrix_joins_the_rays_of_a_point():
    world = RNG.uniform([-1, -1, 3], [1, 1, 8], (20, 3))
    moved = world @ T01[:3, :3].T + T01[:3, 3]
    E = both(two_view.essential_matrix, T01)
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", moved, E, world), 0, atol=1e-12)
    assert np.linalg.norm(E) == pytest.approx(np.sqrt(2) * np.linalg.norm(T01[:3, 3]))


def test_the_epipole_alone_has_no_line():
    F = two_view.skew(np.array([50.0, 40.0, 1.0]))  # both epipoles at (50, 40)
    points0, points1 = np.array([[50.0, 40.0], [60.0, 40.0], [50.0, 10.0]]), np.array([[0.0, 0], [7, 43.5], [54, 0]])
    np.testing.assert_allclose(both(two_view.epipolar_distance, points0, points1, F), [np.inf, 3.5, 4])


def test_normalize_points_of_two_cameras():
    points = RNG.uniform(0, 300, (2, 10, 2))
    many = two_view.normalize_points(points, np.stack([K0, K1]))
    for one, pixels, matrix in zip(many, points, (K0, K1), strict=True):
        np.testing.assert_allclose(one, two_view.normalize_points(pixels, matrix))
