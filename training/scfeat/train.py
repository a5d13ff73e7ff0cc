"""Train one stage of SCFeat: the method `scfeat` of `python -m training.train`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from samfeat_core.errors import UsageError
from samfeat_core.models import build_network, model_spec
from samfeat_core.weights import load_network
from training.loop.config import RunConfig
from training.loop.trainer import CURVE, Trainer, check_same_run, own_rank, write_config
from training.scfeat.epipolar import DescriptorConfig
from training.scfeat.pairs import PoseDataConfig, PoseSource, read_posed_pairs
from training.scfeat.reinforce import DetectorConfig
from training.scfeat.tasks import DescriptorStage, DetectorStage, EpipolarValidation, Stage

STAGES = ("descriptor", "detector")


@dataclass(frozen=True)
class NetworkConfig:
    """Variant of scfeat; the switches of the paper's ablation (see `samfeat_core.models.scfeat`)."""

    encoder: str = "resnet50"
    fusion: bool = True
    normalize: bool = True
    peakiness: bool = True
    imagenet: str | None = None


@dataclass(frozen=True)
class ScfeatConfig(RunConfig):
    """Everything a run depends on, besides the machine.

    Attributes:
        stage: descriptor or detector.
        model: network that is trained; the detector stage works for any.
        init: weights to start from, which for the detector stage is the outcome of the descriptor stage. The variant is
            then the file's, and `network` is not looked at.
        trainable: beginnings of the names of the parameters that the detector stage trains.

    Raises:
        UsageError: unknown model; keys that contradict each other.
    """

    stage: str = "descriptor"
    model: str = "scfeat"
    init: str | None = None
    steps: int = 100_000
    precision: str = "fp32"
    validate_every: int = 1000
    trainable: tuple[str, ...] = ("head.",)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: PoseDataConfig = field(default_factory=PoseDataConfig)
    descriptor: DescriptorConfig = field(default_factory=DescriptorConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        model_spec(self.model)
        if self.stage not in STAGES:
            raise UsageError(f"stage is {self.stage!r}, expected one of {', '.join(STAGES)}")
        if self.stage == "detector" and self.init is None:
            raise UsageError("stage is detector, which needs init: the weights that the descriptor stage wrote")
        if self.stage == "descriptor" and self.model != "scfeat":
            raise UsageError(f"model is {self.model!r}: the descriptor stage trains scfeat alone")


def build(config: ScfeatConfig) -> nn.Module:
    """The network that a run begins with."""
    if config.init is not None:
        return load_network(config.model, config.init)
    options = dataclasses.asdict(config.network) if config.model == "scfeat" else {}
    return build_network(config.model, **options)


def train(config: ScfeatConfig, output: Path, device: torch.device) -> float:
    """Run one configuration; returns the best validation score, the share of matches within 3 px of their line.

    Raises:
        ValueError: bad data or configuration, naming the file or key. WeightsError: bad `init` or `imagenet`.
    """
    check_same_run(config, output)
    rank = own_rank()
    torch.manual_seed(config.seed)
    network = build(config)
    multiple = model_spec(config.model).stride_multiple
    if any(side % multiple for side in config.data.size):
        raise UsageError(f"data.size is {config.data.size}, expected multiples of {multiple} for {config.model}")
    pairs, held = read_posed_pairs(config.data)
    validate = EpipolarValidation(held, config.data.size, device, config.stage == "detector")
    task: Stage = (
        DescriptorStage(network, config.descriptor)
        if config.stage == "descriptor"
        else DetectorStage(network, config.detector, config.trainable)
    )
    torch.manual_seed(config.seed + 1000 * rank)
    if rank == 0:
        write_config(config, output)
        print(f"{len(pairs)} pairs to train on, {len(held)} held out")
        if not (output / CURVE).exists():  # the curve begins where the training does
            scores = validate(network.to(device).eval())
            (output / CURVE).write_text(json.dumps({"step": 0, **scores}) + "\n")
    trainer = Trainer(
        task,
        PoseSource(pairs, config.data.size, device),
        validate,
        output,
        config,
        batch=config.data.batch,
        device=device,
        metadata={"model": config.model},
    )
    return trainer.run()
