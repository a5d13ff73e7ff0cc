"""Labels photographs: keypoints by SuperPoint's paradigm for the detection loss, or features to imitate.

\b
    python -m training.label photos PHOTOS STORE --base shi-tomasi          # homographic adaptation of OpenCV's corners
    python -m training.label photos PHOTOS STORE --base best.safetensors    # ... or of a network's detector
    python -m training.label features PHOTOS STORE --extractor samfeat=best.safetensors      # what a network finds

`python -m training.train --config config/train/shapes.yaml` trains a detector to begin with, on synthetic shapes.
Killed or interrupted, the same command continues. Under torchrun every rank labels its share.
`training.data.label_store` and `training.data.feature_store` document the formats.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import typer

from samfeat_core.engines import fingerprint
from samfeat_core.extractor import FeatureExtractor
from training.cli import DEVICE, PHOTOS, STORE, application, finish, one_line_errors, pick_device
from training.data import feature_store as features
from training.data.label_store import KeypointLabels, LabelStore, pack
from training.data.photo_store import Note, PhotoFile, SkipPhoto, fill, find_photos, read_photo
from training.evaluation.extractors import resolve
from training.samfeat.labels.detectors import OPENCV, Detector, load_detector
from training.samfeat.labels.homographic_adaptation import peaks, repeatability_map

app = application(__doc__)

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
    device: str = DEVICE,
) -> None:
    """Homographic adaptation of a base detector on every photograph."""
    with one_line_errors("label"):
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

        def work(photo: PhotoFile, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
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
    device: str = DEVICE,
) -> None:
    """Keypoints and descriptors of an extractor on every photograph, for a network to imitate."""
    with one_line_errors("label"):
        found = find_photos(photos)
        reference = resolve(extractor, count, pick_device(device), engine="eager")  # photographs come in many sizes
        kept = features.FeatureStore(store)
        settings: dict[str, object] = {"count": count, "octaves": octaves, "long_side": long_side}
        if isinstance(reference, FeatureExtractor):  # another training's weights may have come under the same name
            settings["weights"] = fingerprint(reference.weights)
        kept.create({"extractor": extractor, **settings})

        def work(photo: PhotoFile, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            return features.pack(features.look(read_photo(photo.path), reference, octaves, long_side), extractor)

        finish(kept, fill(kept, found, work, "features"))


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
