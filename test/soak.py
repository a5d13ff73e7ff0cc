"""`make soak MINUTES=30`: the node as a robot has it, treated badly for a while.

A camera sends 20 images a second and a CameraInfo every second, one in twenty of them damaged. One thing after the
other happens to the node: image size, encoding and parameters change, subscribers come and go, it is deactivated,
cleaned up, disabled and reset, and the camera dies. In the first third of the time it is killed now and then; after
that one process has to last. After every event its outputs must come again.

Prints what happened and a verdict about outputs, memory, threads, open files, log and exit; exits with 1 when one of
them is bad. The node's logs and `events.log` stay in the output folder.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
import psutil
import typer

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import load  # noqa: E402

from samfeat_core.files import write_json  # noqa: E402
from samfeat_core.measure import machine  # noqa: E402
from samfeat_ros.environment import prepare_environment  # noqa: E402
from samfeat_ros.replay.node_process import TOPICS, NodeProcess  # noqa: E402

IMAGE_HZ = 20
DAMAGED = 0.05  # of the images
SIZES = ((160, 120), (192, 128), (128, 160))
ENCODINGS = ("mono8", "bgr8", "rgb8", "mono16")
OUTPUTS = ("keypoints", "descriptors", "matches", "tracks", "restart", "overlay", "overlay/compressed")
PATIENCE_S = 120.0  # for outputs to come again: an engine may have to be built
EXIT_S = 2.0  # on an idle machine
# Above what the process that has to last had when everything had happened to it once.
MAX_GROWTH = {"memory": 80.0, "threads": 3, "files": 12}
HICCUP_S = 1.0


@dataclass(frozen=True)
class Sample:
    """The node's process at one time."""

    memory: float  # MB
    threads: int
    files: int


class Robot:
    """A camera, consumers and a lifecycle manager around the node in a process of its own."""

    def __init__(self, process: NodeProcess, random: np.random.Generator) -> None:
        from rcl_interfaces.srv import SetParameters
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.process, self.random = process, random
        self.context = Context()
        self.context.init(domain_id=process.domain_id)
        self.peer = Node("robot", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)
        self.clients: dict[str, Any] = {}
        self.set_parameters = SetParameters
        self.size, self.encoding = SIZES[0], ENCODINGS[0]
        self.sent = self.damaged = 0
        self.received: Counter[str] = Counter()
        self.newest_ns = 0  # stamp of the newest keypoints
        self.dropped: Counter[str] = Counter()
        self.processed = 0
        self._status: dict[str, str] = {}
        self._clock_ns = time.time_ns()
        self._next = time.monotonic()
        self.walls = {size: self._wall(*size) for size in SIZES}
        self.subscriptions: dict[str, Any] = {}
        self.camera = self._new_camera()
        self.infos = self._new_publisher("camera_info", "CameraInfo")
        self.subscribe("keypoints")
        self._listen_to_diagnostics()

    # ---- the camera ----

    def _new_publisher(self, topic: str, kind: str) -> Any:
        import sensor_msgs.msg
        from rclpy.qos import qos_profile_sensor_data

        return self.peer.create_publisher(getattr(sensor_msgs.msg, kind), TOPICS[topic], qos_profile_sensor_data)

    def _new_camera(self) -> Any:
        return self._new_publisher("image", "Image")

    def _wall(self, width: int, height: int) -> np.ndarray:
        import cv2

        noise = self.random.integers(0, 256, (height, 4 * width), np.uint8)
        return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)

    def send(self) -> int:
        """Publish one image; its stamp in nanoseconds."""
        import fuzz
        from std_msgs.msg import Header

        from samfeat_ros.messages import ns_to_stamp

        self._clock_ns += 10**9 // IMAGE_HZ
        if self.sent % IMAGE_HZ == 0:
            damaged = self.random.random() < DAMAGED
            self.infos.publish(fuzz.damaged_camera(self.random) if damaged else self._info())
        if self.random.random() < DAMAGED:
            msg = fuzz.damaged_image(self.random)
            self.damaged += 1
        else:
            msg = self._image()
        msg.header = Header(stamp=ns_to_stamp(self._clock_ns), frame_id="camera")
        self.camera.publish(msg)
        self.sent += 1
        return self._clock_ns

    def _image(self) -> Any:
        from sensor_msgs.msg import Image

        width, height = self.size
        left = 2 * self.sent % (3 * width)
        grey = self.walls[self.size][:, left : left + width]
        pixels = {"mono8": grey, "mono16": grey.astype("<u2") * 257}.get(self.encoding)
        pixels = np.ascontiguousarray(np.dstack([grey] * 3) if pixels is None else pixels)
        msg = Image(width=width, height=height, encoding=self.encoding, step=pixels.nbytes // height)
        msg.data.frombytes(pixels.tobytes())
        return msg

    def _info(self) -> Any:
        from sensor_msgs.msg import CameraInfo

        width, height = self.size
        k = [100.0, 0.0, width / 2, 0.0, 100.0, height / 2, 0.0, 0.0, 1.0]
        return CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5, k=k)

    # ---- what goes on meanwhile ----

    def live(self, seconds: float = 0.0) -> None:
        """Let messages come and go, and images at their rate, for some time."""
        end = time.monotonic() + seconds
        while True:
            self.executor.spin_once(timeout_sec=max(0.0, min(self._next - time.monotonic(), 0.05)))
            now = time.monotonic()
            if now >= self._next:
                self._next = max(self._next + 1 / IMAGE_HZ, now)
                self.send()
            if now >= end:
                return

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> float:
        """Live until the condition holds; the seconds that it took, without those in which all of us were stopped."""
        waited, last = 0.0, time.monotonic()
        while not condition():
            self.process.check()
            self.live()
            last, before = time.monotonic(), last
            waited += min(last - before, HICCUP_S)
            if waited > patience_s:
                raise TimeoutError(f"waited {patience_s:.0f} s for {what}; the node says {self._status}")
        return waited

    def outputs_again(self) -> float:
        """Seconds until keypoints of an image from now on come."""
        start_ns = self._clock_ns
        return self.until(lambda: self.newest_ns > start_ns, "keypoints")

    def call(self, kind: type, name: str, request: Any) -> Any:
        client = self.clients.setdefault(name, self.peer.create_client(kind, name))
        self.until(client.service_is_ready, f"the service {name}")
        future = client.call_async(request)
        self.until(future.done, f"an answer of {name}")
        return future.result()

    def transition(self, *labels: str) -> None:
        """Lifecycle transitions, one after the other."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        for label in labels:
            request = ChangeState.Request(transition=Transition(label=label))
            if not self.call(ChangeState, "/samfeat/change_state", request).success:
                raise RuntimeError(f"the transition {label} failed")

    # ---- consumers ----

    def subscribe(self, name: str) -> None:
        from samfeat_ros import topics

        kind = topics.message_class(topics.OUTPUTS[name].type)
        self.subscriptions[name] = self.peer.create_subscription(
            kind, f"/samfeat/{name}", lambda msg: self._take(name, msg), 10
        )

    def _take(self, name: str, msg: Any) -> None:
        from samfeat_ros.messages import stamp_to_ns

        self.received[name] += 1
        if name == "keypoints":
            self.newest_ns = stamp_to_ns(msg.header.stamp)

    def _listen_to_diagnostics(self) -> None:
        from diagnostic_msgs.msg import DiagnosticArray

        from samfeat_ros import node_status

        def take(msg: Any) -> None:
            status = node_status.values_from_msg(msg) or {}
            if int(status.get("frames_in", 0)) < int(self._status.get("frames_in", 0)):  # counts begin again
                self.count()
            self._status = status

        self.peer.create_subscription(DiagnosticArray, "/diagnostics", take, 10)

    def count(self) -> None:
        """Add the last counts of the node to the sums."""
        from samfeat_ros import node_status

        self.dropped.update(node_status.dropped(self._status))
        self.processed += int(self._status.get("frames_processed", 0))
        self._status = {}

    def sample(self) -> Sample:
        process = psutil.Process(self.process.pid)
        return Sample(process.memory_info().rss / 1e6, process.num_threads(), process.num_fds())

    def close(self) -> None:
        self.peer.destroy_node()
        self.context.try_shutdown()


# ---- what happens to the node ----


def resize(robot: Robot) -> None:
    robot.size = SIZES[int(robot.random.integers(len(SIZES)))]


def reencode(robot: Robot) -> None:
    robot.encoding = ENCODINGS[int(robot.random.integers(len(ENCODINGS)))]


def change_parameters(robot: Robot) -> None:
    from rclpy.parameter import Parameter

    values = {
        "max_keypoints": [int(robot.random.integers(50, 1500))],
        "tracker": ["hybrid", "flow", "match"],
        "track_grid": [0, 8],
        "verify": [True, False],
        "tracks_layout": ["fusion", "mono"],
        "ratio": [0.8, 1.0, 7.0],  # the last is refused
    }
    name = list(values)[int(robot.random.integers(len(values)))]
    value = values[name][int(robot.random.integers(len(values[name])))]
    request = robot.set_parameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    (result,) = robot.call(robot.set_parameters, "/samfeat/set_parameters", request).results
    if result.successful == (value == 7.0):
        raise RuntimeError(f"{name} = {value}: {result}")


def subscribers(robot: Robot) -> None:
    """One comes or goes; now and then all of them are gone for a while."""
    name = OUTPUTS[int(robot.random.integers(len(OUTPUTS)))]
    if subscription := robot.subscriptions.pop(name, None):
        robot.peer.destroy_subscription(subscription)
    else:
        robot.subscribe(name)
    if "keypoints" not in robot.subscriptions:
        robot.live(0.2)
        robot.subscribe("keypoints")


def lifecycle(robot: Robot) -> None:
    robot.transition("deactivate", "activate")


def cleanup(robot: Robot) -> None:
    robot.transition("deactivate", "cleanup", "configure", "activate")


def disable(robot: Robot) -> None:
    from std_srvs.srv import SetBool

    for value in (False, True):
        robot.call(SetBool, "/samfeat/enable", SetBool.Request(data=value))


def reset(robot: Robot) -> None:
    from std_srvs.srv import Trigger

    robot.call(Trigger, "/samfeat/reset", Trigger.Request())


def kill_camera(robot: Robot) -> None:
    robot.peer.destroy_publisher(robot.camera)
    robot.camera = robot._new_camera()


def kill_node(robot: Robot) -> None:
    robot.count()
    assert robot.process.process is not None
    robot.process.process.kill()
    robot.process.process.wait()
    robot.process.log = robot.process.log.with_name(f"node_{time.monotonic_ns()}.log")
    robot.process.start()


EVENTS: dict[Callable[[Robot], None], float] = {
    resize: 1, reencode: 1, change_parameters: 2, subscribers: 2, lifecycle: 3, cleanup: 1, disable: 1, reset: 1,
    kill_camera: 1, kill_node: 0.3,
}  # fmt: skip
KILLING_UNTIL = 1 / 3  # of the time


def soak(robot: Robot, seconds: float, journal: TextIO, report: Callable[[str], None]) -> dict[str, Any]:
    """Let things happen for that long; what happened, see the keys. `journal` gets a line for each event."""
    start, recovery = time.monotonic(), defaultdict(list)
    baseline: Sample | None = None
    samples: list[Sample] = []
    said = start
    events, weights = list(EVENTS), np.array(list(EVENTS.values()))
    robot.until(lambda: robot.newest_ns, "the first keypoints", 2 * PATIENCE_S)
    while (elapsed := time.monotonic() - start) < seconds or not samples:
        lasting = elapsed > KILLING_UNTIL * seconds
        if lasting and baseline is None:
            for event in events[:-1]:  # everything once, so that it has what it needs
                event(robot)
            for robot.size in SIZES:
                robot.outputs_again()
            baseline = robot.sample()
        chances = np.where([lasting and event is kill_node for event in events], 0.0, weights)
        event = events[int(robot.random.choice(len(events), p=chances / chances.sum()))]
        journal.write(f"{time.time():.3f} {event.__name__}\n")
        event(robot)
        recovery[event.__name__].append(robot.outputs_again())
        robot.live(0.1)
        samples += [robot.sample()] if baseline else []
        if time.monotonic() - said > 60:
            said = time.monotonic()
            count = sum(map(len, recovery.values()))
            report(f"{elapsed / 60:.0f} min, {count} events, {robot.sample().memory:.0f} MB")
    robot.live(1.5)  # the last report of the node
    robot.count()
    assert baseline is not None
    return {
        "seconds": time.monotonic() - start,
        "recovery_s": {name: {"count": len(times), "max": max(times)} for name, times in recovery.items()},
        "images": robot.sent,
        "images_damaged": robot.damaged,
        "frames_processed": robot.processed,
        "dropped": dict(robot.dropped.most_common()),
        "received": dict(robot.received),
        "baseline": vars(baseline),
        "last_tenth": {
            name: float(np.median([getattr(sample, name) for sample in samples[-max(1, len(samples) // 10) :]]))
            for name in vars(baseline)
        },
        "peak": {name: max(getattr(sample, name) for sample in samples) for name in vars(baseline)},
        "machine": machine(),
    }


def judge(result: dict[str, Any], logs: str, exit_code: int | None, exit_s: float) -> list[str]:
    """What is wrong; nothing where all is well."""
    wrong = []
    for name, limit in MAX_GROWTH.items():
        growth = result["last_tenth"][name] - result["baseline"][name]
        if growth > limit:
            wrong.append(f"{name} grew by {growth:.0f}, expected at most {limit:.0f}")
    if not result["frames_processed"]:
        wrong.append("no frame was processed")
    unexpected = re.findall(r"^.*(?:Traceback|\[ERROR\]|\[FATAL\]|frame lost).*$", logs, re.MULTILINE)
    wrong += [f"in the log: {line[:200]}" for line in unexpected[:5]]
    if exit_code != 0 or exit_s > EXIT_S:
        wrong.append(
            f"ended with exit code {exit_code} after {exit_s:.1f} s of an idle machine, expected 0 within {EXIT_S:.0f}"
        )
    return wrong


def run(minutes: float, seed: int, output: Path, report: Callable[[str], None] = print) -> tuple[dict, list[str]]:
    """One soak; its figures, and what is wrong."""
    prepare_environment()
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("node*.log"):
        old.unlink()
    width, height = SIZES[0]
    parameters = {
        "device": "cpu", "image_width": width, "image_height": height, "cache_dir": str(output / "engines"),
        "threshold": 0.0,
    }  # fmt: skip
    result: dict[str, Any] = {}
    fault: list[str] = []
    process = NodeProcess(parameters, log=output / "node.log")
    with process, (output / "events.log").open("w", buffering=1) as journal:
        robot = Robot(process, np.random.default_rng(seed))
        try:
            result = soak(robot, 60 * minutes, journal, report)
        except Exception as error:  # NodeError, TimeoutError, RuntimeError: the node failed an event
            fault = [f"{type(error).__name__}: {error}"]
        finally:
            with suppress(Exception):
                robot.close()
        asked = time.monotonic()
        process.stop()
        exit_s = (time.monotonic() - asked) / load.slowdown()
        code = process.process.returncode if process.process else None
    logs = "".join(log.read_text(errors="replace") for log in sorted(output.glob("node*.log")))
    return result, fault or judge(result, logs, code, exit_s)


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    events = result["recovery_s"]
    rows = [
        ("time", f"{result['seconds'] / 60:.1f} min"),
        ("images", f"{result['images']} sent, {result['images_damaged']} of them damaged"),
        ("processed", f"{result['frames_processed']}, as far as diagnostics told before the counts began again"),
        ("dropped, as told", ", ".join(f"{cause} {count}" for cause, count in result["dropped"].items())),
        ("received", ", ".join(f"{name} {count}" for name, count in result["received"].items())),
        *((f"  {name}", f"{e['count']} times, outputs again after {e['max']:.2f} s at most")
          for name, e in sorted(events.items())),
        *((name, f"{result['baseline'][name]:.0f} at first, {result['last_tenth'][name]:.0f} at last, "
                 f"{result['peak'][name]:.0f} at most") for name in MAX_GROWTH),
    ]  # fmt: skip
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def main(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.1)] = 30,
    seed: Annotated[int, typer.Option(help="Of the order of events.", min=0)] = 1,
    output: Annotated[Path, typer.Option(help="Folder for logs, engines and soak.json.")] = Path("out/soak"),
) -> None:
    """Treat the node badly; see the module."""
    result, wrong = run(minutes, seed, output)
    if result:
        write_json(output / "soak.json", {**result, "wrong": wrong})
        print(table(result))
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    print("FAILED" if wrong else "passed")
    raise typer.Exit(int(bool(wrong)))


if __name__ == "__main__":
    typer.run(main)
