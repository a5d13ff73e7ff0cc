"""What is matched with what: mutual nearest neighbours, or a matcher of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from samfeat_core.errors import UsageError
from samfeat_core.features import Features
from samfeat_core.matching import match_mutual
from training.evaluation.extractors import import_factory

# two images' features -> (K,) row indices of the first, (K,) of the second
Match = Callable[[Features, Features], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Matcher:
    """A matcher and the name under which reports know it."""

    name: str
    match: Match

    def __call__(self, first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (K, 2) float32 of either image, row k of one matched with row k of the other.

        Raises:
            ValueError: the matcher answers with rows that the features do not have.
        """
        rows = [np.asarray(index, np.int64).reshape(-1) for index in self.match(first, second)]
        fits = len(rows) == 2 and len(rows[0]) == len(rows[1])
        if not fits or any(np.any((r < 0) | (r >= len(f))) for r, f in zip(rows, (first, second), strict=True)):
            raise ValueError(f"matcher '{self.name}': expected two arrays of row indices of the same length")
        return first.keypoints[rows[0]], second.keypoints[rows[1]]


def nearest_neighbours(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are each other's nearest neighbour by the dot product of `Features.matchable`."""
    return match_mutual(first.matchable, second.matchable)[:2]


MUTUAL = Matcher("mutual nearest neighbours", nearest_neighbours)


def resolve_matcher(name: str | None) -> Matcher:
    """The matcher that ``module:function()`` returns; None: `MUTUAL`. UsageError: there is none."""
    if name is None:
        return MUTUAL
    if ":" not in name:
        raise UsageError(f"matcher '{name}': expected module:function, where function() returns a `Match`")
    return Matcher(name, import_factory("matcher", name)())
