"""`auto`: the fastest of the engines that are as accurate as eager, by the table of accuracy and a self-test."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from samfeat_core.engines import INEXACT, LIBRARY, choice, fingerprint, probe
from samfeat_core.engines.choice import Row, identity, prefer, read_table, write_table
from samfeat_core.errors import FileError
from samfeat_core.extractor import SHIPPED_WEIGHTS, FeatureExtractor
from samfeat_core.measure import cpu_count, cpu_name

ALL_FLAGS = {flag for flags in choice.NEEDS.values() for flag in flags}
EXACT = ["openvino", "eager", "compile"]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights" / "mine.safetensors"
    path.parent.mkdir()
    shutil.copy(SHIPPED_WEIGHTS / "samfeat-nano.safetensors", path)
    path.with_suffix(".int8.json").write_text("{}")
    return path


@pytest.fixture
def table(monkeypatch):
    """Puts rows in the place of the table, on a CPU that has every instruction."""
    monkeypatch.setattr(choice, "cpu_flags", lambda: ALL_FLAGS)

    def put(*rows: Row) -> None:
        monkeypatch.setattr(choice, "_rows", lambda: {(row.model, row.engine): row for row in rows})

    return put


def row(engine, weights, as_accurate=True, model="samfeat-nano"):
    return Row(model, engine, identity(engine, weights), "library 1", "a CPU", {}, as_accurate)


def remember(monkeypatch, **milliseconds):
    """A self-test that has been run."""
    monkeypatch.setattr(choice, "_fastest_first", lambda engines, *_: {name: milliseconds[name] for name in engines})


def ask(weights, cache, log=lambda level, text: None):
    return prefer(EXACT, "cpu", "samfeat-nano", weights, cache, log)


def test_the_fastest_of_the_accurate_engines_is_first_and_slower_ones_are_left_out(
    table, weights, tmp_path, monkeypatch
):
    table(row("openvino_int8", weights), row("openvino_bf16", weights))
    remember(monkeypatch, openvino_bf16=9.0, openvino=14.0, openvino_int8=17.0)
    names, notes = ask(weights, tmp_path)
    assert names == ["openvino_bf16", *EXACT]
    assert notes == ["self-test: openvino 14.0 ms, openvino_bf16 9.0 ms, openvino_int8 17.0 ms"]
    remember(monkeypatch, openvino=5.0, openvino_bf16=9.0, openvino_int8=17.0)
    assert ask(weights, tmp_path)[0] == EXACT


def test_less_accurate_engines_and_those_of_other_weights_are_not_taken(table, weights, tmp_path, monkeypatch):
    remember(monkeypatch, openvino=14.0, openvino_bf16=9.0, openvino_int8=8.0)
    table(row("openvino_int8", weights, as_accurate=False), row("openvino_bf16", weights))
    names, notes = ask(weights, tmp_path)
    assert names == ["openvino_bf16", *EXACT] and notes[1:] == ["openvino_int8: less accurate with these weights"]
    table(row("openvino_int8", weights), row("openvino_bf16", weights, model="samfeat"))
    weights.with_suffix(".int8.json").write_text('{"other": "ranges"}')
    names, notes = ask(weights, tmp_path)
    assert names == EXACT
    assert notes == ["openvino_bf16, openvino_int8: accuracy with these weights not measured"]


def test_a_cpu_without_the_instructions_keeps_full_precision(table, weights, tmp_path, monkeypatch):
    table(row("openvino_int8", weights), row("openvino_bf16", weights))
    monkeypatch.setattr(choice, "cpu_flags", lambda: {"avx2", "avx512f"})
    names, notes = ask(weights, tmp_path)
    assert names == EXACT and "openvino_int8: this CPU has none of avx512_vnni, avx_vnni" in notes


def test_the_self_test_is_bounded_and_remembered(table, weights, tmp_path, monkeypatch):
    table(row("openvino_int8", weights))
    budgets = []
    measure = probe.measure
    monkeypatch.setattr(probe, "measure", lambda engines, s: budgets.append(s) or measure(engines, s))
    names, notes = ask(weights, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("self-test-*.json")
    kept = json.loads(file.read_text())
    assert (kept["cpu"], kept["cpus"]) == (cpu_name(), cpu_count()) and budgets == [0.2]
    assert set(kept["milliseconds"]) == {"openvino", "openvino_int8"}
    assert ask(weights, tmp_path / "cache") == (names, notes) and len(budgets) == 1

    file.write_text(json.dumps({**kept, "milliseconds": {"openvino": 5.0, "openvino_int8": 3.0}}))
    assert ask(weights, tmp_path / "cache")[0][0] == "openvino_int8"  # what is kept decides
    file.write_text("{")
    ask(weights, tmp_path / "cache")
    assert len(budgets) == 2 and set(json.loads(file.read_text())["milliseconds"]) == {"openvino", "openvino_int8"}
    monkeypatch.setattr(choice, "cpu_name", lambda: "another CPU")
    ask(weights, tmp_path / "cache")
    assert len(budgets) == 3


def test_a_signal_is_handled_after_engines_are_gone():
    """Python handles signals on the thread's alternate stack, which OpenVINO changes."""
    code = (
        "import signal; from samfeat_core.engines import probe; probe.measure(['openvino', 'openvino_int8'], 0.0); "
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled')); signal.raise_signal(signal.SIGUSR1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_self_test_that_cannot_run_costs_one_warning(table, weights, tmp_path, monkeypatch):
    table(row("openvino_int8", weights))

    def fail(engines, s):
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(probe, "measure", fail)
    lines = []
    names, _ = ask(weights, tmp_path, lambda level, text: lines.append((level, text)))
    assert names == EXACT
    assert lines == [("warning", "no self-test of openvino, openvino_int8: no such primitive")]


def test_a_table_that_cannot_be_read_costs_one_warning(weights, tmp_path, monkeypatch):
    def unreadable():
        return {(row.model, row.engine): row for row in read_table(tmp_path / "none.json")}

    monkeypatch.setattr(choice, "_rows", unreadable)
    monkeypatch.setattr(choice, "cpu_flags", lambda: ALL_FLAGS)
    told = []
    assert ask(weights, tmp_path, lambda *line: told.append(line)) == (EXACT, [])
    ((level, text),) = told
    assert level == "warning" and "none.json" in text and "full precision is taken" in text


def test_the_probe_runs_in_eight_bits_and_sorts_by_time():
    engines = ["openvino", "openvino_int8"]
    start = time.perf_counter()
    times = probe.measure(engines, 0.05)
    assert time.perf_counter() - start < 20  # compiling included, on a busy machine
    assert set(times) == set(engines) and list(times.values()) == sorted(times.values())
    assert all(0 < ms < math.inf for ms in times.values())
    # OpenVINO compiles what it recognises as eight bits into one integer convolution; full precision stays as it is
    kinds = {}
    for engine in engines:
        operations = probe._compile(engine).get_compiled_model().get_runtime_model().get_ops()
        layers = [op.get_rt_info() for op in operations if op.get_rt_info()["layerType"] == "Convolution"]
        kinds[engine] = {str(layer["runtimePrecision"].astype(str)) for layer in layers}
        assert len(layers) == 2 * len(probe.WIDTHS)
    assert kinds["openvino"] == {"f32"} and kinds["openvino_int8"] <= {"u8", "i8"}


def test_an_engine_that_is_asked_for_by_name_is_taken(weights, tmp_path):
    lines = []
    extractor = FeatureExtractor.from_pretrained(
        engine="openvino", device="cpu", weights=weights, cache_dir=tmp_path, log=lambda *line: lines.append(line)
    )
    assert extractor.engine_name == "openvino"
    assert lines == [("info", "model samfeat-nano, engine openvino, device cpu")]
    assert not list(tmp_path.glob("self-test*"))


def test_the_table_is_read_as_it_was_written_and_has_one_row_for_a_model_and_engine(tmp_path, weights):
    path = tmp_path / "table.json"
    rows = [row("openvino_int8", weights), row("openvino_bf16", weights), row("openvino_int8", weights, False)]
    write_table(rows, path)
    assert read_table(path) == [rows[1], rows[2]]
    path.write_text('{"format": "samfeat engine accuracy", "version": 2, "rows": []}')
    with pytest.raises(FileError, match=f"{path}: not readable as samfeat engine accuracy .*version 2"):
        read_table(path)


def test_the_shipped_table_is_of_the_shipped_weights():
    """After new weights or ranges: python -m training.compare_engines"""
    rows = {(entry.model, entry.engine): entry for entry in read_table()}
    assert set(rows) >= {("samfeat-nano", engine) for engine in INEXACT}
    for (model, engine), entry in rows.items():
        assert engine in LIBRARY
        assert entry.weights == identity(engine, SHIPPED_WEIGHTS / f"{model}.safetensors"), f"{model} {engine}"
        assert set(entry.measures) == {"mma", "auc", "survival"}
        for measure in entry.measures.values():
            low, high = measure["interval"]
            assert low <= measure["difference"] <= high and measure["pairs"] > 0
        lows = np.array([measure["interval"][0] for measure in entry.measures.values()])
        assert entry.as_accurate == bool((lows > -1.0).all())


def test_the_identity_of_an_engine_has_its_ranges(weights):
    before = identity("openvino_int8", weights), identity("openvino_bf16", weights)
    weights.with_suffix(".int8.json").write_text('{"other": "ranges"}')
    assert identity("openvino_int8", weights) != before[0]
    assert identity("openvino_bf16", weights) == before[1] == fingerprint(weights)
