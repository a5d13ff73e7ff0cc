"""samfeat_core: what a learned feature is, and how one is computed.

This package knows neither ROS nor training. Importing it imports numpy only: torch and the
inference runtimes are loaded by the modules that build or run a network, when they do.
"""

from typing import TYPE_CHECKING

from samfeat_core.errors import EngineError, SamfeatError, WeightsError
from samfeat_core.features import Features, Matches

__all__ = [
    "EngineError",
    "FeatureExtractor",
    "Features",
    "HybridTracker",
    "MatchTracker",
    "Matches",
    "SamfeatError",
    "WeightsError",
    "make_tracker",
    "match_mutual",
]

if TYPE_CHECKING:  # for type checkers, what `__getattr__` finds
    from samfeat_core.extractor import FeatureExtractor
    from samfeat_core.matching import match_mutual
    from samfeat_core.tracking import HybridTracker, MatchTracker, make_tracker

_LAZY = {
    "FeatureExtractor": "samfeat_core.extractor",
    "HybridTracker": "samfeat_core.tracking",
    "MatchTracker": "samfeat_core.tracking",
    "make_tracker": "samfeat_core.tracking",
    "match_mutual": "samfeat_core.matching",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'samfeat_core' has no attribute {name!r}")
