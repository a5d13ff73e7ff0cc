"""`python -m samfeat_core.prepare`: what a first start would have to do is done ahead of it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from samfeat_core.engines import EngineError, Job, build_engine, openvino
from samfeat_core.models import model_spec


def test_engine_and_compiled_tracker_are_kept(tmp_path, weights):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    command = [sys.executable, "-m", "samfeat_core.prepare", "96x64", "--engine", "openvino", "--weights", weights]
    command += ["--cache-dir", str(tmp_path / "engines"), "--max-keypoints", "64"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name.split("-")[2] for path in (tmp_path / "engines").iterdir()] == ["96x64"]
    kept = {path.name.split("-")[0] for path in (tmp_path / "numba").rglob("*.nbi")}
    assert {"patches._align", "patches._anchor"} <= kept
    refused = subprocess.run([*command[:3], "96x64", "--weights", "none.safetensors"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("none.safetensors: no such weights file")


def job(weights, tmp_path, spec="samfeat-nano"):
    return Job(model_spec(spec), weights, 64, 96, 64, 1, "cpu", tmp_path)


def test_a_built_engine_has_run_once(monkeypatch, tmp_path, weights):
    runs = []

    class Engine:
        name = "openvino"

        def __call__(self, image, mask):
            runs.append((image.shape, image.dtype, mask.shape, mask.dtype))

    monkeypatch.setattr(openvino, "build", lambda job: Engine())
    build_engine(["openvino"], job(weights, tmp_path), lambda level, text: None)
    assert runs == [((1, 64, 96), np.uint8, (64, 96), np.uint8)]


def test_an_engine_that_does_not_run_is_as_one_that_cannot_be_built(monkeypatch, tmp_path, weights):
    class Engine:
        name = "openvino"

        def __call__(self, image, mask):
            raise RuntimeError("illegal instruction")

    monkeypatch.setattr(openvino, "build", lambda job: Engine())
    lines = []
    with pytest.raises(EngineError, match="no engine could be built on cpu: tried openvino"):
        build_engine(["openvino"], job(weights, tmp_path), lambda level, text: lines.append((level, text)))
    assert [level for level, _ in lines] == ["error"]
    assert "openvino does not run (RuntimeError: illegal instruction)" in lines[0][1]
