"""The error of an image that cannot be used, and the bound on sizes that all image input shares."""

from __future__ import annotations

from samfeat_core.features import MAX_SIDE


class ImageError(ValueError):
    """An image message that cannot be used.

    Attributes:
        cause: one word for counters: `size` (0x0 or beyond the limit), `step`, `length`, `encoding` (unknown),
            `decode` (damaged compressed data), `convert` (the data do not fit their encoding).
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def check_size(width: int, height: int, what: str) -> None:
    """ImageError unless the features of an image of that size can be computed."""
    if width <= 0 or height <= 0:
        raise ImageError("size", f"{what} of {width}x{height} pixels has no content")
    if max(width, height) > MAX_SIDE:
        raise ImageError("size", f"{what} of {width}x{height} pixels is larger than {MAX_SIDE} pixels a side")
