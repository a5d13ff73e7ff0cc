"""The hybrid tracker before a textured wall: what is followed, found again, refused and forgotten."""

import cv2
import numpy as np
import pytest

from samfeat_core.camera import Camera
from samfeat_core.features import Features
from samfeat_core.tracking import DETECTED, FOLLOWED, RECOVERED, HybridTracker

SIZE = (320, 240)
CAMERA = Camera(np.array([[300.0, 0, 159.5], [0, 300.0, 119.5], [0, 0, 1]]), np.zeros(0), *SIZE)
RNG = np.random.default_rng(7)
_noise = cv2.GaussianBlur(RNG.integers(0, 256, (400, 900)).astype(np.float32), (0, 0), 2.0)
WALL = cv2.normalize(_noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
CORNERS = cv2.goodFeaturesToTrack(WALL, 1500, 0.01, 8).reshape(-1, 2)
NAMES = RNG.normal(size=(len(CORNERS), 32)).astype(np.float32)
NAMES /= np.linalg.norm(NAMES, axis=1, keepdims=True)
STEP = np.array([3.0, 1.0])  # pixels a frame
DARK = np.zeros(SIZE[::-1], np.uint8)


def image(number: float) -> np.ndarray:
    """The wall, as a camera that moves along it sees it."""
    left, top = STEP * number + [20, 20]
    return cv2.warpAffine(WALL, np.array([[1, 0, -left], [0, 1, -top]]), SIZE, flags=cv2.INTER_LINEAR)


def corners(number: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the corners that are in sight, and where."""
    points = CORNERS - STEP * number - [20, 20]
    rows = np.flatnonzero(((points > 12) & (points < np.array(SIZE) - 12)).all(axis=1))
    return rows, points[rows].astype(np.float32)


def features(number: float, share: float = 1.0, names: np.ndarray = NAMES) -> Features:
    """What a detector finds that sees only a share of the corners, in a random order that is its own."""
    rows, points = corners(number)
    chosen = np.random.default_rng(int(100 * number)).permutation(len(rows))[: round(share * len(rows))]
    scores = np.linspace(1, 0.2, len(chosen), dtype=np.float32)
    return Features(points[chosen], scores, names[rows[chosen]], SIZE)


def empty() -> Features:
    return Features.empty(SIZE, 32)


def places(tracker: HybridTracker, ids: np.ndarray) -> dict[int, np.ndarray]:
    assert tracker.current is not None
    return dict(zip(ids.tolist(), tracker.current.keypoints, strict=True))


def advance(tracker: HybridTracker, numbers, share: float = 1.0):
    for number in numbers:
        matches = tracker.update(features(number, share), number * 50_000_000, CAMERA, image(number))
    return matches


def test_points_are_followed_where_the_detector_misses_them():
    tracker = HybridTracker(500)
    first = advance(tracker, [0])
    begun = places(tracker, first.track_ids)
    assert (first.sources == DETECTED).all() and (first.lengths == 1).all() and len(first.track_ids) > 200
    last = advance(tracker, range(1, 11), share=0.5)
    now = places(tracker, last.track_ids)
    stayed = [name for name in begun if name in now]
    in_sight = [name for name, point in begun.items() if (point - 10 * STEP > 12).all()]
    assert len(stayed) > 0.95 * len(in_sight)
    moved = np.array([now[name] - begun[name] for name in stayed])
    errors = np.linalg.norm(moved + 10 * STEP, axis=1)
    assert errors.max() < 1 and np.mean(errors < 0.2) > 0.97 and np.median(errors) < 0.03
    old = last.lengths == 11
    assert old.sum() == len(stayed)
    assert 0.3 < np.mean(last.sources[old] == FOLLOWED) < 0.7 and (last.sources != RECOVERED).mean() > 0.98
    assert last.trust[old].min() > 0.8 and last.inlier.mean() > 0.98


def test_rows_carry_the_descriptor_that_was_last_seen_there():
    tracker = HybridTracker(500)
    advance(tracker, [0])
    matches = advance(tracker, [1, 2, 3], share=0.5)
    rows, points = corners(3)
    for row in np.flatnonzero(matches.lengths == 4)[::10]:
        assert tracker.current is not None
        apart = np.linalg.norm(points - tracker.current.keypoints[row], axis=1)
        if apart.min() < 1:  # others are on the edge of the image, out of the detector's sight
            np.testing.assert_array_equal(tracker.current.descriptors[row], NAMES[rows[apart.argmin()]])


def test_matches_tell_of_points_that_both_frames_have():
    tracker = HybridTracker(500)
    advance(tracker, [0, 1])
    matches = advance(tracker, [2], share=0.5)
    assert tracker.current is not None and tracker.previous is not None
    moved = tracker.current.keypoints[matches.index] - tracker.previous.keypoints[matches.index_prev]
    np.testing.assert_allclose(moved[matches.inlier], np.tile(-STEP, (matches.inlier.sum(), 1)), atol=0.3)
    assert (np.diff(matches.index) > 0).all() and len(set(matches.index_prev)) == len(matches)
    np.testing.assert_array_equal(matches.lengths[matches.index[matches.inlier]] >= 2, True)


@pytest.mark.parametrize("black", [3, 10])
def test_tracks_live_through_the_dark_under_their_ids(black):
    tracker = HybridTracker(500)
    before = places(tracker, advance(tracker, range(3)).track_ids)
    for number in range(3, 3 + black):
        dark = tracker.update(empty(), number * 50_000_000, CAMERA, DARK)
        assert len(dark.track_ids) == 0 and not dark.restarted
    matches = advance(tracker, [3 + black])
    now = places(tracker, matches.track_ids)
    visible = [name for name, point in before.items() if (point - (black + 1) * STEP > 12).all()]
    back = [name for name in visible if name in now]
    assert len(back) > 0.9 * len(visible)
    moved = np.array([now[name] - before[name] for name in back])
    np.testing.assert_allclose(moved, np.tile(-(black + 1) * STEP, (len(back), 1)), atol=0.3)
    recovered = np.isin(matches.track_ids, back)
    assert (matches.sources[recovered] == RECOVERED).all() and (matches.lengths[recovered] >= 2).all()
    assert len(matches) == 0  # the frame before was black: nothing is invented


def test_memory_ends_and_can_be_switched_off():
    for memory, black in ((0, 1), (4, 5)):
        tracker = HybridTracker(500, memory=memory)
        ids = advance(tracker, range(3)).track_ids
        for number in range(3, 3 + black):
            tracker.update(empty(), number * 50_000_000, CAMERA, DARK)
        assert not set(advance(tracker, [3 + black]).track_ids) & set(ids)


def test_flow_that_does_not_lead_back_ends_a_track():
    tracker = HybridTracker(500, repair=False, verify=False)
    advance(tracker, range(3))
    other = image(3)
    other[:, 160:] = np.roll(image(3)[::-1, ::-1], 37, axis=0)[:, 160:]  # another scene on the right
    matches = tracker.update(features(3), 150_000_000, CAMERA, other)
    assert tracker.current is not None
    followed = tracker.current.keypoints[matches.sources == FOLLOWED]
    left, right = np.count_nonzero(followed[:, 0] < 145), np.count_nonzero(followed[:, 0] > 175)
    assert left > 100 and right < 0.5 * left


def test_what_is_hidden_comes_back_and_nothing_else_under_its_id():
    """A curtain hides the middle for five frames; look-alikes of what it hides are offered elsewhere meanwhile."""
    tracker = HybridTracker(500)
    before = places(tracker, advance(tracker, range(3)).track_ids)
    curtain = np.full((240, 100), 128, np.uint8)
    for number in range(3, 8):
        covered, seen = image(number), features(number)
        covered[:, 110:210] = curtain
        open_wall = (seen.keypoints[:, 0] < 105) | (seen.keypoints[:, 0] > 215)
        rows, points = corners(number)
        hidden = (points[:, 0] > 120) & (points[:, 0] < 200)
        fake = np.roll(points[hidden], 1, axis=0) * [0.4, 1]  # on the left, under their names
        found = Features(
            np.concatenate([seen.keypoints[open_wall], fake]).astype(np.float32),
            np.concatenate([seen.scores[open_wall], np.full(hidden.sum(), 0.1, np.float32)]),
            np.concatenate([seen.descriptors[open_wall], NAMES[rows[hidden]]]),
            SIZE,
        )
        matches = tracker.update(found, number * 50_000_000, CAMERA, covered)
        now = places(tracker, matches.track_ids)
        wrong = [n for n in before if n in now and np.linalg.norm(now[n] - before[n] + (number - 2) * STEP) > 20]
        assert not wrong
    matches = advance(tracker, [8, 9])
    now = places(tracker, matches.track_ids)
    behind = [n for n, p in before.items() if p[0] - 3 * STEP[0] > 130 and p[0] < 200 and p[1] - 7 * STEP[1] > 12]
    back = [n for n in behind if n in now]
    assert len(back) > 0.8 * len(behind)
    errors = np.array([np.linalg.norm(now[n] - before[n] + 7 * STEP) for n in back])
    assert np.mean(errors < 1) > 0.97


def test_slow_sliders_end_at_the_keyframe_though_every_step_is_small():
    """Points that slide 0.6 px a frame across the epipolar lines: below the threshold of 1.5 px at first."""
    world = RNG.uniform([-3, -2, 4], [3, 2, 12], (300, 3))
    for verify in (True, False):
        tracker = HybridTracker(500, verify=verify)
        for number in range(14):
            seen = world - number * np.array([0.05, 0.0, 0.0])  # the camera moves sideways: lines are rows
            points = seen[:, :2] / seen[:, 2:] * 300 + [159.5, 119.5]
            points[:30, 1] += 0.6 * number
            found = Features(points.astype(np.float32), np.linspace(1, 0.2, 300), NAMES[:300], SIZE)
            matches = tracker.update(found, number * 50_000_000, CAMERA)
            if number == 0:
                ids = matches.track_ids
        kept = np.isin(ids, matches.track_ids)
        assert kept[30:].mean() > 0.9
        assert kept[:30].mean() < 0.1 if verify else kept[:30].mean() > 0.9


def test_flow_alone_gives_birth_but_does_not_find_again():
    tracker = HybridTracker(500, repair=False)
    ids = advance(tracker, range(3)).track_ids
    tracker.update(empty(), 150_000_000, CAMERA, DARK)
    assert not set(advance(tracker, [4]).track_ids) & set(ids)
    other = np.roll(NAMES, 5, axis=0)
    before = advance(tracker, [5]).track_ids
    renamed = tracker.update(features(6, names=other), 300_000_000, CAMERA, image(6))
    assert np.isin(before, renamed.track_ids).mean() > 0.9  # descriptors have no say


def test_without_images_matches_carry_the_tracks():
    tracker = HybridTracker(500)
    first = tracker.update(features(0), 0, CAMERA)
    second = tracker.update(features(1, 0.7), 50_000_000, CAMERA)
    assert tracker.current is not None
    shared = np.intersect1d(first.track_ids, second.track_ids)
    assert len(shared) > 0.6 * len(first.track_ids)
    rows, points = corners(1)
    apart = np.linalg.norm(points[:, None] - tracker.current.keypoints, axis=2).min(axis=0)
    assert apart.max() < 1e-4 and not (second.sources == FOLLOWED).any()


def test_tracks_come_before_new_points_and_the_budget_holds():
    tracker = HybridTracker(60, spacing=0)
    first = advance(tracker, [0])
    second = advance(tracker, [1])
    assert len(first.track_ids) == len(second.track_ids) == 60
    assert np.isin(second.track_ids, first.track_ids).mean() > 0.85
    tracker.max_points = 20
    assert len(advance(tracker, [2]).track_ids) == 20


def test_new_points_keep_their_distance_and_spread_over_the_grid():
    tracker = HybridTracker(500, spacing=25)
    matches = advance(tracker, range(2))
    assert tracker.current is not None
    old = tracker.current.keypoints[matches.lengths > 1]
    new = tracker.current.keypoints[matches.lengths == 1]
    assert np.linalg.norm(new[:, None] - old, axis=2).min(initial=np.inf) >= 24
    seen = features(0)
    crowded = Features(seen.keypoints, (200 - seen.keypoints[:, 0]).clip(1) / 200, seen.descriptors, SIZE)
    order = np.argsort(-crowded.scores, kind="stable")
    crowded = Features(crowded.keypoints[order], crowded.scores[order], crowded.descriptors[order], SIZE)
    halves = {}
    for grid in (0, 6):
        tracker = HybridTracker(60, grid=grid)
        tracker.update(crowded, 0, CAMERA, image(0))
        assert tracker.current is not None
        halves[grid] = np.mean(tracker.current.keypoints[:, 0] > 160)
    assert halves[0] < 0.1 and 0.4 <= halves[6] < 0.6


def test_a_mask_ends_tracks_and_keeps_lost_ones_out():
    tracker = HybridTracker(500)
    advance(tracker, range(2))
    mask = np.full(SIZE[::-1], 255, np.uint8)
    mask[:, :160] = 0
    right = features(2).keypoints[:, 0] >= 160
    seen = features(2)
    seen = Features(seen.keypoints[right], seen.scores[right], seen.descriptors[right], SIZE)
    tracker.update(seen, 100_000_000, CAMERA, image(2), mask)
    assert tracker.current is not None and tracker.current.keypoints[:, 0].min() > 159
    tracker.update(seen, 150_000_000, CAMERA, image(2), mask)
    assert tracker.current.keypoints[:, 0].min() > 159


def test_the_same_frames_give_the_same_tracks():
    runs = []
    for _ in range(2):
        tracker = HybridTracker(300)
        runs.append((advance(tracker, range(6), 0.6), tracker.current))
    (a, at), (b, bt) = runs
    for name in ("track_ids", "index", "index_prev", "inlier", "lengths", "sources", "trust"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(at.keypoints, bt.keypoints)


def test_a_jump_of_the_exposure_ends_nothing():
    tracker = HybridTracker(500)
    ids = advance(tracker, range(2)).track_ids
    dim = cv2.convertScaleAbs(image(2), alpha=0.25)
    after = tracker.update(empty(), 100_000_000, CAMERA, dim)
    in_sight = np.isin(ids, after.track_ids).mean()
    assert in_sight > 0.85


@pytest.mark.parametrize(("option", "least"), [("max_points", 1), ("memory", 0), ("spacing", 0), ("grid", 0)])
def test_impossible_options_are_refused(option, least):
    HybridTracker(**{option: least})
    with pytest.raises(ValueError, match=f"^{option} must be at least {least}, got {least - 1}$"):
        HybridTracker(**{option: least - 1})


def test_the_caller_may_use_its_image_again():
    kept, reused, buffer = HybridTracker(500), HybridTracker(500), np.empty(SIZE[::-1], np.uint8)
    for number in range(4):
        buffer[:] = image(number)
        reused.update(features(number, 0.5), number * 50_000_000, CAMERA, buffer)
        buffer[:] = 0
        kept.update(features(number, 0.5), number * 50_000_000, CAMERA, image(number))
    assert kept.current is not None and reused.current is not None
    np.testing.assert_array_equal(reused.current.keypoints, kept.current.keypoints)
