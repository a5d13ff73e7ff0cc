"""How many camera images reach other processes of this host, with a Fast DDS profile and this /dev/shm.

    python benchmarks/shared_memory.py [--profile config/fastdds_shm.xml] [--width 640] [--height 480]

One process publishes bgr8 images, best effort, at 30 Hz; others subscribe as the node does. Prints for each of them how
many arrived and how old they were. In a container, or as root in a /dev/shm of 64 MB as containers have it:

    unshare -m sh -c 'mount -t tmpfs -o size=64m tmpfs /dev/shm && python benchmarks/shared_memory.py'
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samfeat_core.measure import percentiles  # noqa: E402
from samfeat_ros.environment import profile_variable  # noqa: E402
from samfeat_ros.replay.node_process import free_domain_id  # noqa: E402

RATE_HZ = 30
START_S = 3.0  # for the processes to find each other
TOPIC = "/camera/image_raw"


def main(
    profile: Annotated[str, typer.Option(help="Fast DDS profile; empty = Fast DDS's own settings.")] = "",
    width: int = 640,
    height: int = 480,
    count: Annotated[int, typer.Option(help="Images.")] = 150,
    subscribers: Annotated[int, typer.Option(help="Processes that subscribe.")] = 2,
    role: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure; see the module."""
    if role:
        {"publish": publish, "subscribe": subscribe}[role](width, height, count)
        return
    environment = {**os.environ, "ROS_DOMAIN_ID": str(free_domain_id()), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment.pop(profile_variable(), None)
    if profile:
        environment[profile_variable()] = str(Path(profile).resolve())
    size = os.statvfs("/dev/shm")
    mebibytes = size.f_blocks * size.f_frsize / 2**20
    print(f"/dev/shm {mebibytes:.0f} MiB, profile {profile or 'none'}, {width}x{height} bgr8", flush=True)
    roles = ["subscribe"] * subscribers + ["publish"]
    options = ["--width", str(width), "--height", str(height), "--count", str(count)]
    started = [
        subprocess.Popen([sys.executable, __file__, *options, "--role", role], env=environment, stderr=subprocess.PIPE)
        for role in roles
    ]
    said = [process.communicate()[1].decode() for process in started]
    print(f"  {sum('Unable to Register SHM' in text for text in said)} processes without shared memory")


def publish(width: int, height: int, count: int) -> None:
    """The camera: the stamp of an image is the monotonic clock, which all processes of a host share."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    from samfeat_ros.messages import ns_to_stamp

    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
    pixels = os.urandom(3 * width * height)
    time.sleep(START_S)
    for _ in range(count):
        msg = Image(width=width, height=height, encoding="bgr8", step=3 * width)
        msg.data.frombytes(pixels)
        msg.header.stamp = ns_to_stamp(time.monotonic_ns())
        publisher.publish(msg)
        time.sleep(1 / RATE_HZ)
    rclpy.try_shutdown()


def subscribe(width: int, height: int, count: int) -> None:
    """The node's side: the newest image, best effort."""
    import rclpy
    from sensor_msgs.msg import Image

    from samfeat_ros.qos import newest
    from samfeat_ros.stamps import stamp_to_ns

    rclpy.init()
    node = rclpy.create_node(f"consumer_{os.getpid()}")
    ages_ms: list[float] = []
    node.create_subscription(
        Image, TOPIC, lambda msg: ages_ms.append((time.monotonic_ns() - stamp_to_ns(msg.header.stamp)) / 1e6), newest()
    )
    end = time.monotonic() + START_S + 1.5 * count / RATE_HZ + 3
    while time.monotonic() < end and len(ages_ms) < count:
        rclpy.spin_once(node, timeout_sec=0.1)
    ages = percentiles(ages_ms) or {"p50": float("nan"), "p99": float("nan")}
    print(f"  {len(ages_ms)} of {count} arrived, p50 {ages['p50']:.1f} ms, p99 {ages['p99']:.1f} ms", flush=True)
    rclpy.try_shutdown()


if __name__ == "__main__":
    typer.run(main)
