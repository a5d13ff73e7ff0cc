"""The table of parameters: defaults, ranges, combinations, and agreement with the YAML file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
import yaml  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from samfeat_core.engines import DEVICES, ENGINES, check_choice  # noqa: E402
from samfeat_core.models import MODELS  # noqa: E402
from samfeat_ros.node.parameters import CONFIGURE, LIVE, NAMES, ParameterError, Parameters, apply  # noqa: E402
from samfeat_ros.topics import TRANSPORTS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_are_valid():
    Parameters().validate()


def test_every_parameter_is_described():
    for field in dataclasses.fields(Parameters):
        assert field.metadata["description"].endswith("."), field.name
        assert type(field.default) in (bool, int, float, str), field.name
        if type(field.default) in (int, float):
            assert field.metadata["low"] is not None, field.name


def test_the_yaml_file_holds_the_defaults():
    values = yaml.safe_load((ROOT / "config" / "samfeat.yaml").read_text())["/**"]["ros__parameters"]
    assert set(values) == set(NAMES) - {"autostart"}
    assert Parameters(**values) == Parameters()


def test_the_yaml_file_names_the_choices():
    lines = (ROOT / "config" / "samfeat.yaml").read_text().splitlines()
    comments = {line.split(":")[0].strip(): line.partition("#")[2] for line in lines if ":" in line}
    choices = {"model": MODELS, "device": DEVICES, "engine": ENGINES, "image_transport": TRANSPORTS}
    for name, known in choices.items():
        assert set(known) <= set(re.findall(r"[\w-]+", comments[name])), name


@pytest.mark.parametrize(
    "values",
    [{"device": "cpu", "engine": "compile"}, {"device": "cuda:1", "engine": "compile"}, {"engine": "openvino_int8"}],
)
def test_what_the_core_can_do_is_accepted(values):
    check_choice(values.get("device", "auto"), values["engine"])
    dataclasses.replace(Parameters(), **values).validate()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"max_keypoints": 0}, "max_keypoints is 0, expected 1 to"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"verify": 1}, "verify is 1, expected bool"),
        ({"max_keypoints": True}, "expected int"),
        ({"engine": "onnx"}, "engine is 'onnx', expected one of auto, eager"),
        ({"image_transport": "theora"}, "expected one of raw, compressed"),
        ({"device": "gpu"}, "device is 'gpu', expected one of auto, cuda, cpu, cuda:N"),
        ({"model": ""}, "model is empty"),
        (
            {"device": "cpu", "engine": "tensorrt"},
            "engine tensorrt does not run on cpu, expected one of auto, openvino",
        ),
        ({"device": "cuda", "engine": "openvino"}, "engine openvino does not run on cuda"),
        ({"device": "cuda:1", "engine": "openvino_bf16"}, "engine openvino_bf16 does not run on cuda"),
        ({"device": "cpu", "require_cuda": True}, "require_cuda contradicts"),
        ({"resize": 8}, "resize is 8, expected 0 or at least 32"),
    ],
)
def test_impossible_values_are_refused_with_the_reason(values, reason):
    with pytest.raises(ParameterError, match=reason):
        dataclasses.replace(Parameters(), **values).validate()


def test_only_live_parameters_change_while_configured():
    for field in dataclasses.fields(Parameters):
        if field.metadata["change"] == CONFIGURE and isinstance(field.default, bool):
            with pytest.raises(ParameterError, match="call cleanup first"):
                Parameters().changed({field.name: not field.default}, configured=True)
        if field.metadata["change"] == LIVE and isinstance(field.default, bool):
            assert getattr(Parameters().changed({field.name: not field.default}, True), field.name) != field.default
    assert Parameters().changed({"model": "samfeat"}, configured=False).model == "samfeat"
    assert Parameters().changed({"model": "samfeat-nano"}, configured=True) == Parameters()  # nothing changes


def test_parameters_that_depend_on_each_other_change_together():
    cuda = Parameters(device="cuda", engine="tensorrt")
    both = [Parameter("device", value="cpu"), Parameter("engine", value="openvino")]
    changed, result = apply(cuda, both, configured=False)
    assert result.successful and (changed.device, changed.engine) == ("cpu", "openvino")
    same, result = apply(cuda, both[:1], configured=False)
    assert not result.successful and "tensorrt does not run on cpu" in result.reason
    assert same is cuda


def test_parameters_of_others_pass():
    foreign = [Parameter("use_sim_time", value=True), Parameter("qos_overrides./image.subscription.depth", value=3)]
    same, result = apply(Parameters(), foreign, configured=True)
    assert result.successful and same == Parameters()
