"""Stage 1, descriptors: the expected match must lie on the epipolar line (SCFeat, section III-E).

Points are pixels (x, y), images (width, height); maps cover their image edge to edge with half-pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samfeat_core.detection import sample
from samfeat_core.two_view import epipolar_distance, to_homogeneous


@dataclass(frozen=True)
class DescriptorConfig:
    """Numbers of the descriptor stage.

    Attributes:
        grid: one query point is drawn in every cell of this many pixels.
        temperature: factor on cosine similarities before the softmax.
        line_steps: samples along the epipolar line, inside the image.
        line_best: the window lies around the best sample of the line, as the authors have it (`use_nn`); False takes
            the expectation over all samples, which between two likely places is neither.
        window: width and height of the window around the place found on the line, as a share of the image.
        jitter: the window's centre is moved by up to this share of the window's size, at random. Without, a flat match
            distribution would put its expectation on the line for free.
        mask: matches further from the line than this share of the shorter side are outliers and not counted.
        weighted: weigh every point by the inverse standard deviation of its match distribution.
        photometric: magnitude of the random photometric change.
    """

    grid: int = 16
    temperature: float = 60.0
    line_steps: int = 100
    line_best: bool = True
    window: float = 0.1
    jitter: float = 0.35
    mask: float = 0.1
    weighted: bool = True
    photometric: float = 1.0


def grid_points(batch: int, size: tuple[int, int], cell: int, device: torch.device | str = "cpu") -> Tensor:
    """(B, N, 2) float32: one whole pixel drawn at random in every cell x cell square of the (width, height) image."""
    columns, rows = size[0] // cell, size[1] // cell
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    corner = torch.stack((x, y), -1).reshape(1, -1, 2) * cell
    return (corner + torch.randint(cell, (batch, rows * columns, 2), device=device)).float()


def sample_descriptors(maps: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Unit descriptors (B, ..., C) of maps (B, C, h, w) at points (B, ..., 2) of the (width, height) image."""
    rows = sample(maps, points.flatten(1, -2), size)
    return F.normalize(rows.float(), dim=-1).unflatten(1, points.shape[1:-1])


def clip_lines(lines: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The part of every line inside the image.

    Args:
        lines: (..., 3) with a x + b y + c = 0 in pixels.

    Returns:
        ends (..., 2, 2), and (...) bool: more than a point of the line is inside. Where False, the ends are arbitrary.
    """
    norm = lines[..., :2].norm(dim=-1, keepdim=True)
    is_line = norm[..., 0] > 1e-12
    a, b, c = (lines / torch.where(is_line[..., None], norm, torch.ones_like(norm))).unbind(-1)
    limit = lines.new_tensor([size[0] - 1, size[1] - 1])
    # From the point nearest to the image's centre both ways along the line.
    offset = a * limit[0] / 2 + b * limit[1] / 2 + c
    foot = limit / 2 - offset[..., None] * torch.stack((a, b), -1)
    direction = torch.stack((-b, a), -1)
    parallel = direction.abs() < 1e-9
    step = torch.where(parallel, torch.ones_like(direction), direction)
    near, far = -foot / step, (limit - foot) / step
    outside = ((foot < 0) | (foot > limit)) & parallel
    low = torch.where(parallel, -torch.inf, torch.minimum(near, far)).amax(-1)
    high = torch.where(parallel, torch.inf, torch.maximum(near, far)).amin(-1)
    valid = is_line & (high > low) & ~outside.any(-1) & torch.isfinite(low) & torch.isfinite(high)
    low, high = (torch.where(valid, t, torch.zeros_like(t)) for t in (low, high))
    ends = foot[..., None, :] + torch.stack((low, high), -1)[..., None] * direction[..., None, :]
    return ends, valid


def expected_match(
    descriptors: Tensor, maps: Tensor, places: Tensor, size: tuple[int, int], temperature: float
) -> tuple[Tensor, Tensor]:
    """Mean (B, N, 2) and standard deviation (B, N), summed over x and y, of the match distribution over places.

    The distribution is the softmax of temperature times cosine similarity. Places outside the image have no share.

    Args:
        descriptors: (B, N, C) unit rows of the query points.
        maps: (B, C, h, w) of the other image.
        places: (B, N, K, 2) pixels of the other image.
    """
    candidates = sample_descriptors(maps, places, size)
    similarity = temperature * torch.einsum("bnc,bnkc->bnk", descriptors, candidates)
    inside = ((places >= 0) & (places <= places.new_tensor([size[0] - 1, size[1] - 1]))).all(-1)
    share = similarity.masked_fill(~inside, -1e4).softmax(-1).unsqueeze(-1)
    mean = (share * places).sum(2)
    variance = (share * (places - mean.unsqueeze(2)).square()).sum(2)
    return mean, variance.clamp(min=1e-10).sqrt().sum(-1)


@torch.no_grad()
def search_line(
    descriptors: Tensor,
    maps: Tensor,
    lines: Tensor,
    size: tuple[int, int],
    steps: int,
    temperature: float,
    best: bool = True,
) -> tuple[Tensor, Tensor]:
    """Place (B, N, 2) of the match among evenly spaced samples of its line (B, N, 3), and (B, N) bool: the line crosses
    the image. The place is that of the best sample, or the expectation over all."""
    ends, valid = clip_lines(lines, size)
    share = torch.linspace(0, 1, steps, device=lines.device)[:, None]
    places = ends[..., :1, :] + share * (ends[..., 1:, :] - ends[..., :1, :])
    if not best:
        return expected_match(descriptors, maps, places, size, temperature)[0], valid
    similarity = torch.einsum("bnc,bnkc->bnk", descriptors, sample_descriptors(maps, places, size))
    chosen = similarity.argmax(-1)[..., None, None].expand(-1, -1, 1, 2)
    return places.gather(2, chosen)[:, :, 0], valid


def window_places(centres: Tensor, size: tuple[int, int], map_size: tuple[int, int], window: float) -> Tensor:
    """(B, N, K, 2) pixels: a grid around every centre, of `window` times the image's size, as fine as the map."""
    counts = [max(2, int(window * cells)) for cells in map_size]
    x, y = (
        torch.linspace(-0.5, 0.5, count, device=centres.device) * window * side
        for count, side in zip(counts, size, strict=True)
    )
    offsets = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    return centres.unsqueeze(2) + offsets


def epipolar_loss(
    maps0: Tensor, maps1: Tensor, points0: Tensor, fundamental: Tensor, size: tuple[int, int], config: DescriptorConfig
) -> tuple[Tensor, Tensor]:
    """Weighted mean distance in pixels of expected matches to their epipolar lines, from image 0 to image 1.

    Args:
        maps0, maps1: (B, C, h, w) descriptor maps.
        points0: (B, N, 2) query points in image 0.
        fundamental: (B, 3, 3) with x1^T F x0 = 0.
        size: (width, height) of both images.

    Returns:
        the loss, and the share of points that are counted.
    """
    descriptors = sample_descriptors(maps0, points0, size)
    lines = to_homogeneous(points0) @ fundamental.transpose(-1, -2)
    search = config.line_steps, config.temperature, config.line_best
    found, valid = search_line(descriptors, maps1, lines, size, *search)
    extent = found.new_tensor(size) * config.window
    centres = found + (2 * torch.rand_like(found) - 1) * config.jitter * extent
    valid = valid & ((centres >= 0) & (centres <= found.new_tensor(size) - 1)).all(-1)
    places = window_places(centres, size, (maps1.shape[-1], maps1.shape[-2]), config.window)
    match, deviation = expected_match(descriptors, maps1, places, size, config.temperature)
    distance = epipolar_distance(points0, match, fundamental)
    counted = valid & (distance < config.mask * min(size))
    weight = (1 / deviation.detach() if config.weighted else torch.ones_like(deviation)) * counted
    distance = torch.where(counted, distance, torch.zeros_like(distance))
    return (weight * distance).sum() / weight.sum().clamp(min=1e-8), counted.float().mean()
