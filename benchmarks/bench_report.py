"""What `bench.py` found, for people: a page of tables and two pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

MEASURES = {"mma": "right within 3 px, %", "auc": "pose AUC@10, %", "survival": "alive after 20 frames, %"}
FOREIGN = "0.4"  # grey


def write(folder: Path, report: dict[str, Any]) -> list[Path]:
    """report.md and the pictures from report.json's content. Returns the paths."""
    paths = [folder / "report.md", folder / "curves.png"]
    paths[0].write_text(page(report))
    draw_curves(paths[1], report)
    if any(name in report["accuracy"] for name in totals(report)):
        paths.append(folder / "accuracy.png")
        draw_accuracy(paths[-1], report)
    return [*paths, folder / "report.json"]


def write_image(path: Path, image: np.ndarray) -> None:
    """An image file. Raises OSError."""
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path}: cannot be written")


def rows_at(report: dict, size: str | None = None, budget: int | None = None) -> list[dict]:
    """The results at a size, a budget, or both, of those that ran."""
    rows = [row for row in report["results"] if "error" not in row]
    rows = [row for row in rows if size is None or f"{row['width']}x{row['height']}" == size]
    return [row for row in rows if budget is None or row["max_keypoints"] == budget]


def totals(report: dict) -> dict[str, float]:
    """Median ms from image to matches at the settings' size and budget, by contestant."""
    settings = report["settings"]
    return {row["contestant"]: row["total_ms"]["p50"] for row in rows_at(report, settings["at"], settings["keypoints"])}


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def page(report: dict) -> str:
    """The tables as Markdown."""
    settings, machine = report["settings"], report["machine"]
    busy = f", load {settings['load_before']:.1f} before the run" if settings["load_before"] > 0.5 else ""
    title = f"{machine['cpu']}, {settings['threads']} cores{busy}; p50 / p90 / p99 in ms; CPU time of all threads, p50."
    parts = ["# Benchmark", title, f"## {settings['at']}, {settings['keypoints']} keypoints", overview(report)]
    parts += ["## Image to matches over the size of the image, p50 in ms", over(report, "size", settings["sizes"])]
    parts += [
        "## Image to matches over the number of keypoints, p50 in ms",
        over(report, "budget", settings["budgets"]),
    ]
    if report["node"]:
        parts += ["## Start of the node, engine auto", starts(report["node"])]
    errors = {row["contestant"]: row["error"] for row in report["results"] if "error" in row}
    parts += [f"Did not run: {name}: {error}" for name, error in errors.items()]
    return "\n\n".join(parts) + "\n"


def overview(report: dict) -> str:
    """A line per contestant: times, throughput, start, memory, accuracy."""
    settings = report["settings"]
    rows = rows_at(report, settings["at"], settings["keypoints"])
    orb = totals(report).get("orb")
    lines = []
    for row in sorted(rows, key=lambda row: row["total_ms"]["p50"]):
        began = report["starts"].get(row["contestant"]) or {}
        accuracy = report["accuracy"].get(row["contestant"], {})
        lines.append(
            [
                row["contestant"],
                spread(row["extract_ms"]),
                spread(row["total_ms"]),
                f"{row['cpu_ms']:.1f}",
                f"{row['total_ms']['p50'] / orb:.2f}" if orb else "-",
                f"{row['hz']:.0f}",
                number(began.get("start_s"), ".1f"),
                number(began.get("memory_mib"), ".0f"),
                *(number(accuracy.get(name), ".1f") for name in MEASURES),
                {True: "yes", False: "no"}.get(accuracy.get("as_accurate"), "-"),
            ]
        )
    head = [
        "",
        "extraction",
        "image to matches",
        "CPU time",
        "times ORB",
        "Hz",
        "start, s",
        "memory, MiB",
        *MEASURES.values(),
    ]
    return markdown([*head, "as accurate as eager"], lines)


def spread(times: dict[str, float]) -> str:
    return " / ".join(f"{times[rank]:.1f}" for rank in ("p50", "p90", "p99"))


def number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def over(report: dict, what: str, values: list) -> str:
    """A line per contestant, a column per size or budget."""
    settings = report["settings"]
    columns = [
        rows_at(report, value, settings["keypoints"]) if what == "size" else rows_at(report, settings["at"], value)
        for value in values
    ]
    tables = [{row["contestant"]: row["total_ms"]["p50"] for row in column} for column in columns]
    names = dict.fromkeys(name for table in tables for name in table)
    return markdown(
        ["", *map(str, values)], [[name, *(number(table.get(name), ".1f") for table in tables)] for name in names]
    )


def starts(node: list[dict]) -> str:
    """The node's starts."""
    lines = [
        [
            "cold" if count == 0 else "warm",
            f"{one['ready_s']:.2f}",
            "yes" if one["torch"] else "no",
            *(f"{one['images_ms'][image]:.1f}" for image in (0, 1)),
            f"{np.median(one['images_ms'][9:]):.1f}",
        ]
        for count, one in enumerate(node)
    ]
    return markdown(["", "ready, s", "torch", "image 1, ms", "image 2", "image 10 and later"], lines)


def style(name: str, names: list[str]) -> dict[str, Any]:
    """One colour for a model, one line for an engine; grey for the others."""
    model, _, engine = name.partition(" ")
    if not engine:
        return {"color": FOREIGN, "linestyle": "--", "marker": "sD^v<>"[sorted(names).index(name) % 6]}
    models = sorted({other.partition(" ")[0] for other in names if " " in other})
    engines = sorted({other.partition(" ")[2] for other in names if " " in other})
    return {"color": f"C{models.index(model)}", "marker": "osD^vPX*"[engines.index(engine) % 8]}


def megapixels(row: dict) -> float:
    return row["width"] * row["height"] / 1e6


def draw_curves(path: Path, report: dict) -> None:
    """Image to matches over pixels, and over keypoints."""
    pyplot = plotting()
    settings = report["settings"]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    names = list(dict.fromkeys(row["contestant"] for row in rows_at(report)))
    for axis, rows, value, label in (
        (
            axes[0],
            rows_at(report, budget=settings["keypoints"]),
            lambda r: r["width"] * r["height"] / 1e6,
            "megapixels",
        ),
        (axes[1], rows_at(report, settings["at"]), lambda r: r["max_keypoints"], "keypoints"),
    ):
        for name in names:
            points = sorted((value(row), row["total_ms"]["p50"]) for row in rows if row["contestant"] == name)
            if points:
                axis.plot(*zip(*points), label=name, linewidth=1, markersize=4, **style(name, names))
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("image to matches, ms (p50)")
    axes[0].set_title(f"{settings['keypoints']} keypoints", fontsize=10)
    axes[1].set_title(settings["at"], fontsize=10)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path, report)


def draw_accuracy(path: Path, report: dict) -> None:
    """Each measure of accuracy over the time from image to matches."""
    pyplot = plotting()
    from matplotlib import ticker

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(13, 4.2))
    times = totals(report)
    names = [name for name in times if name in report["accuracy"]]
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for name in names:
            axis.plot(
                times[name],
                report["accuracy"][name][measure],
                linewidth=0,
                markersize=7,
                label=name,
                **style(name, names),
            )
        axis.set(xscale="log", xlabel="image to matches, ms (p50)", title=label)
        low, high = axis.get_xlim()  # the range may be narrow, or one of several decades
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.grid(alpha=0.3, which="both")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path, report)


def plotting() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path, report: dict) -> None:
    settings = report["settings"]
    figure.suptitle(f"{report['machine']['cpu']}, {settings['threads']} cores", fontsize=9, y=0.995)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plotting().close(figure)
