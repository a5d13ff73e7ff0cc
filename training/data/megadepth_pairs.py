"""Pairs of MegaDepth in its published layout: photographs, h5 depth maps and one `.npz` of scene information a scene.

    ROOT/Undistorted_SfM/0001/images/*.jpg                            images, or
    ROOT/phoenix/S6/zl548/MegaDepth_v1/0001/dense0/imgs/*.jpg         the same in the archive's own folders
    ROOT/phoenix/S6/zl548/MegaDepth_v1/0001/dense0/depths/*.h5        data set `depth`, 0 = none
    SCENE_INFO/*.npz    image_paths, depth_paths, intrinsics (N, 3, 3), poses (N, 4, 4) world-to-camera, and either
                        overlap_matrix (N, N) (D2-Net's files) or pair_infos [((i, j), overlap, ...)] (LoFTR's).
                        Intrinsics are COLMAP's: the first pixel's centre is (0.5, 0.5)

`python -m training.pairs megadepth` stores pairs. Scene information files may be pickles, as they were published; only
arrays are read of them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.data.archives import read_archive
from training.data.geometry import colmap_to_pixels
from training.data.photo_store import content_hash
from training.data.posed_pairs import View, common_share, make_pair
from training.data.stored_pairs import Pair

_UNDISTORTED = re.compile(r"^Undistorted_SfM/(?P<scene>[^/]+)/images/(?P<name>[^/]+)$")
_MAX_DEPTH_ASPECT = 0.02  # relative difference of the shapes of image and depth map, beyond which they do not belong


@dataclass(frozen=True)
class SceneInfo:
    """One scene: paths relative to the root ("" where missing), camera matrices (N, 3, 3) with the first pixel's centre
    at (0, 0), world-to-camera (N, 4, 4), candidate pairs.

    pairs: (P, 2) int64 indices whose overlap is within the bounds it was read with.
    """

    images: tuple[str, ...]
    depths: tuple[str, ...]
    intrinsics: np.ndarray
    poses: np.ndarray
    pairs: np.ndarray

    @classmethod
    def read(cls, path: Path, overlap: tuple[float, float], max_scale_ratio: float = np.inf) -> SceneInfo:
        """Read a scene information file; ValueError names the file and what is missing in it."""
        info = read_archive(path, "image_paths", "depth_paths", "intrinsics", "poses")
        images = tuple("" if name is None else str(name) for name in info["image_paths"])
        depths = tuple("" if name is None else str(name) for name in info["depth_paths"])
        pairs = _candidates(path, info, overlap, max_scale_ratio)
        complete = np.array([bool(image and depth) for image, depth in zip(images, depths, strict=True)])
        pairs = pairs[complete[pairs].all(1)] if len(pairs) else pairs
        blank = {"intrinsics": np.eye(3), "poses": np.eye(4)}
        matrices = {
            key: np.array([empty if m is None else np.asarray(m, np.float64).reshape(empty.shape) for m in info[key]])
            for key, empty in blank.items()
        }
        return cls(images, depths, colmap_to_pixels(matrices["intrinsics"]), matrices["poses"], pairs)


def _candidates(path: Path, info: dict[str, Any], overlap: tuple[float, float], max_scale_ratio: float) -> np.ndarray:
    """(P, 2) int64 pairs of indices with an overlap within the bounds."""
    low, high = overlap
    if "pair_infos" in info:
        chosen = [entry[0] for entry in info["pair_infos"] if low <= float(entry[1]) <= high]
        return np.array(chosen, np.int64).reshape(-1, 2)
    if "overlap_matrix" in info:
        matrix = np.asarray(info["overlap_matrix"])
        good = (matrix >= low) & (matrix <= high)
        if "scale_ratio_matrix" in info:
            good &= np.asarray(info["scale_ratio_matrix"]) <= max_scale_ratio
        np.fill_diagonal(good, False)
        return np.argwhere(good)
    raise ValueError(f"{path}: has neither overlap_matrix nor pair_infos")


class MegaDepthPairs:
    """Pairs of photographs of MegaDepth with correspondence by its depth maps.

    Args:
        root: folder that the paths in the scene information are relative to.
        scene_info: folder of `.npz` files, or one file.
        size: (width, height) of the pairs.
        overlap: bounds of the overlap that the scene information states.
        pairs_per_scene: at most that many pairs of a scene, so that large scenes do not outweigh the others.
        max_scale_ratio: bound on `scale_ratio_matrix`, where the file has one.
        min_common: smallest share of pixels of either crop with a counterpart; others are passed over.
        tolerance: relative depth difference that is an occlusion.
        seed: with the index it determines the pair.

    Attributes:
        skipped: one line for every photograph or depth map that could not be read; its pairs are replaced.

    Raises:
        ValueError: no scene information, or no pair in it.
    """

    def __init__(
        self,
        root: str | Path,
        scene_info: str | Path,
        size: tuple[int, int] = (400, 400),
        overlap: tuple[float, float] = (0.1, 0.9),
        pairs_per_scene: int = 200,
        max_scale_ratio: float = np.inf,
        min_common: float = 0.1,
        tolerance: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.root, self.size, self.seed = Path(root), size, seed
        self.min_common, self.tolerance = min_common, tolerance
        files = sorted(Path(scene_info).glob("*.npz")) if Path(scene_info).is_dir() else [Path(scene_info)]
        if not files:
            raise ValueError(f"{scene_info}: no scene information (*.npz) there")
        self.scenes = [SceneInfo.read(file, overlap, max_scale_ratio) for file in files]
        rng = np.random.default_rng(seed)
        chosen = []
        for number, scene in enumerate(self.scenes):
            order = rng.permutation(len(scene.pairs))[:pairs_per_scene]
            chosen += [(number, *scene.pairs[index]) for index in order]
        if not chosen:
            raise ValueError(f"{scene_info}: no pair with an overlap of {overlap[0]} to {overlap[1]}")
        self.pairs = rng.permutation(np.array(chosen, np.int64))
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        for attempt in range(30):
            number, first, second = self.pairs[index if attempt == 0 else rng.integers(len(self))]
            try:
                pair = self._pair(self.scenes[number], int(first), int(second), rng)
            except ValueError as error:
                if str(error) not in self.skipped:
                    self.skipped.append(str(error))
                    print(f"skipped {error}", file=sys.stderr)
                continue
            if pair is not None and common_share(pair) >= self.min_common:
                return pair
        raise ValueError(f"{self.root}: no usable pair around index {index} in 30 tries")

    def _pair(self, scene: SceneInfo, first: int, second: int, rng: np.random.Generator) -> Pair | None:
        views = [self._view(scene, index) for index in (first, second)]
        transform = scene.poses[second] @ np.linalg.inv(scene.poses[first])
        pair = make_pair(views[0], views[1], transform, self.size, rng, self.tolerance)
        if pair is not None:
            for side, index, view in zip("01", (first, second), views):
                path = self._locate(scene.images[index])
                pair[f"photo{side}"] = np.array(path.relative_to(self.root).as_posix())
                pair[f"content{side}"] = np.array(content_hash(path))
                # both matrices are of one camera, so the one undone by the other is the cut and the scaling
                pair[f"crop{side}"] = view.matrix @ np.linalg.inv(pair[f"matrix{side}"].astype(np.float64))
        return pair

    def _view(self, scene: SceneInfo, index: int) -> View:
        path = self._locate(scene.images[index])
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path}: cannot be decoded as an image" if path.exists() else f"{path}: no such image")
        depth_path = self.root / scene.depths[index]
        return View(image, _match_shape(read_depth(depth_path), image, depth_path), scene.intrinsics[index])

    def _locate(self, relative: str) -> Path:
        """The image where the scene information says, or where MegaDepth's own archive has it."""
        path = self.root / relative
        undistorted = _UNDISTORTED.match(relative)
        if path.exists() or not undistorted:
            return path
        archive = self.root / "phoenix/S6/zl548/MegaDepth_v1" / undistorted["scene"] / "dense0" / "imgs"
        return archive / undistorted["name"]


def read_depth(path: Path) -> np.ndarray:
    """(h, w) float32 of the data set `depth` of an h5 file, 0 = none; ValueError names the file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            depth = np.asarray(file["depth"], np.float32)
    except (OSError, KeyError) as error:
        reason = "no such file" if not path.exists() else f"no h5 file with a data set 'depth' ({error})"
        raise ValueError(f"{path}: {reason}") from error
    if depth.ndim != 2:
        raise ValueError(f"{path}: depth has the shape {depth.shape}, expected two dimensions")
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0)


def _match_shape(depth: np.ndarray, image: np.ndarray, path: Path) -> np.ndarray:
    """The depth map at the size of its image; the archives differ by a few pixels for some photographs."""
    (height, width), (h, w) = image.shape[:2], depth.shape
    if abs((width * h) / (height * w) - 1) > _MAX_DEPTH_ASPECT:
        raise ValueError(f"{path}: depth of {w}x{h} does not belong to an image of {width}x{height}")
    return depth if (h, w) == (height, width) else cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST)
