"""Builds engines for new image sizes beside the running ones."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from samfeat_core.errors import EngineError, SamfeatError, one_line
from samfeat_core.extractor import FeatureExtractor

Size = tuple[int, int]
Log = Callable[[str, str], None]

MAX_WAITING = 2  # sizes that wait for the one that is built
REMEMBERED = 64  # sizes whose frames are counted
_NICENESS = 5  # of a build beside running engines


class EngineBuilder:
    """One thread that builds one engine after the other, each in a process of its own where that is possible.

    A build would hold Python's lock for seconds, and stop the frames of other sizes with it.

    Args:
        extractor: gets the engines; must not build when called.
        after: frames of a size after which its engine is built.
        log: called with (level, text).
    """

    def __init__(self, extractor: FeatureExtractor, after: int, log: Log) -> None:
        self._extractor, self._after, self._log = extractor, after, log
        self._seen: OrderedDict[Size, int] = OrderedDict()
        self._wanted: list[Size] = []
        self._failed: set[Size] = set()
        self._wake = threading.Condition()
        self._stopping = False
        self._child: subprocess.Popen[str] | None = None
        # A daemon, because an engine that cannot be built apart must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="samfeat-builder", daemon=True)
        self._thread.start()

    def see(self, width: int, height: int) -> None:
        """Count a frame of that size; have its engine built if it lacks one and has been seen often enough."""
        size = width, height
        if not self._extractor.lacks_engine(*size):
            return
        with self._wake:
            self._seen[size] = self._seen.get(size, 0) + 1
            self._seen.move_to_end(size)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            waits = size in self._wanted or size in self._failed or len(self._wanted) > MAX_WAITING
            if self._seen[size] >= self._after and not waits:
                self._wanted.append(size)
                self._wake.notify()

    def build(self, width: int, height: int) -> None:
        """Build the engine of that size beside the running ones, and load it.

        Raises:
            EngineError: no engine could be built. WeightsError: the weights are not the model's.
        """
        if self.build_apart(width, height, _NICENESS):
            self._extractor.prepare(width, height)

    def build_apart(self, width: int, height: int, niceness: int = 0) -> bool:
        """Where the engine of that size is to be built and can be kept, do that now in a process of its own, so that
        `FeatureExtractor.prepare` only loads it; False if the builder was told to stop.

        niceness: of that process; 0 while nothing else is to be done.

        Raises:
            EngineError, WeightsError: see `build`.
        """
        command = self._extractor.build_command(width, height)
        if command is not None:
            self._log("info", f"building the engine for images of {width}x{height}; it is kept for later starts")
            self._run_apart(command, niceness)
        return not self._stopping

    def stop(self, timeout_s: float) -> bool:
        """End the build that runs and drop those that wait; False if it does not end within the timeout."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            child = self._child
        if child is not None:
            with suppress(OSError):  # it has just ended
                os.killpg(child.pid, signal.SIGKILL)  # with what it has started
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run_apart(self, command: list[str], niceness: int) -> None:
        with self._wake:
            if self._stopping:
                return
            # A session of its own: Ctrl-C in the terminal reaches the node alone, which then ends this process.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        if niceness:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._child.pid, niceness)
        said = self._child.communicate()[1]
        code, self._child = self._child.returncode, None
        if code and not self._stopping:
            raise EngineError(one_line((said.strip().splitlines() or [f"building ended with code {code}"])[-1], 300))

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._wanted or self._stopping)
                if self._stopping:
                    return
                size = self._wanted[0]
            try:
                self.build(*size)
            except (SamfeatError, ValueError) as error:
                self._failed.add(size)
                self._log("error", f"no engine for images of {size[0]}x{size[1]}: {error}")
            with self._wake:
                self._wanted.remove(size)
                self._seen.pop(size, None)
