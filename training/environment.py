"""Where data lie: the environment variable SAMFEAT_DATA, `docs/data.md` says what is in the folder."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "SAMFEAT_DATA"
DEFAULT = "../shared/data"


def data_folder() -> Path:
    """The folder that the variable names, or the default; relative to where the command runs."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def with_data_folder(text: str) -> str:
    """A text with `$SAMFEAT_DATA` replaced by that folder."""
    return text.replace(f"${VARIABLE}", str(data_folder()))
