"""What the engines of a GPU rest on, as far as it shows without one: no wait inside the graph, one copy each way."""

import importlib
import sys
import types
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samfeat_core.detection import ExtractionGraph
from samfeat_core.engines import Job
from samfeat_core.engines.eager import EagerEngine
from samfeat_core.engines.staging import PackedGraph, StagedEngine, unpack
from samfeat_core.errors import EngineError
from samfeat_core.models import MODELS, build_network
from samfeat_core.quantization import halve
from samfeat_core.weights import load_network

SIZE = 64, 96
# Operations whose result only the host can see, or whose shape only the values tell.
WAITING = (
    "_local_scalar_dense",
    "aten.item",
    "nonzero",
    "masked_select",
    "unique",
    "_assert_scalar",
    "_assert_async",
    "lift_fresh",
)


def packed(name, half=False):
    torch.manual_seed(0)
    options = {"encoder": "resnet18"} if name == "scfeat" else {}
    network = build_network(name, **options).eval().requires_grad_(False)
    detection = MODELS[name].usual
    graph = ExtractionGraph(halve(network) if half else network, 50, detection.nms_radius)
    inputs = torch.randint(0, 255, (1, network.spec.channels, *SIZE), dtype=torch.uint8), torch.ones(1, 1, *SIZE).byte()
    return PackedGraph(graph).eval(), inputs


@pytest.fixture
def job(weights, tmp_path):
    return Job(MODELS["samfeat-nano"], Path(weights), *SIZE, 50, 1, "cpu", tmp_path)


@torch.inference_mode()
def test_packed_features_come_apart_again():
    graph, inputs = packed("samfeat")
    rows = graph(*inputs)
    assert rows.shape == (50, 4 + 128) and rows.dtype == torch.float32
    for wanted, found in zip(graph.extraction(*inputs), unpack(rows.numpy())):
        np.testing.assert_array_equal(found, wanted.numpy())
        assert found.flags["C_CONTIGUOUS"] and found.flags["OWNDATA"]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_never_waits_for_the_device(name, half):
    """A meta tensor has no values: what needs them on the host, and what mixes devices, fails."""
    graph, inputs = packed(name, half)
    rows = graph.to("meta")(*(tensor.to("meta") for tensor in inputs))
    assert rows.shape == (50, 4 + MODELS[name].descriptor_dim) and rows.dtype == torch.float32


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * x.max().item(),
        lambda x: x.flatten()[x.flatten().nonzero()[:, 0]],
        lambda x: x + torch.ones(2, 2),
        lambda x: x.cpu().numpy(),
    ],
)
def test_a_meta_tensor_tells_who_waits(body):
    with pytest.raises((RuntimeError, NotImplementedError)):
        body(torch.ones(2, 2, device="meta"))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_exported_program_has_fixed_shapes_and_no_state(name, half):
    graph, inputs = packed(name, half)
    program = torch.export.export(graph, inputs)
    assert not program.range_constraints
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    names = [str(node.target) for node in calls]
    assert not [found for found in names if any(part in found for part in WAITING)]
    assert all(isinstance(node.target, torch._ops.OpOverload) or "getitem" in str(node.target) for node in calls), (
        "a higher-order operator, which torch.autocast becomes"
    )
    values = [value for node in calls if isinstance(value := node.meta.get("val"), torch.Tensor)]
    assert values and all(type(size) is int for value in values for size in value.shape)
    kinds = {
        value.dtype for node, value in ((node, node.meta["val"]) for node in calls if "conv2d" in str(node.target))
    }
    assert kinds == {torch.float16 if half else torch.float32}


def test_the_mask_goes_up_only_when_it_is_another_one(job):
    engine = EagerEngine(job)
    image = np.random.default_rng(0).integers(0, 255, (1, *SIZE), np.uint8)
    mask = np.ones(SIZE, np.uint8)

    def columns():
        keypoints, scores, *_ = engine(image, mask)
        return keypoints[scores > 0, 0]

    everywhere = engine(image, mask)
    engine.inputs[1][..., :48] = 0  # as if it were still the one before
    assert columns().min() > 45
    mask[:, 48:] = 0
    assert columns().max() < 50
    mask[:] = 1
    for wanted, found in zip(everywhere, engine(image, mask)):
        np.testing.assert_array_equal(found, wanted)


def test_features_are_the_caller_s(job):
    engine = EagerEngine(job)
    images = np.random.default_rng(0).integers(0, 255, (2, 1, *SIZE), np.uint8)
    first = engine(images[0], np.ones(SIZE, np.uint8))
    kept = [part.copy() for part in first]
    second = engine(images[1], np.ones(SIZE, np.uint8))
    for part, before, after in zip(first, kept, second):
        np.testing.assert_array_equal(part, before)
        assert part.shape == after.shape
    assert not np.array_equal(first[0], second[0])


def test_a_gpu_gets_one_copy_and_gives_one(job, monkeypatch):
    """A fake GPU: pinned memory and events are asked for, and the wait is after the one copy down."""
    said = []

    class Event:
        def record(self, stream):
            said.append("record")

        def synchronize(self):
            said.append("wait")

    class OnGpu(StagedEngine):
        def run(self):
            said.append("run")
            return torch.arange(50.0 * 68).view(50, 68)

    def pinned(make):
        def made(*args, pin_memory=False, **kwargs):
            said.append(f"pinned {tuple(args[0])}") if pin_memory else None
            return make(*args, **kwargs)

        return made

    copy = torch.Tensor.copy_

    def copied(self, source, non_blocking=False):
        said.append(f"copy {tuple(self.shape)}{'' if non_blocking else ' and wait'}")
        return copy(self, source)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    for name in ("ones", "empty"):
        monkeypatch.setattr(torch, name, pinned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, copy: self.clone())
    engine = OnGpu(replace(job, device="cuda"))
    image, mask = np.zeros((1, *SIZE), np.uint8), np.ones(SIZE, np.uint8)
    up, down = "copy (1, 1, 64, 96)", "copy (50, 68)"
    engine(image, mask)
    assert said == ["pinned (1, 1, 64, 96)"] * 2 + [up, "run", "pinned (50, 68)", down, "record", "wait"]
    said.clear()
    engine(image, 1 - mask)
    engine(image, 1 - mask)
    assert said == [up, up, "run", down, "record", "wait", up, "run", down, "record", "wait"]


@pytest.fixture
def tensorrt(monkeypatch):
    """The TensorRT engine on a library that compiles nothing, and a GPU that is the CPU."""
    library: Any = types.ModuleType("torch_tensorrt")
    library.__version__ = "0"
    library.__spec__ = importlib.machinery.ModuleSpec("torch_tensorrt", None)
    library.compile = lambda graph, ir, inputs, use_explicit_typing: torch.export.export(graph, tuple(inputs)).module()
    library.save = lambda module, path, inputs: torch.export.save(torch.export.export(module, tuple(inputs)), path)
    library.load = torch.export.load
    monkeypatch.setitem(sys.modules, "torch_tensorrt", library)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    yield importlib.import_module("samfeat_core.engines.tensorrt")
    sys.modules.pop("samfeat_core.engines.tensorrt")


def test_the_tensorrt_engine_packs_keeps_and_loads_its_program(job, tensorrt, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (1, *SIZE), np.uint8)
    mask = np.ones(SIZE, np.uint8)
    first = tensorrt.build(job)(image, mask)
    assert (tensorrt.cache_path(job) / "engine.ep").is_file()
    monkeypatch.delattr(sys.modules["torch_tensorrt"], "compile")
    for wanted, found in zip(first, tensorrt.build(job)(image, mask)):
        np.testing.assert_array_equal(found, wanted)
    keypoints, scores, descriptors, _ = EagerEngine(job)(image, mask)
    distance = np.linalg.norm(keypoints[:, None] - first[0][None], axis=2)
    met = distance.min(1) < 0.1
    cosines = (descriptors * first[2][distance.argmin(1)]).sum(1)[met]
    assert met.mean() > 0.9 and cosines.min() > 0.999
    assert 1e-5 < np.abs(scores - first[1]).max() < 1e-2  # half precision, and no more than that


def test_the_tensorrt_engine_refuses_more_keypoints_than_it_can_find(job, tensorrt):
    with pytest.raises(EngineError, match="TensorRT finds at most 3840 keypoints, not 4096"):
        tensorrt.build(replace(job, max_keypoints=4096))


@pytest.mark.slow
def test_the_program_can_be_packaged_ahead_of_time(weights, tmp_path):
    """AOTInductor, whose package a C++ program loads without Python; here for the CPU."""
    network = load_network("samfeat-nano", weights).eval().requires_grad_(False)
    graph = PackedGraph(ExtractionGraph(network, 50, 1)).eval()
    inputs = torch.randint(0, 255, (1, 1, *SIZE), dtype=torch.uint8), torch.ones(1, 1, *SIZE).byte()
    with torch.inference_mode():
        wanted = graph(*inputs)
    package = torch._inductor.aoti_compile_and_package(
        torch.export.export(graph, inputs), package_path=str(tmp_path / "graph.pt2")
    )
    found = torch._inductor.aoti_load_package(package)(*inputs)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
