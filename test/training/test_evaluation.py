"""`python -m training.evaluate`: suites, extractors by name, the report files, reuse, and bad input in one line."""

import json
import sys

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from samfeat_core.features import Features
from training.evaluate import app
from training.evaluation import report
from training.evaluation.extractors import resolve

SHIFT = np.array([[1.0, 0, 7], [0, 1, -4], [0, 0, 1]])

EXTRACTORS = """
import numpy as np
from samfeat_core.features import Features

calls = []

def corners(max_keypoints):
    import cv2
    def extract(image):
        calls.append(1)
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        points = cv2.goodFeaturesToTrack(grey, max_keypoints, 0.01, 8)[:, 0]
        inside = (np.abs(points - 160) < 140)[:, 0] & (np.abs(points - 120) < 100)[:, 1]
        points = points[inside]
        patches = np.stack([cv2.getRectSubPix(grey, (15, 15), tuple(map(float, p))).ravel() for p in points])
        patches = patches.astype(np.float32) - patches.mean(axis=1, keepdims=True)
        patches /= np.linalg.norm(patches, axis=1, keepdims=True)
        return Features(points, np.linspace(1, 0.5, len(points), dtype=np.float32), patches, (320, 240))
    return extract

def without_budget():
    return corners(2000)

def no_extractor():
    return 5

def first_ten():
    return lambda first, second: (np.arange(10), np.arange(10))

def beyond():
    return lambda first, second: ([0], [len(second)])
"""


def texture(seed):
    noise = np.random.default_rng(seed).normal(size=(240, 320, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Evaluation data in a folder, and an extractor module in the working folder."""
    scene = tmp_path / "data" / "homography" / "v_texture"
    scene.mkdir(parents=True)
    image = texture(0)
    cv2.imwrite(str(scene / "1.png"), image)
    cv2.imwrite(str(scene / "2.png"), cv2.warpPerspective(image, SHIFT, (320, 240)))
    np.savetxt(scene / "H_1_2", SHIFT)
    walk = tmp_path / "data" / "sequences" / "walk"
    (walk / "image").mkdir(parents=True)
    for n in range(8):
        cv2.imwrite(str(walk / "image" / f"{n}.png"), np.roll(image, 3 * n, axis=1))
    poses = np.tile(np.eye(4)[:3], (8, 1, 1))
    poses[:, 0, 3] = np.arange(8) * -0.03
    np.savetxt(walk / "poses.txt", poses.reshape(8, 12))
    (walk / "calib.txt").write_text("P0: 300 0 160 0 0 300 120 0 0 0 1 0\n")
    (tmp_path / "my_extractors.py").write_text(EXTRACTORS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "data"
    sys.modules.pop("my_extractors", None)


def evaluate(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_run_prints_the_table_and_writes_the_report(data):
    result = evaluate("--data", data, "--extractor", "my_extractors:corners", "--output", "out", "--max-keypoints", 300)
    assert result.exit_code == 0, result.output
    for word in ("orb", "sift", "akaze", "my_extractors:corners", "MMA@3", "AUC@5", "kpts", "matches"):
        assert word in result.output
    written = json.loads((data.parent / "out" / "report.json").read_text())
    assert (written["format"], written["version"]) == ("samfeat-evaluation", 1)
    assert written["settings"]["max_keypoints"] == 300
    results = {(r["extractor"], r["dataset"]): r for r in written["results"]}
    assert len(results) == 4 * 2
    for name in ("orb", "sift", "akaze", "my_extractors:corners"):
        flat = results[name, "homography"]
        assert flat["mma"]["3"] > 80, name
        assert flat["keypoints"] <= 300 and flat["cpu_ms"] > 0
        assert results[name, "walk"]["pairs"] == 1
    assert cv2.imread(str(data.parent / "out" / "mma_homography.png")) is not None


def test_reuse_takes_foreign_results_over_and_counts_the_protocol(data):
    first = ("--data", data, "--suite", "homography", "--no-peers", "--extractor", "my_extractors:corners")
    assert evaluate(*first, "--output", "one").exit_code == 0
    calls = sys.modules["my_extractors"].calls
    calls.clear()
    assert evaluate(*first, "--output", "two", "--reuse", "one/report.json").exit_code == 0
    assert not calls
    (taken,) = report.read(data.parent / "two" / "report.json")["results"]
    assert taken["reused"]
    assert evaluate(*first, "--output", "two", "--reuse", "one/report.json", "--max-keypoints", 50).exit_code == 0
    assert calls


def test_any_matcher_takes_the_place_of_nearest_neighbours(data):
    run = ("--data", data, "--no-peers", "--extractor", "my_extractors:corners", "--max-keypoints", 300)
    assert evaluate(*run, "--matcher", "my_extractors:first_ten", "--output", "ten").exit_code == 0
    written = report.read(data.parent / "ten" / "report.json")
    assert written["settings"]["matcher"] == "my_extractors:first_ten"
    for result in written["results"]:
        assert result["matches"] == 10 and result["protocol"]["matcher"] == "my_extractors:first_ten"
    # another matcher, another protocol: nothing is taken over
    assert evaluate(*run, "--reuse", "ten/report.json", "--output", "out").exit_code == 0
    for result in report.read(data.parent / "out" / "report.json")["results"]:
        assert "matcher" not in result["protocol"] and "reused" not in result


def test_all_runs_what_is_there(data):
    result = evaluate("--data", data, "--suite", "all", "--no-peers", "--extractor", "orb", "--output", "out")
    assert result.exit_code == 0, result.output
    assert {r["suite"] for r in report.read(data.parent / "out" / "report.json")["results"]} == {
        "homography",
        "pose",
        "stress",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "nowhere"], 1, "nowhere: no such folder"),
        (["--suite", "everything"], 2, "--suite everything: unknown"),
        (["--suite", "all", "--data", "."], 1, ".: none of the folders homography, sequences, wide, hpatches"),
        (["--suite", "hpatches"], 1, "hpatches: no such folder"),
        (["--suite", "megadepth1500"], 1, "megadepth1500: no such folder"),
        (["--extractor", "no_such_module:make"], 2, "no module named 'no_such_module'"),
        (["--extractor", "my_extractors:nothing"], 2, "has no attribute 'nothing'"),
        (["--extractor", "my_extractors:no_extractor"], 2, "returned int, not a callable"),
        (["--extractor", "superglue"], 2, "unknown model 'superglue'"),
        (["--extractor", "samfeat-nano", "--device", "tpu"], 2, "device is 'tpu', expected one of auto, cuda, cpu"),
        (["--extractor", "samfeat-nano=gone.safetensors"], 1, "gone.safetensors: no such weights file"),
        (["--matcher", "nearest"], 2, "matcher 'nearest': expected module:function"),
        (["--matcher", "no_such_module:make"], 2, "matcher 'no_such_module:make': no module named 'no_such_module'"),
        (["--matcher", "my_extractors:no_extractor"], 2, "no_extractor() returned int, not a callable"),
        (["--matcher", "my_extractors:beyond"], 1, "matcher 'my_extractors:beyond': expected two arrays of row"),
        (["--reuse", "gone.json"], 1, "gone.json: not a readable evaluation report"),
        (["--reuse", "other.json"], 1, "other.json: not an evaluation report of version 1"),
    ],
)
def test_bad_input_is_one_line_and_2_for_wrong_usage(data, arguments, code, said):
    (data.parent / "other.json").write_text("{}")
    folder = [] if "--data" in arguments else ["--data", data]
    extractor = [] if "--extractor" in arguments else ["--extractor", "orb"]
    result = evaluate(*folder, *extractor, "--no-peers", *arguments)
    assert result.exit_code == code
    lines = (result.output + ("" if result.output else result.stderr)).strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_extractors_by_name(data):
    image = texture(1)
    for name in ("orb", "sift", "akaze", "my_extractors:corners", "my_extractors:without_budget"):
        features = resolve(name, 200)(image)
        assert isinstance(features, Features) and len(features) > 50


def test_table_has_a_line_for_every_extractor_and_a_dash_for_what_is_missing():
    flat = {"suite": "s", "dataset": "d", "kind": "homography", "pairs": 3, "mma": {"3": 12.345}}
    text = report.table([{**flat, "extractor": "one"}, {**flat, "extractor": "two", "localisation_px": None}])
    lines = text.splitlines()
    assert len(lines) == 4 and "3 pairs" in lines[0]
    assert "12.3" in lines[2] and "-" in lines[3]
    assert len(set(map(len, lines[1:]))) == 1
