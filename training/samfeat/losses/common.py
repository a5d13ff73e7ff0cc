"""Helpers of several losses: full precision under autocast, means that skip images, pairwise distances."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
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
