"""`visual_odometry`: a worked example of a back-end on the node's topics.

It subscribes to `samfeat/matches` and `camera_info`, runs `samfeat_ros.odometry.estimator.MonocularOdometry`, and
publishes the camera's pose:

- `~/odometry`, nav_msgs/Odometry: pose and velocity of the camera's optical frame in `odom_frame`;
- `~/path`, nav_msgs/Path, while somebody listens;
- `/tf`, `odom_frame` to the camera's frame, with `publish_tf` and where tf2_msgs is installed.

Scale is unknown: lengths are in units of the first motion. `odom_frame` lies as the first camera did, x ahead, y to the
left, z up (REP 103).
"""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from typing import Any

import cv2
import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Odometry, Path
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, PointCloud2

from samfeat_core.camera import Camera
from samfeat_core.poses import quaternion
from samfeat_ros.messages import MessageError, camera_from_msg, matches_from_msg, stamp_to_ns
from samfeat_ros.odometry.estimator import TRACKING, MonocularOdometry, Update
from samfeat_ros.qos import newest
from samfeat_ros.stamps import NS_PER_S
from samfeat_ros.topics import NODE

OPTICAL_TO_REP103 = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
UNKNOWN = 1e6  # covariance where nothing is known
WARN_PERIOD_S = 5.0


class VisualOdometryNode(Node):
    """See the module. Parameters: odom_frame, publish_tf, path_length, rectified. Keyword arguments are Node's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("visual_odometry", **kwargs)
        self._odom_frame = self._declare("odom_frame", "odom", "Name of the fixed frame.")
        self._rectified = self._declare("rectified", False, "Images are rectified: take P of CameraInfo.")
        publish_tf = self._declare("publish_tf", False, "Publish the camera's pose on /tf too.")
        limit = ParameterDescriptor(
            description="Poses that ~/path keeps.",
            integer_range=[IntegerRange(from_value=1, to_value=1_000_000, step=1)],
        )
        self._path: deque[PoseStamped] = deque(maxlen=self.declare_parameter("path_length", 5000, limit).value)
        self._odometry: MonocularOdometry | None = None
        self._camera: Camera | None = None
        self._last: tuple[int, np.ndarray] | None = None  # stamp and camera-to-odom pose
        self._status = ""
        self._last_status = ""  # of the last published pose
        self._odometry_publisher = self.create_publisher(Odometry, "~/odometry", 10)
        self._path_publisher = self.create_publisher(Path, "~/path", 1)
        self._tf_message: Any = None
        self._tf_publisher: Any = self._create_tf() if publish_tf else None
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, newest())
        # a long queue: late matches are used late, not dropped
        self.create_subscription(PointCloud2, f"{NODE}/matches", self._on_matches, QoSProfile(depth=100))
        self._reminder = self.create_timer(WARN_PERIOD_S, self._remind)

    def _declare(self, name: str, default: Any, description: str) -> Any:
        return self.declare_parameter(name, default, ParameterDescriptor(description=description)).value

    def _create_tf(self) -> Any:
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            self.get_logger().warning("publish_tf is set, but tf2_msgs is not installed: there will be no /tf")
            return None
        self._tf_message = TFMessage
        return self.create_publisher(TFMessage, "/tf", 100)

    def _remind(self) -> None:
        self._reminder.cancel()
        if self._odometry is None:
            name = self.resolve_topic_name("camera_info")
            self.get_logger().warning(f"no calibrated CameraInfo on {name}: without it there is no odometry")

    def _on_camera_info(self, msg: CameraInfo) -> None:
        try:
            camera = camera_from_msg(msg, self._rectified)
        except ValueError as error:
            self.get_logger().warning(f"camera_info is not used: {error}", throttle_duration_sec=WARN_PERIOD_S)
            return
        if self._camera is None or not _same(camera, self._camera):
            self._camera, self._odometry = camera, MonocularOdometry(camera)

    def _on_matches(self, msg: PointCloud2) -> None:
        if self._odometry is None:
            return
        try:
            rows = matches_from_msg(msg)
        except MessageError as error:
            self.get_logger().warning(f"matches are not used: {error}", throttle_duration_sec=WARN_PERIOD_S)
            return
        stamp_ns = stamp_to_ns(msg.header.stamp)
        keep = rows.inlier
        update = self._odometry.update(
            rows.ids[keep], rows.points_prev[keep], rows.points[keep], stamp_ns, rows.stamp_prev_ns
        )
        self._say(update)
        if update.pose is not None:
            self._publish(msg.header, stamp_ns, update)

    def _say(self, update: Update) -> None:
        if update.status == self._status:
            return
        if update.status == TRACKING:
            self.get_logger().info(f"tracking {update.inliers} points")
        elif self._status:
            self.get_logger().warning(f"{update.status}: constant motion is assumed until there is parallax again")
        self._status = update.status

    def _publish(self, header: Any, stamp_ns: int, update: Update) -> None:
        assert update.pose is not None
        pose = np.eye(4)
        pose[:3, :3] = OPTICAL_TO_REP103
        pose = pose @ update.pose.camera_to_world
        stamped = PoseStamped()
        stamped.header.stamp, stamped.header.frame_id = header.stamp, self._odom_frame
        _fill_pose(stamped.pose, pose)
        self._path.append(stamped)

        odometry = Odometry(header=stamped.header, child_frame_id=header.frame_id)
        odometry.pose.pose = stamped.pose
        odometry.pose.covariance[::7] = _diagonal(1e-2 if update.status == TRACKING else UNKNOWN)
        moved = self._fill_twist(odometry.twist.twist, stamp_ns, pose)
        # a velocity between guessed poses is a guess: a filter must not believe it
        measured = moved and update.status == self._last_status == TRACKING
        odometry.twist.covariance[::7] = _diagonal(1e-2 if measured else UNKNOWN)
        self._last_status = update.status
        self._odometry_publisher.publish(odometry)
        if self._path_publisher.get_subscription_count():
            self._path_publisher.publish(Path(header=stamped.header, poses=list(self._path)))
        if self._tf_publisher is not None:
            self._tf_publisher.publish(self._tf_message(transforms=[_transform(stamped, header.frame_id)]))

    def _fill_twist(self, twist: Any, stamp_ns: int, pose: np.ndarray) -> bool:
        """Velocity in the camera's frame from the pose before; False where there is none."""
        last, self._last = self._last, (stamp_ns, pose)
        if last is None or not 0 < stamp_ns - last[0] < NS_PER_S:
            return False
        seconds = (stamp_ns - last[0]) * 1e-9
        linear = pose[:3, :3].T @ (pose[:3, 3] - last[1][:3, 3]) / seconds
        angular = cv2.Rodrigues(last[1][:3, :3].T @ pose[:3, :3])[0].ravel() / seconds
        twist.linear.x, twist.linear.y, twist.linear.z = map(float, linear)
        twist.angular.x, twist.angular.y, twist.angular.z = map(float, angular)
        return True


def _same(a: Camera, b: Camera) -> bool:
    return a.model == b.model and np.array_equal(a.matrix, b.matrix) and np.array_equal(a.distortion, b.distortion)


def _diagonal(value: float) -> np.ndarray:
    return np.full(6, value)


def _fill_pose(pose: Any, matrix: np.ndarray) -> None:
    pose.position.x, pose.position.y, pose.position.z = map(float, matrix[:3, 3])
    q = pose.orientation
    q.x, q.y, q.z, q.w = quaternion(matrix[:3, :3])


def _transform(stamped: PoseStamped, child: str) -> TransformStamped:
    transform = TransformStamped(header=stamped.header, child_frame_id=child)
    position = stamped.pose.position
    shift = transform.transform.translation
    shift.x, shift.y, shift.z = position.x, position.y, position.z
    transform.transform.rotation = stamped.pose.orientation
    return transform


def main(args: list[str] | None = None) -> int:
    """Executable `visual_odometry`; exit code 0 after SIGINT or SIGTERM, 1 without GTSAM."""
    if importlib.util.find_spec("gtsam") is None:
        print("visual_odometry: gtsam is not installed (pip install gtsam)", file=sys.stderr)
        return 1
    rclpy.init(args=args)
    node = None
    try:
        node = VisualOdometryNode()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
