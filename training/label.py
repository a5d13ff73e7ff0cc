"""Labels photographs: keypoints by SuperPoint's paradigm for the detection loss, or features to imitate.

\b
    python -m training.label bootstrap base.safetensors                       # a detector, from synthetic shapes
    python -m training.label photos PHOTOS STORE --base base.safetensors      # homographic adaptation of it
    python -m training.label photos PHOTOS STORE --base shi-tomasi            # ... or of OpenCV's: needs no training
    python -m training.label features PHOTOS STORE --extractor samfeat=best.safetensors      # what a network finds

Killed or interrupted, the same command continues. Under torchrun every rank labels its share.
`training.data.label_store` and `training.data.feature_store` document the formats.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import typer

from samfeat_core.classic import Extractor
from samfeat_core.engines import fingerprint
from samfeat_core.errors import SamfeatError
from samfeat_core.extractor import FeatureExtractor
from training.data import feature_store as features
from training.data.label_store import KeypointLabels, LabelStore, pack
from training.data.photo_store import Note, Photo, SkipPhoto, StoreError, fill, find_photos, read_photo
from training.evaluation.extractors import resolve
from training.samfeat.labels.detectors import OPENCV, Detector, load_detector
from training.samfeat.labels.homographic_adaptation import peaks, repeatability_map
from training.teach import PHOTOS, STORE, finish, one_line_errors, pick_device

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

SMALLEST = 32  # pixels


@app.command("photos")
def label_photos(
    photos: Path = PHOTOS,
    store: Path = STORE,
    base: str = typer.Option("shi-tomasi", help="shi-tomasi, sift, or a network's weights file."),
    model: str = typer.Option("samfeat-nano", help="The network of a weights file that does not say it."),
    views: int = typer.Option(60, min=1, help="Warped views per photograph, itself included."),
    threshold: float = typer.Option(0.3, min=0, max=1, help="Least share of views in which a keypoint is found."),
    count: int = typer.Option(600, min=1, help="At most this many labels per photograph."),
    radius: int = typer.Option(3, min=1, help="No two labels within this many pixels."),
    per_view: int = typer.Option(800, min=1, help="At most this many detections per view."),
    long_side: int = typer.Option(640, min=SMALLEST, help="Larger photographs are labelled at this long side."),
    seed: int = typer.Option(0, help="Of the random homographies."),
    device: str = typer.Option("auto", help="For networks: cpu, cuda, cuda:1, ..; auto: this rank's GPU if any."),
) -> None:
    """Homographic adaptation of a base detector on every photograph."""
    with one_line_errors():
        found = find_photos(photos)
        detect = load_detector(base, per_view, model, "cpu" if base in OPENCV else pick_device(device))
        labels = LabelStore(store)
        labels.create(
            {
                "base": base if base in OPENCV else f"{Path(base).name} {fingerprint(Path(base))}",
                "views": views,
                "threshold": threshold,
                "count": count,
                "radius": radius,
                "per_view": per_view,
                "long_side": long_side,
                "seed": seed,
            }
        )

        def work(photo: Photo, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            random = np.random.default_rng((seed, zlib.crc32(photo.name.encode())))
            grey = read_photo(photo.path, grey=True)
            keypoints, scores = label(grey, detect, views, random, threshold, radius, count, long_side)
            return pack(KeypointLabels(keypoints, scores, (grey.shape[1], grey.shape[0]), Path(base).name))

        finish(labels, fill(labels, found, work, "labels"))


@app.command("features")
def label_features(
    photos: Path = PHOTOS,
    store: Path = STORE,
    extractor: str = typer.Option(..., help="MODEL, MODEL=WEIGHTS, or module:function, as of training.evaluate."),
    count: int = typer.Option(1024, min=1, help="At most this many features per octave."),
    octaves: int = typer.Option(2, min=1, max=4, help="Look at the photograph, its half, ..."),
    long_side: int = typer.Option(640, min=SMALLEST, help="Larger photographs are looked at with this long side."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1, ..; auto: this rank's GPU if any."),
) -> None:
    """Keypoints and descriptors of an extractor on every photograph, for a network to imitate."""
    with one_line_errors():
        found = find_photos(photos)
        example = find_extractor(extractor, count, pick_device(device))
        kept = features.FeatureStore(store)
        settings: dict[str, object] = {"count": count, "octaves": octaves, "long_side": long_side}
        if isinstance(example, FeatureExtractor):  # another training's weights may have come under the same name
            settings["weights"] = fingerprint(example.weights)
        kept.create({"extractor": extractor, **settings})

        def work(photo: Photo, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            return features.pack(features.look(read_photo(photo.path), example, octaves, long_side), extractor)

        finish(kept, fill(kept, found, work, "features"))


@app.command("bootstrap")
def bootstrap_detector(
    output: Path = typer.Argument(..., help="Weights file to write (.safetensors)."),
    model: str = typer.Option("samfeat-nano", help="The network whose detector is trained."),
    steps: int = typer.Option(20000, min=1),
    batch: int = typer.Option(32, min=1, help="Images per step."),
    seed: int = typer.Option(0),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1, ..; auto: the GPU if there is one."),
    workers: int = typer.Option(2, min=0, help="Processes that render."),
) -> None:
    """Trains a network's detector on synthetic shapes; prints its precision and recall on fresh ones."""
    with one_line_errors():
        from training.samfeat.labels.network import NetworkDetector, bootstrap, score_on_shapes

        device = pick_device(device)
        bootstrap(output, model, steps, batch, seed=seed, device=device, workers=workers)
        precision, recall = score_on_shapes(NetworkDetector.load(output, 100, model, device))
        typer.echo(f"{output}: on fresh shapes, within 2 pixels: precision {precision:.3f}, recall {recall:.3f}")


def find_extractor(name: str, count: int, device: str) -> Extractor:
    """The extractor of an option. StoreError: there is none of that name, or its weights cannot be loaded."""
    kind, _, index = device.partition(":")
    if index:
        import torch

        torch.cuda.set_device(int(index))  # engines run on the current GPU
    try:
        return resolve(name, count, kind, engine="eager")  # photographs come in many sizes: nothing to compile for
    except (ValueError, SamfeatError) as error:
        raise StoreError(str(error)) from None


def label(
    grey: np.ndarray,
    detect: Detector,
    views: int,
    random: np.random.Generator,
    threshold: float = 0.3,
    radius: int = 3,
    count: int = 600,
    long_side: int = 640,
) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labelled keypoints of a photograph (H, W) uint8; the options of `python -m training.label photos`.

    Returns:
        positions (n, 2) float32 in the photograph's pixels and scores (n,) float32, by descending score.

    Raises:
        SkipPhoto: the photograph is too small.
    """
    scale = min(1.0, long_side / max(grey.shape))
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if min(grey.shape) < SMALLEST:
        raise SkipPhoto(f"{grey.shape[1]}x{grey.shape[0]} pixels are too few: at least {SMALLEST} on each side")
    positions, scores = peaks(repeatability_map(grey, detect, views, random), threshold, radius, count)
    return ((positions + 0.5) / scale - 0.5).astype(np.float32), scores


if __name__ == "__main__":
    app()
