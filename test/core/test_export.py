"""Networks as graphs for other runtimes: the same features, and what TensorRT can read."""

from dataclasses import replace

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino as ov
import pytest
import skimage.data
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from samfeat_core import FeatureExtractor, export
from samfeat_core.engines import Job, eager
from samfeat_core.extractor import SHIPPED_WEIGHTS
from samfeat_core.models import MODELS, build_network
from samfeat_core.onnx_rules import violations

NAMES = ("image", "mask"), ("keypoints", "scores", "descriptors", "weights")


def photograph(channels, height, width):
    image = cv2.resize(skimage.data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)
    return image.transpose(2, 0, 1).copy() if channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[None]


def weights_of(name, folder, **options):
    """The shipped weights, or random ones."""
    path = SHIPPED_WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        torch.manual_seed(0)
        path = folder / path.name
        save_file(build_network(name, **options).state_dict(), path)
    return path


def job_for(name, folder, height=96, width=128, count=200, **options):
    spec = MODELS[name]
    path = weights_of(name, folder, **options)
    return Job(spec, path, height, width, count, spec.usual.nms_radius, "cpu", folder / "cache")


def interior(job, border=4):
    mask = np.zeros((job.height, job.width), np.uint8)
    mask[border:-border, border:-border] = 1
    return mask


def written(job, folder, *options):
    """The file that the command writes for a job."""
    kind = "openvino" if "openvino" in options else "onnx"
    path = folder / f"graph{export.SUFFIXES[kind]}"
    sizes = {"height": job.height, "width": job.width, "max-keypoints": job.max_keypoints}
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    named = ["--model", job.spec.name, "--weights", str(job.weights)]
    assert export.main([str(path), *named, *arguments, *options]) == 0
    return path


def run(path, **inputs):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)


def agreement(reference, found):
    """Share of the reference's keypoints found within 0.1 px, and of those: worst cosine, worst error of the score."""
    reference = [part[reference[1] > 0] for part in reference]
    distance = np.linalg.norm(reference[0][:, None] - found[0][None], axis=2)
    nearest, near = distance.argmin(1), distance.min(1) < 0.1
    cosines = (reference[2] * found[2][nearest]).sum(1)
    return near.mean(), cosines[near].min(), np.abs(reference[1] - found[1][nearest])[near].max()


def assert_parity(job, folder):
    image, mask = photograph(job.spec.channels, job.height, job.width), interior(job)
    mask[:, : job.width // 3] = 0
    reference = eager.build(job)(image, mask)
    found = run(written(job, folder, "--mask"), image=image[None], mask=mask[None, None])
    near, cosine, error = agreement(reference, found)
    assert (reference[1] > 0).sum() > 30
    assert near >= 0.99 and cosine >= 0.999 and error < 1e-3
    assert len(found) == (4 if job.spec.weighted else 3)
    if job.spec.weighted:
        keypoints = reference[1] > 0
        np.testing.assert_allclose(np.sort(found[3][keypoints]), np.sort(reference[3][keypoints]), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"), [("samfeat-nano", {}), ("samfeat", {}), ("scfeat", {"encoder": "resnet18"})]
)
def test_onnx_runtime_answers_as_eager_does(tmp_path, name, options):
    assert_parity(job_for(name, tmp_path, **options), tmp_path)


def test_greedy_suppression_and_whole_pixels_can_be_exported(tmp_path):
    """What checkpoints of SAMFeat's authors are detected with."""
    job = replace(job_for("samfeat-nano", tmp_path), nms_radius=4, nms_passes=8, refine=False)
    image, mask = photograph(1, job.height, job.width), interior(job)
    reference = eager.build(job)(image, mask)
    path = tmp_path / "graph.onnx"
    path.write_bytes(export.to_onnx(export.named_graph(job), job).SerializeToString())
    found = run(path, image=image[None], mask=mask[None, None])
    near, cosine, _ = agreement(reference, found)
    assert near >= 0.99 and cosine >= 0.999 and (found[0] == found[0].round()).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_answers_as_eager_does_at_full_size(tmp_path, name):
    assert_parity(job_for(name, tmp_path, 480, 640, 1024), tmp_path)


def test_the_graph_says_what_it_is(tmp_path):
    job = job_for("samfeat", tmp_path)
    model = onnx.load(written(job, tmp_path))
    assert model.opset_import[0].version == 17 and len(model.opset_import) == 1
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == list(NAMES[1])
    shapes = [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in model.graph.output]
    assert shapes == [[200, 2], [200], [200, 128], [200]]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["model"] == "samfeat" and properties["colours"] == "RGB" and properties["border"] == "4"
    assert float(properties["threshold"]) == 0.005 and properties["precision"] == "fp32"


@pytest.mark.parametrize("border", [4, 11])
def test_the_border_is_inside_a_graph_without_a_mask(tmp_path, border):
    job = job_for("samfeat-nano", tmp_path)
    image = photograph(1, job.height, job.width)
    found = run(written(job, tmp_path, f"--border={border}"), image=image[None])
    near, cosine, _ = agreement(eager.build(job)(image, interior(job, border)), found)
    assert near == 1 and cosine > 0.999
    keypoints = found[0][found[1] > 0]
    assert border - 2 <= keypoints.min() < border + 3  # refinement moves a whole pixel by at most two


@pytest.mark.parametrize(("precision", "least", "cosine_least"), [("fp16", 0.98, 0.9999), ("int8", 0.9, 0.998)])
def test_fewer_bits_find_nearly_the_same(tmp_path, precision, least, cosine_least):
    job = job_for("samfeat-nano", tmp_path, 256, 320, 500)
    image = photograph(1, job.height, job.width)
    path = written(job, tmp_path, "--precision", precision)
    near, cosine, _ = agreement(eager.build(job)(image, interior(job)), run(path, image=image[None]))
    assert near >= least and cosine >= cosine_least

    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 22
    if precision == "fp16":
        assert {types[node.input[1]] for node in convolutions} == {TensorProto.FLOAT16}
    else:
        assert {made_by[name] for node in convolutions for name in node.input[:2]} == {"DequantizeLinear"}
        assert path.stat().st_size > 2_000_000  # weights in floats: TensorRT rounds them itself


@pytest.mark.parametrize("precision", export.PRECISIONS)
def test_openvino_reads_its_own_graph(tmp_path, precision):
    job = job_for("samfeat-nano", tmp_path)
    image = photograph(1, job.height, job.width)
    path = written(job, tmp_path, "--format", "openvino", "--precision", precision)
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [port.any_name for port in compiled.outputs] == list(NAMES[1][:3])
    answers = compiled({"image": image[None]})
    near, cosine, _ = agreement(eager.build(job)(image, interior(job)), [answers[name] for name in NAMES[1][:3]])
    least = {"fp32": (0.99, 0.9999), "fp16": (0.95, 0.999), "int8": (0.8, 0.97)}[precision]
    assert near >= least[0] and cosine >= least[1]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--max-keypoints=3841"], 2, "max-keypoints is 3841, expected a whole number 1 to 3840"),
        (["--height=100"], 2, "height is 100, expected a multiple of 32 for samfeat-nano"),
        (["--border=48"], 2, "border is 48, expected a whole number 0 to 47"),
        (["--model=sift"], 2, "unknown model 'sift'"),
        (["--weights=none.pth"], 1, "none.pth: no such weights file"),
        (["--format=openvino"], 2, "expected a file that ends in .xml"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(tmp_path, capsys, options, code, said):
    path = tmp_path / "x.onnx"
    assert export.main([str(path), "--height=96", "--width=128", *options]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and not path.exists()


def test_eight_bits_without_ranges_are_said_in_a_line(tmp_path, capsys):
    weights = tmp_path / "own.safetensors"
    weights.write_bytes((SHIPPED_WEIGHTS / "samfeat-nano.safetensors").read_bytes())
    command = [str(tmp_path / "x.onnx"), "--height=96", "--width=128", "--precision=int8", f"--weights={weights}"]
    assert export.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "own.int8.json: no such file; python -m training.calibrate" in line


def test_openvino_has_no_bound_of_keypoints(tmp_path):
    job = job_for("samfeat-nano", tmp_path, 96, 128, 4096)
    model = ov.Core().read_model(written(job, tmp_path, "--format", "openvino"))
    assert list(model.output("keypoints").shape) == [4096, 2]


# ---- the rules, each broken once ----


def model_of(nodes, inputs, outputs, constants=None, opset=17):
    def values(described):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in described.items()]

    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


IMAGE = {"x": (TensorProto.FLOAT, [1, 8])}
node = helper.make_node
BROKEN = {
    "NonZero : not among the operators": model_of(
        [node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=1)], IMAGE, {"y": (TensorProto.FLOAT, [2, None])}
    ),
    "GatherND : not among the operators": model_of(
        [node("GatherND", ["x", "i"], ["y"])], IMAGE, {"y": (TensorProto.FLOAT, [1])}, {"i": [[0, 1]]}
    ),
    "TopK : K is 3841, expected at most 3840": model_of(
        [node("TopK", ["x", "k"], ["y", "_"])],
        {"x": (TensorProto.FLOAT, [1, 4000])},
        {"y": (TensorProto.FLOAT, [1, 3841])},
        {"k": [3841]},
    ),
    "TopK : k is computed, expected a constant": model_of(
        [node("TopK", ["x", "k"], ["y", "_"])],
        {**IMAGE, "k": (TensorProto.INT64, [1])},
        {"y": (TensorProto.FLOAT, [1, None])},
    ),
    "TopK : sorted must be 1": model_of(
        [node("TopK", ["x", "k"], ["y", "_"], sorted=0)], IMAGE, {"y": (TensorProto.FLOAT, [1, 3])}, {"k": [3]}
    ),
    "y: no static shape": model_of([node("Relu", ["x"], ["y"])], {"x": (1, [1, "n"])}, {"y": (1, [1, "n"])}),
    "i: INT64 outside the graph": model_of(
        [node("TopK", ["x", "k"], ["_", "i"])], IMAGE, {"i": (TensorProto.INT64, [1, 3])}, {"k": [3]}
    ),
    "Clip : i is INT64": model_of(
        [node("Cast", ["x"], ["i"], to=7), node("Clip", ["i", "low"], ["j"]), node("Cast", ["j"], ["y"], to=1)],
        IMAGE,
        {"y": (TensorProto.FLOAT, [1, 8])},
        {"low": np.int64(0)},
    ),
    "does not fit 32 bits": model_of(
        [node("Cast", ["x"], ["i"], to=7), node("Add", ["i", "far"], ["j"]), node("Cast", ["j"], ["y"], to=1)],
        IMAGE,
        {"y": (TensorProto.FLOAT, [1, 8])},
        {"far": np.int64(2**31)},
    ),
    "Cast : UINT8 can only become floating point": model_of(
        [node("Cast", ["x"], ["y"], to=TensorProto.BOOL)],
        {"x": (TensorProto.UINT8, [1, 8])},
        {"y": (TensorProto.BOOL, [1, 8])},
    ),
    "Greater : x is UINT8": model_of(
        [node("Greater", ["x", "x"], ["y"])], {"x": (TensorProto.UINT8, [8])}, {"y": (TensorProto.BOOL, [8])}
    ),
    "QuantizeLinear : the zero point must be there, INT8 and 0": model_of(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        IMAGE,
        {"y": (TensorProto.FLOAT, [1, 8])},
        {"s": np.float32(0.1), "z": np.uint8(7)},
    ),
    "Resize : mode cubic": model_of(
        [node("Resize", ["x", "", "s"], ["y"], mode="cubic")],
        IMAGE,
        {"y": (TensorProto.FLOAT, [1, 16])},
        {"s": np.array([1, 2], np.float32)},
    ),
    "opset 18, expected 9 to 17": model_of([node("Relu", ["x"], ["y"])], IMAGE, {"y": (1, [1, 8])}, opset=18),
    "operators of com.microsoft": None,
}
BROKEN["operators of com.microsoft"] = model_of([node("Relu", ["x"], ["y"])], IMAGE, {"y": (1, [1, 8])})
BROKEN["operators of com.microsoft"].opset_import.append(helper.make_opsetid("com.microsoft", 1))


@pytest.mark.parametrize("text", BROKEN)
def test_every_rule_of_tensorrt_is_held(text):
    assert [line for line in violations(BROKEN[text]) if text in line], violations(BROKEN[text])


def test_a_graph_that_keeps_the_rules_is_free_of_violations():
    nodes = [node("TopK", ["x", "k"], ["v", "i"]), node("GatherElements", ["x", "i"], ["y"], axis=1)]
    assert violations(model_of(nodes, IMAGE, {"y": (TensorProto.FLOAT, [1, 3])}, {"k": [3]})) == []


def test_a_graph_that_tensorrt_cannot_read_is_not_written(tmp_path, monkeypatch, capsys):
    """Iterated suppression needs the positions of what is not zero."""
    from samfeat_core import detection

    def with_nonzero(score, radius):
        return (score == score.amax((2, 3), keepdim=True)) | (score.flatten().nonzero().sum() < 0)

    monkeypatch.setattr(detection, "local_maxima", with_nonzero)
    path = tmp_path / "x.onnx"
    assert export.main([str(path), "--height=96", "--width=128"]) == 1
    said = capsys.readouterr().err
    assert "TensorRT would not read this graph: " in said and "NonZero" in said and not path.exists()


def test_the_extractor_runs_what_the_command_exports(tmp_path):
    """The one of the engine and the one of the command differ in the mask alone."""
    job = job_for("samfeat-nano", tmp_path, count=256)
    image = photograph(1, job.height, job.width)
    extractor = FeatureExtractor.from_pretrained(
        "samfeat-nano", "cpu", "onnxruntime", 256, threshold=0.0, cache_dir=tmp_path
    )
    features = extractor(image[0])
    keypoints, scores, descriptors = run(written(job, tmp_path), image=image[None])
    keep = scores > 0
    np.testing.assert_allclose(features.keypoints, keypoints[keep], atol=1e-3)
    np.testing.assert_allclose(features.descriptors, descriptors[keep], atol=1e-4)
    assert extractor.engine_name == "onnxruntime"
