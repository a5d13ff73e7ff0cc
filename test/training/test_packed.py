"""Images and rows of several sizes in one tensor answer as each by itself."""

import math

import torch

from training.data.packed import PackedImages, padded

SIZES = ((7, 5), (1, 9), (40, 3))  # (width, height)


def images(channels=3):
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (channels, h, w), generator=random, dtype=torch.uint8) for w, h in SIZES]


def test_the_nearest_pixel_is_of_its_image_and_beyond_it_the_outermost():
    at = torch.tensor([[-1.0, -5.0], [0.4, 4.0], [1.6, 2.4], [50.0, 0.6]])
    packed = PackedImages(images(2))
    read = packed.read(packed.index(at.expand(3, 1, 4, 2)))
    assert read.shape == (2, 3, 1, 4) and read.dtype == torch.uint8
    for one, image, (width, height) in zip(read[:, :, 0].unbind(1), images(2), SIZES):
        x, y = [0, 0, 2, 50], [0, 4, 2, 1]
        expected = image[:, [min(b, height - 1) for b in y], [min(a, width - 1) for a in x]]
        torch.testing.assert_close(one, expected)


def test_rows_are_cut_or_padded():
    rows = [torch.ones(2, 3), torch.zeros(0, 3), torch.full((4, 3), 2.0)]
    assert padded(rows, math.nan).isfinite().all(-1).sum(1).tolist() == [2, 0, 4]
    for count in (3, 6):
        joined = padded(rows, -1, count)
        assert joined.shape == (3, count, 3)
        assert (joined[..., 0] >= 0).sum(1).tolist() == [2, 0, min(4, count)]
    assert padded([row[:, 0] for row in rows], 0, 5)[2].tolist() == [2, 2, 2, 2, 0]
