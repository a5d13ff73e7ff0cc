"""Views of one another: numpy and torch agree with each other and with slow plain formulations."""

import cv2
import numpy as np
import torch

from training.data import geometry

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


def test_warp_homography():
    H = np.array([[1.1, 0.02, 5], [-0.03, 0.9, -7], [1e-4, -2e-4, 1]])
    points = RNG.uniform(0, 300, (50, 2))
    expected = cv2.perspectiveTransform(points[:, None], H)[:, 0]
    np.testing.assert_allclose(both(geometry.warp_homography, points, H), expected, atol=1e-9)


def wall_depth(K, shape, T_world_to_camera):
    """Depth map of the plane z = 5 - 0.2 x of the world."""
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    rays = np.stack([xs, ys, np.ones(shape)], -1) @ np.linalg.inv(K).T
    normal, offset = np.array([0.2, 0, 1.0]), 5.0
    R, t = T_world_to_camera[:3, :3], T_world_to_camera[:3, 3]
    turned = R @ normal
    return (offset + turned @ t) / (rays @ turned)


def test_warp_depth_on_a_slanted_wall():
    depth0, depth1 = wall_depth(K0, (240, 320), np.eye(4)), wall_depth(K1, (250, 310), T01)
    points = RNG.uniform([5, 5], [310, 230], (60, 2))
    rays = np.c_[(points - K0[:2, 2]) / [K0[0, 0], K0[1, 1]], np.ones(60)]
    world = rays * (5 / (rays @ [0.2, 0, 1.0]))[:, None]
    moved = (world @ T01[:3, :3].T + T01[:3, 3]) @ K1.T
    expected = moved[:, :2] / moved[:, 2:]
    inside = ((expected >= 0) & (expected <= [309, 249])).all(1)
    warped, valid = both(geometry.warp_depth, points, depth0, K0, K1, T01, depth1)
    np.testing.assert_array_equal(valid, inside)
    np.testing.assert_allclose(warped[valid], expected[valid], atol=1e-3)
    assert np.isnan(warped[~valid]).all() and 20 < valid.sum() < 60
    unchecked, seen = geometry.warp_depth(points, depth0, K0, K1, T01)
    np.testing.assert_allclose(unchecked, expected, atol=1e-3)
    assert seen.all()


def test_warp_depth_knows_occlusion_holes_and_the_back():
    depth0, depth1 = np.full((100, 100), 4.0), np.full((100, 100), 4.0)
    K = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    depth0[:10], depth0[10:20] = 0, np.nan
    depth1[:, 60:] = 2.0  # a nearer surface
    points = np.array([[30.0, 5], [30, 15], [30, 50], [80, 50], [98.5, 60], [200, 3]])
    warped, valid = both(geometry.warp_depth, points, depth0, K, K, np.eye(4), depth1)
    assert valid.tolist() == [False, False, True, False, False, False]
    np.testing.assert_allclose(warped[2], points[2])
    behind, valid = geometry.warp_depth(points[2:3], depth0, K, K, transform([0, 0, 0], [0, 0, -9]))
    assert not valid.any() and np.isnan(behind).all()


def test_depth_edges_are_not_averaged():
    depth = np.full((4, 6), 2.0)
    depth[:, 3:] = 6.0
    assert both(geometry.sample_depth, depth, np.array([[2.4, 1.0], [2.6, 1.5]])).tolist() == [2, 6]
