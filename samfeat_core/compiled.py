"""Loops compiled to machine code by Numba, where NumPy would make many passes over small arrays."""

from __future__ import annotations

from collections.abc import Callable
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
