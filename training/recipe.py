"""`python -m training.recipe recipes/samfeat.yaml --output runs/samfeat`: a weights file, from data to model card.

A recipe is a YAML file of the keys of `Recipe`. Its stages are commands of `training`, run one after the other; in them
`$OUT` stands for the output folder and `$SAMFEAT_DATA` for the data's. The same command continues an interrupted
recipe: finished stages are not repeated, and an unfinished one continues as its command does. In the output folder then
lie

    recipe.json             what each stage ran, when, for how long, and from which commit
    MODEL.safetensors       the weights that ship, with provenance in their metadata
    evaluation/report.json  what they reach, beside others in the same run
    MODEL.md                the model card
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file

from samfeat_core.errors import FileError, UsageError
from samfeat_core.files import write_bytes, write_json
from samfeat_core.models import find_class, model_spec
from samfeat_core.weights import load_state
from training.cli import application, one_line_errors
from training.evaluation import report
from training.evaluation.card import model_card
from training.loop.config import at_least, build, read_tree
from training.loop.provenance import provenance

RECORD = "recipe.json"
OUT = "$OUT"


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: for people, and in `recipe.json`.
        command: the words after `python -m training.`.
        processes: more than 1 = under torchrun.
    """

    name: str
    command: str
    processes: int = 1

    def __post_init__(self) -> None:
        at_least(f"processes of stage {self.name}", self.processes, 1)

    def words(self, output: Path) -> list[str]:
        """The command line."""
        module, *arguments = shlex.split(self.command.replace(OUT, str(output)))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [sys.executable, *(launcher if self.processes > 1 else []), "-m", f"training.{module}", *arguments]


@dataclass(frozen=True)
class Recipe:
    """How a weights file is made.

    Attributes:
        model: the network.
        needs: environment variables that its stages read, besides SAMFEAT_DATA.
        weights: file that the stages leave.
        half: ship it in half precision.
        evaluate: arguments of `training.evaluate`; `$WEIGHTS` stands for the file that ships.
        card: the model card's paragraphs by heading; the one of "" comes first.
    """

    model: str
    stages: tuple[Stage, ...]
    weights: str
    evaluate: str
    needs: tuple[str, ...] = ()
    half: bool = False
    card: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model_spec(self.model)
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise UsageError(f"stages {', '.join(names)}: expected names that differ")


class Kitchen:
    """Runs a recipe's commands in an output folder, each once."""

    def __init__(self, output: Path) -> None:
        self.output, self.record = output, output / RECORD
        self.done: dict[str, dict[str, Any]] = json.loads(self.record.read_text()) if self.record.exists() else {}

    def run(self, stage: Stage) -> None:
        """Run a stage that is not done. FileError: it fails, or was done by another command."""
        words = stage.words(self.output)
        command = shlex.join(["python", *words[1:]])
        if stage.name in self.done:
            if self.done[stage.name]["command"] != command:
                raise FileError(f"{self.record}: stage {stage.name} ran as another command: give another --output")
            typer.echo(f"{stage.name}: done")
            return
        typer.echo(f"{stage.name}: {command}")
        begin, started = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="seconds")
        code = subprocess.run(words).returncode
        if code:
            raise FileError(f"stage {stage.name} ended with exit code {code}; the same command continues the recipe")
        seconds = round(time.monotonic() - begin)
        self.done[stage.name] = {"command": command, "started": started, "seconds": seconds, **provenance()}
        write_json(self.record, self.done)


def pack(weights: Path, to: Path, model: str, half: bool, metadata: dict[str, str]) -> dict[str, str]:
    """Write the weights that ship, without what only training needs; returns their metadata."""
    with safe_open(weights, "pt") as file:
        metadata = {**(file.metadata() or {}), **metadata}
    unneeded = tuple(getattr(find_class(model), "optional_tensors", ()))
    state = {name: tensor for name, tensor in load_state(weights).items() if not name.startswith(unneeded)}
    if half:
        state = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in state.items()}
    save_file(state, to, metadata)
    return metadata


app = application()


@app.command()
def main(
    recipe: Path = typer.Argument(..., help="YAML file of the recipe, as those in recipes/."),
    output: Path = typer.Option(..., help="Folder for all that it makes; an unfinished one is continued."),
) -> None:
    """Make a weights file, with its evaluation report and model card."""
    with one_line_errors("recipe"):
        plan: Recipe = build(Recipe, read_tree(recipe), str(recipe), "")
        missing = [name for name in plan.needs if not os.environ.get(name)]
        if missing:
            raise UsageError(f"{recipe}: needs the environment variable {missing[0]} (training/evaluation/peers.py)")
        output.mkdir(parents=True, exist_ok=True)
        kitchen = Kitchen(output)
        for stage in plan.stages:
            kitchen.run(stage)
        shipped, evaluation = output / f"{plan.model}.safetensors", output / "evaluation"
        made = {"recipe": json.dumps(read_tree(recipe)), "stages": json.dumps(kitchen.done)}
        metadata = pack(Path(plan.weights.replace(OUT, str(output))), shipped, plan.model, plan.half, made)
        arguments = plan.evaluate.replace("$WEIGHTS", str(shipped))
        kitchen.run(Stage("evaluate", f"evaluate {arguments} --output {shlex.quote(str(evaluation))}"))
        results = report.read(evaluation / "report.json")["results"]
        command = f"python -m training.recipe {recipe} --output {output}"
        text = model_card(plan.model, plan.card, metadata, kitchen.done, results, command)
        write_bytes(output / f"{plan.model}.md", text.encode())
        typer.echo(f"{shipped}, and its model card {plan.model}.md")


if __name__ == "__main__":
    app()
