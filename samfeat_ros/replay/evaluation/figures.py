"""The figures of a run: their names in report.json, their lines in the tables, and which end of them is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from samfeat_core.track_truth import AGES, WITHIN_PX

Better = Callable[..., Any]  # max or min
ALIASES = {
    "ate": "trajectory.ate_rmse_m",
    "rpe": "trajectory.rpe.1.translation_rmse_m",
    "epipolar": "epipolar.matches.median_px",
    "latency": "latency_ms.p50",
    "drops": "frames_dropped",
}
DROPPED = "dropped"  # the column of frames that were not processed, which `per_frame` has not
# Figures that have a name but no line in the tables.
_FAMILIES = {
    **dict.fromkeys(("keypoints", "matches", "inliers", "inlier_ratio"), ("mean", "median", "p5")),
    "latency_ms": ("p50", "p90", "p99"),
}


@dataclass(frozen=True)
class Figure:
    """One line of the tables.

    Attributes:
        key: where it is in an entry of `runs` in report.json, joined by dots.
        label: for people, with the unit. form: how it is printed.
        better: max or min; None = neither end is better.
        column: of `per_frame`, from which `statistic` makes the figure; "" = it is no statistic over frames.
    """

    key: str
    label: str
    form: str = "{:.0f}"
    better: Better | None = None
    column: str = ""
    statistic: Callable[..., np.ndarray] = np.nanmean

    def of(self, entry: dict[str, Any]) -> float | None:
        """Its value in a run's entry; None where it is not known."""
        value = _look(entry, self.key)
        return value if isinstance(value, (int, float)) and math.isfinite(value) else None

    def limits(self, entry: dict[str, Any]) -> tuple[float, float] | None:
        """Least and largest value over the repeats, where the figure was computed several times."""
        family, _, name = self.key.partition(".")
        found = _look(entry, f"{family}.spread.{name}")
        return (found[0], found[1]) if isinstance(found, list) else None

    def is_better(self, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
        """Whether the entry `ours` is better by what is printed, and by more than the spread of the repeats."""
        if self.better is None or self.of(ours) is None or self.of(theirs) is None:
            return False
        (low, high), (other_low, other_high) = self._printed(ours), self._printed(theirs)
        return high < other_low if self.better is min else low > other_high

    def _printed(self, entry: dict[str, Any]) -> tuple[float, float]:
        value = self.of(entry)
        low, high = self.limits(entry) or (value, value)
        return float(self.form.format(low)), float(self.form.format(high))

    def cell(self, entry: dict[str, Any]) -> str:
        """A run's value as the tables print it, with the spread where there is one."""
        text, limits = self.text(self.of(entry)), self.limits(entry)
        if limits is None or self.text(limits[0]) == self.text(limits[1]):
            return text
        return f"{text} ({self.text(limits[0])} to {self.text(limits[1])})"

    def text(self, value: float | None, sign: str = "") -> str:
        """A value as the tables print it; `sign` "+" for differences."""
        return "-" if value is None else self.form.replace(":", f":{sign}").format(value)


def _look(entry: dict[str, Any], key: str) -> Any:
    value: Any = entry
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _rank(percent: float) -> Callable[..., np.ndarray]:
    def statistic(values: np.ndarray, axis: int | None = None) -> np.ndarray:
        return np.asarray(np.nanpercentile(values, percent, axis=axis))

    return statistic


def _zeros(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.asarray((values == 0).sum(axis=axis))


def figures(gaps: Iterable[int]) -> list[Figure]:
    """All lines, in their order.

    Args:
        gaps: frame gaps of the relative poses.
    """
    lines = [
        Figure("frames_offered", "frames received"),
        Figure("frames_processed", "frames processed"),
        Figure("frames_dropped", "frames dropped", "{:.0f}", min, DROPPED, np.sum),
        Figure("rate_hz", "rate, Hz", "{:.1f}"),
        Figure("latency_ms.p50", "latency p50, ms", "{:.1f}", min, "latency_ms", _rank(50)),
        Figure("latency_ms.p90", "latency p90, ms", "{:.1f}", min, "latency_ms", _rank(90)),
        Figure("latency_ms.p99", "latency p99, ms", "{:.1f}", min, "latency_ms", _rank(99)),
        Figure("cpu_ms_per_frame", "CPU, ms a frame", "{:.1f}", min),
        Figure("memory_mb", "memory, MB"),
        Figure("device_memory_mb", "device memory, MB"),
        Figure("keypoints.mean", "keypoints", column="keypoints"),
        Figure("matches.mean", "matches", "{:.0f}", max, "matches"),
        Figure("inliers.mean", "inliers", "{:.0f}", max, "inliers"),
        Figure("inliers.p5", "inliers, worst 5 %", "{:.0f}", max, "inliers", _rank(5)),
        Figure("without_match.frames", "frames without a match", "{:.0f}", min, "matches", _zeros),
        Figure("inlier_ratio.mean", "inlier ratio", "{:.3f}", max, "inlier_ratio"),
        Figure("coverage.inliers", "coverage by inliers", "{:.3f}", max, "coverage"),
        Figure("tracks.mean_length", "track length, mean", "{:.1f}", max),
        Figure("tracks.alive.10", "points alive 10 frames later", "{:.0f}", max, "alive_10"),
        Figure("tracks.alive.20", "points alive 20 frames later", "{:.0f}", max, "alive_20"),
        Figure("epipolar.matches.median_px", "epipolar error, median px", "{:.2f}", min, "epipolar_px", np.nanmedian),
        Figure("epipolar.matches.within_1px", "matches within 1 px", "{:.3f}", max, "within_1px"),
        Figure("epipolar.matches.within_3px", "matches within 3 px", "{:.3f}", max, "within_3px"),
    ]
    for age in (5, 20):
        key = f"track_truth.ages.{age}"
        lines += [
            Figure(f"{key}.within.2", f"age {age}: tracks within 2 px, %", "{:.1f}", max),
            Figure(f"{key}.survival", f"age {age}: visible points tracked, %", "{:.1f}", max),
        ]
    for gap in gaps:
        for name, form in (("rotation", "{:.3f}"), ("direction", "{:.2f}")):
            key, column = f"relative_pose.{gap}.{name}_deg", f"gap{gap}_{name}_deg"
            lines += [
                Figure(f"{key}.p{rank}", f"gap {gap}: {name} p{rank}, deg", form, min, column, _rank(rank))
                for rank in (50, 90)
            ]
    lines += [
        Figure("trajectory.tracking", "frames with a pose", "{:.0f}", max),
        Figure("trajectory.lost", "frames without a pose", "{:.0f}", min),
        Figure("trajectory.ate_rmse_m", "ATE rmse, m (scaled)", "{:.3f}", min),
        Figure("trajectory.ate_percent", "ATE, % of the path", "{:.2f}", min),
    ]
    for delta, name in ((1, "1 frame"), (10, "10 frames")):
        key = f"trajectory.rpe.{delta}"
        lines += [
            Figure(f"{key}.translation_rmse_m", f"RPE {name}: position, m", "{:.4f}", min),
            Figure(f"{key}.rotation_mean_deg", f"RPE {name}: rotation, deg", "{:.3f}", min),
        ]
    return lines


def named(gaps: Iterable[int]) -> dict[str, Figure]:
    """Every figure by its name in report.json; those without a line in the tables too."""
    truth = [
        Figure(f"track_truth.{which}.{age}.{name}", f"{which}, age {age}: {name}", "{:.4g}")
        for which in ("ages", "flat")
        for age in AGES
        for name in ("survival", "median_px", *(f"within.{px}" for px in WITHIN_PX))
    ]
    extra = [
        Figure(f"{family}.{name}", f"{family} {name}", "{:.4g}")
        for family, names in _FAMILIES.items()
        for name in names
    ]
    return {figure.key: figure for figure in (*extra, *truth, *figures(gaps))}
