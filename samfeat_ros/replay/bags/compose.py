"""Messages to be written to a bag, as `rosbags` dataclasses."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from samfeat_core.poses import quaternion
from samfeat_ros.replay.bags.messages import typestore
from samfeat_ros.stamps import split_ns
from samfeat_ros.topics import COMPRESSED_IMAGE, IMAGE

POSE_STAMPED, PATH = "geometry_msgs/msg/PoseStamped", "nav_msgs/msg/Path"


def header(stamp_ns: int, frame_id: str) -> Any:
    """A std_msgs/Header."""
    types = typestore().types
    return types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](*split_ns(stamp_ns)), frame_id)


def image(stamp_ns: int, frame_id: str, encoding: str, pixels: np.ndarray) -> Any:
    """A sensor_msgs/Image of (H, W) or (H, W, C) pixels of the encoding's type."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    big_endian = int(sys.byteorder == "big" and pixels.dtype.itemsize > 1)
    head = header(stamp_ns, frame_id)
    return typestore().types[IMAGE](head, height, width, encoding, big_endian, len(data) // height, data)


def compressed_image(stamp_ns: int, frame_id: str, form: str, data: np.ndarray) -> Any:
    """A sensor_msgs/CompressedImage of (n,) uint8 encoded as `form`: jpeg or png."""
    return typestore().types[COMPRESSED_IMAGE](header(stamp_ns, frame_id), form, data)


def pose_stamped(stamp_ns: int, frame_id: str, pose: np.ndarray) -> Any:
    """A geometry_msgs/PoseStamped of a pose (4, 4) in `frame_id`."""
    types = typestore().types
    point = types["geometry_msgs/msg/Point"](*map(float, pose[:3, 3]))
    turn = types["geometry_msgs/msg/Quaternion"](*quaternion(pose[:3, :3]))
    return types[POSE_STAMPED](header(stamp_ns, frame_id), types["geometry_msgs/msg/Pose"](point, turn))


def path(frame_id: str, poses: list[Any]) -> Any:
    """A nav_msgs/Path of PoseStamped messages, stamped by the last."""
    stamp = poses[-1].header.stamp
    return typestore().types[PATH](header(stamp.sec * 10**9 + stamp.nanosec, frame_id), poses)
