"""OpenCV's detectors behind our call."""

import cv2
import numpy as np
import pytest

from samfeat_core.classic import CLASSIC, binary_to_unit, root_sift


def texture():
    noise = np.random.default_rng(0).normal(size=(240, 320)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize("name", CLASSIC)
def test_contract(name):
    extractor = CLASSIC[name](150)
    features = extractor(texture())
    assert 50 < len(features) <= 150
    assert features.image_size == (320, 240)
    assert features.keypoints.dtype == features.scores.dtype == features.descriptors.dtype == np.float32
    assert (np.diff(features.scores) <= 0).all()
    assert np.allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-4)
    colour = extractor(cv2.cvtColor(texture(), cv2.COLOR_GRAY2BGR))
    assert np.allclose(colour.keypoints, features.keypoints)


@pytest.mark.parametrize("name", CLASSIC)
def test_nothing_to_see(name):
    features = CLASSIC[name](150)(np.full((240, 320), 7, np.uint8))
    textured = CLASSIC[name](150)(texture())
    assert len(features) == 0
    assert features.descriptors.shape == (0, textured.descriptors.shape[1])


def test_binary_dot_product_is_hamming():
    bits = np.random.default_rng(1).integers(0, 256, (20, 32), dtype=np.uint8)
    unit = binary_to_unit(bits)
    hamming = np.unpackbits(bits[:, None] ^ bits[None], axis=2).sum(axis=2)
    assert np.allclose(unit @ unit.T, 1 - 2 * hamming / 256, atol=1e-5)


def test_root_sift_by_hand():
    assert np.allclose(root_sift(np.float32([[9, 16, 0, 0]])), [[0.6, 0.8, 0, 0]])
    assert np.isfinite(root_sift(np.zeros((1, 4), np.float32))).all()
