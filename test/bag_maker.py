"""Small bags for tests: a camera that slides along a textured wall, with CameraInfo and true poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
START = 1_700_000_000_000_000_000
FRAME_NS = 100_000_000
WIDTH, HEIGHT, FOCAL = 240, 180, 200.0
SHIFT_PX, DEPTH = 3, 5.0  # per frame; of the wall in metres


def header(index: int, stamp_ns: int | None = None) -> Any:
    stamp = START + index * FRAME_NS if stamp_ns is None else stamp_ns
    return TYPES["std_msgs/msg/Header"](TYPES["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9)), "camera")


def wall() -> np.ndarray:
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH * 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width) uint8 of a frame."""
    return np.ascontiguousarray(wall()[:height, index * SHIFT_PX : index * SHIFT_PX + width])


def image(index: int, pixels: np.ndarray | None = None, stamp_ns: int | None = None) -> Any:
    pixels = picture(index) if pixels is None else pixels
    rows, columns = pixels.shape
    data = pixels.ravel()
    return TYPES["sensor_msgs/msg/Image"](header(index, stamp_ns), rows, columns, "mono8", 0, columns, data)


def depth(index: int) -> Any:
    """The wall, 16UC1."""
    data = np.full(WIDTH * HEIGHT, 1000 * DEPTH, "<u2").view(np.uint8)
    return TYPES["sensor_msgs/msg/Image"](header(index), HEIGHT, WIDTH, "16UC1", 0, 2 * WIDTH, data)


def camera_info(index: int) -> Any:
    k = np.array([FOCAL, 0, (WIDTH - 1) / 2, 0, FOCAL, (HEIGHT - 1) / 2, 0, 0, 1.0])
    p = np.column_stack([k.reshape(3, 3), np.zeros(3)]).ravel()
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header(index), HEIGHT, WIDTH, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), p, 0, 0, roi
    )


def pose(index: int) -> Any:
    """The camera moves along x, by which the wall shifts SHIFT_PX to the left."""
    point = TYPES["geometry_msgs/msg/Point"](index * SHIFT_PX * DEPTH / FOCAL, 0.0, 0.0)
    turn = TYPES["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    return TYPES["geometry_msgs/msg/PoseStamped"](header(index), TYPES["geometry_msgs/msg/Pose"](point, turn))


def write_bag(
    path: Path,
    frames: int = 12,
    images: list[Any] | None = None,
    with_camera: bool = True,
    with_depth: bool = False,
    storage: StoragePlugin = StoragePlugin.MCAP,
) -> Path:
    """A bag with /camera/image_raw, /camera/camera_info, /pose and /camera/depth; `images` replaces the images."""
    kinds = {
        "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
        "/camera/image_raw": "sensor_msgs/msg/Image",
        "/pose": "geometry_msgs/msg/PoseStamped",
        **({"/camera/depth": "sensor_msgs/msg/Image"} if with_depth else {}),
    }
    images = [image(index) for index in range(frames)] if images is None else images
    with Writer(path, version=9, storage_plugin=storage) as writer:
        topics = {name: writer.add_connection(name, kind, typestore=STORE) for name, kind in kinds.items()}
        for index, picture_message in enumerate(images):
            content = {
                "/camera/camera_info": camera_info(index),
                "/camera/image_raw": picture_message,
                "/pose": pose(index),
                "/camera/depth": depth(index),
            }
            for name, message in content.items():
                if name in kinds and (with_camera or name != "/camera/camera_info"):
                    writer.write(topics[name], START + index * FRAME_NS, STORE.serialize_cdr(message, kinds[name]))
    return path
