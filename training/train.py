"""`python -m training.train --config config/train/samfeat_nano.yaml --output runs/nano`: train a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

from training.cli import DEVICE, SET, application, one_line_errors, pick_device
from training.loop.config import RunConfig, load_config
from training.loop.trainer import BEST, own_rank, start_distributed
from training.samfeat.labels.bootstrap import ShapesConfig
from training.samfeat.labels.bootstrap import train as train_shapes
from training.samfeat.train import SamfeatConfig
from training.samfeat.train import train as train_samfeat
from training.scfeat.train import ScfeatConfig
from training.scfeat.train import train as train_scfeat

# What the key `method` of a configuration may be, and how a configuration of each is run.
METHODS: dict[str, type[RunConfig]] = {"samfeat": SamfeatConfig, "scfeat": ScfeatConfig, "shapes": ShapesConfig}
TRAIN: dict[type[RunConfig], Callable[[Any, Path, torch.device], float]] = {
    SamfeatConfig: train_samfeat,
    ScfeatConfig: train_scfeat,
    ShapesConfig: train_shapes,
}

app = application()


@app.command()
def main(
    config: Path = typer.Option(..., help="YAML file of the run; its key `method` says what is trained."),
    output: Path = typer.Option(
        ..., help="Folder for weights, checkpoints and logs; an interrupted run there resumes."
    ),
    device: str = DEVICE,
    threads: int = typer.Option(0, min=0, help="CPU threads of this process, 0 = torch's choice."),
    set_: list[str] = SET,
) -> None:
    """Train a network; start with torchrun for several processes."""
    if threads:
        torch.set_num_threads(threads)
    with one_line_errors("train"):
        try:
            run = load_config(config, set_, METHODS)
            best = TRAIN[type(run)](run, output, start_distributed(pick_device(device)))
            if own_rank() == 0:
                typer.echo(f"best validation score {best:.4f}; weights in {output / BEST}")
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


if __name__ == "__main__":
    app()
