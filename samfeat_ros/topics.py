"""The node's topics and their types in one table, for the node and for everything that talks to it.

Needs no ROS: a type is its name, and `message_class` imports the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

NODE = "samfeat"

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

# Values of the parameter image_transport, with the type that each subscribes to.
TRANSPORTS = {"raw": IMAGE, "compressed": COMPRESSED_IMAGE}


@dataclass(frozen=True)
class Output:
    """A topic that the node publishes.

    Attributes:
        type: of its messages.
        every_frame: each processed frame gives one message. Of the others, `~/restart` tells about some frames only,
            and `~/tracks` needs CameraInfo.
        optional: the topic is there only where the package of its type is installed.
    """

    type: str
    every_frame: bool = True
    optional: bool = False


# Topics that the node subscribes to, with the types that it takes.
INPUTS = {"image": IMAGE_TYPES, "camera_info": (CAMERA_INFO,), "mask": (IMAGE,)}
# Topics below the node's name, in the order in which the messages of a frame are published.
OUTPUTS = {
    "restart": Output("std_msgs/msg/Bool", every_frame=False),
    "keypoints": Output("sensor_msgs/msg/PointCloud2"),
    "descriptors": Output("sensor_msgs/msg/PointCloud2"),
    "matches": Output("sensor_msgs/msg/PointCloud2"),
    "tracks": Output("sensor_msgs/msg/PointCloud", every_frame=False),
    "overlay": Output(IMAGE),
    "overlay/compressed": Output(COMPRESSED_IMAGE),
    "annotations": Output("visualization_msgs/msg/ImageMarker", optional=True),
}
DIAGNOSTICS = "/diagnostics"
DIAGNOSTICS_TYPE = "diagnostic_msgs/msg/DiagnosticArray"


def message_class(type_name: str) -> Any:
    """The class of a message type such as `sensor_msgs/msg/Image`. Raises ImportError where its package is missing."""
    package, _, name = type_name.split("/")
    return getattr(import_module(f"{package}.msg"), name)


def is_installed(type_name: str) -> bool:
    """Whether the package of a message type is there."""
    return find_spec(type_name.split("/")[0]) is not None


def short_name(type_name: str) -> str:
    """`Image` of `sensor_msgs/msg/Image`."""
    return type_name.rsplit("/", 1)[-1]


def transport_topic(topic: str, transport: str) -> str:
    """Where image_transport publishes an image topic: `topic` itself when raw, `topic`/compressed when compressed."""
    if transport == "raw" or topic.endswith(f"/{transport}"):
        return topic
    return f"{topic}/{transport}"
