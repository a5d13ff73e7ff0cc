"""The real node in a process of its own, which ends with this one whatever happens."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from samfeat_core.errors import SamfeatError
from samfeat_ros.replay.interrupts import check_interrupt
from samfeat_ros.topics import IMAGE, TRANSPORTS

# Where the node's inputs are remapped to.
TOPICS = {"image": "/camera/image_raw", "camera_info": "/camera/camera_info"}


class NodeError(SamfeatError):
    """The node did not come up, died, or does not answer. One line."""


class NodeProcess:
    """The node `samfeat` as a child process; a context manager that leaves nothing behind.

    It has a ROS_DOMAIN_ID that nobody else on this host uses, so that no robot on the network sees anything of it.

    Args:
        parameters: the node's parameters by name, plain YAML values. `autostart` is true unless given.
        image_type: ROS type of the images that it will get; decides on `image_transport`.
        timeout: seconds that the node may take until it answers a first image (weights, engine).
        log: file that gets the node's output; None = a temporary one. `output()` reads either.
    """

    def __init__(
        self,
        parameters: dict[str, Any] | None = None,
        image_type: str = IMAGE,
        timeout: float = 120.0,
        log: Path | None = None,
    ) -> None:
        self.image_type, self.timeout = image_type, timeout
        self.transport = next(name for name, kind in TRANSPORTS.items() if kind == image_type)
        self.domain_id = free_domain_id()
        self.parameters = {"autostart": True, "image_transport": self.transport, **(parameters or {})}
        self._scratch = tempfile.TemporaryDirectory(prefix="samfeat_playback_")
        self.log = log or Path(self._scratch.name, "node.log")
        self.process: subprocess.Popen[bytes] | None = None
        self._last_output = ""

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
        rules = [word for name, topic in TOPICS.items() for word in ("-r", f"{name}:={topic}")]
        return [sys.executable, "-m", "samfeat_ros.node.samfeat_node", "--ros-args", "--params-file", str(file), *rules]

    def start(self) -> None:
        """Start the process; it is not active yet, see `Playback.wait_until_ready`."""
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
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
        """Raise NodeError when the process has ended, KeyboardInterrupt after a signal."""
        check_interrupt()
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise NodeError(f"the node ended (exit code {code}): {self.last_error()}")

    def stop(self, patience: float = 5.0) -> None:
        """End the node: SIGINT, then SIGTERM, then SIGKILL, each after that many seconds."""
        if self.process is not None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if self.process.poll() is None:
                    self.process.send_signal(number)
                try:
                    self.process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._last_output = self.output()
        self._scratch.cleanup()

    def output(self) -> str:
        """Everything that the node has written to its terminal."""
        return self.log.read_text(errors="replace") if self.log.is_file() else self._last_output

    def last_error(self) -> str:
        """The last line of the output that speaks of an error, else of a warning, else the last line."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        errors = [line for line in lines if "[ERROR]" in line or "[FATAL]" in line or "Error" in line]
        warnings = [line for line in lines if "[WARN]" in line]
        return (errors or warnings or lines or ["it wrote nothing"])[-1]


def free_domain_id() -> int:
    """A ROS_DOMAIN_ID in 1..101 whose first participant's unicast port nobody on this host holds; 0 if all are held."""
    for domain in random.sample(range(1, 102), 101):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    return 0


def _die_with_parent() -> None:
    """Runs in the child before exec: Linux sends it SIGTERM when the parent dies, even by SIGKILL."""
    import ctypes

    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
