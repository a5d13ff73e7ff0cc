"""Train SAMFeat or samfeat-nano: the method `samfeat` of `python -m training.train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from samfeat_core.errors import UsageError
from samfeat_core.models import build_network, model_spec
from samfeat_core.weights import load_into
from training.loop.config import RunConfig
from training.loop.trainer import Trainer, check_same_run, own_rank, write_config
from training.samfeat.data import DataConfig, PreparedData, prepare, training_source, validation_batches
from training.samfeat.task import FeatureTask, FeatureTaskConfig, LossWeights
from training.samfeat.validation import MatchingValidation

# Stores that `data` may name, and the losses that read them.
NEEDS = {"teacher": ("dis", "wsc", "edge"), "labels": ("det",), "features": ("score", "relation")}


@dataclass(frozen=True)
class SamfeatConfig(RunConfig):
    """Everything a run depends on, besides the machine.

    Attributes:
        model: name in `samfeat_core.models.MODELS`.
        init: weights file to start from, or none for a random start.

    Raises:
        UsageError: there is no such model.
    """

    model: str = "samfeat-nano"
    init: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    task: FeatureTaskConfig = field(default_factory=FeatureTaskConfig)
    losses: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        super().__post_init__()
        model_spec(self.model)

    def check_losses(self) -> None:
        """UsageError names a loss that is on without the data that it needs."""
        for store, names in NEEDS.items():
            used = [name for name in names if getattr(self.losses, name)]
            if used and not getattr(self.data, store):
                weight = getattr(self.losses, used[0])
                raise UsageError(f"losses.{used[0]} is {weight}, but data.{store} names no store")


def train(config: SamfeatConfig, output: Path, device: torch.device, prepared: PreparedData | None = None) -> float:
    """Run one configuration; returns the best validation score (`MatchingValidation`).

    Args:
        prepared: the data, where they are in memory already.

    Raises:
        UsageError: keys that contradict each other. ValueError, SamfeatError: bad data or weights, naming the file.
    """
    config.check_losses()
    check_same_run(config, output)
    prepared = prepared or prepare(config.data, config.model, device)
    spec, rank = model_spec(config.model), own_rank()
    batches = validation_batches(prepared.held_out, config.data, device, spec.channels)
    torch.manual_seed(config.seed)
    network = build_network(config.model)
    if config.init:
        load_into(network, config.init)
    torch.manual_seed(config.seed + 1000 * rank)  # the same network everywhere, other views on every rank
    if rank == 0:
        write_config(config, output)
    trainer = Trainer(
        FeatureTask(network, config.task, config.losses),
        training_source(prepared, config.data, device),
        MatchingValidation(batches, spec.usual.nms_radius),
        output,
        config,
        batch=config.data.batch,
        device=device,
        metadata={"model": config.model},
        data=prepared.identity,
    )
    return trainer.run()
