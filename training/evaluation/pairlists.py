"""The published pair lists of MegaDepth-1500 and ScanNet-1500, as their authors' tools wrote them.

Text lists, one pair a line:

- SuperGlue (``scannet_test_pairs_with_gt.txt``, 38 words): ``name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)``; rot counts
  the quarter turns counter-clockwise that bring an image upright, K and T are those of the image as stored;
- glue-factory (``pairs_calibrated.txt``, 32 words): ``name0 name1 K0(9) K1(9) R(9) t(3)``;
- glue-factory and ETH3D (``views.txt`` and ``pairs.txt``, for all or in a folder for each scene): a line of views is
  ``name R(9) t(3) MODEL width height PARAMETERS``, world to camera, with COLMAP's model and parameters of a camera
  without distortion; a line of pairs is ``name0 name1``. Images are relative to the two files, or in ``images/`` there.

NumPy archives of LoFTR (Sun et al., CVPR 2021):

- MegaDepth ``scene_info``: object arrays ``image_paths``, ``intrinsics``, ``poses`` (world-to-camera) and
  ``pair_infos`` of ((i, j), overlap, ...);
- ScanNet ``test.npz``: ``name`` (N, 4) of scene, scan, frame, frame; the pose from ``rel_pose`` (N, 12) or from
  SCENE/pose/FRAME.txt (camera-to-world); the camera from ``intrinsics.npz`` (for 640x480) or, beside the images,
  SCENE/intrinsic/intrinsic_color.txt (for the image as stored).

Cameras of glue-factory's lists and of scene_info are COLMAP's, to which the first pixel's centre is (0.5, 0.5); pairs
carry those of our pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samfeat_core.files import read_numbers
from training.data.archives import read_archive
from training.data.geometry import colmap_to_pixels
from training.evaluation.pose import PosePair

SUPERGLUE_WORDS, GLUE_FACTORY_WORDS = 38, 32
IMAGE_ROOTS = (".", "images", "scannet_test_1500", "megadepth_test_1500", "scans_test")
SCANNET_SIZE = (640, 480)
# number of focal lengths, which come first; the principal point follows, then distortion
COLMAP_FOCALS = {"SIMPLE_PINHOLE": 1, "PINHOLE": 2, "SIMPLE_RADIAL": 1, "RADIAL": 1, "OPENCV": 2}


def read_list(folder: Path) -> tuple[list[PosePair], str]:
    """All pairs of the list in ``folder`` and its name: views, a text list, ``test.npz``, or scene-info archives.

    Raises ValueError naming what is missing or malformed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a pair list and its images")
    views = sorted([*folder.glob("views.txt"), *folder.glob("*/views.txt")])
    if views:
        return [pair for file in views for pair in read_views(file)], "views.txt"
    for text in sorted(folder.glob("*.txt")):
        if _is_pair_list(text):
            return read_text(text), text.name
    if (folder / "test.npz").exists():
        return read_scannet(folder / "test.npz"), "test.npz"
    archives = sorted([*folder.glob("*.npz"), *folder.glob("*scene_info*/*.npz")])
    if not archives:
        raise ValueError(
            f"{folder}: no pair list; expected views.txt and pairs.txt, a text list of {SUPERGLUE_WORDS} (SuperGlue) "
            f"or {GLUE_FACTORY_WORDS} (glue-factory) words a line, ScanNet's test.npz, or LoFTR's *scene_info*/*.npz"
        )
    pairs = [pair for archive in archives for pair in read_scene_info(archive, folder)]
    return pairs, ", ".join(archive.name for archive in archives)


def _is_pair_list(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return len(file.readline().split()) in (SUPERGLUE_WORDS, GLUE_FACTORY_WORDS)


def read_text(path: Path) -> list[PosePair]:
    """Pairs of a SuperGlue or glue-factory text list. Raises ValueError naming file and line."""
    return [_text_pair(words, path, where) for words, where in _lines(path)]


def _text_pair(words: Sequence[str], path: Path, where: str) -> PosePair:
    if len(words) not in (SUPERGLUE_WORDS, GLUE_FACTORY_WORDS):
        raise ValueError(f"{where}: {len(words)} words; expected {SUPERGLUE_WORDS} or {GLUE_FACTORY_WORDS}")
    try:
        numbers = np.array(words[2:], float)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(words) == SUPERGLUE_WORDS:
        turns, numbers = numbers[:2], numbers[2:]
        transform = numbers[18:].reshape(4, 4)
    else:
        turns = np.zeros(2)
        transform = _transform(numbers[18:27].reshape(3, 3), numbers[27:])
    matrices = numbers[:18].reshape(2, 3, 3)
    if len(words) == GLUE_FACTORY_WORDS:
        matrices = colmap_to_pixels(matrices)
    _check(matrices[0], matrices[1], transform, where)
    return PosePair(
        first=_image(path.parent, words[0], where),
        second=_image(path.parent, words[1], where),
        matrix0=matrices[0],
        matrix1=matrices[1],
        transform=transform,
        turns=(int(turns[0]) % 4, int(turns[1]) % 4),
    )


@dataclass(frozen=True)
class _View:
    """matrix (3, 3) of our pixels, for an image of (width, height) size; pose (4, 4) world to camera."""

    image: Path
    matrix: np.ndarray
    size: tuple[int, int]
    pose: np.ndarray


def read_views(path: Path) -> list[PosePair]:
    """Pairs of ``pairs.txt`` beside a ``views.txt``. Raises ValueError naming file and line."""
    views = {words[0]: _view(words, path.parent, where) for words, where in _lines(path)}
    pairs = []
    for words, where in _lines(path.with_name("pairs.txt")):
        unknown = [name for name in words if name not in views]
        if len(words) != 2 or unknown:
            raise ValueError(f"{where}: expected the names of two images of {path.name}, got {' '.join(words)}")
        first, second = (views[name] for name in words)
        transform = second.pose @ np.linalg.inv(first.pose)
        sizes = (first.size, second.size)
        pairs.append(PosePair(first.image, second.image, first.matrix, second.matrix, transform, sizes))
    return pairs


def _lines(path: Path) -> list[tuple[list[str], str]]:
    """The words of every line that has some, and how to name it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = enumerate(path.read_text(errors="replace").splitlines(), 1)
    return [(line.split(), f"{path}: line {number}") for number, line in lines if line.strip()]


def _view(words: Sequence[str], root: Path, where: str) -> _View:
    try:
        numbers = np.array([*words[1:13], *words[14:]], dtype=float)
        matrix = _colmap_matrix(words[13], numbers[14:])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{where}: expected name R(9) t(3) MODEL width height parameters ({error})") from error
    pose = _transform(numbers[:9].reshape(3, 3), numbers[9:12])
    _check(matrix, matrix, pose, where)
    return _View(_image(root, words[0], where), matrix, (int(numbers[12]), int(numbers[13])), pose)


def _colmap_matrix(model: str, parameters: np.ndarray) -> np.ndarray:
    """(3, 3), for our pixels. Raises ValueError for a camera with distortion."""
    if model not in COLMAP_FOCALS:
        raise ValueError(f"camera model {model}, expected one of {', '.join(COLMAP_FOCALS)}")
    focals = COLMAP_FOCALS[model]
    fx, fy, (cx, cy) = parameters[0], parameters[focals - 1], parameters[focals : focals + 2]
    if parameters[focals + 2 :].any():
        raise ValueError(f"camera model {model} with distortion {parameters[focals + 2 :].tolist()}, expected none")
    return colmap_to_pixels(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))


def read_scene_info(path: Path, root: Path) -> list[PosePair]:
    """Pairs of one LoFTR scene-info archive, image paths relative to ``root``. Raises ValueError naming the file."""
    info = read_archive(path, "image_paths", "intrinsics", "poses", "pair_infos")
    pairs = []
    for n, entry in enumerate(info["pair_infos"]):
        where = f"{path}: pair {n}"
        try:
            i, j = (int(index) for index in entry[0])
            poses = [np.asarray(info["poses"][k], float).reshape(4, 4) for k in (i, j)]
            matrices = [colmap_to_pixels(np.reshape(info["intrinsics"][k], (3, 3))) for k in (i, j)]
            names = [str(info["image_paths"][k]) for k in (i, j)]
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{where}: malformed ({error})") from error
        transform = poses[1] @ np.linalg.inv(poses[0])
        _check(matrices[0], matrices[1], transform, where)
        images = [_image(root, name, where) for name in names]
        pairs.append(PosePair(images[0], images[1], matrices[0], matrices[1], transform))
    return pairs


def read_scannet(path: Path) -> list[PosePair]:
    """Pairs of LoFTR's ScanNet-1500 archive. Raises ValueError naming the file."""
    info = read_archive(path, "name")
    names = np.asarray(info["name"])
    if names.ndim != 2 or names.shape[1] != 4:
        raise ValueError(f"{path}: 'name' has shape {names.shape}, expected (N, 4)")
    relative = info.get("rel_pose")
    if relative is not None and (len(relative) != len(names) or relative[0].size != 12):
        raise ValueError(f"{path}: 'rel_pose' has shape {relative.shape}, expected ({len(names)}, 12)")
    cameras = read_archive(path.parent / "intrinsics.npz") if (path.parent / "intrinsics.npz").exists() else {}
    return [_scannet_pair(path, row, None if relative is None else relative[n], cameras) for n, row in enumerate(names)]


def _scannet_pair(path: Path, row: np.ndarray, relative: np.ndarray | None, cameras: dict) -> PosePair:
    scene = f"scene{int(row[0]):04d}_{int(row[1]):02d}"
    frames = [int(row[2]), int(row[3])]
    images = [_image(path.parent, f"{scene}/color/{frame}.jpg", str(path)) for frame in frames]
    home = images[0].parents[1]
    if relative is None:
        poses = [read_numbers(home / "pose" / f"{frame}.txt", 4) for frame in frames]
        transform = np.linalg.inv(poses[1]) @ poses[0]
    else:
        rows = np.asarray(relative, float).reshape(3, 4)
        transform = _transform(rows[:, :3], rows[:, 3])
    if scene in cameras:
        matrix, size = np.asarray(cameras[scene], float)[:3, :3], SCANNET_SIZE
    else:
        matrix, size = read_numbers(home / "intrinsic" / "intrinsic_color.txt", 4)[:3, :3], None
    _check(matrix, matrix, transform, f"{path}: {scene} {frames[0]} {frames[1]}")
    return PosePair(images[0], images[1], matrix, matrix, transform, (size, size))


def _transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation, translation
    return transform


def _check(matrix0: np.ndarray, matrix1: np.ndarray, transform: np.ndarray, where: str) -> None:
    for matrix in (matrix0, matrix1):
        if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or abs(matrix[2, 2] - 1) > 1e-6:
            raise ValueError(f"{where}: not a camera matrix: {matrix.round(3).tolist()}")
    turn = transform[:3, :3]
    if not np.isfinite(transform).all() or np.abs(turn @ turn.T - np.eye(3)).max() > 1e-2 or np.linalg.det(turn) < 0:
        raise ValueError(f"{where}: the relative pose is not a rotation and a translation")


def _image(root: Path, name: str, where: str) -> Path:
    for folder in IMAGE_ROOTS:
        if (root / folder / name).is_file():
            return root / folder / name
    raise ValueError(f"{where}: no image {name} in {root} (nor in its {', '.join(IMAGE_ROOTS[1:])})")
