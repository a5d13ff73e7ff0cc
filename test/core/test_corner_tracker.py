"""Corners under Lucas-Kanade flow on images whose motion is known."""

import cv2
import numpy as np
import pytest

from samfeat_core.features import Features
from samfeat_core.tracking import DETECTED, FOLLOWED, CornerTracker

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
