"""A training run's configuration: one YAML file, checked key by key against typed dataclasses.

The key `method` says what is trained and how; the schema of that method says which other keys there are.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from samfeat_core.errors import FileError, UsageError
from training.environment import with_data_folder

METHOD = "method"
PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("linear", "cosine")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; linear warm-up, then linear or cosine decay to `final` times `lr`.

    Attributes:
        schedule: shape of the decay, linear or cosine.
        cooldown: the rate stays constant until this many steps before the end; none = decay from the start.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, which is what is validated and kept; 0 = no averaging.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 200
    schedule: str = "linear"
    cooldown: int | None = None
    final: float = 0.01
    clip: float = 5.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UsageError(f"optimizer.lr is {self.lr:g}, expected more than 0")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"optimizer.schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains; a method adds its own keys in a subclass.

    Attributes:
        precision: fp32, bf16 or fp16 (autocast of the network; losses stay fp32).
        compile: run the network through torch.compile, which takes a minute or two at first.
        sync_batch_norm: take the statistics of batches over all processes, for small batches on several GPUs.
        validate_every: steps between validations and checkpoints.

    Raises:
        UsageError: there is no such precision, or a number of steps is below 1.
    """

    steps: int = 10000
    seed: int = 0
    precision: str = "bf16"
    compile: bool = False
    sync_batch_norm: bool = False
    validate_every: int = 500
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        at_least("steps", self.steps, 1)
        at_least("validate_every", self.validate_every, 1)


def at_least(key: str, value: int, least: int) -> None:
    """UsageError names a key whose value is too small."""
    if value < least:
        raise UsageError(f"{key} is {value}, expected at least {least}")


Config = TypeVar("Config", bound=RunConfig)


def load_config(path: Path, overrides: list[str] | None, schemas: Mapping[str, type[Config]]) -> Config:
    """The configuration in a YAML file, of the schema that its key `method` chooses.

    In text, `$SAMFEAT_DATA` stands for the data's folder (`training.environment`).

    Args:
        overrides: `key.sub=value`, values in YAML syntax; they come before the file's.
        schemas: dataclass of every method, by name.

    Raises:
        FileError: the file cannot be read.
        UsageError: one line naming the file and the key that is unknown, missing or of the wrong type.
    """
    tree = read_tree(path)
    for override in overrides or []:
        put(tree, override)
    method = tree.pop(METHOD, None)
    if not isinstance(method, str) or method not in schemas:
        raise UsageError(f"{path}: {METHOD} is {method!r}, expected one of {', '.join(schemas)}")
    return build(schemas[method], tree, str(path), "")


def read_tree(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. FileError names a file that cannot be read."""
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FileError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise FileError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    return tree


def put(tree: dict[str, Any], override: str) -> None:
    """Set one key, in place. UsageError: not `key.sub=value`."""
    key, separator, value = override.partition("=")
    if not separator:
        raise UsageError(f"override {override!r}: expected key=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(f"override {override!r}: {parent} is not a section")
    try:
        tree[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"override {override!r}: the value is not YAML") from None


def build(cls: type, tree: Any, source: str, prefix: str) -> Any:
    """A dataclass instance from a mapping, recursively; every key and type is checked."""
    if not isinstance(tree, dict):
        raise UsageError(f"{source}: {prefix[:-1] or 'file'} is {tree!r}, expected a section of keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise UsageError(f"{source}: unknown key {prefix}{unknown[0]}; known are {', '.join(hints)}")
    needed = [entry.name for entry in dataclasses.fields(cls) if entry.default is entry.default_factory is MISSING]
    missing = [name for name in needed if name not in tree]
    if missing:
        raise UsageError(f"{source}: key {prefix}{missing[0]} is missing")
    return cls(**{key: convert(hints[key], value, source, f"{prefix}{key}") for key, value in tree.items()})


def convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the annotated type, or a UsageError that names the key."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, source, key + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(arguments[0], value, source, key)
    if origin is tuple:
        length = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise UsageError(f"{source}: {key} is {value!r}, expected a list" + (f" of {length}" if length else ""))
        return tuple(convert(arguments[0], item, source, key) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{source}: {key} is {value!r}, expected a section of keys")
        return {str(name): convert(arguments[1], item, source, f"{key}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{source}: {key} is {value!r}, expected {hint.__name__}")
    return with_data_folder(value) if hint is str else value
