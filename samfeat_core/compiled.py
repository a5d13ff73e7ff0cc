"""Loops compiled to machine code by Numba, where NumPy would make many passes over small arrays."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba

# Sums may be taken in another order. That numbers are finite is not assumed: NaN must not become an index.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}


def compiled(function: Callable) -> Callable:
    """The function as machine code, kept on disk between runs where a place for it can be written."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**_OPTIONS)(function)


def inlined(function: Callable) -> Callable:
    """A function that `compiled` ones call, as a part of their code.

    Called, it would be optimised otherwise where it comes from the disk than where it was just compiled, and a first
    run would round otherwise than all that follow.
    """
    return numba.njit(inline="always", **_OPTIONS)(function)


class TwoThreads:
    """Runs a compiled loop over rows on two threads: such loops let go of the interpreter. The rows' order is kept."""

    LEAST = 64  # rows that are worth a second thread

    def __init__(self) -> None:
        self._second = ThreadPoolExecutor(1, "samfeat-loop")

    def run(self, function: Callable[[slice], None], count: int) -> None:
        """Call the function with slices that cover `count` rows, each once."""
        if count < self.LEAST:
            return function(slice(0, count))
        half = count // 2
        rest = self._second.submit(function, slice(half, count))
        function(slice(0, half))
        rest.result()
