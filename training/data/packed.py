"""Tensors of several sizes in one, so that one operation looks at all of them: a GPU waits for each small one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class PackedImages:
    """B images (C, h, w) of one type, each of its own size.

    Attributes:
        pixels: (C, P) of all images, one after the other.
        sizes: (B, 2) int64, (width, height) of each.
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.pixels = torch.cat([image.flatten(1) for image in images], 1)
        sizes = torch.tensor([(image.shape[-1], image.shape[-2]) for image in images])
        first = sizes.prod(1).cumsum(0) - sizes.prod(1)
        self.sizes, self._first = sizes.to(self.pixels.device), first.to(self.pixels.device)

    def index(self, at: Tensor) -> Tensor:
        """(..., B, H, W) int64: which column of `pixels` is nearest to positions (..., B, H, W, 2), each in its image.

        Beyond the border, that is one of the outermost.
        """
        sizes = self.sizes[:, None, None]
        x, y = at.round().clamp_(min=0).minimum(sizes - 1.0).long().unbind(-1)
        return self._first[:, None, None] + y * sizes[..., 0] + x

    def read(self, index: Tensor) -> Tensor:
        """(C, ...) columns of `pixels`."""
        return self.pixels.gather(1, index.flatten().expand(len(self.pixels), -1)).unflatten(1, index.shape)


def padded(rows: Sequence[Tensor], value: float, count: int | None = None) -> Tensor:
    """(B, count, ...) of B tensors (n, ...): cut after `count` rows, or with the value in those that are missing.

    None: as many rows as the longest has.
    """
    joined = pad_sequence([some[:count] for some in rows], batch_first=True, padding_value=value)
    missing = 0 if count is None else count - joined.shape[1]
    return F.pad(joined, (0, 0) * (joined.dim() - 2) + (0, missing), value=value)
