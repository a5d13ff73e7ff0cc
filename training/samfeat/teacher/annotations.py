"""The `annotations` teacher: label maps from any source, human or another segmenter's.

Layout: `SEGMENTS/<name>/<annotator>.png`, any number of annotators, or `SEGMENTS/<name>.png`; <name> is the
photograph's path below its folder, or only its stem. 8- or 16-bit single-channel images of region ids, 0 = no group,
of the photograph's size.

People cut the same photograph into 5 or 50 parts, and each cut is true at its own grain. `--annotator all` (the
default) therefore stores every map, and training draws one per epoch: pairs that most people put together are
pulled together most of the time. `finest` and `coarsest` store the map of most and of fewest regions, a number or name
that annotator's.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from training.data.photo_store import Note, PhotoFile, SkipPhoto, read_photo
from training.data.teacher_store import TeacherEntry, borders, compact

TEACHER = "annotations"


def label_files(segments: Path, photo: PhotoFile) -> list[Path]:
    """The photograph's label maps, in the order of the annotators; [] where there are none."""
    for name in (photo.name, Path(photo.name).name):
        folder = segments / name
        if folder.is_dir():
            return sorted(folder.glob("*.png"), key=lambda path: (len(path.stem), path.stem))
        if folder.with_name(f"{folder.name}.png").is_file():
            return [folder.with_name(f"{folder.name}.png")]
    return []


def read_labels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A label map (H, W) uint16, regions 1..n, 0 = no group.

    Raises:
        SkipPhoto: not readable, not a single channel of integers, or not of `size` (width, height).
    """
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise SkipPhoto(f"segmentation {path} cannot be decoded as an image")
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
        raise SkipPhoto(f"segmentation {path} is not an 8- or 16-bit image of one channel")
    if labels.shape != size[::-1]:
        found = f"{labels.shape[1]}x{labels.shape[0]}"
        raise SkipPhoto(f"segmentation {path} is {found} and the photograph {size[0]}x{size[1]}")
    return compact(labels)


def annotate(photo: PhotoFile, files: list[Path], annotator: str, note: Note) -> TeacherEntry:
    """The entry of a photograph from its label maps; a map that cannot be used is noted and left out.

    Args:
        annotator: "all", "finest", "coarsest", or the stem of one annotator's file.

    Raises:
        SkipPhoto: the photograph cannot be read, or no usable map is left.
    """
    height, width = read_photo(photo.path).shape[:2]
    maps = {}
    for path in files:
        if annotator in ("all", "finest", "coarsest", path.stem):
            try:
                maps[path.name] = read_labels(path, (width, height))
            except SkipPhoto as reason:
                note(str(reason))
    if not maps:
        raise SkipPhoto(f"no usable segmentation (annotator {annotator})")
    if annotator in ("finest", "coarsest"):
        choose = max if annotator == "finest" else min
        name = choose(maps, key=lambda key: int(maps[key].max()))
        maps = {name: maps[name]}
    groups = np.stack(list(maps.values()))
    return TeacherEntry(groups, borders(groups), teacher=TEACHER, sources=tuple(maps))
