"""A batch of training pairs, as every source of them makes it: two views, and where each pixel is in the other view."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class PairBatch:
    """A batch of image pairs on the training device, with dense true correspondence.

    Attributes:
        image0, image1: (B, C, H, W) float32 in [0, 1].
        warp01, warp10: (B, H, W, 2) float32; the pixel position (x, y) in the other image of every pixel
            centre, NaN where it has no true counterpart (outside, occluded, depth unknown).
        has_teacher0, has_teacher1: (B,) bool, that image has teacher output.
        groups0, groups1: (B, H, W) int64 semantic groups, 0 = in no group; None where no image has any.
        edges0, edges1: (B, 1, H, W) float32 teacher's edge map in {0, 1}, NaN off the photograph; None likewise.
        embedding0, embedding1: (B, 256, H/8, W/8) float32 teacher's embedding in the frame of the image, 0 off the
            photograph; None likewise.
        keypoints0, keypoints1: (B, 1, H, W) float32 pseudo-labelled keypoints in {0, 1}, NaN where unknown; None where
            unlabelled.
        reference0, reference1: (B, N, 2) float32 keypoints of another extractor, whose features are to be imitated, in
            either image. Row i of both is the same point; NaN where an image does not show it. None where none has any.
        reference_logits: (B, N) float32 log-odds of the scores that it gives to them.
        reference_descriptors: (B, N, E) float32 its descriptors, unit rows.
    """

    image0: Tensor
    image1: Tensor
    warp01: Tensor
    warp10: Tensor
    has_teacher0: Tensor
    has_teacher1: Tensor
    groups0: Tensor | None = None
    groups1: Tensor | None = None
    edges0: Tensor | None = None
    edges1: Tensor | None = None
    embedding0: Tensor | None = None
    embedding1: Tensor | None = None
    keypoints0: Tensor | None = None
    keypoints1: Tensor | None = None
    reference0: Tensor | None = None
    reference1: Tensor | None = None
    reference_logits: Tensor | None = None
    reference_descriptors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image0)

    @property
    def valid01(self) -> Tensor:
        """(B, 1, H, W) bool: pixels of image0 that have a counterpart in image1."""
        return torch.isfinite(self.warp01).all(-1).unsqueeze(1)

    @property
    def valid10(self) -> Tensor:
        """(B, 1, H, W) bool: pixels of image1 that have a counterpart in image0."""
        return torch.isfinite(self.warp10).all(-1).unsqueeze(1)

    def both(self, name: str) -> Tensor | None:
        """(2 B, ...) the part `name`0 of the first images, then `name`1 of the second ones; None where none has any."""
        parts = getattr(self, f"{name}0"), getattr(self, f"{name}1")
        return None if parts[0] is None else torch.cat(parts)

    def to(self, device: torch.device | str) -> PairBatch:
        values = (getattr(self, f.name) for f in fields(self))
        moved = [None if value is None else value.to(device, non_blocking=True) for value in values]
        return PairBatch(*moved)  # type: ignore[arg-type]


def concatenate(batches: list[PairBatch]) -> PairBatch:
    """One batch of several. Maps that only some have are NaN for the others (`UNKNOWN`) or 0."""
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Tensor | None] = {}
    for f in fields(PairBatch):
        parts = [getattr(batch, f.name) for batch in batches]
        like = next((part for part in parts if part is not None), None)
        if like is None:
            joined[f.name] = None
            continue
        joined[f.name] = torch.cat(
            [_missing(f.name, like, len(b)) if part is None else part for b, part in zip(batches, parts)]
        )
    return PairBatch(**joined)  # type: ignore[arg-type]


# Where an image has none of these, they are NaN: 0 would say that there are no keypoints.
UNKNOWN = ("keypoints0", "keypoints1", "reference0", "reference1")


def _missing(name: str, like: Tensor, count: int) -> Tensor:
    return like.new_full((count, *like.shape[1:]), float("nan") if name in UNKNOWN else 0)


def pixel_grid(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(H, W, 2) float32 pixel centres (x, y)."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack((x, y), -1)


def keypoint_map(points: Tensor, size: tuple[int, int], scores: Tensor | None = None) -> Tensor:
    """The label map (B, 1, H, W) float32 of keypoints: 1 (or the score) at the pixel nearest to each point.

    Args:
        points: (B, N, 2) x, y in pixels; rows that are NaN (padding) or outside the image are left out.
        size: (H, W).
        scores: (B, N) values, at least 0, for soft labels; the greatest wins where several fall on one pixel.
    """
    height, width = size
    finite = points.isfinite().all(-1)
    x, y = torch.nan_to_num(points).round().long().unbind(-1)
    inside = finite & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # One spare cell at the end takes the rows left out: no boolean indexing, so no wait for the device.
    index = torch.where(inside, y * width + x, height * width)
    values = torch.ones_like(index, dtype=torch.float32) if scores is None else scores.float()
    flat = torch.zeros(len(points), height * width + 1, device=points.device)
    flat = flat.scatter_reduce(1, index, values, "amax")
    return flat[:, :-1].reshape(-1, 1, height, width)
