"""The judge of trajectories: structure from motion on tracks, repeats and their spread, the same frames for all."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("evo")

from driving import CAMERA, Scene, drive

from samfeat_ros.odometry.geometry import Pose
from samfeat_ros.replay.evaluation import trajectory
from samfeat_ros.replay.evaluation.figures import Figure
from samfeat_ros.replay.evaluation.metrics import Truth
from samfeat_ros.replay.evaluation.report import cells, judge_trajectories, where_classic_wins
from samfeat_ros.replay.evaluation.runs import Run, TrackedFrame
from samfeat_ros.replay.evaluation.trajectory import evaluate_trajectories, map_runs
from samfeat_ros.replay.evaluation.views import View, draw_tracks, views_of

FRAMES = 60

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="needs pycolmap")


def tracked(number: int, ids: np.ndarray, prev: np.ndarray, points: np.ndarray) -> TrackedFrame:
    every = np.ones(len(ids), bool)
    before = number - 1 if number else None
    return TrackedFrame(number, number, number, (640, 480), points, ids, prev, points, ids, every, before)


def driven(frames: int = FRAMES, dark: range = range(0), renamed: bool = False, **scene) -> list[View]:
    """Views of a drive. In the dark nothing is seen; after it tracks return under their ids, or `renamed`."""
    made, found = Scene(drive(frames), **scene), []
    nothing = np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, 2))
    for index in range(frames):
        ids, prev, points = nothing if index == 0 or {index, index - 1} & set(dark) else made.matches(index)
        found.append(tracked(index, ids + 100_000 * (renamed and index > dark.stop), prev, points))
    return views_of(found, lambda frame: CAMERA)


def world(frames: int = FRAMES) -> dict[int, np.ndarray]:
    return {index: pose.camera_to_world for index, pose in enumerate(drive(frames))}


def map_tracks(views: list[View], seed: int = 0) -> dict[int, np.ndarray]:
    """In a process of its own, as the judge does it: pycolmap takes the signal handlers of its process."""
    return _worker().submit(_map_tracks, views, seed).result()


@lru_cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


def _map_tracks(views: list[View], seed: int) -> dict[int, np.ndarray]:
    from samfeat_ros.replay.evaluation import mapping

    return mapping.map_tracks(views, CAMERA.focal, seed)


# ---- views ----


def test_a_match_places_its_track_in_both_of_its_frames():
    ids, prev, points = np.array([7, 3]), np.array([[320.0, 240], [720, 240]]), np.array([[320.0, 640], [0, 240]])
    frames = [tracked(0, ids[:0], prev[:0], prev[:0]), tracked(1, ids, prev, points)]
    frames[1].inlier[1] = False
    first, second = views_of(frames, lambda frame: CAMERA)
    assert (first.number, second.number) == (0, 1) and list(first.ids) == list(second.ids) == [7]
    np.testing.assert_allclose(first.rays, [[0, 0]])
    np.testing.assert_allclose(second.rays, [[0, 1]])
    (only,) = views_of(frames, lambda frame: CAMERA if frame.number else None)
    assert only.number == 1


def test_draws_are_random_and_prefer_long_tracks():
    """Ten tracks live through all frames, and each frame has 90 of its own."""
    long = np.arange(10)
    views = [View(n, np.concatenate([long, 1000 * (n + 1) + np.arange(90)]), np.zeros((100, 2))) for n in range(30)]
    draws = [draw_tracks(views, 20, seed) for seed in range(3)]
    for drawn in draws:
        assert [view.number for view in drawn] == list(range(30))
        assert all(20 <= len(view.ids) <= 30 and len(view.ids) == len(view.rays) for view in drawn)
        assert np.mean([len(np.intersect1d(view.ids, long)) for view in drawn]) > 9
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(draws[0], draw_tracks(views, 20, 0)))
    assert not all(np.array_equal(a.ids, b.ids) for a, b in zip(draws[0], draws[1]))
    assert draw_tracks([], 20, 0) == []


# ---- mapping ----


def errors(views: list[View], poses: dict[int, np.ndarray]) -> dict:
    (found,) = evaluate_trajectories([[poses]], [len(views)], world(len(views)))
    assert not isinstance(found, str), found
    return found.summary


@pytest.mark.parametrize(("noise", "ate_percent", "degrees"), [(0.0, 0.01, 0.002), (0.3, 0.3, 0.03)])
def test_a_known_drive(noise, ate_percent, degrees):
    views = driven(noise_px=noise)
    poses = map_tracks(views)
    summary = errors(views, poses)
    assert sorted(poses) == list(range(FRAMES)) and summary["tracking"] == FRAMES and summary["lost"] == 0
    assert summary["ate_percent"] < ate_percent and summary["rpe"]["1"]["rotation_mean_deg"] < degrees


def test_wrong_matches_do_little_harm():
    views = driven(outliers=0.2)
    assert errors(views, map_tracks(views))["ate_percent"] < 0.5


def test_the_same_input_gives_the_same_bits():
    views = driven(30)
    first, second = map_tracks(views), map_tracks(views)
    assert all(np.array_equal(first[number], second[number]) for number in first | second)


def test_tracks_that_return_hold_the_recording_together():
    """Five dark frames: nothing is seen in them, so they have no pose; on both sides it is one trajectory."""
    dark = range(25, 30)
    views = driven(dark=dark)
    poses = map_tracks(views)
    assert sorted(poses) == [number for number in range(FRAMES) if number not in dark]
    assert errors(views, poses)["ate_percent"] < 0.3


def test_where_all_tracks_end_the_longest_piece_counts():
    """No pose is guessed over the dark: the two pieces have no common scale."""
    poses = map_tracks(driven(dark=range(25, 30), renamed=True))
    assert sorted(poses) == list(range(30, FRAMES))


def test_nothing_to_map():
    assert map_tracks([]) == {} and map_tracks(driven(2)) == {}
    still = [View(number, np.arange(50), np.random.default_rng(0).random((50, 2))) for number in range(20)]
    assert map_tracks(still) == {}  # a camera that stands still has no first motion


# ---- repeats ----


def moved(truth: dict[int, np.ndarray], noise: float, seed: int, numbers=None) -> dict[int, np.ndarray]:
    """The truth in another place and scale, with noise on the positions."""
    rng, found = np.random.default_rng(seed), {}
    for number in truth if numbers is None else numbers:
        pose = truth[number].copy()
        pose[:3, 3] = 3 * (pose[:3, 3] + rng.normal(0, noise, 3)) + [1, 2, 3]
        found[number] = pose
    return found


def test_median_and_spread_over_the_repeats():
    truth = world()
    repeats = [moved(truth, noise, seed) for seed, noise in enumerate((0.01, 0.3, 0.1, 0.02, 0.2))]
    (found,) = evaluate_trajectories([repeats], [FRAMES], truth)
    summary = found.summary
    # noise of sigma on three axes, less the seven numbers of the alignment
    assert summary["ate_rmse_m"] == pytest.approx(0.1 * np.sqrt(3), rel=0.15)
    low, high = summary["spread"]["ate_rmse_m"]
    assert low == pytest.approx(0.01 * np.sqrt(3), rel=0.15) and high == pytest.approx(0.3 * np.sqrt(3), rel=0.15)
    assert summary["scale_from_ground_truth"] == pytest.approx(1 / 3, rel=0.01)
    assert summary["repeats"] == 5 and summary["failed_repeats"] == 0
    assert np.sqrt((found.errors**2).mean()) == pytest.approx(summary["ate_rmse_m"])
    assert summary["spread"]["rpe"]["10"]["rotation_mean_deg"] == pytest.approx([0, 0], abs=1e-4)


def test_all_runs_are_compared_over_the_same_frames():
    """One run is far off in frames that the other does not pose: there they are not compared."""
    truth = world()
    wild = moved(truth, 0.01, 0)
    for number in range(20):
        wild[number][:3, 3] += 50
    part = moved(truth, 0.01, 1, range(20, FRAMES))
    both = evaluate_trajectories([[wild] * 3, [part] * 3], [FRAMES, FRAMES], truth)
    assert [item.numbers for item in both] == [list(range(20, FRAMES))] * 2
    assert both[0].summary["ate_rmse_m"] < 0.05
    assert both[1].summary["tracking"] == 40 and both[1].summary["lost"] == 20


def test_a_run_without_enough_poses_has_a_reason_and_does_not_cost_the_others_their_frames():
    truth = world()
    few, half = moved(truth, 0.01, 0, range(5)), moved(truth, 0.01, 0, range(25))
    whole = [moved(truth, 0.01, 1)] * 3
    found = evaluate_trajectories([[few] * 3, [half] * 3, "a reason", whole], [FRAMES] * 4, truth)
    assert found[0] == "5 frames have both a pose and ground truth; expected 10 or more"
    assert found[1] == "25 of 60 frames have a pose; expected half of them"
    assert found[2] == "a reason" and found[3].numbers == list(range(FRAMES))


def test_repeats_that_fail_are_counted():
    truth = world()
    good, bad = moved(truth, 0.01, 0), moved(truth, 0.01, 0, range(12))
    (found,) = evaluate_trajectories([[good, bad, good]], [FRAMES], truth)
    assert found.summary["failed_repeats"] == 1 and found.summary["spread"]["lost"] == [0, 48]
    still = {number: np.eye(4) for number in range(FRAMES)}
    (reason,) = evaluate_trajectories([[still] * 3], [FRAMES], truth)
    assert reason == "3 of 3 repeats cannot be aligned with the ground truth"


def test_runs_are_mapped_in_processes_of_their_own():
    done = []
    views = driven(20)
    broken = [View(0, "no ids", views[0].rays)]
    found = map_runs([views, broken], CAMERA.focal, 2, lambda: done.append(1))
    assert [sorted(poses) for poses in found[0]] == [list(range(20))] * 2
    assert isinstance(found[1], str) and "\n" not in found[1]
    assert len(done) == 2


def test_without_pycolmap_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = Run("lk", "classic", 0)
    found = judge_trajectories([run, run], SimpleNamespace(camera=CAMERA), Truth(world(), 0.01))
    assert found == ["pycolmap is not installed (pip install pycolmap)"] * 2
    assert trajectory.why_not() == found[0]


# ---- no winner inside the spread ----


def entry(name: str, kind: str, ate: float, low: float, high: float) -> dict:
    return {"name": name, "kind": kind, "trajectory": {"ate_rmse_m": ate, "spread": {"ate_rmse_m": [low, high]}}}


@pytest.mark.parametrize(("low", "high", "wins"), [(0.2, 0.24, True), (0.2, 0.26, False), (0.2, 0.25, False)])
def test_no_winner_inside_the_spread(low, high, wins):
    line = Figure("trajectory.ate_rmse_m", "ATE", "{:.2f}", min)
    report: dict = {"runs": [entry("nano", "model", 0.3, 0.25, 0.4), entry("lk", "classic", 0.22, low, high)]}
    report["settings"] = {"gaps": [1]}
    assert cells(line, report) == [("0.30 (0.25 to 0.40)", False), (f"0.22 ({low:.2f} to {high:.2f})", wins)]
    for item in report["runs"]:
        item.update(frames_offered=1)
    lost = [text for text in where_classic_wins(report) if text.startswith("ATE rmse")]
    # printed to three digits
    assert lost == ([f"ATE rmse, m (scaled): lk 0.220 ({low:.3f} to {high:.3f}), best model 0.300 (0.250 to 0.400)"]
                    if wins else [])  # fmt: skip


def test_pose_of_the_first_view_is_the_origin():
    poses = map_tracks(driven(20))
    np.testing.assert_allclose(poses[0], Pose().camera_to_world, atol=1e-6)
