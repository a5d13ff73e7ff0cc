"""The `sam` teacher: Segment Anything through its own package (`segment-anything`).

Per photograph, one pass of the image encoder gives the embedding, and the automatic mask generator the masks (its own
pass over the whole photograph is the one whose embedding is kept). Masks overlap: a wheel lies on its car. The smaller
one is painted on top, so that a pixel belongs to the finest part found there, and 0 remains where no mask is. The edge
map holds the borders of all masks, also where a smaller one hides them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import rle_to_mask
from torch import Tensor

from samfeat_core.errors import UsageError, WeightsError
from samfeat_core.weights import load_pth
from training.data.photo_store import SkipPhoto, StoreError
from training.data.teacher_store import TeacherEntry, borders, compact

MODELS = ("vit_h", "vit_l", "vit_b")


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


def load_sam(model: str, checkpoint: str | Path, device: str | torch.device) -> Sam:
    """SAM with the weights of a checkpoint file of Meta's, on the device, for inference.

    Args:
        model: "vit_h", "vit_l" or "vit_b".

    Raises:
        UsageError: unknown model. StoreError: no such file, not a checkpoint, or one of another model.
    """
    path = Path(checkpoint)
    if model not in MODELS:
        raise UsageError(f"unknown SAM model {model!r}: expected one of {', '.join(MODELS)}")
    if not path.is_file():
        raise StoreError(f"{path}: no such SAM checkpoint (expected Meta's sam_{model}_*.pth)")
    try:
        state = load_pth(path)
    except WeightsError as error:
        raise StoreError(error) from error
    sam = sam_model_registry[model]()
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
    return sam.to(device).eval().requires_grad_(False)


class SamTeacher:
    """Segment Anything as a teacher: `teacher(image) -> TeacherEntry`.

    Args:
        sam: the network, e.g. from `load_sam`.
        name: how the entries call it, e.g. "sam vit_h".
        options: of the automatic mask generator.
    """

    def __init__(self, sam: Sam, name: str = "sam", options: MaskOptions | None = None) -> None:
        options = options or MaskOptions()
        self.name = name
        self._generator = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **asdict(options))
        self._embeddings: list[Tensor] = []
        # The generator drops the embedding when it is done. Listening to the encoder saves encoding a second time.
        sam.image_encoder.register_forward_hook(lambda _module, _inputs, output: self._embeddings.append(output))

    def __call__(self, image: np.ndarray) -> TeacherEntry:
        """What SAM says about a photograph, (H, W, 3) BGR uint8.

        Raises:
            SkipPhoto: the photograph takes more GPU memory than there is.
        """
        self._embeddings.clear()
        try:
            masks = self._generator.generate(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            # With crops the whole photograph is the first.
            embedding = self._embeddings[0][0].to(torch.float16).cpu().numpy()
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise SkipPhoto(f"{size} pixels take too much GPU memory: reduce --points-per-batch") from error
        finally:
            self._embeddings.clear()
        # One mask is decoded at a time: hundreds of full-size masks of a large photograph would be gigabytes.
        ordered = sorted(masks, key=lambda mask: -mask["area"])
        groups, edges = merge_masks((rle_to_mask(mask["segmentation"]) for mask in ordered), image.shape[:2])
        return TeacherEntry(groups[None], edges[None], embedding, self.name, (self.name,))


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
