import math

import pytest
import torch

from training.samfeat.losses import group_relation, mixed_relation_distillation, relation_distillation


def plain(student, teacher, attention):
    """L_dis of one image by loops over positions: student and teacher (C, N), attention (N,)."""

    def cosine(a, b):
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    total = weights = 0.0
    for i in range(student.shape[1]):
        for j in range(student.shape[1]):
            difference = cosine(student[:, i], student[:, j]) - cosine(teacher[:, i], teacher[:, j])
            total += float(attention[i] * attention[j]) * abs(difference)
            weights += float(attention[i] * attention[j])
    return total / weights


@pytest.fixture
def student():
    return torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def teacher():
    return torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_value_is_that_of_loops(student, teacher):
    attention = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images = zip(student, teacher, attention, strict=True)
    expected = [plain(s.flatten(1), t.flatten(1), a.flatten()) for s, t, a in images]
    loss = relation_distillation(student, embedding=teacher, attention=attention)
    assert float(loss) == pytest.approx(sum(expected) / 2)
    one = relation_distillation(student, embedding=teacher, attention=attention, has_teacher=torch.tensor([0, 1]) > 0)
    assert float(one) == pytest.approx(expected[1])


def test_attention_matters_and_gets_no_gradient(student, teacher):
    attention = torch.ones(2, 1, 3, 4, dtype=torch.float64)
    attention[..., 0] = 9
    attention.requires_grad_()
    student.requires_grad_()
    weighted = relation_distillation(student, embedding=teacher, attention=attention)
    assert float(weighted) != pytest.approx(float(relation_distillation(student, embedding=teacher)))
    weighted.backward()
    assert attention.grad is None and student.grad.abs().max() > 0


def test_gradient(student, teacher):
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: relation_distillation(s, embedding=teacher), student)
    groups = torch.randint(0, 3, (2, 12, 16))
    assert torch.autograd.gradcheck(lambda s: relation_distillation(s, groups=groups), student)


def test_embedding_of_another_size_is_resized(student, teacher):
    constant = teacher[:, :, :1, :1].expand(-1, -1, 8, 8)
    expected = relation_distillation(student, embedding=constant[:, :, :3, :4].contiguous())
    assert float(relation_distillation(student, embedding=constant)) == pytest.approx(float(expected))


def test_positions_off_the_photograph_do_not_count(student, teacher):
    """There the embedding is 0: the loss is that of the other positions alone."""
    teacher[:, :, :, 3] = 0
    expected = relation_distillation(student[..., :3], embedding=teacher[..., :3])
    assert float(relation_distillation(student, embedding=teacher)) == pytest.approx(float(expected))


def test_subset_of_positions(student, teacher):
    full = relation_distillation(student, embedding=teacher)
    draws = torch.Generator().manual_seed(3)
    parts = [float(relation_distillation(student, embedding=teacher, positions=8, generator=draws)) for _ in range(300)]
    assert len(set(parts)) > 100
    # The diagonal differs by nothing and is 1/12 of all pairs, 1/8 of a draw's.
    assert sum(parts) / 300 == pytest.approx(float(full) * (1 - 1 / 8) / (1 - 1 / 12), rel=0.02)
    assert float(relation_distillation(student, embedding=teacher, positions=12)) == pytest.approx(float(full))


def test_a_subset_of_positions_takes_the_attention_of_the_same_positions(student, teacher):
    attention = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chosen = torch.randperm(12, generator=torch.Generator().manual_seed(5))[:7]
    parts = ([map.flatten(1)[:, chosen] for map in maps] for maps in zip(student, teacher, attention, strict=True))
    expected = [plain(s, t, a[0]) for s, t, a in parts]
    draw = torch.Generator().manual_seed(5)
    loss = relation_distillation(student, embedding=teacher, attention=attention, positions=7, generator=draw)
    assert float(loss) == pytest.approx(sum(expected) / 2)


def test_group_relation_by_hand():
    groups = torch.zeros(1, 4, 8, dtype=torch.int64)
    groups[0, :2, 0:2] = 1  # cell (0, 0): group 1 only
    groups[0, :2, 2:4] = 1
    groups[0, :2, 3] = 65535  # cell (0, 1): half 1, half 65535
    groups[0, :2, 4:6] = 65535  # cell (0, 2)
    groups[0, 2:, 0] = 1  # cell (1, 0): half 1, half nothing; all other cells: nothing
    relation, known = group_relation(groups, (2, 4))
    half = 1 / math.sqrt(2)
    expected = torch.zeros(8, 8)
    expected[:3, :3] = torch.tensor([[1, half, 0], [half, 1, half], [0, half, 1]])
    expected[4, 4] = expected[0, 4] = expected[4, 0] = 1
    expected[1, 4] = expected[4, 1] = half
    torch.testing.assert_close(relation[0], expected)
    assert known[0].tolist() == [True, True, True, False, True, False, False, False]


def test_groups_value_is_that_of_membership_vectors(student):
    groups = torch.randint(1, 4, (2, 6, 8), generator=torch.Generator().manual_seed(4))
    membership = torch.nn.functional.one_hot(groups).permute(0, 3, 1, 2).double()
    cells = torch.nn.functional.avg_pool2d(membership, 2)
    expected = relation_distillation(student, embedding=cells)
    assert float(relation_distillation(student, groups=groups)) == pytest.approx(float(expected), rel=1e-6)


def test_images_without_teacher_or_groups(student, teacher):
    student.requires_grad_()
    groups = torch.zeros(2, 24, 32, dtype=torch.int64)
    nothing = relation_distillation(student, groups=groups)
    nothing = nothing + relation_distillation(student, embedding=teacher, has_teacher=torch.zeros(2) > 0)
    nothing.backward()
    assert float(nothing) == 0 and float(student.grad.abs().max()) == 0
    groups[1, :12] = 1
    assert float(relation_distillation(student, groups=groups)) > 0


def test_a_mix_of_teachers_is_one_mean_over_all_images(student, teacher):
    """Three images with an embedding, one with groups, one with nothing: each of the four weighs a quarter."""
    student = torch.cat((student, student.flip(3), student.flip(1)))[:5]
    teacher = torch.cat((teacher, teacher.flip(2), teacher))[:5]
    groups = torch.arange(4).repeat_interleave(6).view(1, 24, 1).expand(5, 24, 32).contiguous()
    has_teacher = torch.tensor([True, True, True, True, False])
    teacher[3:] = 0
    each = [relation_distillation(student[i : i + 1], embedding=teacher[i : i + 1]) for i in range(3)]
    each.append(relation_distillation(student[3:4], groups=groups[3:4]))
    mixed = mixed_relation_distillation(student, teacher, groups, attention=None, has_teacher=has_teacher)
    assert float(mixed) == pytest.approx(sum(map(float, each)) / 4, rel=1e-6)
    alone = relation_distillation(student, groups=groups, has_teacher=has_teacher)
    mixed = mixed_relation_distillation(student, 0 * teacher, groups, attention=None, has_teacher=has_teacher)
    assert float(mixed) == float(alone)


def test_needs_exactly_one_teacher(student, teacher):
    with pytest.raises(ValueError, match="exactly one"):
        relation_distillation(student)
    with pytest.raises(ValueError, match="exactly one"):
        relation_distillation(student, embedding=teacher, groups=torch.ones(2, 24, 32))


def test_under_autocast_it_computes_in_float32(student, teacher):
    student, teacher = student.bfloat16(), teacher.half()
    expected = relation_distillation(student.float(), embedding=teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = relation_distillation(student, embedding=teacher)
    assert loss.dtype == torch.float32 and float(loss) == float(expected)
