"""Where tests find `launch`, `launch_ros` and the ros2 command: in a ROS installation, or in a folder beside this one.

ROS from PyPI has none of them. The folder holds them as pure Python; where neither is there, the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parents[2] / "shared" / "ros_launch" / "site"

# The folder lacks launch's grammar of parameter files with $(substitutions). This one reads files without any.
GRAMMAR = """
template: fragment
fragment: PLAIN_STRING
PLAIN_STRING: /[^$]+/
"""


def ros2_command() -> list[str] | None:
    """What runs `ros2`, None where it is not to be had. From the folder it needs `ros2_environment`."""
    if SITE.is_dir():
        return [sys.executable, "-c", "from ros2cli.cli import main; main()"]
    return [ros2] if (ros2 := shutil.which("ros2")) else None


def ros2_environment(environment: dict[str, str], prefix: Path) -> dict[str, str]:
    """The environment in which `ros2_command` works; `prefix` is an empty folder for an ament prefix."""
    if not SITE.is_dir():
        return environment
    marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / "launch"
    grammar = prefix / "share" / "launch" / "frontend" / "grammar.lark"
    for file, text in ((marker, ""), (grammar, GRAMMAR)):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return {
        **environment,
        "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{SITE}",
        "AMENT_PREFIX_PATH": f"{environment['AMENT_PREFIX_PATH']}{os.pathsep}{prefix}",
    }
