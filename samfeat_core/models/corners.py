"""Corners by the structure tensor (Shi and Tomasi 1994), as a fixed layer that compiles to fast code.

Convolutions of one channel at full resolution are slow on every engine. All steps are local, so they run in polyphase
form: four channels at half resolution, one for each pixel of a 2x2 block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVIATION = 0.8  # pixels, of the derivative's and of the window's Gaussian
RADIUS = 2  # of both, in pixels
SHARPNESS = 2.0  # logit = SHARPNESS * log(eigenvalue / USUAL)
USUAL = 0.01  # eigenvalue worth a probability of one half, for grey values of unit deviation
FLOOR = 1e-4  # eigenvalues below it are noise


class Corners(nn.Module):
    """Images (B, 1, H, W) of unit deviation -> corner logits (B, 4, H/2, W/2), to be pixel-shuffled; H, W even."""

    along_x: Tensor
    along_y: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        span = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32)
        smooth = torch.exp(-(span**2) / (2 * DEVIATION**2))
        smooth /= smooth.sum()
        slope = smooth * span / (smooth * span**2).sum()
        along_x, along_y = smooth[:, None] * slope, slope[:, None] * smooth
        self.register_buffer("along_x", into_blocks(along_x), persistent=False)
        self.register_buffer("along_y", into_blocks(along_y), persistent=False)
        self.register_buffer("window", on_blocks(smooth[:, None] * smooth), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        # On an edge the smaller eigenvalue is a small difference of large numbers: never in half precision.
        with torch.autocast(image.device.type, enabled=False):
            padded = F.pad(image.float(), (RADIUS,) * 4, mode="replicate")
            dx, dy = (F.conv2d(padded, kernel, stride=2) for kernel in (self.along_x, self.along_y))
            xx, yy, xy = (F.conv2d(product, self.window, padding=1) for product in (dx * dx, dy * dy, dx * dy))
            eigenvalue = (xx + yy - torch.sqrt((xx - yy).square() + 4 * xy.square())) / 2
            return SHARPNESS * torch.log((eigenvalue.clamp(min=0) + FLOOR) / USUAL)


def into_blocks(kernel: Tensor) -> Tensor:
    """(5, 5) kernel -> (4, 1, 6, 6), of stride 2: the same correlation, its output in blocks of 2x2 pixels."""
    size = len(kernel)
    weight = torch.zeros(4, 1, size + 1, size + 1)
    for y in (0, 1):
        for x in (0, 1):
            weight[2 * y + x, 0, y : y + size, x : x + size] = kernel
    return weight


def on_blocks(kernel: Tensor) -> Tensor:
    """(5, 5) kernel -> (4, 4, 3, 3): the same correlation from blocks of 2x2 pixels to such blocks."""
    weight = torch.zeros(4, 4, 3, 3)
    for y in (0, 1):
        for x in (0, 1):
            for v in range(len(kernel)):
                for u in range(len(kernel)):
                    row, column = y + v - RADIUS, x + u - RADIUS
                    source = 2 * (row % 2) + column % 2
                    weight[2 * y + x, source, row // 2 + 1, column // 2 + 1] = kernel[v, u]
    return weight
