"""The engines on a GPU: image on the device -> keypoints and descriptors on the device, 640x480, batch 1.

    python benchmarks/cuda_engines.py                                    # samfeat and samfeat-nano, every CUDA engine
    python benchmarks/cuda_engines.py --device cpu --runs 20             # the same program, rehearsed without a GPU
    python benchmarks/cuda_engines.py --model samfeat-nano=best.safetensors --engine compile --engine tensorrt
    python benchmarks/cuda_engines.py --untrained                        # speed alone, before there are weights

Three times are taken of every engine, in milliseconds:

- device: from the image on the device to keypoints, scores and descriptors on the device, each run waited for;
- engine: from the network's image in host memory to arrays in host memory (two copies more);
- extractor: from a BGR frame to `Features`, which is what a user of `FeatureExtractor` sees.

Agreement with the eager engine is measured on the same frame. Prints a table and writes a JSON file:

    format     "samfeat-benchmark-engines", version 1
    machine    `samfeat_core.measure.machine`; versions {"torch", ...}
    settings   {"width", "height", "max_keypoints", "runs", "device", "untrained"}
    results    per model and engine: build_s; device_ms, engine_ms, extractor_ms, each {"p50", "p90"} (device_ms is null
               for an engine whose images start in host memory); memory_mib on the GPU; keypoints;
               agree_keypoints (share of eager's keypoints met within 0.1 px), agree_cosine (the 1st percentile of the
               cosine between their descriptors); or error, why it could not be built
"""

from __future__ import annotations

import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from samfeat_core.engines import BY_DEVICE, Engine, Job, RawFeatures, choose_device, engine_module  # noqa: E402
from samfeat_core.errors import SamfeatError  # noqa: E402
from samfeat_core.extractor import FeatureExtractor, find_weights  # noqa: E402
from samfeat_core.files import write_json  # noqa: E402
from samfeat_core.measure import machine, percentiles  # noqa: E402
from samfeat_core.models import build_network, model_spec  # noqa: E402

WARM_UP = 10
STAGES = ("device_ms", "engine_ms", "extractor_ms")
AGREE_PX = 0.1
COLUMNS = [
    ("build s", "build_s", ".1f"),
    ("MiB", "memory_mib", ".0f"),
    ("kpts", "keypoints", "d"),
    ("same kpts", "agree_keypoints", ".3f"),
    ("cosine", "agree_cosine", ".5f"),
]


def spread(function: Callable[[], Any], runs: int, wait: Callable[[], None]) -> dict[str, float]:
    """{"p50", "p90"} milliseconds of ``function`` until ``wait`` returns."""
    for _ in range(min(WARM_UP, runs)):
        function()
    wait()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return percentiles(times, (50, 90)) or {}


def resident(engine: Engine, image: np.ndarray, mask: np.ndarray) -> Callable[[], Any] | None:
    """A call that runs the engine on tensors which stay on the device; None where it has no such thing."""
    engine(image, mask)  # leaves image and mask in the engine's own input tensors
    return getattr(engine, "run", None)


def agreement(found: RawFeatures, reference: RawFeatures) -> tuple[float, float]:
    """(share of the reference's keypoints met within 0.1 px, 1st percentile of the cosine of their descriptors)."""
    points, descriptors = (rows[found[1] > 0] for rows in (found[0], found[2]))
    wanted, wanted_descriptors = (rows[reference[1] > 0] for rows in (reference[0], reference[2]))
    if not len(points) or not len(wanted):
        return float(len(points) == len(wanted)), 1.0
    distance = np.linalg.norm(wanted[:, None] - points[None], axis=2)
    nearest = distance.argmin(axis=1)
    met = distance.min(axis=1) <= AGREE_PX
    cosine = np.einsum("nd,nd->n", wanted_descriptors[met], descriptors[nearest[met]])
    return float(met.mean()), float(np.percentile(cosine, 1)) if met.any() else 0.0


@dataclass
class Bench:
    """One model on one device, engine after engine. ``reference`` is what eager found."""

    name: str
    weights: Path
    device: str
    frame: np.ndarray
    max_keypoints: int
    runs: int
    cache: Path
    reference: RawFeatures | None = None

    def extractor(self, engine: str) -> FeatureExtractor:
        return FeatureExtractor.from_pretrained(
            self.name, self.device, engine, self.max_keypoints, weights=self.weights, cache_dir=self.cache
        )

    def measure(self, name: str) -> dict:
        """One entry of ``results``; an engine that cannot be built says why."""
        head = {"model": self.name, "engine": name}
        try:
            return {**head, **self._measure(name)}
        except (SamfeatError, RuntimeError) as error:
            return {**head, "error": " ".join(str(error).split())[:200]}

    def _measure(self, name: str) -> dict:
        module = engine_module(name)
        wait, memory = _device_calls(self.device)
        extractor = self.extractor(name)
        height, width = self.frame.shape[:2]
        image = extractor._network_image(self.frame, width, height)
        mask = extractor._network_mask(None, width, height)
        height, width = mask.shape  # with the padding
        radius = extractor.nms_radius
        job = Job(extractor.spec, self.weights, height, width, self.max_keypoints, radius, self.device, self.cache)
        start = time.perf_counter()
        engine: Engine = module.build(job)
        wait()
        build = time.perf_counter() - start
        # the extractor runs the very engine that was built, and not the next that could be
        extractor._engines[(width, height)] = (job, engine)
        found = engine(image, mask)
        if name == "eager":
            self.reference = found
        share, cosine = (None, None) if self.reference is None else agreement(found, self.reference)
        on_device = resident(engine, image, mask)
        return {
            "build_s": build,
            "device_ms": None if on_device is None else spread(on_device, self.runs, wait),
            "engine_ms": spread(lambda: engine(image, mask), self.runs, wait),
            "extractor_ms": spread(lambda: extractor(self.frame), self.runs, wait),
            "memory_mib": memory(),
            "keypoints": len(extractor(self.frame)),
            "agree_keypoints": share,
            "agree_cosine": cosine,
        }


def _device_calls(device: str) -> tuple[Callable[[], None], Callable[[], float | None]]:
    """(wait until the device is done, MiB of its memory taken since this call, by whatever library)."""
    if device == "cpu":
        return lambda: None, lambda: None
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return torch.cuda.synchronize, lambda: (free - torch.cuda.mem_get_info()[0]) / 2**20


def untrained_weights(name: str, folder: Path) -> Path:
    """A weights file of a randomly initialised network."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = {key: value.contiguous() for key, value in build_network(name).state_dict().items()}
    path = folder / f"{name}.safetensors"
    save_file(state, path)
    return path


def table(results: Sequence[dict]) -> str:
    """A line per model and engine, milliseconds as p50 / p90."""
    lines = [["model", "engine", "device ms", "engine ms", "extractor ms", *(title for title, _, _ in COLUMNS)]]
    for row in results:
        if "error" in row:
            lines.append([row["model"], row["engine"], row["error"]])
            continue
        stages = ["-" if row[s] is None else f"{row[s]['p50']:.2f} / {row[s]['p90']:.2f}" for s in STAGES]
        numbers = ["-" if row[key] is None else format(row[key], spec) for _, key, spec in COLUMNS]
        lines.append([row["model"], row["engine"], *stages, *numbers])
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[1] = max(len(line[1]) for line in lines)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines)


def write_report(path: Path, settings: dict, results: Sequence[dict]) -> None:
    document = {"format": "samfeat-benchmark-engines", "version": 1, "machine": machine(), "versions": versions()}
    write_json(path, {**document, "settings": settings, "results": list(results)})


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "torch-tensorrt", "tensorrt", "openvino", "triton"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(
    model: Annotated[list[str] | None, typer.Option(help="MODEL or MODEL=FILE; repeatable.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: every engine of the device.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to rehearse.")] = "cuda",
    width: Annotated[int, typer.Option(min=32)] = 640,
    height: Annotated[int, typer.Option(min=32)] = 480,
    max_keypoints: Annotated[int, typer.Option(min=1)] = 1024,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of every stage.")] = 300,
    image: Annotated[Path | None, typer.Option(help="A picture to run on. Default: one of scikit-image.")] = None,
    untrained: Annotated[bool, typer.Option(help="Random weights: speed alone.")] = False,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = Path("out/benchmarks/cuda_engines.json"),
) -> None:
    """Time every engine of our models on one device, and compare its features with eager's."""
    settings = {
        "width": width,
        "height": height,
        "max_keypoints": max_keypoints,
        "runs": runs,
        "device": device,
        "untrained": untrained,
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            frame = load_frame(image, (width, height))
            names = engine_names(engine, device)
            benches = [
                Bench(name, weights, device, frame, max_keypoints, runs, Path(folder))
                for name, weights in find_models(model or ["samfeat", "samfeat-nano"], untrained, Path(folder))
            ]
            output.parent.mkdir(parents=True, exist_ok=True)
            results: list[dict] = []
            for bench, name in itertools.product(benches, names):
                typer.echo(f"{bench.name}: {name} ...", err=True)
                results.append(bench.measure(name))  # written at once: the time on a borrowed GPU may run out
                write_report(output, settings, results)
    except (ValueError, OSError, SamfeatError) as error:
        typer.echo(f"cuda_engines: {error}", err=True)
        raise typer.Exit(1) from None
    where = machine()["gpu" if device == "cuda" else "cpu"]
    typer.echo(f"{width}x{height}, {max_keypoints} keypoints, batch 1, {where}; p50 / p90")
    typer.echo(table(results))
    typer.echo(f"wrote {output}")
    if all("error" in row for row in results):
        raise typer.Exit(1)


def engine_names(engines: Sequence[str] | None, device: str) -> list[str]:
    """The engines to measure, eager first: the others are compared with it. ValueError for one not on the device."""
    device, _ = choose_device(device)
    known = BY_DEVICE[device]
    unknown = [name for name in engines or () if name not in known]
    if unknown:
        raise ValueError(f"engine {unknown[0]} does not run on {device}, expected one of {', '.join(known)}")
    return ["eager", *(name for name in engines or known if name != "eager")]


def find_models(entries: Sequence[str], untrained: bool, folder: Path) -> Iterator[tuple[str, Path]]:
    """(model, weights file) of entries MODEL or MODEL=FILE. Raises ValueError or WeightsError for what is not there."""
    for entry in entries:
        name, _, file = entry.partition("=")
        model_spec(name)
        yield name, untrained_weights(name, folder) if untrained else find_weights(name, file or None)


def load_frame(picture: Path | None, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) BGR uint8 of that (width, height)."""
    import cv2
    from cpu_path import moving_view

    from samfeat_core.files import read_image

    if picture is None:
        return moving_view(size, 2)[0]
    return cv2.resize(read_image(picture), size, interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    typer.run(main)
