"""The ROS 2 lifecycle node `samfeat`: camera images in, keypoints, descriptors, matches and tracks out.

The executor's thread only hands images over, the newest one wins. One worker thread finds the features of a frame, and
another one meanwhile continues the tracks into the frame before and publishes it. docs/topics.md and
docs/parameters.md describe topics, services and parameters.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from samfeat_core.errors import NoEngineError, SamfeatError, one_line
from samfeat_core.extractor import FeatureExtractor
from samfeat_ros.image_input import ImageError, image_from_msg
from samfeat_ros.node.builder import EngineBuilder
from samfeat_ros.node.diagnostics import Statistics, diagnostics_to_msg
from samfeat_ros.node.outputs import Outputs
from samfeat_ros.node.parameters import NAMES, ParameterError, Parameters, apply, declare
from samfeat_ros.node.params_files import unread
from samfeat_ros.node.pipeline import FoundFrame, Pipeline, ProcessedFrame
from samfeat_ros.node.silence import explain
from samfeat_ros.node.worker import Worker
from samfeat_ros.qos import QOS_OVERRIDES, create_with_events, latched, newest, subscription_events
from samfeat_ros.topics import DIAGNOSTICS, NODE, TRANSPORTS, message_class, transport_topic

REPORT_PERIOD_S = 1.0
WARN_PERIOD_S = 5.0
SILENCE_S = 5.0  # without an image, until the log says what the graph looks like
# An inference ends well within this, and so does a build in a process of its own. Others are not waited for.
STOP_TIMEOUT_S = 1.0
_CONFIGURING = "samfeat-configure"  # name of a thread


@dataclass(frozen=True)
class _Arrival:
    """An image message and when it arrived (monotonic seconds)."""

    msg: Image | CompressedImage
    time: float


@dataclass(frozen=True)
class _Workers:
    """The two stages of a frame. The first looks at no other frame before the second has taken the last one, so that
    none that it has found is replaced."""

    find: Worker[_Arrival]
    track: Worker[tuple[FoundFrame, float]]  # a frame, and the seconds that it waited until it was looked at

    def stop(self, timeout_s: float) -> bool:
        """End both; False if one of them takes longer than the timeout."""
        return all([worker.stop(timeout_s) for worker in (self.track, self.find)])


class SamfeatNode(LifecycleNode):
    """See the module. Keyword arguments are those of rclpy's Node.

    Raises:
        rclpy.exceptions.ParameterException: a parameter that was given at start has a wrong type or is out of range.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(NODE, **kwargs)
        self._configuring: Future | None = None
        self._configure_apart()
        self.statistics = Statistics()
        self.parameters: Parameters = declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._pipeline: Pipeline | None = None
        self._builder: EngineBuilder | None = None
        self._outputs: Outputs | None = None
        self._workers: _Workers | None = None
        self._inputs: list[Any] = []
        self._own_services: list[Any] = []
        self._enabled = True
        self._had_tracks = False
        self._silence_told = False
        self._warned: dict[str, float] = {}
        # Whoever publishes holds it, so that publishers are not destroyed in between.
        self._publishing = threading.Lock()
        self._diagnostics = self.create_publisher(DiagnosticArray, DIAGNOSTICS, 10)
        # Steady: reports continue while simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._report_timer = self.create_timer(REPORT_PERIOD_S, self._report, clock=steady)

    def start(self) -> bool:
        """Configure and activate; False, after an ERROR line, if that failed."""
        return (
            self.trigger_configure() == TransitionCallbackReturn.SUCCESS
            and self.trigger_activate() == TransitionCallbackReturn.SUCCESS
        )

    def _configure_apart(self) -> None:
        """Let requests to configure run in a thread of their own: an engine may have to be built, and parameters and
        diagnostics shall answer meanwhile."""
        change_state = self._service_change_state.callback

        async def change(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            if self._configuring is not None and not self._configuring.done():
                response.success = False  # one transition at a time
                return response
            asked = request.transition
            if asked.label != "configure" and (asked.label or asked.id != Transition.TRANSITION_CONFIGURE):
                return change_state(request, response)
            self._configuring = run_apart(lambda: change_state(request, response), self.executor)
            return await self._configuring

        self._service_change_state.callback = change
        # A group of its own, so that everything else is served in the meantime.
        self._service_change_state.callback_group = ReentrantCallbackGroup()
        self._service_change_state.callback_group.add_entity(self._service_change_state)

    def close(self) -> None:
        """Release everything and destroy the node. An engine that is built in this process cannot be interrupted."""
        self._release()
        self.destroy_node()

    # ---- lifecycle ----

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network; fails with one ERROR line."""
        try:
            self.parameters.validate()
            self._pipeline = self._build()
            self._outputs = Outputs(self, self._warn)
            self._own_services = [
                self.create_service(Trigger, "~/reset", self._on_reset),
                self.create_service(SetBool, "~/enable", self._on_enable),
            ]
        except Exception as error:  # whatever a weights file or a runtime raises: a robot's log gets one line
            self._release()
            if not self.context.ok():  # told to end meanwhile
                raise KeyboardInterrupt from error
            self.get_logger().error(f"cannot configure: {_describe(error)}")
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the camera and start the worker."""
        assert self._pipeline is not None
        self._pipeline.reset()
        self.statistics.clear()
        outcome = super().on_activate(state)
        try:
            track = Worker(self._track, "samfeat-track")
            self._workers = _Workers(Worker(self._find, "samfeat-find", track.wait_until_free), track)
            self._subscribe()
        except Exception as error:  # impossible QoS overrides raise RuntimeError or InvalidQosOverridesError
            self.get_logger().error(f"cannot activate: {_describe(error)}")
            self._stop()
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return outcome

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and end the worker; the network stays loaded."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the network and all topics."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, from where the node can be configured again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _build(self) -> Pipeline:
        parameters = self.parameters
        device = "cuda" if parameters.require_cuda and parameters.device == "auto" else parameters.device
        try:
            extractor = FeatureExtractor.from_pretrained(
                parameters.model,
                device=device,
                engine=parameters.engine,
                max_keypoints=parameters.max_keypoints,
                weights=parameters.weights or None,
                threshold=None if parameters.threshold < 0 else parameters.threshold,
                nms_radius=None if parameters.nms_radius < 1 else parameters.nms_radius,
                border=parameters.border,
                resize=parameters.resize or None,
                cache_dir=parameters.cache_dir or None,
                log=self._log,
            )
        except (SamfeatError, ValueError) as error:
            raise type(error)(f"require_cuda is set: {error}" if parameters.require_cuda else str(error)) from error
        extractor.builds_when_called = False
        builder = self._builder = EngineBuilder(extractor, parameters.build_after, self._log)
        # Only now the weights are read. An engine that was built before loads without torch.
        size = parameters.image_width, parameters.image_height
        built = builder.build_apart(*size)  # a signal meanwhile stops it, and takes `_builder` away
        # The engine is loaded by one thread and the tracker's compiled code by another, which takes as long.
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(extractor.prepare, *size) if built else None
            pipeline = Pipeline(extractor, parameters, _read_mask(parameters.mask_file), self._warn, builder.see)
            if loading:
                loading.result()
        if parameters.require_cuda and not str(extractor.device).startswith("cuda"):
            raise ParameterError(f"require_cuda is set, but the network would run on {extractor.device}")
        return pipeline

    def _subscribe(self) -> None:
        transport = self.parameters.image_transport
        image_topic = transport_topic(self.resolve_topic_name("image"), transport)
        wanted = (
            (message_class(TRANSPORTS[transport]), image_topic, self._on_image, newest()),
            (CameraInfo, "camera_info", self._on_camera_info, newest()),
            (Image, "mask", self._on_mask, latched()),
        )
        for kind, name, callback, qos in wanted:
            subscription = create_with_events(
                self.create_subscription,
                kind,
                name,
                callback,
                qos,
                event_callbacks=subscription_events(self, name),
                qos_overriding_options=QOS_OVERRIDES,
            )
            self._inputs.append(subscription)
        self.get_logger().info(f"waiting for images on {self._inputs[0].topic_name}")

    def _stop(self) -> None:
        """Undo on_activate."""
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        workers, self._workers = self._workers, None
        if workers is not None and not workers.stop(STOP_TIMEOUT_S):
            self.get_logger().warning("a worker is still busy; it ends when its frame is done")

    def _release(self) -> None:
        """Undo on_activate and on_configure. May be called twice."""
        self._stop()
        builder, self._builder = self._builder, None
        if builder is not None:
            builder.stop(STOP_TIMEOUT_S)
        for service in self._own_services:
            self.destroy_service(service)
        self._own_services = []
        with self._publishing:
            if self._outputs is not None:
                self._outputs.destroy()
            self._outputs = self._pipeline = None

    # ---- in: the executor's thread ----

    def _on_image(self, msg: Image | CompressedImage) -> None:
        arrived = time.monotonic()
        self.statistics.received()
        pipeline, outputs, workers = self._pipeline, self._outputs, self._workers
        if pipeline is None or outputs is None or workers is None:
            self.statistics.drop("inactive")
        elif not self._enabled:
            self.statistics.drop("disabled")
        elif not outputs.wanted():
            pipeline.reset()  # tracks end while nobody listens
            self.statistics.drop("idle")
        elif workers.find.submit(_Arrival(msg, arrived)):
            self.statistics.drop("superseded")

    def _on_camera_info(self, msg: CameraInfo) -> None:
        if self._pipeline is not None:
            self._pipeline.set_camera_info(msg)

    def _on_mask(self, msg: Image) -> None:
        try:
            if msg.encoding not in ("mono8", "8UC1"):
                raise ImageError("encoding", f"encoding is {msg.encoding!r}, expected mono8")
            mask = image_from_msg(msg).copy()
        except ImageError as error:
            self._warn("mask", f"the mask is refused, the one before stays: {error}")
            return
        if self._pipeline is not None:
            self._pipeline.set_mask(mask)
            self.get_logger().info(f"new mask, {msg.width}x{msg.height}, {np.mean(mask == 0):.0%} of it masked out")

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is not None:
            self._pipeline.reset()
        response.success, response.message = True, "tracks restart with the next frame"
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and not self._enabled and self._pipeline is not None:
            self._pipeline.reset()
        self._enabled = request.data
        response.success, response.message = True, "enabled" if request.data else "disabled"
        return response

    def _on_set_parameters(self, changes: list) -> SetParametersResult:
        self.parameters, result = apply(self.parameters, changes, configured=self._pipeline is not None)
        if self._pipeline is not None and any(change.name in NAMES for change in changes):
            self._pipeline.set_parameters(self.parameters)
        return result

    # ---- out: the workers' threads ----

    def _find(self, arrival: _Arrival) -> None:
        pipeline, workers = self._pipeline, self._workers
        if pipeline is None or workers is None:
            return
        queued = time.monotonic() - arrival.time
        with self._surviving():
            workers.track.submit((pipeline.find(arrival.msg), queued))

    def _track(self, item: tuple[FoundFrame, float]) -> None:
        pipeline, workers = self._pipeline, self._workers
        if pipeline is None or workers is None:
            return
        found, queued = item
        with self._surviving():
            frame = pipeline.track(found)
            if self._workers is workers:  # else the node was deactivated meanwhile
                self._publish(frame, queued)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """A frame that cannot be processed is counted and told; the node lives on."""
        try:
            yield
        except ImageError as error:
            self.statistics.drop(error.cause)
            self._warn(error.cause, f"image refused ({error.cause}): {error}")
        except NoEngineError:
            self.statistics.drop("no_engine")
        except Exception as error:  # as an engine that fails
            if self.context.ok():
                self.statistics.drop("failed")
                self._warn("failed", f"frame lost: {_describe(error)}")

    def _publish(self, frame: ProcessedFrame, queued: float) -> None:
        start = time.monotonic()
        matches = frame.matches
        restarted, self._had_tracks = matches.restarted and self._had_tracks, True
        with self._publishing:
            if self._outputs is None:
                return
            self._outputs.publish(frame, self.parameters, restarted)
        seconds = {**frame.seconds, "publish": time.monotonic() - start}
        seconds["queue"] += queued
        self.statistics.processed(seconds, len(frame.features), len(matches), matches.inlier_ratio)

    # ---- reports and log lines ----

    def _report(self) -> None:
        self._tell_silence()
        level, summary, counted = self.statistics.report()
        pipeline = self._pipeline
        if self._workers is None:
            level, summary = 0, "inactive" if pipeline else "unconfigured"
        elif not self._enabled:
            level, summary = 0, "disabled"
        values = {
            "state": "active" if self._workers else "inactive" if pipeline else "unconfigured",
            "model": pipeline.extractor.model_name if pipeline else self.parameters.model,
            "weights": pipeline.extractor.weights_hash if pipeline else "none",
            "device": str(pipeline.extractor.device) if pipeline else "none",
            "engine": pipeline.extractor.engine_name if pipeline else "none",
            **counted,
        }
        stamp = self.get_clock().now().to_msg()
        name = f"{self.get_fully_qualified_name().lstrip('/')}: features"
        self._diagnostics.publish(diagnostics_to_msg(stamp, name, level, summary, values, values["device"]))

    def _tell_silence(self) -> None:
        """Once for each time without images, say what the graph knows about their topic."""
        silent = self._workers is not None and self.statistics.silence_s() > SILENCE_S
        if silent and not self._silence_told:
            topic = self.resolve_topic_name("image")
            why = explain(self, topic, self.parameters.image_transport)
            self.get_logger().warning(f"no image on {self._inputs[0].topic_name} for {SILENCE_S:g} s: {why}")
        self._silence_told = silent

    def _warn(self, key: str, text: str) -> None:
        """Warn, at most every few seconds for one key; keys come from fixed lists."""
        now = time.monotonic()
        if now - self._warned.get(key, -WARN_PERIOD_S) >= WARN_PERIOD_S:
            self._warned[key] = now
            self.get_logger().warning(text)

    def _log(self, level: str, text: str) -> None:
        """Log for the extractor. One call per level: rclpy binds a level to the line of the call."""
        if not self.context.ok():
            return
        logger = self.get_logger()
        if level == "error":
            logger.error(text)
        elif level == "warning":
            logger.warning(text)
        elif level == "debug":
            logger.debug(text)
        else:
            logger.info(text)


def _read_mask(path: str) -> np.ndarray | None:
    if not path:
        return None
    file = Path(path).expanduser()
    mask = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) if file.is_file() else None
    if mask is None:
        raise ParameterError(f"mask_file {path!r} is missing or not an image")
    return mask


def _describe(error: BaseException) -> str:
    """The message of an error in one line, with its type where it is not one of ours."""
    text = one_line(error) or "no message"
    return text if isinstance(error, (SamfeatError, ValueError)) else f"{type(error).__name__}: {text}"


def _spin(node: SamfeatNode, executor: SingleThreadedExecutor, until: Future | None = None) -> None:
    """Spin until the context ends or the future is done, past errors of ROS: for a lifecycle request that does not fit
    the state, Humble and Jazzy raise RCLError, a RuntimeError, out of the executor."""
    while rclpy.ok() and not (until and until.done()):
        try:
            executor.spin_until_future_complete(until) if until else executor.spin()
        except RuntimeError as error:
            if rclpy.ok():
                node.get_logger().error(f"refused: {_describe(error)}")
                time.sleep(0.1)  # no busy loop where the error persists


def run_apart(work: Callable[[], Any], executor: SingleThreadedExecutor) -> Future:
    """Run in a thread of its own; the executor's future gets the result or the exception."""
    future: Future = Future(executor=executor)

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=_CONFIGURING, daemon=True).start()
    return future


def _start(node: SamfeatNode) -> bool:
    """`node.start()`; False if it failed, or if the node was told to end meanwhile."""
    try:
        return node.start()
    except (KeyboardInterrupt, RuntimeError) as error:
        if node.context.ok():
            node.get_logger().error(f"cannot start: {_describe(error)}")
        return False


def main(args: list[str] | None = None) -> NoReturn:
    """Executable `samfeat_node`; see `run` for its exit codes."""
    code = run(args)
    if all(thread.name != _CONFIGURING for thread in threading.enumerate()):
        gc.collect()  # a lifecycle node keeps its place in shared memory until it is collected
    # Nothing is left to do. Python would still wait for an engine that is built in this process, and take seconds on a
    # busy robot to unload the runtimes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(args: list[str] | None = None) -> int:
    """A node until it is told to end.

    Returns:
        exit code: 0 after SIGINT or SIGTERM, 1 when `autostart` could not configure, 2 for an impossible parameter or
        a params file that cannot be read.
    """
    # As SIGINT does: rclpy's own handler only ends the context, which nobody looks at while an engine is built.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rclpy.init(args=args)
    except RuntimeError as error:  # RCLError
        print(f"samfeat: {one_line(error, 300)}", file=sys.stderr)
        return 2
    node, code = None, 0
    try:
        node = SamfeatNode()
        for line in unread(node, sys.argv if args is None else args):
            node.get_logger().warning(line)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.parameters.autostart:
            started = run_apart(partial(_start, node), executor)
            _spin(node, executor, until=started)
            code = int(rclpy.ok() and not started.result())
        if not code:
            _spin(node, executor)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (ParameterException, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"samfeat: {_describe(error)}", file=sys.stderr)
        code = 2
    except RuntimeError:  # RCLError: the signal came in the middle of a transition
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            node.close()
        rclpy.try_shutdown()
    return code


if __name__ == "__main__":
    main()
