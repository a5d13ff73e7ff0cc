"""One thread, one slot. Whoever fills the slot says what becomes of an item that still waits there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Runs `handle` on one item after the other, in a thread of its own.

    While an item is being handled, one more waits in a slot: memory is bounded by two items.

    Args:
        handle: called in the thread with each item that was not replaced; must not raise.
        name: of the thread.
    """

    def __init__(self, handle: Callable[[Item], None], name: str) -> None:
        self._handle = handle
        self._slot: list[Item] = []
        self._wake = threading.Condition()
        self._stopping = False
        # A daemon, because building an engine cannot be interrupted and must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def replace(self, item: Item) -> bool:
        """Hand over an item, in place of one that waits; returns at once, and whether there was one.

        So the age of what is handled is bounded by one run of `handle`.
        """
        with self._wake:
            replaced, self._slot = bool(self._slot), [item]
            self._wake.notify_all()
        return replaced

    def append(self, item: Item) -> None:
        """Hand over an item once the slot is free; a worker that was stopped drops it."""
        with self._wake:
            self._wake.wait_for(lambda: not self._slot or self._stopping)
            if not self._stopping:
                self._slot = [item]
                self._wake.notify_all()

    def stop(self, timeout_s: float) -> bool:
        """Drop what waits and end the thread after the item in work; False if that takes longer than the timeout."""
        with self._wake:
            self._stopping = True
            self._slot = []
            self._wake.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._slot or self._stopping)
                if self._stopping:
                    return
                item = self._slot.pop()
                self._wake.notify_all()
            self._handle(item)
