"""Which data a suite reads, where it lies under --data, and at which settings its protocol runs.

DATA/homography/SCENE/{1.jpg, 2.jpg, H_1_2, ...}        suite homography: HPatches' layout, at most 640 px long
                                                        suite stress: image 1 of each scene, changed, at most 640 px
DATA/sequences/NAME/{image/, poses.txt, calib.txt}      suites pose and tracks: posed sequences, native size
DATA/wide/NAME/{image/, poses.txt, calib.txt}           suite wide: posed photographs with wide baselines, native size
DATA/hpatches/{i_*, v_*}/{1.ppm .. 6.ppm, H_1_2 ..}     suite hpatches, or DATA/hpatches-sequences-release: at native
                                                        size, and with a short side of 480 px
DATA/megadepth1500/                                     a pair list and its images (`pairlists`), 1600 px long;
                                                        or DATA/megadepth_test_1500
DATA/pairs/NAME/                                        suite pairs: the same at native size (ETH3D, your own)
DATA/scannet1500/                                       the same at 640x480; or DATA/scannet_test_1500
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfeat_core.classic import Extractor
from samfeat_core.sequence import ImageSequence
from training.evaluation import homography, pairlists, pose, stress
from training.evaluation.extractors import TimedExtractor
from training.evaluation.images import ImageStore
from training.evaluation.matchers import MUTUAL, Matcher
from training.evaluation.tracks.suite import TrackTask, track_tasks

# frame gaps and stride of the first frame, by the name of the sequence's folder; others: SEQUENCE_DEFAULT
SEQUENCES: dict[str, tuple[tuple[int, ...], int]] = {"kitchen": ((6, 12), 8), "kitti_drive": ((1, 3), 6)}
SEQUENCE_DEFAULT = ((5, 10), 5)
POSED = "posed sequences (folders with image/, poses.txt, calib.txt)"
WIDE_DEFAULT = ((1, 2, 3, 4, 5), 1)
HPATCHES_SHORT_SIDE = 480  # glue-factory's
HPATCHES_PARTS = {
    "illumination": lambda scene: scene.startswith("i_"),
    "viewpoint": lambda scene: scene.startswith("v_"),
}


@dataclass(frozen=True)
class Options:
    """None = what the suite's published protocol says."""

    max_keypoints: int = 1024
    threshold_px: float = 1.0
    long_side: int | None = None
    gaps: tuple[int, ...] | None = None
    every: int | None = None
    matcher: Matcher = MUTUAL

    def protocol(self, images: ImageStore, **more: Any) -> dict:
        """What decides the numbers besides the extractor."""
        named = {} if self.matcher is MUTUAL else {"matcher": self.matcher.name}
        return {"max_keypoints": self.max_keypoints, "long_side": images.long_side, **more, **named}


@dataclass(frozen=True)
class Task:
    """One data set of a suite: ``pairs`` under a ``protocol``, read through ``images``."""

    suite: str
    dataset: str
    kind: str
    pairs: Sequence[Any]
    images: ImageStore
    protocol: dict
    measure: Callable[[Sequence[Any], TimedExtractor, Callable], dict] = field(repr=False)

    def entrants(self, extractors: dict[str, Extractor]) -> dict[str, Any]:
        """Who is to be measured, by label: the extractors themselves."""
        return extractors

    def run(self, label: str, extractor: Extractor, progress: Callable[[Sequence], Iterable] = iter) -> dict:
        """One entry of the report's ``results``."""
        timed = TimedExtractor(label, extractor, self.images, self.protocol["max_keypoints"])
        numbers = self.measure(self.pairs, timed, progress)
        head = {"extractor": label, "suite": self.suite, "dataset": self.dataset, "kind": self.kind}
        return {**head, "protocol": self.protocol, "images": len(timed.wall_ms), **timed.timing(), **numbers}


def homography_suite(data: Path, options: Options) -> list[Task]:
    """DATA/homography, at most 640 px long."""
    folder = find_folder(data, "homography")
    return [_homography_task("homography", folder.name, folder, ImageStore(options.long_side or 640), options)]


def hpatches_suite(data: Path, options: Options) -> list[Task]:
    """DATA/hpatches, 108 of the 116 scenes (D2-Net's choice): at native size, and with a short side of 480 px."""
    folder = find_folder(data, "hpatches")
    sizes = {folder.name: ImageStore(options.long_side)}
    if options.long_side is None:
        sizes[f"{folder.name} {HPATCHES_SHORT_SIDE}"] = ImageStore(short_side=HPATCHES_SHORT_SIDE)
    return [
        _homography_task("hpatches", name, folder, images, options, homography.UNRELIABLE_SCENES, HPATCHES_PARTS)
        for name, images in sizes.items()
    ]


def _homography_task(
    suite: str,
    dataset: str,
    folder: Path,
    images: ImageStore,
    options: Options,
    exclude: Iterable[str] = (),
    parts: dict[str, Callable[[str], bool]] | None = None,
) -> Task:
    pairs = homography.read_pairs(folder, exclude)
    scenes = len({pair.scene for pair in pairs})
    short = {} if images.short_side is None else {"short_side": images.short_side}
    protocol = options.protocol(images, **short, scenes=scenes, mha_estimator=homography.ESTIMATOR)

    def measure(pairs: Sequence, extractor: TimedExtractor, progress: Callable) -> dict:
        return homography.evaluate(pairs, extractor, parts, progress, options.matcher)

    return Task(suite, dataset, "homography", pairs, images, protocol, measure)


def stress_suite(data: Path, options: Options) -> list[Task]:
    """Image 1 of every scene in DATA/homography, at most 640 px long, beside itself under every stress."""
    scenes = homography.read_pairs(find_folder(data, "stress"))
    photographs = list(dict.fromkeys(pair.first for pair in scenes))
    images = ImageStore(options.long_side or 640)
    return [_stress_task(name, photographs, images, options) for name in stress.STRESSES]


def _stress_task(name: str, photographs: Sequence[Path], images: ImageStore, options: Options) -> Task:
    trouble = stress.STRESSES[name]
    pairs = [stress.StressPair(path, level, n) for level in trouble.levels for n, path in enumerate(photographs)]
    protocol = options.protocol(images, unit=trouble.unit, levels=list(trouble.levels), right_px=stress.RIGHT_PX)

    def measure(pairs: Sequence, extractor: TimedExtractor, progress: Callable) -> dict:
        return stress.evaluate(trouble, pairs, extractor, progress, options.matcher)

    return Task("stress", name, "stress", pairs, images, protocol, measure)


def pose_suite(data: Path, options: Options) -> list[Task]:
    """Every posed sequence in DATA/sequences, native size."""
    return [
        _sequence_task("pose", folder, SEQUENCES.get(folder.name, SEQUENCE_DEFAULT), options)
        for folder in _subfolders(data, "pose", POSED)
    ]


def wide_suite(data: Path, options: Options) -> list[Task]:
    """Every posed sequence in DATA/wide, native size: all pairs up to five photographs apart."""
    return [_sequence_task("wide", folder, WIDE_DEFAULT, options) for folder in _subfolders(data, "wide", POSED)]


def _subfolders(data: Path, suite: str, expected: str) -> list[Path]:
    root = find_folder(data, suite)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not folders:
        raise ValueError(f"{root}: no {expected}")
    return folders


def _sequence_task(suite: str, folder: Path, usual: tuple[tuple[int, ...], int], options: Options) -> Task:
    gaps, every = options.gaps or usual[0], options.every or usual[1]
    sequence = ImageSequence.read(folder, require=("poses",))
    pairs = pose.sequence_pairs(sequence, gaps, every)
    if not pairs:
        raise ValueError(f"{folder}: {len(sequence)} frames are too few for frame gaps of {min(gaps)} and more")
    return _pose_task(suite, folder.name, pairs, ImageStore(options.long_side), options, gaps=list(gaps), every=every)


def _pose_task(
    suite: str, dataset: str, pairs: Sequence[pose.PosePair], images: ImageStore, options: Options, **more: Any
) -> Task:
    protocol = options.protocol(images, estimator=pose.ESTIMATOR, threshold_px=options.threshold_px, **more)

    def measure(pairs: Sequence, extractor: TimedExtractor, progress: Callable) -> dict:
        return pose.evaluate(pairs, extractor, options.threshold_px, progress, options.matcher)

    return Task(suite, dataset, "pose", pairs, images, protocol, measure)


def megadepth_suite(data: Path, options: Options) -> list[Task]:
    """DATA/megadepth1500, at most 1600 px long."""
    folder = find_folder(data, "megadepth1500")
    pairs, name = pairlists.read_list(folder)
    images = ImageStore(options.long_side or 1600)
    return [_pose_task("megadepth1500", folder.name, pairs, images, options, list=name)]


def pairs_suite(data: Path, options: Options) -> list[Task]:
    """Every pair list in DATA/pairs, native size."""
    tasks = []
    for folder in _subfolders(data, "pairs", "folders with a pair list"):
        pairs, name = pairlists.read_list(folder)
        tasks.append(_pose_task("pairs", folder.name, pairs, ImageStore(options.long_side), options, list=name))
    return tasks


def scannet_suite(data: Path, options: Options) -> list[Task]:
    """DATA/scannet1500, images brought to 640x480."""
    folder = find_folder(data, "scannet1500")
    pairs, name = pairlists.read_list(folder)
    images = ImageStore(options.long_side, size=None if options.long_side else pairlists.SCANNET_SIZE)
    return [_pose_task("scannet1500", folder.name, pairs, images, options, size=images.size, list=name)]


def tracks_suite(data: Path, options: Options) -> list[TrackTask]:
    """DATA/sequences, whole, thinned and under stress, and rendered flights."""
    return track_tasks(find_folder(data, "tracks"), options.max_keypoints, options.threshold_px, options.every)


FOLDERS = {
    "homography": ("homography",),
    "stress": ("homography",),
    "pose": ("sequences",),
    "wide": ("wide",),
    "tracks": ("sequences",),
    "hpatches": ("hpatches", "hpatches-sequences-release"),
    "megadepth1500": ("megadepth1500", "megadepth_test_1500"),
    "scannet1500": ("scannet1500", "scannet_test_1500"),
    "pairs": ("pairs",),
}


def find_folder(data: Path, suite: str) -> Path:
    """Where the suite's data lies: the first of its folders that is there, else the first name."""
    folders = [data / name for name in FOLDERS[suite]]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


SUITES: dict[str, Callable[[Path, Options], Sequence[Task | TrackTask]]] = {
    "homography": homography_suite,
    "pose": pose_suite,
    "wide": wide_suite,
    "stress": stress_suite,
    "tracks": tracks_suite,
    "hpatches": hpatches_suite,
    "megadepth1500": megadepth_suite,
    "scannet1500": scannet_suite,
    "pairs": pairs_suite,
}
