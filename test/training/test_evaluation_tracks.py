"""The tracks suite against footage whose truth is known in closed form."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from samfeat_core.classic import CLASSIC
from samfeat_core.track_truth import depth_at
from samfeat_core.tracking import DETECTED, RECOVERED, CornerTracker, HybridTracker
from training.evaluation.tracks.footage import Footage, apply_homography, shortened
from training.evaluation.tracks.front_ends import FrontEnd, Run, TrackedFrame, front_ends
from training.evaluation.tracks.measures import (
    epipolar_error,
    mean_length,
    measure,
    pose_accuracy,
    returns,
    shared_tracks,
    true_places,
)
from training.evaluation.tracks.stress import BLUR_PX, EXPOSURE, STRESSES
from training.evaluation.tracks.suite import TrackTask, track_tasks

SIZE = (160, 120)
MATRIX = np.array([[120.0, 0, 79.5], [0, 120.0, 59.5], [0, 0, 1]])
NEAR, FAR = 2.0, 4.0  # metres: the left and the right half of what the first camera sees
STEP = 0.05  # metres to the right a frame: 3 px of the near half, 1.5 px of the far one
FRAMES = 40
NOISE = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (120, 160, 3)).astype(np.float32), (0, 0), 2)
PICTURE = cv2.normalize(NOISE, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def depth(frame: int) -> np.ndarray:
    edge = 80 - 3.0 * frame  # the near half leaves to the left
    return np.where(np.arange(SIZE[0]) < edge, NEAR, FAR).astype(np.float32)[None].repeat(SIZE[1], 0)


def footage(**options) -> Footage:
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 3] = STEP * np.arange(FRAMES)
    stamps = tuple(round(frame * 5e7) for frame in range(FRAMES))
    return Footage("halves", MATRIX, poses, SIZE, stamps, lambda frame: PICTURE, **{"depth": depth, **options})


def tracked(points: np.ndarray, ids: np.ndarray, before: np.ndarray | None = None, sources=None) -> TrackedFrame:
    nothing = np.zeros((0, 2))
    sources = np.full(len(ids), DETECTED) if sources is None else sources
    return TrackedFrame(
        ids, points, sources, nothing if before is None else before, nothing if before is None else points
    )


START = np.random.default_rng(3).uniform((100, 5), (150, 110), (40, 2))  # far, and in sight for 40 frames


def perfect(drift: float = 0.0) -> Run:
    """Tracks of the far half, which move 1.5 px a frame, and drift downwards."""
    places = [START + frame * np.array([-1.5, drift]) for frame in range(FRAMES)]
    ids = np.arange(40)
    frames = [tracked(places[0], ids), *(tracked(now, ids, before) for before, now in zip(places, places[1:]))]
    return Run(frames, [1.0, 3.0])


def test_points_are_carried_by_their_depth_and_hidden_by_what_is_nearer():
    points = np.array([[20.0, 60.0], [120.0, 60.0], [85.0, 60.0], [2.0, 60.0]])
    there, visible = footage().carry(points, 0, 4)
    np.testing.assert_allclose(there, [[8, 60], [114, 60], [79, 60], [-10, 60]], atol=1e-9)
    np.testing.assert_array_equal(visible, [True, True, True, False])
    _, back = footage().carry(np.array([[72.0, 60.0]]), 4, 0)  # far, behind the near half four frames before
    assert not back[0]
    np.testing.assert_array_equal(
        footage().on_silhouette(np.array([[79.0, 9], [84, 9], [86, 9], [40, 9]]), 0), [1, 1, 0, 0]
    )


def test_depth_between_pixels_is_that_of_the_plane_and_never_between_two():
    x = np.arange(30.0)
    plane = (1 / (0.2 + 0.002 * x))[None].repeat(20, 0).astype(np.float32)  # inverse depth is linear in pixels
    at = np.array([[4.25, 3.5], [17.9, 8.1], [-0.1, 3], [29.1, 3]])
    np.testing.assert_allclose(depth_at(plane, at), [1 / 0.2085, 1 / 0.2358, 0, 0], rtol=1e-5)
    plane[:, 15:] = 9
    np.testing.assert_allclose(depth_at(plane, np.array([[14.4, 3.0], [14.6, 3.0]])), [plane[0, 14], 9], rtol=1e-5)


def test_perfect_tracks_have_perfect_figures():
    numbers = measure(perfect(), footage(), 1.0)
    assert numbers["points"] == 40 and numbers["length"] == FRAMES and numbers["tracker_ms"] == 2.0
    assert numbers["shared"] == {"5": 40, "10": 40, "20": 40}
    assert numbers["epipolar_px"] < 1e-6
    twenty = numbers["ages"]["20"]
    assert twenty["tracks"] == 40 and twenty["survival"] == 100 and twenty["median_px"] < 1e-6
    assert twenty["within"] == {"1": 100, "2": 100, "4": 100} and numbers["false_recoveries"] is None


def test_drift_shows_by_age_and_across_the_epipolar_lines():
    run = perfect(drift=0.15)
    ages = true_places(run, footage())["ages"]
    assert ages["5"]["within"] == {"1": 100, "2": 100, "4": 100}
    assert ages["10"]["within"] == {"1": 0, "2": 100, "4": 100}
    assert ages["20"]["within"] == {"1": 0, "2": 0, "4": 100}
    assert ages["20"]["median_px"] == pytest.approx(3.0)
    assert epipolar_error(run, footage()) == pytest.approx(0.15)


def test_tracks_that_end_are_shared_and_alive_as_long_as_they_last():
    run = perfect()
    frames = [
        tracked(f.points[:10] if n > 7 else f.points, f.ids[:10] if n > 7 else f.ids) for n, f in enumerate(run.frames)
    ]
    cut = Run(frames, [1.0])
    starts = range(0, FRAMES - 5, 3)
    assert shared_tracks(cut, 5) == pytest.approx(np.mean([40 if start + 5 <= 7 else 10 for start in starts]))
    assert mean_length(cut) == pytest.approx((10 * FRAMES + 30 * 8) / 40)
    ages = true_places(cut, footage())["ages"]
    assert ages["5"]["survival"] == 100 and ages["10"]["survival"] == 25 and ages["10"]["tracks"] == 10
    once = Run([tracked(START, np.arange(40) + 40 * n) for n in range(5)], [1.0])
    assert mean_length(once) is None  # tracks of one frame are no tracks


def test_poses_come_from_the_shared_tracks():
    world = np.random.default_rng(5).uniform([-2, -1.5, 3], [2, 1.5, 8], (100, 3))
    frames = []
    for frame in range(FRAMES):
        seen = world - [STEP * frame, 0, 0]
        frames.append(tracked(seen[:, :2] / seen[:, 2:] * 120 + [79.5, 59.5], np.arange(100)))
    assert pose_accuracy(Run(frames), footage(), 10, 1.0)["5"] > 99
    few = Run([tracked(f.points[:4], f.ids[:4]) for f in frames])
    assert pose_accuracy(few, footage(), 10, 1.0) == {"5": 0, "10": 0, "20": 0}


def test_what_comes_back_after_the_dark_and_where():
    dark = STRESSES["dark 3"](footage())
    assert dark.events == ((14, 18),) and not dark.image(15).any() and not dark.image(17).any()
    assert dark.image(14).any() and dark.image(18).any() and dark.hidden(16).all() and dark.hidden(18) is None
    frames = perfect().frames
    for number in range(15, FRAMES):
        if number < 18:
            frames[number] = tracked(np.zeros((0, 2)), np.zeros(0, int))
        else:  # ten never return, four are 5 px off
            points = frames[number].points[10:].copy()
            points[:4, 1] += 5
            frames[number] = tracked(
                points, np.arange(10, 40), sources=np.full(30, RECOVERED if number == 18 else DETECTED)
            )
    run = Run(frames, [1.0])
    found = returns(run, dark)
    assert found["back"] == pytest.approx(75) and found["back_right"] == pytest.approx(100 * 26 / 30)
    places = true_places(run, dark)
    assert places["recovered"] == 30 and places["false_recoveries"] == pytest.approx(100 * 4 / 30)
    without = returns(run, STRESSES["dark 3"](footage(depth=None)))
    assert without["back"] == pytest.approx(75) and without["back_right"] == pytest.approx(100 * 26 / 30)


def test_stress_does_what_it_says_and_truth_follows():
    plain = footage()
    assert STRESSES["dark 10"](plain).events == ((14, 25),)
    blurred = STRESSES["blur"](plain)
    assert np.array_equal(blurred.image(0), PICTURE) and blurred.image(1).std() < 0.8 * PICTURE.std() and BLUR_PX == 13
    dropped = STRESSES["dropped"](plain)
    assert len(dropped) == 27 and dropped.stamps_ns[:4] == tuple(round(n * 5e7) for n in (0, 1, 3, 4))
    np.testing.assert_allclose(dropped.motion(1, 2)[0, 3], -2 * STEP)
    np.testing.assert_array_equal(dropped.depth(2), depth(3))
    exposed = STRESSES["exposure"](plain)
    assert exposed.image(20).mean() == pytest.approx(PICTURE.mean() / EXPOSURE, abs=1)
    occluded = STRESSES["occluder"](plain)
    assert occluded.hidden(7).mean() == pytest.approx(0.25) and not np.array_equal(occluded.image(7), PICTURE)
    _, visible = occluded.carry(START, 0, 15)
    _, open_wall = plain.carry(START, 0, 15)
    assert open_wall.all() and 0 < visible.sum() < len(START)


def test_truth_turns_with_the_rolled_image():
    rolled = STRESSES["roll and zoom"](footage())
    points = np.array([[110.0, 60.0], [90.0, 50.0]])
    seen = apply_homography(rolled.warp(3), points)
    there, _ = rolled.carry(seen, 3, 9)
    np.testing.assert_allclose(there, apply_homography(rolled.warp(9), points - [9, 0]), atol=1e-6)
    mark = np.zeros((*SIZE[::-1], 3), np.uint8)
    mark[48:53, 88:93] = 255
    picture = STRESSES["roll and zoom"](replace(footage(), image=lambda _: mark))
    y, x = np.nonzero(picture.image(9)[..., 0] > 127)
    np.testing.assert_allclose([x.mean(), y.mean()], apply_homography(rolled.warp(9), points[1:])[0], atol=0.5)
    assert "epipolar_px" not in measure(perfect(), rolled, 1.0)  # no one camera matrix


def test_front_ends_are_ours_and_the_classic_ones():
    def extractor(image):
        raise AssertionError

    assert list(front_ends({"ours": extractor}, 100)) == ["ours match", "ours flow", "ours hybrid"]
    chosen = front_ends({"ours": extractor, "orb": extractor}, 100)
    assert list(chosen)[3:] == ["orb match", "corners", "corners vins"]
    vins, hybrid = chosen["corners vins"].tracker(), chosen["ours hybrid"].tracker()
    assert isinstance(vins, CornerTracker) and (vins.max_points, vins.spacing) == (150, 30.0)
    assert isinstance(hybrid, HybridTracker) and hybrid.max_points == 100


def test_a_front_end_runs_over_footage_and_a_task_reports_it():
    task = TrackTask("tracks", "halves", 6, lambda: shortened(footage(), 6), {"max_keypoints": 80, "threshold_px": 1.0})
    entrants = task.entrants({"orb": CLASSIC["orb"](80)})
    result = task.run("orb match", entrants["orb match"])
    assert (result["suite"], result["dataset"], result["kind"], result["pairs"]) == ("tracks", "halves", "tracks", 6)
    assert 20 < result["points"] <= 80 and result["length"] == pytest.approx(6, abs=1)  # the picture stands still
    assert isinstance(entrants["corners"], FrontEnd)


def test_the_suite_is_sequences_whole_thinned_and_stressed_and_flights(tmp_path):
    folder = tmp_path / "hall"
    (folder / "image").mkdir(parents=True)
    for index in range(7):
        cv2.imwrite(str(folder / "image" / f"{index:06d}.png"), PICTURE)
    (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n" * 7)
    (folder / "calib.txt").write_text("P0: 120 0 79.5 0 0 120 59.5 0 0 0 1 0\n")
    (tmp_path / "notes").mkdir()
    names = [task.dataset for task in track_tasks(tmp_path, 100, 1.0)]
    assert names[:4] == ["hall", "hall/2", "hall/3", "hall/5"]
    stressed = [f"{place} {stress}" for place in ("hall", "room", "street") for stress in STRESSES]
    assert set(names[4:]) == {"room", "street", *stressed} and len(names) == len(set(names))
    thinned = track_tasks(tmp_path, 100, 1.0, every=3)[0]
    assert thinned.dataset == "hall/3" and thinned.frames == len(thinned.footage) == 3
    assert track_tasks(tmp_path / "nowhere", 100, 1.0)[0].dataset == "room"
