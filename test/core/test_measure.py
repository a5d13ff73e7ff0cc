"""What reports say of numbers and of the machine."""

import numpy as np

from samfeat_core.measure import machine, percentiles


def test_percentiles_of_the_finite_values():
    assert percentiles([]) is None and percentiles([np.nan]) is None
    assert percentiles([1.0, np.nan, 3.0])["p50"] == 2.0
    assert percentiles(range(101)) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles(iter([4.0]), (5,)) == {"p5": 4.0}


def test_the_machine_says_what_a_time_depends_on():
    here = machine()
    assert here["cpus"] >= 1 and here["cpu"] and here["opencv"] and "gpu" in here
