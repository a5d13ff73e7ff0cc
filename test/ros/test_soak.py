"""`make soak` in short, and its verdict."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("psutil")
import soak  # noqa: E402

GOOD = {
    "baseline": {"memory": 300.0, "threads": 30, "files": 25},
    "last_tenth": {"memory": 310.0, "threads": 30, "files": 26},
    "frames_processed": 5,
}


def test_a_short_soak_passes(tmp_path):
    result, wrong = soak.run(0.2, 1, tmp_path)
    assert not wrong, soak.table(result) if result else wrong
    assert result["frames_processed"] and result["images_damaged"]
    assert sum(event["count"] for event in result["recovery_s"].values())
    assert "dropped" in soak.table(result) and (tmp_path / "events.log").read_text()


@pytest.mark.parametrize(
    ("changes", "log", "code", "seconds", "said"),
    [
        ({}, "[WARN] image refused", 0, 0.5, None),
        ({"last_tenth": {"memory": 381.0, "threads": 30, "files": 25}}, "", 0, 0.5, "memory grew by 81"),
        ({"last_tenth": {"memory": 300.0, "threads": 34, "files": 25}}, "", 0, 0.5, "threads grew by 4"),
        ({"frames_processed": 0}, "", 0, 0.5, "no frame was processed"),
        ({}, "a\n[ERROR] [1] [samfeat]: oh\n", 0, 0.5, r"in the log: \[ERROR\]"),
        ({}, "[WARN] frame lost: RuntimeError", 0, 0.5, "in the log: .*frame lost"),
        ({}, "", -6, 0.5, "exit code -6"),
        ({}, "", 0, 3.0, "after 3.0 s of an idle"),
    ],
)
def test_the_verdict(changes, log, code, seconds, said):
    wrong = soak.judge({**GOOD, **changes}, log, code, seconds)
    assert bool(wrong) == bool(said)
    if said:
        (line,) = wrong
        assert re.search(said, line)
