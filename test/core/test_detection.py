"""Detection and sampling against plain second formulations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samfeat_core.detection import ExtractionGraph, detect, local_maxima, refine, sample
from samfeat_core.models import build_network
from training.data.geometry import sampling_grid


def random_scores(height=40, width=56, seed=0):
    return torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_local_maxima_equal_a_search_of_every_window(radius):
    score = random_scores()
    found = local_maxima(score, radius)[0, 0].numpy()
    plane = score[0, 0].numpy()
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            window = plane[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            assert found[y, x] == (plane[y, x] == window.max())


def test_detect_gives_the_best_maxima_in_order_and_respects_the_mask():
    score = random_scores()
    mask = torch.ones_like(score)
    mask[..., :, :20] = 0
    keypoints, scores = detect(score, mask, 30, 2)
    plane, peaks = score[0, 0].numpy(), local_maxima(score, 2)[0, 0].numpy().copy()
    peaks[:, :20] = False
    y, x = np.nonzero(peaks)
    order = np.argsort(-plane[y, x])[:30]
    np.testing.assert_array_equal(keypoints[0].numpy(), np.stack([x, y], 1)[order])
    np.testing.assert_allclose(scores[0].numpy(), 1 / (1 + np.exp(-plane[y, x][order])), rtol=1e-5)


def test_detect_pads_with_score_zero_when_there_are_too_few():
    score = random_scores(16, 16)
    mask = torch.zeros_like(score)
    mask[..., 8, 8] = 1
    _, scores = detect(score, mask, 50, 8)
    assert (scores[0] > 0).sum() <= 1


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.3, -0.4), (-0.25, 0.1)])
def test_refine_finds_the_centre_of_a_gaussian_peak(offset):
    y, x = torch.meshgrid(torch.arange(21.0), torch.arange(31.0), indexing="ij")
    squared = (x - 15 - offset[0]) ** 2 + (y - 10 - offset[1]) ** 2
    score = (-squared / (2 * 0.6**2))[None, None]
    position, peaked = refine(score, torch.tensor([[[15.0, 10.0]]]))
    assert peaked.all()
    np.testing.assert_allclose(position[0, 0].numpy(), [15 + offset[0], 10 + offset[1]], atol=0.02)


def test_refine_tells_a_plateau_from_a_peak():
    _, peaked = refine(torch.full((1, 1, 9, 9), 2.0), torch.tensor([[[4.0, 4.0]]]))
    assert not peaked.any()


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_sample_reads_a_linear_map_at_half_pixel_centres(stride):
    height, width = 32, 48
    y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
    # each cell holds the mean pixel position that it covers
    maps = torch.stack(((x + 0.5) * stride - 0.5, (y + 0.5) * stride - 0.5))[None].float()
    points = torch.rand(1, 20, 2) * torch.tensor([width - 2 * stride, height - 2 * stride]) + stride
    torch.testing.assert_close(sample(maps, points, (width, height)), points, atol=1e-4, rtol=0)


def test_sample_is_grid_sample_with_its_gradients():
    maps = torch.randn(3, 5, 7, 9, dtype=torch.double, requires_grad=True)
    points = (torch.rand(3, 40, 2, dtype=torch.double) * torch.tensor([44, 34]) - 4).requires_grad_()  # outside too
    grid = sampling_grid(points, (36, 28)).unsqueeze(2)
    wanted = F.grid_sample(maps, grid, padding_mode="border", align_corners=False).squeeze(3).transpose(1, 2)
    rows = sample(maps, points, (36, 28))
    torch.testing.assert_close(rows, wanted)
    weight = torch.randn_like(wanted)
    for found, other in zip(*(torch.autograd.grad((r * weight).sum(), (maps, points)) for r in (rows, wanted))):
        torch.testing.assert_close(found, other)


def test_graph_descriptors_are_unit_rows_and_counts_static():
    graph = ExtractionGraph(build_network("samfeat-nano"), 100, 2).eval()
    image = torch.randint(0, 255, (1, 1, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        keypoints, scores, descriptors, weights = graph(image, torch.ones(1, 1, 64, 96, dtype=torch.uint8))
    assert keypoints.shape == (100, 2) and scores.shape == (100,) and weights.shape == (100,)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(100))
    assert (scores.diff() <= 0).all()
