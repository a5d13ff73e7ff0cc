"""What the node counts and reports about itself, by a clock that the test turns."""

from __future__ import annotations

import pytest

pytest.importorskip("diagnostic_msgs")

from samfeat_ros.node.diagnostics import RATE_REPORTS, WINDOW, Statistics, diagnostics_to_msg
from samfeat_ros.node_status import ON_PURPOSE, STAGES, values_from_msg

OK, WARNING = 0, 1


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def statistics(clock) -> Statistics:
    return Statistics(clock)


def process(statistics: Statistics, seconds: float = 0.001) -> None:
    statistics.received()
    statistics.processed(dict.fromkeys(STAGES, seconds), keypoints=30, matches=20, inlier_ratio=0.75)


def test_a_refused_frame_is_a_warning_until_it_has_aged_out(statistics, clock):
    process(statistics)
    assert statistics.report()[0] == OK
    statistics.received()
    statistics.drop("encoding")
    texts = []
    for _ in range(RATE_REPORTS + 1):
        clock.now += 1
        process(statistics)
        level, text, values = statistics.report()
        texts.append((level, text))
        assert values["dropped_encoding"] == values["dropped"] == "1"  # still counted
    assert texts[: RATE_REPORTS - 1] == [
        (WARNING, f"1 frames refused in the last {seconds} s") for seconds in range(1, RATE_REPORTS)
    ]
    assert texts[-1][0] == OK
    statistics.drop("encoding")
    statistics.drop("size")
    assert statistics.report()[:2] == (WARNING, f"2 frames refused in the last {RATE_REPORTS - 1} s")


@pytest.mark.parametrize("cause", sorted(ON_PURPOSE))
def test_frames_left_out_on_purpose_are_no_warning(statistics, cause):
    process(statistics)
    statistics.drop(cause)
    level, _, values = statistics.report()
    assert level == OK and values[f"dropped_{cause}"] == "1"


def test_silence_counts_from_the_last_image_or_the_start(statistics, clock):
    clock.now += 3
    assert statistics.silence_s() == 3
    process(statistics)
    clock.now += 2
    assert statistics.silence_s() == 2
    statistics.clear()
    assert statistics.silence_s() == 0


def test_missing_images_are_a_warning(statistics, clock):
    assert statistics.report()[:2] == (WARNING, "no image received yet")
    process(statistics)
    clock.now += 2.0
    assert statistics.report()[0] == OK
    clock.now += 0.5
    level, text, values = statistics.report()
    assert (level, text, values["image_age_s"]) == (WARNING, "no image for 2.5 s", "2.500")


def test_rates_are_those_of_the_last_reports(statistics, clock):
    for _ in range(10):
        statistics.received()
    clock.now += 1
    assert statistics.report()[2]["rate_in_hz"] == "10.000"
    for _ in range(2 * RATE_REPORTS):
        clock.now += 1
        for _ in range(4):
            process(statistics)
        statistics.received()
        level, text, values = statistics.report()
    assert (values["rate_in_hz"], values["rate_out_hz"]) == ("5.000", "4.000")
    assert (level, text) == (OK, "5.0 Hz in, 4.0 Hz out")
    assert values["frames_in"] == str(10 + 10 * RATE_REPORTS) and values["frames_processed"] == str(8 * RATE_REPORTS)


def test_latencies_are_milliseconds_of_the_last_frames(statistics):
    assert statistics.report()[2]["latency_total_p50_ms"] == "nan"
    for _ in range(WINDOW):
        process(statistics, 0.5)
    for _ in range(WINDOW):
        process(statistics, 0.002)
    values = statistics.report()[2]
    assert values["latency_network_p99_ms"] == "2.000"
    assert values["latency_total_p50_ms"] == f"{2 * len(STAGES):.3f}"
    assert (values["keypoints"], values["matches"], values["inlier_ratio"]) == ("30", "20", "0.750")
    statistics.clear()
    values = statistics.report()[2]
    assert values["frames_in"] == values["keypoints"] == "0" and values["latency_total_p50_ms"] == "nan"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_report_is_one_status_that_readers_find(level):
    from builtin_interfaces.msg import Time

    msg = diagnostics_to_msg(Time(sec=5), "robot/samfeat: features", level, "text", {"a": "1", "b": "2"}, "cpu")
    (status,) = msg.status
    assert status.level == bytes([level]) and msg.header.stamp.sec == 5
    assert (status.name, status.message, status.hardware_id) == ("robot/samfeat: features", "text", "cpu")
    assert values_from_msg(msg) == {"a": "1", "b": "2"} and values_from_msg(msg, "other") is None
