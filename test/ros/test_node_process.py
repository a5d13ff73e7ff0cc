"""The executable as a process of its own: start, parameters from files, signals, sudden death, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
from load import slowdown  # noqa: E402
from ros_rig import Camera  # noqa: E402
from sensor_msgs.msg import Image, PointCloud2  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0
EXIT_S = 2.0
WARM_S = 1.5  # from the start of the process to the first image, alone on two cores


class Process:
    """samfeat_node in a process of its own; its output goes to a file."""

    def __init__(self, log: Path, *arguments: str, **parameters: str) -> None:
        settings = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "samfeat_ros.node.samfeat_node", "--ros-args", *arguments, *settings]
        self.log = log
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT)

    def text(self) -> str:
        return self.log.read_text()

    def end(self, sign: int | None = None) -> int:
        """Exit code, after a signal."""
        if sign is not None:
            self.process.send_signal(sign)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def start(tmp_path, weights, engine_cache):
    """Starts processes and makes sure that none stays."""
    started: list[Process] = []

    def run(*arguments: str, **parameters: str) -> Process:
        defaults = {
            "weights": weights, "cache_dir": engine_cache, "device": "cpu", "threshold": "0.0", "image_width": "160",
            "image_height": "120", "autostart": "true",
        }  # fmt: skip
        process = Process(tmp_path / f"{len(started)}.log", *arguments, **{**defaults, **parameters})
        started.append(process)
        return process

    yield run
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


def running(rig, process: Process, got: list, camera: Camera) -> None:
    """Wait until frames come through."""
    count = len(got)

    def through() -> bool:
        assert process.process.poll() is None, process.text()
        camera.send()
        time.sleep(0.05)
        return len(got) > count

    rig.wait(through, "frames to come through", TIMEOUT_S)


@pytest.fixture
def camera(rig):
    camera = Camera(rig, connect=False)
    camera.publisher = rig.publisher(Image, "/image", matched=False)
    return camera


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(rig, start, camera, sign):
    got = rig.listen(PointCloud2, "/samfeat/keypoints")
    process = start()
    running(rig, process, got, camera)
    segments = shared_memory(process.process.pid)
    told = time.monotonic()
    assert process.end(sign) == 0
    assert time.monotonic() - told < EXIT_S * slowdown()
    assert "Traceback" not in process.text() and "[ERROR]" not in process.text()
    assert not [path for path in segments if path.exists()]  # a container has little of it


def test_the_node_runs_on_onnx_runtime_without_torch(rig, start, camera):
    got = rig.listen(PointCloud2, "/samfeat/keypoints")
    process = start(engine="onnxruntime")
    running(rig, process, got, camera)
    assert "onnxruntime" in process.text() and "runs samfeat-nano 160x128 on CPUExecutionProvider" in process.text()
    loaded = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert "onnxruntime" in loaded and "libtorch" not in loaded and "libopenvino" not in loaded
    assert process.end(signal.SIGTERM) == 0 and "[ERROR]" not in process.text()


def test_a_warm_start_takes_seconds_and_no_torch(rig, start, camera):
    got = rig.listen(PointCloud2, "/samfeat/keypoints")
    first = start()
    running(rig, first, got, camera)
    assert first.end(signal.SIGTERM) == 0
    began = time.time()
    second = start()
    running(rig, second, got, camera)
    ready = re.search(r"\[INFO\] \[(\d+\.\d+)\] .*waiting for images", second.text())
    assert float(ready[1]) - began < 2 * WARM_S * slowdown()  # twice, because the load changes meanwhile
    assert "building the engine" not in second.text()
    loaded = Path(f"/proc/{second.process.pid}/maps").read_text()
    assert "libopenvino" in loaded and "libtorch" not in loaded
    assert second.end(signal.SIGTERM) == 0


def shared_memory(pid: int) -> set[Path]:
    """Segments of Fast DDS that belong to this process: not the ports, which all share."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    mine, ours = (set(re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}", text)) for text in (maps, own_maps()))
    return {Path(path) for path in mine - ours}


def own_maps() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_engine_is_built(start, tmp_path, sign):
    process = start(autostart="true", cache_dir=str(tmp_path), image_width="1600", image_height="1200", device="auto")
    deadline = time.monotonic() + TIMEOUT_S
    while "building the engine" not in process.text() and time.monotonic() < deadline:
        time.sleep(0.02)
    told = time.monotonic()
    assert process.end(sign) == 0
    assert time.monotonic() - told < EXIT_S * slowdown()
    assert "Traceback" not in process.text() and "[ERROR]" not in process.text()


def test_a_signal_while_an_engine_is_built_in_this_process(start, tmp_path):
    process = start(cache_dir=str(tmp_path), engine="compile")
    deadline = time.monotonic() + TIMEOUT_S
    while "engine compile" not in process.text() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(2)
    told = time.monotonic()
    assert process.end(signal.SIGTERM) == 0, process.text()
    assert time.monotonic() - told < EXIT_S * slowdown()
    assert "Traceback" not in process.text() and "[ERROR]" not in process.text()


def test_a_request_that_ros_refuses_does_not_end_the_node():
    code = (
        "import rclpy; from rclpy.executors import *; from samfeat_ros.node import samfeat_node as module\n"
        "rclpy.init(); node = module.SamfeatNode(); executor = SingleThreadedExecutor(); executor.add_node(node)\n"
        "calls = []\n"
        "def work():\n"
        "    calls.append(1)\n"
        "    if len(calls) == 1: raise RuntimeError('transition is not registered')\n"
        "    rclpy.try_shutdown()\n"
        "node.create_timer(0.05, work)\n"
        "try: module._spin(node, executor)\n"
        "except ExternalShutdownException: pass\n"
        "print('calls', len(calls))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert "calls 2" in done.stdout, done.stderr
    assert "refused: RuntimeError: transition is not registered" in done.stderr


def test_a_signal_while_unconfigured(start):
    process = start(autostart="false")
    time.sleep(2)
    assert process.end(signal.SIGINT) in (0, -signal.SIGINT)  # the latter if Python was still starting
    assert "[ERROR]" not in process.text()


def test_it_starts_again_at_once_after_sudden_death(rig, start, camera):
    got = rig.listen(PointCloud2, "/samfeat/keypoints")
    first = start()
    running(rig, first, got, camera)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    second = start()
    running(rig, second, got, camera)
    assert second.end(signal.SIGTERM) == 0


def test_it_survives_the_sudden_death_of_the_camera(rig, start, camera, tmp_path):
    got = rig.listen(PointCloud2, "/samfeat/keypoints")
    process = start()
    code = (
        "import rclpy, time; from sensor_msgs.msg import Image; from rclpy.qos import qos_profile_sensor_data as q\n"
        "rclpy.init(); n = rclpy.create_node('camera'); p = n.create_publisher(Image, '/image', q)\n"
        "m = Image(encoding='mono8', width=160, height=120, step=160); m.data.frombytes(bytes(range(240)) * 80)\n"
        "while True: p.publish(m); time.sleep(0.02)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    try:
        rig.wait(lambda: got, "frames of the other process", TIMEOUT_S)
    finally:
        other.kill()
        other.wait()
    running(rig, process, got, camera)
    assert process.end(signal.SIGINT) == 0


def test_parameters_from_the_shipped_file(rig, start, camera):
    got = rig.listen(PointCloud2, "/robot/samfeat/keypoints")
    process = start(
        "--params-file", str(ROOT / "config" / "samfeat.yaml"), "-r", "__ns:=/robot", "-r", "image:=/image",
        max_keypoints="33",
    )  # fmt: skip
    running(rig, process, got, camera)
    assert got[-1].width == 33
    assert process.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("parameters", "code", "text"),
    [
        ({"weights": "/no/such/file.safetensors"}, 1, "cannot configure: /no/such/file.safetensors"),
        ({"device": "abacus"}, 1, "cannot configure: device is 'abacus'"),
        ({"max_keypoints": "-5"}, 2, "max_keypoints"),
        ({"max_keypoints": "many"}, 2, "max_keypoints"),
        ({"ratio": "7.0"}, 2, "ratio"),
    ],
)
def test_what_cannot_be_ends_with_one_line_and_a_code(start, parameters, code, text):
    process = start(**parameters)
    assert process.end() == code, process.text()
    lines = [line for line in process.text().splitlines() if "PROFILES_FILE" not in line and "[INFO]" not in line]
    assert len(lines) == 1 and text in lines[0]


def test_a_params_file_that_is_no_yaml_gives_one_line(start, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: [b\n  c: {")
    process = start("--params-file", str(path))
    assert process.end() == 2
    lines = [line for line in process.text().splitlines() if line.startswith("samfeat:")]
    assert len(lines) == 1 and str(path) in lines[0] and "Traceback" not in process.text()


def test_what_a_params_file_says_in_vain_is_a_warning(start, tmp_path):
    mine, others = tmp_path / "mine.yaml", tmp_path / "others.yaml"
    mine.write_text("/**: {ros__parameters: {max_keypoint: 5, unheard_of: 1, use_sim_time: false}}")
    others.write_text(
        "front: {ros__parameters: {max_keypoints: 5}}\n/robot: {samfeat: {ros__parameters: {ratio: 0.5}}}"
    )
    process = start("--params-file", str(mine), "--params-file", str(others), autostart="false")
    deadline = time.monotonic() + TIMEOUT_S
    while process.text().count("[samfeat]: ") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.end(signal.SIGINT)
    lines = [line.split("]: ")[1] for line in process.text().splitlines() if "[samfeat]: " in line]
    assert lines == [
        "this node has no parameters 'max_keypoint' (did you mean max_keypoints?), 'unheard_of'",
        f"{others} sets nothing for /samfeat: it is for the nodes '/front', '/robot/samfeat'",
    ]


def test_a_file_that_yaml_cannot_read_names_nobody(tmp_path):
    from samfeat_ros.node.params_files import _sections_of

    (tmp_path / "odd.yaml").write_text("/**: {ros__parameters: {a: !strange 5}}")
    (tmp_path / "latin.yaml").write_bytes(b"/**: {ros__parameters: {a: '\xe9'}}")
    assert [_sections_of(str(tmp_path / name)) for name in ("odd.yaml", "latin.yaml", "none.yaml")] == [[], [], []]


@pytest.mark.parametrize(
    ("section", "node", "matches"),
    [
        ("/**", "/samfeat", True),
        ("/**", "/a/b/samfeat", True),
        ("/**/samfeat", "/a/b/samfeat", True),
        ("/**/samfeat", "/samfeat", True),
        ("/*/samfeat", "/a/samfeat", True),
        ("/*/samfeat", "/samfeat", False),
        ("/*", "/samfeat", True),
        ("/*", "/a/samfeat", False),
        ("/samfeat", "/a/samfeat", False),
        ("/a/samfeat", "/a/samfeat", True),
        ("/samfea.", "/samfeat", False),
    ],
)
def test_sections_match_as_rcl_matches_them(section, node, matches):
    from samfeat_ros.node.params_files import _matches

    assert _matches(section, node) == matches
