"""Several bags in one call: each is evaluated by itself, and their figures are put together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from samfeat_core.errors import SamfeatError, one_line
from samfeat_core.files import write_json
from samfeat_ros.replay.evaluation.figures import Figure, figures
from samfeat_ros.replay.evaluation.page import render
from samfeat_ros.replay.evaluation.report import columns
from samfeat_ros.replay.evaluation.requirements import result_line
from samfeat_ros.replay.evaluation.session import PAGE, REPORT, SUMMARY, Session
from samfeat_ros.replay.evaluation.verdict import verdict

FORMAT, VERSION = "samfeat_ros/evaluate_bags", 1


@dataclass(frozen=True)
class Line:
    """One figure over the bags in which every front-end has it.

    Attributes:
        bags: their names. mean: {run: mean over them}. worst: {run: (value, bag)}, where one end is better.
    """

    figure: Figure
    bags: list[str]
    mean: dict[str, float]
    worst: dict[str, tuple[float, str]]

    def cell(self, run: str) -> str:
        """Mean, and the worst value with its bag where that is another."""
        text = self.figure.text(self.mean[run])
        if run not in self.worst:
            return text
        value, bag = self.worst[run]
        worst = self.figure.text(value)
        return text if worst == text else f"{text} ({worst} {bag})"


@dataclass
class Bags:
    """Bags that are evaluated together.

    Attributes:
        folder: of the reports over all bags.
        reports: {name of the bag: its report}. failed: {bag: reason} of those that could not be evaluated.
    """

    folder: Path
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def evaluate(self, sessions: Sequence[Session]) -> None:
        """Evaluate bag after bag, and write the reports over all; after Ctrl-C over those that are done.

        A bag that cannot be evaluated costs the others nothing.
        """
        try:
            for session in sessions:
                typer.echo(f"\n{session.bag}")
                try:
                    self.reports[session.folder.name] = session.evaluate()
                except (SamfeatError, OSError) as error:
                    self.failed[str(session.bag)] = one_line(error)
                    typer.echo(f"evaluate_bag: {one_line(error)}", err=True)
        finally:
            if self.reports:
                write_aggregate(self.reports, self.failed, self.folder)


def summarize_bags(reports: dict[str, dict[str, Any]]) -> list[Line]:
    """Every figure that all front-ends have in at least one bag: a mean over other bags would be unfair."""
    runs = run_names(reports)
    lines = []
    for figure in figures(next(iter(reports.values()))["settings"]["gaps"]):
        values = {bag: {entry["name"]: figure.of(entry) for entry in report["runs"]} for bag, report in reports.items()}
        bags = [bag for bag, found in values.items() if all(found.get(run) is not None for run in runs)]
        if bags:
            of_run = {run: {bag: values[bag][run] for bag in bags} for run in runs}
            mean = {run: sum(found.values()) / len(bags) for run, found in of_run.items()}  # type: ignore[arg-type]
            worst = {run: _worst(figure, found) for run, found in of_run.items()} if figure.better else {}
            lines.append(Line(figure, bags, mean, worst))
    return lines


def run_names(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Front-ends that are in some report, in order."""
    return list(dict.fromkeys(entry["name"] for report in reports.values() for entry in report["runs"]))


def _worst(figure: Figure, values: dict[str, Any]) -> tuple[float, str]:
    pick = max if figure.better is min else min
    bag = pick(values, key=values.__getitem__)
    return values[bag], bag


def write_aggregate(reports: dict[str, dict[str, Any]], failed: dict[str, str], folder: Path) -> None:
    """Write report.json, report.html and report.md over all bags, and print the table."""
    lines = summarize_bags(reports)
    first = next(iter(reports.values()))
    runs = run_names(reports)
    verdicts = {bag: verdict(report) for bag, report in reports.items()}
    requirements = [{"bag": bag, **result} for bag, report in reports.items() for result in report["requirements"]]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": first["settings"],
        "machine": first["machine"],
        "bags": {bag: {"report": f"{bag}/{REPORT}", "verdict": sentence} for bag, (_, sentence) in verdicts.items()},
        "failures": failed,
        "runs": [
            {
                "name": run,
                "figures": {
                    line.figure.key: {
                        "bags": len(line.bags),
                        "mean": line.mean[run],
                        "worst": line.worst.get(run, (None, None))[0],
                        "worst_bag": line.worst.get(run, (None, None))[1],
                    }
                    for line in lines
                },
            }
            for run in runs
        ],
        "requirements": requirements,
    }
    write_json(folder / REPORT, content)
    shown = {
        "report": content, "verdicts": verdicts, "runs": runs, "lines": lines, "page": PAGE,
        "requirements": [(f"{result['bag']}: {result_line(result)}", result["holds"]) for result in requirements],
    }  # fmt: skip
    render("bags.html.j2", folder / PAGE, shown)
    render("bags.md.j2", folder / SUMMARY, shown)
    typer.echo(f"\nover {len(reports)} bags: mean (worst)")
    typer.echo(
        columns(
            [["", *runs, "bags"], *([line.figure.label, *map(line.cell, runs), str(len(line.bags))] for line in lines)]
        )
    )
    typer.echo(f"report over all bags: {folder / PAGE} and {REPORT}")
