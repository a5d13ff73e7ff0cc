"""How much slower than alone this machine is just now: for bounds in seconds, which hold on an idle one."""

from __future__ import annotations

import time

PROBE_S = 0.2


def slowdown() -> float:
    """Wall clock by CPU time of some work, at least 1."""
    wall, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < PROBE_S:
        sum(range(1000))
    return max(1.0, (time.monotonic() - wall) / (time.process_time() - cpu))
