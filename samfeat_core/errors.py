"""The errors this package raises on purpose; each carries one line that a person can act on."""


class SamfeatError(Exception):
    """Base of all errors of this project."""


class WeightsError(SamfeatError):
    """A weights file is missing, damaged, or belongs to another model."""


class EngineError(SamfeatError):
    """An inference engine cannot be built or run here."""


class FileError(SamfeatError, ValueError):
    """A data file or folder is missing, damaged, or not of the expected layout. Names the file, and the line."""
