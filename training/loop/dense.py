"""What tasks do with the answer of a network that the loop runs in channels-last layout on two views at once."""

from __future__ import annotations

from samfeat_core.models import DenseFeatures


def plain_layout(dense: DenseFeatures) -> DenseFeatures:
    """The same in NCHW layout. Channels-last is fast for convolutions and slow for everything that follows."""
    return dense.each(lambda part: part.contiguous())


def split(dense: DenseFeatures, count: int) -> tuple[DenseFeatures, DenseFeatures]:
    """The answers for the first `count` images of a batch, and for the rest."""
    return dense.each(lambda part: part[:count]), dense.each(lambda part: part[count:])
