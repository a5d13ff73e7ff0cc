"""One thread, one slot: the newest item wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class NewestWorker(Generic[Item]):
    """Runs `handle` on the newest item in a thread of its own.

    While an item is being handled, one more waits in a slot; a newer one replaces it there. So the age of what is
    handled is bounded by one run of `handle`, and memory by two items.

    Args:
        handle: called in the thread with each item that was not replaced; must not raise.
        superseded: called in the submitting thread for each item that a newer one replaced.
    """

    def __init__(self, handle: Callable[[Item], None], superseded: Callable[[Item], None]) -> None:
        self._handle = handle
        self._superseded = superseded
        self._slot: list[Item] = []
        self._wake = threading.Condition()
        self._stopping = False
        # A daemon, because building an engine cannot be interrupted and must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="samfeat-worker", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Hand over an item; returns at once."""
        with self._wake:
            replaced, self._slot = self._slot, [item]
            self._wake.notify()
        for old in replaced:
            self._superseded(old)

    def stop(self, timeout_s: float) -> bool:
        """Drop what waits and end the thread after the item in work; False if that takes longer than the timeout."""
        with self._wake:
            self._stopping = True
            self._slot = []
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._slot or self._stopping)
                if self._stopping:
                    return
                item = self._slot.pop()
            self._handle(item)
