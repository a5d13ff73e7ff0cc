"""Detection and sampling against plain second formulations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samfeat_core.detection import ExtractionGraph, detect, local_maxima, refine, sample, suppress
from samfeat_core.models import DenseFeatures, build_network
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


def greedy(plane, radius):
    """Best first, each suppressing the square around it: the authors' non-maximum suppression."""
    alive, kept = np.ones_like(plane, bool), np.zeros_like(plane, bool)
    for index in np.argsort(-plane, axis=None):
        y, x = np.unravel_index(index, plane.shape)
        if alive[y, x]:
            kept[y, x] = True
            alive[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = False
    return kept


@pytest.mark.parametrize("radius", [2, 4])
def test_passes_of_suppression_approach_the_greedy_one(radius):
    score = F.avg_pool2d(random_scores(60, 80), 5, 1, 2)  # smooth, as score maps are
    expected = greedy(score[0, 0].numpy(), radius)
    shares = []
    for passes in (1, 2, 4, 30):
        found = suppress(score, radius, passes)[0, 0].numpy()
        assert not (found & ~expected).any()
        shares.append(found.sum() / expected.sum())
    assert shares == sorted(shares) and shares[0] < 0.6 and shares[2] > 0.9 and shares[3] == 1
    assert torch.equal(suppress(score, radius), local_maxima(score, radius))


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


def test_a_batch_is_its_images_one_by_one():
    score = torch.cat((random_scores(seed=1), random_scores(seed=2)))
    masks = torch.ones_like(score)
    masks[1, :, 20:] = 0
    for mask in (None, masks, masks[1:]):
        keypoints, scores = detect(score, mask, 25, 3)
        assert keypoints.shape == (2, 25, 2) and keypoints.dtype == torch.float32
        refined, peaked = refine(score, keypoints, 1)
        maps = torch.randn(2, 4, 10, 14, generator=torch.Generator().manual_seed(4))
        rows = sample(maps, refined, (56, 40))
        for i in range(2):
            own = None if mask is None else mask[-2 + i :][:1] if len(mask) > 1 else mask
            alone = detect(score[i : i + 1], own, 25, 3)
            torch.testing.assert_close((keypoints[i], scores[i]), (alone[0][0], alone[1][0]))
            again = refine(score[i : i + 1], alone[0], 1)
            torch.testing.assert_close((refined[i], peaked[i]), (again[0][0], again[1][0]))
            torch.testing.assert_close(rows[i], sample(maps[i : i + 1], again[0], (56, 40))[0])


def test_samples_have_the_type_of_the_maps():
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    points = torch.tensor([[[3.25, 9.5], [0.0, 31.0]]])
    rows = sample(maps, points, (32, 32))
    assert rows.dtype == torch.float16
    torch.testing.assert_close(rows.float(), sample(maps.float(), points, (32, 32)), atol=2e-3, rtol=0)


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


@pytest.mark.parametrize(("height", "peaked"), [(0.0009, False), (0.0011, True)])
def test_a_peak_rises_by_a_thousandth(height, peaked):
    """What rounding leaves of a featureless patch is no peak."""
    score = torch.zeros(1, 1, 9, 9)
    score[..., 4, 4] = height
    assert refine(score, torch.tensor([[[4.0, 4.0]]]))[1].tolist() == [[peaked]]
    assert refine(score, torch.tensor([[[2.0, 6.0]]]))[1].tolist() == [[peaked]]  # two pixels away it is seen
    assert refine(score, torch.tensor([[[1.0, 4.0]]]))[1].tolist() == [[False]]


def test_refine_at_the_edge_sees_the_edge_repeated():
    score = torch.randn(1, 1, 12, 17, generator=torch.Generator().manual_seed(3))
    padded = F.pad(score, (2, 2, 2, 2), mode="replicate")
    corners = torch.tensor([[[0.0, 0.0], [16.0, 0.0], [0.0, 11.0], [16.0, 11.0], [1.0, 5.0], [15.0, 10.0]]])
    torch.testing.assert_close(refine(score, corners)[0] + 2, refine(padded, corners + 2)[0])


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


class Told(torch.nn.Module):
    """A network that answers fixed maps and keeps the image that it was given."""

    def __init__(self, weighted: bool):
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.score = torch.randn(1, 1, 48, 64, generator=draw)
        self.score[..., 30:40, 30:50] = 3.0  # a plateau: its pixels are maxima but no peaks
        self.descriptors = torch.randn(1, 8, 12, 16, generator=draw)
        self.weight = torch.rand(1, 1, 12, 16, generator=draw) if weighted else None

    def forward(self, image):
        self.image = image
        return DenseFeatures(self.score, self.descriptors, self.weight)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_graph_describes_keypoints_where_they_were_refined_to(weighted):
    network = Told(weighted)
    image = torch.randint(0, 256, (1, 1, 48, 64), dtype=torch.uint8)
    mask = torch.ones(1, 1, 48, 64, dtype=torch.uint8)
    mask[..., :10, :] = 0
    keypoints, scores, descriptors, weights = ExtractionGraph(network, 120, 2)(image, mask)
    torch.testing.assert_close(network.image, image / 255)
    pixels, peaks = detect(network.score, mask, 120, 2)
    refined, peaked = refine(network.score, pixels)
    torch.testing.assert_close(keypoints, refined[0])
    assert (keypoints - pixels[0]).abs().max() > 0.2 and 0 < (~peaked).sum() < 120
    torch.testing.assert_close(scores, torch.where(peaked, peaks, 0)[0])
    rows = sample(network.descriptors, refined, (64, 48))[0]
    torch.testing.assert_close(descriptors, F.normalize(rows, dim=1))
    expected = sample(network.weight, refined, (64, 48))[0, :, 0] if weighted else torch.ones(120)
    torch.testing.assert_close(weights, expected)


def test_positions_are_in_full_precision_whatever_the_network_answers_in():
    class Halved(Told):
        def forward(self, image):
            return super().forward(image).each(torch.Tensor.half)

    image, mask = torch.zeros(1, 1, 48, 64, dtype=torch.uint8), torch.ones(1, 1, 48, 64, dtype=torch.uint8)
    full, half = (ExtractionGraph(network(weighted=True), 20, 2)(image, mask) for network in (Told, Halved))
    assert {part.dtype for part in half} == {torch.float32}
    torch.testing.assert_close(half[0], full[0], atol=2e-3, rtol=0)
    assert not torch.equal(half[0], half[0].half().float())  # finer than half precision can be
