"""The errors this package raises on purpose; each carries one line that a person can act on."""


def one_line(text: object, limit: int | None = None) -> str:
    """The text without line breaks, cut to `limit` characters."""
    line = " ".join(str(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


def quoted(text: object, limit: int = 40) -> str:
    """A string from the network or a file for a log line: in quotes, its line breaks escaped, cut to `limit`."""
    shown = repr(str(text)[: limit + 1])  # an escape is longer than what it stands for
    return shown if len(shown) <= limit + 2 else f"{shown[: limit - 3]}...{shown[0]}"


class SamfeatError(Exception):
    """Base of all errors of this project."""

    def __init__(self, text: object) -> None:
        super().__init__(one_line(text))


class WeightsError(SamfeatError):
    """A weights file is missing, damaged, or belongs to another model."""


class EngineError(SamfeatError):
    """An inference engine cannot be built or run here."""


class UsageError(SamfeatError, ValueError):
    """An option or a key of a configuration has a value that is not possible. Names it, and what was expected."""


class NoEngineError(EngineError):
    """The engine for an image size has not been built, and shall not be built meanwhile."""


class FileError(SamfeatError, ValueError):
    """A data file or folder is missing, damaged, or not of the expected layout. Names the file, and the line."""
