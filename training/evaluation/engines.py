"""Whether an engine is as accurate as `eager`: paired scores over the public evaluation, and how far they differ.

Three measures, each a number in per cent for every pair of images:

    mma       matches within 3 px of the truth, of all matches (DATA/homography)
    auc       1 - error / 10 degrees, at least 0, of the relative pose; its mean is the AUC at 10 degrees
              (DATA/sequences)
    survival  tracks of a frame that are alive 20 frames later, by a `hybrid` tracker that begins there (DATA/sequences)

Every second frame of a sequence is looked at, so one extraction serves poses and tracks. A pose is estimated twice and
averaged, because RANSAC's draws differ from engine to engine too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from samfeat_core.classic import Extractor
from samfeat_core.features import Features
from samfeat_core.sequence import ImageSequence, posed_folders
from samfeat_core.tracking import make_tracker
from training.evaluation import homography, pose
from training.evaluation.extractors import TimedExtractor
from training.evaluation.images import ImageStore
from training.evaluation.matchers import MUTUAL
from training.evaluation.suites import POSED, find_folder
from training.evaluation.tracks.footage import Footage, recorded

MMA_PX, AUC_DEG = 3.0, 10.0
SIZE = (640, 480)  # to which the homography pairs are brought: an engine is built for one size
STEP = 2  # frames
GAPS = (4, 8, 16)  # frames between the images of a pose pair
LIFE = 20  # frames after which tracks are counted
SEEDS = 2
DRAWS = 10_000
LEVEL = 0.95
MARGIN = 1.0  # points: an engine is as accurate if a loss of more than this is ruled out, in every measure

Scores = dict[str, np.ndarray]
Progress = Callable[[Sequence], Iterable]


def measure(extractor: Extractor, data: Path, max_keypoints: int, progress: Progress = iter) -> Scores:
    """The scores of an extractor by measure, in the same order of pairs for every extractor.

    Raises:
        ValueError: naming what is missing below `data`.
    """
    pairs = homography.read_pairs(find_folder(data, "homography"))
    photographs = TimedExtractor("", extractor, ImageStore(size=SIZE), max_keypoints)
    mma = [homography.score_pair(pair, photographs).mma for pair in progress(pairs)]
    within = homography.MMA_THRESHOLDS.index(int(MMA_PX))
    root = find_folder(data, "pose")
    folders = posed_folders(root)
    if not folders:
        raise ValueError(f"{root}: no {POSED}")
    parts = [_sequence(folder, extractor, max_keypoints, progress) for folder in folders]
    auc, alive = (np.concatenate(rows) for rows in zip(*parts))
    return {"mma": 100 * np.array(mma)[:, within], "auc": auc, "survival": alive}


def _sequence(
    folder: Path, extractor: Extractor, max_keypoints: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """(pairs,) pose scores and (starts,) survival of one posed sequence."""
    sequence = ImageSequence.read(folder, require=("poses",))
    timed = TimedExtractor("", extractor, ImageStore(), max_keypoints)
    camera = pose.pinhole_camera(sequence.matrix, sequence.image_size)
    pairs = pose.sequence_pairs(sequence, GAPS, STEP)
    accuracy = [_pose(pair, timed, camera) for pair in progress(pairs)]

    footage = recorded(sequence, folder.name, STEP)
    starts = range(0, len(footage) - LIFE // STEP, STEP)
    alive = [_survival(footage, start, lambda n: timed(sequence.images[n * STEP])) for start in progress(starts)]
    return np.array(accuracy), np.array(alive)


def _survival(footage: Footage, start: int, features: Callable[[int], Features]) -> float:
    """Per cent of the tracks of a frame that are alive `LIFE` later, by a tracker that begins there.

    One that ran through would carry the luck of a draw from start to start.
    """
    tracker = make_tracker("hybrid")
    ids = []
    for frame in range(start, start + LIFE // STEP + 1):
        found = features(frame)
        ids.append(tracker.update(found, footage.stamps_ns[frame], footage.camera, footage.image(frame)).track_ids)
    return 100 * float(np.isin(ids[0], ids[-1]).mean()) if len(ids[0]) else 0.0


def _pose(pair: pose.PosePair, extractor: TimedExtractor, camera: dict) -> float:
    first, second = extractor(pair.first), extractor(pair.second)
    points = MUTUAL(first, second)
    errors = [pose.score_points(*points, (camera, camera), pair.transform, 1.0, seed)[1] for seed in range(SEEDS)]
    return 100 * float(np.mean(np.maximum(0, 1 - np.array(errors) / AUC_DEG)))


def compare(scores: Scores, reference: Scores) -> dict[str, dict]:
    """By measure: the reference's mean, the mean paired difference, and its bootstrap interval over pairs.

    Returns:
        {measure: {"pairs", "eager", "difference", "interval": [low, high]}}, in points of per cent.
    """
    return {
        name: {
            "pairs": len(reference[name]),
            "eager": float(reference[name].mean()),
            "difference": float((scores[name] - reference[name]).mean()),
            "interval": interval(scores[name] - reference[name]),
        }
        for name in reference
    }


def interval(differences: np.ndarray, draws: int = DRAWS, level: float = LEVEL) -> list[float]:
    """[low, high] of the mean of differences (pairs,): percentile bootstrap, always with the same draws."""
    random = np.random.default_rng(0)
    means = [differences[random.integers(0, len(differences), len(differences))].mean() for _ in range(draws)]
    return [float(end) for end in np.quantile(means, ((1 - level) / 2, (1 + level) / 2))]


def as_accurate(comparison: dict[str, dict], margin: float = MARGIN) -> bool:
    """Whether the intervals rule out a loss of more than the margin, in every measure."""
    return all(measure["interval"][0] > -margin for measure in comparison.values())
