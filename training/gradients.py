"""How much each loss moves a network: the norm of its gradient, as a configuration weighs it.

    python -m training.gradients --config config/train/samfeat.yaml --set init=runs/samfeat/best.safetensors

A loss whose gradient is a thousandth of another's decides nothing beside it. "alone" is what remains of the gradient
after taking out its part along the sum of all others: what the loss asks for that they do not.
"""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from torch import Tensor

from samfeat_core.errors import UsageError
from samfeat_core.models import build_network
from samfeat_core.progress import progress
from samfeat_core.weights import load_into
from training.cli import DEVICE, SET, application, one_line_errors, pick_device
from training.loop.config import load_config
from training.samfeat.data import prepare, training_source
from training.samfeat.task import FeatureTask
from training.samfeat.train import SamfeatConfig

LATE = 1_000_000  # a step at which no loss waits for its start

app = application()


def gradients(task: FeatureTask, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of each loss, all parameters in one row."""
    parameters = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
    rows = {}
    for name, loss in losses.items():
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows[name] = torch.cat(
            [
                (torch.zeros_like(p) if part is None else part).flatten()
                for p, part in zip(parameters, parts, strict=True)
            ]
        )
    return rows


def measure(rows: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """For each loss the norm of its gradient, and that of its part across the sum of the others."""
    total = torch.stack(list(rows.values())).sum(0)
    figures = {}
    for name, row in rows.items():
        others = total - row
        along = (row @ others) / (others @ others).clamp(min=1e-30)
        figures[name] = (float(row.norm()), float((row - along * others).norm()))
    return figures


@app.command(help=__doc__)
def main(
    config: Path = typer.Option(..., help="YAML file of a run with the method samfeat."),
    batches: int = typer.Option(8, min=1, help="Batches to average over."),
    device: str = DEVICE,
    set_: list[str] = SET,
) -> None:
    with one_line_errors("gradients"):
        run = load_config(config, set_, {"samfeat": SamfeatConfig})
        run.check_losses()
        where = torch.device(pick_device(device))
        data = prepare(run.data, run.model, where)
        torch.manual_seed(run.seed)
        network = build_network(run.model).to(where)
        if run.init:
            load_into(network, run.init)
        task = FeatureTask(network, run.task, run.losses).train()
        source = training_source(data, run.data, where)
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in progress(range(batches), "batches", "batch"):
            losses = {name: value for name, value in task(source.sample(run.data.batch), LATE).items() if value.grad_fn}
            used = {name: value for name, value in losses.items() if getattr(run.losses, name)}
            if not used:
                raise UsageError("losses: none has a weight")
            for name, figures in measure(gradients(task, used)).items():
                found.setdefault(name, []).append((float(used[name].detach()), *figures))
        typer.echo(table({name: torch.tensor(rows).mean(0).tolist() for name, rows in found.items()}, run))


def table(means: dict[str, list[float]], run: SamfeatConfig) -> str:
    """A line for each loss, the largest gradient first."""
    largest = max(norm for _, norm, _ in means.values())
    lines = [f"{'loss':<14}{'weight':>8}{'value':>10}{'gradient':>11}{'of largest':>12}{'alone':>11}"]
    for name, (value, norm, alone) in sorted(means.items(), key=lambda item: -item[1][1]):
        weight = getattr(run.losses, name)
        lines.append(f"{name:<14}{weight:>8g}{value:>10.4f}{norm:>11.5f}{norm / largest:>11.1%} {alone:>11.5f}")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
