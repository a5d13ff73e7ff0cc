"""Clocks of images and ground truth: the offset at which both turn at the same times."""

from __future__ import annotations

import json
from pathlib import Path

import bag_maker
import cv2
import numpy as np
import pytest
from bag_maker import FOCAL, FRAME_NS, HEIGHT, START, WIDTH, write_bag
from test_evaluate_bag import as_before, evaluate  # noqa: F401 (a fixture)

from samfeat_core.poses import pose_matrix, rotation_angle
from samfeat_ros.replay.evaluation.clocks import Turns, camera_turns, find_offset
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.ground_truth import GroundTruth
from samfeat_ros.replay.recording import Recording

FRAMES = 50
CLASSIC = ["--model", "none", "--classic", "lk", "--rate", "max", "--keypoints", "150"]


def yaw(seconds: np.ndarray | float) -> np.ndarray:
    """Radians; no period, so that one offset alone fits."""
    return 0.1 * np.sin(1.9 * seconds) + 0.06 * np.sin(3.1 * seconds + 1)


def rotation_poses(seconds: np.ndarray) -> np.ndarray:
    turn = yaw(seconds) / 2
    none = np.zeros_like(turn)
    return pose_matrix(np.zeros((len(turn), 3)), np.stack([none, np.sin(turn), none, np.cos(turn)], -1))


def truth(rate_hz: float = 40.0, late_s: float = 0.0) -> GroundTruth:
    seconds = np.arange(0, FRAMES / 10, 1 / rate_hz)
    return GroundTruth("made", START + np.round((seconds + late_s) * 1e9).astype(np.int64), rotation_poses(seconds))


def turns(noise_deg: float = 0.0) -> Turns:
    seconds = np.arange(FRAMES) / 10
    poses = rotation_poses(seconds)
    degrees = rotation_angle(poses[:-1, :3, :3].swapaxes(-1, -2) @ poses[1:, :3, :3])
    stamps = START + np.arange(FRAMES) * FRAME_NS
    noise = np.random.default_rng(0).normal(0, noise_deg, len(degrees))
    return Turns(np.stack([stamps[:-1], stamps[1:]], -1), degrees + noise)


@pytest.mark.parametrize("late_s", [0.25, -0.07, 1.2, 1000.0])
def test_the_offset_is_found_to_milliseconds(late_s):
    found = find_offset(turns(noise_deg=0.05), truth(late_s=late_s))
    assert found.seconds == pytest.approx(-late_s, abs=0.005)
    assert found.correlation > 0.99 and found.is_clear and found.is_likely


def test_clocks_that_agree_are_not_talked_about():
    for noise in (0.0, 0.05, 0.3):
        found = find_offset(turns(noise), truth())
        assert not found.is_likely and abs(found.seconds) < 0.02


def test_nothing_tells():
    still = GroundTruth("made", truth().stamps_ns, np.stack([np.eye(4)] * len(truth().stamps_ns)))
    assert find_offset(turns(), still) is None
    few = Turns(turns().stamps_ns[:10], turns().degrees[:10])
    assert find_offset(few, truth()) is None
    rng = np.random.default_rng(1)
    assert not find_offset(Turns(turns().stamps_ns, rng.random(FRAMES - 1)), truth()).is_clear


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """A camera that turns to the left and right before a picture that is infinitely far away."""
    wall, images = bag_maker.wall(), []
    camera = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
    picture = np.array([[FOCAL, 0, (wall.shape[1] - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
    for index, pose in enumerate(rotation_poses(np.arange(FRAMES) / 10)):
        to_camera = camera @ pose[:3, :3].T @ np.linalg.inv(picture)
        images.append(bag_maker.image(index, cv2.warpPerspective(wall, to_camera, (WIDTH, HEIGHT))))
    return write_bag(tmp_path_factory.mktemp("turning") / "bag", images=images)


def test_turns_of_images(bag):
    footage = Footage(Recording(bag))
    found = camera_turns(footage)
    assert len(found.degrees) > 40
    assert np.corrcoef(found.degrees, turns().degrees[: len(found.degrees)])[0, 1] > 0.9


def late_truth(path: Path, late_s: float) -> Path:
    made = truth(late_s=late_s)
    half = yaw((made.stamps_ns - made.stamps_ns[0]) * 1e-9) / 2
    rows = [f"{t * 1e-9:.4f} {0.1 * i:.3f} 0 0 0 {np.sin(h):.9f} 0 {np.cos(h):.9f}"
            for i, (t, h) in enumerate(zip(made.stamps_ns, half))]  # fmt: skip
    path.write_text("\n".join(rows))
    return path


def test_a_likely_offset_is_said_and_used_on_request(bag, tmp_path):
    path = late_truth(tmp_path / "late.txt", 0.25)
    _, _, err = evaluate(bag, *CLASSIC, "--ground-truth", path, "--output", tmp_path / "said")
    (line,) = [line for line in err.splitlines() if "clock is likely to be off" in line]
    assert float(line.split("--time-offset ")[1].split()[0]) == pytest.approx(-0.25, abs=0.02)
    report = json.loads((tmp_path / "said" / "report.json").read_text())
    assert report["ground_truth"]["time_offset_s"] == 0 and any("clock" in text for text in report["bag"]["problems"])

    for asked in ("auto", "-0.25"):
        output = tmp_path / asked
        _, _, err = evaluate(bag, *CLASSIC, "--ground-truth", path, "--time-offset", asked, "--output", output)
        report = json.loads((output / "report.json").read_text())
        assert report["ground_truth"]["time_offset_s"] == pytest.approx(-0.25, abs=0.02), err
        assert "clock" not in err


def test_times_of_recording(bag, tmp_path):
    """Headers that are an hour off: by the times of recording images and poses meet."""
    images = [bag_maker.image(index, stamp_ns=START - 3_600_000_000_000 + index * FRAME_NS) for index in range(12)]
    path = write_bag(tmp_path / "bag", images=images)
    code, _, err = evaluate(path, *CLASSIC, "--ground-truth", "/pose", "--output", tmp_path / "header")
    assert code == 1 and "none lies within" in err
    evaluate(path, *CLASSIC, "--ground-truth", "/pose", "--stamps", "recorded", "--output", tmp_path / "recorded")
    report = json.loads((tmp_path / "recorded" / "report.json").read_text())
    assert report["ground_truth"]["frames_with_pose"] == 12
    assert report["runs"][0]["per_frame"]["stamp_ns"][0] == START


@pytest.mark.parametrize(("option", "value"), [("--time-offset", "soon"), ("--time-offset", "nan"), ("--stamps", "x")])
def test_wrong_values(bag, tmp_path, option, value):
    code, _, err = evaluate(bag, *CLASSIC, option, value, "--output", tmp_path)
    assert code == 2 and f"{option} '{value}': expected" in err


def test_auto_without_a_turn_is_refused(tmp_path):
    bag = write_bag(tmp_path / "bag")
    arguments = ["--ground-truth", "/pose", "--time-offset", "auto", "--output", tmp_path / "out"]
    code, _, err = evaluate(bag, *CLASSIC, *arguments)
    assert code == 1 and "expected --time-offset SECONDS" in err
