"""One slot between two threads: the newest item wins."""

from __future__ import annotations

import threading
import time

from samfeat_ros.node.worker import Worker


class Held:
    """Handles items, each one only when it is let."""

    def __init__(self, before=lambda: None):
        self.begun, self.go, self.done = threading.Semaphore(0), threading.Semaphore(0), []
        self.worker = Worker(self.handle, "test-worker", before)

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
    held = Held()
    assert not held.worker.submit(0)
    assert held.begun.acquire(timeout=10)  # 0 is being handled
    assert [held.worker.submit(item) for item in (1, 2, 3)] == [False, True, True]
    held.finish(2)
    assert held.done == [0, 3]


def test_an_item_may_be_replaced_until_its_turn():
    turn = threading.Event()
    held = Held(before=lambda: turn.wait(10))
    held.worker.submit(0)
    assert not held.begun.acquire(timeout=0.05)
    assert held.worker.submit(1)
    turn.set()
    held.finish(1)
    assert held.done == [1]


def test_a_stage_waits_until_the_next_one_has_taken_its_last_item():
    second = Held()
    first = Held(before=second.worker.wait_until_free)
    second.worker.submit("a")
    assert second.begun.acquire(timeout=10)
    second.worker.submit("b")  # waits: a is being handled
    first.worker.submit(0)
    assert not first.begun.acquire(timeout=0.05)
    second.go.release()  # a is done, b is taken
    assert first.begun.acquire(timeout=10)
    first.finish(1)
    second.go.release()
    while len(second.done) < 2:
        time.sleep(0.001)
    assert second.worker.stop(10) and second.done == ["a", "b"]


def test_a_stopped_worker_lets_go_of_whoever_waits_and_drops_what_comes():
    held = Held()
    held.worker.submit(0)
    assert held.begun.acquire(timeout=10)
    held.worker.submit(1)
    waiting = threading.Thread(target=held.worker.wait_until_free)
    waiting.start()
    assert not held.worker.stop(0.01)  # 0 is still there
    waiting.join(10)
    assert not waiting.is_alive()
    held.worker.submit(2)
    held.go.release()
    assert held.worker.stop(10) and held.done == [0]
