"""`FeatureExtractor`: an image in, `Features` out. Resizing and padding for the network never leak."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import OrderedDict
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from samfeat_core.engines import (
    TENSORRT_TOP_K,
    Engine,
    Job,
    Log,
    build_engine,
    candidates,
    choose_device,
    fingerprint,
    kept_at,
)
from samfeat_core.engines.choice import prefer
from samfeat_core.errors import NoEngineError, WeightsError
from samfeat_core.features import MAX_SIDE, Features
from samfeat_core.models import Detection, ModelSpec, model_spec

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
KEPT_ENGINES = 4  # shapes whose engines stay in memory


class FeatureExtractor:
    """Keypoints and descriptors of images, by a pretrained network on an engine.

    Make one with `from_pretrained`. An engine is built for each image size on its first use; `prepare` builds
    ahead of time. Not safe for concurrent calls, but one thread may `prepare` while another one calls.

    Attributes:
        builds_when_called: False = a call for a size without an engine raises NoEngineError, and one for more
            keypoints than its engine finds gets those; `prepare` alone builds then.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Path,
        device: str,
        engines: list[str],
        log: Log,
        *,
        max_keypoints: int,
        detection: Detection,
        border: int,
        resize: int | None,
        cache_dir: Path,
    ) -> None:
        self.spec, self.weights, self.device, self.log = spec, weights, device, log
        self.detection, self.border, self.resize, self.cache_dir = detection, border, resize, cache_dir
        self.max_keypoints, self.threshold = max_keypoints, detection.threshold
        self.builds_when_called = True
        self._candidates = engines
        self._lock = threading.Lock()  # of the engines in memory
        self._engines: OrderedDict[tuple[int, int], tuple[Job, Engine]] = OrderedDict()
        self._interior: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str = "samfeat-nano",
        device: str = "auto",
        engine: str = "auto",
        max_keypoints: int = 1024,
        *,
        weights: str | Path | None = None,
        threshold: float | None = None,
        nms_radius: int | None = None,
        nms_passes: int | None = None,
        refine: bool | None = None,
        border: int = 4,
        resize: int | None = None,
        cache_dir: str | Path | None = None,
        log: Log | None = None,
    ) -> FeatureExtractor:
        """An extractor with the shipped weights of a model, or with a weights file.

        Args:
            name: one of `samfeat_core.models.MODELS`.
            device: auto, cpu, cuda, or cuda:N.
            engine: one of `samfeat_core.engines.ENGINES`.
            max_keypoints: most keypoints of an image, the best by score.
            weights: file to load instead of the shipped one (safetensors, or a .pth of the authors).
            threshold: least score in [0, 1]; None = the model's default.
            nms_radius: pixels of the network's image; None = the model's default.
            nms_passes: 1 keeps local maxima, more come near to a greedy suppression; None = the model's default.
            refine: whether keypoints lie between pixels; None = the model's default.
            border: no keypoints nearer than this to the image's edge, in pixels of the network's image.
            resize: long side in pixels that the network sees; None = as received.
            cache_dir: where built engines are kept; None = $XDG_CACHE_HOME/samfeat_ros.
            log: called with (level, text), level "info" or "error"; None = the logger "samfeat_core".

        Raises:
            ValueError: an argument that is impossible.
            WeightsError: no such weights. EngineError: the device cannot be used.
        """
        spec = model_spec(name)
        log = log or (lambda level, text: getattr(logging.getLogger("samfeat_core"), level)(text))
        chosen, why = choose_device(device, engine)
        names, notes = candidates(engine, chosen)
        path = find_weights(name, weights)
        usual = spec.detection(path)
        detection = Detection(
            usual.nms_radius if nms_radius is None else checked("nms_radius", nms_radius, 1, 32),
            usual.threshold if threshold is None else checked("threshold", threshold, 0.0, 1.0),
            usual.nms_passes if nms_passes is None else checked("nms_passes", nms_passes, 1, 32),
            usual.refine if refine is None else refine,
        )
        default_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samfeat_ros"
        cache = Path(cache_dir).expanduser() if cache_dir else default_cache
        if engine == "auto":
            names, reasons = prefer(names, chosen, name, path, cache, log)
            notes = notes + reasons
        said = "; ".join(([why] if chosen == "cpu" and device == "auto" else []) + notes)
        log("info", f"model {name}, engine {names[0]}, device {chosen}" + (f" ({said})" if said else ""))
        return cls(
            spec,
            path,
            chosen,
            names,
            log,
            max_keypoints=checked("max_keypoints", max_keypoints, 1, 65536),
            detection=detection,
            border=checked("border", border, 0, 256),
            resize=None if resize is None else checked("resize", resize, 32, MAX_SIDE),
            cache_dir=cache,
        )

    @property
    def model_name(self) -> str:
        return self.spec.name

    @property
    def nms_radius(self) -> int:
        """Pixels of the network's image."""
        return self.detection.nms_radius

    @property
    def default_threshold(self) -> float:
        """Least score in [0, 1] that suits the weights."""
        return self.spec.detection(self.weights).threshold

    @property
    def descriptor_dim(self) -> int:
        return self.spec.descriptor_dim

    @property
    def engine_name(self) -> str:
        """The engine in use; before the first is built, the one that will be tried."""
        with self._lock:
            return next(reversed(self._engines.values()))[1].name if self._engines else self._candidates[0]

    @cached_property
    def weights_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights."""
        return fingerprint(self.weights)

    def lacks_engine(self, width: int, height: int) -> bool:
        """Whether there is still something to `prepare` for images of that size."""
        return self._suitable(self._padded(*self._network_size(width, height)), self.max_keypoints) is None

    def prepare(self, width: int, height: int) -> None:
        """Build the engine for images of that size (seconds at times), so that the first image need not wait.

        Raises:
            EngineError: no engine could be built. WeightsError: the weights are not the model's.
        """
        shape = self._padded(*self._network_size(width, height))
        if self._suitable(shape, self.max_keypoints) is None:
            self._build(shape)

    def build_command(self, width: int, height: int) -> list[str] | None:
        """The command that builds the engine for images of that size into the cache, in a process of its own.

        `prepare` then only loads it. None where that saves nothing: the engine is there, or cannot be kept.
        """
        job = self._job(self._padded(*self._network_size(width, height)))
        path = kept_at(self._candidates[0], job)
        if path is None or path.is_dir():
            return None
        options = {
            "model": self.spec.name, "device": self.device, "engine": self._candidates[0], "weights": self.weights,
            "max-keypoints": job.max_keypoints, "nms-radius": self.nms_radius, "nms-passes": job.nms_passes,
            "refine": "yes" if job.refine else "no", "cache-dir": self.cache_dir,
        }  # fmt: skip
        size = f"{job.width}x{job.height}"
        return [sys.executable, "-m", "samfeat_core.prepare", size, *(f"--{k}={v}" for k, v in options.items())]

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """Features of one image.

        Args:
            image: (H, W) grey or (H, W, 3) BGR uint8.
            mask: (H, W) uint8, 0 = no keypoints here; None = anywhere.

        Raises:
            ValueError: another shape or dtype. EngineError: no engine could be built for this size.
            NoEngineError: see `builds_when_called`.
        """
        check_image(image, mask)
        height, width = image.shape[:2]
        size = width, height
        if cv2.minMaxLoc(image.reshape(height, -1))[:2] == (image.flat[0],) * 2:
            return Features.empty(size, self.descriptor_dim)  # one value throughout: nothing to find
        network_width, network_height = self._network_size(width, height)
        engine = self._engine(network_width, network_height)
        keypoints, scores, descriptors, weights = engine(
            self._network_image(image, network_width, network_height),
            self._network_mask(mask, network_width, network_height),
        )
        # What is no keypoint has score 0, wherever it stands.
        keep = np.flatnonzero(scores >= max(self.threshold, 1e-9))[: self.max_keypoints]
        scale = np.array([network_width / width, network_height / height], np.float32)
        return Features(
            np.clip((keypoints[keep] + 0.5) / scale - 0.5, 0, np.array((width - 1, height - 1), np.float32)),
            scores[keep],
            descriptors[keep],
            size,
            weights[keep] if self.spec.weighted else None,
        )

    def _network_size(self, width: int, height: int) -> tuple[int, int]:
        """Size of the image inside the padded input."""
        if self.resize is None:
            return width, height
        scale = self.resize / max(width, height)
        return max(round(width * scale), 1), max(round(height * scale), 1)

    def _padded(self, width: int, height: int) -> tuple[int, int]:
        multiple = self.spec.stride_multiple
        return -(-width // multiple) * multiple, -(-height // multiple) * multiple

    def _engine(self, width: int, height: int) -> Engine:
        """The engine for that padded shape, built if it is not there or finds too few keypoints."""
        shape = self._padded(width, height)
        engine = self._suitable(shape, self.max_keypoints if self.builds_when_called else 0)
        if engine is not None:
            return engine
        if not self.builds_when_called:
            raise NoEngineError(f"there is no engine for images of {width}x{height}")
        return self._build(shape)

    def _suitable(self, shape: tuple[int, int], keypoints: int) -> Engine | None:
        """The engine in memory for that padded shape, if it finds so many keypoints."""
        with self._lock:
            job, engine = self._engines.get(shape, (None, None))
            if job is None or job.max_keypoints < keypoints:
                return None
            self._engines.move_to_end(shape)
            return engine

    def _job(self, shape: tuple[int, int]) -> Job:
        # A power of two, so that hardly any change of max_keypoints needs another engine; or what TensorRT can find.
        keypoints = 1 << (self.max_keypoints - 1).bit_length()
        if self.max_keypoints <= TENSORRT_TOP_K < keypoints:
            keypoints = TENSORRT_TOP_K
        return Job(
            self.spec,
            self.weights,
            shape[1],
            shape[0],
            keypoints,
            self.detection.nms_radius,
            self.device,
            self.cache_dir,
            self.log,
            self.detection.nms_passes,
            self.detection.refine,
        )

    def _build(self, shape: tuple[int, int]) -> Engine:
        job = self._job(shape)
        engine = build_engine(self._candidates, job, self.log)
        with self._lock:
            self._engines[shape] = job, engine
            self._engines.move_to_end(shape)
            while len(self._engines) > KEPT_ENGINES:
                self._engines.popitem(last=False)
        return engine

    def _network_image(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        """(C, H, W) uint8 in the network's colours and padded size; padding repeats the edge."""
        if self.spec.channels == 1:
            image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        else:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
        if image.shape[:2] != (height, width):
            shrinks = height < image.shape[0]
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        right, bottom = (padded - size for padded, size in zip(self._padded(width, height), (width, height)))
        if right or bottom:
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        return np.ascontiguousarray(image[None] if image.ndim == 2 else image.transpose(2, 0, 1))

    def _network_mask(self, mask: np.ndarray | None, width: int, height: int) -> np.ndarray:
        """(H, W) uint8 of the padded size: 1 where keypoints may be."""
        interior = self._interior.get((width, height))
        if interior is None:
            padded_width, padded_height = self._padded(width, height)
            interior = np.zeros((padded_height, padded_width), np.uint8)
            border = self.border
            interior[border : max(height - border, 0), border : max(width - border, 0)] = 1
            self._interior = {(width, height): interior}
        if mask is None:
            return interior
        allowed = interior.copy()
        resized = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        allowed[:height, :width] *= (resized > 0).astype(np.uint8)
        return allowed


def find_weights(name: str, weights: str | Path | None) -> Path:
    """The weights file asked for, else the shipped one; WeightsError when it is not there."""
    path = Path(weights).expanduser() if weights else SHIPPED_WEIGHTS / f"{name}.safetensors"
    if not path.is_file() and not path.is_dir():  # a device or a pipe would be read for ever
        hint = "" if weights else f"; no weights of {name} are shipped, so give a file (weights=...)"
        raise WeightsError(f"{path}: no such weights file{hint}")
    return path


Number = TypeVar("Number", int, float)


def checked(name: str, value: Number, low: Number, high: Number) -> Number:
    """`value` if it is in range, and whole where the bounds are, else a ValueError that names it."""
    if not low <= value <= high or isinstance(low, int) and not isinstance(value, Integral):
        raise ValueError(f"{name} is {value}, expected {'a whole number ' * isinstance(low, int)}{low} to {high}")
    return value


def check_image(image: np.ndarray, mask: np.ndarray | None) -> None:
    """ValueError unless image is (H, W) or (H, W, 3) uint8 and mask, if any, (H, W) uint8."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is {type(image).__name__}, expected an array; cv2.imread answers None for no image")
    grey_or_colour = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not grey_or_colour or image.size == 0 or max(image.shape[:2]) > MAX_SIDE:
        raise ValueError(
            f"image has shape {image.shape} and dtype {image.dtype}, expected (H, W) or (H, W, 3) uint8 "
            f"of at most {MAX_SIDE} pixels a side"
        )
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != image.shape[:2]):
        raise ValueError(f"mask has shape {mask.shape} and dtype {mask.dtype}, expected {image.shape[:2]} uint8")
