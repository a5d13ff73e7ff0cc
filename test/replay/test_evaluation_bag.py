"""The parts of evaluate_bag: footage, classic front-ends, metrics, trajectory, report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("rclpy")

import bag_maker
from bag_maker import FOCAL, HEIGHT, SHIFT_PX, WIDTH, write_bag
from driving import CAMERA, Scene, drive

from samfeat_core.errors import FileError
from samfeat_core.files import write_json
from samfeat_core.poses import relative_pose
from samfeat_ros.image_input import image_from_msg
from samfeat_ros.replay.evaluation import classic, metrics, tables
from samfeat_ros.replay.evaluation import footage as footage_module
from samfeat_ros.replay.evaluation import trajectory as trajectory_module
from samfeat_ros.replay.evaluation.calibration import read_calibration
from samfeat_ros.replay.evaluation.classic import run_classic
from samfeat_ros.replay.evaluation.footage import Footage, FootageError
from samfeat_ros.replay.evaluation.image_cache import ImageCache
from samfeat_ros.replay.evaluation.metrics import Truth, coverage, summarize_tracks, track_lengths
from samfeat_ros.replay.evaluation.page import write_page
from samfeat_ros.replay.evaluation.report import (
    Evaluated,
    build_report,
    evaluate_run,
    rows,
    text_table,
    where_classic_wins,
)
from samfeat_ros.replay.evaluation.runs import Run, TrackedFrame
from samfeat_ros.replay.evaluation.trajectory import evaluate_trajectories
from samfeat_ros.replay.recording import Recording
from samfeat_ros.stamps import cdr_stamp_ns, stamp_to_ns

TRUTH = {
    index: np.array([[1, 0, 0, index * SHIFT_PX * bag_maker.DEPTH / FOCAL], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for index in range(12)
}


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Footage:
    return Footage(Recording(write_bag(tmp_path_factory.mktemp("bag") / "wall")))


# ---- footage ----


def test_footage_of_a_good_bag(footage):
    assert footage.problems == [] and not footage.refused
    assert [frame.number for frame in footage.frames] == list(range(12))
    assert footage.duration_s == pytest.approx(1.1)
    assert footage.camera is not None and footage.camera.focal == FOCAL
    for (info, image), (same, message) in zip(footage.images(), footage.messages()):
        np.testing.assert_array_equal(image, bag_maker.picture(info.number))
        assert same == info and message.camera_info is not None


@pytest.mark.parametrize("kept", [12, 5, 0])
def test_images_are_decoded_once_as_far_as_the_cache_goes(tmp_path, monkeypatch, evaluated, kept):
    """Looking through, three front-ends and the page: one decoding of each image that is kept."""
    decoded: Counter[int] = Counter()

    def count(message, full_scale):
        decoded[stamp_to_ns(message.header.stamp)] += 1
        return image_from_msg(message, full_scale)

    monkeypatch.setattr(footage_module, "image_from_msg", count)
    monkeypatch.setattr(footage_module, "ImageCache", partial(ImageCache, kept * WIDTH * HEIGHT))
    footage = Footage(Recording(write_bag(tmp_path / "bag")))
    for name in classic.FRONT_ENDS:
        run_classic(name, footage, 100, None)
    write_page(build_report(footage, None, None, evaluated, {}, SETTINGS), evaluated, footage, tmp_path / "page.html")
    assert sorted(decoded) == [frame.stamp_ns for frame in footage.frames]
    counts = [decoded[frame.stamp_ns] for frame in footage.frames]
    assert counts[:kept] == [1] * kept
    if kept < 12:  # the others again for each of them
        assert set(counts[kept:]) == {5}
    numbers = [2, 4, 7, 11]
    for number, (frame, image) in zip(numbers, footage.images(numbers), strict=True):
        assert frame.number == number
        np.testing.assert_array_equal(image, bag_maker.picture(number))
    footage.close()


def test_the_image_cache_stops_where_it_is_full():
    images = [np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed, shape in
              enumerate([(4, 6), (4, 6, 3), (2, 3), (5, 5), (1, 1)])]  # fmt: skip
    cache = ImageCache(limit_bytes=110)
    for image in images:
        cache.append(image)
    assert len(cache) == 3  # the fourth does not fit, and none is kept behind a gap
    for index in range(3):
        np.testing.assert_array_equal(cache[index], images[index])
    cache.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device of Linux on which every write fails")
def test_the_image_cache_stops_where_the_disk_is_full():
    cache = ImageCache()
    cache.append(np.zeros((2, 2), np.uint8))
    cache._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    cache.append(np.zeros((2, 2), np.uint8))
    cache.append(np.zeros((2, 2), np.uint8))
    assert len(cache) == 1
    cache.close()


def test_frames_of_two_sizes_are_stated(tmp_path):
    images = [bag_maker.image(i, bag_maker.picture(i, 120, 100) if i >= 4 else None) for i in range(6)]
    footage = Footage(Recording(write_bag(tmp_path / "bag", images=images)))
    assert "several sizes: 240x180 (4), 120x100 (2)" in " ".join(footage.problems)
    assert set(footage.cameras) == {0, 1, 2, 3} and footage.cameras[0] is footage.cameras[3] is footage.camera
    run = run_classic("orb", footage, 200, None)
    assert run.frames[4].number_prev is None and run.frames[5].number_prev == 4


def test_images_that_cannot_be_used_are_counted(tmp_path):
    images = [bag_maker.image(i) for i in range(6)]
    images[1].encoding = "nonsense"
    images[2].step = 5
    images[3].height = images[3].width = 0
    images[4].data = images[4].data[:100]
    footage = Footage(Recording(write_bag(tmp_path / "bag", images=images)))
    assert [frame.number for frame in footage.frames] == [0, 5]
    assert sum(footage.refused.values()) == 4 and "4 of 6 images are refused" in " ".join(footage.problems)
    for broken in images:
        broken.step = 1
    with pytest.raises(FootageError, match="no image of /camera/image_raw can be used"):
        Footage(Recording(write_bag(tmp_path / "worse", images=images)))


def test_repeated_stamps_are_replaced(tmp_path):
    images = [bag_maker.image(i, stamp_ns=0) for i in range(5)]
    footage = Footage(Recording(write_bag(tmp_path / "bag", images=images)))
    stamps = [frame.stamp_ns for frame in footage.frames]
    assert len(set(stamps)) == 5 and stamps == sorted(stamps)
    assert any("stamps repeat" in line for line in footage.problems)
    assert [cdr_stamp_ns(message.image) for _, message in footage.messages()] == stamps


def test_no_camera_info_is_stated_and_a_file_replaces_it(tmp_path):
    path = write_bag(tmp_path / "bag", with_camera=False)
    footage = Footage(Recording(path))
    assert footage.camera is None and "no CameraInfo" in footage.problems[0]
    file = tmp_path / "camera.yaml"
    file.write_text(
        f"image_width: {WIDTH}\nimage_height: {HEIGHT}\ncamera_name: x\n"
        "camera_matrix: {rows: 3, cols: 3, data: [300, 0, 100, 0, 310, 90, 0, 0, 1]}\n"
        "distortion_model: plumb_bob\ndistortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0, 0, 0, 0]}\n"
    )
    footage = Footage(Recording(path), camera_info=file)
    assert footage.camera is not None and footage.camera.matrix[1, 1] == 310 and footage.camera.distortion[0] == 0.1
    assert all(message.camera_info for _, message in footage.messages())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("image_width: 3", "'image_height' is missing"), ("[", "not a file of camera_calibration"),
     ("hello", "not a file of camera_calibration"), (None, "No such file"),
     ("{image_width: 1, image_height: 1, camera_matrix: {data: [1]}}", "camera_matrix has 1 numbers, expected 9")],
)  # fmt: skip
def test_wrong_calibration_files(tmp_path, text, expected):
    file = tmp_path / "camera.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(FileError, match=expected) as error:
        read_calibration(file)
    assert str(file) in str(error.value)


# ---- classic front-ends ----


@pytest.mark.parametrize("name", ["orb", "sift", "lk"])
def test_classic_front_ends_follow_the_wall(footage, name):
    run = run_classic(name, footage, 300, None)
    assert len(run.frames) == 12 and not run.dropped
    for frame in run.frames:
        assert 20 < len(frame.keypoints) <= 300 and len(np.unique(frame.ids)) == len(frame.ids)
        assert np.isfinite(frame.latency_s)
    for frame in run.frames[1:]:
        assert frame.number_prev == frame.number - 1
        motion = np.median(frame.points[frame.inlier] - frame.points_prev[frame.inlier], axis=0)
        np.testing.assert_allclose(motion, [-SHIFT_PX, 0], atol=0.3)
        assert frame.inlier.mean() > 0.8
    evaluated = evaluate_run(run, footage, Truth(TRUTH, 0.01), [1, 5])
    assert evaluated.entry["epipolar"]["pairs"] == 11
    assert evaluated.entry["epipolar"]["inliers"]["median_px"] < 0.5
    assert evaluated.entry["relative_pose"]["1"]["pairs"] == 11


@pytest.mark.parametrize("name", ["orb", "lk"])
def test_classic_front_ends_take_the_checks_of_the_node(footage, name):
    def inliers(**checks):
        return sum(frame.inlier.sum() for frame in run_classic(name, footage, 300, None, **checks).frames)

    assert inliers(threshold_px=0.01) < inliers()
    assert all(frame.number_prev is None for frame in run_classic(name, footage, 300, None, max_gap_s=1e-3).frames)


def test_footage_of_a_12_bit_camera(tmp_path):
    pixels = [(16 * bag_maker.picture(index).astype("<u2")).view(np.uint8) for index in range(2)]
    images = [replace(bag_maker.image(i), encoding="mono16", step=2 * WIDTH, data=pixels[i].ravel()) for i in range(2)]
    path = write_bag(tmp_path / "bag", images=images)
    for full_scale, brightest in ((65535, 16), (4095, 255)):
        footage = Footage(Recording(path), full_scale_16bit=full_scale)
        values = [picture.max() for _, picture in footage.images()]
        assert max(values) <= brightest and min(values) > 0.7 * brightest


@pytest.mark.parametrize("name", ["orb", "sift", "lk"])
def test_classic_front_ends_are_repeatable(footage, name):
    assert run_classic(name, footage, 100, None).digest() == run_classic(name, footage, 100, None).digest()


def test_a_slow_front_end_drops_frames_at_the_recorded_rate(footage, monkeypatch):
    """At 10 Hz, 0.26 s of work a frame: the newest waiting frame wins, and waits."""

    class Slow:
        def __init__(self, *settings) -> None:
            pass

        def __call__(self, image, info, camera):
            none = np.zeros((0, 2), np.float32)
            ids = np.zeros(0, np.int64)
            size = info.size
            frame = TrackedFrame(
                info.number, info.stamp_ns, info.time_ns, size, none, ids, none, none, ids, ids.astype(bool), None
            )
            return frame, {"work": 0.26}

    monkeypatch.setitem(classic.FRONT_ENDS, "slow", ("made up", Slow))
    run = run_classic("slow", footage, 100, 1.0)
    assert [frame.number for frame in run.frames] == [0, 2, 5, 7, 10, 11]
    assert run.dropped == {"superseded": 6}
    assert [frame.latency_s for frame in run.frames][:3] == pytest.approx([0.26, 0.32, 0.28])
    assert len(run_classic("slow", footage, 100, 0.1).frames) == 12


# ---- metrics ----


def _tracked(number: int, ids: list[int], points=None, prev=None, inlier=None) -> TrackedFrame:
    points = np.zeros((0, 2), np.float32) if points is None else np.array(points, np.float32)
    prev = points if prev is None else np.array(prev, np.float32)
    keypoints = points if len(points) == len(ids) else np.zeros((len(ids), 2), np.float32)
    match_ids = np.arange(len(points))
    inlier = np.ones(len(points), bool) if inlier is None else np.array(inlier)
    before = number - 1 if number else None
    return TrackedFrame(
        number, number, number, (640, 480), keypoints, np.array(ids), prev, points, match_ids, inlier, before
    )


def test_track_lengths_and_survival():
    frames = [_tracked(0, [1, 2, 3]), _tracked(1, [1, 2, 4]), _tracked(2, [1, 4]), _tracked(3, [2])]
    assert sorted(track_lengths(frames)) == [1, 1, 2, 2, 3]  # id 2 pauses: two tracks
    summary = summarize_tracks(frames)
    assert summary["count"] == 3 and summary["never_matched"] == 2  # a keypoint that never matched is no track
    assert summary["survival"] == {"2": 1.0, "3": pytest.approx(1 / 3)}
    assert summary["alive"] == {"1": pytest.approx((2 + 2 + 0) / 3), "2": pytest.approx((1 + 1) / 2), "3": 1.0}
    assert summarize_tracks([])["count"] == 0 and summarize_tracks([])["alive"] == {}


def test_points_of_a_dropped_frame_are_not_alive():
    frames = [_tracked(0, [1, 2]), _tracked(2, [1, 2])]
    assert metrics.points_alive(frames) == {"1": 0.0, "2": 2.0}


def test_a_blackout_shows_in_every_figure():
    """Eight of 24 frames without a match: counted as zero, not left out."""
    grid = np.stack(np.meshgrid(np.linspace(20, 620, 24), np.linspace(20, 460, 18)), -1).reshape(-1, 2)
    frames = []
    for number in range(24):
        dark = 10 <= number < 18
        frame = _tracked(number, [] if dark else list(range(len(grid))), None if dark else grid)
        frames.append(replace(frame, number_prev=None if dark or not number else number - 1))
    bright = metrics.summarize(Run("x", "classic", 10, frames[:10]))
    entry = metrics.summarize(Run("x", "classic", 24, frames, cpu_percent=50.0, seconds=2.4))
    assert bright["coverage"]["inliers"] == 1 and bright["without_match"] == {"frames": 0, "in_a_row": 0}
    assert entry["coverage"]["inliers"] == pytest.approx(15 / 23)
    assert entry["inliers"]["p5"] == 0 and entry["inliers"]["mean"] == pytest.approx(432 * 15 / 23)
    assert entry["matches"]["mean"] == pytest.approx(432 * 15 / 23)
    assert entry["inlier_ratio"]["mean"] == pytest.approx(15 / 23)
    assert entry["without_match"] == {"frames": 8, "in_a_row": 8}
    assert entry["cpu_ms_per_frame"] == pytest.approx(50.0)  # 1.2 s of CPU over 24 frames


def test_coverage():
    assert coverage(np.zeros((0, 2)), (640, 480)) == 0
    assert coverage(np.array([[-0.5, -0.5], [0, 0], [639.4, 479.4]]), (640, 480)) == pytest.approx(2 / 108)
    grid = np.stack(np.meshgrid(np.arange(640), np.arange(480)), -1).reshape(-1, 2)
    assert coverage(grid, (640, 480)) == 1


def test_epipolar_errors_under_true_motion():
    """Exact matches have none; a match moved off its line by d pixels has about d."""
    scene = Scene(drive(10), noise_px=0.0)
    ids, prev, points = scene.matches(9)
    motion = relative_pose(scene.poses[8].camera_to_world, scene.poses[9].camera_to_world)
    exact = metrics.epipolar_errors(_tracked(9, list(ids), points, prev), motion, CAMERA)
    assert np.nanmax(exact) < 1e-3
    sideways = np.eye(4)  # epipolar lines are rows
    sideways[0, 3] = 1.0
    moved = metrics.epipolar_errors(_tracked(1, [0], [[300, 202]], [[310, 200]]), sideways, CAMERA)
    np.testing.assert_allclose(moved, 2.0, rtol=1e-6)


def test_short_baselines_do_not_count():
    truth = Truth(TRUTH, min_baseline_m=0.1)
    assert truth.motion(0, 1) is None and truth.motion(0, 2) is not None and truth.motion(0, 99) is None
    motion = truth.motion(0, 2)
    np.testing.assert_allclose(motion[:3, 3], [-2 * SHIFT_PX * bag_maker.DEPTH / FOCAL, 0, 0])


def test_unsolved_pairs_count_as_failed():
    frames = [_tracked(0, [1, 2]), _tracked(1, [1, 2])]
    errors = metrics.relative_pose_errors(frames, Truth(TRUTH, 0.01), dict.fromkeys(range(9), CAMERA), [1, 7])
    assert errors[1] == {0: None}
    result = metrics.summarize_relative_poses(errors)
    assert result["1"]["solved"] == 0 and result["1"]["rotation_deg"]["p50"] == metrics.FAILED_DEG and "7" not in result


# ---- report ----


@pytest.fixture(scope="module")
def evaluated(footage) -> list[Evaluated]:
    runs = [run_classic(name, footage, 200, None) for name in ("orb", "lk")]
    runs[0].kind, runs[0].name = "model", "mo<del>"
    return [evaluate_run(run, footage, Truth(TRUTH, 0.01), [1, 5]) for run in runs]


SETTINGS = {"rate": "max", "keypoints": 200, "gaps": [1, 5], "tolerance_s": 0.1}


def test_report_is_strict_json_with_its_keys(footage, evaluated, tmp_path):
    report = build_report(footage, None, None, evaluated, {"x": "why"}, SETTINGS)
    report["runs"][0]["latency_ms"]["p99"] = float("nan")
    write_json(tmp_path / "report.json", report)
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read["format"] == "samfeat_ros/evaluate_bag" and read["version"] == 2
    assert read["bag"]["usable"] == 12 and read["failures"] == {"x": "why"}
    assert read["runs"][0]["latency_ms"]["p99"] is None
    assert len(read["runs"][1]["per_frame"]["inliers"]) == 12


SPREAD = {"mean", "median", "p5"}
RANKS = {"p50", "p90", "p99"}
KEYS = {
    "name", "kind", "details", "frames_offered", "frames_processed", "frames_dropped", "dropped", "rate_hz", "seconds",
    "latency_ms", "stages_ms", "cpu_percent", "cpu_ms_per_frame", "without_match",
    "memory_mb", "device_memory_mb", "keypoints", "matches", "inliers", "inlier_ratio",
    "coverage", "tracks", "epipolar", "relative_pose", "trajectory", "track_truth", "per_frame", "digest",
}  # fmt: skip
GAPS = ("rotation p50, deg", "rotation p90, deg", "direction p50, deg", "direction p90, deg")
LINES = [
    "frames received", "frames processed", "frames dropped", "rate, Hz", "latency p50, ms",
    "latency p90, ms", "latency p99, ms",
    "CPU, ms a frame", "memory, MB", "device memory, MB", "keypoints", "matches", "inliers", "inliers, worst 5 %",
    "frames without a match", "inlier ratio", "coverage by inliers", "track length, mean",
    "points alive 10 frames later", "points alive 20 frames later", "epipolar error, median px",
    "matches within 1 px", "matches within 3 px", *(f"gap {gap}: {line}" for gap in (1, 5) for line in GAPS),
    "frames with a pose", "frames without a pose", "ATE rmse, m (scaled)", "ATE, % of the path",
    "RPE 1 frame: position, m", "RPE 1 frame: rotation, deg", "RPE 10 frames: position, m",
    "RPE 10 frames: rotation, deg",
]  # fmt: skip


def test_a_run_of_which_all_is_known_fills_every_line_and_key():
    """Keys and lines are those of docs/evaluate_bag.md; a value under another name would be missing in silence."""
    truth, scene, frames = drive(60), Scene(drive(60)), []
    for index in range(1, 60):
        ids, prev, points = scene.matches(index)
        tracked = _tracked(index, list(ids), points, prev)
        frames.append(replace(tracked, match_ids=ids, number_prev=index - 1 if index > 1 else None, latency_s=0.01))
    run = Run(
        "lk", "classic", 60, frames, {"lost": 1}, seconds=3.0, stages={"match": dict.fromkeys(RANKS, 2.0)},
        cpu_percent=70.0, memory_mb=300.0, device_memory_mb=200.0,
    )  # fmt: skip
    world = Truth({index: pose.camera_to_world for index, pose in enumerate(truth)}, 0.01)
    camera = SimpleNamespace(cameras=dict.fromkeys(range(60), CAMERA))
    (trajectory,) = evaluate_trajectories([[world.poses] * 3], [len(frames)], world.poses)
    entry = evaluate_run(run, camera, world, [1, 5], trajectory=trajectory).entry
    assert set(entry) == KEYS
    assert all(set(entry[name]) == SPREAD for name in ("keypoints", "matches", "inliers", "inlier_ratio"))
    assert set(entry["latency_ms"]) == RANKS and set(entry["coverage"]) == {"keypoints", "inliers"}
    assert set(entry["tracks"]) == {
        "count",
        "mean_length",
        "length",
        "mean_length_of_a_point",
        "survival",
        "never_matched",
        "alive",
    }
    assert set(entry["epipolar"]) == {"pairs", "matches", "inliers"}
    assert set(entry["epipolar"]["matches"]) == {"count", "median_px", "within_1px", "within_3px"}
    assert set(entry["relative_pose"]["5"]) == {"pairs", "solved", "rotation_deg", "direction_deg"}
    assert set(entry["trajectory"]) == {
        "frames", "tracking", "lost", "poses", "scale_from_ground_truth", "path_length_m", "ate_rmse_m", "ate_percent",
        "rpe", "repeats", "failed_repeats", "spread",
    }  # fmt: skip
    assert set(entry["trajectory"]["rpe"]["10"]) == {"translation_rmse_m", "rotation_mean_deg"}
    assert set(entry["per_frame"]) == {
        "number", "stamp_ns", "keypoints", "matches", "inliers", "inlier_ratio", "coverage", "latency_ms", "alive_10",
        "alive_20", "epipolar_px", "within_1px", "within_3px", "distance_m", "position_error_m",
        *(f"gap{gap}_{name}_deg" for gap in (1, 5) for name in ("rotation", "direction")),
    }  # fmt: skip
    assert all(len(column) == 59 for column in entry["per_frame"].values())
    report = {"runs": [entry], "settings": {"gaps": [1, 5]}}
    assert [row.label for row in rows(report)] == LINES
    documented = (Path(__file__).parents[2] / "docs" / "evaluate_bag.md").read_text()
    assert all(f"`.{key}`" in documented or f"`.{key}`," in documented for key in KEYS)


def test_page_is_self_contained_and_escapes(footage, evaluated, tmp_path):
    report = build_report(footage, None, None, evaluated, {"a<b": "c&d"}, SETTINGS)
    write_page(report, evaluated, footage, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "mo&lt;del&gt;" in text and "a&lt;b" in text and "mo<del>" not in text
    links = re.findall(r"""(?:(?:src|href)=['"]|url\()([^'")> ]+)""", text)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert text.count("<svg") == 7 and text.count("data:image/webp") == len(footage.frames)


def test_table_marks_the_best_and_says_where_a_classic_wins(footage, evaluated):
    report = build_report(footage, None, None, evaluated, {}, SETTINGS)
    for entry, length in zip(report["runs"], (2.0, 9.0)):
        entry["tracks"] = {**entry["tracks"], "mean_length": length}
    line = next(line for line in text_table(report).splitlines() if line.startswith("track length, mean"))
    assert line.split() == ["track", "length,", "mean", "2.0", "9.0", "*"]
    assert "track length, mean: lk 9.0, best model 2.0" in where_classic_wins(report)


def test_no_ground_truth_no_lines_about_it(footage, evaluated):
    run = Run("orb", "classic", 12, evaluated[0].run.frames)
    item = evaluate_run(run, footage, None, [1])
    assert item.trajectory is None and item.entry["epipolar"] is None
    table = text_table(build_report(footage, None, None, [item], {}, SETTINGS))
    assert "ATE" not in table and "gap" not in table and "inlier ratio" in table


def test_a_camera_info_of_another_size_is_not_used(tmp_path):
    images = [bag_maker.image(index, bag_maker.picture(index, 120, 100)) for index in range(3)]
    footage = Footage(Recording(write_bag(tmp_path / "bag", images=images)))
    assert footage.camera is None and not footage.cameras
    assert f"CameraInfo is for {WIDTH}x{HEIGHT}, which is the size of no image" in footage.problems[-1]


def test_camera_info_that_begins_or_changes_is_used_from_there_on(tmp_path, monkeypatch):
    """Not calibrated for three frames (K is zero), then a lens, and another focal length from frame 8 on."""
    made = bag_maker.camera_info

    def changing(index):
        info = made(index)
        focal = 0 if index < 3 else FOCAL if index < 8 else 2 * FOCAL
        info.k[[0, 4]] = info.p[[0, 5]] = focal
        if not focal:
            info.k[:] = info.p[:] = 0
        return info

    monkeypatch.setattr(bag_maker, "camera_info", changing)
    footage = Footage(Recording(write_bag(tmp_path / "bag")))
    assert sorted(footage.cameras) == list(range(3, 12))
    assert [footage.cameras[number].focal for number in (3, 7, 8, 11)] == [FOCAL, FOCAL, 2 * FOCAL, 2 * FOCAL]
    assert footage.camera is footage.cameras[3]
    assert "CameraInfo changes 2 times: each is used from there on; 3 frames have none" in footage.problems[-1]
    run = run_classic("lk", footage, 200, None)
    errors = metrics.epipolar_by_frame(run.frames, Truth(TRUTH, 0.01), footage.cameras)
    assert sorted(errors) == list(range(4, 12))
    # at twice the focal length a pixel error counts the same, and rays in the same row stay in it
    assert np.median(errors[11]) < 0.5 and np.median(errors[5]) < 0.5


def test_relative_pose_error_counts_frames_not_poses():
    """Frames 3 to 5 have no pose: the step over that hole is no step of one frame."""
    numbers = [0, 1, 2, 6, 7]
    reference = np.stack([np.eye(4)] * 5)
    reference[:, 2, 3] = numbers
    estimate = reference.copy()
    estimate[3:, 2, 3] += 1.0  # wrong by one metre across the hole
    assert trajectory_module._rpe(numbers, reference, estimate, 1)["translation_rmse_m"] == pytest.approx(0)
    assert trajectory_module._rpe(numbers, reference, estimate, 5)["translation_rmse_m"] == pytest.approx(1)
    assert trajectory_module._rpe(numbers, reference, estimate, 3) is None


def test_relative_pose_error_without_holes_is_that_of_evo():
    metrics_of_evo = pytest.importorskip("evo.core.metrics")
    from evo.core.trajectory import PosePath3D

    truth = [pose.camera_to_world for pose in drive(20)]
    other = [pose.camera_to_world for pose in drive(20, step=0.2)]
    found = trajectory_module._rpe(list(range(20)), np.array(truth), np.array(other), 1)
    metric = metrics_of_evo.RPE(metrics_of_evo.PoseRelation.translation_part, 1, metrics_of_evo.Unit.frames)
    metric.process_data((PosePath3D(poses_se3=truth), PosePath3D(poses_se3=other)))
    expected = metric.get_statistic(metrics_of_evo.StatisticsType.rmse)
    assert found["translation_rmse_m"] == pytest.approx(expected)


def test_frames_that_were_dropped_have_empty_cells(footage, evaluated, tmp_path):
    item = replace(
        evaluated[1],
        entry={
            **evaluated[1].entry,
            "per_frame": {"number": [0, 11], "stamp_ns": [1, 2], "inliers": [0, 7], "latency_ms": [1.5, float("nan")]},
        },
    )
    tables.write_frames([item], footage, tmp_path / "frames.csv")
    lines = (tmp_path / "frames.csv").read_text().splitlines()
    assert lines[0] == "run,number,stamp_ns,time_s,processed,inliers,latency_ms" and len(lines) == 13
    assert lines[1].endswith(",1,0,1.5000") and lines[2].endswith(",0,,") and lines[12].endswith(",1,7,")


def test_tum_lines_keep_nanoseconds():
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    (line,) = tables.tum_lines(iter([(1_700_000_000_123_456_789, pose)]))
    assert line == "1700000000.123456789 1 2 3 0 0 0 1"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_click_into_a_plot_shows_that_frame(footage, evaluated, tmp_path):
    """In a browser: a click at 0.7 s, another front-end, an arrow key."""
    report = build_report(footage, None, None, evaluated, {}, SETTINGS)
    write_page(report, evaluated, footage, tmp_path / "report.html")
    click = """<script>
        const [left, right, start, end] = document.querySelector(".timeline").dataset.timeline.split(" ").map(Number);
        const svg = document.querySelector(".timeline svg"), box = svg.getBoundingClientRect();
        const share = left + ((0.7 - start) / (end - start)) * (right - left);
        svg.dispatchEvent(new MouseEvent("click", { clientX: box.left + box.width * share, bubbles: true }));
        document.querySelector("#numbers tr[data-run='1']").click();
        document.title = where.textContent;
        document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        document.title += " | " + where.textContent;
    </script></body>"""
    page = tmp_path / "clicked.html"
    page.write_text((tmp_path / "report.html").read_text().replace("</body>", click))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    (title,) = re.findall("<title>(.*?)</title>", dumped)
    first, second = title.split(" | ")
    assert first.startswith("Frame 7, 0.70 s, stamp 1700000000.700000000; drawn: lk") and second.startswith("Frame 8,")
