import math

import pytest
import torch

from training.data.pairs import keypoint_map
from training.samfeat.losses import detection_loss


@pytest.fixture
def logits():
    return 3 * torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels():
    return (torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(1)) > 0.9).float()


def plain(logits, labels, valid, weight=200.0):
    values = []
    for s, y, v in zip(logits.flatten(), labels.flatten(), valid.flatten(), strict=True):
        if bool(v):
            p = 1 / (1 + math.exp(-float(s)))
            values.append(-weight * float(y) * math.log(p) - (1 - float(y)) * math.log(1 - p))
    return sum(values) / len(values)


def test_value_is_that_of_loops(logits, labels):
    assert labels.flatten(1).sum(1).min() > 0
    valid = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(2)) > 0.3
    everywhere = torch.ones_like(valid)
    expected = [plain(*image) for image in zip(logits, labels, everywhere, strict=True)]
    assert float(detection_loss(logits, labels)) == pytest.approx(sum(expected) / 2)
    flags = torch.tensor([False, True])
    assert float(detection_loss(logits, labels, has_labels=flags)) == pytest.approx(expected[1])
    masked = [plain(*image) for image in zip(logits, labels, valid, strict=True)]
    assert float(detection_loss(logits, labels, valid=valid)) == pytest.approx(sum(masked) / 2)
    unknown = labels.masked_fill(~valid, torch.nan)
    assert float(detection_loss(logits, unknown)) == pytest.approx(sum(masked) / 2)
    light = [plain(*image, weight=3.0) for image in zip(logits, labels, everywhere, strict=True)]
    assert float(detection_loss(logits, labels, positive_weight=3.0)) == pytest.approx(sum(light) / 2)


def test_gradient(logits, labels):
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: detection_loss(x, labels), logits)


def test_images_without_labels_or_valid_pixels(logits, labels):
    logits.requires_grad_()
    loss = detection_loss(logits, labels, valid=torch.zeros_like(labels, dtype=torch.bool))
    loss = loss + detection_loss(logits, labels, has_labels=torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0 and float(logits.grad.abs().max()) == 0
    # No keypoint in an image is a label, too.
    assert float(detection_loss(logits, torch.zeros_like(labels))) > 0


def test_certain_logits_stay_finite():
    logits = torch.tensor([[[[-500.0, 500.0]]]], requires_grad=True)
    loss = detection_loss(logits, torch.tensor([[[[1.0, 0.0]]]]))
    loss.backward()
    assert float(loss) == pytest.approx((200 * 500 + 500) / 2) and logits.grad.isfinite().all()


def test_under_autocast_it_computes_in_float32(logits, labels):
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = detection_loss(half, labels)
    assert loss.dtype == torch.float32 and float(loss) == float(detection_loss(half.float(), labels))


def test_keypoint_map():
    nan = float("nan")
    points = torch.tensor(
        [
            [[1.4, 0.6], [5.0, 4.0], [-0.6, 2.0], [5.6, 1.0], [nan, nan], [2, nan]],
            [[0.0, 0.0], [0.2, 0.3], [-0.4, -0.4], [2.0, 4.6], [3, 3], [nan, 0]],
        ]
    )
    label = keypoint_map(points, (5, 6))
    assert label.shape == (2, 1, 5, 6)
    assert label[0, 0].nonzero().tolist() == [[1, 1], [4, 5]]
    assert label[1, 0].nonzero().tolist() == [[0, 0], [3, 3]]
    scores = torch.tensor([[0.5] * 6, [0.2, 0.9, 0.1, 1, 0.3, 1]])
    soft = keypoint_map(points, (5, 6), scores)
    assert soft[1, 0, 0, 0] == pytest.approx(0.9) and soft[1, 0, 3, 3] == pytest.approx(0.3)
    assert float(keypoint_map(torch.full((1, 0, 2), nan), (5, 6)).sum()) == 0
