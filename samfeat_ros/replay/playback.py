"""Playing a recording to the real node over ROS and collecting what comes back: for the demo and for the evaluation.

    prepare_environment()                                  # before rclpy is imported anywhere in the process
    with NodeProcess({"model": "samfeat-nano"}, recording.image_type) as process, Playback(process) as playback:
        playback.wait_until_ready(recording.first)
        playback.play(recording.messages(), rate=1.0)      # or rate=None: one image in flight, none is lost
    playback.round_trips                                   # per image: when it was sent, when which topic came back

Messages travel as the bytes that are in the bag: nothing is decoded and encoded again on the way to the node.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from samfeat_ros import node_status
from samfeat_ros.replay.interrupts import check_interrupt
from samfeat_ros.replay.node_process import TOPICS, NodeError, NodeProcess
from samfeat_ros.replay.recording import ImageMessage
from samfeat_ros.stamps import stamp_to_ns
from samfeat_ros.topics import (
    CAMERA_INFO,
    DIAGNOSTICS,
    DIAGNOSTICS_TYPE,
    NODE,
    OUTPUTS,
    message_class,
    transport_topic,
)

if TYPE_CHECKING:
    from rclpy.node import Node

LAST_ANSWER_S = 2.0  # at a rate, how long the answers to the last image are waited for
REPORT_S = 3.0  # how long a report of the node is waited for that counts everything; there is one a second


@dataclass
class RoundTrip:
    """When one image was published, and when which of the node's topics came back. Times are of `time.monotonic()`."""

    stamp_ns: int
    sent: float
    received: dict[str, float] = field(default_factory=dict)  # topic name (keypoints, matches, ...) -> time

    def latency(self, topic: str) -> float | None:
        """Seconds from publishing the image to receiving `topic` of the same stamp; None = it did not come."""
        return self.received[topic] - self.sent if topic in self.received else None


class Playback:
    """Publishes images to the node and collects what comes back, all in the calling thread.

    Args:
        process: the node, started.
        listen: which of `samfeat_ros.topics.OUTPUTS` to subscribe to; ValueError for any other. The node publishes
            only what somebody listens to, so this decides what it computes.
        on_message: called with (topic name, message, RoundTrip or None) for everything that arrives.

    Attributes:
        round_trips: one for each image that `play` published, in order.
        diagnostics: {key: value} of every /diagnostics message of the node, oldest first; see
            `samfeat_ros.node_status`.
    """

    def __init__(
        self,
        process: NodeProcess,
        listen: Iterable[str] = ("keypoints", "descriptors", "matches"),
        on_message: Callable[[str, Any, RoundTrip | None], None] | None = None,
    ) -> None:
        self.process, self.listen = process, tuple(listen)
        unknown = sorted(set(self.listen) - set(OUTPUTS))
        if unknown:
            raise ValueError(f"topics {', '.join(unknown)}: expected some of {', '.join(OUTPUTS)}")
        self.on_message = on_message
        self.round_trips: list[RoundTrip] = []
        self.diagnostics: deque[dict[str, str]] = deque(maxlen=10_000)
        self._expected = {topic for topic in self.listen if OUTPUTS[topic].every_frame}
        self._by_stamp: dict[int, RoundTrip] = {}
        self._seen: set[str] = set()
        self._reports = 0

    @property
    def status(self) -> dict[str, str]:
        """The node's last status, empty before the first one."""
        return self.diagnostics[-1] if self.diagnostics else {}

    def __enter__(self) -> Playback:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rclpy.signals import SignalHandlerOptions

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
        image_topic = transport_topic(TOPICS["image"], self.process.transport)
        self._images = self.node.create_publisher(message_class(self.process.image_type), image_topic, reliable)
        self._infos = self.node.create_publisher(message_class(CAMERA_INFO), TOPICS["camera_info"], reliable)
        for topic in self.listen:
            kind, take = message_class(OUTPUTS[topic].type), partial(self._take, topic)
            self.node.create_subscription(kind, f"/{NODE}/{topic}", take, QoSProfile(depth=50))
        self.node.create_subscription(
            message_class(DIAGNOSTICS_TYPE), DIAGNOSTICS, self._take_diagnostics, QoSProfile(depth=50)
        )
        return self

    def __exit__(self, *exc: object) -> None:
        import rclpy

        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _take(self, topic: str, message: Any) -> None:
        now = time.monotonic()
        self._seen.add(topic)
        trip = self._by_stamp.get(stamp_to_ns(message.header.stamp)) if hasattr(message, "header") else None
        if trip is not None:
            trip.received.setdefault(topic, now)
        if self.on_message:
            self.on_message(topic, message, trip)

    def _take_diagnostics(self, message: Any) -> None:
        values = node_status.values_from_msg(message)
        if values is not None:
            self.diagnostics.append(values)
            self._reports += 1

    def spin(self, seconds: float) -> None:
        """Take in what comes for that long; even when no time is left, what is there already."""
        until = time.monotonic() + seconds
        for _ in self.listen:
            self._executor.spin_once(timeout_sec=0)
        while (left := until - time.monotonic()) > 0:
            check_interrupt()
            self._executor.spin_once(timeout_sec=min(left, 0.5))

    def wait_until_ready(self, *messages: ImageMessage) -> None:
        """Wait until the node is active and has answered one of these images on every topic that is listened to.

        The images are published in turn until one is answered; several help where the first may be damaged. By then
        the engine for that image size is built, and publishers and subscriptions have found each other. The node is
        then deactivated and activated again, which sets its tracks and counters to zero.

        Raises:
            NodeError: the node ended, refuses all of these images, or the process's timeout passed.
        """
        until = self.wait_until_heard()
        for count, message in enumerate(cycle(messages)):
            if self._expected <= self._seen:
                break
            if node_status.faults(node_status.dropped(self.status)) >= len(messages) <= count:
                raise NodeError(f"the node refuses the images; its last words: {self.process.last_error()}")
            self._publish(message)
            pause = min(time.monotonic() + 1.0, until)
            what = f"answered no image on {', '.join(sorted(self._expected - self._seen))}"
            self._wait_for(lambda: self._expected <= self._seen, pause, what, must=pause >= until)
        self._restart(until)
        self.diagnostics.clear()

    def wait_until_heard(self) -> float:
        """Wait until the node subscribes to the images; the time by which all must be ready, of `time.monotonic()`.

        Raises:
            NodeError: the node ended, or the process's timeout passed.
        """
        until = time.monotonic() + self.process.timeout
        self._wait_for(self._is_heard, until, "does not subscribe to the images")
        return until

    def _is_heard(self) -> bool:
        return self._images.get_subscription_count() > 0

    def _restart(self, until: float) -> None:
        """Deactivate and activate the node."""
        from lifecycle_msgs.msg import Transition

        self._change_state(Transition.TRANSITION_DEACTIVATE, "deactivated")
        self._wait_for(lambda: not self._is_heard(), until, "keeps its subscription after deactivation")
        self._change_state(Transition.TRANSITION_ACTIVATE, "activated")
        self._wait_for(self._is_heard, until, "does not subscribe to the images again")
        self.spin(0.3)  # this side knows of the new subscription a moment before the node knows of the publisher

    def _change_state(self, transition: int, done: str) -> None:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(id=transition))
        response = self._call(ChangeState, "change_state", request)
        if response is None or not response.success:
            raise NodeError(f"the node could not be {done}: {self.process.last_error()}")

    def _call(self, kind: Any, service: str, request: Any, timeout: float = 10.0) -> Any | None:
        """The response of a service of the node; None = the service is not there or does not answer."""
        client = self.node.create_client(kind, f"/{NODE}/{service}")
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

    def _wait_for(self, condition: Callable[[], bool], until: float, what: str, must: bool = True) -> None:
        """Spin until the condition holds or the time is up; without `must`, the latter is no error."""
        while not condition():
            self.process.check()
            if time.monotonic() >= until:
                if not must:
                    return
                limit = f"within {self.process.timeout:.0f} s"
                raise NodeError(f"the node {what} {limit}; its last words: {self.process.last_error()}")
            self._executor.spin_once(timeout_sec=0.05)

    def _publish(self, message: ImageMessage) -> None:
        if message.camera_info is not None:
            self._infos.publish(message.camera_info)
        self._images.publish(message.image)

    def play(
        self,
        messages: Iterable[ImageMessage],
        rate: float | None = 1.0,
        answer_timeout: float = 10.0,
        on_frame: Callable[[], None] = lambda: None,
    ) -> None:
        """Publish the images and collect what comes back.

        Args:
            rate: times the recorded speed, by the times of recording; images go out on time whether the node keeps up
                or not. None = one in flight: the next goes out when the answers to the last are there.
            answer_timeout: seconds to wait for the answers to each image (rate None).
            on_frame: called after every image, for a progress bar.

        Raises:
            NodeError: the node ended meanwhile.
        """
        start: float | None = None
        first_ns = 0
        for message in messages:
            if start is None:
                start, first_ns = time.monotonic(), message.time_ns
            if rate is not None:
                self.spin(start + (message.time_ns - first_ns) * 1e-9 / rate - time.monotonic())
            self.process.check()
            trip = RoundTrip(message.stamp_ns, time.monotonic())
            self._by_stamp[message.stamp_ns] = trip
            self.round_trips.append(trip)
            self._publish(message)
            if rate is None:
                self._await(trip, answer_timeout)
            on_frame()
        if rate is not None and self.round_trips:
            self._await(self.round_trips[-1], LAST_ANSWER_S)
        self._await_report()

    def _await(self, trip: RoundTrip, timeout: float) -> None:
        until = time.monotonic() + timeout
        while not self._expected <= trip.received.keys() and time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.05)
            self.process.check()

    def _await_report(self) -> None:
        """A report that is made after the last answer counts everything."""
        reports = self._reports
        until = time.monotonic() + REPORT_S
        while self._reports == reports and time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.1)
