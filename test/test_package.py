"""What the ROS tools read: package.xml, setup.py, the profile, and what an install contains."""

from __future__ import annotations

import ast
import configparser
import json
import re
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from samfeat_ros.topics import OUTPUTS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("samfeat_core", "samfeat_ros", "training", "benchmarks")
# Every rosdep key of these names resolves on Humble, Jazzy and Kilted.
KEYS = {
    "rclpy", "sensor_msgs", "std_msgs", "std_srvs", "diagnostic_msgs", "lifecycle_msgs", "cv_bridge", "launch",
    "launch_ros", "python3-opencv", "python3-numpy",
}  # fmt: skip
# Modules that come under another name, by what package.xml or setup.py calls them.
DISTRIBUTION = {"cv2": "python3-opencv", "numba": "python3-numba", "numpy": "python3-numpy", "rerun": "rerun-sdk"}
DISTRIBUTION |= {"yaml": "python3-yaml"}
# Used where it is there, never installed by us: NVIDIA's own builds (docs/robot.md), messages for viewers.
WHERE_THERE = {"torch_tensorrt", "visualization_msgs"}
# Declared, but imported by the launch file or the tests, or a second name of what rosdep brings.
NOT_IMPORTED = {
    "ament_index_python", "launch", "launch_ros", "ros2launch", "pytest", "opencv-python-headless", "PyYAML",
    "setuptools", "numpy",
}  # fmt: skip


@pytest.fixture
def setup_arguments(monkeypatch) -> dict:
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    seen: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: seen.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return seen


def dependencies() -> set[str]:
    package = ET.parse(ROOT / "package.xml").getroot()
    return {element.text or "" for kind in ("depend", "exec_depend") for element in package.findall(kind)}


def test_package_xml_is_format_3_of_ament_python():
    package = ET.parse(ROOT / "package.xml").getroot()
    assert package.get("format") == "3"
    assert package.findtext("name") == "samfeat_ros"
    assert package.findtext("license") == "Apache-2.0"
    assert package.findtext("export/build_type") == "ament_python"
    assert dependencies() >= KEYS
    order = [element.tag for element in package]
    assert order.index("name") < order.index("version") < order.index("description") < order.index("maintainer")


def test_versions_and_licences_agree(setup_arguments):
    package = ET.parse(ROOT / "package.xml").getroot()
    assert setup_arguments["version"] == package.findtext("version")
    assert setup_arguments["license"] == package.findtext("license")
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    newest = re.search(r"^(\d+\.\d+\.\d+) ", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert newest and newest[1] == setup_arguments["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == setup_arguments["version"]
    assert citation["license"] == setup_arguments["license"]


def test_every_import_of_the_robot_is_declared_and_nothing_else_is(setup_arguments):
    lists = [setup_arguments["install_requires"], *setup_arguments["extras_require"].values()]
    declared = dependencies() | {re.split("[<>=]", name)[0] for names in lists for name in names}
    used = set()
    for path in [*(ROOT / "samfeat_ros").rglob("*.py"), *(ROOT / "samfeat_core").rglob("*.py")]:
        for module in third_party_imports(path):
            used |= {module, DISTRIBUTION.get(module, module)}
            assert DISTRIBUTION.get(module, module) in declared or module in WHERE_THERE, f"{path}: {module}"
    unused = {name for name in declared - NOT_IMPORTED if not {name, name.removeprefix("python3-")} & used}
    assert not unused


def third_party_imports(path: Path) -> set[str]:
    """Top-level names of what a file imports from outside the project and the standard library."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"samfeat_core", "samfeat_ros"}


def test_every_requirement_is_pinned_once():
    lines = [
        line for name in ("requirements.txt", "requirements-dev.txt") for line in (ROOT / name).read_text().splitlines()
    ]
    pins = [line for line in lines if line and not line.startswith(("#", "-r "))]
    names = [pin.split("==")[0] for pin in pins]
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", pin) for pin in pins)
    assert len(set(names)) == len(names)


def test_the_lock_has_every_requirement_with_hashes():
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text())[1:]
    locked = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", entry).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), name
        locked[name] = version
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                name, version = re.sub(r"\[\w+\]", "", line).lower().split("==")
                assert locked.get(name.replace("_", "-")) == version, f"{line}: make lock"
    assert len(locked) > 150  # what they need, too


def test_nothing_is_unpickled_that_could_run_code():
    """torch.load reads tensors only, np.load no pickles; the one unpickler of arrays knows what it may call."""
    for path in [path for folder in ROOMS for path in sorted((ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert name != "torch.load" or options.get("weights_only") == "True", where
            assert options.get("allow_pickle", "False") == "False", where
            assert not re.fullmatch(r"(?:pickle|joblib|dill)\.loads?|pickle\.Unpickler", name), where


def test_the_service_starts_what_is_there():
    unit = configparser.RawConfigParser(strict=False)
    unit.read(ROOT / "config" / "samfeat.service")
    command = unit["Service"]["ExecStart"]
    assert "ros2 launch samfeat_ros samfeat.launch.py required:=true" in command
    assert unit["Service"]["KillSignal"] == "SIGINT"  # ros2 launch passes on nothing else


def test_the_robot_gets_no_training(setup_arguments):
    packages = setup_arguments["packages"]
    assert {"samfeat_core", "samfeat_ros"} <= set(packages)
    assert {name.split(".")[0] for name in packages} == {"samfeat_core", "samfeat_ros"}
    for name in packages:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file()


@pytest.mark.parametrize("package", ["samfeat_core", "samfeat_ros"])
def test_every_file_of_the_packages_is_installed(setup_arguments, package):
    folder = ROOT / package
    installed = {path for pattern in setup_arguments["package_data"][package] for path in folder.glob(pattern)}
    here = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".nbc", ".nbi")}
    assert installed == here
    assert folder / "py.typed" in here  # PEP 561


def test_share_files_are_installed(setup_arguments):
    files = dict(setup_arguments["data_files"])
    assert files["share/ament_index/resource_index/packages"] == ["resource/samfeat_ros"]
    assert files["share/samfeat_ros"] == ["package.xml"]
    assert set(files["share/samfeat_ros/launch"]) == {"launch/samfeat.launch.py", "launch/cameras.launch.py"}
    configs = {"samfeat.yaml", "fastdds_shm.xml", "fastdds_shm_small.xml", "samfeat.rviz", "foxglove.json"}
    configs |= {"samfeat.service"}
    assert {f"config/{name}" for name in configs} == set(files["share/samfeat_ros/config"])
    assert "samfeat_ros/rtabmap/samfeat_rtabmap.py" in files["share/samfeat_ros/rtabmap"]
    assert all((ROOT / path).is_file() for paths in files.values() for path in paths)


def test_executables(setup_arguments):
    scripts = setup_arguments["entry_points"]["console_scripts"]
    names = {script.split(" = ")[0] for script in scripts}
    assert names == {"samfeat_node", "sequence_to_bag", "demo", "evaluate_bag", "visual_odometry"}
    for script in scripts:
        assert re.fullmatch(r"\w+ = samfeat_ros\.\w+\.\w+:main", script)
    # colcon puts them where `ros2 run` and launch look
    assert "install_scripts=$base/lib/samfeat_ros" in (ROOT / "setup.cfg").read_text()
    assert setup_arguments["extras_require"]["test"] == ["pytest"]


def test_layouts_show_topics_that_are_there():
    """As far as that goes without the viewers: the files are read, and every topic is the node's or the odometry's."""
    rviz = yaml.safe_load((ROOT / "config" / "samfeat.rviz").read_text())
    shown = [display["Topic"] for display in rviz["Visualization Manager"]["Displays"] if "Topic" in display]
    assert {topic["Reliability Policy"] for topic in shown} == {"Reliable"}  # as the node publishes
    foxglove = json.loads((ROOT / "config" / "foxglove.json").read_text())
    panels = re.findall(r'"(\w+!\w+)"', json.dumps(foxglove["layout"]))
    assert sorted(panels) == sorted(foxglove["configById"])
    topics = {topic["Value"] for topic in shown}
    topics |= set(re.findall(r'"(/(?:samfeat|visual_odometry)/[\w/]+)"', json.dumps(foxglove)))
    assert topics - {"/visual_odometry/path", "/visual_odometry/odometry"} <= {f"/samfeat/{name}" for name in OUTPUTS}
    assert "/samfeat/annotations" in topics and "/samfeat/overlay" in topics
    odometry = (ROOT / "samfeat_ros" / "odometry" / "visual_odometry.py").read_text()
    assert '"~/path"' in odometry and '"~/odometry"' in odometry


@pytest.mark.parametrize(("name", "mebibytes"), [("fastdds_shm.xml", (64, 16)), ("fastdds_shm_small.xml", (8, 8))])
def test_shared_memory_profiles(name, mebibytes):
    text = re.sub(r' xmlns="[^"]+"', "", (ROOT / "config" / name).read_text(), count=1)
    profile = ET.fromstring(text)
    descriptor = next(d for d in profile.iter("transport_descriptor") if d.findtext("type") == "SHM")
    sizes = tuple(int(descriptor.findtext(key) or 0) / 2**20 for key in ("segment_size", "maxMessageSize"))
    assert sizes == mebibytes
    participant = next(profile.iter("participant"))
    assert participant.get("is_default_profile") == "true"
    used = {element.text for element in participant.iter("transport_id")}
    assert used == {d.findtext("transport_id") for d in profile.iter("transport_descriptor")}
