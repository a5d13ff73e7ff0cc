"""A training run's configuration: one YAML file, checked key by key against typed dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from training.data.homography_pairs import HomographyConfig
from training.samfeat.task import FeatureTaskConfig, LossWeights


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        photos: folders of photographs, for pairs under homographies.
        teacher: store of `python -m training.teach`, or none.
        labels: store of `python -m training.label photos`, or none.
        features: store of `python -m training.label features`, an example to imitate, or none.
        pairs: folders of stored pairs with true parallax (posed or rendered), or none.
        size: (width, height) of the views, multiples of 32.
        batch: pairs per step and process.
        parallax: share of every batch that comes from `pairs`.
        long_side: photographs are decoded no larger than this.
        validation: share of the photographs held out to select the best checkpoint.
    """

    photos: tuple[str, ...] = ()
    teacher: str | None = None
    labels: str | None = None
    features: str | None = None
    pairs: tuple[str, ...] = ()
    size: tuple[int, int] = (320, 224)
    batch: int = 8
    parallax: float = 0.25
    long_side: int = 640
    validation: float = 0.03
    homography: HomographyConfig = HomographyConfig()


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; linear warm-up, then linear or cosine decay to `final` times `lr`.

    Attributes:
        cooldown: the rate stays constant until this many steps before the end; none = decay from the start.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, which is what is validated and kept.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 200
    schedule: str = "linear"
    cooldown: int | None = None
    final: float = 0.01
    clip: float = 5.0
    ema: float = 0.999


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on, besides the machine.

    Attributes:
        model: name in `samfeat_core.models.MODELS`.
        init: weights file to start from, or none for a random start.
        precision: fp32, bf16 or fp16 (autocast of the network; losses stay fp32).
        validate_every: steps between validations and checkpoints.
    """

    model: str = "samfeat-nano"
    init: str | None = None
    steps: int = 10000
    seed: int = 0
    precision: str = "bf16"
    validate_every: int = 500
    data: DataConfig = field(default_factory=DataConfig)
    task: FeatureTaskConfig = field(default_factory=FeatureTaskConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


def load_config(path: Path, overrides: list[str] | None = None, schema: type = TrainConfig) -> Any:
    """A `schema` from a YAML file, after `key.sub=value` overrides (values in YAML syntax).

    Raises:
        ValueError: one line naming the file and the key that is unknown or of the wrong type.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    for override in overrides or []:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"override {override!r}: expected key=value")
        branch = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise ValueError(f"override {override!r}: {parent} is not a section")
        branch[leaf] = yaml.safe_load(value)
    return build(schema, tree, str(path), "")


def build(cls: type, tree: Any, source: str, prefix: str) -> Any:
    """A dataclass instance from a mapping, recursively; every key and type is checked."""
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: {prefix[:-1] or 'file'} is {tree!r}, expected a section of keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise ValueError(f"{source}: unknown key {prefix}{unknown[0]}; known are {', '.join(hints)}")
    return cls(**{key: convert(hints[key], value, source, f"{prefix}{key}") for key, value in tree.items()})


def convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the annotated type, or a ValueError that names the key."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, source, key + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(arguments[0], value, source, key)
    if origin is tuple:
        length = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise ValueError(f"{source}: {key} is {value!r}, expected a list" + (f" of {length}" if length else ""))
        return tuple(convert(arguments[0], item, source, key) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{source}: {key} is {value!r}, expected {hint.__name__}")
    return value
