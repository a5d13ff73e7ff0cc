"""Write a network as one graph for other runtimes: an image in bytes goes in, keypoints and descriptors come out.

    python -m samfeat_core.export --height 480 --width 640 samfeat-nano.onnx
    python -m samfeat_core.export --height 480 --width 640 --precision int8 samfeat-nano.onnx
    python -m samfeat_core.export --format openvino --height 480 --width 640 samfeat-nano.xml

    in   image        (1, C, H, W) uint8: grey, or RGB; C, H and W are fixed
         mask         (1, 1, H, W) uint8, 0 = no keypoint here; only with --mask
    out  keypoints    (K, 2) float32, x and y in pixels, the centre of the top-left pixel at (0, 0); best first
         scores       (K,) float32 in [0, 1]; rows of score 0 are not keypoints, and users cut at a threshold
         descriptors  (K, D) float32, unit rows
         weights      (K,) float32; only of models whose descriptors carry a weight

The properties of the file (ONNX metadata) name model, weights, precision, colours, border and the usual threshold. An
ONNX graph keeps to `samfeat_core.onnx_rules`, or is not written. Exit code 0 when the file is there, 1 after one line
on stderr, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from samfeat_core.engines import TENSORRT_TOP_K, Job, fingerprint
from samfeat_core.engines.eager import example_inputs, extraction_graph
from samfeat_core.errors import EngineError, SamfeatError, UsageError, one_line
from samfeat_core.extractor import checked, find_weights
from samfeat_core.models import MODELS, model_spec
from samfeat_core.quantization import quantized_network

if TYPE_CHECKING:
    import onnx
    import openvino as ov

    from samfeat_core.detection import ExtractionGraph

OPSET = 17  # the last that TensorRT 8.5 reads; later ones change reductions
PRECISIONS = ("fp32", "fp16", "int8")
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
INPUTS = ("image", "mask")
OUTPUTS = ("keypoints", "scores", "descriptors", "weights")


class NamedGraph(nn.Module):
    """An extraction graph without the outputs that its model lacks; its mask may be a constant of it.

    Args:
        mask: (1, 1, H, W) uint8, or None: then it is the second input.
    """

    mask: Tensor | None

    def __init__(self, graph: ExtractionGraph, weighted: bool, mask: Tensor | None) -> None:
        super().__init__()
        self.extraction = graph  # not `graph`: so TorchScript calls its own
        self.outputs = OUTPUTS if weighted else OUTPUTS[:3]
        self.register_buffer("mask", mask)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.extraction(image, self.mask if mask is None else mask)
        return found[: len(self.outputs)]


def named_graph(
    job: Job, network: nn.Module | None = None, half: bool = False, border: int | None = None
) -> NamedGraph:
    """The job's graph for export.

    Args:
        network: to run instead of the job's own. half: see `extraction_graph`.
        border: pixels at the image's edge without keypoints, in place of a mask; None = the mask is an input.
    """
    mask = None
    if border is not None:
        mask = torch.zeros(1, 1, job.height, job.width, dtype=torch.uint8)
        mask[..., border : job.height - border, border : job.width - border] = 1
    return NamedGraph(extraction_graph(job, half, network), job.spec.weighted, mask).eval()


def to_onnx(graph: NamedGraph, job: Job, properties: Mapping[str, object] | None = None) -> onnx.ModelProto:
    """The graph as ONNX of static shapes, which TensorRT reads if it is for no more keypoints than TensorRT can find.

    Raises:
        EngineError: a package is missing, or TensorRT would not read the graph.
    """
    try:
        import onnx
        from onnxscript import optimizer

        from samfeat_core.onnx_rules import violations
    except ImportError as error:
        raise EngineError(f"the export to ONNX needs the packages onnx and onnxscript ({error})") from error
    file: Any = io.BytesIO()
    inputs = _inputs(graph, job)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that are constants here on purpose
        torch.onnx.export(
            graph, inputs, file, dynamo=False, opset_version=OPSET, input_names=INPUTS[: len(inputs)],
            output_names=graph.outputs,
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    # All that is constant, however large: shapes that the tracer computes, and the mask.
    everything = 2**40
    optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=everything, output_size_limit=everything,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )  # fmt: skip
    model = optimizer.optimize(model)
    onnx.helper.set_model_props(model, {name: str(value) for name, value in (properties or {}).items()})
    if job.max_keypoints <= TENSORRT_TOP_K and (problems := violations(model)):
        raise EngineError(f"TensorRT would not read this graph: {'; '.join(problems)}")
    return model


def to_openvino(graph: NamedGraph, job: Job, properties: Mapping[str, object] | None = None) -> ov.Model:
    """The graph as an OpenVINO model of static shapes; EngineError where OpenVINO is not installed."""
    try:
        from samfeat_core.engines.openvino import convert
    except ImportError as error:
        raise EngineError(f"the export to OpenVINO needs the package openvino ({error})") from error
    model = convert(graph, _inputs(graph, job))
    for ports, names in ((model.inputs, INPUTS), (model.outputs, graph.outputs)):
        for port, name in zip(ports, names):
            port.get_tensor().set_names({name})
    for key, value in (properties or {}).items():
        model.set_rt_info(str(value), ["samfeat", key])
    return model


def _inputs(graph: NamedGraph, job: Job) -> tuple[Tensor, ...]:
    return example_inputs(job)[: 1 if graph.mask is not None else 2]


def export(job: Job, path: Path, kind: str, precision: str, border: int | None) -> None:
    """Write the job's graph.

    Args:
        path: .onnx, or .xml of OpenVINO IR, whose weights go beside it.
        kind: onnx or openvino. precision: one of `PRECISIONS`. border: see `named_graph`.

    Raises:
        UsageError, EngineError, WeightsError, OSError: one line each.
    """
    properties = {
        "model": job.spec.name,
        "weights": fingerprint(job.weights),
        "precision": precision,
        "colours": "RGB" if job.spec.channels == 3 else "grey",
        "threshold": job.spec.detection(job.weights).threshold,
        "nms_radius": job.nms_radius,
        "border": "mask" if border is None else border,
    }
    network = quantized_network(job.spec.name, job.weights, symmetric=kind == "onnx") if precision == "int8" else None
    if kind == "openvino":
        import openvino as ov

        model = to_openvino(named_graph(job, network, border=border), job, properties)
        ov.save_model(model, path, compress_to_fp16=precision == "fp16")  # its engine chooses the precision it runs in
    else:
        graph = named_graph(job, network, half=precision == "fp16", border=border)
        path.write_bytes(to_onnx(graph, job, properties).SerializeToString())


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m samfeat_core.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("path", type=Path, help="file to write: .onnx, or .xml of OpenVINO")
    result.add_argument("--model", default="samfeat-nano", help=f"name of the network: {', '.join(MODELS)}")
    result.add_argument("--weights", help="weights file; default: the shipped one")
    result.add_argument("--format", choices=tuple(SUFFIXES), default="onnx")
    result.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the convolutions")
    for name, text in (("height", "of the image in pixels"), ("width", "of the image in pixels")):
        result.add_argument(f"--{name}", type=int, required=True, help=text)
    result.add_argument("--max-keypoints", type=int, default=1024, help="K, rows of the outputs")
    result.add_argument("--nms-radius", type=int, help="pixels in which only the best keypoint stays")
    result.add_argument("--border", type=int, default=4, help="pixels at the image's edge without keypoints")
    result.add_argument("--mask", action="store_true", help="a second input says where keypoints may be, not --border")
    return result


def job_of(given: argparse.Namespace) -> Job:
    """What the options ask for; UsageError or WeightsError for what is impossible."""
    spec = model_spec(given.model)
    for name in ("height", "width"):
        size = getattr(given, name)
        if size <= 0 or size % spec.stride_multiple:
            raise UsageError(f"{name} is {size}, expected a multiple of {spec.stride_multiple} for {spec.name}")
    if given.path.suffix != SUFFIXES[given.format]:
        raise UsageError(f"{given.path}: expected a file that ends in {SUFFIXES[given.format]}")
    weights = find_weights(given.model, given.weights)
    usual = spec.detection(weights)
    try:
        count = checked("max-keypoints", given.max_keypoints, 1, TENSORRT_TOP_K if given.format == "onnx" else 65536)
        radius = usual.nms_radius if given.nms_radius is None else given.nms_radius
        checked("nms-radius", radius, 1, 32)
        checked("border", given.border, 0, (min(given.height, given.width) - 1) // 2)
    except ValueError as error:
        raise UsageError(error) from error
    return Job(
        spec, weights, given.height, given.width, count, radius, "cpu", Path(),
        nms_passes=usual.nms_passes, refine=usual.refine,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        export(job_of(given), given.path, given.format, given.precision, None if given.mask else given.border)
    except (SamfeatError, OSError, ImportError) as error:
        print(f"export: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
