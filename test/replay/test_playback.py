"""Recordings as the playback sees them, and the real node in a process of its own."""

import os
import socket
import struct
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from recordings import FRAMES, RATE, is_running, make_bag, sliding_window  # noqa: E402

from samfeat_ros.environment import prepare_environment, transport_profile  # noqa: E402
from samfeat_ros.messages import keypoints_from_msg, matches_from_msg  # noqa: E402
from samfeat_ros.replay.bags import BagError  # noqa: E402
from samfeat_ros.replay.node_process import NodeError, NodeProcess, free_domain_id  # noqa: E402
from samfeat_ros.replay.playback import Playback  # noqa: E402
from samfeat_ros.replay.recording import Recording  # noqa: E402
from samfeat_ros.stamps import cdr_stamp_ns, with_cdr_stamp  # noqa: E402
from samfeat_ros.topics import COMPRESSED_IMAGE  # noqa: E402


@pytest.fixture(scope="session")
def sequence(tmp_path_factory):
    return sliding_window(tmp_path_factory.mktemp("sequence"))


@pytest.fixture(scope="session")
def bag(sequence, tmp_path_factory) -> Path:
    return make_bag(sequence, tmp_path_factory.mktemp("bags") / "raw", start=7.0)


def test_a_recording_is_images_with_their_calibration(bag):
    recording = Recording(bag)
    messages = list(recording.messages())
    assert (recording.image_topic, recording.camera_info_topic) == ("/camera/image_raw", "/camera/camera_info")
    assert recording.count == len(messages) == FRAMES
    assert [message.stamp_ns for message in messages] == [round((7 + i / RATE) * 1e9) for i in range(FRAMES)]
    assert all(m.camera_info and cdr_stamp_ns(m.camera_info) == m.stamp_ns for m in messages)
    assert recording.first.image == messages[0].image
    assert len(list(Recording(bag, limit=3).messages())) == 3


def test_compressed_topics_find_the_calibration_beside_them(sequence, tmp_path):
    recording = Recording(make_bag(sequence, tmp_path / "png", form="png"))
    assert recording.image_type == COMPRESSED_IMAGE
    assert recording.camera_info_topic == "/camera/camera_info"


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        ({"image_topic": "/nowhere"}, "/camera/image_raw"),
        ({"image_topic": "/camera/camera_info"}, "not Image or CompressedImage"),
        ({"camera_info_topic": "/nowhere"}, "/camera/camera_info"),
    ],
)
def test_a_wrong_topic_lists_those_that_are_there(bag, topics, said):
    with pytest.raises(BagError, match=said):
        Recording(bag, **topics)


def test_stamps_are_read_without_decoding():
    little = b"\x00\x01\x00\x00" + struct.pack("<iI", 5, 7) + bytes(8)
    big = b"\x00\x00\x00\x00" + struct.pack(">iI", 5, 7) + bytes(8)
    assert cdr_stamp_ns(little) == cdr_stamp_ns(big) == 5_000_000_007
    assert with_cdr_stamp(little, 7_000_000_009) == b"\x00\x01\x00\x00" + struct.pack("<iI", 7, 9) + bytes(8)
    assert cdr_stamp_ns(with_cdr_stamp(big, -1)) == -1
    with pytest.raises(ValueError, match="3 bytes"):
        cdr_stamp_ns(b"\x00\x01\x00")


def test_a_domain_in_use_is_not_taken(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        for domain in range(50, 60):
            try:
                held.bind(("", 7410 + 250 * domain))
                break
            except OSError:
                continue
        monkeypatch.setattr("random.sample", lambda *_: [domain, domain + 20])
        assert free_domain_id() == domain + 20


def test_what_the_user_set_stays(monkeypatch):
    assert transport_profile().name == "fastdds_shm.xml"
    monkeypatch.setattr(os, "environ", dict(os.environ))  # later tests start nodes in the real one
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE", "ROS_DISTRO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    monkeypatch.setenv("ROS_DISTRO", "humble")
    prepare_environment()
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET"
    assert os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] == str(transport_profile())
    assert "FASTDDS_DEFAULT_PROFILES_FILE" not in os.environ
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/mine.xml")
    prepare_environment()
    assert os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] == "/mine.xml"


def test_one_image_in_flight_loses_none(bag, weights):
    got: dict[int, dict[str, object]] = {}

    def take(topic, message, trip):
        if trip is not None:
            got.setdefault(trip.stamp_ns, {})[topic] = message

    recording = Recording(bag)
    with NodeProcess({"weights": weights, "device": "cpu", "threshold": 0.0, "max_keypoints": 200}) as process:
        pid = process.pid
        with Playback(process, on_message=take) as playback:
            playback.wait_until_ready(recording.first)
            playback.play(recording.messages(), rate=None, answer_timeout=30)
    assert not is_running(pid)
    assert [trip.stamp_ns for trip in playback.round_trips] == [m.stamp_ns for m in recording.messages()]
    for trip in playback.round_trips:
        assert set(trip.received) == {"keypoints", "descriptors", "matches"}
        assert trip.latency("matches") > 0 and trip.latency("overlay") is None
    messages = list(got.values())
    assert len(messages) == FRAMES
    assert len(keypoints_from_msg(messages[3]["keypoints"]).points) > 50
    assert not len(matches_from_msg(messages[0]["matches"]).index)  # warming up left no track behind
    assert len(matches_from_msg(messages[5]["matches"]).index) > 50
    assert playback.status["frames_processed"] == str(FRAMES)
    assert playback.status["dropped"] == "0"


def test_the_recorded_rate_is_kept_for_compressed_images_too(sequence, weights, tmp_path):
    recording = Recording(make_bag(sequence, tmp_path / "png", form="png"))
    with (
        NodeProcess({"weights": weights, "device": "cpu"}, COMPRESSED_IMAGE) as process,
        Playback(process, ["keypoints"]) as playback,
    ):
        playback.wait_until_ready(recording.first)
        playback.play(recording.messages(), rate=0.5)
    sent = [trip.sent for trip in playback.round_trips]
    assert len(sent) == FRAMES
    assert sent[-1] - sent[0] >= (FRAMES - 1) / RATE / 0.5 - 0.01
    assert playback.round_trips[0].received


def test_a_node_that_cannot_start_says_why(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 100)
    with (
        pytest.raises(NodeError, match="cut.safetensors"),
        NodeProcess({"weights": str(tmp_path / "cut.safetensors"), "device": "cpu"}, timeout=20) as process,
        Playback(process) as playback,
    ):
        pid = process.pid
        playback.wait_until_ready()
    assert not is_running(pid)


def test_an_impossible_topic_is_refused():
    with pytest.raises(ValueError, match="depth"):
        Playback(NodeProcess(), ["depth"])
