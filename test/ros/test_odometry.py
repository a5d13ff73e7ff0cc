"""Monocular odometry on made scenes whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
from driving import CAMERA, Scene, drive, turn

from samfeat_ros.odometry.adjustment import adjust_bundle
from samfeat_ros.odometry.estimator import INITIALIZING, LOST, TRACKING, MonocularOdometry
from samfeat_ros.odometry.geometry import Pose, estimate_motion, triangulate


def run(scene: Scene, skip: range = range(0)) -> tuple[list[str], dict[int, Pose]]:
    odometry, statuses, poses = MonocularOdometry(CAMERA), [], {}
    for index in range(1, len(scene.poses)):
        matches = scene.matches(index)
        if index in skip:
            matches = tuple(part[:0] for part in matches)
        update = odometry.update(*matches)
        statuses.append(update.status)
        if update.pose is not None:
            poses[index] = update.pose
    return statuses, poses


def aligned_error(poses: dict[int, Pose], truth: list[Pose]) -> float:
    """Root mean square distance of the camera centres after the best similarity transform."""
    ours = np.array([pose.center for pose in poses.values()])
    theirs = np.array([truth[index].center for index in poses])
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.linalg.det(u @ vt)])
    scale = np.trace(np.diag(s) @ sign) / (a**2).sum()
    return float(np.sqrt(((scale * a @ (u @ sign @ vt).T - b) ** 2).sum(1).mean()))


def test_follows_a_bend():
    truth = drive(80)
    statuses, poses = run(Scene(truth))
    assert statuses.count(TRACKING) > 60 and LOST not in statuses
    assert aligned_error(poses, truth) < 0.01 * 80 * 0.15


def test_bears_wrong_matches():
    truth = drive(60)
    statuses, poses = run(Scene(truth, outliers=0.15))
    assert statuses.count(TRACKING) > 45
    assert aligned_error(poses, truth) < 0.03 * 60 * 0.15


def test_adjusting_the_window_halves_the_error_of_noisy_points():
    """Without bundle adjustment the same tracks give 0.15 to 0.23."""
    truth = drive(60)
    assert np.mean([aligned_error(run(Scene(truth, noise_px=1.0, seed=seed))[1], truth) for seed in (1, 2)]) < 0.08


def test_rotation_of_every_pose_is_a_rotation():
    _, poses = run(Scene(drive(40)))
    for pose in poses.values():
        np.testing.assert_allclose(pose.rotation @ pose.rotation.T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(pose.camera_to_world[:3, 3], pose.center)


def test_a_camera_that_stands_still_gets_no_pose():
    """Without parallax there is no first motion; nothing is made up."""
    statuses, poses = run(Scene([Pose()] * 15))
    assert set(statuses) == {INITIALIZING} and not poses


def test_standing_still_on_the_way():
    truth = drive(30) + [drive(30)[-1]] * 20
    _, poses = run(Scene(truth))
    still = np.array([poses[index].center for index in range(32, 50)])
    moved = np.linalg.norm(poses[29].center - poses[20].center)
    assert np.linalg.norm(still - still[0], axis=1).max() < 0.05 * moved


def test_recovers_after_frames_without_matches():
    """While it has no matches it is lost; afterwards it goes on at about the speed it had."""
    truth = drive(80)
    statuses, poses = run(Scene(truth), skip=range(40, 43))
    assert statuses[39] == LOST and statuses[-1] == TRACKING
    before = np.linalg.norm(poses[35].center - poses[25].center)
    after = np.linalg.norm(poses[75].center - poses[65].center)
    assert after == pytest.approx(before, rel=0.25)


def test_constant_motion_while_lost():
    """Ten dark frames: the pose goes on by the last motion, without frozen frames and without a jump afterwards."""
    truth = drive(80)
    statuses, poses = run(Scene(truth), skip=range(40, 50))
    assert statuses[39:49] == [LOST] * 10 and statuses[-1] == TRACKING  # statuses[i] is of frame i + 1
    steps = {i: np.linalg.norm(poses[i].center - poses[i - 1].center) for i in range(30, 80)}
    usual = np.median([steps[i] for i in range(30, 40)])
    assert min(steps.values()) > 0.5 * usual
    assert max(steps.values()) < 2.5 * usual  # the new first motion turns the way a little; it does not jump
    ours, theirs = (np.linalg.norm(way[70].center - way[30].center) for way in (poses, truth))
    scale = np.linalg.norm(truth[39].center - truth[25].center) / np.linalg.norm(poses[39].center - poses[25].center)
    assert scale * ours == pytest.approx(theirs, rel=0.1)


def test_same_input_same_poses():
    first, second = (run(Scene(drive(30), outliers=0.1))[1] for _ in range(2))
    for index, pose in first.items():
        np.testing.assert_array_equal(pose.translation, second[index].translation)


def test_lost_message_does_not_mix_frames():
    """A frame whose previous one was never seen goes by ids; what it says about the previous frame is not used."""
    truth = drive(60)
    scene, odometry, poses = Scene(truth), MonocularOdometry(CAMERA), {}
    for index in range(1, 60):
        if index % 7 == 0:
            continue
        update = odometry.update(*scene.matches(index), stamp_ns=index, stamp_prev_ns=index - 1)
        if update.pose is not None:
            poses[index] = update.pose
    assert len(poses) > 40 and aligned_error(poses, truth) < 0.02 * 60 * 0.15


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_matches_are_no_pose(count):
    ids, prev, points = (part[:count] for part in Scene(drive(3)).matches(1))
    assert MonocularOdometry(CAMERA).update(ids, prev, points).pose is None
    assert estimate_motion(CAMERA.normalize(prev), CAMERA.normalize(points), 1e-3) is None


def test_nan_and_repeated_ids_are_borne():
    scene, odometry = Scene(drive(30)), MonocularOdometry(CAMERA)
    for index in range(1, 30):
        ids, prev, points = scene.matches(index)
        ids, points = ids.copy(), points.copy()
        ids[:5], points[5:10] = ids[0], np.nan
        update = odometry.update(ids, prev, points)
    assert update.status == TRACKING and np.isfinite(update.pose.camera_to_world).all()


def test_relative_pose_and_triangulation():
    truth = drive(10)
    scene = Scene(truth, noise_px=0.1)
    rows = np.flatnonzero(np.isfinite(scene.pixels[0]).all(1) & np.isfinite(scene.pixels[9]).all(1))[:400]
    a, b = CAMERA.normalize(scene.pixels[0][rows]), CAMERA.normalize(scene.pixels[9][rows])
    pose, inlier = estimate_motion(a, b, 1.5 / CAMERA.focal)
    expected = truth[9].after(truth[0].inverse())
    direction = expected.translation / np.linalg.norm(expected.translation)
    assert inlier.mean() > 0.9
    assert np.degrees(np.arccos(np.clip(pose.translation @ direction, -1, 1))) < 1.0
    assert np.degrees(np.arccos(np.clip((np.trace(pose.rotation @ expected.rotation.T) - 1) / 2, -1, 1))) < 0.1
    points = triangulate(truth[0], truth[9], a, b)
    near = scene.points[rows][:, 2] < 10
    assert np.median(np.linalg.norm(points - scene.points[rows], axis=1)[near]) < 0.1


def test_bundle_adjustment_lowers_the_error():
    rng = np.random.default_rng(1)
    truth = drive(6, step=0.5)
    points = rng.uniform([-5, -3, 6], [5, 3, 20], (100, 3))
    seen = np.stack([(c := pose.apply(points))[:, :2] / c[:, 2:] for pose in truth], axis=1)
    seen[rng.random(seen.shape[:2]) < 0.2] = np.nan
    start = truth[:2] + [Pose(p.rotation @ turn(1, 0.01), p.translation + rng.normal(0, 0.03, 3)) for p in truth[2:]]
    poses, moved = adjust_bundle(start, points + rng.normal(0, 0.1, points.shape), seen, 1e-3, iterations=30)
    for pose, expected in zip(poses, truth):
        np.testing.assert_allclose(pose.center, expected.center, atol=5e-3)
    assert np.median(np.linalg.norm(moved - points, axis=1)) < 0.05
