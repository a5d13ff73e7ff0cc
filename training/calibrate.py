"""Measures what the `openvino_int8` engine needs to know: the range of every convolution's input, on photographs.

\b
    python -m training.calibrate PHOTOS                                      # for the shipped weights of samfeat-nano
    python -m training.calibrate PHOTOS --weights best.safetensors           # writes best.int8.json beside them

`samfeat_core.quantization` documents the file.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor, nn
from tqdm import tqdm

from samfeat_core.engines import ranges_file
from samfeat_core.extractor import FeatureExtractor
from samfeat_core.progress import progress
from samfeat_core.quantization import convolutions, fold_batch_norms, write_ranges
from samfeat_core.weights import load_network
from training.cli import application, one_line_errors
from training.data.photo_store import PhotoFile, SkipPhoto, StoreError, find_photos, read_photo

app = application()


@app.command(help=__doc__)
def main(
    photos: Path = typer.Argument(..., help="Folder of photographs."),
    model: str = typer.Option("samfeat-nano", help="The network."),
    weights: Path | None = typer.Option(None, help="Its weights file. Default: the shipped one."),
    count: int = typer.Option(200, min=1, help="Look at this many photographs, evenly spread over all."),
    long_side: int = typer.Option(640, min=32, help="Long side in pixels that the network sees."),
) -> None:
    """Writes NAME.int8.json beside a weights file, for the engine openvino_int8."""
    with one_line_errors("calibrate"):
        extractor = FeatureExtractor.from_pretrained(model, "cpu", "eager", weights=weights, resize=long_side)
        network = load_network(model, extractor.weights).eval().requires_grad_(False)
        found = find_photos(photos)
        chosen = [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]
        ranges = measure(network, images(chosen, extractor))
        if not ranges:
            raise StoreError(f"{photos}: none of {len(chosen)} photographs can be read")
        path = ranges_file(extractor.weights)
        write_ranges(path, extractor.weights, ranges)
        typer.echo(f"{path}: {len(ranges)} of {len(convolutions(network))} convolutions in eight bits")


def images(photos: Iterable[PhotoFile], extractor: FeatureExtractor) -> Iterator[Tensor]:
    """What the network sees of each photograph, (1, C, H, W) in [0, 1]; what cannot be read is said and skipped."""
    for photo in progress(photos, "photographs", "photo"):
        try:
            image = read_photo(photo.path)
        except SkipPhoto as error:
            tqdm.write(f"{photo.path}: {error}", file=sys.stderr)
            continue
        size = extractor._network_size(image.shape[1], image.shape[0])
        yield torch.from_numpy(extractor._network_image(image, *size))[None].float() / 255


@torch.inference_mode()
def measure(network: nn.Module, images: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """(low, high) of the input of every convolution that runs: the mean over images of its extremes.

    A mean, because one odd photograph would else coarsen the steps of all.
    """
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def watch(name: str, conv: nn.Conv2d) -> None:
        conv.register_forward_pre_hook(lambda _, inputs: seen[name].append(extremes(inputs[0])))

    for name, conv in convolutions(fold_batch_norms(network)).items():
        watch(name, conv)
    for image in images:
        network(image)
    return {name: (float(low), float(high)) for name, (low, high) in ((n, np.mean(s, axis=0)) for n, s in seen.items())}


def extremes(x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return low.item(), high.item()


if __name__ == "__main__":
    app()
