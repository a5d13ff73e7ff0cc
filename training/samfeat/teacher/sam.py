"""The `sam` teacher: Segment Anything and its relatives, each through its own package.

Per photograph, one pass of the image encoder gives the embedding, and the automatic mask generator the masks (its own
pass over the whole photograph is the one whose embedding is kept). Masks overlap: a wheel lies on its car. The smaller
one is painted on top, so that a pixel belongs to the finest part found there, and 0 remains where no mask is. The edge
map holds the borders of all masks, also where a smaller one hides them.

Packages: `segment_anything`, and any with its interface (`sam_model_registry`, `SamAutomaticMaskGenerator`), as
`mobile_sam` and `segment_anything_hq`; and `sam2`, whose models are named by their configuration files.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from samfeat_core.errors import UsageError, WeightsError
from samfeat_core.progress import progress
from samfeat_core.weights import load_pth
from training.data.photo_store import SkipPhoto, StoreError, rank_and_world
from training.data.teacher_store import TeacherEntry, borders, compact

PACKAGE = "segment_anything"
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class MaskOptions:
    """Options of the automatic mask generator, by its own defaults.

    Attributes:
        points_per_side: prompts form a grid of this many squared.
        pred_iou_thresh, stability_score_thresh: masks whose predicted quality or stability is less are dropped.
        crop_n_layers: also look at 4, 4 + 16, .. crops of the photograph, for small parts.
        min_mask_region_area: islands and holes of fewer pixels are removed.
        points_per_batch: prompts at a time: less takes less memory. Does not change the result.
    """

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    crop_n_layers: int = 0
    min_mask_region_area: int = 0
    points_per_batch: int = 64

    def settings(self) -> dict[str, object]:
        """The options that change the result."""
        return {key: value for key, value in asdict(self).items() if key != "points_per_batch"}


def load_sam(model: str, checkpoint: str | Path, device: str | torch.device, package: str = PACKAGE) -> nn.Module:
    """The network with the weights of a checkpoint file, on the device, for inference.

    Args:
        model: a name that the package knows, as "vit_h"; of sam2 its file, as "configs/sam2.1/sam2.1_hiera_l.yaml".

    Raises:
        UsageError: unknown model or package. StoreError: no such file, not a checkpoint, or one of another model.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise StoreError(f"{path}: no such SAM checkpoint (expected the file for {package}'s {model})")
    sam = _load_sam2(model, path) if package == "sam2" else _load_registered(model, path, package)
    return sam.to(device).eval().requires_grad_(False)


def _load_registered(model: str, path: Path, package: str) -> nn.Module:
    registry = {name: build for name, build in _part(package, "sam_model_registry").items() if name != "default"}
    if model not in registry:
        raise UsageError(f"unknown SAM model {model!r}: expected one of {', '.join(registry)}")
    try:
        state = load_pth(path)
    except WeightsError as error:
        raise StoreError(error) from error
    sam = registry[model]()
    expected = {key: tuple(value.shape) for key, value in sam.state_dict().items()}
    tensors = state if isinstance(state, dict) else {}
    found = {key: tuple(value.shape) for key, value in tensors.items() if isinstance(value, Tensor)}
    wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    if wrong:
        raise StoreError(
            f"{path}: not a SAM {model} checkpoint: {len(wrong)} tensors are missing, extra or of another shape, "
            f"first {wrong[0]} (expected {expected.get(wrong[0])}, found {found.get(wrong[0])})"
        )
    sam.load_state_dict(state)
    return sam


def _load_sam2(config: str, path: Path) -> nn.Module:
    build = _part("sam2.build_sam", "build_sam2")
    try:
        return build(config, str(path), device="cpu")
    except Exception as error:  # of hydra, pickle, and a bare RuntimeError where tensors are missing
        reason = str(error).splitlines()[0] if str(error) else "tensors are missing or extra"
        raise StoreError(f"{path}: not a checkpoint of sam2's {config} ({type(error).__name__}: {reason})") from error


def _part(module: str, name: str) -> Any:
    return getattr(_package(module), name)


def _package(name: str) -> ModuleType:
    """UsageError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"package {name!r} cannot be imported: no module named {error.name!r}") from error


class SamTeacher:
    """Segment Anything as a teacher: `teacher(image) -> TeacherEntry`.

    Args:
        sam: the network, e.g. from `load_sam`.
        name: how the entries call it, e.g. "sam vit_h".
        options: of the automatic mask generator.
        package: whose network it is.
        precision: of encoder and mask decoder, one of `PRECISIONS`. What they answer is widened, so masks are cut out
            of it in single precision.
    """

    def __init__(
        self,
        sam: nn.Module,
        name: str = "sam",
        options: MaskOptions | None = None,
        package: str = PACKAGE,
        precision: str = "fp32",
    ) -> None:
        options = options or MaskOptions()
        self.name = name
        self._stretches = package == "sam2"  # photographs to its square input; the others pad them
        maker = (
            _part("sam2.automatic_mask_generator", "SAM2AutomaticMaskGenerator")
            if package == "sam2"
            else _part(package, "SamAutomaticMaskGenerator")
        )
        self._decode = _part(f"{package}.utils.amg", "rle_to_mask")
        self._generator = maker(sam, output_mode="uncompressed_rle", **asdict(options))
        decoder = sam.sam_mask_decoder if package == "sam2" else sam.mask_decoder
        for module in (sam.image_encoder, decoder):
            _compute_in(module, PRECISIONS[precision])  # type: ignore[arg-type]
        self._embeddings: list[Tensor] = []
        # The generator drops the embedding when it is done. Listening to the encoder saves encoding a second time.
        sam.image_encoder.register_forward_hook(self._keep)  # type: ignore[operator, union-attr]
        self._bar: tqdm | None = None
        decoder.register_forward_hook(self._count)  # type: ignore[operator, union-attr]
        grids = self._generator.point_grids  # of the whole photograph, then of each layer's crops
        self._batches = sum(4**n * math.ceil(len(grid) / options.points_per_batch) for n, grid in enumerate(grids))

    def __call__(self, image: np.ndarray) -> TeacherEntry:
        """What SAM says about a photograph, (H, W, 3) BGR uint8. A bar shows the batches of prompts, if they take long.

        Raises:
            SkipPhoto: the photograph takes more GPU memory than there is.
        """
        rank, world = rank_and_world()
        self._embeddings.clear()
        try:
            with progress(
                None, "prompts", "batch", shown=not rank, total=self._batches, delay=2, leave=False, position=world
            ) as bar:
                self._bar = bar
                masks = self._generator.generate(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            # With crops the whole photograph is the first.
            embedding = self._embeddings[0]
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise SkipPhoto(f"{size} pixels take too much GPU memory: reduce --points-per-batch") from error
        finally:
            self._embeddings.clear()
        if self._stretches:
            embedding = padded_to_square(embedding, image.shape[1], image.shape[0])
        # One mask is decoded at a time: hundreds of full-size masks of a large photograph would be gigabytes.
        ordered = sorted(masks, key=lambda mask: -mask["area"])
        groups, edges = merge_masks((self._decode(mask["segmentation"]) for mask in ordered), image.shape[:2])
        stored = embedding.to(torch.float16).cpu().numpy()
        return TeacherEntry(groups[None], edges[None], stored, self.name, (self.name,))

    def _count(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Keeps (256, 64, 64) of what the encoder answers: a tensor, or that and others."""
        tensor = output["vision_features"] if isinstance(output, dict) else output
        self._embeddings.append((tensor if isinstance(tensor, Tensor) else tensor[0])[0])


def _compute_in(module: nn.Module, precision: torch.dtype | None) -> None:
    """Makes a module compute under autocast, and answer in single precision."""
    if precision is None:
        return
    forward, device = module.forward, next(module.parameters()).device.type

    def narrow(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, precision):
            return _widened(forward(*args, **kwargs))

    module.forward = narrow  # type: ignore[method-assign]


def _widened(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _widened(part) for key, part in output.items()}
    return type(output)(map(_widened, output)) if isinstance(output, list | tuple) else output


def padded_to_square(embedding: Tensor, width: int, height: int) -> Tensor:
    """An embedding (C, n, n) of a photograph stretched to a square, as if it had been padded at right and bottom."""
    side, longest = embedding.shape[-1], max(width, height)
    size = max(round(side * height / longest), 1), max(round(side * width / longest), 1)
    fitted = F.interpolate(embedding[None].float(), size, mode="bilinear", antialias=True)[0]
    return F.pad(fitted, (0, side - size[1], 0, side - size[0]))


def merge_masks(masks: Iterable[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping masks as one label map and one edge map.

    Args:
        masks: (H, W) bool arrays, larger ones first: later ones lie on top.
        shape: (H, W).

    Returns:
        groups (H, W) uint16, 1..n without gaps, 0 = in no mask; edges (H, W) bool, the borders of all masks.
    """
    groups = np.zeros(shape, np.uint16)
    edges = np.zeros(shape, bool)
    for number, mask in enumerate(masks, 1):
        groups[mask] = number
        edges |= borders(mask)
    return compact(groups), edges
