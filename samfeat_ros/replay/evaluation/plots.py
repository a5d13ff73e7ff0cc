"""The plots of the page, as SVG that scales: small enough that their text is readable on a telephone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from samfeat_core.track_truth import AGES
from samfeat_ros.replay.evaluation.report import Evaluated

COLOURS = ("#1f6fb2", "#d1495b", "#2e933c", "#e08e0b", "#7b4fa3", "#5c677d", "#00798c", "#9b5d00")
SIZE = (5.0, 2.9)  # inches
FONT = 9
STRETCH = 4.0  # a path that is more than so many times longer than wide is drawn with its width stretched


@dataclass(frozen=True)
class Plot:
    """An SVG with its title. timeline: (left, right, start, end) where its horizontal axis is time: shares of the width
    of the picture, and seconds."""

    title: str
    svg: str
    timeline: tuple[float, float, float, float] | None = None


def colour(index: int) -> str:
    """Of the run with that number, on the whole page."""
    return COLOURS[index % len(COLOURS)]


def over_time(evaluated: list[Evaluated], times: dict[int, float]) -> list[Plot]:
    """Matches and inliers of every run, and the latency of all; frames that a run dropped are ticks at the bottom.

    Args:
        times: frame number -> seconds, of all frames that were offered.
    """
    top = max((len(frame.points) for item in evaluated for frame in item.run.frames), default=1)
    plots = []
    for index, item in enumerate(evaluated):
        figure, axis = _figure()
        follow = item.run.frames[1:]  # the first has nothing to match
        seconds = [times[frame.number] for frame in follow]
        matches = [len(frame.points) for frame in follow]
        axis.plot(seconds, matches, color=colour(index), alpha=0.4, linewidth=1, label="matches")
        inliers = [int(frame.inlier.sum()) for frame in follow]
        axis.plot(seconds, inliers, color=colour(index), linewidth=1.4, label="inliers")
        _dropped_ticks(axis, item, times, colour(index))
        axis.set(xlabel="time in the recording, s", ylabel="points in a frame", ylim=(0, 1.05 * max(top, 1)))
        axis.legend(fontsize=FONT - 1, frameon=False, ncols=3)
        plots.append(_plot(f"{item.run.name}: matches and inliers", figure, axis))
    return [*plots, _latency_over_time(evaluated, times)]


def _latency_over_time(evaluated: list[Evaluated], times: dict[int, float]) -> Plot:
    figure, axis = _figure()
    for index, item in enumerate(evaluated):
        seconds = [times[frame.number] for frame in item.run.frames]
        latency = [1e3 * frame.latency_s for frame in item.run.frames]
        axis.plot(seconds, latency, color=colour(index), linewidth=1, label=item.run.name)
        _dropped_ticks(axis, item, times, colour(index), row=index)
    axis.set(yscale="log", xlabel="time in the recording, s", ylabel="latency, ms")
    _plain_ticks(axis.yaxis)
    axis.legend(fontsize=FONT - 1, frameon=False, ncols=2)
    return _plot("Latency, and dropped frames", figure, axis)


def _dropped_ticks(axis: Any, item: Evaluated, times: dict[int, float], shade: str, row: int = 0) -> None:
    processed = {frame.number for frame in item.run.frames}
    dropped = [seconds for number, seconds in times.items() if number not in processed]
    if dropped:
        height = np.full(len(dropped), 0.02 + 0.04 * row)
        across = axis.get_xaxis_transform()
        label = f"{len(dropped)} dropped" if row == 0 else None
        axis.plot(dropped, height, "|", color=shade, transform=across, markersize=7, label=label)


def cost(evaluated: list[Evaluated]) -> list[Plot]:
    """Distribution of the latencies, and the medians by stage."""
    figure, axis = _figure()
    known = [np.array([1e3 * frame.latency_s for frame in item.run.frames]) for item in evaluated]
    known = [np.sort(values[np.isfinite(values)]) for values in known]
    for index, (item, values) in enumerate(zip(evaluated, known)):
        if len(values):
            share = 100 * np.arange(1, len(values) + 1) / len(values)
            axis.step(values, share, where="post", color=colour(index), label=item.run.name)
    axis.set(xscale="log", xlabel="latency, ms", ylabel="frames that take no longer, %", ylim=(0, 101))
    _plain_ticks(axis.xaxis)
    axis.legend(fontsize=FONT - 1, frameon=False)
    return [_plot("Distribution of the latency", figure, axis), _stages(evaluated)]


def _stages(evaluated: list[Evaluated]) -> Plot:
    figure, axis = _figure()
    names = [item.run.name for item in evaluated]
    stages = list(dict.fromkeys(stage for item in evaluated for stage in item.run.stages))
    left = np.zeros(len(names))
    for index, stage in enumerate(stages):
        widths = np.array([item.run.stages.get(stage, {}).get("p50", 0.0) for item in evaluated])
        axis.barh(names, widths, left=left, label=stage, color=colour(index), alpha=0.8)
        left += widths
    axis.invert_yaxis()
    axis.set(xlabel="median time in a stage, ms")
    if stages:
        axis.legend(fontsize=FONT - 2, frameon=False)
    return _plot("Where the time goes", figure, axis)


def survival(evaluated: list[Evaluated]) -> list[Plot]:
    """Points of a frame that are still tracked k frames later, as a number and as a share."""
    plots = []
    for title, label, relative in (
        ("Points that are still tracked", "points of a frame", False),
        ("The same as a share", "share of the points, %", True),
    ):
        figure, axis = _figure()
        for index, item in enumerate(evaluated):
            alive = item.entry["tracks"]["alive"]
            count = np.mean([len(frame.ids) for frame in item.run.frames])
            if alive and count:
                points = np.array(list(alive.values())) * (100 / count if relative else 1)
                axis.plot([int(age) for age in alive], points, ".-", color=colour(index), label=item.run.name)
        axis.set(xscale="log", xlabel="frames later", ylabel=label)
        axis.set_ylim(bottom=0)
        _plain_ticks(axis.xaxis)
        if axis.lines:
            axis.legend(fontsize=FONT - 1, frameon=False)
        plots.append(_plot(title, figure, axis))
    return plots


def track_truth(evaluated: list[Evaluated]) -> list[Plot]:
    """How near to the truth tracks are by their age, and how many of the visible points still have theirs."""
    known = [(i, item.entry["track_truth"]["ages"]) for i, item in enumerate(evaluated) if item.entry["track_truth"]]
    if not known:
        return []
    plots = []
    for title, label, value in (
        ("Tracks within 2 px of the truth", "share of the tracks, %", lambda found: found["within"]["2"]),
        ("Visible points that are still tracked", "share of the visible points, %", lambda found: found["survival"]),
    ):
        figure, axis = _figure()
        for index, by_age in known:
            there = {int(age): value(found) for age, found in by_age.items() if found}
            axis.plot(list(there), list(there.values()), ".-", color=colour(index), label=evaluated[index].run.name)
        axis.set(xlabel="age of the track, frames", ylabel=label, xticks=AGES)
        axis.set_ylim(top=101)
        axis.legend(fontsize=FONT - 1, frameon=False)
        plots.append(_plot(title, figure, axis))
    return plots


def trajectories(evaluated: list[Evaluated]) -> list[Plot]:
    """Each trajectory from above, coloured by its error, on the true path; and all errors over the distance."""
    found = [(index, item) for index, item in enumerate(evaluated) if item.trajectory]
    if not found:
        return []
    longest = max((item.trajectory.true_positions for _, item in found if item.trajectory), key=len)
    centre, axes = principal_axes(longest)
    errors = np.concatenate([item.trajectory.errors for _, item in found if item.trajectory])
    limit = float(np.percentile(errors, 98)) or 1.0
    paths = [_path(item, (longest - centre) @ axes, centre, axes, limit) for _, item in found]
    return [_error_over_distance(found), *paths]


def principal_axes(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (3,), and axes (3, 2) of the two directions in which a path (n, 3) extends most."""
    centre = path.mean(axis=0)
    axes = np.linalg.svd(path - centre, full_matrices=False)[2][:2].T
    if (path[-1] - path[0]) @ axes[:, 0] < 0:  # ahead is to the right
        axes = -axes
    return centre, axes


def stretch_of(path: np.ndarray) -> float:
    """How many times larger the width of a path (n, 2) is to be drawn than its length: 1 where its shape is readable.

    A straight drive of 200 m wavers by metres, which no picture in one scale shows.
    """
    length, width = np.ptp(path, axis=0)
    ratio = length / max(width, 1e-3 * length, 1e-9)
    if ratio <= STRETCH:
        return 1.0
    power = 10 ** np.floor(np.log10(ratio / STRETCH))
    return float(max(factor * power for factor in (1, 2, 5, 10) if factor * power <= ratio / STRETCH * 2))


def _path(item: Evaluated, truth: np.ndarray, centre: np.ndarray, axes: np.ndarray, limit: float) -> Plot:
    assert item.trajectory is not None
    figure, axis = _figure()
    flat = (item.trajectory.positions - centre) @ axes
    stretch = stretch_of(truth)
    axis.plot(*truth.T, color="black", linewidth=3, alpha=0.25, label="truth")
    axis.plot(*flat.T, color="gray", linewidth=0.7)
    dots = axis.scatter(*flat.T, c=item.trajectory.errors, cmap="turbo", vmin=0, vmax=limit, s=7, zorder=3)
    figure.colorbar(dots, ax=axis, label="error, m", extend="max")
    note = "" if stretch == 1 else f" (drawn {stretch:g} times larger)"
    axis.set(xlabel="along the main direction, m", ylabel=f"across, m{note}")
    axis.set_aspect(stretch, adjustable="datalim")
    ate = item.entry["trajectory"]["ate_rmse_m"]
    return _plot(f"{item.run.name}: path, ATE {ate:.3f} m", figure, axis)


def _error_over_distance(found: Sequence[tuple[int, Evaluated]]) -> Plot:
    figure, axis = _figure()
    for index, item in found:
        assert item.trajectory is not None
        axis.plot(item.trajectory.distance, item.trajectory.errors, color=colour(index), label=item.run.name)
    axis.set(xlabel="distance along the true path, m", ylabel="position error, m")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=FONT - 1, frameon=False)
    return _plot("Error over the distance", figure, axis)


def _figure() -> tuple[Any, Any]:
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "font.size": FONT, "axes.spines.top": False, "axes.spines.right": False}
    )
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=SIZE, layout="constrained")


def _plot(title: str, figure: Any, axis: Any) -> Plot:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    box, limits = axis.get_position(), axis.get_xlim()
    plt.close(figure)
    text = buffer.getvalue()
    is_time = axis.get_xlabel().startswith("time")
    timeline = (float(box.x0), float(box.x1), float(limits[0]), float(limits[1])) if is_time else None
    return Plot(title, text[text.index("<svg") :], timeline)


def _plain_ticks(axis: Any) -> None:
    """Numbers as people write them on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(evaluated: Iterable[Evaluated]) -> list[tuple[str, str]]:
    """(name, colour) of every run."""
    return [(item.run.name, colour(index)) for index, item in enumerate(evaluated)]
