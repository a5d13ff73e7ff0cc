"""The demo as a person runs it: a process that plays a bag to the real node, and ends."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rclpy")

from recordings import FRAMES, is_running, make_bag, sliding_window  # noqa: E402

from samfeat_ros.replay.demo import best_stretch, table, within  # noqa: E402
from samfeat_ros.replay.playback import RoundTrip  # noqa: E402
from samfeat_ros.replay.recording import ImageMessage  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bag(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return make_bag(sliding_window(folder), folder / "bag")


def start(bag: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "samfeat_ros.replay.demo", str(bag), "--output", str(output), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def node_of(demo: subprocess.Popen, log: Path) -> int:
    """The process of the node, once it says that it waits for images."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert demo.poll() is None, demo.stderr.read()
        if log.is_file() and "waiting for images" in log.read_text():
            (pid,) = children(demo.pid)
            return pid
        time.sleep(0.1)
    raise AssertionError("the node did not start")


def wait_until_gone(pid: int, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


def test_a_bag_gives_a_table_a_report_and_a_picture(bag, weights, tmp_path):
    code, out, err = finish(start(bag, tmp_path, "--weights", weights, "--rate", "0.5"))
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames_in"] == FRAMES
    assert report["frames_processed"] + report["dropped"] == FRAMES and report["frames_processed"] > 0
    assert report["keypoints_median"] > 0 and 0 <= report["inlier_ratio_median"] <= 1
    for stage in ("queue", "decode", "network", "match", "publish", "total", "image_to_matches"):
        assert 0 <= report["latency_ms"][stage]["p50"] <= report["latency_ms"][stage]["p99"]
    assert "Traceback" not in err
    for word in ("frames in", "processed", "dropped", "network", "keypoints", "matches", "inlier ratio", "p99"):
        assert word in out
    overlay = cv2.imread(str(tmp_path / "overlay.png"))
    assert overlay.shape == (240, 320, 3)
    colour = overlay.max(2).astype(int) - overlay.min(2)  # the recording is grey: what has colour was drawn
    assert (colour > 60).sum() > 500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_both_processes_with_one_line(bag, weights, tmp_path, number):
    demo = start(bag, tmp_path, "--weights", weights, "--rate", "0.02")
    node = node_of(demo, tmp_path / "node.log")
    demo.send_signal(number)
    code, _, err = finish(demo, 60)
    assert code == 130
    assert "interrupted" in err and "Traceback" not in err
    wait_until_gone(node, 2)


def test_a_killed_demo_leaves_no_node_behind(bag, weights, tmp_path):
    demo = start(bag, tmp_path, "--weights", weights, "--rate", "0.02")
    node = node_of(demo, tmp_path / "node.log")
    demo.kill()
    demo.communicate()
    wait_until_gone(node)


def spoil_images(bag: Path, output: Path) -> Path:
    """The same bag with images of an encoding that nobody knows."""
    from rosbags.rosbag2 import Reader, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Reader(bag) as reader, Writer(output, version=8) as writer:
        topics = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store) for c in reader.connections}
        for connection, time_ns, data in reader.messages():
            if connection.msgtype == "sensor_msgs/msg/Image":
                data = bytes(data).replace(b"mono8\0", b"moon8\0")
            writer.write(topics[connection.id], time_ns, data)
    return output


def test_a_bag_of_useless_images_fails_with_one_line(bag, weights, tmp_path):
    spoiled = spoil_images(bag, tmp_path / "spoiled")
    code, _, err = finish(start(spoiled, tmp_path / "out", "--weights", weights))
    assert code == 1
    (line,) = [text for text in err.splitlines() if text.startswith("demo:")]
    assert "moon8" in line and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image-topic", "/front/image"], "/camera/image_raw"),
        (["--weights", "/no/such.safetensors"], "/no/such.safetensors"),
    ],
)
def test_what_is_wrong_is_said(bag, weights, tmp_path, arguments, said):
    code, _, err = finish(start(bag, tmp_path, *arguments))
    assert code == 1
    (line,) = [text for text in err.splitlines() if text.startswith("demo:")]
    assert said in line and "Traceback" not in err


def test_no_bag_is_said(tmp_path):
    code, _, err = finish(start(tmp_path / "none", tmp_path / "out"))
    assert code == 1 and "demo: " in err and "no such file" in err and "Traceback" not in err


def test_the_picture_is_taken_where_most_inliers_are():
    trips = [RoundTrip(stamp, 0.0) for stamp in range(100)]
    inliers = {stamp: 50 + 40 * (60 <= stamp < 84) for stamp in range(100)}
    assert best_stretch(trips, inliers, 24) == (60, 84)
    assert best_stretch(trips[:5], inliers, 24) == (0, 5)
    assert best_stretch([], {}) == (0, 0)


def test_only_the_first_seconds_are_played():
    messages = [ImageMessage(i, round(i * 0.1e9) + 5 * 10**9, b"") for i in range(50)]
    assert len(list(within(messages, 2.0))) == 21


def test_a_report_without_numbers_is_valid_json_and_a_table():
    latency = {"total": {"p50": math.nan, "p99": None}}
    report = {key: None for key in ("model", "device", "engine", "rate_in_hz", "rate_out_hz", "keypoints_median",
              "matches_median", "track_length_mean", "inlier_ratio_median", "frames_in",
              "frames_processed")}  # fmt: skip
    report |= {"dropped": 3, "dropped_by_cause": {"encoding": 3, "transport": 0}, "latency_ms": latency}
    text = table(report)
    assert "3 (3 encoding)" in text and "transport" not in text
