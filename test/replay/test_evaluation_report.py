"""Verdict, requirements and comparison: what a reader decides by."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("evo")

from samfeat_core.errors import FileError, UsageError
from samfeat_ros.replay.evaluation import plots
from samfeat_ros.replay.evaluation.comparison import (
    BETTER,
    UNCHANGED,
    UNKNOWN,
    WORSE,
    changes_table,
    compare,
    notes,
    read_report,
)
from samfeat_ros.replay.evaluation.figures import Figure, figures, named
from samfeat_ros.replay.evaluation.page import write_summary
from samfeat_ros.replay.evaluation.requirements import Requirement, result_line
from samfeat_ros.replay.evaluation.verdict import BAD, GOOD, MIXED, verdict

FRAMES = 200
RUNS = ("nano", "orb", "lk", "sift")


def entry(name: str, kind: str, inliers: np.ndarray, **figures) -> dict:
    """What the tables need of a run, with these inliers in its frames."""
    return {
        "name": name, "kind": kind, "frames_offered": FRAMES, "frames_dropped": 0,
        "latency_ms": {"p50": 20.0, "p90": 25.0, "p99": 30.0},
        "inliers": {"mean": float(inliers.mean()), "p5": float(np.percentile(inliers, 5))},
        "without_match": {"frames": 0, "in_a_row": 0},
        "trajectory": {"ate_rmse_m": 0.25},
        "per_frame": {"number": list(range(FRAMES)), "inliers": inliers.tolist()},
        **figures,
    }  # fmt: skip


def report(*entries: dict, rate: float | str = 1.0) -> dict:
    return {
        "format": "samfeat_ros/evaluate_bag", "created": "then",
        "bag": {"path": "/bags/drive", "usable": FRAMES, "images": FRAMES, "duration_s": 19.9},
        "settings": {"rate": rate, "keypoints": 500, "gaps": [1]},
        "machine": {"cpu": "this", "cpus": 2, "load_average": [0.1]},
        "runs": list(entries), "requirements": [], "missing": [], "failures": {},
    }  # fmt: skip


def noise(seed: int, mean: float = 300.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 20, FRAMES)


# ---- requirements ----


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("inliers.p5>=100", 100.0, True),
        ("inliers.p5 > 100", 100.0, False),
        ("ate<=0.3", 0.25, True),
        ("trajectory.ate_rmse_m<0.25", 0.25, False),
        ("drops<=0", 0, True),
        ("nano:latency_ms.p99<=2.5e1", 30.0, False),
        ("relative_pose.1.rotation_deg.p90<=9", None, False),
    ],
)
def test_a_requirement_is_held_against_the_models(text, value, holds):
    entries = [entry("nano", "model", np.full(FRAMES, 100.0)), entry("orb", "classic", np.full(FRAMES, 9.0))]
    (result,) = Requirement.parse(text, [1], RUNS).judge(entries)
    assert (result["run"], result["value"], result["holds"]) == ("nano", value, holds)


def test_whom_a_requirement_is_for():
    entries = [entry("nano", "model", noise(0)), entry("orb", "classic", noise(1)), entry("lk", "classic", noise(2))]
    assert [r["run"] for r in Requirement.parse("ate<=1", [1], RUNS).judge(entries[1:])] == ["orb", "lk"]
    assert [r["run"] for r in Requirement.parse("lk:ate<=1", [1], RUNS).judge(entries)] == ["lk"]
    (missing,) = Requirement.parse("sift:ate<=1", [1], RUNS).judge(entries)
    assert not missing["holds"] and result_line(missing) == "sift:ate<=1: sift: not in the report"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inliers", "expected [RUN:]FIGURE>=NUMBER"),
        ("inliers.p5=>3", "expected [RUN:]FIGURE>=NUMBER"),
        ("ate<=nan", "expected [RUN:]FIGURE>=NUMBER"),
        ("ate<=1e", "expected [RUN:]FIGURE>=NUMBER"),
        ("inlier.p5>=3", "there is no figure inlier.p5; expected one of ate, "),
        ("surf:ate<=1", "no front-end surf is asked for; expected nano, orb, lk, sift"),
        ("relative_pose.5.rotation_deg.p50<=1", "there is no figure relative_pose.5"),
    ],
)
def test_wrong_requirements(text, expected):
    with pytest.raises(UsageError, match=r"--require ") as caught:
        Requirement.parse(text, [1], RUNS)
    assert expected in str(caught.value)


def test_every_line_of_the_tables_can_be_required():
    assert {figure.key for figure in figures([1, 5])} <= set(named([1, 5]))


# ---- comparison ----


def test_only_changes_beyond_the_spread_are_marked():
    old = report(entry("nano", "model", noise(0)))
    same = compare(old, report(entry("nano", "model", noise(1))))
    better = compare(old, report(entry("nano", "model", noise(1, 320.0))))
    worse = compare(old, report(entry("nano", "model", noise(1, 280.0))))
    verdicts = [
        {change.figure.key: change.verdict for change in changes}["inliers.mean"] for changes in (same, better, worse)
    ]
    assert verdicts == [UNCHANGED, BETTER, WORSE]
    change = next(change for change in better if change.figure.key == "inliers.mean")
    assert change.difference == pytest.approx(noise(1, 320.0).mean() - noise(0).mean())
    # the mean of independent frames: its standard error is 20 sqrt(2 / 200) = 2 inliers
    assert change.high - change.low == pytest.approx(2 * 1.96 * 2, rel=0.25)


def test_a_smaller_error_is_better_and_what_has_no_spread_is_not_marked():
    frames = {"number": list(range(FRAMES)), "epipolar_px": (noise(3) / 300).tolist()}
    epipolar = {"matches": {"median_px": 1.0}}
    old = entry("nano", "model", noise(0), per_frame=frames, epipolar=epipolar)
    new = deepcopy(old)
    new["per_frame"]["epipolar_px"] = (noise(4) / 600).tolist()
    new["epipolar"]["matches"]["median_px"] = 0.5
    new["trajectory"]["ate_rmse_m"] = 0.1
    verdicts = {change.figure.key: change.verdict for change in compare(report(old), report(new))}
    assert verdicts["epipolar.matches.median_px"] == BETTER
    assert verdicts["trajectory.ate_rmse_m"] == UNKNOWN and verdicts["inliers.mean"] == UNKNOWN


def test_other_frames_are_no_difference():
    """Twice the same run, once without its first half, in which it had more inliers."""
    inliers = np.concatenate([noise(0, 400.0)[: FRAMES // 2], noise(1, 300.0)[FRAMES // 2 :]])
    half = {"number": list(range(FRAMES // 2, FRAMES)), "inliers": inliers[FRAMES // 2 :].tolist()}
    old, new = entry("nano", "model", inliers), entry("nano", "model", inliers[FRAMES // 2 :], per_frame=half)
    change = next(change for change in compare(report(old), report(new)) if change.figure.key == "inliers.mean")
    assert change.new - change.old < -40 and change.difference == 0 and change.verdict == UNCHANGED
    assert any(
        line.startswith("nano: 200 frames then, 100 now, 100 frames are in both")
        for line in notes(report(old), report(new))
    )


def test_more_dropped_frames_are_worse():
    inliers = noise(0)
    kept = [number for number in range(FRAMES) if number % 3]
    frames = {"number": kept, "inliers": inliers[kept].tolist()}
    new = entry("nano", "model", inliers, per_frame=frames, frames_dropped=FRAMES - len(kept))
    changes = {change.figure.key: change for change in compare(report(entry("nano", "model", inliers)), report(new))}
    assert changes["frames_dropped"].verdict == WORSE and changes["frames_dropped"].difference == pytest.approx(
        66, abs=1
    )
    assert changes["inliers.mean"].verdict == UNCHANGED


def test_blocks_widen_the_spread_where_neighbours_are_alike():
    slow = np.repeat(noise(5)[: FRAMES // 10], 10)
    independent, alike = (
        compare(report(entry("nano", "model", noise(0))), report(entry("nano", "model", inliers)))
        for inliers in (np.random.default_rng(1).permutation(slow), slow)
    )
    widths = [
        next(c.high - c.low for c in changes if c.figure.key == "inliers.mean") for changes in (independent, alike)
    ]
    assert widths[1] > 1.5 * widths[0]


def test_what_else_differs_is_said():
    old, new = report(entry("nano", "model", noise(0))), report(entry("orb", "classic", noise(0)), rate="max")
    new["machine"]["cpu"] = "that"
    assert notes(old, new) == [
        "--rate: 1.0 then, max now", "CPU: this then, that now",
        "nano: only in the earlier report", "orb: only in this report",
    ]  # fmt: skip
    assert compare(old, new) == []


def test_the_table_of_changes():
    changes = compare(report(entry("nano", "model", noise(0))), report(entry("nano", "model", noise(1, 320.0))))
    line = next(line for line in changes_table(changes).splitlines() if line.startswith("inliers   "))
    assert line.split()[:5] == ["inliers", "nano", "300", "319", "+18"] and line.endswith("better")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "other", "runs": []}', '{"format": "samfeat_ros/evaluate_bag"}']
)
def test_an_earlier_report_that_is_none(tmp_path, text):
    path = tmp_path / "report.json"
    with pytest.raises(FileError, match="cannot be read"):
        read_report(path)
    path.write_text(text)
    with pytest.raises(FileError, match="expected a report.json of evaluate_bag"):
        read_report(tmp_path)  # its folder will do
    path.write_text(json.dumps(report()))
    assert read_report(path)["runs"] == []


# ---- verdict ----


def test_the_verdict_gives_its_reasons():
    model, orb = entry("nano", "model", noise(0)), entry("orb", "classic", noise(1), trajectory={"ate_rmse_m": 0.5})
    p5 = np.percentile(noise(0), 5)
    assert verdict(report(model, orb)) == (
        GOOD,
        "nano keeps up (0 of 200 dropped, 99 % of the frames within 30 ms, 100 ms between images) and holds its tracks "
        f"({p5:.0f} inliers or more in 95 % of the frames, none without a match); "
        "ATE 0.250 m, better than 0.500 by orb.",
    )


def test_the_verdict_never_flatters():
    blind = entry("nano", "model", noise(0), without_match={"frames": 3, "in_a_row": 3}, frames_dropped=7)
    level, text = verdict(report(blind))
    assert level == BAD and "does not keep up (7 of 200 dropped" in text
    assert "and loses all tracks at times" in text and "3 without a match" in text
    level, text = verdict(report(entry("nano", "model", noise(0, 60.0) / 3)))
    assert level == MIXED and " but runs short of inliers" in text
    slow = entry("nano", "model", noise(0), latency_ms={"p50": 90.0, "p90": 99.0, "p99": 101.0})
    assert verdict(report(slow, rate="max"))[1].startswith("nano would not keep up (99 % of the frames within 101 ms")
    failing = report(entry("nano", "model", noise(0)))
    failing["requirements"] = Requirement.parse("ate<=0.1", [1], RUNS).judge(failing["runs"])
    level, text = verdict(failing)
    assert level == MIXED and "but fails 1 of 1 requirements" in text


def test_the_summary_for_a_pull_request(tmp_path):
    old, new = report(entry("nano", "model", noise(0))), report(entry("nano", "model", noise(1, 320.0)))
    new["requirements"] = Requirement.parse("ate<=0.1", [1], RUNS).judge(new["runs"])
    write_summary(new, tmp_path / "report.md", compare(old, new), old)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "### drive" and lines[2] == f"**{verdict(new)[1]}**"
    assert "- ❌ `ate<=0.1: nano: is 0.25`" in lines and "| | nano |" in lines and "|---|---:|" in lines
    assert any(
        line.startswith("| nano | inliers | 300 | 319 | +18 | +") and line.endswith("▲ better |") for line in lines
    )


# ---- plots ----


@pytest.mark.parametrize(("length", "width", "expected"), [(10, 10, 1), (40, 10, 1), (100, 10, 5), (1000, 10, 50)])
def test_only_the_width_of_long_paths_is_stretched(length, width, expected):
    path = np.array([[0.0, 0.0], [length / 2, width], [length, 0.0]])
    assert plots.stretch_of(path) == expected


def test_the_main_direction_of_a_drive_leads_to_the_right():
    path = np.outer(np.arange(50.0), (0.0, 0.0, -1.0)) + np.random.default_rng(0).normal(0, 0.1, (50, 3))
    centre, axes = plots.principal_axes(path)
    flat = (path - centre) @ axes
    assert np.diff(flat[:, 0]).mean() == pytest.approx(1, abs=0.02) and np.ptp(flat[:, 1]) < 1


def test_a_figure_prints_differences_with_their_sign():
    assert Figure("x", "x", "{:.2f}").text(0.5, "+") == "+0.50" and Figure("x", "x").text(None) == "-"
