"""SCFeat's losses and reward, every formula against a second, slow and plain formulation, gradients included."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samfeat_core.models import DenseFeatures
from samfeat_core.two_view import fundamental_matrix
from training.scfeat import epipolar, fundamental, reinforce
from training.scfeat.epipolar import DescriptorConfig
from training.scfeat.reinforce import DetectorConfig

SIZE = (64, 48)
SIDEWAYS = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]])  # F of a camera that moves sideways: lines are rows


def two_views(count=40, noise=0.0, seed=0, size=SIZE):
    """Pixels (count, 2) of random points in two views of `size`, and F (3, 3), float64."""
    rng = np.random.default_rng(seed)
    K = np.array([[0.9 * size[0], 0, size[0] / 2], [0, 0.9 * size[0], size[1] / 2], [0, 0, 1]])
    world = rng.uniform([-1.2, -0.9, 3], [1.2, 0.9, 7], (count, 3))
    T = np.eye(4)
    a = 0.05
    T[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    T[:3, 3] = [0.4, -0.1, 0.15]
    moved = world @ T[:3, :3].T + T[:3, 3]
    views = [(v @ K.T)[:, :2] / v[:, 2:] + rng.normal(0, noise, (count, 2)) for v in (world, moved)]
    return torch.from_numpy(views[0]), torch.from_numpy(views[1]), torch.from_numpy(fundamental_matrix(K, K, T))


def plain_eight_point(x0, x1):
    """Hartley's algorithm for one sample (8, 2), (8, 2), by singular value decompositions."""
    transforms, rows = [], []
    for points in (x0, x1):
        mean = points.mean(0)
        scale = math.sqrt(2) / np.mean([np.linalg.norm(p - mean) for p in points])
        transforms.append(np.array([[scale, 0, -scale * mean[0]], [0, scale, -scale * mean[1]], [0, 0, 1]]))
    for p0, p1 in zip(x0, x1, strict=True):
        q0, q1 = transforms[0] @ [*p0, 1], transforms[1] @ [*p1, 1]
        rows.append([q1[i] * q0[j] for i in range(3) for j in range(3)])
    u, s, vh = np.linalg.svd(np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3))
    return transforms[1].T @ u @ np.diag([s[0], s[1], 0]) @ vh @ transforms[0]


def plain_difference(estimate, truth, size):
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    A = np.array([[x, 0, x], [0, y, y], [0, 0, 1]])
    a, b = A.T @ estimate @ A, A.T @ truth @ A
    a, b = a / np.sqrt((a * a).sum()), b / np.sqrt((b * b).sum())
    if (a * b).sum() < 0:
        a = -a
    return sum(0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in (a - b).ravel())


# --- fundamental matrices


def test_eight_point_is_exact_on_exact_matches():
    x0, x1, truth = two_views(64)
    estimate = fundamental.eight_point(x0.view(8, 8, 2), x1.view(8, 8, 2))
    assert estimate.shape == (8, 3, 3)
    assert torch.linalg.svdvals(estimate)[:, 2].max() < 1e-12
    difference = fundamental.normalized_difference(estimate, truth, SIZE, SIZE)
    assert difference.max() < 1e-12


def test_eight_point_equals_the_plain_formulation_under_noise():
    x0, x1, truth = two_views(80, noise=0.5)
    estimates = fundamental.eight_point(x0.view(10, 8, 2), x1.view(10, 8, 2))
    differences = fundamental.normalized_difference(estimates, truth, SIZE, SIZE)
    for k in range(10):
        plain = plain_eight_point(x0[8 * k : 8 * k + 8].numpy(), x1[8 * k : 8 * k + 8].numpy())
        estimate = estimates[k].numpy()
        np.testing.assert_allclose(
            estimate / np.linalg.norm(estimate) * np.sign((estimate * plain).sum()),
            plain / np.linalg.norm(plain),
            atol=1e-9,
        )
        assert differences[k].item() == pytest.approx(plain_difference(plain, truth.numpy(), SIZE), abs=1e-9)


def test_the_difference_knows_neither_sign_nor_scale_and_stays_in_range():
    a, b = torch.randn(20, 3, 3, dtype=torch.float64), torch.randn(20, 3, 3, dtype=torch.float64)
    difference = fundamental.normalized_difference(a, b, SIZE, (30, 90))
    torch.testing.assert_close(fundamental.normalized_difference(-3 * a, b, SIZE, (30, 90)), difference)
    assert (difference >= 0).all() and (difference <= 1).all() and difference.max() > 0.1


def test_samples_are_different_rows_drawn_by_weight():
    torch.manual_seed(0)
    weights = torch.zeros(3, 500)
    weights[0, 100:140] = 1
    weights[1, :400] = 1
    weights[1, 400:420] = 0.01
    weights[2, :7] = 1  # too few
    sets, enough = fundamental.draw_samples(weights, 2000)
    assert sets.shape == (3, 2000, 8) and enough.tolist() == [True, True, False]
    for item, allowed in ((0, range(100, 140)), (1, range(420))):
        assert all(len(set(row)) == 8 for row in sets[item].tolist())
        assert set(sets[item].flatten().tolist()) <= set(allowed)
    counts = torch.bincount(sets[0].flatten(), minlength=500)[100:140]
    assert counts.min() > 300 and counts.max() < 500  # 400 each when every row is as likely
    drawn = [fundamental.draw_samples(weights[1:2], 1)[0].flatten() for _ in range(600)]
    share = (torch.cat(drawn) >= 400).float().mean()
    assert share < 0.003  # 0.0005 expected


def test_fundamental_error_is_the_least_of_the_samples():
    x0, x1, truth = two_views(30, noise=0.4)
    points0, points1, F_true = x0[None].float(), x1[None].float(), truth[None].float()
    weights = torch.eye(30)[None]
    torch.manual_seed(3)
    answer = fundamental.fundamental_error(points0, points1, weights, F_true, SIZE, SIZE, samples=25)
    torch.manual_seed(3)
    sets, _ = fundamental.draw_samples(weights.flatten(1), 25)
    least = math.inf
    for chosen in sets[0]:
        rows = [(int(k) // 30, int(k) % 30) for k in chosen]
        a = np.array([points0[0, i].double().numpy() for i, _ in rows])
        b = np.array([points1[0, j].double().numpy() for _, j in rows])
        least = min(least, plain_difference(plain_eight_point(a, b), truth.numpy(), SIZE))
    assert answer.item() == pytest.approx(math.tanh(least), abs=1e-5)


def test_sharpness_makes_the_error_tell_noise():
    x0, x1, truth = two_views(30, noise=0.1)
    two, weights = (x0[None].float(), x1[None].float()), torch.eye(30)[None]
    errors = []
    for sharpness in (1.0, 30.0):
        torch.manual_seed(0)
        errors.append(
            fundamental.fundamental_error(*two, weights, truth[None].float(), SIZE, SIZE, 25, sharpness).item()
        )
    assert errors[1] == pytest.approx(math.tanh(30 * math.atanh(errors[0])), rel=1e-3) and errors[1] > 10 * errors[0]


def test_fundamental_error_grows_with_noise_and_is_nan_without_matches():
    errors = []
    for noise in (0.0, 0.5, 4.0):
        x0, x1, truth = two_views(30, noise=noise)
        weights = torch.eye(30)[None].repeat(2, 1, 1)
        weights[1, 6:] = 0
        torch.manual_seed(0)
        two = [x[None].repeat(2, 1, 1).float() for x in (x0, x1)]
        error = fundamental.fundamental_error(*two, weights, truth[None].repeat(2, 1, 1).float(), SIZE, SIZE)
        assert torch.isnan(error[1])
        errors.append(error[0].item())
    assert errors[0] < 1e-6 < errors[1] < errors[2] < 1
    same = torch.full((1, 30, 2), 5.0)  # all points in one place
    error = fundamental.fundamental_error(same, same, torch.eye(30)[None], truth[None].float(), SIZE, SIZE)
    assert torch.isfinite(error).all()


# --- stage 1


def test_grid_points_are_one_in_every_cell():
    points = epipolar.grid_points(3, (70, 50), 16)
    cells = (points // 16).long()
    assert points.shape == (3, 12, 2) and torch.equal(points, points.round())
    for item in cells:
        assert {tuple(cell) for cell in item.tolist()} == {(x, y) for x in range(4) for y in range(3)}


def test_lines_are_clipped_to_the_image():
    torch.manual_seed(0)
    lines = torch.randn(300, 3, dtype=torch.float64) * torch.tensor([1, 1, 25.0])
    special = [[0, 1, -10], [1, 0, -20], [0, 1, 5], [1, 0, -90], [0, 0, 1], [1, 1, 0], [1, -1, 0]]
    lines = torch.cat([lines, torch.tensor(special, dtype=torch.float64)])
    ends, valid = epipolar.clip_lines(lines, SIZE)
    assert torch.isfinite(ends).all() and 50 < valid.sum() < 300
    for line, (p, q), inside in zip(lines.tolist(), ends.tolist(), valid.tolist(), strict=True):
        a, b, c = line
        crossings = set()
        for x in (0, SIZE[0] - 1):
            if b and 0 <= -(a * x + c) / b <= SIZE[1] - 1:
                crossings.add((round(x, 6), round(-(a * x + c) / b, 6)))
        for y in (0, SIZE[1] - 1):
            if a and 0 <= -(b * y + c) / a <= SIZE[0] - 1:
                crossings.add((round(-(b * y + c) / a, 6), round(y, 6)))
        assert inside == (len(crossings) == 2)
        if inside:
            found = sorted([p, q])
            np.testing.assert_allclose(found, sorted(map(list, crossings)), atol=1e-5)


def plain_sample(maps, point):
    """Unit descriptor (C,) of one map (C, h, w) at one point, bilinear with the border replicated."""
    h, w = maps.shape[1:]
    x = min(max((point[0] + 0.5) * w / SIZE[0] - 0.5, 0), w - 1)
    y = min(max((point[1] + 0.5) * h / SIZE[1] - 0.5, 0), h - 1)
    x0, y0 = min(int(x), w - 2), min(int(y), h - 2)
    dx, dy = x - x0, y - y0
    value = (
        maps[:, y0, x0] * (1 - dx) * (1 - dy)
        + maps[:, y0, x0 + 1] * dx * (1 - dy)
        + maps[:, y0 + 1, x0] * (1 - dx) * dy
        + maps[:, y0 + 1, x0 + 1] * dx * dy
    )
    return value / value.norm()


def plain_expectation(descriptor, maps, places, temperature):
    weights = []
    for place in places:
        inside = 0 <= place[0] <= SIZE[0] - 1 and 0 <= place[1] <= SIZE[1] - 1
        weights.append(torch.exp(temperature * (descriptor @ plain_sample(maps, place))) if inside else torch.zeros(()))
    total = sum(weights)
    mean = [sum(w * p[axis] for w, p in zip(weights, places, strict=True)) / total for axis in (0, 1)]
    spread = [
        sum(w * (p[axis] - mean[axis]) ** 2 for w, p in zip(weights, places, strict=True)) / total for axis in (0, 1)
    ]
    return mean, sum(s.clamp(min=1e-10).sqrt() for s in spread)


def make_maps(seed=0, channels=6):
    torch.manual_seed(seed)
    return tuple(torch.randn(2, channels, 12, 16, requires_grad=True) for _ in range(2))


def test_expected_match_by_loops():
    maps, _ = make_maps()
    places = torch.rand(2, 3, 5, 2) * torch.tensor([80.0, 60.0]) - 8  # some outside
    descriptors = F.normalize(torch.randn(2, 3, 6), dim=-1)
    mean, deviation = epipolar.expected_match(descriptors, maps, places, SIZE, 4.0)
    for b in range(2):
        for n in range(3):
            expected, spread = plain_expectation(descriptors[b, n], maps[b], places[b, n].tolist(), 4.0)
            torch.testing.assert_close(mean[b, n], torch.stack(expected), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(deviation[b, n], spread, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("weighted", "best"), [(True, True), (True, False), (False, False)])
def test_epipolar_loss_and_its_gradient_by_loops(weighted, best):
    maps0, maps1 = make_maps(1)
    _, _, truth = two_views()
    fundamentals = torch.stack([truth, truth]).float()
    config = DescriptorConfig(
        line_steps=7, line_best=best, window=0.25, temperature=5.0, jitter=0.0, mask=0.1, weighted=weighted
    )
    points = torch.tensor([[[10.0, 10], [30, 20], [50, 40], [3, 44]], [[20, 30], [33, 5], [60, 25], [40, 46]]])
    loss, counted = epipolar.epipolar_loss(maps0, maps1, points, fundamentals, SIZE, config)
    loss.backward()
    gradients = maps0.grad.clone(), maps1.grad.clone()
    maps0.grad = maps1.grad = None

    weights, terms = [], []
    for b in range(2):
        for point in points[b].tolist():
            descriptor = plain_sample(maps0[b], point)
            a, b_, c = (fundamentals[b] @ torch.tensor([*point, 1.0])).tolist()
            ends, valid = epipolar.clip_lines(torch.tensor([a, b_, c]), SIZE)
            assert valid
            (x0, y0), (x1, y1) = ends.tolist()
            along = [(x0 + k / 6 * (x1 - x0), y0 + k / 6 * (y1 - y0)) for k in range(7)]
            with torch.no_grad():
                centre, _ = plain_expectation(descriptor, maps1[b], along, 5.0)
                if best:
                    centre = max(along, key=lambda place: float(descriptor @ plain_sample(maps1[b], place)))
            window = [
                (float(centre[0]) + (i / 3 - 0.5) * 0.25 * SIZE[0], float(centre[1]) + (j / 2 - 0.5) * 0.25 * SIZE[1])
                for j in range(3)
                for i in range(4)
            ]
            match, deviation = plain_expectation(descriptor, maps1[b], window, 5.0)
            distance = (a * match[0] + b_ * match[1] + c).abs() / math.hypot(a, b_)
            if distance < 4.8:
                weights.append(1 / deviation.detach() if weighted else torch.ones(()))
                terms.append(weights[-1] * distance)
    plain = sum(terms) / sum(weights)
    assert counted.item() == pytest.approx(len(terms) / 8)
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)
    plain.backward()
    torch.testing.assert_close(gradients[0], maps0.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradients[1], maps1.grad, rtol=1e-3, atol=1e-4)


def test_outliers_are_masked_and_jitter_matters():
    maps0, maps1 = (maps.detach().requires_grad_() for maps in make_maps(2))
    _, _, truth = two_views()
    fundamentals = torch.stack([truth, truth]).float()
    points = epipolar.grid_points(2, SIZE, 8)
    loss, counted = epipolar.epipolar_loss(maps0, maps1, points, fundamentals, SIZE, DescriptorConfig(mask=1e-9))
    assert loss == 0 and counted == 0
    loss.backward()
    assert torch.isfinite(maps0.grad).all()
    # On rows as lines: without jitter, a descriptor that says nothing costs nothing, as its mean is on the line.
    flat, middle = torch.ones(2, 6, 12, 16), torch.tensor([[[30.0, 20], [20, 30], [40, 25]]]).repeat(2, 1, 1)
    still, _ = epipolar.epipolar_loss(
        flat, flat, middle, SIDEWAYS.repeat(2, 1, 1), SIZE, DescriptorConfig(jitter=0.0, line_best=False)
    )
    moved, _ = epipolar.epipolar_loss(flat, flat, middle, SIDEWAYS.repeat(2, 1, 1), SIZE, DescriptorConfig())
    assert still < 1e-5 < 1e-2 < moved


def test_descriptors_learn_from_lines_alone():
    """A map that names places is reached by descending the loss: matches move to their lines."""
    torch.manual_seed(0)
    _, _, truth = two_views()
    maps = [torch.randn(1, 16, 12, 16, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam(maps, lr=0.1)
    config = DescriptorConfig(temperature=10.0, line_steps=40, window=0.4, jitter=0.25, mask=0.3)
    values = []
    for _ in range(60):
        points = epipolar.grid_points(1, SIZE, 4)
        loss, _ = epipolar.epipolar_loss(*maps, points, truth[None].float(), SIZE, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:10])


# --- stage 2


def test_drawn_keypoints_and_their_probabilities_by_loops():
    torch.manual_seed(0)
    score = torch.randn(2, 1, 20, 28)  # a border of 4 rows and 4 columns fills no cell
    drawn = reinforce.draw_keypoints(score, 8)
    assert drawn.points.shape == (2, 6, 2)
    for b in range(2):
        for n in range(6):
            left, top = n % 3 * 8, n // 3 * 8
            x, y = drawn.points[b, n].int().tolist()
            assert left <= x < left + 8 and top <= y < top + 8
            cell = score[b, 0, top : top + 8, left : left + 8]
            logit = score[b, 0, y, x].item()
            proposal = logit - math.log(sum(math.exp(v) for v in cell.flatten().tolist()))
            accepted = bool(drawn.accepted[b, n])
            decision = -math.log1p(math.exp(-logit if accepted else logit))
            assert drawn.log_p[b, n].item() == pytest.approx(proposal + decision, abs=1e-5)


def test_keypoints_are_drawn_as_often_as_their_probability_says():
    torch.manual_seed(0)
    score = torch.full((4000, 1, 8, 8), -2.0)
    score[:, :, 3, 5] = 3.0
    drawn = reinforce.draw_keypoints(score, 8)
    peak = (drawn.points[:, 0] == torch.tensor([5.0, 3.0])).all(1)
    expected = math.exp(3) / (math.exp(3) + 63 * math.exp(-2))
    assert peak.float().mean().item() == pytest.approx(expected, abs=0.03)
    assert drawn.accepted[peak].float().mean().item() == pytest.approx(1 / (1 + math.exp(-3)), abs=0.03)


def test_good_pairs_by_loops():
    x0, x1, truth = two_views(12, noise=1.0)
    good = reinforce.good_pairs(x0[None], x1[None], truth[None], 2.0)
    for i in range(12):
        for j in range(12):
            line1, line0 = truth @ torch.tensor([*x0[i], 1]), truth.T @ torch.tensor([*x1[j], 1])
            d1 = abs(line1 @ torch.tensor([*x1[j], 1])) / line1[:2].norm()
            d0 = abs(line0 @ torch.tensor([*x0[i], 1])) / line0[:2].norm()
            assert good[0, i, j] == (d1 < 2 and d0 < 2)
    assert 0 < good.sum() < 144


def test_rewards():
    good = torch.tensor([[[True, False]], [[True, False]]])
    config = DetectorConfig()
    constant = torch.tensor([[[1.0, -0.25]]]).repeat(2, 1, 1)
    torch.testing.assert_close(reinforce.pair_reward(good, None, config), constant)
    mixed = reinforce.pair_reward(good, torch.tensor([0.3, torch.nan]), config)
    torch.testing.assert_close(mixed, torch.tensor([[[0.7, -0.3]], [[1.0, -0.25]]]))


@pytest.mark.parametrize("by_fundamental", [True, False])
def test_detector_loss_and_its_gradient_by_loops(by_fundamental):
    torch.manual_seed(1)
    _, _, truth = two_views()
    fundamentals = torch.stack([truth, truth]).float()
    scores = [torch.randn(2, 1, 48, 64, requires_grad=True) for _ in range(2)]
    maps = [m.detach() for m in make_maps(3)]
    config = DetectorConfig(temperature=10.0, threshold=6.0, fundamental=by_fundamental, samples=5)
    torch.manual_seed(7)
    views = [DenseFeatures(score, dense) for score, dense in zip(scores, maps, strict=True)]
    loss, figures = reinforce.detector_loss(*views, fundamentals, SIZE, config)
    loss.backward()
    gradients = [score.grad.clone() for score in scores]
    for score in scores:
        score.grad = None

    torch.manual_seed(7)
    drawn = [reinforce.draw_keypoints(score, 8) for score in scores]
    rows = [epipolar.sample_descriptors(m, d.points, SIZE) for m, d in zip(maps, drawn, strict=True)]
    probability = torch.zeros(2, 48, 48)
    for b in range(2):
        dots = 10.0 * rows[0][b] @ rows[1][b].T
        probability[b] = torch.exp(dots) / torch.exp(dots).sum(1, keepdim=True)
        probability[b] *= torch.exp(dots) / torch.exp(dots).sum(0, keepdim=True)
    accepted = drawn[0].accepted[:, :, None] * drawn[1].accepted[:, None]
    good = reinforce.good_pairs(drawn[0].points, drawn[1].points, fundamentals, 6.0)
    error = None
    if by_fundamental:
        error = fundamental.fundamental_error(
            drawn[0].points, drawn[1].points, probability * accepted * good, fundamentals, SIZE, SIZE, 5
        )
        assert figures["fundamental_error"].item() == pytest.approx(error.mean().item(), abs=1e-3)
    total = torch.zeros(())
    for b in range(2):
        for i in range(48):
            for j in range(48):
                if not accepted[b, i, j]:
                    continue
                e = None if error is None else error[b].item()
                reward = (1.0 if good[b, i, j] else -0.25) if e is None else (1 - e if good[b, i, j] else -e)
                p = probability[b, i, j].item()
                total = total - reward * p * (math.log(p) + drawn[0].log_p[b, i] + drawn[1].log_p[b, j])
        for d in drawn:
            total = total + 0.001 * d.log_p[b][d.accepted[b]].sum()
    (total / 2).backward()
    for gradient, score in zip(gradients, scores, strict=True):
        torch.testing.assert_close(gradient, score.grad, rtol=1e-3, atol=1e-6)
        assert gradient.abs().sum() > 0


def test_the_detector_learns_where_matches_are_good():
    """Half of the descriptors match rightly, half wrongly: keypoints come to be accepted on the one side more."""
    torch.manual_seed(0)
    codes = torch.randn(1, 32, 12, 16)
    other = codes.clone()
    other[..., 8:] = codes[..., 8:].flip(2)  # on the right, what looks alike is elsewhere
    score = torch.zeros(1, 1, 48, 64, requires_grad=True)
    optimizer = torch.optim.SGD([score], lr=1.0)
    for _ in range(120):
        views = DenseFeatures(score, codes), DenseFeatures(score, other)
        loss, _ = reinforce.detector_loss(*views, SIDEWAYS, SIZE, DetectorConfig(fundamental=False))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cells = score[0, 0].detach().unfold(0, 8, 8).unfold(1, 8, 8).flatten(2)
    accepted = (cells.softmax(-1) * cells.sigmoid()).sum(-1)
    assert accepted[:, :4].mean() > accepted[:, 4:].mean() + 0.15
