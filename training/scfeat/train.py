"""Train one stage of SCFeat: `python -m training.train --config config/train/scfeat_descriptor.yaml --output DIR`.

The command, its flags, resuming, DDP, precision and logs are those of `training.train`; a configuration that has the
key `stage` comes here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import nn

from samfeat_core.models import build_network, model_spec
from samfeat_core.weights import load_network
from training.loop.config import OptimizerConfig
from training.loop.trainer import Trainer, check_same_run, own_rank, write_config
from training.scfeat.epipolar import DescriptorConfig
from training.scfeat.pairs import PoseDataConfig, PoseSource, read_pairs
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
class ScfeatConfig:
    """Everything a run depends on, besides the machine.

    Attributes:
        stage: descriptor or detector.
        model: network that is trained; the detector stage works for any.
        init: weights to start from, which for the detector stage is the outcome of the descriptor stage. The variant is
            then the file's, and `network` is not looked at.
        trainable: beginnings of the names of the parameters that the detector stage trains.
        precision: fp32, bf16 or fp16 (autocast of the network; losses stay fp32).
        validate_every: steps between validations and checkpoints.
    """

    stage: str = "descriptor"
    model: str = "scfeat"
    init: str | None = None
    steps: int = 100_000
    seed: int = 0
    precision: str = "fp32"
    validate_every: int = 1000
    trainable: tuple[str, ...] = ("head.",)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: PoseDataConfig = field(default_factory=PoseDataConfig)
    descriptor: DescriptorConfig = field(default_factory=DescriptorConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}, expected one of {', '.join(STAGES)}")
        if self.stage == "detector" and self.init is None:
            raise ValueError("stage is detector, which needs init: the weights that the descriptor stage wrote")
        if self.stage == "descriptor" and self.model != "scfeat":
            raise ValueError(f"model is {self.model!r}: the descriptor stage trains scfeat alone")


def names_stage(path: Path) -> bool:
    """Whether a YAML file is a configuration of SCFeat: it has the key `stage`. Whatever is wrong with it is left to
    its reader."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and "stage" in tree


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
        raise ValueError(f"data.size is {config.data.size}, expected multiples of {multiple} for {config.model}")
    pairs, held = read_pairs(config.data)
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
        if not (output / "validation.jsonl").exists():  # the curve begins where the training does
            scores = validate(network.to(device).eval())
            (output / "validation.jsonl").write_text(json.dumps({"step": 0, **scores}) + "\n")
    trainer = Trainer(
        task,
        PoseSource(pairs, config.data.size, device),
        validate,
        output,
        batch=config.data.batch,
        steps=config.steps,
        optimizer=config.optimizer,
        precision=config.precision,
        validate_every=config.validate_every,
        device=device,
    )
    return trainer.run()
