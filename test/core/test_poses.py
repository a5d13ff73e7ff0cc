"""Rigid motions: numpy and torch agree with each other and with slow plain formulations."""

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

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


@pytest.mark.parametrize("degrees", [30, 89, 91, 150, 180])
def test_pose_error_of_the_direction_with_and_without_sign(degrees):
    angle, length = np.radians(degrees), np.array([0.2, 7.0])
    t, t_gt = length[0] * np.array([np.cos(angle), np.sin(angle), 0]), length[1] * np.array([[1.0], [0], [0]])
    errors = [poses.pose_error(np.eye(3), t, np.eye(3), t_gt, signed) for signed in (True, False)]
    assert errors == [pytest.approx((0, degrees)), pytest.approx((0, min(degrees, 180 - degrees)), abs=1e-6)]


@pytest.mark.parametrize("t", [np.zeros(3), np.full(3, np.nan), np.array([np.inf, 0, 0])])
def test_a_motion_without_direction_is_as_wrong_as_can_be(t):
    good = np.array([0, 0, 1.0])
    for pair in ((t, good), (good, t)):
        for signed, worst in ((True, 180), (False, 90)):
            assert poses.pose_error(np.eye(3), pair[0], np.eye(3), pair[1], signed) == (0, worst)


def test_points_move_with_their_batch():
    points, shift = RNG.normal(size=(2, 5, 3)), transform([0, 0, 0.4], [1, -2, 3])
    moved = both(poses.transform_points, points[0], T01)
    np.testing.assert_allclose(moved, [(T01 @ [*point, 1])[:3] for point in points[0]])
    many = poses.transform_points(points, np.stack([T01, shift]))
    np.testing.assert_allclose(many, [poses.transform_points(points[0], T01), points[1] @ shift[:3, :3].T + [1, -2, 3]])


TURNS = [[0, 0, 0], [0, 0, 1e-4], [0.3, -0.2, 0.9], [0, 1.5, 0], [0, 0, -3.1], [2.0, 2.0, 0.5]]


@pytest.mark.parametrize("turn", TURNS)
def test_quaternion_is_the_one_of_scipy_with_w_not_negative(turn):
    rotation = Rotation.from_rotvec(turn)
    np.testing.assert_allclose(poses.quaternion(rotation.as_matrix()), rotation.as_quat(canonical=True), atol=1e-9)


def test_pose_matrix_is_the_one_of_scipy_for_quaternions_of_any_length():
    turns, positions = Rotation.from_rotvec(TURNS), RNG.normal(size=(6, 3))
    matrices = poses.pose_matrix(positions, RNG.uniform(0.1, 5, (6, 1)) * turns.as_quat())
    np.testing.assert_allclose(matrices[:, :3, :3], turns.as_matrix(), atol=1e-12)
    np.testing.assert_array_equal(matrices[:, :3, 3], positions)
    np.testing.assert_array_equal(matrices[:, 3], [[0, 0, 0, 1]] * 6)
    np.testing.assert_allclose(poses.pose_matrix(positions[2], 3 * turns[2].as_quat()), matrices[2], atol=1e-12)


def test_single_precision_is_taken_as_the_double_that_it_is():
    turns, positions = Rotation.from_rotvec(TURNS).as_quat().astype(np.float32), RNG.normal(size=(6, 3))
    matrices = poses.pose_matrix(positions.astype(np.float32), turns)
    np.testing.assert_array_equal(
        matrices, poses.pose_matrix(positions.astype(np.float32).astype(np.float64), turns.astype(np.float64))
    )
    errors = RNG.uniform(0, 30, 200).astype(np.float32)
    assert poses.pose_auc(errors) == poses.pose_auc(errors.astype(np.float64))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_poses_between_two_are_those_of_scipy(share):
    first, second = transform([0.3, 1.0, -0.2], [1, 2, 3]), transform([-0.5, 0.4, 0.1], [5, 0, 3.5])
    turns = Slerp([0, 1], Rotation.from_matrix([first[:3, :3], second[:3, :3]]))
    pose = poses.interpolate_pose(first, second, share)
    np.testing.assert_allclose(pose[:3, :3], turns(share).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(pose[:3, 3], (1 - share) * np.array([1, 2, 3]) + share * np.array([5, 0, 3.5]))
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


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
    assert poses.pose_auc([5.0], (5, 10)) == pytest.approx([0, 0.75])  # an error at the threshold is none below it
    assert np.isnan(poses.pose_auc([])).all() and len(poses.pose_auc([], (1, 2))) == 2
