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
        rest = np.delete(np.arange(len(points)), [3, 9])
        assert not inlier[[3, 9]].any()
        np.testing.assert_array_equal(inlier[rest], epipolar_inliers(points_prev[rest], points[rest], lens))
    same = np.full((50, 2), 77.0)
    for lens in (None, camera("none")):
        assert epipolar_inliers(same, same, lens).all()  # it stands still
    line = np.stack([np.linspace(0, 600, 50), np.full(50, 100.0)], 1)
    assert epipolar_inliers(line, line + 2).shape == (50,)


@pytest.mark.parametrize("bad", [{"points": np.zeros((9, 2))}, {"threshold_px": 0}, {"points": np.zeros((8, 3))}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="points must be|threshold_px must be"):
        epipolar_inliers(**{"points_prev": np.zeros((8, 2)), "points": np.zeros((8, 2)), **bad})


def test_a_homography_may_miss_by_the_root_of_two_thresholds():
    """In a fisheye image that only turned, less than half of the matches lie near a common epipolar plane."""
    lens, rng, count = camera("equidistant"), np.random.default_rng(3), 600
    threshold = 2.0 / lens.focal
    rays_prev = rng.uniform(-0.6, 0.6, (count, 2))
    turn = cv2.Rodrigues(np.array([0.02, 0.05, -0.03]))[0]
    rays = cv2.perspectiveTransform(rays_prev[:, None], turn)[:, 0]
    exact, near, far, wrong = np.split(np.arange(count), [210, 330, 360])
    angle = rng.uniform(0, 2 * np.pi, count)
    for rows, share in ((near, 1.2), (far, 1.6)):
        rays[rows] += share * threshold * np.stack([np.cos(angle), np.sin(angle)], 1)[rows]
    rays[wrong] = rng.uniform(-0.6, 0.6, (len(wrong), 2))
    inlier = epipolar_inliers(lens.project(rays_prev), lens.project(rays), lens, threshold_px=2.0)
    assert inlier[exact].all()
    assert inlier[near].mean() > 0.95
    assert inlier[far].mean() < 0.1
    assert inlier[wrong].mean() < 0.02


def test_the_larger_angle_decides_in_a_fisheye_image():
    """A point that gets far is judged by the view in which the same error is the larger angle."""
    lens = Camera(np.array([[180.0, 0, 320], [0, 180, 240], [0, 0, 1]]), np.zeros(4), *SIZE, "equidistant")
    rng = np.random.default_rng(2)
    threshold = 1.5 / 180
    shift = np.array([0.5, 0.1, 1.0])  # of the points in camera axes: the camera moves back
    world = rng.uniform([-1.5, -1.5, 0.6], [1.5, 1.5, 4], (1500, 3))
    a, b = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in (world, world + shift))
    normal = np.cross(shift, b)
    normal *= rng.choice((-1, 1), (1500, 1)) / np.linalg.norm(normal, axis=1, keepdims=True)
    off = np.arange(1500) >= 900  # some are turned out of its epipolar plane
    b[off] = np.cos(0.7 * threshold) * b[off] + np.sin(0.7 * threshold) * normal[off]
    angle_b = np.abs(np.arcsin(np.einsum("nd,nd->n", b, unit(np.cross(shift, a)))))
    angle_a = np.abs(np.arcsin(np.einsum("nd,nd->n", a, unit(np.cross(shift, b)))))
    worst = np.maximum(angle_a, angle_b) / threshold
    wrong, right = off & (worst > 1.1), off & (worst < 0.95)
    assert wrong.sum() > 30 and right.sum() > 30
    points_prev, points = (lens.project(rays[:, :2] / rays[:, 2:]) for rays in (a, b))
    for pair in ((points_prev, points), (points, points_prev)):
        inlier = epipolar_inliers(*pair, lens, threshold_px=1.5)
        assert inlier[~off].all()
        assert inlier[wrong].mean() < 0.05
        assert inlier[right].mean() > 0.95


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("share", "good"), [(0.8, True), (1.9, False)])
@pytest.mark.parametrize("lens", [None, *LENSES])
def test_the_threshold_is_pixels_of_the_image(lens, share, good):
    """A fifth of the matches lies beside its epipolar line; the motion is along x, so lines are rows."""
    rng, threshold = np.random.default_rng(4), 2.5
    seen = camera(lens or "none")
    world = rng.uniform([-2, -1.5, 3], [2, 1.5, 9], (500, 3))
    pixels = [seen.project(p[:, :2] / p[:, 2:]) for p in (world, world + [0.8, 0, 0])]
    off = np.arange(500) < 100
    pixels[1][off, 1] += share * threshold * rng.choice((-1, 1), 100)
    inlier = epipolar_inliers(*pixels, lens and seen, threshold)
    assert inlier[~off].all()
    assert inlier[off].mean() > 0.95 if good else inlier[off].mean() < 0.05


def test_the_threshold_is_one_pixel_if_not_given():
    points_prev, points, _ = matches("parallax", noise=0.8)
    told = [np.count_nonzero(epipolar_inliers(points_prev, points, None, *rest)) for rest in ((), (1.0,), (2.0,))]
    assert told[0] == told[1] < told[2]


@pytest.mark.parametrize("lens", [None, "none", "equidistant"])
@pytest.mark.parametrize(("usable", "inliers"), [(7, 0), (8, 8)])
def test_eight_matches_are_enough(lens, usable, inliers):
    """Of nine rows some have no position; the others did not move."""
    points = np.random.default_rng(0).uniform((100, 100), (500, 400), (9, 2))
    points_prev = points.copy()
    points_prev[usable:] = np.nan
    found = epipolar_inliers(points_prev, points, lens and camera(lens))
    assert found.tolist() == [row < inliers for row in range(9)]
    assert np.count_nonzero(epipolar_inliers(points[:usable], points[:usable], lens and camera(lens))) == inliers


def test_what_stands_still_wins_where_nothing_explains_more():
    """Half of the points stand still, the others go anywhere: no motion of the camera."""
    rng = np.random.default_rng(6)
    points_prev = rng.uniform((0, 0), SIZE, (60, 2))
    points = points_prev + rng.normal(0, 0.3, (60, 2))
    points[30:] = rng.uniform((0, 0), SIZE, (30, 2))
    for lens in (None, "none", "equidistant"):
        inlier = epipolar_inliers(points_prev, points, lens and camera(lens), threshold_px=2.0)
        assert inlier[:30].all() and inlier[30:].mean() < 0.3


def _raise(*arguments, **options):
    raise cv2.error("no model")


@pytest.mark.parametrize(
    "answer", [_raise, lambda *_, **__: (None, None), lambda *_, **__: (np.eye(9)[:, :3], np.ones((20, 1), np.uint8))]
)
@pytest.mark.parametrize("lens", [None, "none", "equidistant"])
def test_where_opencv_finds_no_model_only_what_stands_still_agrees(monkeypatch, answer, lens):
    for name in ("findEssentialMat", "findFundamentalMat", "findHomography"):
        monkeypatch.setattr(cv2, name, answer)
    points = np.random.default_rng(0).uniform((100, 100), (500, 400), (20, 2))
    moved = points + np.where(np.arange(20)[:, None] < 12, 0.5, 40.0) / np.sqrt(2)
    assert epipolar_inliers(points, moved, lens and camera(lens)).tolist() == [row < 12 for row in range(20)]
    moved[7:] += 40
    assert not epipolar_inliers(points, moved, lens and camera(lens)).any()


# ---- cameras ----


def test_focal_length_is_the_mean_of_both_axes():
    assert camera("none").focal == 425


def test_a_camera_keeps_float64_arrays_of_its_own():
    matrix, distortion = K.astype(np.float32), np.zeros((1, 5), np.float32)
    lens = Camera(matrix, distortion, *SIZE)
    matrix[:] = 0
    assert lens.matrix.dtype == lens.distortion.dtype == np.float64 and lens.distortion.shape == (5,)
    assert lens.matrix[1, 1] == 430 and lens.model == "plumb_bob" and (lens.width, lens.height) == SIZE


def test_plumb_bob_and_rational_models_by_their_formulas():
    rays = np.array([[0.3, -0.2], [-0.5, 0.4], [0.0, 0.0], [0.1, 0.6]])
    x, y = rays.T
    r2 = x**2 + y**2
    for lens in ("plumb_bob", "rational_polynomial"):
        k1, k2, p1, p2, k3, *below = LENSES[lens][1]
        k4, k5, k6 = below or (0, 0, 0)
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        bent = np.stack([
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        ], 1)  # fmt: skip
        expected = bent * [K[0, 0], K[1, 1]] + K[:2, 2]
        np.testing.assert_allclose(camera(lens).project(rays), expected, atol=1e-9)
        np.testing.assert_allclose(camera(lens).normalize(expected), rays, atol=1e-6)


def test_a_pinhole_with_skew():
    matrix = K + np.array([[0, 3.0, 0], [0, 0, 0], [0, 0, 0]])
    rays = np.random.default_rng(1).normal(size=(20, 2))
    pixels = (np.c_[rays, np.ones(20)] @ matrix.T)[:, :2]
    for distortion in ([], np.zeros(5)):
        np.testing.assert_allclose(Camera(matrix, distortion, *SIZE).normalize(pixels), rays, atol=1e-12)


@pytest.mark.parametrize("lens", LENSES)
def test_rows_without_a_position_have_no_ray_and_harm_no_other(lens):
    pixels = np.array([[100.0, 90.0], [np.nan, 90.0], [100.0, np.inf], [400.0, 300.0]])
    rays = camera(lens).normalize(pixels)
    assert rays.shape == (4, 2) and rays.dtype == np.float64
    assert not np.isfinite(rays[1:3]).all(axis=1).any()
    np.testing.assert_allclose(camera(lens).project(rays[[0, 3]]), pixels[[0, 3]], atol=1e-3)


def test_rays_reach_to_89_degrees():
    fisheye = Camera(np.array([[150.0, 0, 320], [0, 150, 240], [0, 0, 1]]), [], *SIZE, "equidistant")
    degrees = np.array([-88.9, 60, 88.9, 89.1])
    rays = fisheye.normalize(np.stack([320 + 150 * np.radians(degrees), np.full(4, 240.0)], 1))
    np.testing.assert_allclose(rays[:3], np.stack([np.tan(np.radians(degrees[:3])), np.zeros(3)], 1), atol=1e-6)
    assert np.isnan(rays[3]).all()


def test_a_point_that_undistortion_does_not_bring_back_has_no_ray():
    """Half a pixel may be missing at the edge of what the lens model can be inverted for, more may not."""
    barrel = Camera(K, np.array([-0.5, 0, 0, 0]), *SIZE)
    r = np.linspace(0.3, 0.95, 400)
    rays = np.stack([r, np.zeros(400)], 1)  # the image turns back at r = sqrt(2 / 3) = 0.816
    back = barrel.normalize(barrel.project(rays))
    found = np.isfinite(back).all(axis=1)
    assert found[r < 0.8].all()
    np.testing.assert_allclose(barrel.project(back[found]), barrel.project(rays[found]), atol=0.5)
    beyond = barrel.normalize(K[:2, 2] + [[0.55 * 420, 0], [0.53 * 420, 0]])  # the farthest pixel is at 0.544
    assert np.isnan(beyond[0]).all() and np.isfinite(beyond[1]).all()


@pytest.mark.parametrize(
    ("model", "counts"), [("plumb_bob", {0, 4, 5}), ("rational_polynomial", {0, 8, 12, 14}), ("equidistant", {0, 4})]
)
def test_numbers_of_coefficients(model, counts):
    for count in range(16):
        if count in counts:
            Camera(K, np.zeros(count), *SIZE, model)
        else:
            with pytest.raises(ValueError, match=f"{model} has .* finite coefficients"):
                Camera(K, np.zeros(count), *SIZE, model)


@pytest.mark.parametrize("entry", [(0, 0), (1, 1)])
@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_focal_lengths_are_positive(entry, value):
    matrix = K.copy()
    matrix[entry] = value
    with pytest.raises(ValueError, match="focal lengths positive"):
        Camera(matrix, [], *SIZE)


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_points_of_any_type_are_computed_in_float64(lens, kind):
    pixels, rays = np.array([[100, 90], [401, 300]]), np.array([[0, 1], [-1, 0]])
    for function, points in ((camera(lens).normalize, pixels), (camera(lens).project, rays)):
        answer = function(points.astype(kind))
        assert answer.dtype == np.float64
        np.testing.assert_array_equal(answer, function(points.astype(np.float64)))


def test_projecting_no_ray_is_no_error():
    for lens in LENSES:
        assert camera(lens).project(np.zeros((0, 2))).shape == (0, 2)
