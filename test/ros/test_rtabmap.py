"""The file for rtabmap, called as PyDetector.cpp and PyMatcher.cpp call it: imported by name from its folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "samfeat_ros" / "rtabmap"


@pytest.fixture
def module(monkeypatch, weights, engine_cache):
    monkeypatch.setenv("SAMFEAT_WEIGHTS", weights)
    monkeypatch.setenv("SAMFEAT_MAX_KEYPOINTS", "300")
    monkeypatch.setenv("XDG_CACHE_HOME", engine_cache)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("samfeat_rtabmap")
    del sys.modules["samfeat_rtabmap"]


def wall() -> np.ndarray:
    noise = np.random.default_rng(5).integers(0, 256, (120, 192), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)


def test_detect_and_match(module, monkeypatch):
    module.init(0)
    extractor = module._extractor
    extractor.threshold = 0.0  # random weights have low scores
    first, second = wall()[:, :160], wall()[:, 32:]
    keypoints, descriptors = module.detect(first)
    assert keypoints.dtype == descriptors.dtype == np.float32
    assert keypoints.flags.c_contiguous and descriptors.flags.c_contiguous
    assert 10 < len(keypoints) <= 300 and keypoints.shape[1] == 3 and descriptors.shape == (len(keypoints), 64)
    keypoints_to, descriptors_to = module.detect(second)

    module.init(64, 0.2, 20, 0, "indoor")
    assert module._extractor is extractor  # the matcher's init leaves the detector alone
    module.init(0)
    assert module._extractor is extractor  # as does a second detector on the same device
    sides = keypoints[:, :2], keypoints_to[:, :2], keypoints[:, 2], keypoints_to[:, 2]
    matches = module.match(*sides, descriptors, descriptors_to, 160, 120)
    assert matches.dtype == np.int64 and matches.flags.c_contiguous and matches.shape[1] == 2
    motion = keypoints[matches[:, 0], :2] - keypoints_to[matches[:, 1], :2]
    np.testing.assert_allclose(np.median(motion, axis=0), [32, 0], atol=0.5)


def test_an_image_without_features_has_rows_of_the_right_width(module):
    module.init(0)
    keypoints, descriptors = module.detect(np.zeros((120, 160), np.uint8))
    assert keypoints.shape == (0, 3) and descriptors.shape == (0, 64)
    empty = np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0), np.zeros(0)
    assert module.match(*empty, descriptors, descriptors, 160, 120).shape == (0, 2)


def test_wrong_use_is_an_error(module):
    with pytest.raises(RuntimeError, match=r"before init"):
        module.detect(wall())
    with pytest.raises(TypeError, match="1 argument .* or 5"):
        module.init(1, 2)
