"""The errors this package raises on purpose; each carries one line that a person can act on."""


def one_line(text: object, limit: int | None = None) -> str:
    """The text without line breaks, cut to `limit` characters."""
    line = " ".join(str(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


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


class FileError(SamfeatError, ValueError):
    """A data file or folder is missing, damaged, or not of the expected layout. Names the file, and the line."""
