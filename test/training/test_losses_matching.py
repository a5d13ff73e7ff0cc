"""The matching losses against slow, plain second formulations."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.data.pairs import pixel_grid
from training.samfeat.losses import matching
from training.samfeat.losses.corner import corner_loss

CELL = matching.CELL


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dual_softmax_equals_loops_over_points():
    g = generator()
    first, second, third = (F.normalize(torch.randn(2, n, 8, generator=g), dim=-1) for n in (6, 6, 3))
    points, others = (torch.rand(2, n, 2, generator=g) * 30 for n in (6, 3))
    points[0, 1] = points[0, 0] + 1  # too near to be a negative
    others[1, 2] = points[1, 3] + 1  # the counterpart itself, found by the detector
    valid = torch.tensor([[True] * 5 + [False], [True] * 6])
    means = []
    for b in range(2):
        terms = []
        for i in range(6):
            if not valid[b, i]:
                continue
            far = [j for j in range(6) if j != i and (points[b, i] - points[b, j]).norm() >= 4]
            forward = [first[b, i] @ second[b, j] for j in far if valid[b, j]]
            forward += [first[b, i] @ third[b, k] for k in range(3) if (points[b, i] - others[b, k]).norm() >= 4]
            hidden = [j for j in range(6) if not valid[b, j]]  # has no position in view 1
            backward = [first[b, j] @ second[b, i] for j in {*(j for j in far if valid[b, j]), *hidden}]
            positive = 20 * float(first[b, i] @ second[b, i])
            for negatives in (forward, backward):
                terms.append(positive - math.log(math.exp(positive) + sum(math.exp(20 * float(n)) for n in negatives)))
        means.append(-sum(terms) / int(valid[b].sum()))
    loss = matching.dual_softmax(first, second, points, valid, scale=20, safe_radius=4, distractors=(third, others))
    assert float(loss) == pytest.approx(sum(means) / 2, rel=1e-5)


def test_dual_softmax_of_a_pair_without_correspondence_is_zero():
    rows = F.normalize(torch.randn(1, 4, 8, generator=generator()), dim=-1).requires_grad_()
    loss = matching.dual_softmax(rows, rows, torch.rand(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool))
    loss.backward()
    assert float(loss) == 0 and rows.grad.isfinite().all()


def expected_by_enumeration(score0, score1, warp01, deviation):
    """One way, cell grid at (0, 0): sum over picks x of p(x) sum over picks y of p(y) k(|w(x) - y|), per cell.

    Of a cell the picks with a counterpart count, and the cell as much as its share of pixels that have one.
    """
    height, width = score0.shape
    probabilities = []
    for score in (score0, score1):
        p = torch.zeros_like(score)
        for top in range(0, height, CELL):
            for left in range(0, width, CELL):
                cell = score[top : top + CELL, left : left + CELL]
                p[top : top + CELL, left : left + CELL] = cell.flatten().softmax(0).view(CELL, CELL)
        probabilities.append(p)
    total, cells = 0.0, 0.0
    for top in range(0, height, CELL):
        for left in range(0, width, CELL):
            gained, mass, share = 0.0, 0.0, 0.0
            for y in range(top, top + CELL):
                for x in range(left, left + CELL):
                    if warp01[y, x].isnan().any():
                        continue
                    wx, wy = (int(v) for v in warp01[y, x])
                    near = 0.0
                    for v in range(max(wy - 2, 0), min(wy + 3, height)):
                        for u in range(max(wx - 2, 0), min(wx + 3, width)):
                            distance2 = (wx - u) ** 2 + (wy - v) ** 2
                            near += float(probabilities[1][v, u]) * math.exp(-distance2 / (2 * deviation**2))
                    gained += float(probabilities[0][y, x]) * near
                    mass += float(probabilities[0][y, x])
                    share += 1 / CELL**2
            total += share * gained / mass
            cells += share
    return total / cells


def test_expected_repeatability_equals_enumeration_of_all_picks():
    g = generator(1)
    score0, score1 = (torch.randn(1, 1, 16, 24, generator=g) * 2 for _ in range(2))
    warp = pixel_grid(16, 24)[None]  # the identity: every pixel is where it was
    loss = matching.expected_repeatability(score0, score1, warp, warp, deviation=0.8)
    one = expected_by_enumeration(score0[0, 0], score1[0, 0], warp[0], 0.8)
    other = expected_by_enumeration(score1[0, 0], score0[0, 0], warp[0], 0.8)
    assert float(loss) == pytest.approx(-(one + other) / 2, rel=1e-4)


def test_expected_repeatability_of_cells_that_are_seen_in_part():
    g = generator(2)
    score0, score1 = (torch.randn(1, 1, 16, 24, generator=g) for _ in range(2))
    warp = pixel_grid(16, 24)[None].clone()
    warp[:, :, 5:8] = math.nan
    warp[:, 10:, 20:] = math.nan
    loss = matching.expected_repeatability(score0, score1, warp, warp, deviation=0.8)
    one = expected_by_enumeration(score0[0, 0], score1[0, 0], warp[0], 0.8)
    other = expected_by_enumeration(score1[0, 0], score0[0, 0], warp[0], 0.8)
    assert float(loss) == pytest.approx(-(one + other) / 2, rel=1e-4)


def test_expected_repeatability_is_minus_one_for_sure_picks_that_agree():
    score = torch.full((1, 1, 16, 16), -30.0)
    score[..., 4::CELL, 4::CELL] = 30
    warp = pixel_grid(16, 16)[None]
    assert float(matching.expected_repeatability(score, score, warp, warp)) == pytest.approx(-1, abs=1e-4)
    shifted = torch.roll(score, 3, 3)
    assert float(matching.expected_repeatability(score, shifted, warp, warp)) > -0.01


def test_expected_repeatability_follows_the_warp_and_its_gradient_is_finite():
    score0 = torch.full((1, 1, 16, 24), -30.0)
    score0[..., 4, 4] = 30
    score1 = torch.full((1, 1, 16, 24), -30.0)
    score1[..., 4, 12] = 30
    warp01, warp10 = pixel_grid(16, 24)[None] + torch.tensor([8.0, 0.0]), torch.full((1, 16, 24, 2), math.nan)
    warp01[..., 8:, :, :] = math.nan
    warp01[..., :, 8:, :] = math.nan
    score0.requires_grad_()
    loss = matching.expected_repeatability(score0, score1, warp01, warp10)
    loss.backward()
    assert float(loss) == pytest.approx(-0.5, abs=1e-3)  # sure one way, nothing to see the other way
    assert score0.grad.isfinite().all()


def test_expected_reward_equals_loops_over_pairs():
    similarity = 5 * torch.randn(2, 4, 6, generator=generator(), dtype=torch.float64)
    right, known = (torch.rand(2, 4, 6, generator=generator(seed)) < share for seed, share in ((1, 0.2), (2, 0.8)))
    total = 0.0
    for table, rights, knowns in zip(similarity, right, known):
        for i, j in knowns.nonzero().tolist():
            there = math.exp(table[i, j]) / sum(math.exp(other) for other in table[i])
            back = math.exp(table[i, j]) / sum(math.exp(other) for other in table[:, j])
            total -= there * back * (1 if rights[i, j] else -0.5) / 4
    assert float(matching.expected_reward(similarity, right, known, 0.5)) == pytest.approx(total / 2)
    similarity.requires_grad_()
    assert torch.autograd.gradcheck(lambda table: matching.expected_reward(table, right, known, 0.5), similarity)


def test_expected_reward_counts_mutual_nearest_neighbours_when_sure():
    similarity = torch.randn(1, 40, 50, generator=generator())
    right = torch.rand(1, 40, 50, generator=generator(1)) < 0.3
    mutual = (similarity == similarity.amax(1, keepdim=True)) & (similarity == similarity.amax(2, keepdim=True))
    loss = matching.expected_reward(1e4 * similarity, right, torch.ones_like(right), 2.0)
    assert float(loss) == pytest.approx(-float((mutual & right).sum() - 2 * (mutual & ~right).sum()) / 40, abs=1e-4)


def test_expected_reward_leaves_out_pairs_of_which_nothing_is_known():
    similarity = torch.zeros(2, 3, 3, requires_grad=True)
    known = torch.zeros(2, 3, 3, dtype=torch.bool)
    known[0, 0] = True
    loss = matching.expected_reward(similarity, torch.ones_like(known), known)
    loss.backward()
    assert float(loss) == pytest.approx(-1 / 9) and similarity.grad.isfinite().all()  # 3 pairs of 1/9, 3 keypoints
    assert similarity.grad[1].abs().max() == 0


def test_matchability_rewards_what_is_found_and_matched():
    logits = torch.zeros(1, 4, requires_grad=True)
    distance = torch.tensor([[0.0, 0.0, 50.0, 0.0]])
    matched = torch.tensor([[True, False, True, True]])
    visible = torch.tensor([[True, True, True, False]])
    loss = matching.matchability(logits, distance, matched, visible)
    loss.backward()
    assert float(loss) == pytest.approx(math.log(2))
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1] and logits.grad[0, 2] > 0 and logits.grad[0, 3] == 0


def test_sample_warped_reads_the_other_view_and_zero_where_unknown():
    plane = torch.rand(1, 1, 8, 10, generator=generator())
    warp = pixel_grid(8, 10)[None] + torch.tensor([1.0, 2.0])
    warp[0, 0, 0] = math.nan
    out = matching.sample_warped(plane, warp)
    assert float(out[0, 0, 0, 0]) == 0
    torch.testing.assert_close(out[0, 0, 1:5, 1:8], plane[0, 0, 3:7, 2:9])


def test_masked_mean_weighs_images_alike():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    assert float(matching.masked_mean(values, mask)) == 3


def test_detector_losses_of_a_batch_are_the_mean_of_those_of_its_halves():
    """As DistributedDataParallel averages the gradients of processes that hold a half each."""
    g = generator(3)
    sharpness = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    score0, score1 = (torch.randn(2, 1, 16, 24, generator=g) * sharpness for _ in range(2))
    warp = pixel_grid(16, 24).repeat(2, 1, 1, 1)
    warp[1, 8:] = math.nan  # the second pair shows half as much in common
    for loss in (
        lambda half: matching.expected_repeatability(score0[half], score1[half], warp[half], warp[half]),
        lambda half: corner_loss(score0[half], score1[half]),
    ):
        whole, first, second = (float(loss(half)) for half in (slice(0, 2), slice(0, 1), slice(1, 2)))
        assert whole == pytest.approx((first + second) / 2, rel=1e-5) and first != pytest.approx(second, rel=1e-2)
