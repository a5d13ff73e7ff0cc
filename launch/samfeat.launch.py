"""Starts the samfeat node: `ros2 launch samfeat_ros samfeat.launch.py image_topic:=/camera/image_raw`.

An argument that is left empty leaves the parameter to `params_file`.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterFile

from samfeat_core.engines import DEVICES, ENGINES
from samfeat_core.models import model_names
from samfeat_ros.environment import PROFILE, PROFILE_VARIABLES
from samfeat_ros.topics import NODE, TRANSPORTS

SHARE = Path(get_package_share_directory("samfeat_ros"))

ARGUMENTS = {
    "image_topic": ("/camera/image_raw", "Image topic of the camera, without /compressed."),
    "camera_info_topic": ("", "CameraInfo topic; empty: `camera_info` beside the image topic."),
    "image_transport": ("", f"{' or '.join(TRANSPORTS)}; empty: from params_file."),
    "model": ("", f"Network: {model_names()}; empty: from params_file."),
    "weights": ("", "Weights file of the network; empty: from params_file, where empty is the shipped one."),
    "device": ("", f"{', '.join(DEVICES)}, or one GPU of several: cuda:N; empty: from params_file."),
    "engine": ("", f"{', '.join(ENGINES)}; empty: from params_file."),
    "params_file": (str(SHARE / "config" / "samfeat.yaml"), "YAML file with the node's parameters."),
    "namespace": ("", "Namespace of the node."),
    "use_sim_time": ("false", "Take the time from /clock."),
    "autostart": ("true", "Configure and activate at once; false: wait for a lifecycle manager."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
}
PARAMETERS = ("image_transport", "model", "weights", "device", "engine")


def samfeat_node(context):
    """The node with the arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    image_topic = given["image_topic"]
    beside = image_topic[: image_topic.rfind("/") + 1]
    camera_info_topic = given["camera_info_topic"] or f"{beside}camera_info"
    parameters = {name: given[name] for name in PARAMETERS if given[name]}
    parameters |= {name: _boolean(name, given[name]) for name in ("use_sim_time", "autostart")}
    return [
        LifecycleNode(
            package="samfeat_ros",
            executable="samfeat_node",
            name=NODE,
            namespace=given["namespace"],
            parameters=[ParameterFile(given["params_file"], allow_substs=True), parameters],
            remappings=[("image", image_topic), ("camera_info", camera_info_topic)],
            arguments=["--ros-args", "--log-level", given["log_level"]],
            output="screen",
            emulate_tty=True,
        )
    ]


def _boolean(name, text):
    if text.lower() not in ("true", "false"):
        raise ValueError(f"launch argument {name} is {text!r}, expected true or false")
    return text.lower() == "true"


def shared_memory_profile():
    """Large messages need more shared memory than Fast DDS's default; a profile that the user has set stays.

    Nodes that are launched after this one get it too.
    """
    profile = str(SHARE / "config" / PROFILE)
    return [
        SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=profile)) for name in PROFILE_VARIABLES
    ]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, *shared_memory_profile(), OpaqueFunction(function=samfeat_node)])
