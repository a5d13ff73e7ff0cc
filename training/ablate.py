"""`python -m training.ablate --config config/train/samfeat_nano.yaml --output runs/ablation`: what each loss is worth.

The same short run, seed and data once per variant, each with other losses on; the table is the best validation score.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import typer

from samfeat_core.errors import UsageError
from samfeat_core.files import write_json
from training.cli import DEVICE, SET, application, one_line_errors, pick_device
from training.loop.config import load_config
from training.loop.trainer import CURVE, own_rank, start_distributed
from training.samfeat.data import prepare
from training.samfeat.task import LossWeights
from training.samfeat.train import SamfeatConfig, train

TEACHER = ("dis", "wsc", "edge")
VARIANTS = {
    "baseline": dict.fromkeys(TEACHER, 0.0),
    "+dis": {"wsc": 0.0, "edge": 0.0},
    "+wsc": {"dis": 0.0, "edge": 0.0},
    "+edge": {"dis": 0.0, "wsc": 0.0},
    "all": {},
    "-repeat": {"repeat": 0.0, **dict.fromkeys(TEACHER, 0.0)},
    "-matchability": {"matchability": 0.0, **dict.fromkeys(TEACHER, 0.0)},
    "-reproject": {"reproject": 0.0, **dict.fromkeys(TEACHER, 0.0)},
}

app = application()


def losses_of(variant: str, weights: LossWeights) -> LossWeights:
    """The configured weights with the variant's losses off; teacher losses that the configuration lacks weigh 1."""
    taught = {name: getattr(weights, name) or 1.0 for name in TEACHER}
    return dataclasses.replace(weights, **{**taught, **VARIANTS[variant]})


def best_scores(output: Path) -> dict[str, float]:
    """The validation of a finished run with the highest score."""
    lines = (output / CURVE).read_text().splitlines()
    return max((json.loads(line) for line in lines), key=lambda scores: scores["score"])


@app.command()
def main(
    config: Path = typer.Option(..., help="YAML file that the variants start from; it names the teacher's store"),
    output: Path = typer.Option(..., help="folder for the runs and ablation.json; finished variants are not repeated"),
    variants: str = typer.Option("baseline,+dis,+wsc,+edge,all", help=f"comma-separated, of {', '.join(VARIANTS)}"),
    steps: int = typer.Option(3000, help="steps of each run"),
    device: str = DEVICE,
    set_: list[str] = SET,
) -> None:
    """Train every variant briefly and print what it reached."""
    with one_line_errors("ablate"):
        names = variants.split(",")
        unknown = [name for name in names if name not in VARIANTS]
        if unknown:
            raise UsageError(f"--variants {unknown[0]}: expected some of {', '.join(VARIANTS)}")
        base = load_config(config, [*set_, f"steps={steps}"], {"samfeat": SamfeatConfig})
        runs = {name: dataclasses.replace(base, losses=losses_of(name, base.losses)) for name in names}
        for run in runs.values():
            run.check_losses()
        place = start_distributed(pick_device(device))
        prepared = prepare(base.data, base.model, place)
        table = {}
        for name, run in runs.items():
            train(run, output / name, place, prepared)
            if own_rank() != 0:
                continue  # the first process speaks for all
            table[name] = best_scores(output / name)
            typer.echo(f"{name:12} " + "  ".join(f"{key} {value:.4f}" for key, value in table[name].items()))
            write_json(output / "ablation.json", table)


if __name__ == "__main__":
    app()
