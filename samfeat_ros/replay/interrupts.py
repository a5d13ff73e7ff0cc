"""SIGINT and SIGTERM as KeyboardInterrupt, also where rclpy or the interpreter would lose the exception."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_interrupted = threading.Event()


def interrupt_on_signals() -> None:
    """Make SIGINT and SIGTERM end this process as KeyboardInterrupt, so that context managers clean up.

    An exception that is raised inside a callback of rclpy or of the interpreter may be lost there. So the signal is
    remembered as well, and `check_interrupt` raises it again.
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
