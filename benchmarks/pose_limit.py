"""How much of a posed sequence's pose error is the sequence's own: its ground truth and its calibration.

    python benchmarks/pose_limit.py $SAMFEAT_DATA/eval/sequences/kitti_drive --gap 1 --gap 3 --every 6

Beside the features stand thousands of Lucas-Kanade tracks, checked forward and back, which small motions leave far more
exact than any matched keypoint. Where the pairs' errors agree from row to row, they are not the features'. The last
rows move the principal point by half a pixel, which is what another convention of pixel centres would do.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samfeat_core.poses import pose_auc
from samfeat_core.sequence import ImageSequence
from training.evaluation.extractors import TimedExtractor, resolve
from training.evaluation.images import ImageStore
from training.evaluation.pose import PosePair, pinhole_camera, score_pair, score_points, sequence_pairs

CORNERS, AGREEMENT = 4000, 0.3  # tracks, and how many pixels forward and back may differ


def main(
    folder: Path,
    gap: Annotated[list[int], typer.Option(help="Frame gap; repeatable.")],
    every: Annotated[int, typer.Option(help="Stride of the first frame.")] = 6,
    extractor: Annotated[list[str] | None, typer.Option(help="As of training.evaluate; repeatable.")] = None,
) -> None:
    """Print pose AUC at 5, 10 and 20 degrees, and the correlation of the pairs' errors with those of the tracks."""
    pairs = sequence_pairs(ImageSequence.read(folder, require=("poses",)), gap, every)
    images = ImageStore()
    tracks = [track_error(pair, images) for pair in tqdm(pairs, "lucas-kanade", leave=False)]
    print(f"{'':50s} AUC@5/10/20         correlation")
    print_row("lucas-kanade", tracks, tracks)
    for name in extractor or ["samfeat-nano", "sift"]:
        features = TimedExtractor(name, resolve(name, 1024), images, 1024)
        for x, y in ((0, 0), (-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)):
            label = f"{name}, principal point moved by {x:g}, {y:g}" if x or y else name
            shifted = [moved(pair, x, y) for pair in pairs]
            print_row(label, [score_pair(pair, features).error for pair in tqdm(shifted, label, leave=False)], tracks)


def track_error(pair: PosePair, images: ImageStore) -> float:
    """Pose error in degrees of Lucas-Kanade tracks."""
    first, second = (cv2.cvtColor(images(path).pixels, cv2.COLOR_BGR2GRAY) for path in (pair.first, pair.second))
    corners = cv2.goodFeaturesToTrack(first, CORNERS, 0.001, 4)
    window = {"winSize": (15, 15), "maxLevel": 4}
    there, found, _ = cv2.calcOpticalFlowPyrLK(first, second, corners, None, **window)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(second, first, there, None, **window)
    good = (found & found_back).ravel().astype(bool) & (np.linalg.norm(back - corners, axis=2)[:, 0] < AGREEMENT)
    cameras = [
        pinhole_camera(matrix, images(path).size)
        for matrix, path in ((pair.matrix0, pair.first), (pair.matrix1, pair.second))
    ]
    return score_points(corners[good, 0], there[good, 0], (cameras[0], cameras[1]), pair.transform, 1.0)[1]


def moved(pair: PosePair, x: float, y: float) -> PosePair:
    """The pair with its principal points (x, y) pixels further right and down."""
    shift = np.array([[0, 0, x], [0, 0, y], [0, 0, 0]])
    return replace(pair, matrix0=pair.matrix0 + shift, matrix1=pair.matrix1 + shift)


def print_row(label: str, errors: list[float], reference: list[float]) -> None:
    """One line; errors beyond 20 degrees count as 20 in the correlation."""
    auc = " / ".join(f"{100 * value:.1f}" for value in pose_auc(errors))
    print(f"{label:50s} {auc}  {np.corrcoef(np.minimum((errors, reference), 20))[0, 1]:.3f}")


if __name__ == "__main__":
    typer.run(main)
