"""One thread, one slot: the newest item wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Runs `handle` on the newest item in a thread of its own.

    While an item is being handled, one more waits in a slot; a newer one replaces it there. So the age of what is
    handled is bounded by one run of `handle` and `before`, and memory by two items.

    Args:
        handle: called in the thread with each item that was not replaced; must not raise.
        name: of the thread.
        before: called in the thread while an item waits, and may be replaced: it returns when `handle` may begin.
    """

    def __init__(self, handle: Callable[[Item], None], name: str, before: Callable[[], None] = lambda: None) -> None:
        self._handle, self._before = handle, before
        self._slot: list[Item] = []
        self._wake = threading.Condition()
        self._stopping = False
        # A daemon, because building an engine cannot be interrupted and must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> bool:
        """Hand over an item; returns at once, and whether it replaced another one."""
        with self._wake:
            replaced, self._slot = bool(self._slot), [item]
            self._wake.notify_all()
        return replaced

    def wait_until_free(self) -> None:
        """Return when no item waits, or the thread is to end: what is submitted then replaces nothing."""
        with self._wake:
            self._wake.wait_for(lambda: not self._slot or self._stopping)

    def stop(self, timeout_s: float) -> bool:
        """Drop what waits and end the thread after the item in work; False if that takes longer than the timeout."""
        with self._wake:
            self._stopping = True
            self._slot = []
            self._wake.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._wait():
            self._before()
            with self._wake:
                if self._stopping:
                    return
                item = self._slot.pop()
                self._wake.notify_all()
            self._handle(item)

    def _wait(self) -> bool:
        """Wait for an item; False: the thread is to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._slot or self._stopping)
            return not self._stopping
