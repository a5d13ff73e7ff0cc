"""Who may import whom, and who must not pull torch in."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Files (a glob below the root) -> packages that none of them imports.
FORBIDDEN = {
    "samfeat_core/**/*.py": {"samfeat_ros", "training", "rclpy"},
    "samfeat_ros/**/*.py": {"training"},
    "samfeat_ros/*.py": {"samfeat_ros.node", "samfeat_ros.odometry", "samfeat_ros.replay"},
    "samfeat_ros/node/**/*.py": {"samfeat_ros.odometry", "samfeat_ros.replay"},
    "samfeat_ros/odometry/**/*.py": {"samfeat_ros.node", "samfeat_ros.replay"},
    "samfeat_ros/replay/bags/**/*.py": {"samfeat_ros.node", "samfeat_ros.odometry", "rclpy"},
    "launch/*.py": {"samfeat_ros.node", "samfeat_ros.odometry", "samfeat_ros.replay", "rclpy"},
    "training/**/*.py": {"samfeat_ros", "rclpy"},
    # the loop is the lowest, then the data, then what is trained; commands on top
    "training/loop/*.py": {"training.data", "training.samfeat", "training.scfeat", "training.evaluation"},
    "training/data/*.py": {"training.samfeat", "training.scfeat", "training.evaluation"},
    "training/samfeat/**/*.py": {"training.scfeat", "training.evaluation"},
    "training/scfeat/*.py": {"training.samfeat", "training.evaluation"},
    "training/evaluation/*.py": {"training.loop", "training.samfeat", "training.scfeat"},
}
TRAINING_COMMANDS = {path.stem for path in (ROOT / "training").glob("*.py") if "__main__" in path.read_text()}


def with_parents(name: str) -> set[str]:
    """a, a.b and a.b.c of a.b.c."""
    parts = name.split(".")
    return {".".join(parts[: count + 1]) for count in range(len(parts))}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code, with the packages it lies in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {parent for name in names for parent in with_parents(name)}


@pytest.mark.parametrize("files", FORBIDDEN)
def test_imports_follow_the_layers(files):
    paths = sorted(ROOT.glob(files))
    assert paths
    wrong = {str(path.relative_to(ROOT)): found for path in paths if (found := imported(path) & FORBIDDEN[files])}
    assert not wrong


def test_nothing_of_training_imports_a_command():
    """What two commands need lies in `training.cli` or below."""
    assert {"train", "teach", "label", "pairs", "evaluate"} <= TRAINING_COMMANDS
    commands = {f"training.{name}" for name in TRAINING_COMMANDS}
    paths = sorted((ROOT / "training").rglob("*.py"))
    wrong = {str(path.relative_to(ROOT)): found for path in paths if (found := imported(path) & commands)}
    assert not wrong


def test_the_loop_names_nothing_that_is_trained():
    for path in (ROOT / "training" / "loop").glob("*.py"):
        words = set(re.findall(r"\w+", path.read_text().lower()))
        assert not words & {"samfeat", "samfeattask", "scfeat", "shapes", "teacher", "photos"}, path


def loaded_by(module: str, *, ros: bool = False) -> set[str]:
    """Modules in a fresh interpreter after an import."""
    if ros:
        pytest.importorskip("rclpy")
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["samfeat_core", "samfeat_core.extractor", "samfeat_core.tracking"])
def test_the_core_starts_without_torch_and_ros(module):
    assert not loaded_by(module) & {"torch", "openvino", "rclpy", "training"}


def test_the_node_starts_without_torch_and_replay():
    loaded = loaded_by("samfeat_ros.node.samfeat_node", ros=True)
    assert not loaded & {"torch", "torchvision", "openvino", "training", "rosbags", "typer"}
    assert not loaded & {"samfeat_ros.replay", "samfeat_ros.odometry"}


def test_the_node_limits_blas_before_it_is_loaded():
    """OpenBLAS reads its number of threads once."""
    code = (
        "import os, sys, samfeat_ros.node; "
        "print(os.environ['OPENBLAS_NUM_THREADS'], {'numpy', 'cv2'} & set(sys.modules))"
    )
    for given, kept in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        env = {**{k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}, **given}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env, timeout=60
        )
        assert done.stdout.split(maxsplit=1) == [kept, "set()\n"], done.stderr


@pytest.mark.parametrize("command", ["demo", "evaluate_bag", "sequence_to_bag"])
def test_commands_import_ros_only_when_its_environment_is_prepared(command):
    pytest.importorskip("rosbags")
    assert not loaded_by(f"samfeat_ros.replay.{command}") & {"rclpy", "sensor_msgs", "torch"}
