"""What the losses share: precision, means that skip images, and sampling of dense maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_joint: ContextVar[bool] = ContextVar("joint_means", default=False)


def full_precision(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a loss so that it computes outside autocast, with half-precision arguments widened to float32.

    Distances and cosines of nearly equal vectors, exponentials and sums over millions of pairs do not survive
    eight bits of mantissa; the networks in front of them do. float64 arguments stay float64 (for gradient checks).
    """

    def widen(value: object) -> object:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value  # type: ignore[attr-defined]

    @functools.wraps(function)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        wide = [widen(value) for value in args]
        wide_kwargs = {name: widen(value) for name, value in kwargs.items()}
        device = next(value.device.type for value in (*wide, *wide_kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*wide, **wide_kwargs)  # type: ignore[arg-type]

    return wrapper


@contextmanager
def joint_means() -> Iterator[None]:
    """Within it, means over images count the images of all ranks, so that DDP's gradient is the joint batch's.

    DistributedDataParallel averages the gradients of the ranks. Where a loss skips images (no teacher output, no
    correspondence), the mean of the ranks' means is not the mean over all counted images; dividing by the mean
    count over ranks instead makes it so. Every rank must then evaluate the same losses in the same order.
    Without a process group it changes nothing.
    """
    token = _joint.set(True)
    try:
        yield
    finally:
        _joint.reset(token)


def mean_over_images(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of `values` (B,) over the images where `counted` (B,) is true; 0, with zero gradients, where none is."""
    total = torch.where(counted, values, torch.zeros_like(values)).sum()
    count = counted.sum().to(values.dtype)
    if _joint.get() and dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        # One image on one of two ranks: both ranks divide by 1/2, so no lower bound of 1 here.
        count = count / dist.get_world_size()
        return total / torch.where(count > 0, count, torch.ones_like(count))
    return total / count.clamp(min=1)


def image_mask(include: Tensor | None, reference: Tensor) -> Tensor:
    """`include` as (B,) bool on the device of `reference` (B, ...); all true where it is None."""
    batch = reference.shape[0]
    if include is None:
        return torch.ones(batch, dtype=torch.bool, device=reference.device)
    if include.shape != (batch,):
        raise ValueError(f"one flag per image expected, ({batch},), got {tuple(include.shape)}")
    return include.to(device=reference.device, dtype=torch.bool)


def pairwise_distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances (B, N, M) of rows of (B, N, D) and (B, M, D).

    Below 1e-3 the distance is constant: the root's gradient would be infinite at coinciding descriptors.
    """
    square = first.square().sum(-1)[:, :, None] + second.square().sum(-1)[:, None, :]
    square = torch.baddbmm(square, first, second.transpose(1, 2), alpha=-2.0)
    return square.clamp(min=1e-6).sqrt()


def sample_map(dense: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bilinear samples (B, N, C) of a dense map at pixel positions.

    Args:
        dense: (B, C, h, w) covering the whole image at any stride (half-pixel centres).
        points: (B, N, 2) x, y in pixels of the image, the centre of the top-left pixel at (0, 0); NaN reads as (0, 0).
        image_size: (height, width) of the image.

    Positions outside the image get the border's value.
    """
    height, width = image_size
    size = points.new_tensor((width, height))
    grid = (torch.nan_to_num(points) * 2 + 1) / size - 1
    samples = F.grid_sample(dense, grid[:, :, None].to(dense.dtype), "bilinear", "border", align_corners=False)
    return samples[..., 0].transpose(1, 2)


def sample_labels(labels: Tensor, points: Tensor) -> Tensor:
    """Labels (B, N) of the pixels of (B, H, W) that positions (B, N, 2) fall into; 0 outside and at NaN."""
    height, width = labels.shape[-2:]
    finite = points.isfinite().all(-1)
    x, y = torch.nan_to_num(points).round().long().unbind(-1)
    inside = finite & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    picked = labels.flatten(1).gather(1, index)
    return torch.where(inside, picked, torch.zeros_like(picked))
