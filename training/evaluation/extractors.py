"""From a name on the command line to something that can be called on an image, timed, and asked twice for free."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samfeat_core.classic import CLASSIC, Extractor
from samfeat_core.errors import UsageError, WeightsError
from samfeat_core.features import Features
from training.evaluation.images import ImageStore


def resolve(name: str, max_keypoints: int, device: str = "auto", engine: str = "auto") -> Extractor:
    """The extractor called ``name``.

    ``orb``, ``sift``, ``akaze``: OpenCV's. ``module:function``: what the function returns when it is called with
    ``max_keypoints=`` where it has such a parameter, else with nothing. ``MODEL`` or ``MODEL=FILE``: a model of this
    project with its shipped weights or those of FILE.

    Raises:
        UsageError: there is no such model, module or function, or it does not answer as an extractor.
        SamfeatError: the weights cannot be loaded.
    """
    if name in CLASSIC:
        return CLASSIC[name](max_keypoints)
    if ":" in name and "=" not in name:
        return _import_extractor(name, max_keypoints)
    model, _, file = name.partition("=")
    if file and not Path(file).is_file():
        raise WeightsError(f"{file}: no such weights file (for extractor '{model}')")
    from samfeat_core.extractor import FeatureExtractor  # imports torch or an engine: only where a model is asked for

    return FeatureExtractor.from_pretrained(
        model, device=device, engine=engine, max_keypoints=max_keypoints, weights=file or None
    )


def _import_extractor(name: str, max_keypoints: int) -> Extractor:
    factory = import_factory("extractor", name)
    takes_budget = "max_keypoints" in inspect.signature(factory).parameters
    return factory(max_keypoints=max_keypoints) if takes_budget else factory()


def import_factory(what: str, name: str) -> Callable[..., Any]:
    """The function called ``module:function``, which has to answer with a callable.

    Raises:
        UsageError: no such module or function, or (when it is called) it answers with something else.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{what} '{name}': no module named '{error.name}' on PYTHONPATH") from error
    except AttributeError as error:
        raise UsageError(f"{what} '{name}': {error}") from error

    @functools.wraps(factory)
    def checked(**parameters: Any) -> Any:
        made = factory(**parameters)
        if not callable(made):
            raise UsageError(f"{what} '{name}': {function_name}() returned {type(made).__name__}, not a callable")
        return made

    return checked


class TimedExtractor:
    """Runs an extractor on files, keeps its Features (the newest ``keep`` images) and the time each image took."""

    def __init__(self, label: str, extractor: Extractor, images: ImageStore, max_keypoints: int, keep: int = 1000):
        self.label = label
        self.extractor = extractor
        self.images = images
        self.max_keypoints = max_keypoints
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self._keep = keep
        self._features: OrderedDict[tuple[Path, int], Features] = OrderedDict()

    def __call__(self, path: Path, turns: int = 0) -> Features:
        """Features of the image in ``path``, turned by ``turns`` quarter turns counter-clockwise."""
        key = (path, turns)
        if key not in self._features:
            self._features[key] = self.extract(np.ascontiguousarray(np.rot90(self.images(path).pixels, turns)))
            if len(self._features) > self._keep:
                self._features.popitem(last=False)
        self._features.move_to_end(key)
        return self._features[key]

    def extract(self, image: np.ndarray) -> Features:
        """Features of a (H, W, 3) BGR uint8 image, which are not kept."""
        wall, cpu = time.perf_counter(), time.process_time()
        features = self.extractor(image)
        self.wall_ms.append((time.perf_counter() - wall) * 1e3)
        self.cpu_ms.append((time.process_time() - cpu) * 1e3)
        return cut(features, self.max_keypoints)

    def timing(self) -> dict[str, float]:
        """Median wall and CPU time (all threads) per image, of the images extracted so far."""
        if not self.wall_ms:
            return {"wall_ms": float("nan"), "cpu_ms": float("nan")}
        return {"wall_ms": float(np.median(self.wall_ms)), "cpu_ms": float(np.median(self.cpu_ms))}


def cut(features: Features, count: int) -> Features:
    """The ``count`` features of the highest scores: every extractor stands on the same budget."""
    if len(features) <= count:
        return features
    best = np.argsort(-features.scores, kind="stable")[:count]
    return Features(
        features.keypoints[best],
        features.scores[best],
        features.descriptors[best],
        features.image_size,
        None if features.weights is None else features.weights[best],
    )
