"""One slot between two threads: the newest item wins, or every item gets its turn."""

from __future__ import annotations

import threading
import time

from samfeat_ros.node.worker import Worker


class Slow:
    """Handles items, each one only when it is let."""

    def __init__(self):
        self.begun, self.go, self.done = threading.Semaphore(0), threading.Semaphore(0), []
        self.worker = Worker(self.handle, "test-worker")

    def handle(self, item):
        self.begun.release()
        assert self.go.acquire(timeout=10)
        self.done.append(item)

    def finish(self, count):
        for _ in range(count):
            self.go.release()
        while len(self.done) < count:
            time.sleep(0.001)
        assert self.worker.stop(10)


def test_a_newer_item_replaces_the_one_that_waits():
    slow = Slow()
    assert not slow.worker.replace(0)
    assert slow.begun.acquire(timeout=10)  # 0 is being handled
    assert [slow.worker.replace(item) for item in (1, 2, 3)] == [False, True, True]
    slow.finish(2)
    assert slow.done == [0, 3]


def test_an_appended_item_waits_for_the_slot():
    slow = Slow()
    slow.worker.append(0)
    assert slow.begun.acquire(timeout=10)
    slow.worker.append(1)
    third = threading.Thread(target=slow.worker.append, args=(2,))
    third.start()
    third.join(0.05)
    assert third.is_alive()  # 1 has the slot
    slow.finish(3)
    third.join(10)
    assert slow.done == [0, 1, 2]


def test_a_stopped_worker_lets_go_of_whoever_waits_and_drops_the_item():
    slow = Slow()
    slow.worker.append(0)
    assert slow.begun.acquire(timeout=10)
    slow.worker.append(1)
    waiting = threading.Thread(target=slow.worker.append, args=(2,))
    waiting.start()
    assert not slow.worker.stop(0.01)  # 0 is still there
    waiting.join(10)
    assert not waiting.is_alive()
    slow.worker.append(3)
    slow.go.release()
    assert slow.worker.stop(10) and slow.done == [0]
