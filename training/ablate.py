"""`python -m training.ablate --config config/train/samfeat_nano.yaml --output runs/ablation`: what each loss is worth.

The same short run, seed and data once per variant, each with other losses on; the table is the best validation score.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import typer

from samfeat_core.errors import SamfeatError
from training.data.photo_store import StoreError
from training.loop.config import load_config
from training.loop.trainer import own_rank, start_distributed
from training.samfeat.task import LossWeights
from training.train import check_losses, prepare, train

TEACHER = ("dis", "wsc", "edge")
VARIANTS = {
    "baseline": dict.fromkeys(TEACHER, 0.0),
    "+dis": {"wsc": 0.0, "edge": 0.0},
    "+wsc": {"dis": 0.0, "edge": 0.0},
    "+edge": {"dis": 0.0, "wsc": 0.0},
    "all": {},
    "-repeat": {"repeat": 0.0, **dict.fromkeys(TEACHER, 0.0)},
    "-matchable": {"matchable": 0.0, **dict.fromkeys(TEACHER, 0.0)},
    "-reproject": {"reproject": 0.0, **dict.fromkeys(TEACHER, 0.0)},
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def losses_of(variant: str, weights: LossWeights) -> LossWeights:
    """The configured weights with the variant's losses off; teacher losses that the configuration lacks weigh 1."""
    taught = {name: getattr(weights, name) or 1.0 for name in TEACHER}
    return dataclasses.replace(weights, **{**taught, **VARIANTS[variant]})


def best_scores(output: Path) -> dict[str, float]:
    """The validation of a finished run with the highest score."""
    lines = (output / "validation.jsonl").read_text().splitlines()
    return max((json.loads(line) for line in lines), key=lambda scores: scores["score"])


@app.command()
def main(
    config: Path = typer.Option(..., help="YAML file that the variants start from; it names the teacher's store"),
    output: Path = typer.Option(..., help="folder for the runs and ablation.json; finished variants are not repeated"),
    variants: str = typer.Option("baseline,+dis,+wsc,+edge,all", help=f"comma-separated, of {', '.join(VARIANTS)}"),
    steps: int = typer.Option(3000, help="steps of each run"),
    device: str = typer.Option("auto", help="auto, cuda or cpu"),
    set_: list[str] = typer.Option([], "--set", help="override of a key, as data.batch=16"),
) -> None:
    """Train every variant briefly and print what it reached."""
    names = variants.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise typer.BadParameter(f"variant {unknown[0]!r}: expected some of {', '.join(VARIANTS)}")
    table = {}
    try:
        base = load_config(config, [*set_, f"steps={steps}"])
        place = start_distributed(device)
        runs = {name: dataclasses.replace(base, losses=losses_of(name, base.losses)) for name in names}
        for run in runs.values():
            check_losses(run)
        prepared = prepare(base, place)
        for name, run in runs.items():
            train(run, output / name, place, prepared)
            if own_rank() != 0:
                continue  # the first process speaks for all
            table[name] = best_scores(output / name)
            typer.echo(f"{name:12} " + "  ".join(f"{key} {value:.4f}" for key, value in table[name].items()))
            (output / "ablation.json").write_text(json.dumps(table, indent=1))
    except (ValueError, OSError, SamfeatError, StoreError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
