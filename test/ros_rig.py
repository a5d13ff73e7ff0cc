"""The samfeat node and a peer on real DDS inside a test: start, publish, listen, call, wait."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from samfeat_ros.messages import image_to_msg, ns_to_stamp, stamp_to_ns
from samfeat_ros.node.samfeat_node import SamfeatNode

TIMEOUT_S = 120.0
FRAME_NS = 50_000_000
FOCAL = 300.0
CONSOLE = Path("/proc/self/fd/2")


class Spinner:
    """A node that spins in a thread, in a ROS context of its own."""

    def __init__(self, make: Callable[[Context], Node]) -> None:
        self.context = Context()
        self.context.init()
        self.node = make(self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self.executor.spin()

    def close(self) -> None:
        self.executor.shutdown()
        self.thread.join(TIMEOUT_S)
        close = getattr(self.node, "close", self.node.destroy_node)
        close()
        self.context.try_shutdown()
        # A lifecycle node holds its services until it is collected; the next node would share its name with a ghost.
        del self.node, self.executor, close
        gc.collect()


class Rig:
    """A peer node that talks to nodes under test.

    Args:
        defaults: parameters that every samfeat node of this rig gets.
    """

    def __init__(self, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.clients: dict[str, Any] = {}
        self.spinners: list[Spinner] = []
        self.peer = self._spinner(lambda context: Node("peer", context=context)).node

    def _spinner(self, make: Callable[[Context], Node]) -> Spinner:
        spinner = Spinner(make)
        self.spinners.append(spinner)
        return spinner

    def close(self) -> None:
        for spinner in reversed(self.spinners):
            spinner.close()

    # ---- the node under test ----

    def node(self, *, start: bool = True, arguments: tuple[str, ...] = (), **parameters: Any) -> SamfeatNode:
        """A samfeat node in this process; `start` configures and activates it."""
        values = {**self.defaults, **parameters}

        def make(context: Context) -> SamfeatNode:
            node = SamfeatNode(
                context=context,
                cli_args=["--ros-args", *arguments] if arguments else None,
                parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
            )
            assert not start or node.start()
            return node

        node = self._spinner(make).node
        self.wait(lambda: "samfeat" in self.peer.get_node_names(), "the node on the graph")
        return node

    # ---- what the peer does ----

    def listen(self, kind: type, topic: str, qos: Any = 10) -> list:
        """Subscribe; the list that messages arrive in."""
        got: list = []
        self.peer.create_subscription(kind, topic, got.append, qos)
        return got

    def output(self, kind: type, name: str) -> list:
        """Listen to an output of the node under test, and wait until the node knows."""
        node = self.spinners[-1].node
        got = self.listen(kind, f"{node.get_fully_qualified_name()}/{name}")
        self.wait(lambda: name in node._outputs.wanted(), f"a subscription of {name}")
        return got

    def publisher(self, kind: type, topic: str, qos: Any = qos_profile_sensor_data, matched: bool = True) -> Any:
        publisher = self.peer.create_publisher(kind, topic, qos)
        if matched:
            self.wait(lambda: publisher.get_subscription_count() > 0, f"a subscription of {topic}")
        return publisher

    def call(self, kind: type, name: str, request: Any) -> Any:
        """The answer of a service."""
        if name not in self.clients:
            self.clients[name] = self.peer.create_client(kind, name)
        assert self.clients[name].wait_for_service(TIMEOUT_S), name
        future = self.clients[name].call_async(request)
        self.wait(future.done, f"an answer of {name}")
        return future.result()

    def transition(self, label: str, node: str = "/samfeat") -> bool:
        """Ask for a lifecycle transition by its name (configure, activate, ...)."""
        request = ChangeState.Request(transition=Transition(label=label))
        return self.call(ChangeState, f"{node}/change_state", request).success

    def state(self, node: str = "/samfeat") -> str:
        return self.call(GetState, f"{node}/get_state", GetState.Request()).current_state.label

    def set(self, **values: Any) -> tuple[bool, str]:
        """Set parameters together from outside; success and the reasons against."""
        client_request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        )
        results = self.call(SetParameters, "/samfeat/set_parameters", client_request).results
        return all(result.successful for result in results), "; ".join(result.reason for result in results)

    @property
    def log(self) -> str:
        """Everything that the test wrote to stderr, the console of ROS logging.

        Read from the file that pytest's capture makes of stderr: capfd.readouterr() empties that file after reading it,
        and loses what a thread writes in between.
        """
        return CONSOLE.read_text(errors="replace")

    def lines(self, level: str, containing: str = "") -> list[str]:
        """What the node under test logged at a level (INFO, WARN, ERROR); line breaks inside a message stay."""
        entries = re.split(
            r"^\[(DEBUG|INFO|WARN|ERROR|FATAL)\] \[[\d.]+\] \[([\w./]+)\]: ", self.log, flags=re.MULTILINE
        )
        found = zip(entries[1::3], entries[2::3], entries[3::3])
        said = [text.rstrip("\n") for severity, name, text in found if severity == level and name.endswith("samfeat")]
        return [text for text in said if containing in text]

    def wait(
        self,
        condition: Callable[[], Any],
        what: str = "a condition",
        timeout_s: float = TIMEOUT_S,
        period_s: float = 0.01,
    ) -> Any:
        """Poll until the condition holds; its value."""
        end = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}; log:\n{self.log}"
            time.sleep(period_s)
        return value


class Camera:
    """A camera that looks at a textured wall and moves sideways by whole pixels.

    Args:
        rig: gives it a publisher.
        width, height: of its images.
        shift: pixels per frame that the scene moves to the left.
    """

    def __init__(
        self, rig: Rig, topic: str = "/image", width: int = 160, height: int = 120, shift: int = 2, connect: bool = True
    ) -> None:
        self.rig, self.shift = rig, shift
        self.width, self.height = width, height
        self.count = 0
        self.start_ns = 1_700_000_000_000_000_000
        noise = np.random.default_rng(3).integers(0, 256, (height, width * 8), np.uint8)
        blurred = cv2.GaussianBlur(noise, (0, 0), 2.0)
        self.wall = cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX)
        if connect:
            self.connect(rig.publisher(Image, topic))

    def connect(self, publisher: Any, msg: Any = None) -> None:
        """Publish until the node hears it: best effort loses what comes before both sides know each other."""
        self.publisher = publisher
        node = self.rig.spinners[-1].node

        def heard() -> bool:
            self.publisher.publish(msg or image_to_msg(self.header(), self.image))
            time.sleep(0.02)
            return node.statistics.frames_in > 0

        self.rig.wait(heard, "the first image")

    @property
    def image(self) -> np.ndarray:
        """(height, width) uint8 of the next frame."""
        left = (self.count * self.shift) % (self.wall.shape[1] - self.width)
        return np.ascontiguousarray(self.wall[: self.height, left : left + self.width])

    def header(self) -> Header:
        return Header(stamp=self.stamp(), frame_id="camera_optical")

    def stamp(self) -> Time:
        return ns_to_stamp(self.start_ns + self.count * FRAME_NS)

    def send(self, msg: Image | None = None) -> Header:
        """Publish the next frame (or a message of the caller's in its place); its header."""
        header = self.header()
        if msg is None:
            msg = image_to_msg(header, self.image)
        msg.header = header
        self.publisher.publish(msg)
        self.count += 1
        return header

    def frame(self, got: list, msg: Image | None = None) -> Any:
        """Publish one frame and wait for the message about it in `got`."""
        header = self.send(msg)

        def answer() -> Any:
            return next((m for m in reversed(got) if stamp_to_ns(m.header.stamp) == stamp_to_ns(header.stamp)), None)

        return self.rig.wait(answer, "an output with the stamp of the frame")

    def info(self) -> CameraInfo:
        center = (self.width - 1) / 2, (self.height - 1) / 2
        return CameraInfo(
            header=self.header(),
            width=self.width,
            height=self.height,
            distortion_model="plumb_bob",
            d=[0.0] * 5,
            k=[FOCAL, 0.0, center[0], 0.0, FOCAL, center[1], 0.0, 0.0, 1.0],
            p=[FOCAL, 0.0, center[0], 0.0, 0.0, FOCAL, center[1], 0.0, 0.0, 0.0, 1.0, 0.0],
        )
