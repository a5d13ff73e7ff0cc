"""What a teacher said about photographs, seen from views of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.geometry import sampling_grid
from training.data.packed import PackedImages

CELL = 8  # pixels of a view to one position of the embedding, each way
EMBEDDING = 256, 64, 64  # shape of a photograph's


def label_maps(maps: Sequence[tuple[Tensor, Tensor] | None], sizes: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """(V, B, H, W) int64 groups and float32 edges at the pixels of V views of B photographs.

    Args:
        maps: of each photograph the groups and edges (K, h, w) of K annotators, of whom one is drawn anew; or None,
            which gives zeros.
        sizes: (B, 2) (width, height) of the photographs.
        at: (V, B, H, W, 2) photograph's pixels of the views' pixels. Beyond its border, what is nearest.
    """
    nothing = torch.zeros(1, 1, 1, dtype=torch.int16, device=at.device)
    chosen = [(nothing, nothing > 0) if one is None else _of_one_annotator(*one) for one in maps]
    groups, edges = (PackedImages(part) for part in zip(*chosen))
    scale = groups.sizes / sizes  # of the photograph as the teacher saw it
    index = groups.index((at + 0.5) * scale[:, None, None] - 0.5)
    return groups.read(index)[0].long(), edges.read(index)[0].float()


def _of_one_annotator(groups: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    annotator = int(torch.randint(len(groups), ()))
    return groups[annotator, None], edges[annotator, None]


def embedding_views(embeddings: Tensor, sizes: Tensor, at: Tensor, inside: Tensor) -> Tensor:
    """(V, B, 256, H/8, W/8): the teacher's embeddings (B, 256, 64, 64) in V views of B photographs.

    SAM pads photographs to squares, at the right and below.

    Args:
        sizes: (B, 2) (width, height) of the photographs.
        at: (V, B, H, W, 2) photograph's pixels of the views' pixels.
        inside: (V, B, H, W) bool, pixels on the photograph. Where a cell is not wholly so, the answer is 0.
    """
    views, side = len(at), embeddings.shape[-1]
    cells = F.avg_pool2d(at.flatten(0, 1).movedim(-1, 1), CELL).movedim(1, -1).unflatten(0, (views, -1))  # centres
    scale = side / sizes.amax(1)
    grid = sampling_grid((cells + 0.5) * scale[:, None, None, None] - 0.5, (side, side))
    below_each_other = grid.movedim(0, 1).flatten(1, 2)  # (B, V * H/8, W/8, 2): an embedding is read once
    sampled = F.grid_sample(embeddings.float(), below_each_other, padding_mode="reflection", align_corners=False)
    sampled = sampled.unflatten(2, (views, -1)).movedim(2, 0)
    whole = F.avg_pool2d(inside.flatten(0, 1)[:, None].float(), CELL) == 1
    return sampled * whole.unflatten(0, (views, -1))
