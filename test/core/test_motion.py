"""Where points are expected and what lies near what, against brute force."""

import numpy as np

from samfeat_core.tracking.motion import (
    allowed,
    far_from,
    first_at_pixel,
    inside,
    interpolate_motion,
    nearest_within,
    spread_evenly,
)

SIZE = (320, 240)
RNG = np.random.default_rng(2)


def scattered(count: int) -> np.ndarray:
    return RNG.uniform((0, 0), np.array(SIZE) - 1, (count, 2)).astype(np.float32)


def test_motion_of_neighbours_is_their_mean_near_and_far():
    points = scattered(300)
    left = points[:, 0] < 160
    motion = np.where(left[:, None], np.float32([4, -2]), np.float32([-6, 8]))
    at = np.float32([[20, 120], [300, 120]])
    np.testing.assert_allclose(interpolate_motion(points, motion, at, SIZE), [[4, -2], [-6, 8]], atol=0.01)
    everywhere = interpolate_motion(points, np.tile(np.float32([3, 5]), (300, 1)), scattered(50), SIZE)
    np.testing.assert_allclose(everywhere, np.tile([3, 5], (50, 1)), atol=1e-3)
    middle = interpolate_motion(points, motion, np.float32([[160, 120]]), SIZE)[0]
    assert -6 < middle[0] < 4 and -2 < middle[1] < 8
    corner = np.float32([[2, 2], [5, 3], [4, 6]])
    far = interpolate_motion(corner, np.float32([[1, 0], [1, 0], [4, 0]]), np.float32([[318, 238]]), SIZE)
    np.testing.assert_allclose(far, [[2, 0]], atol=0.01)  # no neighbour at all: the mean of everybody


def test_nearest_within_is_the_nearest_keypoint_and_each_has_one_point():
    points, keypoints = scattered(400), scattered(300)
    found = nearest_within(points, keypoints, 2.0, SIZE)
    apart = np.linalg.norm(points[:, None] - keypoints, axis=2)
    for row, keypoint in enumerate(found):
        if keypoint >= 0:
            assert apart[row, keypoint] == apart[row].min() <= 2.0
        elif apart[row].min() <= 2.0:  # the keypoint went to a point nearer to it, or hides behind another in its pixel
            nearest = apart[row].argmin()
            pixel = np.rint(keypoints[nearest])
            assert apart[:, nearest].min() < apart[row].min() or (np.rint(keypoints[:nearest]) == pixel).all(1).any()
    assert (found >= 0).sum() > 10
    given = found[found >= 0]
    assert len(set(given)) == len(given)
    assert (nearest_within(points, points, 0.5, SIZE) == np.arange(400)).mean() > 0.97
    assert (nearest_within(points, np.zeros((0, 2), np.float32), 2.0, SIZE) == -1).all()


def test_far_from_keeps_the_distance_to_the_pixel():
    others = np.float32([[100, 100]])
    near = np.float32([[100, 105], [104, 103], [100, 106.6], [107, 100], [0, 0]])
    np.testing.assert_array_equal(far_from(near, others, 5, SIZE), [False, False, True, True, True])
    assert far_from(near, others, 0, SIZE).all() and far_from(near, others[:0], 5, SIZE).all()


def test_spread_evenly_fills_empty_cells_first():
    points = np.concatenate([RNG.uniform(0, 50, (50, 2)), [[300, 200], [10, 230]]]).astype(np.float32)
    order = spread_evenly(points, np.zeros((0, 2), np.float32), 4, SIZE)
    assert sorted(order) == list(range(52)) and set(order[:3]) == {0, 50, 51}
    taken = np.tile(np.float32([[300, 200]]), (5, 1))
    assert list(spread_evenly(points, taken, 4, SIZE)).index(50) > 3


def test_inside_allowed_and_first_at_pixel():
    points = np.float32([[0, 0], [319, 239], [319.1, 5], [5, -0.1], [np.nan, 5], [0.3, 0.4]])
    np.testing.assert_array_equal(inside(points, SIZE), [True, True, False, False, False, True])
    np.testing.assert_array_equal(first_at_pixel(points[[0, 1, 5]], SIZE), [True, True, False])
    mask = np.ones((240, 320), np.uint8)
    mask[:100] = 0
    np.testing.assert_array_equal(
        allowed(np.float32([[5, 99.4], [5, 99.6], [5, 500]]), mask, SIZE), [False, True, True]
    )
    assert allowed(points[:2], None, SIZE).all()
