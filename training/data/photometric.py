"""Photometric change between two views, batched on the training device.

Written as a handful of whole-batch tensor operations: kornia's augmentations of the same kinds took twenty
times as long on a CPU, where they would have been most of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_SIZE = 9
JPEG_BLOCK = 8


class Photometric:
    """Exposure, contrast, gamma, shadows, blur, motion blur, noise and JPEG, each image on its own.

    Args:
        magnitude: scales all ranges; 0 leaves images as they are.
        channels: what the network takes; colour images become grey for 1.
    """

    def __init__(self, magnitude: float = 1.0, channels: int = 3) -> None:
        if magnitude < 0:
            raise ValueError(f"photometric magnitude is {magnitude}, expected >= 0")
        self.magnitude, self.channels = magnitude, channels

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same, changed; C = 1 if that is what the network takes."""
        if images.shape[1] > self.channels:
            images = grey(images, self.magnitude)
        if self.magnitude == 0:
            return images
        images = self._apply(shadow, images, 0.4)
        images = tone(images, self.magnitude)
        images = self._apply(blur, images, 0.35)
        images = self._apply(noise, images, 0.6)
        images = self._apply(blotches, images, 0.6)
        return self._apply(jpeg, images, 0.3).clamp(0, 1)

    def _apply(self, change: Callable[[Tensor, float], Tensor], images: Tensor, probability: float) -> Tensor:
        chosen = (torch.rand(len(images)) < probability).nonzero()[:, 0]
        if len(chosen):
            chosen = chosen.to(images.device)
            images = images.index_copy(0, chosen, change(images[chosen], self.magnitude))
        return images


def _uniform(images: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """(B, channels, 1, 1) random factors."""
    return torch.rand(len(images), channels, 1, 1, device=images.device) * (high - low) + low


def tone(images: Tensor, magnitude: float) -> Tensor:
    """Gamma, then gain and offset around the mean; channels drift apart a little (white balance)."""
    gamma = torch.exp(_uniform(images, -1, 1) * 0.8 * magnitude)
    gain = torch.exp(_uniform(images, -1, 1) * 0.6 * magnitude + _uniform(images, -0.05, 0.05, images.shape[1]))
    offset = _uniform(images, -0.15, 0.15) * magnitude
    images = images.clamp(min=1e-4) ** gamma
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * gain + mean + offset).clamp(0, 1)


def grey(images: Tensor, magnitude: float) -> Tensor:
    """(B, 3, H, W) RGB -> (B, 1, H, W): between luminance and a random mixture of the channels.

    To a camera without colour, leaves and sky change places with the season, the hour and the sensor; so they do here.
    """
    luminance = torch.tensor([0.299, 0.587, 0.114])
    mixture = -torch.log(torch.rand(len(images), 3).clamp(min=1e-6))
    mixture = mixture / mixture.sum(1, keepdim=True)  # uniform over all convex combinations
    mixture = torch.lerp(luminance, mixture, torch.rand(len(images), 1) * min(magnitude, 1.0))
    return (images * mixture[..., None, None].to(images.device)).sum(1, keepdim=True)


def shadow(images: Tensor, magnitude: float) -> Tensor:
    """Darken a random smooth region, with a border that is at times sharp."""
    count, height, width = len(images), *images.shape[-2:]
    coarse = torch.randn(count, 1, 4, 5, device=images.device)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    sharpness = torch.exp(_uniform(images, 0, 4))
    return images * (1 - torch.sigmoid(field * sharpness) * _uniform(images, 0.2, 0.7) * min(magnitude, 1.0))


def blur(images: Tensor, magnitude: float) -> Tensor:
    """Gaussian blur, or motion blur along a random direction: one random kernel per image."""
    span = torch.arange(BLUR_SIZE, dtype=torch.float32, device=images.device) - BLUR_SIZE // 2
    y, x = torch.meshgrid(span, span, indexing="ij")
    angle = _uniform(images, 0, math.pi)[:, 0]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    minor = 0.4 + _uniform(images, 0, 0.8)[:, 0] * magnitude
    moving = _uniform(images, 0, 1)[:, 0] < 0.5
    major = minor + moving * _uniform(images, 0, 2)[:, 0] * magnitude
    kernels = torch.exp(-0.5 * ((along / major) ** 2 + (across / minor) ** 2))
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    planes = images.transpose(0, 1)  # images as channels, so that each has its own kernel
    padded = F.pad(planes, (BLUR_SIZE // 2,) * 4, mode="replicate")
    return F.conv2d(padded, kernels[:, None], groups=len(images)).transpose(0, 1)


def noise(images: Tensor, magnitude: float) -> Tensor:
    """Sensor noise, growing with brightness."""
    deviation = _uniform(images, 0.003, 0.05) * magnitude
    return images + torch.randn_like(images) * deviation * (0.5 + images)


def blotches(images: Tensor, magnitude: float) -> Tensor:
    """Faint random texture a few pixels wide: reflections, dust, what a codec leaves.

    It makes texture of low contrast, which another photograph of the place would not show, useless as a keypoint.
    """
    count, height, width = len(images), *images.shape[-2:]
    size = int(torch.randint(2, 7, ()))
    coarse = torch.randn(count, 1, height // size + 1, width // size + 1, device=images.device)
    texture = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return images + texture * _uniform(images, 0.0, 0.06) * magnitude


def jpeg(images: Tensor, magnitude: float) -> Tensor:
    """Quantise 8x8 DCT blocks, coarser at high frequencies, as JPEG does."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % JPEG_BLOCK, 0, -height % JPEG_BLOCK), mode="replicate")
    index = torch.arange(JPEG_BLOCK, dtype=torch.float32, device=images.device)
    basis = torch.cos((2 * index[None] + 1) * index[:, None] * math.pi / (2 * JPEG_BLOCK)) * math.sqrt(2 / JPEG_BLOCK)
    basis[0] /= math.sqrt(2)
    blocks = padded.unflatten(-1, (-1, JPEG_BLOCK)).unflatten(-3, (-1, JPEG_BLOCK)).transpose(-3, -2)
    step = (1 + index[:, None] + index[None]) * 4 / 255
    step = step * _uniform(images, 0.5, 3.0)[..., None, None] * magnitude
    coefficients = basis @ blocks @ basis.T
    blocks = basis.T @ ((coefficients / step).round() * step) @ basis
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)[..., :height, :width]
