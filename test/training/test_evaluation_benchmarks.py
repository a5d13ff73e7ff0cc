"""The benchmark scripts measure what they say; how fast a machine is, is no test."""

import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from samfeat_core.features import Features

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_report  # noqa: E402
import cpu_path  # noqa: E402
import cuda_engines  # noqa: E402


def test_neighbours_in_the_walk_are_consecutive_frames():
    walk = list(islice(cpu_path.back_and_forth(4), 13))
    assert walk == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


def slow(seconds):
    def extract(image):
        time.sleep(seconds)
        points = np.random.default_rng(0).uniform(0, 100, (30, 2)).astype(np.float32)
        return Features(points, np.ones(30, np.float32), np.eye(30, dtype=np.float32), (128, 96))

    return extract


def test_times_belong_to_their_stage_and_extractor():
    frames = [np.zeros((96, 128), np.uint8)] * 3
    runners = [cpu_path.Runner(name, slow(s), frames, 20, "match") for name, s in (("orb", 0.002), ("ours", 0.02))]
    orb, ours = cpu_path.measure(runners, 25)
    assert [len(runner.times) for runner in runners] == [25, 25]
    assert orb["extract_ms"]["p50"] >= 2 and ours["extract_ms"]["p50"] >= 20
    assert ours["keypoints"] == 20 and ours["matches"] == 20
    assert ours["total_ms"]["p50"] >= ours["extract_ms"]["p50"]
    assert ours["times_orb"] == pytest.approx(ours["total_ms"]["p50"] / orb["total_ms"]["p50"])
    assert ours["times_sift"] is None
    assert ours["hz"] <= 50 and 0 < ours["cpu_ms"] < ours["total_ms"]["p50"]  # it sleeps


def test_moving_view_moves_without_jumps():
    pytest.importorskip("skimage")
    frames = cpu_path.moving_view((160, 120), 40)
    assert len(frames) == 40 and frames[0].shape == (120, 160, 3)
    change = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)]
    assert min(change) > 0 and max(change) < 40


def test_script_prints_the_table_and_writes_json(tmp_path):
    pytest.importorskip("skimage")
    command = [sys.executable, "benchmarks/cpu_path.py", "--extractor", "orb", "--frames", "6", "--threads", "1"]
    command += ["--width", "320", "--height", "240", "--images", str(tmp_path / "none")]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "none: expected a folder with at least two images" in refused.stderr
    frames = tmp_path / "frames"
    frames.mkdir()
    import cv2

    for n, frame in enumerate(cpu_path.moving_view((320, 240), 4)):
        cv2.imwrite(str(frames / f"{n}.png"), frame)
    command[-1] = str(frames)
    command += ["--output", str(tmp_path / "b" / "cpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "x SIFT" in done.stdout and "320x240, 1024 keypoints, 1 threads" in done.stdout
    written = json.loads((tmp_path / "b" / "cpu.json").read_text())
    assert written["version"] == 1 and [row["extractor"] for row in written["results"]] == ["orb", "sift"]
    assert all(row["matches"] > 20 for row in written["results"])


def raw(points, scores, descriptors):
    return np.float32(points), np.float32(scores), np.float32(descriptors), np.ones(len(points), np.float32)


def test_agreement_counts_met_keypoints_and_compares_their_descriptors():
    points, scores = [[10, 10], [20, 20], [30, 30], [40, 40], [0, 0]], [0.9, 0.8, 0.7, 0.6, 0]
    reference = raw(points, scores, np.eye(5))
    assert cuda_engines.agreement(reference, reference) == (1.0, 1.0)
    # another order, one 0.05 px off, one 3 px off; a row of score 0 is no keypoint
    other = raw([[20.05, 20], [10, 10], [30, 33], [40, 40], [0, 0]], scores, np.eye(5)[[1, 0, 2, 3, 4]])
    share, cosine = cuda_engines.agreement(other, reference)
    assert share == 0.75 and cosine == 1
    turned = raw(points, scores, np.roll(np.eye(5), 1, axis=1))
    assert cuda_engines.agreement(turned, reference) == (1.0, 0.0)
    nothing = raw(np.zeros((1, 2)), [0], np.eye(1, 5))
    assert cuda_engines.agreement(nothing, reference)[0] == 0


def test_engines_are_measured_and_missing_ones_say_why(tmp_path):
    pytest.importorskip("skimage")
    assert cuda_engines.engine_names(["openvino"], "cpu") == ["eager", "openvino"]
    with pytest.raises(ValueError, match="engine tensorrt does not run on cpu"):
        cuda_engines.engine_names(["tensorrt"], "cpu")
    ((name, weights),) = cuda_engines.find_models(["samfeat-nano"], True, tmp_path)
    frame = cuda_engines.load_frame(None, (160, 120))
    bench = cuda_engines.Bench(name, weights, "cpu", frame, 100, 2, tmp_path)
    eager = bench.measure("eager")
    assert eager["agree_keypoints"] == 1 and eager["agree_cosine"] == pytest.approx(1)
    assert eager["keypoints"] > 0 and eager["memory_mib"] is None
    assert 0 < eager["device_ms"]["p50"] <= eager["device_ms"]["p90"]
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    broken = cuda_engines.Bench(name, tmp_path / "broken.safetensors", "cpu", frame, 100, 2, tmp_path).measure("eager")
    assert "broken.safetensors" in broken["error"]
    text = cuda_engines.table([eager, broken]).splitlines()
    assert len(text) == 3 and "broken.safetensors" in text[2]


def test_a_slow_path_stops_at_its_time_and_is_measured_nevertheless():
    frames = [np.zeros((96, 128), np.uint8)] * 3
    quick, slower = (cpu_path.Runner(name, slow(s), frames, 20, "match") for name, s in (("a", 0.0), ("b", 0.05)))
    cpu_path.measure([quick, slower], 30, seconds=0.2)
    assert len(quick.times) == 30 and cpu_path.LEAST <= len(slower.times) <= 5
    cpu_path.measure([slower], 30, seconds=0.0)
    assert len(slower.times) == cpu_path.LEAST


@pytest.fixture(scope="module")
def bench_folder(tmp_path_factory):
    """What a short run of one engine writes."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "benchmarks/bench.py", "--short", "--model", "samfeat-nano", "--engine", "openvino"]
    done = subprocess.run([*command, "--output", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_bench_measures_every_contestant_at_every_setting(bench_folder):
    report = json.loads((bench_folder / "report.json").read_text())
    assert report["version"] == 1 and report["machine"]["cpu"]
    places = {(row["width"], row["height"], row["max_keypoints"]) for row in report["results"]}
    assert places == {(96, 64, 128), (64, 48, 128), (96, 64, 64)}
    names = ["samfeat-nano openvino", "orb", "sift"]
    assert [row["contestant"] for row in report["results"]] == names * 3
    for row in report["results"]:
        assert row["frames"] >= cpu_path.LEAST and row["hz"] > 0
        for stage in cpu_path.STAGES:
            assert 0 <= row[stage]["p50"] <= row[stage]["p90"] <= row[stage]["p99"]
        assert row["keypoints"] <= row["max_keypoints"]
    assert all(report["starts"][name]["memory_mib"] > 20 and report["starts"][name]["start_s"] > 0 for name in names)


def test_bench_writes_a_page_and_pictures(bench_folder):
    page = (bench_folder / "report.md").read_text()
    assert json.loads((bench_folder / "report.json").read_text())["machine"]["cpu"] in page
    assert page.count("| samfeat-nano openvino |") == page.count("| orb |") == 3
    assert "| --- |" in page and "## 96x64, 128 keypoints" in page
    assert (bench_folder / "curves.png").stat().st_size > 5000


def test_the_page_has_each_figure_in_its_place():
    def row(name, size, budget, ms):
        spread = {"p50": ms, "p90": 2 * ms, "p99": 3 * ms}
        width, height = size
        return {
            "contestant": name, "width": width, "height": height, "max_keypoints": budget, "total_ms": spread,
            "extract_ms": {rank: value / 2 for rank, value in spread.items()}, "hz": 1e3 / ms, "cpu_ms": 1.5 * ms,
        }  # fmt: skip

    report = {
        "machine": {"cpu": "a CPU"},
        "settings": {
            "at": "64x48", "keypoints": 100, "sizes": ["64x48", "96x64"], "budgets": [50, 100], "threads": 2,
            "load_before": 0.0,
        },
        "results": [
            row("net fast", (64, 48), 100, 4.0), row("orb", (64, 48), 100, 8.0), row("net fast", (96, 64), 100, 16.0),
            row("orb", (64, 48), 50, 7.0), {"contestant": "net odd", "width": 64, "height": 48, "max_keypoints": 100,
            "error": "odd cannot be built here"},
        ],
        "starts": {"net fast": {"start_s": 1.25, "memory_mib": 300.4}},
        "accuracy": {"net fast": {"mma": 57.04, "auc": 60.0, "survival": 40.0, "as_accurate": True}},
        "node": [{"ready_s": 5.5, "torch": True, "images_ms": [9.0, 8.0, *[7.0] * 18]}],
    }  # fmt: skip
    page = bench_report.page(report).splitlines()
    fast = "| net fast | 2.0 / 4.0 / 6.0 | 4.0 / 8.0 / 12.0 | 6.0 | 0.50 | 250 | 1.2 | 300 | 57.0 | 60.0 | 40.0 | yes |"
    assert fast in page and page.index(fast) < page.index(next(line for line in page if line.startswith("| orb")))
    assert "| net fast | 4.0 | 16.0 |" in page and "| net fast | - | 4.0 |" in page and "| orb | 7.0 | 8.0 |" in page
    assert "| cold | 5.50 | yes | 9.0 | 8.0 | 7.0 |" in page
    assert "Did not run: net odd: odd cannot be built here" in page
