"""The package as a robot gets it: built by colcon, started by `ros2 launch`, and used over ROS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("colcon_core")
pytest.importorskip("colcon_ros")
import yaml  # noqa: E402
from launch_packages import ros2_command, ros2_environment  # noqa: E402
from ros_rig import FRAME_NS, Camera  # noqa: E402
from sensor_msgs.msg import Image, PointCloud2  # noqa: E402

from samfeat_ros.messages import matches_from_msg, stamp_to_ns  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 10


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a workspace that `colcon build` has filled and whose setup file is sourced."""
    folder = tmp_path_factory.mktemp("workspace")
    build = [sys.executable, "-m", "colcon", "--log-base", "log", "build", "--base-paths", str(ROOT)]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    source = ["sh", "-c", ". install/setup.sh && env -0"]
    text = subprocess.run(source, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout
    environment = dict(entry.split("=", 1) for entry in text.split("\0") if entry)
    assert str(folder) in environment["AMENT_PREFIX_PATH"] and str(folder) in environment["PYTHONPATH"]
    return environment


def test_launched_it_matches_the_images_of_a_camera(rig, installed, weights, engine_cache, tmp_path):
    ros2 = ros2_command()
    if ros2 is None:
        pytest.skip("there is no ros2 command")
    parameters = {"threshold": 0.0, "image_width": 160, "image_height": 120, "cache_dir": engine_cache}
    file = tmp_path / "parameters.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    arguments = {"image_topic": "/camera/image_raw", "weights": weights, "device": "cpu", "params_file": file}
    command = [*ros2, "launch", "samfeat_ros", "samfeat.launch.py", *(f"{k}:={v}" for k, v in arguments.items())]
    got = rig.listen(PointCloud2, "/samfeat/matches")
    camera = Camera(rig, connect=False)
    camera.publisher = rig.publisher(Image, "/camera/image_raw", matched=False)
    environment = {**ros2_environment(installed, tmp_path / "prefix"), "ROS_LOG_DIR": str(tmp_path)}
    log = tmp_path / "launch.log"
    with log.open("wb") as sink:
        launch = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=sink, stderr=sink, start_new_session=True
        )
    try:

        def answered() -> bool:
            assert launch.poll() is None, log.read_text()
            camera.send()
            return bool(got)

        rig.wait(answered, f"the first matches; {log}", period_s=0.1)
        for _ in range(IMAGES):
            msg = camera.frame(got)
            rows = matches_from_msg(msg)
            assert rows.stamp_prev_ns is not None and rows.inlier.sum() > 10
            frames = (stamp_to_ns(msg.header.stamp) - rows.stamp_prev_ns) // FRAME_NS
            motion = (rows.points - rows.points_prev)[rows.inlier]
            np.testing.assert_allclose(np.median(motion, axis=0), [-camera.shift * frames, 0], atol=0.2)
        assert msg.header.frame_id == "camera_optical"
        launch.send_signal(signal.SIGINT)
        assert launch.wait(30) == 0, log.read_text()
        assert "process has finished cleanly" in log.read_text() and "Traceback" not in log.read_text()
    finally:
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGKILL)
            launch.wait()
