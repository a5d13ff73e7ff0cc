"""`--compare OLD`: what changed since an earlier report, and which changes are more than chance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samfeat_core.errors import FileError
from samfeat_ros.replay.evaluation.figures import DROPPED, Figure, figures
from samfeat_ros.replay.evaluation.report import FORMAT, columns

RESAMPLES, BLOCK, CONFIDENCE = 400, 10, 0.95
BETTER, WORSE, UNCHANGED, UNKNOWN = "better", "worse", "within the spread", ""
SETTINGS = (
    "rate",
    "keypoints",
    "gaps",
    "rectified",
    "limit",
    "start_s",
    "duration_s",
    "time_offset_s",
    "stamps",
)  # that change the figures


@dataclass(frozen=True)
class Change:
    """A figure of a run then and now.

    Attributes:
        difference: over the frames that both have, where the figure is made from single frames; else of the figures.
        low, high: interval of the difference (`spread`); None = not known.
        verdict: `BETTER`, `WORSE`, `UNCHANGED`, or `UNKNOWN` where there is no interval or neither end is better.
    """

    run: str
    figure: Figure
    old: float
    new: float
    difference: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None:
            return UNKNOWN
        if self.low <= 0 <= self.high:
            return UNCHANGED
        if self.figure.better is None:
            return UNKNOWN
        return BETTER if self.figure.better(self.difference, 0) == self.difference else WORSE

    @property
    def spread(self) -> str:
        """The interval as text."""
        if self.low is None or self.high is None:
            return "-"
        return f"{self.figure.text(self.low, '+')} to {self.figure.text(self.high, '+')}"


def read_report(path: Path) -> dict[str, Any]:
    """An earlier report.json, or that of a folder.

    Raises:
        FileError: no such file, or no report of evaluate_bag.
    """
    path = path if path.suffix == ".json" else path / "report.json"
    try:
        report = json.loads(path.read_text())
        whole = {"bag", "settings", "machine", "created"} <= report.keys()
        if (
            report["format"] != FORMAT
            or not whole
            or not all({"name", "per_frame"} <= run.keys() for run in report["runs"])
        ):
            raise KeyError
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{path}: expected a report.json of evaluate_bag") from None
    return report


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every figure that both reports have, for the runs of the same name."""
    before = {entry["name"]: entry for entry in old["runs"]}
    changes = []
    for entry in new["runs"]:
        earlier = before.get(entry["name"])
        if earlier is None:
            continue
        for figure in figures(new["settings"]["gaps"]):
            was, now = figure.of(earlier), figure.of(entry)
            if was is not None and now is not None:
                same_frames = earlier["per_frame"]["number"] == entry["per_frame"]["number"] or figure.column == DROPPED
                paired, *interval = spread(figure, earlier, entry) or (now - was,)
                difference = now - was if same_frames else paired
                changes.append(Change(entry["name"], figure, was, now, difference, *interval))
    return changes


def changes_table(changes: list[Change]) -> str:
    """The changes for the terminal."""
    head = ["change since the earlier report", "front-end", "then", "now", "difference", "spread", ""]
    lines = []
    for change in changes:
        text = change.figure.text
        numbers = [text(change.old), text(change.new), text(change.difference, "+")]
        lines.append([change.figure.label, change.run, *numbers, change.spread, change.verdict])
    return columns([head, *lines])


def notes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for everything besides the front-ends that differs, and for runs that are in one report alone."""
    lines = []
    for what, was, now in (
        ("bag", Path(old["bag"]["path"]).name, Path(new["bag"]["path"]).name),
        ("images used", old["bag"]["usable"], new["bag"]["usable"]),
        *((f"--{name}", old["settings"].get(name), new["settings"].get(name)) for name in SETTINGS),
        ("CPU", old["machine"].get("cpu"), new["machine"].get("cpu")),
    ):
        if was != now and was is not None:
            lines.append(f"{what}: {was} then, {now} now")
    for name, then, now in _frames_of_both(old, new):
        if then != now:
            common = f"{len(then & now)} frames are in both reports: differences with a spread are over these"
            lines.append(f"{name}: {len(then)} frames then, {len(now)} now, {common}")
    names = [{entry["name"] for entry in report["runs"]} for report in (old, new)]
    lines += [f"{name}: only in the earlier report" for name in sorted(names[0] - names[1])]
    lines += [f"{name}: only in this report" for name in sorted(names[1] - names[0])]
    return lines


def _frames_of_both(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, set[int], set[int]]]:
    """(name, its frames then, and now) of the runs of the same name."""
    before = {entry["name"]: set(entry["per_frame"]["number"]) for entry in old["runs"]}
    after = {entry["name"]: set(entry["per_frame"]["number"]) for entry in new["runs"]}
    return [(name, before[name], frames) for name, frames in after.items() if name in before]


def spread(figure: Figure, old: dict[str, Any], new: dict[str, Any]) -> tuple[float, float, float] | None:
    """Difference of a figure of two runs over their common frames, and its interval by a paired bootstrap over them.

    Blocks of 10 successive frames are drawn, as neighbours are alike (moving block bootstrap, Kuensch 1989). The
    interval says what other frames of the same kind would change; it knows nothing of a machine that was busier.
    Of a figure that was computed several times, it is the interval between the repeats that are furthest apart.
    None where a run has no such column, or too few frames.
    """
    was, now = figure.limits(old), figure.limits(new)
    if was and now:
        return _middle(figure, new) - _middle(figure, old), now[0] - was[1], now[1] - was[0]
    if figure.column == DROPPED:
        numbers = [number for entry in (old, new) for number in entry["per_frame"]["number"]]
        every = range(min(numbers), max(numbers) + 1)
        before, after = (_dropped(entry, every) for entry in (old, new))
    else:
        before, after = (_column(entry, figure.column) for entry in (old, new))
    common = sorted(before.keys() & after.keys())[1:]  # the first frame has nothing to match
    if len(common) < 2 * BLOCK:
        return None
    values = np.array([[values[number] for number in common] for values in (before, after)], np.float64)
    starts = np.random.default_rng(0).integers(0, len(common), (RESAMPLES, -(-len(common) // BLOCK)))
    rows = ((starts[..., None] + np.arange(BLOCK)) % len(common)).reshape(RESAMPLES, -1)[:, : len(common)]
    difference = float(figure.statistic(values[1]) - figure.statistic(values[0]))
    differences = figure.statistic(values[1][rows], axis=1) - figure.statistic(values[0][rows], axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(differences, (tail, 100 - tail))
    return difference, float(low), float(high)


def _middle(figure: Figure, entry: dict[str, Any]) -> float:
    value = figure.of(entry)
    assert value is not None
    return value


def _dropped(entry: dict[str, Any], every: range) -> dict[int, float]:
    """{frame number: whether it was not processed}, 1 or 0."""
    processed = set(entry["per_frame"]["number"])
    return {number: float(number not in processed) for number in every}


def _column(entry: dict[str, Any], name: str) -> dict[int, float]:
    """{frame number: value} of the frames that have one."""
    frames = entry["per_frame"]
    return {n: v for n, v in zip(frames["number"], frames.get(name, ())) if v is not None and np.isfinite(v)}
