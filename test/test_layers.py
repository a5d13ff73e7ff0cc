"""Who may import whom, and who must not pull torch in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "samfeat_core": {"samfeat_ros", "training", "rclpy"},
    "samfeat_ros": {"training"},
    "training": {"samfeat_ros", "rclpy"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_follow_the_layers(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): found for path in files if (found := imported(path) & FORBIDDEN[package])}
    assert not wrong


def loaded_by(module: str, *, ros: bool = False) -> set[str]:
    """Top-level modules in a fresh interpreter after an import."""
    if ros:
        pytest.importorskip("rclpy")
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["samfeat_core", "samfeat_core.extractor", "samfeat_core.tracking"])
def test_the_core_starts_without_torch_and_ros(module):
    assert not loaded_by(module) & {"torch", "openvino", "rclpy", "training"}


def test_the_node_starts_without_torch():
    assert not loaded_by("samfeat_ros.node.samfeat_node", ros=True) & {"torch", "torchvision", "openvino", "training"}
