"""Progress bars of all commands: on a terminal, and silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item] | None, title: str, unit: str, *, shown: bool = True, **options: Any) -> tqdm[Item]:
    """The items with a bar while they are gone through; without items, a bar that `update` moves.

    Args:
        unit: what one step is, in the singular.
        shown: False = never, as on all ranks but the first.
        options: `tqdm`'s.
    """
    return tqdm(items, title, unit=unit, disable=None if shown else True, **options)
