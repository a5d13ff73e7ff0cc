"""From dense maps to keypoints and their descriptors, in torch operations that every engine can compile.

All functions are batched and keep static shapes: always exactly `count` keypoints, rows that are not
keypoints having score 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFINE_RADIUS = 2
PLATEAU = 1e-3  # logits that differ by less around a maximum are no peak


def local_maxima(score: Tensor, radius: int) -> Tensor:
    """(B, 1, H, W) bool: greatest within the (2 radius + 1) square."""
    return score == windowed_maximum(score, radius)


def windowed_maximum(score: Tensor, radius: int) -> Tensor:
    """(B, 1, H, W): the greatest score within the (2 radius + 1) square around each pixel.

    A maximum over shifted copies, rows then columns: many times faster than a pooling layer where pooling is
    not vectorised over a single channel (PyTorch and OpenVINO on a CPU), and equal to it everywhere.
    """
    highest = score
    for dim in (3, 2):
        length = score.shape[dim]
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded = F.pad(highest, pad, value=float("-inf"))
        highest = padded.narrow(dim, 0, length)
        for shift in range(1, 2 * radius + 1):
            highest = torch.maximum(highest, padded.narrow(dim, shift, length))
    return highest


def suppress(score: Tensor, radius: int, passes: int = 1) -> Tensor:
    """(B, 1, H, W) bool: pixels that survive non-maximum suppression within the (2 radius + 1) square.

    One pass keeps local maxima. A greedy suppression (best first) also keeps what only a suppressed pixel outshone:
    each further pass finds the maxima among pixels that no kept one suppresses, and enough of them end in the greedy
    result.
    """
    kept = local_maxima(score, radius)
    for _ in range(passes - 1):
        near = windowed_maximum(kept.to(score.dtype), radius) > 0
        kept = kept | (local_maxima(score.masked_fill(near, float("-inf")), radius) & ~near)
    return kept


def detect(score: Tensor, mask: Tensor | None, count: int, radius: int, passes: int = 1) -> tuple[Tensor, Tensor]:
    """The `count` best pixels of score logits (B, 1, H, W) that survive `suppress`.

    Args:
        mask: (B or 1, 1, H, W), 0 where no keypoint may be; None = anywhere.
    Returns:
        keypoints (B, count, 2) float32 whole pixels (x, y), scores (B, count) in [0, 1], descending.
    """
    width = score.shape[-1]
    allowed = suppress(score, radius, passes)
    if mask is not None:
        allowed = allowed & (mask.float() > 0)  # TensorRT takes bytes as nothing but the source of floats
    logits, index = score.masked_fill(~allowed, float("-inf")).flatten(1).topk(count, dim=1)
    y = torch.div(index, width, rounding_mode="trunc")
    return torch.stack((index - y * width, y), -1).to(score.dtype), torch.sigmoid(logits)


def refine(score: Tensor, keypoints: Tensor, radius: int = REFINE_RADIUS) -> tuple[Tensor, Tensor]:
    """Sub-pixel positions: expectation of the softmax of the logits around each whole pixel.

    The logits are trained as a distribution over positions, so that their expectation is the location.

    Returns:
        positions (B, K, 2), and (B, K) bool: a real peak, not a plateau (a featureless patch is one).
    """
    height, width = score.shape[-2:]
    span = torch.arange(-radius, radius + 1, device=score.device)
    dy, dx = (offset.flatten() for offset in torch.meshgrid(span, span, indexing="ij"))
    x = (keypoints[..., 0:1] + dx).clamp(0, width - 1).long()
    y = (keypoints[..., 1:2] + dy).clamp(0, height - 1).long()
    patch = score.flatten(1).gather(1, (y * width + x).flatten(1)).view(*keypoints.shape[:2], -1).float()
    probability = patch.softmax(-1)
    offset = torch.stack(((probability * dx).sum(-1), (probability * dy).sum(-1)), -1)
    return keypoints + offset, patch.amax(-1) - patch.amin(-1) > PLATEAU


def sample(maps: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bilinear samples (B, K, C) of maps (B, C, h, w) at pixel positions (B, K, 2) of the (width, height) image.

    The map covers the image edge to edge: pixel p of the image is (p + 0.5) * w / width - 0.5 of the map, whose border
    repeats. It takes whole rows of channels, as they lie in memory behind a convolution on a CPU: `grid_sample` would
    have the map rearranged first, which takes longer than sampling.
    """
    batch, channels, height, width = maps.shape
    x = ((points[..., 0] + 0.5) * (width / image_size[0]) - 0.5).clamp(0, width - 1)
    y = ((points[..., 1] + 0.5) * (height / image_size[1]) - 0.5).clamp(0, height - 1)
    left, top = x.detach().floor(), y.detach().floor()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    first = torch.arange(batch, device=maps.device)[:, None] * (height * width)

    def at(column: Tensor, line: Tensor) -> Tensor:
        index = first + line.long() * width + column.long()
        return rows.index_select(0, index.flatten()).view(batch, -1, channels)

    upper = at(left, top) * (1 - across) + at(right, top) * across
    lower = at(left, bottom) * (1 - across) + at(right, bottom) * across
    return (upper * (1 - down) + lower * down).to(maps.dtype)


class ExtractionGraph(nn.Module):
    """Network, detection and descriptor sampling as one graph, so that only K rows leave the device.

    forward(image (1, C, H, W) uint8, mask (1, 1, H, W) uint8) -> keypoints (K, 2), scores (K,),
    descriptors (K, D) unit rows, weights (K,), all float32.

    The network may answer in half precision; positions are never computed there, where they end at 0.5 px beyond 512.

    nms_passes, refined: see `samfeat_core.models.Detection`.
    """

    def __init__(
        self, network: nn.Module, max_keypoints: int, nms_radius: int, nms_passes: int = 1, refined: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.max_keypoints = max_keypoints
        self.nms_radius = nms_radius
        self.nms_passes = nms_passes
        self.refined = refined

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        height, width = image.shape[-2:]
        dense = self.network(image.float() / 255)
        score = dense.score.float()
        pixels, scores = detect(score, mask, self.max_keypoints, self.nms_radius, self.nms_passes)
        positions, peaked = refine(score, pixels)
        keypoints = positions if self.refined else pixels
        scores = scores.masked_fill(~peaked, 0.0)
        descriptors = dense.describe(keypoints, (width, height))
        if dense.weight is None:
            weights = torch.ones_like(scores)
        else:
            weights = sample(dense.weight.float(), keypoints, (width, height))[..., 0]
        return keypoints[0], scores[0], descriptors[0], weights[0]
