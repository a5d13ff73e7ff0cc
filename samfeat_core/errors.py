"""The errors this package raises on purpose; each carries one line that a person can act on."""


class SamfeatError(Exception):
    """Base of all errors of samfeat_core."""


class WeightsError(SamfeatError):
    """A weights file is missing, damaged, or belongs to another model."""


class EngineError(SamfeatError):
    """An inference engine cannot be built or run here."""
