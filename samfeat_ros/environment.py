"""The process environment: what ROS needs for large messages and to talk to this host alone, and the threads of BLAS.

Imports no ROS.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

# Each names the profile file of Fast DDS: the first for Kilted, the second for Jazzy and Humble.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
# In config/: 64 MiB for every process, and 8 MiB where /dev/shm is too small for a few of those.
PROFILE, SMALL_PROFILE = "fastdds_shm.xml", "fastdds_shm_small.xml"
SHARED_MEMORY = "/dev/shm"
_ROOM = 256 * 2**20


def prepare_environment() -> None:
    """Let this process and its children talk to this host only, exchange large messages, and keep BLAS to one thread.

    Call it before rclpy is imported. What the user has set (profile files, discovery range) is left alone.
    """
    one_blas_thread()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # Jazzy and later
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ.setdefault("ROS_LOCALHOST_ONLY", "1")
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)  # ROS from PyPI wheels looks for its share folders there
    profile = transport_profile()
    if profile:
        # the publisher needs it as much as the node: without it Fast DDS loses most best-effort messages over 512 KiB
        os.environ.setdefault(profile_variable(), str(profile))


def one_blas_thread() -> None:
    """Keep OpenBLAS, which NumPy and OpenCV bring, to one thread. Call it before they are loaded.

    Its other threads spin for 10 ms after each product of descriptors, on the cores that the network needs.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def transport_profile() -> Path | None:
    """The profile for this machine, in the checkout or in the installed share folder; None where neither has it."""
    name = profile_name()
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [Path(__file__).resolve().parents[1] / "config"]
    folders += [prefix / "share" / "samfeat_ros" / "config" for prefix in [*prefixes, Path(sys.prefix)]]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def profile_name() -> str:
    """The profile for the size of this machine's shared memory; containers have 64 MB unless told otherwise."""
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return PROFILE
    return PROFILE if room.f_blocks * room.f_frsize >= _ROOM else SMALL_PROFILE


def profile_variable() -> str:
    """The variable of this distribution. Kilted reads the old name too, but warns about it."""
    distribution = os.environ.get("ROS_DISTRO")
    old = distribution in ("humble", "iron", "jazzy") or (distribution is None and _is_installed("ros-jazzy-rclpy"))
    return PROFILE_VARIABLES[1] if old else PROFILE_VARIABLES[0]


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
