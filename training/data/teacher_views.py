"""What a teacher said about a photograph, seen from views of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.geometry import sampling_grid

CELL = 8  # pixels of a view to one position of the embedding, each way


def label_maps(groups: Tensor, edges: Tensor, size: tuple[int, int], at: Tensor) -> tuple[Tensor, Tensor]:
    """(V, H, W) int64 groups and (V, H, W) float32 edges at the pixels of V views, of one annotator drawn anew.

    Args:
        groups, edges: (K, h, w) of K annotators.
        size: (width, height) of the photograph.
        at: (V, H, W, 2) photograph's pixels of the views' pixels. Beyond its border, what is nearest.
    """
    annotator = int(torch.randint(len(groups), ()))
    sides = groups.shape[2], groups.shape[1]  # of the photograph as the teacher saw it
    x, y = (
        ((at[..., axis] + 0.5) * sides[axis] / size[axis]).floor().clamp(0, sides[axis] - 1).long() for axis in (0, 1)
    )
    return groups[annotator, y, x].long(), edges[annotator, y, x].float()


def embedding_views(embedding: Tensor, size: tuple[int, int], at: Tensor, inside: Tensor) -> Tensor:
    """(V, 256, H/8, W/8): the teacher's embedding (256, 64, 64) in V views; SAM pads photographs to squares, top left.

    Args:
        size: (width, height) of the photograph.
        at: (V, H, W, 2) photograph's pixels of the views' pixels.
        inside: (V, H, W) bool, pixels on the photograph. Where a cell is not wholly so, the answer is 0.
    """
    cells = F.avg_pool2d(at.permute(0, 3, 1, 2), CELL).permute(0, 2, 3, 1)  # centres
    scale = embedding.shape[-1] / max(size)
    grid = sampling_grid((cells + 0.5) * scale - 0.5, (embedding.shape[-1], embedding.shape[-2]))
    repeated = embedding.float()[None].expand(len(at), -1, -1, -1)
    sampled = F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
    return sampled * (F.avg_pool2d(inside[:, None].float(), CELL) == 1)
