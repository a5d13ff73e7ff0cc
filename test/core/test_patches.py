"""Reference patches against images that were warped by known amounts."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from samfeat_core.compiled import TwoThreads
from samfeat_core.tracking.patches import RADIUS, SLOTS, ReferencePatches

SIZE = (200, 160)
NOISE = np.random.default_rng(4).integers(0, 256, (160, 200)).astype(np.float32)
SMOOTH = cv2.GaussianBlur(NOISE, (0, 0), 2.5)
IMAGE = np.clip((SMOOTH - SMOOTH.mean()) / SMOOTH.std() * 40 + 110, 0, 255).astype(np.uint8)
POINTS = np.stack(np.meshgrid(np.arange(30, 180, 20), np.arange(30, 140, 20)), -1).reshape(-1, 2).astype(np.float32)


def warped(matrix) -> np.ndarray:
    """The image under an affine map (2, 3) of its pixels."""
    return cv2.warpAffine(IMAGE, np.asarray(matrix, np.float64), SIZE, flags=cv2.INTER_LINEAR)  # cubic is biased


def anchored() -> tuple[ReferencePatches, np.ndarray]:
    patches = ReferencePatches()
    slots = patches.allocate(len(POINTS))
    patches.anchor(IMAGE, POINTS, slots)
    return patches, slots


@pytest.mark.parametrize("gain", [(1.0, 0.0), (0.5, 20.0), (0.7, 60.0)])
def test_a_shift_is_found_to_a_a_tenth_of_a_pixel_whatever_the_exposure(gain):
    patches, slots = anchored()
    shift = np.array([1.25, -0.75])  # OpenCV moves images by whole 32nds of a pixel
    image = np.clip(warped([[1, 0, shift[0]], [0, 1, shift[1]]]) * gain[0] + gain[1], 0, 255).astype(np.uint8)
    there, warps, trust = patches.align(image, POINTS + [1, -1], slots, iterations=4)
    np.testing.assert_allclose(there, POINTS + shift, atol=0.12)  # interpolation of the image errs by that
    np.testing.assert_allclose((there - POINTS).mean(axis=0), shift, atol=0.02)
    np.testing.assert_allclose(warps, np.broadcast_to(np.eye(2), warps.shape), atol=0.08)
    assert trust.min() > 0.75 and np.median(trust) > 0.88 and trust.max() <= 1 + 1e-5


def test_a_turn_and_a_zoom_are_found_as_a_warp():
    patches, slots = anchored()
    angle, scale = np.radians(6), 1.08
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([100.0, 80.0])
    image = warped(np.column_stack([turn, centre - turn @ centre]))
    truth = (POINTS - centre) @ turn.T + centre
    inner = ((truth > 20) & (truth < np.array(SIZE) - 20)).all(axis=1)
    there, warps, trust = patches.align(image, truth[inner] + [0.6, -0.5], slots[inner], iterations=8)
    np.testing.assert_allclose(there, truth[inner], atol=0.25)
    np.testing.assert_allclose(np.median(there - truth[inner], axis=0), 0, atol=0.03)
    np.testing.assert_allclose(warps, np.broadcast_to(turn, warps.shape), atol=0.12)
    assert trust.min() > 0.8


def test_alignment_to_the_reference_does_not_drift():
    patches, slots = anchored()
    at = POINTS.copy()
    for step in range(1, 31):
        image = warped([[1, 0, 0.7 * step], [0, 1, 0]])
        at, _, _ = patches.align(image, at + np.float32([0.6, 0.1]), slots)  # flow that errs by 0.1 px a frame
    inner = at[:, 0] < SIZE[0] - 10
    np.testing.assert_allclose(at[inner], (POINTS + [21, 0])[inner], atol=0.1)


def test_another_place_is_not_trusted_and_steps_end_at_the_reach():
    patches, slots = anchored()
    elsewhere = np.roll(IMAGE, 53, axis=1)
    there, _, trust = patches.align(elsewhere, POINTS, slots, iterations=4, reach=1.5)
    assert np.median(trust) < 0.6 and np.mean(trust > 0.8) < 0.15
    assert np.abs(there - POINTS).max() <= 1.5 + 1e-5


def test_align_changes_no_warp_and_a_flat_patch_stays():
    patches, slots = anchored()
    flat = np.full_like(IMAGE, 90)
    there, _, trust = patches.align(flat, POINTS, slots)
    np.testing.assert_allclose(there, POINTS, atol=0.1)
    np.testing.assert_allclose(trust, 0, atol=0.05)
    np.testing.assert_array_equal(patches.warps[slots], np.broadcast_to(np.eye(2), (len(slots), 2, 2)))


def test_points_that_are_no_numbers_or_far_outside_harm_nobody():
    patches, slots = anchored()
    points = POINTS.copy()
    points[0], points[1], points[2] = np.nan, (np.inf, -np.inf), (3e9, -3e9)
    there, _, trust = patches.align(IMAGE, points, slots)
    assert not np.isfinite(there[:2]).any() and not trust[2] > 0.5
    np.testing.assert_allclose(there[3:], POINTS[3:], atol=0.05)
    patches.anchor(IMAGE, points[:3], slots[:3])


def test_slots_are_nobody_elses_until_they_are_given_back():
    patches = ReferencePatches()
    first, second = patches.allocate(SLOTS - 1), patches.allocate(7)
    assert len(set(first) | set(second)) == SLOTS + 6
    patches.free(np.array([-1, first[0], -1]))
    rest = patches.allocate(len(patches.warps) - (SLOTS + 6) + 1)
    assert first[0] in rest and -1 not in rest and not set(rest) & (set(first[1:]) | set(second))
    patches.anchor(IMAGE, np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    there, warps, trust = patches.align(IMAGE, np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert there.shape == (0, 2) and warps.shape == (0, 2, 2) and trust.shape == (0,)
    assert RADIUS == 5


def test_two_steps_are_taken_and_end_what_flow_left():
    patches, slots = anchored()
    image = warped([[1, 0, 0.75], [0, 1, -0.5]])  # flow in the halved image is as good as that

    def error(**steps: int) -> float:
        there, _, _ = patches.align(image, POINTS, slots, **steps)
        return float(np.median(np.linalg.norm(there - (POINTS + [0.75, -0.5]), axis=1)))

    assert error() == error(iterations=2) < 0.07 < error(iterations=1)


def test_two_threads_answer_as_one(monkeypatch):
    image = warped([[1, 0.02, 0.4], [-0.03, 1, -0.3]])
    answers = []
    for least in (1, 10**6):
        monkeypatch.setattr(TwoThreads, "LEAST", least)
        patches, slots = anchored()
        answers.append((patches._solver[slots], *patches.align(image, POINTS, slots)))
        assert not len(patches.align(image, POINTS[:0], slots[:0])[0])
        assert len(patches.align(image, POINTS[:1], slots[:1])[0]) == 1
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


# Prints a hash of what is computed with code that is compiled now, or comes from the disk.
ALIGNED = """
import hashlib
from test_patches import POINTS, anchored, warped
patches, slots = anchored()
answer = patches.align(warped([[1, 0.02, 0.4], [-0.03, 1, -0.3]]), POINTS, slots)
print(hashlib.sha256(b"".join(part.tobytes() for part in (patches._solver[slots], *answer))).hexdigest())
"""


def test_the_first_run_computes_what_later_ones_do(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ALIGNED]
    run = partial(subprocess.run, command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True)
    first, later = run(check=True), run(check=True)
    assert any(tmp_path.rglob("patches._align*.nbi"))
    assert len(first.stdout) == 65 and first.stdout == later.stdout
