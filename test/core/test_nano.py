"""samfeat-nano: its contract, and what it is invariant to."""

import math

import numpy as np
import pytest
import torch

from samfeat_core import match_mutual
from samfeat_core.detection import sample
from samfeat_core.models import DenseFeatures, build_network
from samfeat_core.models.nano import normalize_contrast


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return build_network("samfeat-nano").eval()


@torch.no_grad()
def test_maps_have_the_shapes_of_the_contract(nano):
    dense = nano(torch.rand(2, 1, 64, 96))
    assert dense.score.shape == (2, 1, 64, 96)
    assert dense.descriptors.shape == (2, 64, 16, 24)
    assert dense.describe(torch.rand(2, 5, 2) * 60, (96, 64)).shape == (2, 5, 64)
    assert dense.edge is None and dense.distill is None


@torch.no_grad()
def test_a_descriptor_is_which_point_it_is_and_how_sure_the_detector_is(nano):
    dense, points = nano(torch.rand(2, 1, 64, 96)), torch.rand(2, 50, 2) * 60
    rows, which = dense.describe(points, (96, 64)), dense.describe_without_strength(points, (96, 64))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2, 50))
    everywhere = dense.project(dense.descriptors.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    sampled = torch.nn.functional.normalize(sample(everywhere, points, (96, 64)), dim=-1)
    torch.testing.assert_close(which, sampled)  # the projection commutes with sampling
    odds = torch.special.expit(sample(dense.score, points, (96, 64)))
    odds = odds / (1 - odds)
    offset, power = dense.strength
    expected = torch.cat((which, math.exp(offset) * odds**power), -1)
    torch.testing.assert_close(rows, expected / expected.norm(dim=-1, keepdim=True))


def test_strong_points_keep_weak_ones_from_wrong_mutual_matches():
    """300 points that both views show, and 700 in each that the other does not, of random direction."""
    torch.manual_seed(1)
    which = torch.randn(1700, 63)
    views = [torch.cat((which[:300], which[a:b])) for a, b in ((300, 1000), (1000, 1700))]
    grid = torch.stack(torch.meshgrid(torch.arange(40), torch.arange(25), indexing="xy"), -1).reshape(1, -1, 2)

    def describe(view: torch.Tensor, logits: torch.Tensor) -> np.ndarray:
        rows = (view + 0.5 * torch.randn(1000, 63)).T.reshape(1, 63, 25, 40)
        dense = DenseFeatures(logits.reshape(1, 1, 25, 40), rows, strength=(0.3, 0.3))
        return dense.describe(grid.float(), (40, 25))[0].numpy()

    def matches(sure: float, unsure: float) -> tuple[int, int]:
        logits = torch.where(torch.arange(1000) < 300, sure, unsure)
        index0, index1, _ = match_mutual(*(describe(view, logits) for view in views))
        return int((index0 == index1).sum()), len(index0)

    right, count = matches(-1.0, -1.0)
    right_told, count_told = matches(0.5, -2.0)
    assert right_told >= 0.98 * right > 250
    assert count_told - right_told < 0.8 * (count - right)


@torch.no_grad()
def test_each_changes_all_tensors_and_keeps_the_projection(nano):
    dense, points = nano(torch.rand(3, 1, 64, 96)), torch.rand(3, 5, 2) * 60
    last = dense.each(lambda part: part[2:])
    torch.testing.assert_close(last.describe(points[2:], (96, 64)), dense.describe(points, (96, 64))[2:])
    assert last.score.shape == (1, 1, 64, 96) and last.edge is None


def test_teacher_heads_exist_in_training_only(nano):
    nano.train()
    dense = nano(torch.rand(2, 1, 64, 96))
    nano.eval()
    assert dense.distill.shape == (2, 256, 8, 12)
    assert dense.edge.shape == (2, 1, 16, 24)


@torch.no_grad()
def test_exposure_and_gain_cancel(nano):
    image = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(nano(image).score, nano(image * 0.5 + 0.2).score, atol=0.08, rtol=0.02)


def test_noise_on_a_flat_image_is_not_stretched_to_full_contrast():
    flat = 0.5 + 0.002 * torch.randn(1, 1, 32, 32)
    assert normalize_contrast(flat).std() < 0.2


@torch.no_grad()
def test_moving_the_image_by_the_stride_moves_the_maps(nano):
    image = torch.rand(1, 1, 160, 160)
    moved = torch.roll(image, (32, 32), (2, 3))
    inner = slice(64, 96)  # far from borders, which padding changes
    first = nano(image).score[..., inner, inner]
    second = nano(moved).score[..., 96:128, 96:128]
    torch.testing.assert_close(first, second, atol=0.15, rtol=0.1)
