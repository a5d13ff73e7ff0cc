"""The onnxruntime engine: what it runs on, and what it says about that. Its features: test_extractor, test_export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samfeat_core import EngineError, FeatureExtractor, engines
from samfeat_core.engines import Job, candidates, choose_device, onnxruntime
from samfeat_core.engines.onnxruntime import COREML, CPU, CUDA, TENSORRT, providers_for
from samfeat_core.models import MODELS


@pytest.fixture
def job(weights, tmp_path):
    return Job(MODELS["samfeat-nano"], Path(weights), 64, 64, 100, 1, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("device", "installed", "used"),
    [
        ("cpu", [CPU], [CPU]),
        ("cpu", [TENSORRT, CUDA, CPU], [CPU]),
        ("cpu", [CPU, COREML], [COREML, CPU]),
        ("cuda", [CUDA, CPU], [CUDA, CPU]),
        ("cuda:1", [CPU, "OpenVINOExecutionProvider", CUDA, TENSORRT], [TENSORRT, CUDA, CPU]),
    ],
)
def test_providers_are_taken_in_order_of_speed(job, device, installed, used):
    providers = providers_for(replace(job, device=device), installed)
    assert list(providers) == used
    for name in {TENSORRT, CUDA} & set(used):
        assert providers[name]["device_id"] == (1 if device == "cuda:1" else 0)
    if TENSORRT in used:
        assert str(providers[TENSORRT]["trt_engine_cache_path"]).startswith(str(job.cache_dir))


def test_tensorrt_is_left_out_for_more_keypoints_than_it_finds(job):
    lines = []
    job = replace(job, device="cuda", max_keypoints=4096, log=lambda level, text: lines.append((level, text)))
    assert list(providers_for(job, [TENSORRT, CUDA, CPU])) == [CUDA, CPU]
    assert lines == [("warning", "TensorRT finds at most 3840 keypoints, not 4096: left out")]
    assert list(providers_for(replace(job, max_keypoints=3840), [TENSORRT, CUDA, CPU])) == [TENSORRT, CUDA, CPU]


def test_without_tensorrt_there_is_no_bound_of_keypoints(job):
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 96), np.uint8)
    engine = onnxruntime.build(replace(job, width=96, max_keypoints=4096))
    assert engine(image, np.ones((64, 96), np.uint8))[0].shape == (4096, 2)


def test_what_it_runs_on_is_said_once(job):
    lines = []
    onnxruntime.build(replace(job, log=lambda level, text: lines.append((level, text))))
    ((level, text),) = lines
    assert level == "info" and text.startswith("onnxruntime 1.")
    assert text.endswith(" runs samfeat-nano 64x64 on CPUExecutionProvider")


def test_a_gpu_is_never_replaced_by_the_cpu_unseen(job):
    if CUDA in onnxruntime.ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EngineError, match="no provider of onnxruntime .* works on CUDA"):
        onnxruntime.build(replace(job, device="cuda"))


def test_a_gpu_needs_no_torch_for_it(monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 1)
    installed = {"onnxruntime"}
    monkeypatch.setattr(engines, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(onnxruntime.ort, "get_available_providers", lambda: [CUDA, CPU])
    assert choose_device("auto") == ("cuda", "CUDA device found")
    assert candidates("auto", "cuda")[0] == ["onnxruntime"]
    monkeypatch.setattr(onnxruntime.ort, "get_available_providers", lambda: [CPU])
    device, why = choose_device("auto", "onnxruntime")
    assert device == "cpu" and why.startswith("onnxruntime 1.") and why.endswith("was built without CUDA")
    installed.clear()
    assert choose_device("auto") == ("cpu", "neither PyTorch with CUDA nor onnxruntime is installed")


def test_a_robot_needs_the_graph_alone(job, tmp_path, monkeypatch):
    """Where torch or onnx is missing, a graph from another machine serves; else the line says what is missing."""
    import sys

    kept = onnxruntime.cache_path(job)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match="the export to ONNX needs the packages onnx and onnxscript"):
        onnxruntime.build(job)
    monkeypatch.undo()
    onnxruntime.build(job)
    assert sorted(path.name for path in kept.iterdir()) == ["SHA256SUMS", "engine.onnx"]
    monkeypatch.setitem(sys.modules, "samfeat_core.export", None)
    assert onnxruntime.build(job).name == "onnxruntime"


def test_without_openvino_it_is_what_auto_takes(monkeypatch):
    real = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "openvino" else real(name))
    names, notes = candidates("auto", "cpu")
    assert names == ["onnxruntime", "eager", "compile"] and notes == ["openvino: openvino is not installed"]
    assert "onnxruntime" not in candidates("auto", "cpu")[1]


@pytest.mark.parametrize(("wanted", "found"), [(1000, 1024), (2048, 2048), (2049, 3840), (3840, 3840), (3841, 4096)])
def test_engines_find_what_tensorrt_can_where_that_is_enough(weights, tmp_path, wanted, found):
    extractor = FeatureExtractor.from_pretrained(
        "samfeat-nano", "cpu", "eager", wanted, weights=weights, cache_dir=tmp_path
    )
    assert extractor._job((640, 480)).max_keypoints == found
