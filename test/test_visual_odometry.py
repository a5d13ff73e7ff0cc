"""The example back-end on real DDS: matches and CameraInfo in, odometry and path out."""

from __future__ import annotations

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
from samfeat_ros.visual_odometry import VisualOdometryNode, quaternion

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


def _drive(rig, scene: Scene) -> list[Odometry]:
    """Send CameraInfo and all matches; the odometry messages that came."""
    got = rig.listen(Odometry, "/visual_odometry/odometry")
    rig.publisher(CameraInfo, "/camera_info").publish(_info())
    publisher = rig.publisher(PointCloud2, "/samfeat/matches", 100)
    rig.wait(lambda: rig.peer.count_publishers("/visual_odometry/odometry"), "the odometry publisher")
    for index in range(1, len(scene.poses)):
        publisher.publish(_matches(scene, index))
    last = _header(len(scene.poses) - 1).stamp
    rig.wait(lambda: got and got[-1].header.stamp == last, "odometry of the last frame")
    return got


def test_follows_the_camera(rig, node):
    """The camera drives ahead: odometry moves along x of the odom frame, whatever the scale."""
    node(odom_frame="map", path_length=10)
    paths = rig.listen(Path, "/visual_odometry/path")
    got = _drive(rig, Scene(drive(FRAMES)))
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
    node(publish_tf=True)
    try:
        import tf2_msgs  # noqa: F401
    except ImportError:
        rig.wait(lambda: "tf2_msgs is not installed" in rig.log, "the line about TF")
    rig.publisher(CameraInfo, "/camera_info").publish(CameraInfo(width=640, height=480))
    rig.wait(lambda: "not calibrated" in rig.log, "the line about the calibration")
    rig.publisher(CameraInfo, "/camera_info").publish(_info())
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
