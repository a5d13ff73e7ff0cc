"""The model card of a weights file: what its metadata, its recipe and its evaluation say, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from training.evaluation.report import cell, columns

WIDTH = 120
# columns that the card shows, and those of all levels of stress; the report has all
SHOWN = {
    "homography": ("matches", "correct", "mma.1", "mma.3", "mma.5"),
    "pose": ("matches", "inliers", "auc.5", "auc.10", "auc.20"),
    "stress": (),
}


def model_card(
    model: str,
    paragraphs: Mapping[str, str],
    metadata: Mapping[str, str],
    stages: Mapping[str, Mapping[str, Any]],
    results: Sequence[dict],
    command: str,
) -> str:
    """Markdown.

    Args:
        paragraphs: heading -> text; the heading "" is the introduction.
        metadata: of the weights file, as the trainer writes it.
        stages: name -> command, started, seconds, commit.
        results: those of the evaluation report.
        command: what makes the file again.
    """
    parts = [f"# {model}.safetensors"]
    for heading, text in paragraphs.items():
        if text:
            parts += [f"## {heading}"] * bool(heading) + [fill(" ".join(text.split()), WIDTH)]
    parts += ["## Training", f"```bash\n{command}\n```", _facts(metadata), _stages(stages)]
    parts += ["## Measured", f"By its last stage, `{stages['evaluate']['command']}`.", *_tables(results)]
    return "\n\n".join(parts) + "\n"


def _facts(metadata: Mapping[str, str]) -> str:
    config = json.loads(metadata.get("config", "{}"))
    facts = {
        "step that ships": f"{metadata.get('step', '-')} of {config.get('steps', '-')} (best validation)",
        "seed": config.get("seed", "-"),
        "processes": metadata.get("processes", "-"),
        "precision": config.get("precision", "-"),
        "hash of the data": metadata.get("data") or "-",
        "commit": metadata.get("commit", "-"),
        "versions": f"Python {metadata.get('python', '-')}, torch {metadata.get('torch', '-')}",
    }
    return _markdown([["what", "value"], *([name, str(value)] for name, value in facts.items())])


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["stage", "minutes", "command"]]
    rows += [[name, f"{stage['seconds'] / 60:.0f}", f"`{stage['command']}`"] for name, stage in stages.items()]
    return _markdown(rows)


def _tables(results: Sequence[dict]) -> list[str]:
    """One table for each data set of the report whose kind is shown."""
    tables = []
    for dataset in dict.fromkeys(result["dataset"] for result in results if result["kind"] in SHOWN):
        rows = [result for result in results if result["dataset"] == dataset]
        shown = SHOWN[rows[0]["kind"]]
        kept = [column for column in columns(rows[0]) if column[1] in shown or column[1].startswith("levels.")]
        lines = [[f"{dataset}, {rows[0]['pairs']} pairs", *(name for name, _, _ in kept)]]
        lines += [[row["extractor"], *(cell(row, key, digits) for _, key, digits in kept)] for row in rows]
        tables.append(_markdown(lines))
    return tables


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
