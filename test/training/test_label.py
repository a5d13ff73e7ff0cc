import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from samfeat_core.classic import sift
from samfeat_core.features import Features
from samfeat_core.models import build_network
from training.data.feature_store import FeatureStore
from training.data.label_store import KeypointLabels, LabelStore
from training.data.photo_store import StoreError
from training.data.photos import PhotoLoader
from training.label import app, label
from training.samfeat.labels.detectors import load_detector
from training.samfeat.labels.homographic_adaptation import peaks, random_homography, repeatability_map
from training.samfeat.labels.shapes import DRAWINGS, Canvas, draw_checkerboard, render

REPOSITORY = Path(__file__).parents[2]
CORNERS = np.array([[60.25, 40.5], [140, 47], [133, 111], [52, 104.75]])


def square(size=(200, 160), corners=CORNERS):
    """A tilted white square on grey with a little noise, its corners at `corners` (half-pixel centres)."""
    image = np.full((size[1] * 4, size[0] * 4), 90, np.uint8)
    fixed = np.rint(((corners + 0.5) * 4 - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(image, [fixed], 220, cv2.LINE_AA, 4)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(float)
    noisy = image + np.random.default_rng(0).normal(0, 1, image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def distances(points, corners=CORNERS):
    return np.linalg.norm(corners[:, None] - points[None], axis=2).min(1)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_corners_of_a_square():
    points, scores = label(square(), load_detector("shi-tomasi", 50), 40, np.random.default_rng(1), radius=4)
    assert len(points) == 4 and distances(points).max() < 1
    assert (np.diff(scores) <= 0).all() and scores[-1] > 0.6 and scores[0] <= 1


def test_blobs_by_sift():
    y, x = np.mgrid[:160, :200]
    image = np.full((160, 200), 90.0)
    for cx, cy in CORNERS:
        image += 120 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 3**2))
    points, scores = label(image.astype(np.uint8), load_detector("sift", 50), 40, np.random.default_rng(1))
    assert distances(points).max() < 1 and (scores[:4] > 0.6).all()


def test_large_photographs_are_labelled_small_in_their_own_pixels():
    large = cv2.resize(square(), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    detector = load_detector("shi-tomasi", 50)
    points, _ = label(large, detector, 40, np.random.default_rng(1), threshold=0.6, long_side=200)
    assert distances(points, (CORNERS + 0.5) * 4 - 0.5).max() < 4


@pytest.mark.parametrize("value", [0, 128, 255])
def test_nothing_in_a_featureless_photograph(value):
    flat = np.full((60, 80), value, np.uint8)
    for base in ("shi-tomasi", "sift"):
        points, scores = label(flat, load_detector(base, 50), 5, np.random.default_rng(0))
        assert points.shape == (0, 2) and scores.shape == (0,) and points.dtype == np.float32


def test_score_is_the_share_of_views_that_find_the_point():
    """A detector that knows the truth but only answers in every second view."""
    random = np.random.default_rng(5)
    size, point = (120, 90), np.array([[[61.3, 40.8]]])
    matrices = [np.eye(3), *(random_homography(random, size) for _ in range(39))]
    # Batches come in order: this is the view's number.
    number = iter(range(40))

    def detect(views):
        answers = []
        for _ in views:
            k = next(number)
            where = cv2.perspectiveTransform(point, matrices[k])[0].astype(np.float32)
            answers.append(where if k % 2 == 0 else np.empty((0, 2), np.float32))
        return answers

    score = repeatability_map(np.zeros(size[::-1], np.uint8), detect, 40, np.random.default_rng(5))
    positions, scores = peaks(score, 0.1, 3, 10)
    assert len(positions) == 1 and np.linalg.norm(positions[0] - point[0, 0]) < 0.1
    assert scores[0] == pytest.approx(0.5, abs=0.12)


def test_peaks_by_hand():
    score = np.zeros((12, 14), np.float32)
    score[3, 4], score[3, 5], score[3, 3] = 0.9, 0.6, 0.3
    score[9, 11] = 0.5
    score[0, 0] = 0.7
    score[5, 5] = 0.8  # within 2 of the first
    score[11, 6] = 0.1
    positions, scores = peaks(score, 0.2, 2, 10)
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.5])
    # Parabola through 0.3, 0.9, 0.6: 0.5 (0.3 - 0.6) / (0.3 - 1.8 + 0.6)
    np.testing.assert_allclose(positions, [[4 + 1 / 6, 3], [0, 0], [11, 9]], atol=1e-6)
    assert len(peaks(score, 0.2, 2, 2)[0]) == 2


def test_homographies_keep_most_of_the_photograph():
    random = np.random.default_rng(0)
    shown = []
    for _ in range(100):
        matrix = random_homography(random, (160, 120))
        shown.append(cv2.warpPerspective(np.ones((120, 160), np.float32), np.linalg.inv(matrix), (160, 120)).mean())
    assert min(shown) > 0.2 and np.mean(shown) > 0.6


@pytest.mark.parametrize("kind", list(DRAWINGS))
def test_shapes(kind):
    counts = []
    for seed in range(12):
        image, corners = render(np.random.default_rng(seed), (96, 64), kind)
        again, same = render(np.random.default_rng(seed), (96, 64), kind)
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(corners, same)
        assert image.shape == (64, 96) and image.dtype == np.uint8
        assert corners.shape[1] == 2 and corners.dtype == np.float32
        assert (corners >= 0).all() and (corners <= (95, 63)).all()
        counts.append(len(corners))
    assert (kind in ("ellipses", "noise")) == (max(counts) == 0)


def test_corners_are_where_the_image_has_them():
    """Subpixel corner refinement, started at the labels of clean boards, stays there."""
    moved = []
    for seed in range(40):
        canvas = Canvas(np.random.default_rng(seed), (192, 160))
        corners = draw_checkerboard(canvas)
        inner = corners[((corners > 12) & (corners < (180, 148))).all(1)].astype(np.float32)
        if len(inner):
            image = cv2.GaussianBlur(canvas.render(), (0, 0), 0.7)
            stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.01)
            moved.append(cv2.cornerSubPix(image, inner[:, None].copy(), (3, 3), (-1, -1), stop)[:, 0] - inner)
    offset = np.concatenate(moved)
    assert len(offset) > 300
    assert np.median(np.linalg.norm(offset, axis=1)) < 0.35 and np.abs(np.median(offset, 0)).max() < 0.05


def test_shapes_need_room():
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, got 31 x 64"):
        render(np.random.default_rng(0), (31, 64))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    cv2.imwrite(str(folder / "square.png"), square())
    cv2.imwrite(str(folder / "sub/other.png"), cv2.flip(square(), 1))
    cv2.imwrite(str(folder / "tiny.png"), square()[:20])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_command(photos, tmp_path):
    command = ("photos", photos, tmp_path / "store", "--views", 20, "--count", 4)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "2 photographs written" in result.output and "2 files could not be used" in result.output
    store = LabelStore(tmp_path / "store")
    assert store.names() == ["square", "sub/other"]
    found = store.labels("square")
    assert found.image_size == (200, 160) and found.base == "shi-tomasi"
    assert found.keypoints.shape == (4, 2) and found.keypoints.dtype == found.scores.dtype == np.float32
    assert distances(found.keypoints).max() < 1
    skipped = (tmp_path / "store/skipped-0-of-1.txt").read_text()
    assert "broken: cannot be decoded" in skipped and "tiny: 200x20 pixels are too few" in skipped
    assert "0 photographs written, 2 were there" in run(*command).output
    other = run(*command, "--seed", 1)
    assert other.exit_code == 1 and "seed = 0 (now 1)" in other.output


def test_labels_do_not_depend_on_the_ranks(photos, tmp_path, monkeypatch):
    command = ("photos", photos, "--views", 6)
    run(*command, tmp_path / "alone")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run(*command, tmp_path / "shared")
    for name in ("square", "sub/other"):
        alone, shared = (LabelStore(tmp_path / store).path(name).read_bytes() for store in ("alone", "shared"))
        assert alone == shared


def test_killed_it_continues(photos, tmp_path):
    for i in range(12):
        cv2.imwrite(str(photos / f"{i:02}.png"), np.roll(square(), i, 1))
    command = [sys.executable, "-m", "training.label", "photos", photos, tmp_path / "store", "--views", "20"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": REPOSITORY}
    process = subprocess.Popen(command, **pipes)
    deadline = time.monotonic() + 60
    store = LabelStore(tmp_path / "store")
    while len(store.names()) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.003)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    names = store.names()
    assert 3 <= len(names) < 14
    assert all(len(store.labels(name).keypoints) for name in names)
    output = subprocess.run(command, check=True, **pipes).stdout
    assert f"{14 - len(names)} photographs written, {len(names)} were there" in output


def test_unknown_base_is_named(photos, tmp_path):
    result = run("photos", photos, tmp_path / "store", "--base", "fast")
    assert result.exit_code == 2 and "fast: neither one of shi-tomasi, sift nor a weights file" in result.output
    (tmp_path / "base.safetensors").write_bytes(b"no weights")
    result = run("photos", photos, tmp_path / "store", "--base", tmp_path / "base.safetensors", "--device", "cpu")
    assert result.exit_code == 1 and "base.safetensors: not a readable weights file" in result.output


def test_labels_come_back_as_written(tmp_path):
    store = LabelStore(tmp_path)
    written = KeypointLabels(CORNERS.astype(np.float32), np.linspace(1, 0.5, 4, dtype=np.float32), (200, 160), "sift")
    store.put("x", written)
    read = store.labels("x")
    np.testing.assert_array_equal(read.keypoints, written.keypoints)
    np.testing.assert_array_equal(read.scores, written.scores)
    assert read.image_size == (200, 160) and read.base == "sift"
    store.write("y", {"keypoints": written.keypoints}, {})
    with pytest.raises(StoreError, match="y.npz: not an entry of a samfeat keypoint labels store"):
        store.labels("y")


def test_features_of_an_extractor_in_pixels_of_the_photograph(photos, tmp_path):
    result = run("features", photos, tmp_path / "store", "--extractor", "sift", "--count", 60, "--octaves", 2)
    assert result.exit_code == 0, result.output
    store = FeatureStore(tmp_path / "store")
    name = store.names()[0]
    entry = store.features(name)
    assert set(entry.octaves) == {0, 1} and entry.descriptors.shape == (len(entry.keypoints), 128)
    assert (np.bincount(entry.octaves) <= 60).all()
    grey = cv2.imread(str(photos / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    assert entry.image_size == (grey.shape[1], grey.shape[0])
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    expected = (sift(60)(half).keypoints + 0.5) * 2 - 0.5
    np.testing.assert_allclose(entry.keypoints[entry.octaves == 1], expected, atol=1)
    again = run("features", photos, tmp_path / "store", "--extractor", "sift", "--count", 60, "--octaves", 2)
    assert "0 photographs written" in again.output


@pytest.mark.parametrize(("looked_at", "widths"), [(640, [0.5, 1.0]), (160, [0.625, 1.25]), (100, [1.0])])
def test_a_view_is_taught_what_was_found_in_pixels_of_its_own_width(photos, tmp_path, looked_at, widths):
    """The photograph of 200x160 is decoded at half its size; features were found in one of that size and its half."""
    store = tmp_path / "store"
    run("features", photos, store, "--extractor", "sift", "--count", 60, "--octaves", 2, "--long-side", looked_at)
    photo = PhotoLoader(1, 100, features=FeatureStore(store)).load(photos / "square.png", "square")
    assert [octave.pixel_width for octave in photo.references] == widths
    for step in (0.3, 0.7, 0.72, 1.4, 1.42, 5.0):
        nearest = min(widths, key=lambda width: max(width / step, step / width))
        assert photo.reference(step).pixel_width == nearest


def test_a_store_of_the_former_name_is_read_and_continued(photos, tmp_path):
    command = ("features", photos, tmp_path / "store", "--extractor", "sift", "--count", 60)
    run(*command)
    manifest = tmp_path / "store" / "store.json"
    assert '"samfeat reference features"' in manifest.read_text()
    manifest.write_text(manifest.read_text().replace("reference features", "example features"))
    assert len(FeatureStore(tmp_path / "store").features("square").keypoints)
    assert "0 photographs written, 2 were there" in run(*command).output
    manifest.write_text(manifest.read_text().replace("example features", "teacher"))
    assert "holds 'samfeat teacher' version 1, expected 'samfeat reference features'" in run(*command).output


def test_features_of_other_weights_of_the_same_name_are_refused(photos, tmp_path):
    weights = tmp_path / "best.safetensors"
    for seed, code in ((1, 0), (1, 0), (2, 1)):
        torch.manual_seed(seed)
        save_file(build_network("samfeat-nano").state_dict(), weights)
        extractor = f"samfeat-nano={weights}"
        result = run(
            "features", photos, tmp_path / "store", "--extractor", extractor, "--octaves", 1, "--device", "cpu"
        )
        assert result.exit_code == code, result.output
    assert "was written with weights = " in result.output


def test_scores_that_are_no_probabilities_are_refused(photos, tmp_path):
    result = run("features", photos, tmp_path / "store", "--extractor", "test_label:large_scores")
    assert result.exit_code == 1 and "scores reach 30, expected to be in [0, 1]" in result.output


def large_scores():
    return lambda image: Features(np.zeros((1, 2)), np.array([30.0]), np.ones((1, 4)), image.shape[1::-1])


def test_an_extractor_that_is_not_there_is_named(photos, tmp_path):
    for extractor, code in (("nowhere:at_all", 2), ("samfeat=/nowhere.safetensors", 1)):
        result = run("features", photos, tmp_path / "store", "--extractor", extractor)
        assert result.exit_code == code and len(result.output.strip().splitlines()) == 1
        assert extractor.split("=")[-1].split(":")[0] in result.output
