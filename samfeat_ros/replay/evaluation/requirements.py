"""`--require "inliers.p5>=300"`: what a run must reach, for a gate in continuous integration."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from samfeat_core.errors import UsageError
from samfeat_ros.replay.evaluation.figures import ALIASES, Figure, named
from samfeat_ros.replay.evaluation.runs import MODEL

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_PATTERN = re.compile(r"(?:(?P<run>.+):)?\s*(?P<key>[\w.]+)\s*(?P<operator>[<>]=?)\s*(?P<value>[-+.\deE]+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A bound for a figure.

    Attributes:
        text: as it was given. run: name of the front-end it is for; None = every model, or all where there is none.
    """

    text: str
    run: str | None
    figure: Figure
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str, gaps: list[int], runs: Collection[str]) -> Requirement:
        """From "[RUN:]FIGURE>=NUMBER".

        Args:
            gaps: frame gaps of the relative poses. runs: names of the front-ends that are asked for.

        Raises:
            UsageError: no such figure or front-end, or not of that form.
        """
        found = _PATTERN.fullmatch(text.strip())
        value = _number(found["value"]) if found else math.nan
        if not found or math.isnan(value):
            raise UsageError(f"--require {text!r}: expected [RUN:]FIGURE>=NUMBER with one of {', '.join(OPERATORS)}")
        known = named(gaps)
        key = ALIASES.get(found["key"], found["key"])
        if key not in known:
            raise UsageError(
                f"--require {text!r}: there is no figure {key}; expected one of {', '.join([*ALIASES, *known])}"
            )
        if found["run"] and found["run"] not in runs:
            raise UsageError(
                f"--require {text!r}: no front-end {found['run']} is asked for; expected {', '.join(runs)}"
            )
        return cls(text.strip(), found["run"], known[key], found["operator"], value)

    def judge(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """{"requirement", "run", "value", "holds"} for every run that it is for. What is not known does not hold."""
        models = [entry for entry in entries if entry["kind"] == MODEL] or entries
        chosen = models if self.run is None else [entry for entry in entries if entry["name"] == self.run]
        judged = [self._result(entry["name"], self.figure.of(entry)) for entry in chosen]
        return judged or [self._result(self.run or "-", None)]

    def _result(self, run: str, value: float | None) -> dict[str, Any]:
        holds = value is not None and bool(OPERATORS[self.operator](value, self.value))
        return {"requirement": self.text, "run": run, "value": value, "holds": holds}


def result_line(result: dict[str, Any]) -> str:
    """One line for people: what was required of whom, and what was measured."""
    value = "not in the report" if result["value"] is None else f"is {result['value']:.6g}"
    return f"{result['requirement']}: {result['run']}: {value}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
