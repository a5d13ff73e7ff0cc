"""report.html: one file with everything in it, nothing from a network; and report.md, for a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from samfeat_core.files import write_bytes
from samfeat_ros.replay.evaluation import plots
from samfeat_ros.replay.evaluation.comparison import BETTER, UNCHANGED, WORSE, Change, notes
from samfeat_ros.replay.evaluation.figures import Figure
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.evaluation.pictures import SUBPIXEL, pictured
from samfeat_ros.replay.evaluation.report import Evaluated, cells, rows, where_classic_wins
from samfeat_ros.replay.evaluation.requirements import result_line
from samfeat_ros.replay.evaluation.runs import CLASSIC, MODEL
from samfeat_ros.replay.evaluation.verdict import verdict

MARKS = {BETTER: "▲", WORSE: "▼", UNCHANGED: "≈"}


def write_page(
    report: dict[str, Any],
    evaluated: list[Evaluated],
    footage: Footage,
    path: Path,
    changes: list[Change] | None = None,
    earlier: dict[str, Any] | None = None,
) -> None:
    """Write report.html.

    Args:
        changes, earlier: of a comparison with an earlier report.
    """
    times = {frame.number: frame.time_ns * 1e-9 for frame in footage.frames}
    frames = pictured(evaluated, footage)
    pages = {
        "over_time": plots.over_time(evaluated, times),
        "cost": plots.cost(evaluated),
        "survival": plots.survival(evaluated) + plots.track_truth(evaluated),
        "trajectories": plots.trajectories(evaluated),
        "legend": plots.legend(evaluated),
        "viewer": {"frames": frames, "subpixel": SUBPIXEL, "runs": plots.legend(evaluated)},
    }
    render("report.html.j2", path, _content(report, changes, earlier) | pages)


def write_summary(
    report: dict[str, Any], path: Path, changes: list[Change] | None = None, earlier: dict[str, Any] | None = None
) -> None:
    """Write report.md: verdict, requirements, table and changes."""
    render("report.md.j2", path, _content(report, changes, earlier))


def _content(report: dict[str, Any], changes: list[Change] | None, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """What both templates show."""
    level, sentence = verdict(report)
    changes = changes or []
    both = {entry["kind"] for entry in report["runs"]} >= {MODEL, CLASSIC}
    busy = report["machine"]["load_average"][0] / max(report["machine"]["cpus"], 1)
    return {
        "report": report,
        "name": Path(report["bag"]["path"]).name,
        "level": level,
        "verdict": sentence,
        "requirements": [(result_line(result), result["holds"]) for result in report.get("requirements", [])],
        "table": _table(report, changes),
        "classic_wins": where_classic_wins(report) if both else None,
        "load": busy if busy > 1.5 else None,
        "changes": [(change, MARKS.get(change.verdict, "")) for change in changes],
        "change_notes": notes(earlier, report) if earlier else [],
        "earlier": earlier,
    }


def _table(report: dict[str, Any], changes: list[Change]) -> list[tuple[str, list[tuple[str, bool, str]]]]:
    """(label, (text, is the best, mark of its change) of each run) of every line."""
    marks = {(change.run, change.figure.key): MARKS.get(change.verdict, "") for change in changes}
    names = [entry["name"] for entry in report["runs"]]

    def line(row: Figure) -> list[tuple[str, bool, str]]:
        return [(*cell, marks.get((name, row.key), "")) for name, cell in zip(names, cells(row, report))]

    return [(row.label, line(row)) for row in rows(report)]


def render(template: str, path: Path, content: dict[str, Any]) -> None:
    """Write a file from a template of this package."""
    loader = PackageLoader("samfeat_ros.replay.evaluation")
    environment = Environment(
        loader=loader, autoescape=template.endswith(".html.j2"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    write_bytes(path, environment.get_template(template).render(content).encode())
