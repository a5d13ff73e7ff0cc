"""Fixtures of all tests. ROS is set up before anything imports rclpy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# A test run talks to itself only: a domain of its own, and no other host.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)

import pytest  # noqa: E402

from samfeat_ros.environment import PROFILE, PROFILE_VARIABLES  # noqa: E402

for _name in PROFILE_VARIABLES:
    os.environ[_name] = str(ROOT / "config" / PROFILE)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A weights file of samfeat-nano: the shipped one, or one with random numbers where none is shipped yet."""
    shipped = ROOT / "samfeat_core" / "weights" / "samfeat-nano.safetensors"
    if shipped.is_file():
        return str(shipped)
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from samfeat_core.models import find_class

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "samfeat-nano.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in find_class("samfeat-nano")().state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory) -> str:
    """A folder in which the tests of one run share built engines."""
    return str(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def rig(weights, engine_cache, capfd):
    """The samfeat node and a peer on real DDS; see ros_rig.py, which reads the log from what capfd makes of stderr."""
    pytest.importorskip("rclpy")
    from ros_rig import Rig

    rig = Rig(
        {
            "weights": weights,
            "cache_dir": engine_cache,
            "device": "cpu",
            "threshold": 0.0,
            "image_width": 160,
            "image_height": 120,
        }
    )
    yield rig
    rig.close()
