"""Mutual-nearest-neighbour matching against a plain loop over all pairs."""

import numpy as np
import pytest

from samfeat_core.matching import match_mutual, match_nearby


def unit_rows(rng: np.random.Generator, count: int, dim: int = 16) -> np.ndarray:
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_match(a, b, min_similarity=None, ratio=None):
    pairs = []
    for i in range(len(a)):
        dots = [float(np.dot(a[i], row)) for row in b]
        j = int(np.argmax(dots))
        if int(np.argmax([float(np.dot(row, b[j])) for row in a])) != i:
            continue
        if min_similarity is not None and dots[j] < min_similarity:
            continue
        if ratio is not None:
            second = int(np.argsort(dots)[-2])
            if np.linalg.norm(a[i] - b[j]) >= ratio * np.linalg.norm(a[i] - b[second]):
                continue
        pairs.append((i, j))
    return pairs


@pytest.mark.parametrize("bounds", [{}, {"min_similarity": 0.7}, {"ratio": 0.9}, {"min_similarity": 0.5, "ratio": 0.8}])
def test_equals_the_plain_formulation(bounds):
    rng = np.random.default_rng(1)
    previous = unit_rows(rng, 60)
    current = np.concatenate([previous[10:50] + 0.15 * unit_rows(rng, 40), unit_rows(rng, 15)])
    index, index_prev, similarity = match_mutual(current, previous, **bounds)
    assert list(zip(index, index_prev, strict=True)) == slow_match(current, previous, **bounds)
    assert 5 < len(index) < 55
    np.testing.assert_allclose(similarity, np.einsum("nd,nd->n", current[index], previous[index_prev]), rtol=1e-5)
    assert index.dtype == index_prev.dtype == np.int64 and similarity.dtype == np.float32


def test_a_permutation_is_recovered():
    rng = np.random.default_rng(2)
    previous = unit_rows(rng, 300, 64)
    order = rng.permutation(300)
    index, index_prev, similarity = match_mutual(previous[order], previous)
    np.testing.assert_array_equal(index_prev, order[index])
    assert len(index) == 300
    np.testing.assert_allclose(similarity, 1, atol=1e-5)


def test_no_row_is_used_twice_when_rows_are_identical():
    row = np.ones((1, 4), np.float32) / 2
    index, index_prev, _ = match_mutual(np.repeat(row, 5, 0), np.repeat(row, 3, 0))
    assert len(index) == len(set(index)) == len(set(index_prev)) == 1


@pytest.mark.parametrize("shapes", [((0, 8), (5, 8)), ((5, 8), (0, 8)), ((0, 8), (0, 8))])
def test_empty_sides_give_no_matches(shapes):
    index, index_prev, similarity = match_mutual(*(np.zeros(shape, np.float32) for shape in shapes), ratio=0.9)
    assert len(index) == len(index_prev) == len(similarity) == 0


def test_one_previous_row_passes_the_ratio_bound():
    rows = np.eye(2, dtype=np.float32)
    assert match_mutual(rows, rows[:1], ratio=0.5)[0].tolist() == [0]


def test_rows_of_nan_never_match():
    rows = unit_rows(np.random.default_rng(3), 20)
    broken = rows.copy()
    broken[7] = np.nan
    for current, previous in ((broken, rows), (rows, broken)):
        index, index_prev, similarity = match_mutual(current, previous)
        assert index.tolist() == index_prev.tolist() == [row for row in range(20) if row != 7]
        assert np.isfinite(similarity).all()
    assert len(match_mutual(np.full_like(rows, np.nan), rows)[0]) == 0


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [((3, 4), (3, 5), {}, "same D"), ((3,), (3, 5), {}, "same D"), ((3, 4), (3, 4), {"ratio": 1.5}, "ratio")],
)
def test_bad_input_is_refused(a, b, options, words):
    with pytest.raises(ValueError, match=words):
        match_mutual(np.zeros(a, np.float32), np.zeros(b, np.float32), **options)


@pytest.mark.parametrize(("bound", "kept"), [(0.6, 1), (np.nextafter(np.float32(0.6), np.float32(1)), 0)])
def test_a_similarity_at_the_bound_is_kept(bound, kept):
    current, previous = np.float32([[0.6, 0.8]]), np.float32([[1, 0]])
    assert len(match_mutual(current, previous, min_similarity=bound)[0]) == kept


def test_weights_take_part_in_distances():
    """Rows need not be of unit length: the ratio is of distances, not of dot products."""
    current = np.float32([[2, 0]])
    previous = np.float32([[2, 1], [1.9, -3]])  # at distances 1 and 3.0017
    assert len(match_mutual(current, previous, ratio=0.34)[0]) == 1
    assert len(match_mutual(current, previous, ratio=0.33)[0]) == 0


def test_a_tie_of_distances_fails_the_ratio_of_one():
    rows = np.float32([[1, 0]])
    assert len(match_mutual(rows, np.float32([[0, 1], [0, -1]]), ratio=1.0)[0]) == 0
    assert len(match_mutual(rows, np.float32([[0.1, 1], [0, -1]]), ratio=1.0)[0]) == 1


def test_rows_of_infinity_never_match():
    rows = unit_rows(np.random.default_rng(3), 6)
    broken = rows.copy()
    broken[2, 4], broken[4, 1] = np.inf, -np.inf
    for current, previous in ((broken, rows), (rows, broken)):
        assert match_mutual(current, previous, ratio=0.9)[0].tolist() == [0, 1, 3, 5]


def test_of_rows_that_tie_the_first_keeps_the_match():
    current, previous = np.float32([[0, 1], [1, 0], [1, 0]]), np.float32([[1, 0], [0, 1]])
    index, index_prev, _ = match_mutual(current, previous)
    assert index.tolist() == [0, 1] and index_prev.tolist() == [1, 0]


def test_other_kinds_of_arrays_are_taken():
    rows = np.asfortranarray(unit_rows(np.random.default_rng(5), 12).astype(np.float64))
    index, index_prev, similarity = match_mutual(rows, rows[::-1])
    assert index.tolist() == list(range(12)) and index_prev.tolist() == list(range(11, -1, -1))
    assert similarity.dtype == np.float32


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01])
def test_ratio_lies_above_zero_and_up_to_one(ratio):
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 1\], got"):
        match_mutual(np.zeros((0, 2)), np.zeros((0, 2)), ratio=ratio)
    match_mutual(np.zeros((0, 2)), np.zeros((0, 2)), ratio=1)


def test_nearby_matches_are_mutual_among_what_lies_within_reach():
    rng = np.random.default_rng(5)
    descriptors, lost = unit_rows(rng, 120), unit_rows(rng, 80)
    points, expected = (rng.uniform(0, 100, (count, 2)).astype(np.float32) for count in (120, 80))
    reach = rng.uniform(5, 25, 80).astype(np.float32)
    expected[:5] = np.nan
    index, index_prev = match_nearby(descriptors, points, lost, expected, reach)
    near = np.linalg.norm(points[:, None] - expected, axis=2) < reach
    similarity = np.where(near, descriptors @ lost.T, -np.inf)
    pairs = [
        (int(similarity[:, m].argmax()), m)
        for m in range(80)
        if near[:, m].any() and similarity[similarity[:, m].argmax()].argmax() == m
    ]
    assert list(zip(index.tolist(), index_prev.tolist(), strict=True)) == pairs
    assert 30 < len(pairs) < 75 and near.sum(axis=0).max() > 10
    for count in ((0, 80), (120, 0)):
        nothing = match_nearby(
            descriptors[: count[0]], points[: count[0]], lost[: count[1]], expected[: count[1]], reach[: count[1]]
        )
        assert not len(nothing[0]) and not len(nothing[1])
