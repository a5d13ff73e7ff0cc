"""Starts the samfeat node: `ros2 launch samfeat_ros samfeat.launch.py image_topic:=/camera/image_raw`.

An argument that is left empty leaves the parameter to `params_file`. cameras.launch.py takes several cameras.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterFile

from samfeat_core.engines import DEVICES, ENGINES
from samfeat_core.models import MODELS, model_names
from samfeat_ros.environment import PROFILE_VARIABLES, profile_name, profile_variable
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
    "mask_topic": ("mask", "Topic of the mask."),
    "namespace": ("", "Namespace of the node."),
    "node_name": (NODE, "Name of the node; its topics are below it."),
    "use_sim_time": ("false", "Take the time from /clock."),
    "autostart": ("true", "Configure and activate at once; false: wait for a lifecycle manager."),
    "log_level": ("info", "debug, info, warn, error or fatal; of this node only."),
    "respawn": ("false", "Start the node again, two seconds after it has ended."),
    "required": ("false", "End the launch with the node; with an exit code other than 0 if the node failed."),
    "visual_odometry": ("false", "Start the example back-end visual_odometry too; it needs gtsam."),
}
PARAMETERS = ("image_transport", "model", "weights", "device", "engine")
FLAGS = ("use_sim_time", "autostart", "respawn", "required", "visual_odometry")
CHOICES = {
    "image_transport": ("", *TRANSPORTS),
    "model": ("", *MODELS),
    "engine": ("", *ENGINES),
    "log_level": ("debug", "info", "warn", "error", "fatal"),
    **dict.fromkeys(FLAGS, ("true", "false", "True", "False")),
}
RESPAWN_DELAY_S = 2.0


def samfeat_node(context):
    """The node with the arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    flags = {name: given[name].lower() == "true" for name in FLAGS}
    image_topic = given["image_topic"]
    beside = image_topic[: image_topic.rfind("/") + 1]
    camera_info_topic = given["camera_info_topic"] or f"{beside}camera_info"
    parameters = {name: given[name] for name in PARAMETERS if given[name]}
    parameters |= {name: flags[name] for name in ("use_sim_time", "autostart")}
    logger = ".".join([*given["namespace"].strip("/").split("/"), given["node_name"]]).strip(".")
    node = LifecycleNode(
        package="samfeat_ros",
        executable="samfeat_node",
        name=given["node_name"],
        namespace=given["namespace"],
        parameters=[ParameterFile(given["params_file"], allow_substs=True), parameters],
        remappings=[("image", image_topic), ("camera_info", camera_info_topic), ("mask", given["mask_topic"])],
        arguments=["--ros-args", "--log-level", f"{logger}:={given['log_level']}"],
        additional_env=shared_memory_profile(context),
        respawn=flags["respawn"],
        respawn_delay=RESPAWN_DELAY_S,
        output="screen",
        emulate_tty=True,
    )
    actions = [node]
    if flags["required"]:
        actions.append(RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end_launch)))
    if flags["visual_odometry"]:
        actions.append(odometry_node(given, camera_info_topic, flags["use_sim_time"]))
    return actions


def end_launch(event, context):
    """What happens when a required node has ended. An exception is what makes `ros2 launch` fail."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f"{event.process_name} is required, and ended with exit code {event.returncode}")
    return [Shutdown(reason=f"{event.process_name} is required, and ended")]


def odometry_node(given, camera_info_topic, use_sim_time):
    return Node(
        package="samfeat_ros",
        executable="visual_odometry",
        namespace=given["namespace"],
        parameters=[{"use_sim_time": use_sim_time}],
        remappings=[(f"{NODE}/matches", f"{given['node_name']}/matches"), ("camera_info", camera_info_topic)],
        output="screen",
        emulate_tty=True,
    )


def shared_memory_profile(context):
    """The variable of this node that gives it enough shared memory for large messages; none if the user has set one."""
    if any(name in context.environment for name in PROFILE_VARIABLES):
        return {}
    return {profile_variable(): str(SHARE / "config" / profile_name())}


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=samfeat_node)])
