"""Which code and libraries made a file: part of the metadata of every weights file."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


@lru_cache
def provenance() -> dict[str, str]:
    """The checkout's commit ("+" = with changes, "unknown" outside git), and the versions of Python and torch."""
    return {"commit": commit(), "python": platform.python_version(), "torch": torch.__version__}


def commit() -> str:
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changes else "")
