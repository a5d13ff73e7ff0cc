"""Camera models and two-view inliers on scenes with a known answer."""

import cv2
import numpy as np
import pytest

from samfeat_core.camera import Camera
from samfeat_core.two_view import epipolar_inliers

K = np.array([[420.0, 0, 321.5], [0, 430.0, 238.0], [0, 0, 1]])
SIZE = (640, 480)
LENSES = {
    "none": ("plumb_bob", []),
    "plumb_bob": ("plumb_bob", [-0.28, 0.07, 0.0002, -0.0001, 0.0]),
    "rational_polynomial": ("rational_polynomial", [0.6, -0.1, 1e-4, -2e-4, 0.02, 0.9, -0.05, 0.01]),
    "equidistant": ("equidistant", [-0.01, 0.02, -0.01, 0.002]),
}


def camera(lens: str) -> Camera:
    model, coefficients = LENSES[lens]
    return Camera(K, np.array(coefficients), *SIZE, model)


def matches(kind: str, lens: str = "none", wrong: float = 0.3, noise: float = 0.2, count: int = 400, seed: int = 0):
    """points_prev, points (count, 2) in pixels and which of them are right."""
    rng = np.random.default_rng(seed)
    world = rng.uniform([-3, -2.2, 3], [3, 2.2, 12], (count, 3))
    if kind == "plane":
        world[:, 2] = 5 + 0.3 * world[:, 0]
    rotation = np.eye(3) if kind == "static" else cv2.Rodrigues(np.array([0.02, 0.06, -0.03]))[0]
    shift = np.zeros(3) if kind in ("static", "rotation") else np.array([0.4, -0.05, 0.2])
    moved = world @ rotation.T + shift
    lens_camera = camera(lens)
    points = [lens_camera.project(p[:, :2] / p[:, 2:]) + rng.normal(0, noise, (count, 2)) for p in (world, moved)]
    good = rng.random(count) >= wrong
    points[1][~good] = rng.uniform((0, 0), SIZE, (np.count_nonzero(~good), 2))
    return points[0], points[1], good


@pytest.mark.parametrize("lens", LENSES)
def test_normalize_inverts_project(lens):
    rays = np.random.default_rng(0).uniform(-0.7, 0.7, (200, 2))
    np.testing.assert_allclose(camera(lens).normalize(camera(lens).project(rays)), rays, atol=1e-6)


def test_equidistant_model_by_its_formula():
    lens = camera("equidistant")
    rays = np.array([[0.5, -0.3], [-1.5, 1.0], [0.0, 0.0]])
    radius = np.linalg.norm(rays, axis=1)
    theta = np.arctan(radius)
    k = lens.distortion
    distorted = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8)
    scale = np.divide(distorted, radius, out=np.ones(3), where=radius > 0)
    pixels = rays * scale[:, None] * [K[0, 0], K[1, 1]] + K[:2, 2]
    np.testing.assert_allclose(lens.project(rays), pixels, atol=1e-9)
    np.testing.assert_allclose(lens.normalize(pixels), rays, atol=1e-6)


def test_points_that_no_ray_reaches_become_nan():
    fisheye = Camera(np.array([[150.0, 0, 320], [0, 150, 240], [0, 0, 1]]), np.zeros(4), *SIZE, "equidistant")
    rays = fisheye.normalize(np.array([[320.0, 240.0], [0.0, 240.0], [np.nan, 3.0]]))  # 320 px / 150 = 122 degrees
    assert np.isfinite(rays[0]).all() and np.isnan(rays[1:]).all()
    barrel = Camera(K, np.array([-0.5, 0, 0, 0]), *SIZE)  # not invertible beyond r = 0.82
    assert np.isnan(barrel.normalize(np.array([[5000.0, 5000.0]]))).all()


def test_points_at_the_horizon_have_no_ray():
    narrow = Camera(np.array([[1e-3, 0, 320], [0, 1e-3, 240], [0, 0, 1]]), np.zeros(0), *SIZE)
    rays = narrow.normalize(np.array([[320.0, 240.01], [330.0, 240.0]]))
    assert rays[0, 1] == pytest.approx(10) and np.isnan(rays[1]).all()


def test_no_points_are_no_error():
    for lens in LENSES:
        assert camera(lens).normalize(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.eye(4), np.zeros(5), 640, 480), "camera matrix"),
        ((np.zeros((3, 3)), np.zeros(5), 640, 480), "camera matrix"),
        ((np.diag([300.0, 300.0, 0.0]), np.zeros(5), 640, 480), "camera matrix"),
        ((np.array([[300.0, 0, 1e308], [0, 300, 240], [0, 0, 1]]), np.zeros(5), 640, 480), "camera matrix"),
        ((np.array([[300.0, 0, 320], [300, 300, 240], [0, 0, 1]]), np.zeros(5), 640, 480), "camera matrix"),
        ((K, np.zeros(5), 640, 480, "brown"), "unknown distortion model 'brown'"),
        ((K, np.zeros(5), 640, 480, "equidistant"), "0 or 4"),
        ((K, np.array([np.nan] * 5), 640, 480), "finite"),
    ],
)
def test_impossible_cameras_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Camera(*arguments)


@pytest.mark.parametrize("kind", ["parallax", "plane", "rotation", "static"])
@pytest.mark.parametrize("lens", [None, *LENSES])
@pytest.mark.parametrize("wrong", [0.1, 0.5])
def test_inliers_are_found_in_every_kind_of_motion(kind, lens, wrong):
    points_prev, points, good = matches(kind, lens or "none", wrong)
    inlier = epipolar_inliers(points_prev, points, lens and camera(lens), threshold_px=1.5)
    assert inlier.dtype == bool
    assert inlier[good].mean() > 0.95
    assert inlier[~good].mean() < 0.25  # a wrong match may lie on its epipolar line by chance


def test_the_same_input_gives_the_same_answer():
    points_prev, points, _ = matches("parallax", wrong=0.6)
    first = epipolar_inliers(points_prev, points)
    assert all(np.array_equal(first, epipolar_inliers(points_prev, points)) for _ in range(3))


@pytest.mark.parametrize("lens", [None, "none", "equidistant"])
@pytest.mark.parametrize("kind", ["parallax", "static"])
def test_exact_points_without_any_noise(kind, lens):
    points_prev, points, _ = matches(kind, lens or "none", wrong=0, noise=0)
    assert epipolar_inliers(points_prev, points, lens and camera(lens)).mean() > 0.99


def test_a_wide_fisheye_keeps_its_border():
    lens = Camera(np.array([[180.0, 0, 320], [0, 180, 240], [0, 0, 1]]), np.zeros(4), *SIZE, "equidistant")
    rng = np.random.default_rng(5)
    angle, azimuth = rng.uniform(0.1, 1.35, 500), rng.uniform(0, 2 * np.pi, 500)
    rays = np.stack([np.sin(angle) * np.cos(azimuth), np.sin(angle) * np.sin(azimuth), np.cos(angle)], 1)
    world = rng.uniform(2, 10, (500, 1)) * rays
    moved = world + [0.3, 0.0, 0.1]
    points_prev, points = (lens.project(p[:, :2] / p[:, 2:]) + rng.normal(0, 0.3, (500, 2)) for p in (world, moved))
    inlier = epipolar_inliers(points_prev, points, lens, threshold_px=1.5)
    assert inlier[angle > 1.1].mean() > 0.9


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_matches_are_no_inliers(count):
    points_prev, points, _ = matches("parallax", wrong=0, count=40)
    assert epipolar_inliers(points_prev[:count], points[:count]).tolist() == [False] * count


def test_nan_rows_and_one_repeated_point_are_survived():
    points_prev, points, good = matches("parallax", wrong=0.2)
    points[3] = np.nan
    points_prev[9] = np.inf
    for lens in (None, camera("plumb_bob"), camera("equidistant")):
        inlier = epipolar_inliers(points_prev, points, lens)
        assert not inlier[[3, 9]].any()
    same = np.full((50, 2), 77.0)
    for lens in (None, camera("none")):
        assert epipolar_inliers(same, same, lens).shape == (50,)
    line = np.stack([np.linspace(0, 600, 50), np.full(50, 100.0)], 1)
    assert epipolar_inliers(line, line + 2).shape == (50,)


@pytest.mark.parametrize("bad", [{"points": np.zeros((9, 2))}, {"threshold_px": 0}, {"points": np.zeros((8, 3))}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="points must be|threshold_px must be"):
        epipolar_inliers(**{"points_prev": np.zeros((8, 2)), "points": np.zeros((8, 2)), **bad})
