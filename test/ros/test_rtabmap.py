"""The file for rtabmap, called as PyDetector.cpp and PyMatcher.cpp call it: imported by name from its folder."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
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


def lent(values: np.ndarray) -> tuple[np.ndarray, bytearray]:
    """As rtabmap hands arrays over: over memory of its own, which it uses again after the call."""
    memory = bytearray(np.ascontiguousarray(values).tobytes())
    return np.frombuffer(memory, values.dtype).reshape(values.shape), memory


def from_another_thread(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def test_the_memory_is_rtabmaps_and_so_are_the_threads(module):
    """Answers must not look into memory that was only lent, and have what PyDetector.cpp and PyMatcher.cpp read as C
    arrays: a tuple of two, float32 of three columns, float32 descriptors of as many rows; int64 of two columns."""
    module.init(0)
    module._extractor.threshold = 0.0
    image, memory = lent(wall()[:, :160])
    expected = [part.copy() for part in module.detect(wall()[:, :160])]
    answer = from_another_thread(module.detect, image)
    memory[:] = bytes(len(memory))
    assert isinstance(answer, tuple) and len(answer) == 2
    for part, whole in zip(answer, expected):
        np.testing.assert_array_equal(part, whole)
        assert part.dtype == np.float32 and part.flags.c_contiguous
    keypoints, descriptors = answer
    module.init(descriptors.shape[1], 0.2, 20, 0, "indoor")
    lendings = [lent(part) for part in (keypoints[:, :2], keypoints[:, :2], keypoints[:, 2], keypoints[:, 2])]
    lendings += [lent(descriptors), lent(descriptors)]
    matches = from_another_thread(module.match, *(array for array, _ in lendings), 160, 120)
    for _, memory in lendings:
        memory[:] = bytes(len(memory))
    assert matches.dtype == np.int64 and matches.flags.c_contiguous and matches.shape == (len(keypoints), 2)
    np.testing.assert_array_equal(matches[:, 0], matches[:, 1])  # each row is nearest to itself


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
