"""L_dis: attention-weighted semantic relation distillation (SAMFeat, arXiv 2309.16992, section 3).

With f_i the student's feature and t_i the teacher's at position i of the student's map, a_i >= 0 the attention there,

    S_ij = cos(f_i, f_j),   T_ij = cos(t_i, t_j),   L_dis = sum_ij a_i a_j |S_ij - T_ij| / (sum_i a_i)^2

Scaling the *features* by the attention, as the authors' code does, cancels in the cosine; here it weighs the
differences. The attention is taken as given (no gradient): otherwise the network could lower the loss by attending to
whatever the student already imitates, while attention is to learn from L_des what can be matched.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision, image_mask, mean_over_images


def relation_distillation(
    student: Tensor,
    *,
    embedding: Tensor | None = None,
    groups: Tensor | None = None,
    attention: Tensor | None = None,
    has_teacher: Tensor | None = None,
    positions: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """L_dis, a scalar: the mean of `relation_differences` over the images that count (0 where none does)."""
    return mean_over_images(
        *relation_differences(
            student,
            embedding=embedding,
            groups=groups,
            attention=attention,
            has_teacher=has_teacher,
            positions=positions,
            generator=generator,
        )
    )


def mixed_relation_distillation(
    student: Tensor,
    embedding: Tensor,
    groups: Tensor,
    *,
    attention: Tensor | None,
    has_teacher: Tensor,
    positions: int | None = None,
) -> Tensor:
    """L_dis of images of which some have the teacher's embedding and some only groups: one mean over all of them.

    An image has an embedding unless that is 0 throughout. Arguments as of `relation_differences`.
    """
    embedded = has_teacher & (embedding != 0).flatten(1).any(1)
    by_embedding, first = relation_differences(
        student, embedding=embedding, attention=attention, has_teacher=embedded, positions=positions
    )
    by_groups, second = relation_differences(
        student, groups=groups, attention=attention, has_teacher=has_teacher & ~embedded, positions=positions
    )
    return mean_over_images(torch.where(first, by_embedding, by_groups), first | second)


@full_precision
def relation_differences(
    student: Tensor,
    *,
    embedding: Tensor | None = None,
    groups: Tensor | None = None,
    attention: Tensor | None = None,
    has_teacher: Tensor | None = None,
    positions: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """L_dis of each image (B,), and which images count (B,) bool: those with teacher output and any attention.

    Args:
        student: (B, C, h, w), the distillation feature (`DenseFeatures.distill`), usually at stride 8.
        embedding: (B, E, h', w'), the teacher's embedding over the same image area; resized to h x w. Positions where
            it is 0 throughout lie off the photograph and do not count.
        groups: (B, H, W) integer group ids, 0 = no group: relations come from membership (`group_relation`), for a
            teacher without embedding. Exactly one of `embedding` and `groups` is to be given.
        attention: (B, 1, ha, wa) non-negative weights (`DenseFeatures.weight`), resized to h x w; None weighs equally.
        has_teacher: (B,) bool; None = all images.
        positions: compare this many positions, drawn anew at each call, instead of all h * w. A 400 x 400 crop has
            2,500 at stride 8: 25 MB for each of the few N x N float32 matrices per image, 1,024 positions a sixth.
        generator: source of that draw, on the student's device.

    Raises:
        ValueError: not exactly one of `embedding` and `groups`.
    """
    if (embedding is None) == (groups is None):
        raise ValueError("relation distillation takes either the teacher's embedding or groups, exactly one of them")
    batch, _, height, width = student.shape
    feature = student.flatten(2)
    count = height * width
    chosen = torch.arange(count, device=student.device)
    if positions is not None and positions < count:
        chosen = torch.randperm(count, generator=generator, device=student.device)[:positions]
        feature = feature[..., chosen]

    if embedding is not None:
        resized = F.interpolate(embedding.to(feature.dtype), (height, width), mode="bilinear", align_corners=False)
        teacher = _cosines(resized.flatten(2)[..., chosen])
        known = (resized != 0).any(1).flatten(1)[:, chosen]
    else:
        assert groups is not None
        teacher, known = group_relation(groups, (height, width), chosen)
        teacher = teacher.to(feature.dtype)

    weight = known.to(feature.dtype)
    if attention is not None:
        resized = F.interpolate(
            attention.detach().to(feature.dtype), (height, width), mode="bilinear", align_corners=False
        )
        weight = weight * resized.flatten(1)[:, chosen].clamp(min=0)
    difference = (_cosines(feature) - teacher).abs()
    weighted = torch.einsum("bi,bij,bj->b", weight, difference, weight)
    total = weight.sum(1).square()
    counted = image_mask(has_teacher, student) & (total > 0)
    return weighted / torch.where(counted, total, torch.ones_like(total)), counted


def group_relation(groups: Tensor, size: tuple[int, int], chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The relation matrix of a teacher that only says which pixels belong together.

    The feature of a position is its membership vector: the share of each group in its cell, read at 2 x 2 points.
    The relation is their cosine: 1 inside a group, 0 between groups, between the two where a border crosses a cell,
    as with an embedding that is resized. Group 0 says that the teacher found nothing there, not that two such pixels
    are alike or differ, so a cell that lies wholly in it has no known relation to any other.

    Args:
        groups: (B, H, W) integer ids, 0 = no group.
        size: (h, w) of the map whose positions are compared, row by row.
        chosen: (N,) indices of positions, of h * w; None = all.

    Returns:
        relation (B, N, N) float32 in [0, 1], and known (B, N) bool.
    """
    height, width = size
    # float32 holds the ids (up to 65,535) exactly; interpolation has no integer kernels on every device.
    points = F.interpolate(groups[:, None].float(), (2 * height, 2 * width), mode="nearest-exact")
    members = F.pixel_unshuffle(points, 2).flatten(2)  # (B, 4, h * w)
    if chosen is not None:
        members = members[..., chosen]
    grouped = members > 0
    left = members.masked_fill(~grouped, -1)  # -1 and -2: group 0 equals nothing, not even itself
    right = members.masked_fill(~grouped, -2)
    batch, parts, count = members.shape
    shared = torch.zeros(batch, count, count, device=groups.device)
    for i in range(parts):
        for j in range(parts):
            shared += left[:, i, :, None] == right[:, j, None, :]
    norm = shared.diagonal(dim1=1, dim2=2).clamp(min=1).sqrt()
    return shared / (norm[:, :, None] * norm[:, None, :]), grouped.any(1)


def _cosines(feature: Tensor) -> Tensor:
    """(B, C, N) -> (B, N, N) cosine similarity of every pair of positions."""
    unit = F.normalize(feature, dim=1)
    return unit.transpose(1, 2) @ unit
