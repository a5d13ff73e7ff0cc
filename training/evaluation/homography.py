"""Matching under a known homography: MMA, homography accuracy, repeatability, localisation error.

The layout is HPatches': one folder per scene with ``1.EXT`` .. ``K.EXT`` and ``H_1_k``, nine numbers that map pixels of
image 1 to pixels of image k. Images may be resized; the homography is carried over to the resized pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import poselib

from samfeat_core.features import Features
from samfeat_core.files import IMAGE_SUFFIXES
from training.data.geometry import warp_homography
from training.evaluation.extractors import TimedExtractor
from training.evaluation.images import EvalImage
from training.evaluation.matchers import MUTUAL, Matcher
from training.evaluation.sweep import THRESHOLDS, best_threshold

MMA_THRESHOLDS = tuple(range(1, 11))
MHA_THRESHOLDS = (1, 3, 5)
REPEAT_THRESHOLD = 3.0
CORNER_AUC_THRESHOLDS = (1, 3, 5)
ESTIMATOR = "OpenCV MAGSAC++, 3 px, 10000 iterations"
# D2-Net (Dusmanu et al., CVPR 2019) leaves out the sequences with images beyond 1600x1200: 52 + 56 scenes remain
UNRELIABLE_SCENES = (
    "i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent",
)  # fmt: skip


@dataclass(frozen=True)
class HomographyPair:
    """Two image files and the (3, 3) map of native pixels of the first to native pixels of the second."""

    scene: str
    first: Path
    second: Path
    homography: np.ndarray


@dataclass(frozen=True)
class HomographyScore:
    """What one extractor did on one pair. mma: share of matches within 1..10 px; corner_error: mean error of the four
    corners of the first image under the homography that `ESTIMATOR` finds, px; swept: the same for poselib's LO-RANSAC
    at each of `sweep.THRESHOLDS`; localisation: px, nan without repeated keypoints."""

    scene: str
    keypoints: float
    matches: int
    correct: int
    mma: np.ndarray
    corner_error: float
    swept: np.ndarray
    repeatability: float
    localisation: float


def read_pairs(folder: Path, exclude: Iterable[str] = ()) -> list[HomographyPair]:
    """All pairs (1, k) of a folder in HPatches' layout. Raises ValueError naming what is missing or malformed."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected scenes in HPatches' layout (1.ppm, 2.ppm, H_1_2, ...)")
    skipped = set(exclude)
    scenes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in skipped)
    pairs = [pair for scene in scenes for pair in _read_scene(scene)]
    if not pairs:
        raise ValueError(f"{folder}: no scene with a file H_1_k; expected HPatches' layout (1.ppm, 2.ppm, H_1_2, ...)")
    return pairs


def _read_scene(scene: Path) -> list[HomographyPair]:
    files = sorted(scene.glob("H_1_*"), key=lambda path: (len(path.name), path.name))
    return [
        HomographyPair(scene.name, _find_image(scene, "1"), _find_image(scene, file.name[4:]), read_homography(file))
        for file in files
    ]


def _find_image(scene: Path, stem: str) -> Path:
    found = [path for path in sorted(scene.glob(f"{stem}.*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise ValueError(f"{scene / stem}.*: no such image (a file H_1_k refers to it)")
    return found[0]


def read_homography(path: Path) -> np.ndarray:
    """(3, 3) float64 from nine numbers. Raises ValueError naming the file."""
    try:
        numbers = np.array(path.read_text().split(), dtype=float)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected the nine numbers of a homography ({error})") from error
    if numbers.shape != (9,) or not np.isfinite(numbers).all():
        raise ValueError(f"{path}: expected the nine finite numbers of a homography, got {len(numbers)}")
    homography = numbers.reshape(3, 3)
    if abs(np.linalg.det(homography)) < 1e-12:
        raise ValueError(f"{path}: the homography is singular")
    return homography


def score_pair(pair: HomographyPair, extractor: TimedExtractor, matcher: Matcher = MUTUAL) -> HomographyScore:
    """Extracts both images, matches them and measures the matches against the true homography."""
    image0, image1 = extractor.images(pair.first), extractor.images(pair.second)
    features0, features1 = extractor(pair.first), extractor(pair.second)
    truth = image1.to_resized @ pair.homography @ np.linalg.inv(image0.to_resized)
    points0, points1 = matcher(features0, features1)
    errors = np.linalg.norm(warp_homography(points0, truth) - points1, axis=1)
    repeatability, localisation = repeat(features0, features1, truth)
    return HomographyScore(
        scene=pair.scene,
        keypoints=(len(features0) + len(features1)) / 2,
        matches=len(points0),
        correct=int((errors <= REPEAT_THRESHOLD).sum()),
        mma=matching_accuracy(errors),
        corner_error=corner_error(estimate_homography(points0, points1), truth, image0),
        swept=np.array([corner_error(ransac_homography(points0, points1, t), truth, image0) for t in THRESHOLDS]),
        repeatability=repeatability,
        localisation=localisation,
    )


def matching_accuracy(errors: np.ndarray, thresholds: Sequence[float] = MMA_THRESHOLDS) -> np.ndarray:
    """(T,) share of the matches whose error (M,) in pixels is at most each threshold; zeros without matches."""
    if not len(errors):
        return np.zeros(len(thresholds))
    return (np.asarray(errors)[:, None] <= np.asarray(thresholds)).mean(axis=0)


def estimate_homography(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """`ESTIMATOR`, confidence 0.9999; None where it finds nothing."""
    if len(points0) < 4:
        return None
    return cv2.findHomography(
        points0.astype(np.float64), points1.astype(np.float64), cv2.USAC_MAGSAC, 3.0, maxIters=10000, confidence=0.9999
    )[0]


def ransac_homography(points0: np.ndarray, points1: np.ndarray, threshold_px: float) -> np.ndarray | None:
    """poselib's LO-RANSAC at its defaults; None where it finds nothing."""
    if len(points0) < 4:
        return None
    homography, found = poselib.estimate_homography(
        points0.astype(np.float64), points1.astype(np.float64), {"max_reproj_error": threshold_px}, {}
    )
    return homography if found["num_inliers"] else None


def corner_error(estimate: np.ndarray | None, truth: np.ndarray, image: EvalImage) -> float:
    """Mean distance (pixels of the second image) of the first image's corners under both maps; inf without one."""
    if estimate is None:
        return float("inf")
    width, height = image.size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)
    error = np.linalg.norm(warp_homography(corners, estimate) - warp_homography(corners, truth), axis=1).mean()
    return float(error) if np.isfinite(error) else float("inf")


def repeat(features0: Features, features1: Features, truth: np.ndarray) -> tuple[float, float]:
    """Repeatability and localisation error (SuperPoint, appendix A) at 3 px.

    Of the keypoints of either image that fall into the other, the share that has a keypoint of the other within 3 px;
    and the mean distance, px, to the nearest one for those that have. (0, nan) where nothing is shared or repeated.
    """
    forward = _nearest(features0, features1, truth)
    backward = _nearest(features1, features0, np.linalg.inv(truth))
    distances = np.concatenate([forward, backward])
    near = distances[distances <= REPEAT_THRESHOLD]
    if not len(near):
        return 0.0, float("nan")
    return len(near) / len(distances), float(near.mean())


def _nearest(source: Features, target: Features, homography: np.ndarray) -> np.ndarray:
    """Distance (pixels of the target image) to the nearest target keypoint, of the source keypoints it shows."""
    width, height = target.image_size
    warped = warp_homography(source.keypoints, homography)
    with np.errstate(invalid="ignore"):
        inside = ((warped >= 0) & (warped <= (width - 1, height - 1))).all(axis=1)
    warped = warped[inside]
    if not len(warped) or not len(target):
        return np.full(len(warped), np.inf)
    return np.linalg.norm(warped[:, None] - target.keypoints[None], axis=2).min(axis=1)


def evaluate(
    pairs: Sequence[HomographyPair],
    extractor: TimedExtractor,
    groups: dict[str, Callable[[str], bool]] | None = None,
    progress: Callable[[Sequence[HomographyPair]], Iterable[HomographyPair]] = iter,
    matcher: Matcher = MUTUAL,
) -> dict:
    """The numbers of one extractor on all pairs, per cent where they are shares: see `summary`.

    ``groups`` names further summaries over the scenes that a test accepts (HPatches: illumination, viewpoint).
    """
    scores = [score_pair(pair, extractor, matcher) for pair in progress(pairs)]
    result = summary(scores)
    for name, accepts in (groups or {}).items():
        chosen = [score for score in scores if accepts(score.scene)]
        if chosen:
            result[name] = summary(chosen)
    return result


def summary(scores: Sequence[HomographyScore]) -> dict:
    """Means over pairs (every pair counts the same, D2-Net's protocol)."""
    corner = np.array([score.corner_error for score in scores])
    localisation = np.array([score.localisation for score in scores])
    mma = np.mean([score.mma for score in scores], axis=0) * 100
    return {
        "pairs": len(scores),
        "keypoints": float(np.mean([score.keypoints for score in scores])),
        "matches": float(np.mean([score.matches for score in scores])),
        "correct": float(np.mean([score.correct for score in scores])),
        "mma": {str(t): float(value) for t, value in zip(MMA_THRESHOLDS, mma, strict=True)},
        "mha": {str(t): float((corner <= t).mean() * 100) for t in MHA_THRESHOLDS},
        "best": best_threshold(np.stack([score.swept for score in scores]), CORNER_AUC_THRESHOLDS),
        "repeatability": float(np.mean([score.repeatability for score in scores]) * 100),
        "localisation_px": None if np.isnan(localisation).all() else float(np.nanmean(localisation)),
    }
