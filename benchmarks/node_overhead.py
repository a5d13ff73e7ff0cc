"""What the node costs besides the network: image message in, decoded, matched, published. Prints p50 and p99 per stage.

    python benchmarks/node_overhead.py [--frames 200] [--width 640] [--height 480]

The real node runs in a process of its own on the CPU; its own stage clocks are read from /diagnostics, and the way of a
message there and back (publish to receipt, less the time inside the node) is measured from outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import typer

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
for _name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
    os.environ.setdefault(_name, str(ROOT / "config" / "fastdds_shm.xml"))
sys.path.insert(0, str(ROOT))

STAGES = ("queue", "decode", "network", "match", "publish", "total")


def main(frames: int = 200, width: int = 640, height: int = 480, rate: float = 10.0, weights: str = "") -> None:
    """Measure the node on a moving texture."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image, PointCloud2
    from std_msgs.msg import Header

    from samfeat_ros.messages import image_to_msg, ns_to_stamp
    from samfeat_ros.node.diagnostics import values_from_msg

    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    settings = {"autostart": "true", "device": "cpu", "image_width": str(width), "image_height": str(height)}
    if weights:
        settings["weights"] = weights
    options = [part for name, value in settings.items() for part in ("-p", f"{name}:={value}")]
    node = subprocess.Popen([sys.executable, "-m", "samfeat_ros.node.samfeat_node", "--ros-args", *options], cwd=ROOT)
    try:
        rclpy.init()
        peer = rclpy.create_node("overhead")
        publisher = peer.create_publisher(Image, "/image", qos_profile_sensor_data)
        received: dict[int, float] = {}
        reports: list[dict[str, str]] = []
        for name in ("descriptors", "matches"):
            peer.create_subscription(PointCloud2, f"/samfeat/{name}", lambda msg: None, 10)
        peer.create_subscription(
            PointCloud2, "/samfeat/keypoints", lambda msg: received.setdefault(_ns(msg), time.monotonic()), 10
        )
        peer.create_subscription(
            DiagnosticArray, "/diagnostics", lambda msg: reports.append(values_from_msg(msg) or {}), 10
        )
        sent: dict[int, float] = {}
        wall = _texture(width, height)
        while len(received) < frames:
            if node.poll() is not None:
                raise SystemExit(f"the node ended with exit code {node.returncode}")
            stamp = len(sent) * 33_000_000 + 1_000_000_000
            left = 2 * (len(sent) % 100)
            msg = image_to_msg(Header(stamp=ns_to_stamp(stamp)), wall[:, left : left + width])
            sent[stamp] = time.monotonic()
            publisher.publish(msg)
            end = time.monotonic() + 1 / rate
            while (left_s := end - time.monotonic()) > 0:
                rclpy.spin_once(peer, timeout_sec=left_s)
        seen = len(reports)
        while len(reports) == seen:
            rclpy.spin_once(peer, timeout_sec=1.0)
        _print(reports[-1], np.array([received[stamp] - sent[stamp] for stamp in received]) * 1e3)
    finally:
        node.terminate()
        node.wait()
        rclpy.shutdown()


def _ns(msg: object) -> int:
    from samfeat_ros.messages import stamp_to_ns

    return stamp_to_ns(msg.header.stamp)  # type: ignore[attr-defined]


def _texture(width: int, height: int) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (height, width + 200), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)


def _print(report: dict[str, str], there_and_back_ms: np.ndarray) -> None:
    print(f"{'stage':<16}{'p50 ms':>10}{'p99 ms':>10}")
    for stage in STAGES:
        p50, p99 = (float(report[f"latency_{stage}_{q}_ms"]) for q in ("p50", "p99"))
        print(f"{stage:<16}{p50:>10.2f}{p99:>10.2f}")
    p50, p99 = np.percentile(there_and_back_ms, [50, 99])
    print(f"{'there and back':<16}{p50:>10.2f}{p99:>10.2f}   image published to keypoints received")
    own = sum(float(report[f"latency_{stage}_p50_ms"]) for stage in ("queue", "decode", "publish"))
    print(f"node without network and matching, p50: {own:.2f} ms; keypoints {report['keypoints']}")


if __name__ == "__main__":
    typer.run(main)
