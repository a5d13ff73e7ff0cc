"""`make fuzz` in short: another seed than its own, so that both together see more."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")
import fuzz  # noqa: E402

CASES = 3500


def test_damaged_messages_end_in_a_result_or_a_refusal(capsys):
    tallies, growth = fuzz.fuzz(CASES, seed=2)
    assert not [line for tally in tallies.values() for line in tally.failures]
    assert growth < fuzz.MAX_GROWTH_MB
    assert sum(tally.outcomes.total() for tally in tallies.values()) == CASES
    for name, tally in tallies.items():  # the damage leaves some cases sound and makes others bad
        assert 0 < tally.outcomes[fuzz.ACCEPTED] < tally.outcomes.total(), name


def test_a_failure_names_the_case_that_repeats_it(monkeypatch):
    seen = []

    def fail(case):
        seen.append(case.tobytes())
        raise KeyError("boom")

    monkeypatch.setitem(fuzz.TARGETS, "image", (lambda random: random.normal(size=3), fail))
    tally = fuzz.fuzz(5, 3, ["image"])[0]["image"]
    assert tally.outcomes["FAILED"] == len(tally.failures) == 5
    assert tally.failures[4].startswith("image 4: ") and "KeyError: 'boom'" in tally.failures[4]
    fuzz.run_case("image", 3, 4, fuzz.Tally())
    assert seen[-1] == seen[-2] and len(set(seen)) == 6  # 5 cases and the first, which loads things


def test_what_breaks_a_promise_fails(monkeypatch):
    monkeypatch.setattr(fuzz, "image_from_msg", lambda msg: np.zeros((1, 1, 4), np.uint8))
    tally = fuzz.fuzz(10, 1, ["image"])[0]["image"]
    assert len(tally.failures) == 10 and "BrokenPromise" in tally.failures[0]
