"""Corners under Lucas-Kanade flow on images whose motion is known."""

import cv2
import numpy as np
import pytest

from samfeat_core.camera import Camera
from samfeat_core.features import Features
from samfeat_core.tracking import DETECTED, FOLLOWED, CornerTracker
from samfeat_core.two_view import epipolar_inliers

SIZE = (200, 150)


def texture(seed: int) -> np.ndarray:
    """(150, 400) uint8, smooth and rich in corners."""
    noise = np.random.default_rng(seed).integers(0, 256, (150, 400), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)


WALL, OTHER = texture(1), texture(2)


def frame(shift: int, curtain: bool = False) -> np.ndarray:
    """The wall, moved `shift` pixels to the left; a curtain of another texture may hang over its middle."""
    image = WALL[:, shift : shift + SIZE[0]].copy()
    if curtain:
        image[:, 80:140] = OTHER[:, 80:140]
    return image


def update(tracker: CornerTracker, image: np.ndarray, **options):
    return tracker.update(Features.empty(SIZE, 0), image=image, **options)


@pytest.mark.parametrize("verify", [True, False])
def test_corners_follow_the_wall(verify):
    tracker = CornerTracker(150, verify=verify)
    first = update(tracker, frame(0))
    before = tracker.current.keypoints
    second = update(tracker, frame(3))
    assert first.restarted and not second.restarted and 100 < len(first.track_ids) <= 150
    followed = second.sources == FOLLOWED
    assert followed.sum() == len(second) > 0.8 * len(before) and (second.sources[~followed] == DETECTED).all()
    moved = tracker.current.keypoints[second.index] - before[second.index_prev]
    inner = before[second.index_prev, 0] > 20  # flow at the edge sees half of a window
    np.testing.assert_allclose(moved[inner], np.tile([-3, 0], (inner.sum(), 1)), atol=0.1)
    np.testing.assert_array_equal(second.track_ids[second.index], first.track_ids[second.index_prev])
    np.testing.assert_array_equal(second.lengths, np.where(followed, 2, 1))
    assert len(set(second.track_ids)) == len(second.track_ids) <= 150


def test_a_point_whose_flow_does_not_lead_back_ends():
    """Behind the curtain flow ends somewhere; from there it does not lead back."""
    tracker = CornerTracker(300, verify=False)
    update(tracker, frame(0))
    before = tracker.current.keypoints
    second = update(tracker, frame(2, curtain=True))
    x = before[:, 0] - 2  # where the wall has gone to
    hidden, open_wall = (x > 85) & (x < 135), (x > 12) & (x < 65)
    lives = np.isin(np.arange(len(before)), second.index_prev)
    assert hidden.sum() > 30 and lives[hidden].mean() < 0.2
    assert lives[open_wall].mean() > 0.9


def flow(image: np.ndarray, other: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moved, found, _ = cv2.calcOpticalFlowPyrLK(image, other, points, None, winSize=(21, 21), maxLevel=3)
    return moved, found.ravel() > 0


@pytest.mark.parametrize(("count", "distance"), [(60, 0.6 * np.sqrt(200 * 150 / 60)), (5000, 3.0)])
def test_first_corners_are_those_of_opencv_spread_over_the_image(count, distance):
    tracker = CornerTracker(count)
    update(tracker, frame(0))
    expected = cv2.goodFeaturesToTrack(frame(0), count, 0.001, distance, mask=np.full((150, 200), 255, np.uint8))
    np.testing.assert_array_equal(tracker.current.keypoints, expected[:, 0])


def test_followed_corners_are_those_of_opencv_there_and_back_within_half_a_pixel():
    tracker = CornerTracker(300, verify=False)
    update(tracker, frame(0))
    before = tracker.current.keypoints
    second = update(tracker, frame(4, curtain=True))
    there, found = flow(frame(0), frame(4, curtain=True), before)
    back, found_back = flow(frame(4, curtain=True), frame(0), there)
    good = found & found_back & (np.linalg.norm(back - before, axis=1) < 0.5)
    good &= (there >= 0).all(axis=1) & (there <= [199, 149]).all(axis=1)
    np.testing.assert_array_equal(second.index_prev, np.flatnonzero(good))
    np.testing.assert_array_equal(tracker.current.keypoints[second.index], there[good])
    assert 50 < good.sum() < len(before) - 50


@pytest.mark.parametrize("lens", [None, Camera(np.array([[150.0, 0, 100], [0, 150, 75], [0, 0, 1]]), [], *SIZE)])
def test_tracks_go_on_through_epipolar_inliers(lens):
    """The wall slides left; of two curtains before it one slides down and one up: no motion of a camera."""
    tracker, free = CornerTracker(300, threshold_px=0.6), CornerTracker(300, verify=False)
    first, later = frame(0), frame(3)
    for columns, step in ((slice(70, 130), 2), (slice(140, 200), -3)):
        first[:, columns], later[:, columns] = OTHER[:, columns], np.roll(OTHER[:, columns], step, axis=0)
    for image in (first, later):
        matches, every = (update(t, image, camera=lens) for t in (tracker, free))
    points_prev, points = free.previous.keypoints[every.index_prev], free.current.keypoints[every.index]
    inlier = epipolar_inliers(points_prev, points, lens, 0.6)
    np.testing.assert_array_equal(matches.index_prev, every.index_prev[inlier])
    assert 30 < inlier.sum() < len(inlier)


def test_rows_are_corners_without_descriptors_and_matches_are_sure():
    tracker = CornerTracker(100)
    tracker.update(Features.empty((999, 7), 64), image=frame(0))
    matches = tracker.update(Features.empty((999, 7), 32), image=frame(2))
    rows, count, followed = tracker.current, len(tracker.current), len(matches)
    assert not matches.restarted and rows.image_size == (999, 7)  # descriptors of the network mean nothing here
    assert rows.descriptors.shape == (count, 0) and rows.descriptors.dtype == rows.scores.dtype == np.float32
    assert (rows.scores == 1).all() and (matches.similarity == 1).all() and matches.inlier.all()
    assert matches.inlier.dtype == bool and matches.similarity.shape == matches.inlier.shape == (followed,)
    np.testing.assert_array_equal(matches.index, np.arange(followed))
    np.testing.assert_array_equal(matches.sources, np.where(np.arange(count) < followed, FOLLOWED, DETECTED))
    assert matches.lengths.sum() == count + followed and len(set(matches.track_ids.tolist())) == count
    assert tracker.update(Features.empty((998, 7), 32), image=frame(2)).restarted


def test_new_corners_keep_their_distance_and_stay_in_the_mask():
    tracker = CornerTracker(400, spacing=9.0)
    mask = np.zeros((150, 200), np.uint8)
    mask[:, :100] = 1
    update(tracker, frame(0), mask=mask)
    first = tracker.current.keypoints
    assert len(first) > 50 and first[:, 0].max() < 100
    matches = update(tracker, frame(2))  # now the other half is free too
    points = tracker.current.keypoints
    born = points[len(matches) :]
    assert born[:, 0].max() > 180
    apart = np.linalg.norm(born[:, None] - points[None, : len(matches)], axis=2)
    assert 8 < apart.min() < 12  # beside the tracks, to the pixel of the circles around them
    among = np.linalg.norm(born[:, None] - born[None], axis=2) + 99 * np.eye(len(born))
    assert 9 <= among.min() < 9.5


def test_as_many_corners_as_were_asked_for():
    tracker = CornerTracker(40)
    for shift in (0, 20, 40):  # some leave the image at the left in every frame
        matches = update(tracker, frame(shift))
        assert len(tracker.current) == len(matches.track_ids) == 40
    full = CornerTracker(5)
    update(full, frame(0))
    update(full, frame(1))
    assert len(full.current) == 5


def test_nothing_is_found_in_a_flat_image_and_tracking_goes_on():
    tracker = CornerTracker(50)
    for image, found in ((np.full((150, 200), 90, np.uint8), False), (frame(0), True), (frame(1), True)):
        matches = update(tracker, image)
        assert bool(len(tracker.current)) == found
    assert len(matches) > 30
    update(tracker, np.full((150, 200), 90, np.uint8))
    assert len(tracker.current) == 0 and tracker.current.keypoints.shape == (0, 2)


def test_colour_is_followed_by_its_luminance():
    rng = np.random.default_rng(4)
    tint = rng.uniform(0.5, 1, 3)
    grey, colour = CornerTracker(80), CornerTracker(80)
    for shift in (0, 3):
        image = (frame(shift)[..., None] * tint).astype(np.uint8)
        update(grey, cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        matches = update(colour, image)
        np.testing.assert_array_equal(colour.current.keypoints, grey.current.keypoints)
    assert len(matches) > 50


def test_images_are_asked_for():
    with pytest.raises(ValueError, match="CornerTracker needs the image of every frame"):
        CornerTracker().update(Features.empty(SIZE, 0))


def test_reset_forgets_the_image():
    tracker = CornerTracker(50)
    first = update(tracker, frame(0))
    tracker.reset()
    again = update(tracker, frame(0))
    assert again.restarted and len(again) == 0 and (again.lengths == 1).all()
    assert not set(first.track_ids) & set(again.track_ids)
