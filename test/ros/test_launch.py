"""The launch file: statically everywhere, and executed where the launch packages are installed."""

from __future__ import annotations

import ast
import importlib.util
import types
from pathlib import Path

import pytest
from launch_packages import SITE

from samfeat_core.engines import DEVICES, ENGINES
from samfeat_core.models import MODELS
from samfeat_ros import environment
from samfeat_ros.environment import PROFILE_VARIABLES, profile_variable

ROOT = Path(__file__).resolve().parents[2]
FILE, CAMERAS = ROOT / "launch" / "samfeat.launch.py", ROOT / "launch" / "cameras.launch.py"
ARGUMENTS = {
    "image_topic", "camera_info_topic", "image_transport", "model", "weights", "device", "engine", "params_file",
    "namespace", "use_sim_time", "autostart", "log_level", "node_name", "mask_topic", "respawn", "required",
    "visual_odometry",
}  # fmt: skip


def assigned(name: str) -> ast.expr:
    tree = ast.parse(FILE.read_text())
    return next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name
    )


def test_the_arguments_are_these():
    table = assigned("ARGUMENTS")
    assert isinstance(table, ast.Dict)
    assert {ast.literal_eval(key) for key in table.keys} == ARGUMENTS


def test_parameters_of_the_launch_file_exist():
    pytest.importorskip("rclpy")
    from samfeat_ros.node.parameters import NAMES

    assert set(ast.literal_eval(assigned("PARAMETERS"))) <= set(NAMES)


@pytest.fixture
def launch_file(monkeypatch):
    """Loads the launch file; skips where the launch packages are not to be had."""
    if SITE.is_dir():
        monkeypatch.syspath_prepend(str(SITE))
    pytest.importorskip("launch_ros.actions")
    import ament_index_python.packages

    monkeypatch.setattr(ament_index_python.packages, "get_package_share_directory", lambda name: str(ROOT))

    def load(file: Path = FILE):
        spec = importlib.util.spec_from_file_location("samfeat_launch", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def launched(launch_file, monkeypatch):
    """Runs the launch description with launch arguments: what the node actions get."""
    import launch
    import launch_ros.actions

    nodes: list[dict] = []

    class Node(launch.Action):
        def __init__(self, **arguments):
            super().__init__()
            nodes.append(arguments)

    monkeypatch.setattr(launch_ros.actions, "LifecycleNode", Node)

    def run(file: Path = FILE, **arguments) -> list[dict]:
        nodes.clear()
        context = launch.LaunchContext()
        context.launch_configurations.update(arguments)
        pending = list(launch_file(file).generate_launch_description().entities)
        while pending:
            pending = [*(pending[0].visit(context) or []), *pending[1:]]
        return nodes

    return run


def test_descriptions_name_the_choices(launch_file):
    arguments = launch_file().generate_launch_description().get_launch_arguments()
    described = {argument.name: argument.description for argument in arguments}
    assert set(described) == ARGUMENTS and all(len(text) > 10 for text in described.values())
    for name, choices in {"model": MODELS, "engine": ENGINES, "device": DEVICES}.items():
        assert all(choice in described[name] for choice in choices), described[name]


def test_defaults_leave_the_parameters_to_the_file(launched, monkeypatch):
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (node,) = launched(image_topic="/front/image_raw")
    assert (node["package"], node["executable"], node["name"]) == ("samfeat_ros", "samfeat_node", "samfeat")
    assert node["remappings"] == [
        ("image", "/front/image_raw"), ("camera_info", "/front/camera_info"), ("mask", "mask")
    ]  # fmt: skip
    assert node["parameters"][0].param_file[0].text == str(ROOT / "config" / "samfeat.yaml")
    assert (ROOT / "config" / "samfeat.yaml").is_file()
    assert node["parameters"][1] == {"use_sim_time": False, "autostart": True}
    profile = str(ROOT / "config" / "fastdds_shm.xml")
    assert node["additional_env"] == {profile_variable(): profile} and not node["respawn"]


def test_arguments_reach_the_node(launched, monkeypatch):
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/mine.xml")
    (node,) = launched(
        image_topic="image", engine="eager", model="samfeat", device="cpu", image_transport="compressed",
        namespace="robot", use_sim_time="True", autostart="false", log_level="debug",
    )  # fmt: skip
    assert node["remappings"] == [("image", "image"), ("camera_info", "camera_info"), ("mask", "mask")]
    assert node["namespace"] == "robot"
    assert node["parameters"][1] == {
        "engine": "eager", "model": "samfeat", "device": "cpu", "image_transport": "compressed", "use_sim_time": True,
        "autostart": False,
    }  # fmt: skip
    assert node["arguments"] == ["--ros-args", "--log-level", "robot.samfeat:=debug"]
    assert node["additional_env"] == {}  # the user's own profile stays


def test_a_small_shared_memory_gets_the_small_profile(launched, monkeypatch):
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    room = types.SimpleNamespace(f_blocks=16384, f_frsize=4096)  # 64 MiB
    monkeypatch.setattr(environment.os, "statvfs", lambda path: room)
    assert environment.transport_profile() == ROOT / "config" / environment.SMALL_PROFILE
    (node,) = launched()
    assert node["additional_env"] == {profile_variable(): str(ROOT / "config" / environment.SMALL_PROFILE)}


def test_several_cameras(launched):
    nodes = launched(CAMERAS, cameras="front rear", image_topic="/rig/CAMERA/image", engine="eager", node_name="eyes")
    assert [node["namespace"] for node in nodes] == ["front", "rear"]
    for name, node in zip(("front", "rear"), nodes):
        assert node["name"] == "eyes" and node["parameters"][1]["engine"] == "eager"
        assert node["remappings"] == [
            ("image", f"/rig/{name}/image"), ("camera_info", f"/rig/{name}/camera_info"), ("mask", f"/{name}/mask")
        ]  # fmt: skip
    (node,) = launched(CAMERAS, cameras="left")
    assert node["remappings"][0] == ("image", "/left/image_raw")


@pytest.mark.parametrize("cameras", ["", "a a", "front, rear", "1st"])
def test_cameras_that_are_no_names_are_refused(launched, cameras):
    with pytest.raises(RuntimeError, match="expected different ROS names"):
        launched(CAMERAS, cameras=cameras)


@pytest.mark.parametrize(("name", "value"), [("autostart", "yes"), ("engine", "warp"), ("log_level", "loud")])
def test_a_wrong_choice_is_refused(launched, name, value):
    with pytest.raises(RuntimeError, match=f"(?s){name}.*{value}"):
        launched(**{name: value})


def test_a_required_node_that_fails_makes_the_launch_fail(launch_file):
    from types import SimpleNamespace

    module, running = launch_file(), SimpleNamespace(is_shutdown=False)
    with pytest.raises(RuntimeError, match="samfeat-1 is required, and ended with exit code 1"):
        module.end_launch(SimpleNamespace(process_name="samfeat-1", returncode=1), running)
    assert len(module.end_launch(SimpleNamespace(process_name="samfeat-1", returncode=0), running)) == 1
    assert module.end_launch(SimpleNamespace(returncode=1), SimpleNamespace(is_shutdown=True)) == []
