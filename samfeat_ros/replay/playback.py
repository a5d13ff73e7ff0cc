"""Playing a recording to the real node over ROS and taking in what comes back: for the demo and for the evaluation.

    prepare_environment()                                  # before rclpy is imported anywhere in the process
    with NodeProcess({"model": "samfeat-nano"}) as process, Playback(process, recording.image_type) as playback:
        playback.wait_until_ready(recording.first)
        playback.play(recording.frames(), rate=1.0)        # or rate=None: one image in flight, none is lost
    playback.answers                                       # per frame: when sent, when which topic came back

A recording (`Recording`) is a bag's images with the CameraInfo that belongs to each. Messages travel as the bytes that
are in the bag: nothing is decoded and encoded again on the way to the node.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from samfeat_core.errors import SamfeatError
from samfeat_ros.replay.bags import IMAGE_TYPES, Bag, BagError

if TYPE_CHECKING:
    from rclpy.node import Node

CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
IMAGE_TOPIC, CAMERA_INFO_TOPIC = "/camera/image_raw", "/camera/camera_info"
LISTENABLE = ("keypoints", "descriptors", "matches", "tracks", "restart", "overlay")

_interrupted = threading.Event()  # see interrupt_on_signals


class PlaybackError(SamfeatError):
    """The node did not come up, died, or does not answer. One line."""


# --- environment ------------------------------------------------------------------------------------------------------


def prepare_environment() -> None:
    """Let this process and its children talk to this host only, and exchange large messages.

    Call it before rclpy is imported. What the user has set (profile files, discovery range) is left alone.
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # Jazzy and later
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ.setdefault("ROS_LOCALHOST_ONLY", "1")
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)  # ROS from PyPI wheels looks for its share folders there
    profile = transport_profile()
    if profile:
        # the publisher needs it as much as the node: Fast DDS loses most best-effort messages over 512 KiB without
        os.environ.setdefault(_profile_variable(), str(profile))


def _profile_variable() -> str:
    """The variable that names Fast DDS's profile file; Kilted still reads the old name, but warns."""
    old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy") or (
        "ROS_DISTRO" not in os.environ and _is_installed("ros-jazzy-rclpy")
    )
    return "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def transport_profile() -> Path | None:
    """`config/fastdds_shm.xml` in the installed share folder or in the checkout, None where neither is there."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    candidates = [Path(__file__).resolve().parents[2] / "config"]
    candidates += [prefix / "share" / "samfeat_ros" / "config" for prefix in [*prefixes, Path(sys.prefix)]]
    return next((folder / "fastdds_shm.xml" for folder in candidates if (folder / "fastdds_shm.xml").is_file()), None)


def free_domain_id() -> int:
    """A ROS_DOMAIN_ID in 1..101 whose first participant's unicast port nobody on this host holds."""
    for domain in random.sample(range(1, 102), 101):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    return 0


# --- recordings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One image message of a recording.

    `stamp_ns` is the header's, `time_ns` the time of recording; `image` and `camera_info` are CDR bytes.
    """

    stamp_ns: int
    time_ns: int
    image: bytes
    camera_info: bytes | None = None


class Recording:
    """The images of one topic of a bag, each with the last CameraInfo recorded before it (the first one, until then).

    Args:
        path: bag folder or file, ROS 2 (MCAP, sqlite3) or ROS 1.
        image_topic: None = the only image topic of the bag.
        camera_info_topic: None = `camera_info` beside the image topic, or the only one of the bag, or none.
        limit: read at most that many images.

    Raises:
        BagError: no such bag or topic; the line lists the image topics that are there.
    """

    def __init__(
        self,
        path: str | Path,
        image_topic: str | None = None,
        camera_info_topic: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.bag, self.limit = Bag(path), limit
        topics = self.bag.image_topics
        if image_topic is None and not topics:
            raise BagError(f"{self.bag.path}: holds no topic of type Image or CompressedImage")
        if image_topic is None and len(topics) > 1:
            names = ", ".join(sorted(topic.name for topic in topics))
            raise BagError(f"{self.bag.path}: name the image topic; image topics there: {names}")
        topic = self.bag.require(image_topic or topics[0].name, IMAGE_TYPES)
        self.image_topic, self.image_type = topic.name, topic.type
        self.count = topic.count if limit is None else min(limit, topic.count)
        if not self.count:
            raise BagError(f"{self.bag.path}: topic {topic.name!r} holds no images")
        self.camera_info_topic = self._camera_info_topic(camera_info_topic)

    def _camera_info_topic(self, asked: str | None) -> str | None:
        if asked is not None:
            return self.bag.require(asked, (CAMERA_INFO_TYPE,)).name
        infos = [topic.name for topic in self.bag.topics.values() if topic.type == CAMERA_INFO_TYPE and topic.count]
        namespace = self.image_topic.rsplit("/", 1)[0]
        # image transports append their name to the topic: /camera/image_raw/compressed belongs to /camera/camera_info
        for candidate in (f"{namespace}/camera_info", f"{namespace.rsplit('/', 1)[0]}/camera_info"):
            if candidate in infos:
                return candidate
        return infos[0] if len(infos) == 1 else None

    def frames(self) -> Iterator[Frame]:
        """The frames in order of recording; reads the bag while it goes."""
        info = self._first_camera_info()
        wanted = [self.image_topic, *([self.camera_info_topic] if self.camera_info_topic else [])]
        count = 0
        for message in self.bag.messages(wanted):
            if message.topic == self.camera_info_topic:
                info = message.data
                continue
            try:
                stamp = header_stamp_ns(message.data)
            except ValueError:
                self.bag.problems.append(f"{self.image_topic} at {message.time_ns} ns: too short to be an image")
                continue
            yield Frame(stamp, message.time_ns, message.data, info)
            count += 1
            if count == self.limit:
                return

    def _first_camera_info(self) -> bytes | None:
        if not self.camera_info_topic:
            return None
        return next((message.data for message in self.bag.messages([self.camera_info_topic])), None)

    @property
    def first(self) -> Frame:
        """The first frame.

        Raises:
            BagError: not one image could be read.
        """
        frame = next(self.frames(), None)
        if frame is None:
            raise BagError(f"{self.bag.path}: no image of topic {self.image_topic!r} could be read")
        return frame

    def close(self) -> None:
        self.bag.close()


def header_stamp_ns(cdr: bytes) -> int:
    """Stamp of a CDR message that begins with a std_msgs/Header, in nanoseconds; without decoding the message."""
    if len(cdr) < 12:
        raise ValueError(f"{len(cdr)} bytes are no message with a header")
    sec, nanosec = struct.unpack_from("<iI" if cdr[1] & 1 else ">iI", cdr, 4)
    return int(sec) * 10**9 + int(nanosec)


# --- the node as a process --------------------------------------------------------------------------------------------


class NodeProcess:
    """The node `samfeat` as a child process, active and listening; a context manager that leaves nothing behind.

    Args:
        parameters: the node's parameters by name, plain YAML values. `autostart` is true unless given.
        remappings: further remapping rules, name -> name.
        compressed: the image topic carries CompressedImage.
        domain_id: ROS_DOMAIN_ID of the node and of a `Playback` on it; None = a free one, so that nobody else's robot
            sees anything of it.
        timeout: seconds that the node may take until it is active (weights, engine).
        log: file that gets the node's output; None = a temporary one, `output()` reads either.

    Raises:
        PlaybackError: the node ended or did not become active; the line has its last error.
    """

    def __init__(
        self,
        parameters: dict[str, Any] | None = None,
        remappings: dict[str, str] | None = None,
        compressed: bool = False,
        domain_id: int | None = None,
        timeout: float = 120.0,
        log: Path | None = None,
    ) -> None:
        self.name, self.compressed, self.timeout = "samfeat", compressed, timeout
        self.domain_id = free_domain_id() if domain_id is None else domain_id
        self.parameters: dict[str, Any] = {"autostart": True, **(parameters or {})}
        if compressed:
            self.parameters.setdefault("image_transport", "compressed")
        self.remappings = {"image": IMAGE_TOPIC, "camera_info": CAMERA_INFO_TOPIC, **(remappings or {})}
        self._scratch = tempfile.TemporaryDirectory(prefix="samfeat_playback_")
        self.log = log or Path(self._scratch.name, "node.log")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NodeProcess:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self.process is not None, "the node has not been started"
        return self.process.pid

    def command(self) -> list[str]:
        """The command line; parameters travel in a file, so that no value needs quoting."""
        file = Path(self._scratch.name, "parameters.yaml")
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": self.parameters}}))
        rules = [word for old, new in self.remappings.items() for word in ("-r", f"{old}:={new}")]
        return [sys.executable, "-m", "samfeat_ros.node.samfeat_node", "--ros-args", "--params-file", str(file), *rules]

    def start(self) -> None:
        """Start the process; it is not active yet, see `Playback.wait_until_ready`."""
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).resolve().parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
        )
        environment.setdefault("PYTHONUNBUFFERED", "1")
        environment["ROS_DOMAIN_ID"] = str(self.domain_id)
        with self.log.open("wb") as sink:
            # its own session: Ctrl-C in the terminal reaches the parent alone, which then ends the node in order
            self.process = subprocess.Popen(
                self.command(),
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def check(self) -> None:
        """Raises PlaybackError when the process has ended, KeyboardInterrupt after a signal."""
        check_interrupt()
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise PlaybackError(f"the node ended (exit code {code}): {self.last_error()}")

    def stop(self, patience: float = 5.0) -> int | None:
        """End the node: SIGINT, then SIGTERM, then SIGKILL. Returns its exit code (None = it never ran)."""
        code = None
        if self.process is not None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if self.process.poll() is None:
                    self.process.send_signal(number)
                try:
                    code = self.process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._last_output = self.output()
        self._scratch.cleanup()
        return code

    def output(self) -> str:
        """Everything the node has written to its terminal."""
        if self.log.is_file():
            return self.log.read_text(errors="replace")
        return getattr(self, "_last_output", "")

    def last_error(self) -> str:
        """The last line of the output that speaks of an error, else of a warning, else the last line."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        errors = [line for line in lines if "[ERROR]" in line or "[FATAL]" in line or "Error" in line]
        warnings = [line for line in lines if "[WARN]" in line]
        return (errors or warnings or lines or ["it wrote nothing"])[-1]


def _die_with_parent() -> None:
    """Runs in the child before exec: Linux sends it SIGTERM when the parent dies, even by SIGKILL."""
    import ctypes

    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


# --- playing ----------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What became of one published image. Times are of `time.monotonic()`; latency is in seconds."""

    stamp_ns: int
    sent: float
    received: dict[str, float] = field(default_factory=dict)  # topic name (keypoints, matches, ...) -> time

    def latency(self, topic: str) -> float | None:
        """Seconds from publishing the image to receiving `topic` of the same stamp; None = it did not come."""
        return self.received[topic] - self.sent if topic in self.received else None


class Playback:
    """Publishes images to the node and collects what it answers, all in the calling thread.

    Args:
        process: the node, started.
        image_type: "sensor_msgs/msg/Image" or "sensor_msgs/msg/CompressedImage".
        listen: which of the node's topics to subscribe to (`LISTENABLE`). The node publishes only what somebody
            listens to, so this decides what it computes. ValueError for any other.
        on_message: called with (topic name, message, Answer or None) for everything that arrives.

    Attributes:
        answers: one `Answer` per image that `play` published, in order.
        diagnostics: {key: value} of every /diagnostics message of the node, oldest first.
    """

    def __init__(
        self,
        process: NodeProcess,
        image_type: str,
        listen: Iterable[str] = ("keypoints", "descriptors", "matches"),
        on_message: Callable[[str, Any, Answer | None], None] | None = None,
    ) -> None:
        self.process, self.image_type, self.listen = process, image_type, tuple(listen)
        unknown = sorted(set(self.listen) - set(LISTENABLE))
        if unknown:
            raise ValueError(f"topics {', '.join(unknown)}: expected some of {', '.join(LISTENABLE)}")
        self.on_message = on_message
        self.answers: list[Answer] = []
        self.diagnostics: deque[dict[str, str]] = deque(maxlen=10_000)
        self._open: dict[int, Answer] = {}  # by stamp, the answers that may still grow
        self._seen: set[str] = set()
        self._reports = 0

    def __enter__(self) -> Playback:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        self._context = Context()
        rclpy.init(
            context=self._context,
            domain_id=self.process.domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node: Node = rclpy.create_node("samfeat_playback", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        reliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        rules = self.process.remappings
        kind = Image if self.image_type == IMAGE_TYPES[0] else CompressedImage
        self._images = self.node.create_publisher(kind, self._image_topic(rules["image"]), reliable)
        self._infos = self.node.create_publisher(CameraInfo, rules["camera_info"], reliable)
        self._subscribe()
        return self

    def __exit__(self, *exc: object) -> None:
        import rclpy

        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _image_topic(self, name: str) -> str:
        return f"{name}/compressed" if self.process.compressed else name

    def _subscribe(self) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image, PointCloud, PointCloud2
        from std_msgs.msg import Bool

        types = {"tracks": PointCloud, "restart": Bool, "overlay": Image}
        for topic in self.listen:
            self.node.create_subscription(
                types.get(topic, PointCloud2),
                f"/{self.process.name}/{topic}",
                lambda message, topic=topic: self._take(topic, message),
                QoSProfile(depth=50),
            )
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, QoSProfile(depth=50))

    def _take(self, topic: str, message: Any) -> None:
        now = time.monotonic()
        self._seen.add(topic)
        answer = None
        if hasattr(message, "header"):
            stamp = message.header.stamp
            answer = self._open.get(stamp.sec * 10**9 + stamp.nanosec)
        if answer is not None:
            answer.received.setdefault(topic, now)
        if self.on_message:
            self.on_message(topic, message, answer)

    def _take_diagnostics(self, message: Any) -> None:
        from samfeat_ros.node.diagnostics import values_from_msg

        values = values_from_msg(message, self.process.name)
        if values is not None:
            self.diagnostics.append(values)
            self._reports += 1

    def spin(self, seconds: float) -> None:
        """Take in what comes for that long; what is there already even when no time is left."""
        until = time.monotonic() + seconds
        for _ in self.listen:
            self._executor.spin_once(timeout_sec=0)
        while (left := until - time.monotonic()) > 0:
            check_interrupt()
            self._executor.spin_once(timeout_sec=min(left, 0.5))

    def wait_until_ready(self, *frames: Frame) -> None:
        """Wait until the node is active and has answered one of these images on every topic that is listened to.

        They are published in turn until it has; one is enough, more help where the first may be damaged.
        By then the engine for that image size is built and everybody has found everybody. The node is then deactivated
        and activated again, which sets its tracks and counters to zero, so that `play` begins afresh.

        Raises:
            PlaybackError: the node ended, refuses all of these images, or the process's timeout passed.
        """
        until = time.monotonic() + self.process.timeout
        self._wait_for(lambda: self._images.get_subscription_count() > 0, until, "does not subscribe to the images")
        wanted = {topic for topic in self.listen if topic not in ("restart", "tracks")}
        for count, frame in enumerate(cycle(frames)):
            if wanted <= self._seen:
                break
            if self._refused() >= len(frames) <= count:
                raise PlaybackError(f"the node refuses the images; its last words: {self.process.last_error()}")
            self._publish(frame)
            pause = min(time.monotonic() + 1.0, until)
            missing = ", ".join(sorted(wanted - self._seen))
            what = f"answered no image on {missing}"
            self._wait_for(lambda: wanted <= self._seen, pause, what, must=pause >= until)
        self._restart(until)
        self.diagnostics.clear()

    def _refused(self) -> int:
        """How many images the node says it has refused; left out on purpose does not count."""
        from samfeat_ros.node.diagnostics import HARMLESS

        latest = self.diagnostics[-1] if self.diagnostics else {}
        causes = {key[len("dropped_") :]: int(value) for key, value in latest.items() if key.startswith("dropped_")}
        return sum(count for cause, count in causes.items() if cause not in HARMLESS)

    def _restart(self, until: float) -> None:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        def listening() -> bool:
            return self._images.get_subscription_count() > 0

        def change(transition: int) -> bool:
            request = ChangeState.Request(transition=Transition(id=transition))
            answer = self.call(ChangeState, "change_state", request)
            return bool(answer and answer.success)

        if not change(Transition.TRANSITION_DEACTIVATE):
            raise PlaybackError(f"the node could not be deactivated: {self.process.last_error()}")
        self._wait_for(lambda: not listening(), until, "keeps its subscription after deactivation")
        if not change(Transition.TRANSITION_ACTIVATE):
            raise PlaybackError(f"the node could not be activated: {self.process.last_error()}")
        self._wait_for(listening, until, "does not subscribe to the images again")
        self.spin(0.3)  # matching is known here a moment before it is known there

    def _wait_for(self, condition: Callable[[], bool], until: float, what: str, must: bool = True) -> None:
        while not condition():
            self.process.check()
            if time.monotonic() >= until:
                if not must:
                    return
                limit = f"within {self.process.timeout:.0f} s"
                raise PlaybackError(f"the node {what} {limit}; its last words: {self.process.last_error()}")
            self._executor.spin_once(timeout_sec=0.05)

    def call(self, kind: Any, service: str, request: Any, timeout: float = 10.0) -> Any | None:
        """Call a service of the node by its name without the node's. None = it is not there or does not answer."""
        client = self.node.create_client(kind, f"/{self.process.name}/{service}")
        try:
            until = time.monotonic() + timeout
            while not client.service_is_ready() and time.monotonic() < until:
                self.process.check()
                self._executor.spin_once(timeout_sec=0.05)
            if not client.service_is_ready():
                return None
            future = client.call_async(request)
            self._executor.spin_until_future_complete(future, timeout_sec=max(until - time.monotonic(), 0.1))
            return future.result() if future.done() else None
        finally:
            self.node.destroy_client(client)

    def _publish(self, frame: Frame) -> None:
        if frame.camera_info is not None:
            self._infos.publish(frame.camera_info)
        self._images.publish(frame.image)

    def play(
        self,
        frames: Iterable[Frame],
        rate: float | None = 1.0,
        answer_timeout: float = 10.0,
        on_frame: Callable[[Answer], None] | None = None,
    ) -> None:
        """Publish the frames and collect the answers.

        Args:
            rate: times the recorded speed, by the times of recording; images go out on time whether the node keeps up
                or not. None = one in flight: the next goes out when the answers to the last are there.
            answer_timeout: seconds to wait for the last answers (rate given) or for those of each image (None).
            on_frame: called after every image, for a progress bar.

        Raises:
            PlaybackError: the node ended meanwhile.
        """
        start: float | None = None
        first_ns = 0
        topics = {topic for topic in self.listen if topic not in ("restart", "tracks")}
        for frame in frames:
            if start is None:
                start, first_ns = time.monotonic(), frame.time_ns
            if rate is not None:
                self.spin(start + (frame.time_ns - first_ns) * 1e-9 / rate - time.monotonic())
            self.process.check()
            answer = Answer(frame.stamp_ns, time.monotonic())
            self._open[frame.stamp_ns] = answer
            self.answers.append(answer)
            self._publish(frame)
            if rate is None:
                self._await_answer(answer, topics, answer_timeout)
            if on_frame:
                on_frame(answer)
        if rate is not None and self.answers:
            self._await_answer(self.answers[-1], topics, min(answer_timeout, 2.0))
        # a report that was made after the last answer counts everything
        reports = self._reports
        until = time.monotonic() + 3.0
        while self._reports == reports and time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.1)

    def _await_answer(self, answer: Answer, topics: set[str], timeout: float) -> None:
        until = time.monotonic() + timeout
        while not topics <= answer.received.keys() and time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.05)
            self.process.check()


def interrupt_on_signals() -> None:
    """Make SIGINT and SIGTERM end this process as KeyboardInterrupt, so that context managers clean up.

    An exception that is raised inside a callback of rclpy or of the interpreter may be lost there, so the signal is
    remembered as well, and `check_interrupt` raises it anew.
    """

    def handler(number: int, _: FrameType | None) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if a signal has asked for it."""
    if _interrupted.is_set():
        raise KeyboardInterrupt
