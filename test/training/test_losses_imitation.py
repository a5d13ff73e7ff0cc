"""Imitating another extractor's features: the drawn map, the score loss, the relations."""

import math

import pytest
import torch
import torch.nn.functional as F

from samfeat_core.detection import detect, refine
from training.samfeat.losses.imitation import FLOOR, draw, relation_imitation, score_imitation


def unit_rows(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


POINTS = torch.tensor([[[10.3, 8.7], [20.0, 15.4], [3.75, 22.25]], [[5.0, 5.0], [math.nan, math.nan], [40.0, 5.0]]])
LOGITS = torch.tensor([[2.0, 1.0, -1.0], [3.0, 2.0, 1.0]])


def test_drawn_keypoints_are_found_where_they_are_and_in_their_order():
    drawn = draw(POINTS, LOGITS, torch.zeros(2, 1, 32, 32))
    found, scores = detect(drawn, None, 3, radius=2)
    positions, peaked = refine(drawn, found)
    assert (positions[0] - POINTS[0]).abs().max() < 0.1 and peaked[0].all()
    assert (positions[1, 0] - POINTS[1, 0]).abs().max() < 0.1
    assert float(drawn[1].max()) == 3.0 and float(drawn.min()) == FLOOR
    assert (drawn[1] > FLOOR).sum() <= 25  # neither the point that is not shown nor the one outside


def plain_presence(score, drawn):
    total = weights = 0.0
    for s, t in zip(score.flatten().tolist(), drawn.flatten().tolist(), strict=True):
        wanted, own = 1 / (1 + math.exp(-t)), 1 / (1 + math.exp(-s))
        total -= (0.1 + wanted) * (wanted * math.log(own) + (1 - wanted) * math.log(1 - own))
        weights += 0.1 + wanted
    return total / weights


def plain_location(score, points, logits):
    total = weights = 0.0
    for (x, y), logit in zip(points.tolist(), logits.tolist(), strict=True):
        if math.isnan(x) or not (1.5 < x < 29.5 and 1.5 < y < 29.5):
            continue
        pixels = [(round(x) + dx, round(y) + dy) for dx in range(-2, 3) for dy in range(-2, 3)]
        target = [math.exp(-((px - x) ** 2 + (py - y) ** 2) / (2 * 0.7**2)) for px, py in pixels]
        own = [math.exp(float(score[0, py, px])) for px, py in pixels]
        target, own = [t / sum(target) for t in target], [o / sum(own) for o in own]
        weight = 1 / (1 + math.exp(-logit))
        total += weight * sum(t * math.log(t / o) for t, o in zip(target, own, strict=True))
        weights += weight
    return total / weights


def test_score_loss_is_that_of_loops():
    score = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    drawn = draw(POINTS, LOGITS, score)
    expected = [
        plain_presence(*maps) + plain_location(maps[0], points, logits)
        for *maps, points, logits in zip(score, drawn, POINTS, LOGITS, strict=True)
    ]
    assert float(score_imitation(score, POINTS, LOGITS)) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_score_loss_is_least_at_the_drawing():
    drawn = draw(POINTS, LOGITS, torch.zeros(2, 1, 32, 32)).requires_grad_()
    loss = score_imitation(drawn, POINTS, LOGITS)
    loss.backward()
    assert float(drawn.grad.abs().max()) < 3e-3  # the floor is a little above a normal distribution's tail
    for seed in range(5):
        noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
        assert score_imitation(drawn + noise, POINTS, LOGITS) > loss


def test_images_without_reference_features_do_not_count():
    score = torch.randn(2, 1, 32, 32, requires_grad=True)
    unseen = POINTS.clone()
    unseen[1] = math.nan
    alone = score_imitation(score[:1], POINTS[:1], LOGITS[:1])
    assert score_imitation(score, unseen, LOGITS).item() == pytest.approx(alone.item())
    nothing = score_imitation(score, torch.full_like(POINTS, math.nan), LOGITS)
    nothing.backward()
    assert nothing.item() == 0 and float(score.grad.abs().max()) == 0


def plain_relation(first, second, wanted, scale, looking=None):
    """Mean KL over rows of lists of descriptors, one direction; `looking` are the reference's rows of `first`."""
    total = 0.0
    for own, reference in zip(first, wanted if looking is None else looking, strict=True):
        target = torch.stack([scale * (reference @ other) for other in wanted])
        answer = torch.stack([scale * (own @ other) for other in second])
        target, answer = target - torch.logsumexp(target, 0), answer - torch.logsumexp(answer, 0)
        total += float(sum(t.exp() * (t - a) for t, a in zip(target, answer, strict=True)))
    return total / len(first)


def test_relations_are_those_of_loops():
    first, second, wanted = unit_rows(2, 4, 6, seed=1), unit_rows(2, 4, 6, seed=2), unit_rows(2, 4, 9, seed=3)
    everything = torch.ones(2, 4, dtype=torch.bool)
    a, b, w = (rows.flatten(0, 1) for rows in (first, second, wanted))
    expected = (plain_relation(a, b, w, 5.0) + plain_relation(b, a, w, 5.0)) / 2
    assert float(relation_imitation(first, second, wanted, everything, 5.0)) == pytest.approx(expected)
    some = everything.clone()
    some[0, 2:] = False
    a, b, w = (rows[some] for rows in (first, second, wanted))
    # images weigh alike, however many of their points are shown
    there, back = (
        torch.tensor([plain_relation(mine[i : i + 1], other, w, 5.0, w[i : i + 1]) for i in range(6)])
        for mine, other in ((a, b), (b, a))
    )
    both = (there + back) / 2
    expected = float(both[:2].mean() + both[2:].mean()) / 2
    assert float(relation_imitation(first, second, wanted, some, 5.0)) == pytest.approx(expected)


def test_relations_know_no_axes():
    rows, valid = unit_rows(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    assert float(relation_imitation(rows @ turn, rows @ turn, rows, valid)) == pytest.approx(0, abs=1e-9)


def test_gradient_of_relations_and_of_none():
    first, second, wanted = (unit_rows(1, 3, 4, seed=seed).requires_grad_(seed < 3) for seed in (1, 2, 3))
    valid = torch.tensor([[True, True, False]])
    assert torch.autograd.gradcheck(lambda a, b: relation_imitation(a, b, wanted, valid, 5.0), (first, second))
    nothing = relation_imitation(first, second, wanted, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0 and float(first.grad.abs().max()) == 0
