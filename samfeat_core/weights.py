"""Weights files: safetensors, and the .pth files that the authors of the networks wrote with torch.save.

Only tensors and plain values are ever read: a .pth file cannot run code here. Every failure is one `WeightsError` line
that names the file.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from samfeat_core.errors import WeightsError, one_line
from samfeat_core.models import find_class

# What trainers wrap a state_dict into, and what parallel or compiled modules put before each name.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")
_DAMAGED = "damaged, or not a safetensors or .pth weights file"
_NAMED = 3  # tensors named in an error line before "..."


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Args:
        path: a .safetensors file; a .pth file with a state_dict, plain or inside a trainer's checkpoint; or a folder
            of .pth files, one per part of the network, whose stems then precede the names (SCFeat's authors save
            `backbone.pth` and `localheader.pth`).

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds no tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        parts = sorted(path.glob("*.pth"))
        if not parts:
            raise WeightsError(f"{path}: a folder without .pth files, expected a .safetensors or .pth weights file")
        return {f"{part.stem}.{name}": tensor for part in parts for name, tensor in load_state(part).items()}
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    state = _read(path)
    if not state:
        raise WeightsError(f"{path}: holds no tensors, expected a network's state_dict")
    return state


def load_network(name: str, path: str | Path) -> nn.Module:
    """Build the network of that name in the variant that a weights file is of, and load the file.

    Raises:
        ValueError: unknown name. WeightsError: see `load_into`.
    """
    network_class = find_class(name)
    state = load_state(path)
    options = network_class.options_of(state) if hasattr(network_class, "options_of") else {}
    return load_into(network_class(**options), path, state)


def load_into(model: nn.Module, path: str | Path, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Load a weights file into a network, after checking that it is this network's; returns the network.

    Names pass through the model's `renames` (authors' prefix -> ours) where it has such a table. Tensors whose names
    begin with one of the model's `optional_tensors` prefixes may be absent (heads that only training needs). `state`
    spares reading a file that has been read.

    Raises:
        WeightsError: as `load_state`; or tensors are missing, unknown, of another shape, or not finite.
    """
    table = getattr(model, "renames", {})
    state = {rename(name, table): tensor for name, tensor in (state or load_state(path)).items()}
    expected = model.state_dict()
    optional = (*getattr(model, "optional_tensors", ()), *(n for n in expected if n.endswith("num_batches_tracked")))
    missing = [name for name in expected if name not in state and not name.startswith(optional)]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{path}: not weights of {type(model).__name__}, which has {len(expected)} tensors: {'; '.join(problems)}"
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(f"{path}: {len(broken)} tensors are not finite, the first is {broken[0]}")
    model.load_state_dict(state, strict=False)
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of one file by their plain names; the content decides the format, not the suffix."""
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise WeightsError(f"{path}: the weights file is empty")
    content = _load_safetensors(path) if head[8:] == b"{" else load_pth(path)
    return {_plain(name): tensor for name, tensor in _unwrap(content).items() if isinstance(tensor, Tensor)}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # the library leaks many types for damaged files
        raise WeightsError(f"{path}: {_DAMAGED} ({_reason(error)})") from error


def load_pth(path: Path) -> Any:
    """What torch.save wrote into a file, on the CPU: tensors and plain values, never anything that runs code.

    Raises:
        WeightsError: the file is damaged, or asks for more than that; then the line says for what.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol: an error follows anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        if code := _code_wanted(path, str(error)):
            raise WeightsError(f"{path}: refused, it wants to run code ({code}); only tensors are read") from error
        raise WeightsError(f"{path}: {_DAMAGED} ({_reason(error)})") from error


def _code_wanted(path: Path, refusal: str) -> str:
    """The function or class for which torch.load refused a pickle, "" where it was damaged."""
    if found := re.search(r"GLOBAL (\S+)", refusal):
        return one_line(found[1], 80)
    strings: list[str] = []
    with suppress(Exception), path.open("rb") as file:  # a pickle that torch did not write; read, not run
        for operation, argument, _ in pickletools.genops(file):
            if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                return one_line(".".join(str(argument).split() if argument else strings[-2:]), 80)
            if isinstance(argument, str):
                strings.append(argument)
    return ""


def _reason(error: Exception) -> str:
    return one_line(str(error).strip().split("\n")[0], 160) or type(error).__name__


def _unwrap(content: object) -> Mapping[str, object]:
    if not isinstance(content, Mapping):
        return {}
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _unwrap(content[key])
    return content


def _plain(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def rename(name: str, table: Mapping[str, str]) -> str:
    """The name of a tensor with its longest dotted prefix that is in the table replaced."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in table:
            return ".".join([table[prefix], *parts[count:]])
    return name
