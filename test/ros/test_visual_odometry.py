"""The example back-end on real DDS: matches and CameraInfo in, odometry and path out."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest

pytest.importorskip("rclpy")

from nav_msgs.msg import Odometry, Path
from rclpy.parameter import Parameter
from ros_rig import Spinner
from sensor_msgs.msg import CameraInfo, PointCloud2
from std_msgs.msg import Header
from test_odometry import Scene, drive

from samfeat_core.features import Features, Matches
from samfeat_ros.messages import matches_to_msg, ns_to_stamp
from samfeat_ros.odometry.visual_odometry import VisualOdometryNode, main, quaternion

FRAMES = 45


def _header(index: int) -> Header:
    return Header(stamp=ns_to_stamp(_ns(index)), frame_id="camera_optical")


def _ns(index: int) -> int:
    return 1_700_000_000_000_000_000 + index * 100_000_000


def _info() -> CameraInfo:
    return CameraInfo(
        header=_header(0), width=640, height=480, distortion_model="plumb_bob", d=[0.0] * 5,
        k=[400.0, 0.0, 320.0, 0.0, 400.0, 240.0, 0.0, 0.0, 1.0],
        p=[400.0, 0.0, 320.0, 0.0, 0.0, 400.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip


def _matches(scene: Scene, index: int) -> PointCloud2:
    ids, prev, points = scene.matches(index)
    count = len(ids)

    def features(at: np.ndarray) -> Features:
        return Features(at.astype(np.float32), np.ones(count, np.float32), np.ones((count, 1), np.float32), (640, 480))

    rows = np.arange(count)
    matches = Matches(rows, rows, np.ones(count, np.float32), np.ones(count, bool), ids)
    return matches_to_msg(_header(index), features(points), features(prev), matches, _ns(index - 1))


@pytest.fixture
def node():
    spinners = []

    def start(**parameters):
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        spinners.append(Spinner(lambda context: VisualOdometryNode(context=context, parameter_overrides=overrides)))
        return spinners[-1].node

    yield start
    for spinner in spinners:
        spinner.close()


def _drive(rig, node: VisualOdometryNode, scene: Scene) -> list[Odometry]:
    """Send CameraInfo and all matches; the odometry messages that came."""
    got = rig.listen(Odometry, "/visual_odometry/odometry")
    info, publisher = rig.publisher(CameraInfo, "/camera_info"), rig.publisher(PointCloud2, "/samfeat/matches", 100)
    # one side may see the other before it is seen itself: the first messages are repeated until they have arrived
    rig.wait(lambda: (info.publish(_info()), time.sleep(0.05), node._camera)[2], "the camera")
    empty = matches_to_msg(_header(0), Features.empty((640, 480), 1), None, Matches(*[np.zeros(0, np.int64)] * 4), None)
    rig.wait(lambda: (publisher.publish(empty), time.sleep(0.05), node._odometry._stamp_ns)[2], "the first matches")
    rig.wait(lambda: node._odometry_publisher.get_subscription_count() > 0, "the listener")
    for index in range(1, len(scene.poses)):
        publisher.publish(_matches(scene, index))
    last = _header(len(scene.poses) - 1).stamp
    rig.wait(lambda: got and got[-1].header.stamp == last, "odometry of the last frame")
    return got


def test_follows_the_camera(rig, node):
    """The camera drives ahead: odometry moves along x of the odom frame, whatever the scale."""
    started = node(odom_frame="map", path_length=10)
    paths = rig.listen(Path, "/visual_odometry/path")
    rig.wait(lambda: started._path_publisher.get_subscription_count() > 0, "the listener of the path")
    got = _drive(rig, started, Scene(drive(FRAMES)))
    assert len(got) > 20
    last = got[-1]
    assert (last.header.frame_id, last.child_frame_id) == ("map", "camera_optical")
    positions = np.array([(m.pose.pose.position.x, m.pose.pose.position.y, m.pose.pose.position.z) for m in got])
    way = positions[-1] - positions[0]
    assert way[0] > 0 and abs(way[0]) > 3 * np.abs(way[1:]).max()
    turn = last.pose.pose.orientation
    assert np.linalg.norm([turn.x, turn.y, turn.z, turn.w]) == pytest.approx(1)
    velocity = last.twist.twist.linear  # in the camera: z is ahead
    assert velocity.z > 3 * max(abs(velocity.x), abs(velocity.y))
    rig.wait(lambda: paths and len(paths[-1].poses) == 10, "a path of ten poses")


def test_says_what_is_missing(rig, node):
    """No CameraInfo, an uncalibrated one, a message of another layout, TF without tf2_msgs: one line each."""
    started = node(publish_tf=True)
    try:
        import tf2_msgs  # noqa: F401
    except ImportError:
        rig.wait(lambda: "tf2_msgs is not installed" in rig.log, "the line about TF")
    info = rig.publisher(CameraInfo, "/camera_info")
    blank = CameraInfo(width=640, height=480)
    rig.wait(lambda: (info.publish(blank), "not calibrated" in rig.log)[1], "the line about the calibration")
    rig.wait(lambda: (info.publish(_info()), started._camera)[1], "the camera")
    publisher = rig.publisher(PointCloud2, "/samfeat/matches", 100)
    rig.wait(lambda: (publisher.publish(PointCloud2()), "matches are not used" in rig.log)[1], "the line about it")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, np.pi - 1e-6])
def test_quaternion(axis, angle):
    import cv2

    vector = np.zeros(3)
    vector[axis] = angle
    expected = np.append(np.sin(angle / 2) * (vector / angle if angle else vector), np.cos(angle / 2))
    np.testing.assert_allclose(quaternion(cv2.Rodrigues(vector)[0]), expected, atol=1e-6)


def test_velocity_is_unknown_while_lost(rig, node):
    """A filter must not believe a velocity between poses that are guessed."""

    class Dark(Scene):
        def matches(self, index):
            return tuple(part[:0] for part in super().matches(index)) if 30 <= index < 33 else super().matches(index)

    got = _drive(rig, node(), Dark(drive(FRAMES)))
    by_frame = {round((m.header.stamp.sec * 10**9 + m.header.stamp.nanosec - _ns(0)) / 100_000_000): m for m in got}
    assert by_frame[29].twist.covariance[0] < 1
    for index in range(30, 33):
        assert by_frame[index].twist.covariance[0] == by_frame[index].pose.covariance[0] == 1e6
        assert by_frame[index].twist.twist.linear.z > 0  # it moves on, it has not stopped


def test_without_gtsam_there_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main() == 1
    assert capsys.readouterr().err == "visual_odometry: gtsam is not installed (pip install gtsam)\n"
