"""Starts a samfeat node for each of several cameras: `ros2 launch samfeat_ros cameras.launch.py cameras:="front rear"`.

The nodes are /front/samfeat and /rear/samfeat. All arguments of samfeat.launch.py but `namespace` go to each of them.
"""

import re
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

ONE_CAMERA = Path(get_package_share_directory("samfeat_ros")) / "launch" / "samfeat.launch.py"
CAMERA = "CAMERA"  # in topics, stands for a camera's name

ARGUMENTS = {
    "cameras": ("front rear", "Names of the cameras, separated by spaces; each is the namespace of its node."),
    "image_topic": (f"/{CAMERA}/image_raw", f"Image topic of a camera, without /compressed; {CAMERA} is its name."),
    "camera_info_topic": ("", f"CameraInfo topic, with {CAMERA}; empty: `camera_info` beside the image topic."),
    "mask_topic": (f"/{CAMERA}/mask", f"Topic of a camera's mask, with {CAMERA}."),
}


def nodes(context):
    """samfeat.launch.py once for every camera."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    cameras = given.pop("cameras").split()
    if not cameras or len(set(cameras)) < len(cameras) or not all(re.fullmatch(r"[A-Za-z_]\w*", c) for c in cameras):
        raise RuntimeError(f"cameras is {' '.join(cameras)!r}, expected different ROS names, separated by spaces")
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(ONE_CAMERA)),
            launch_arguments={
                "namespace": camera,
                **{name: topic.replace(CAMERA, camera) for name, topic in given.items()},
            }.items(),
        )
        for camera in cameras
    ]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=nodes)])
