"""samfeat-nano: the student for a CPU or the smallest Jetson.

Nearly all the time of a feature network goes into its full- and half-resolution convolutions, so the
first layer strides, half resolution has a few thin 3x3 convolutions, and capacity sits where pixels are few
(1/8 to 1/32). Scores come back to full resolution by pixel shuffle: each half-resolution position
decides about its own four pixels, so no full-resolution convolution is needed to localise to a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfeat_core.models import MODELS, DenseFeatures

DISTILL_DIM = 256  # channels of the SAM image embedding
STRENGTH = (0.9, 0.3)  # the last coordinate of a descriptor is e^0.9 odds(score)^0.3 before normalisation
NOISE_FLOOR = 0.02  # standard deviation (image in [0, 1]) below which contrast is not stretched further


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the norm folds into the convolution at inference."""
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """3x3 convolutions to `outputs` channels, around each but the first a shortcut."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs)
        self.rest = nn.ModuleList(conv(outputs, outputs) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.rest:
            x = x + layer(x)
        return x


def upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class SamfeatNano(nn.Module):
    """Grey (B, 1, H, W) in [0, 1] -> `DenseFeatures`; H and W multiples of 32, 64-d descriptors at 1/4.

    Args:
        widths: channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution.
        score_width: channels of the score branch at half resolution.
    """

    spec = MODELS["samfeat-nano"]
    optional_tensors = ("distill.",)  # of use in training only

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128), score_width: int = 16) -> None:
        super().__init__()
        w2, w4, w8, w16, w32 = widths
        dim = self.spec.descriptor_dim
        self.stage2 = nn.Sequential(conv(1, w2, kernel=4, stride=2), conv(w2, w2))
        self.stage4 = Residual(w2, w4, 2)
        self.stage8 = Residual(w4, w8, 2)
        self.stage16 = Residual(w8, w16, 2)
        self.stage32 = Residual(w16, w32, 2)

        self.lateral4 = nn.Conv2d(w4, dim, 1)
        self.lateral8 = nn.Conv2d(w8, dim, 1)
        self.lateral16 = nn.Conv2d(w16, dim, 1)
        self.lateral32 = nn.Conv2d(w32, dim, 1)
        self.context = conv(dim, dim)
        self.describe = nn.Linear(dim, dim - 1)
        nn.init.orthogonal_(self.describe.weight)  # a direction that begins with hardly any gain is never learned

        self.edge = nn.Conv2d(w4, 1, 1)
        self.score2 = nn.Conv2d(w2, score_width, 1)
        self.score4 = nn.Conv2d(w4, score_width, 1)
        self.score8 = nn.Conv2d(dim, score_width, 1)
        self.score = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(score_width, score_width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(score_width, score_width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(score_width, 4, 3, padding=1),
        )
        self.distill = nn.Conv2d(dim, DISTILL_DIM, 1)

    def forward(self, image: Tensor) -> DenseFeatures:
        image = normalize_contrast(image)
        f2 = self.stage2(image)
        f4 = self.stage4(F.avg_pool2d(f2, 2))
        f8 = self.stage8(F.avg_pool2d(f4, 2))
        f16 = self.stage16(F.avg_pool2d(f8, 2))
        f32 = self.stage32(F.avg_pool2d(f16, 2))

        coarse = self.lateral16(f16) + upsample(self.lateral32(f32), 2)
        context = self.context(self.lateral8(f8) + upsample(coarse, 2))
        descriptors = F.relu(self.lateral4(f4) + upsample(context, 2))

        edge = self.edge(f4)
        guided = f4 * (1 + torch.sigmoid(edge))  # edge guidance of detection, as SAMFeat's c3'
        score = self.score(self.score2(f2) + upsample(self.score4(guided) + upsample(self.score8(context), 2), 2))
        score = F.pixel_shuffle(score, 2)
        if self.training:
            return DenseFeatures(score, descriptors, None, edge, self.distill(context), self.describe, STRENGTH)
        return DenseFeatures(score, descriptors, project=self.describe, strength=STRENGTH)


def normalize_contrast(image: Tensor) -> Tensor:
    """Zero mean and unit deviation per image, so that exposure and gain cancel; noise is not blown up."""
    image = image.float()
    mean = image.mean((1, 2, 3), keepdim=True)
    variance = (image - mean).square().mean((1, 2, 3), keepdim=True)
    return (image - mean) * torch.rsqrt(variance + NOISE_FLOOR**2)
