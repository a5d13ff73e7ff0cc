"""report.html: one file with everything in it, no script, nothing from a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from samfeat_core.files import write_bytes
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.metrics import worst_frames
from samfeat_ros.replay.evaluation.report import Evaluated, cells, rows, where_classic_wins
from samfeat_ros.replay.evaluation.runs import CLASSIC, MODEL, TrackedFrame

COLOURS = ("#1f6fb2", "#d1495b", "#2e933c", "#e08e0b", "#7b4fa3", "#5c677d", "#00798c", "#9b5d00")
PICTURE_WIDTH = 520
SAMPLES = 3
GREEN, RED = (70, 200, 60), (60, 60, 230)  # BGR

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2330; max-width: 1180px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: .2em; }
h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d5dae3; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22em .9em; text-align: right; border-bottom: 1px solid #e6e9ef; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 650; background: #e9f4ea; } .note { color: #5a6475; }
.problems { background: #fff4e0; border-left: 4px solid #e08e0b; padding: .5em 1em; }
figure { margin: 0; } figcaption { font-size: .85em; color: #5a6475; }
.pictures { display: grid; gap: .8em; }
.pictures img, svg { width: 100%; height: auto; } code { background: #f0f2f6; padding: 0 .25em; }
"""


def write_page(report: dict[str, Any], evaluated: list[Evaluated], footage: Footage, path: Path) -> None:
    """Write report.html."""
    bag, truth = report["bag"], report["ground_truth"]
    parts = [
        f"<h1>{escape(Path(bag['path']).name)}</h1>",
        f"<p class='note'>{_footage(report)}</p>",
        _problems(bag["problems"], report["failures"]),
        "<h2>Summary</h2>",
        _table(report),
        _classic(report),
        f"<p class='note'>{_explain(report)}</p>",
        "<h2>Matches and inliers over time</h2>",
        _plot_matches(evaluated),
        "<h2>Latency</h2>",
        _plot_latency(evaluated),
        "<h2>Points that are still tracked, by age</h2>",
        _plot_survival(evaluated),
    ]
    if any(item.trajectory for item in evaluated):
        parts += ["<h2>Trajectories of a plain monocular visual odometry</h2>", _plot_trajectories(evaluated)]
        parts.append(
            f"<p class='note'>Ground truth: {escape(truth['source'])}. Each trajectory is rotated, moved and "
            "<b>scaled</b> to the ground truth: one camera cannot see scale.</p>"
        )
    parts += _pictures(evaluated, footage)
    title = f"evaluate_bag: {escape(Path(bag['path']).name)}"
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{title}</title>"
    body = "\n".join(parts)
    page = f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"
    write_bytes(path, page.encode())


def _footage(report: dict[str, Any]) -> str:
    bag, settings = report["bag"], report["settings"]
    sizes = ", ".join(f"{width}x{height}" for width, height in bag["sizes"])
    return (
        f"{escape(bag['path'])}, topic <code>{escape(bag['image_topic'])}</code>, {bag['usable']} of {bag['images']} "
        f"images used, {sizes}, {bag['duration_s']:.1f} s. Played at rate {escape(str(settings['rate']))}, at most "
        f"{settings['keypoints']} keypoints. {report['created']}"
    )


def _problems(problems: list[str], failures: dict[str, str]) -> str:
    lines = [*problems, *(f"{name} failed: {reason}" for name, reason in failures.items())]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<div class='problems'><b>Read this first</b><ul>{items}</ul></div>"


def _table(report: dict[str, Any]) -> str:
    heads = "".join(f"<th>{escape(entry['name'])}</th>" for entry in report["runs"])
    lines = []
    for row in rows(report):
        columns = "".join(f"<td{' class=best' if best else ''}>{text}</td>" for text, best in cells(row, report))
        lines.append(f"<tr><td>{escape(row.label)}</td>{columns}</tr>")
    return f"<table><tr><th></th>{heads}</tr>{''.join(lines)}</table>"


def _classic(report: dict[str, Any]) -> str:
    wins = where_classic_wins(report)
    if not {entry["kind"] for entry in report["runs"]} >= {MODEL, CLASSIC}:
        return ""
    if not wins:
        return "<p>No classic front-end is better than the best model in any line.</p>"
    items = "".join(f"<li>{escape(line)}</li>" for line in wins)
    title = f"In {len(wins)} lines a classic front-end is better than every model"
    return f"<details><summary><b>{title}</b></summary><ul>{items}</ul></details>"


def _explain(report: dict[str, Any]) -> str:
    text = "Green: best of its line. Latency of a model: image published to matches received, over ROS. "
    if report["settings"]["rate"] == "max":
        text += "Rate max: one image in flight, every frame processed; drops do not occur. "
    text += "Latency of a classic front-end: computing time in this process"
    text += "; waiting and drops follow from it. " if report["settings"]["rate"] != "max" else ". "
    load = report["machine"]["load_average"][0] / max(report["machine"]["cpus"], 1)
    if load > 1.5:
        text += f"<b>The machine was busy with other work (load {load:.1f} per core): latencies are too high.</b> "
    if report["ground_truth"]:
        text += "Gap k: motion between frames k apart from their common tracks; unsolved pairs count as 180 degrees."
    return text


# ---- plots ----


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)


def _coloured(evaluated: list[Evaluated]) -> Iterable[tuple[Evaluated, str]]:
    return ((item, COLOURS[index % len(COLOURS)]) for index, item in enumerate(evaluated))


def _plot_matches(evaluated: list[Evaluated]) -> str:
    figure, axes = _figure(11, 2.0 * len(evaluated), rows=len(evaluated), sharex=True, sharey=True)
    for (item, colour), axis in zip(_coloured(evaluated), axes[:, 0]):
        seconds = [frame.time_ns * 1e-9 for frame in item.run.frames]
        matches = [len(frame.points) for frame in item.run.frames]
        inliers = [int(frame.inlier.sum()) for frame in item.run.frames]
        axis.plot(seconds, matches, color=colour, alpha=0.35, linewidth=1, label="matches")
        axis.plot(seconds, inliers, color=colour, linewidth=1.4, label="inliers")
        axis.set_title(item.run.name, loc="left", fontsize=10)
        axis.legend(loc="upper right", fontsize=8, frameon=False, ncol=2)
    axes[-1, 0].set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("time in the recording, s")
    return _svg(figure)


def _plot_latency(evaluated: list[Evaluated]) -> str:
    figure, axes = _figure(11, 3.2, columns=2, gridspec_kw={"width_ratios": [3, 2]})
    axis = axes[0, 0]
    latencies = [np.array([1e3 * frame.latency_s for frame in item.run.frames]) for item in evaluated]
    latencies = [values[np.isfinite(values)] for values in latencies]
    known = np.concatenate(latencies)
    if len(known):
        bins = np.geomspace(max(known.min(), 0.1) / 1.001, max(known.max(), 0.2) * 1.001, 60)
        for (item, colour), values in zip(_coloured(evaluated), latencies):
            axis.hist(values, bins=bins, color=colour, alpha=0.3)
            axis.hist(values, bins=bins, color=colour, histtype="step", linewidth=1.4, label=item.run.name)
        axis.legend(fontsize=8, frameon=False)
    axis.set_xscale("log")
    _plain_ticks(axis.xaxis)
    axis.set(xlabel="latency, ms", ylabel="frames")
    _plot_stages(evaluated, axes[0, 1])
    return _svg(figure)


def _plain_ticks(axis: Any) -> None:
    """Numbers as people write them on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plot_stages(evaluated: list[Evaluated], axis: Any) -> None:
    names = [item.run.name for item in evaluated]
    stages = list(dict.fromkeys(stage for item in evaluated for stage in item.run.stages))
    left = np.zeros(len(names))
    for index, stage in enumerate(stages):
        widths = np.array([item.run.stages.get(stage, {}).get("p50", 0.0) for item in evaluated])
        axis.barh(names, widths, left=left, label=stage, color=COLOURS[index % len(COLOURS)], alpha=0.8)
        left += widths
    axis.invert_yaxis()
    axis.set_xlabel("median by stage, ms")
    if stages:
        axis.legend(fontsize=7, frameon=False, loc="best")


def _plot_survival(evaluated: list[Evaluated]) -> str:
    """Points of a frame that are still tracked k frames later, as a number and as a share."""
    figure, axes = _figure(11, 3.2, columns=2)
    for item, colour in _coloured(evaluated):
        alive = item.entry["tracks"]["alive"]
        count = np.mean([len(frame.ids) for frame in item.run.frames])
        if not alive or not count:
            continue
        ages, points = [int(age) for age in alive], np.array(list(alive.values()))
        axes[0, 0].plot(ages, points / count, color=colour, marker=".", label=item.run.name)
        axes[0, 1].plot(ages, points, color=colour, marker=".", label=item.run.name)
    for axis, label in zip(axes[0], ("share of the points", "number of points")):
        axis.set(xscale="log", xlabel="frames later", ylabel=label)
        axis.set_ylim(bottom=0)
        _plain_ticks(axis.xaxis)
    if axes[0, 0].lines:
        axes[0, 0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def _plot_trajectories(evaluated: list[Evaluated]) -> str:
    """Ground truth and trajectories in the two directions in which the truth extends most."""
    references = [item.trajectory.reference for item in evaluated if item.trajectory]
    reference = max(references, key=len)
    axes_order = np.argsort(-np.ptp(reference, axis=0), kind="stable")
    first, second = sorted(axes_order[:2])
    figure, axes = _figure(11, 6)
    axis = axes[0, 0]
    axis.plot(reference[:, first], reference[:, second], color="black", linewidth=2.5, alpha=0.6, label="ground truth")
    for item, colour in _coloured(evaluated):
        if item.trajectory:
            label = f"{item.run.name}, ATE {item.trajectory.summary['ate_rmse_m']:.3f} m"
            positions = item.trajectory.positions
            axis.plot(positions[:, first], positions[:, second], color=colour, linewidth=1.3, label=label)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set(xlabel=f"{'xyz'[first]}, m", ylabel=f"{'xyz'[second]}, m")
    axis.legend(fontsize=8, frameon=False)
    return _svg(figure)


# ---- pictures ----


def _pictures(evaluated: list[Evaluated], footage: Footage) -> list[str]:
    """Sample frames of every run side by side, then the worst frames of each."""
    samples = _samples(evaluated)
    worst = [(item, frame) for item in evaluated for frame in worst_frames(item.run.frames, SAMPLES)]
    drawn = _draw([*samples, *worst], footage)
    legend = (
        "<p class='note'>Lines lead from the previous frame's point to this frame's: green inliers, red outliers.</p>"
    )
    return [
        "<h2>Sample frames</h2>", legend, _gallery(samples, drawn, len(evaluated)),
        "<h2>Worst frames of each</h2>", "<p class='note'>Those with the fewest inliers.</p>",
        _gallery(worst, drawn, SAMPLES),
    ]  # fmt: skip


def _samples(evaluated: list[Evaluated]) -> list[tuple[Evaluated, TrackedFrame]]:
    numbers = sorted({frame.number for item in evaluated for frame in item.run.frames})
    if len(numbers) < 2:
        return [(item, frame) for item in evaluated for frame in item.run.frames[:1]]
    wanted = [numbers[round(share * (len(numbers) - 1))] for share in np.linspace(0.2, 0.8, SAMPLES)]
    pairs = []
    for number in dict.fromkeys(wanted):
        for item in evaluated:
            if item.run.frames:
                nearest = min(item.run.frames, key=lambda frame: abs(frame.number - number))
                pairs.append((item, nearest))
    return pairs


def _draw(wanted: list[tuple[Evaluated, TrackedFrame]], footage: Footage) -> dict[tuple[str, int], str]:
    """JPEG data of each (run, frame number)."""
    by_number: dict[int, list[tuple[str, TrackedFrame]]] = {}
    for item, tracked in wanted:
        by_number.setdefault(tracked.number, []).append((item.run.name, tracked))
    drawn = {}
    for frame, image in footage.images(by_number):
        for name, tracked in by_number[frame.number]:
            drawn[name, frame.number] = _jpeg(draw_matches(image, tracked))
    return drawn


def draw_matches(image: np.ndarray, frame: TrackedFrame) -> np.ndarray:
    """(h, w, 3) BGR picture of a frame with its matches, at the width of the report."""
    scale = min(1.0, PICTURE_WIDTH / image.shape[1])
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image.copy()
    if canvas.ndim == 2:
        canvas = cv2.cvtColor(canvas, cv2.COLOR_GRAY2BGR)
    ends = np.stack([frame.points_prev, frame.points], axis=1) * scale
    for good, colour in ((False, RED), (True, GREEN)):
        lines = np.round(ends[frame.inlier == good]).astype(np.int32)
        cv2.polylines(canvas, list(lines), False, colour, 1, cv2.LINE_AA)
        for point in lines[:, 1]:
            cv2.circle(canvas, (int(point[0]), int(point[1])), 1, colour, -1)
    return canvas


def _jpeg(image: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()).decode()


def _counts(frame: TrackedFrame) -> str:
    return f"{len(frame.points)} matches, {int(frame.inlier.sum())} inliers"


def _gallery(items: list[tuple[Evaluated, TrackedFrame]], drawn: dict[tuple[str, int], str], columns: int) -> str:
    figures = []
    for item, frame in items:
        data = drawn.get((item.run.name, frame.number))
        if data:
            text = f"{item.run.name}, frame {frame.number}: {_counts(frame)}"
            image = f"<img src='data:image/jpeg;base64,{data}' alt='{escape(text)}'>"
            figures.append(f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>")
    style = f"grid-template-columns: repeat({min(columns, 4)}, 1fr)"
    return f"<div class='pictures' style='{style}'>{''.join(figures)}</div>"
