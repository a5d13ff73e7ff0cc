"""Track ids, restarts and lengths over frames whose correspondence is known."""

import numpy as np
import pytest

from samfeat_core.camera import Camera
from samfeat_core.features import Features
from samfeat_core.matching import match_mutual
from samfeat_core.tracking import DETECTED, ID_LIMIT, TRACKERS, CornerTracker, HybridTracker, MatchTracker, make_tracker
from samfeat_core.tracking.table import TrackTable
from samfeat_core.two_view import epipolar_inliers

SIZE = (640, 480)
RNG = np.random.default_rng(0)
WORLD = RNG.uniform([-3, -2.2, 3], [3, 2.2, 12], (200, 3))
NAMES = RNG.normal(size=(200, 32)).astype(np.float32)
NAMES /= np.linalg.norm(NAMES, axis=1, keepdims=True)


def frame(step: float, rows=slice(None), size=SIZE) -> Features:
    """The world seen by a camera that moved `step` times (20, 2, 5 cm); rows choose and order the points."""
    seen = WORLD[rows] + step * np.array([0.2, 0.02, 0.05])
    points = (seen[:, :2] / seen[:, 2:] * 400 + [320, 240]).astype(np.float32)
    return Features(points, np.linspace(1, 0.1, len(points), dtype=np.float32), NAMES[rows], size)


def test_ids_follow_the_points_through_reordering_loss_and_birth():
    tracker = MatchTracker(min_similarity=0.9)
    first = tracker.update(frame(0, np.arange(150)))
    assert first.restarted and len(first) == 0 and np.isnan(first.inlier_ratio)
    np.testing.assert_array_equal(first.track_ids, np.arange(150))
    assert tracker.previous is None

    rows = RNG.permutation(np.arange(30, 180))
    second = tracker.update(frame(1, rows))
    old = rows < 150
    np.testing.assert_array_equal(second.track_ids[old], rows[old])
    assert set(second.track_ids[~old]) == set(range(150, 180))
    assert not second.restarted and second.inlier.all() and second.inlier_ratio == 1
    assert tracker.previous is not None
    np.testing.assert_array_equal(tracker.previous.keypoints, frame(0, np.arange(150)).keypoints)
    np.testing.assert_array_equal(second.lengths, np.where(old, 2, 1))

    third = tracker.update(frame(2, np.arange(200)))
    expected = dict(zip(rows, second.track_ids, strict=True))
    assert all(third.track_ids[row] == expected[row] for row in rows)
    assert third.track_ids[:30].min() >= 180  # lost in frame 2: a new track, not the old id
    assert sorted(set(third.lengths)) == [1, 2, 3]


def test_a_match_off_the_epipolar_geometry_begins_a_new_track():
    moved = frame(1)
    points = moved.keypoints.copy()
    points[:20] += [9, -31]
    moved = Features(points, moved.scores, moved.descriptors, SIZE)
    for verify in (True, False):
        tracker = MatchTracker(verify=verify)
        before = tracker.update(frame(0)).track_ids
        after = tracker.update(moved)
        assert len(after) == 200
        kept = after.track_ids == before
        assert kept[20:].mean() > 0.97
        assert kept[:20].mean() < 0.3 if verify else kept.all()
        assert not set(after.track_ids[~kept]) & set(before)


@pytest.mark.parametrize(
    ("stamp", "restarts"),
    [
        (10_050_000_000, False),
        (10_000_000_000, False),
        (11_000_000_000, False),
        (11_000_000_001, True),
        (9_999_999_999, True),
    ],
)
def test_gaps_and_stamps_that_go_back_restart(stamp, restarts):
    tracker = MatchTracker()
    ids = tracker.update(frame(0), stamp_ns=10_000_000_000).track_ids
    matches = tracker.update(frame(1), stamp_ns=stamp)
    assert matches.restarted == restarts
    assert (len(matches) == 0) == restarts
    assert bool(set(ids) & set(matches.track_ids)) != restarts
    assert (tracker.previous is None) == restarts


def test_reset_size_and_dimension_restart():
    tracker = MatchTracker()
    tracker.update(frame(0))
    tracker.reset()
    assert tracker.update(frame(1)).restarted
    assert tracker.update(frame(1, size=(320, 240))).restarted
    other = frame(1, size=(320, 240))
    assert tracker.update(Features(other.keypoints, other.scores, NAMES[:, :16], (320, 240))).restarted


def test_empty_frames_are_frames():
    tracker = MatchTracker()
    tracker.update(frame(0))
    dark = tracker.update(Features.empty(SIZE, 32))
    assert not dark.restarted and len(dark) == 0 and dark.track_ids.shape == (0,)
    light = tracker.update(frame(1))
    assert not light.restarted and light.track_ids.min() == 200


def test_ids_wrap_below_the_limit_and_spare_the_living():
    tracker = MatchTracker()
    tracker._next_id = ID_LIMIT - 50
    first = tracker.update(frame(0, np.arange(40)))
    second = tracker.update(frame(1, np.arange(100)))
    np.testing.assert_array_equal(second.track_ids[:40], first.track_ids)
    assert second.track_ids.max() < ID_LIMIT and len(set(second.track_ids)) == 100
    tracker._next_id = int(second.track_ids[0]) - 3  # a whole round later the counter meets living ids
    third = tracker.update(frame(2, np.arange(150)))
    assert len(set(third.track_ids)) == 150
    np.testing.assert_array_equal(third.track_ids[:100], second.track_ids)


def test_weights_take_part_in_matching():
    weights = np.full(200, 2.0, np.float32)
    plain = frame(0)
    tracker = MatchTracker()
    tracker.update(Features(plain.keypoints, plain.scores, plain.descriptors, SIZE, weights))
    moved = frame(1)
    matches = tracker.update(Features(moved.keypoints, moved.scores, moved.descriptors, SIZE, weights))
    np.testing.assert_allclose(matches.similarity, 4, rtol=1e-5)


@pytest.mark.parametrize("bad", [{"ratio": 0}, {"threshold_px": -1}, {"max_gap_s": 0}])
def test_impossible_bounds_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MatchTracker(**bad)


def test_a_bound_at_its_end_is_taken():
    assert MatchTracker(ratio=1).ratio == 1
    tracker = MatchTracker()
    assert (tracker.min_similarity, tracker.ratio, tracker.threshold_px) == (None, None, 1.5)
    assert (tracker.max_gap_s, tracker.verify) == (1.0, True)


def noisy(step: float, seed: int) -> Features:
    """The frame with descriptors and positions that differ a little, some of them by much."""
    rng, seen = np.random.default_rng(seed), frame(step)
    descriptors = seen.descriptors + rng.normal(0, 0.08, NAMES.shape).astype(np.float32)
    points = seen.keypoints + rng.normal(0, 0.4, (200, 2)).astype(np.float32)
    points[:30] += rng.uniform(-40, 40, (30, 2)).astype(np.float32)
    return Features(points, seen.scores, descriptors, SIZE)


@pytest.mark.parametrize("bounds", [{}, {"min_similarity": 0.9}, {"ratio": 0.8}, {"threshold_px": 0.4}])
@pytest.mark.parametrize("lens", [None, Camera(np.array([[400.0, 0, 320], [0, 400, 240], [0, 0, 1]]), [], *SIZE)])
def test_matches_are_those_of_the_matcher_and_inliers_those_of_the_geometry(bounds, lens):
    tracker, frames = MatchTracker(**bounds), [noisy(0, 1), noisy(1, 2)]
    for features in frames:
        matches = tracker.update(features, camera=lens)
    index, index_prev, similarity = match_mutual(
        frames[1].descriptors, frames[0].descriptors, bounds.get("min_similarity"), bounds.get("ratio")
    )
    np.testing.assert_array_equal(matches.index, index)
    np.testing.assert_array_equal(matches.index_prev, index_prev)
    np.testing.assert_array_equal(matches.similarity, similarity)
    points = frames[0].keypoints[index_prev], frames[1].keypoints[index]
    np.testing.assert_array_equal(matches.inlier, epipolar_inliers(*points, lens, bounds.get("threshold_px", 1.5)))
    assert 0 < matches.inlier.sum() < len(matches)
    assert len(matches.sources) == 200 and (matches.sources == DETECTED).all() and matches.sources.dtype == np.uint8
    np.testing.assert_array_equal(np.flatnonzero(matches.lengths == 2), index[matches.inlier])
    assert tracker.current is frames[1] and tracker.previous is frames[0]


def test_lengths_count_the_frames_of_a_track():
    tracker = MatchTracker()
    for step in range(4):
        matches = tracker.update(frame(0.5 * step))
        np.testing.assert_array_equal(matches.lengths, np.full(200, step + 1))
        np.testing.assert_array_equal(matches.track_ids, np.arange(200))


def test_ids_start_again_after_the_last():
    tracker = MatchTracker()
    tracker._next_id = ID_LIMIT - 3
    assert tracker.update(frame(0, np.arange(5))).track_ids.tolist() == [ID_LIMIT - 3, ID_LIMIT - 2, ID_LIMIT - 1, 0, 1]
    tracker.reset()
    assert tracker.update(frame(0, np.arange(2))).track_ids.tolist() == [2, 3]


def test_an_unknown_time_is_no_gap():
    tracker = MatchTracker()
    tracker.update(frame(0), stamp_ns=5)
    assert not tracker.update(frame(1)).restarted
    assert not tracker.update(frame(1.5), stamp_ns=9_000_000_000).restarted
    assert tracker.update(frame(2), stamp_ns=10_000_000_001).restarted


@pytest.mark.parametrize(("gap", "restarts"), [(2_500_000_000, False), (2_500_000_001, True)])
def test_the_gap_that_ends_tracks_can_be_chosen(gap, restarts):
    tracker = MatchTracker(max_gap_s=2.5)
    tracker.update(frame(0), stamp_ns=0)
    assert tracker.update(frame(1), stamp_ns=gap).restarted == restarts


def test_trackers_by_name():
    assert TRACKERS == ("match", "flow", "hybrid")
    assert type(make_tracker("match", ratio=0.9)) is MatchTracker and make_tracker("match", ratio=0.9).ratio == 0.9
    for name, repair in (("flow", False), ("hybrid", True)):
        tracker = make_tracker(name, 77, verify=False)
        assert isinstance(tracker, HybridTracker)
        assert (tracker.max_points, tracker.repair, tracker.verify) == (77, repair, False)
    assert HybridTracker().max_points == CornerTracker().max_points == 1024
    with pytest.raises(ValueError, match="^tracker is 'orb', expected one of match, flow, hybrid$"):
        make_tracker("orb")


def table(count: int, seed: int) -> TrackTable:
    """Tracks with numbers of their own in every attribute."""
    rng = np.random.default_rng(seed)
    shapes = {"points": (count, 2), "descriptors": (count, 3)}
    return TrackTable(**{name: rng.random(shapes.get(name, count)) for name in TrackTable.__dataclass_fields__})


def test_rows_of_tables_stay_together():
    first, second = table(4, 1), table(3, 2)
    joined = TrackTable.join(first, TrackTable.empty(3), second)
    taken = joined.take(np.array([5, 0, 5]))
    assert (len(joined), len(taken), len(TrackTable.empty(7))) == (7, 3, 0)
    for name in TrackTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(joined, name)[:4], getattr(first, name))
        np.testing.assert_array_equal(getattr(joined, name)[4:], getattr(second, name))
        expected = [getattr(second, name)[1], getattr(first, name)[0], getattr(second, name)[1]]
        np.testing.assert_array_equal(getattr(taken, name), expected)
    taken.points[:] = 7
    assert not (joined.points == 7).any()
    np.testing.assert_array_equal(first.matchable_at(np.arange(4)), first.descriptors * first.weights[:, None])


def test_an_empty_table_has_the_types_of_its_attributes():
    empty = TrackTable.empty(5)
    assert empty.points.shape == (0, 2) and empty.descriptors.shape == empty.matchable_at(np.arange(0)).shape == (0, 5)
    kinds = {name: getattr(empty, name).dtype for name in TrackTable.__dataclass_fields__}
    whole = {"ids", "lengths", "unconfirmed", "slots", "seen"}
    assert {name for name in kinds if kinds[name] == np.int64} >= whole
    assert all(kinds[name] == np.float32 for name in kinds.keys() - whole if len(getattr(empty, name).shape))
    assert {len(getattr(empty, name)) for name in kinds} == {0}
