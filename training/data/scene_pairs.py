"""Pairs of rendered scenes whose surfaces are photographs: exact depth, pose and occlusion (`training.data.scenes`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from samfeat_core.errors import UsageError
from samfeat_core.poses import relative_pose
from training.data.posed_pairs import View, common_share, make_pair
from training.data.scenes import SCENES, Scene, pinhole, random_pair, texture_paths
from training.data.stored_pairs import Pair

TEXTURES_PER_SCENE = 48


class ScenePairs:
    """Two cameras in a random scene. Rendered when asked for; `training.data.stored_pairs` keeps them.

    Args:
        textures: folder of photographs, or "skimage", or a list of image files.
        count: number of pairs.
        size: (width, height) in pixels.
        pairs_per_scene: consecutive indices share a scene, as building one costs about a second.
        kinds: kinds of scene (`training.data.scenes.SCENES`), taken in turn.
        overlap, baseline, max_rotation_deg: bounds for the two cameras, see `random_pair`.
        tolerance: relative depth difference that is an occlusion.
        seed: with the index it determines the pair.

    Raises:
        UsageError: unknown kind. ValueError: no readable texture.
    """

    def __init__(
        self,
        textures: str | Path | Sequence[Path],
        count: int,
        size: tuple[int, int] = (320, 240),
        pairs_per_scene: int = 8,
        kinds: Sequence[str] = ("room", "planes", "street"),
        overlap: tuple[float, float] = (0.25, 0.9),
        baseline: tuple[float, float] = (0.05, 0.5),
        max_rotation_deg: float = 45.0,
        tolerance: float = 0.03,
        seed: int = 0,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in SCENES]
        if unknown or not kinds:
            raise UsageError(f"scene kind {unknown or kinds}: expected some of {', '.join(SCENES)}")
        self.paths = texture_paths(textures) if isinstance(textures, str | Path) else list(textures)
        self.count, self.size, self.pairs_per_scene, self.kinds = count, size, pairs_per_scene, tuple(kinds)
        self.overlap, self.baseline, self.max_rotation_deg = overlap, baseline, max_rotation_deg
        self.tolerance, self.seed = tolerance, seed
        self._built: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.count:
            raise IndexError(index)
        scene = self.scene(index // self.pairs_per_scene)
        rng = np.random.default_rng((self.seed, 1, index))
        for _ in range(20):
            angle = rng.uniform(50, 85)
            poses = random_pair(scene, rng, self.overlap, self.baseline, self.max_rotation_deg, angle)
            matrix = pinhole(self.size, angle)
            view0, view1 = (self._view(scene, matrix, pose) for pose in poses)
            pair = make_pair(view0, view1, relative_pose(*poses), self.size, rng, self.tolerance)
            if pair is not None and common_share(pair) >= 0.7 * self.overlap[0]:
                return pair
        raise ValueError(f"scene pair {index} (seed {self.seed}): no pair with overlap {self.overlap} in 20 tries")

    def _view(self, scene: Scene, matrix: np.ndarray, pose: np.ndarray) -> View:
        rendered = scene.render(matrix, self.size, pose)
        return View(rendered.image, rendered.depth, matrix)

    def scene(self, number: int) -> Scene:
        """Scene `number`; the last two stay in memory."""
        if number not in self._built:
            self._built = dict([*self._built.items()][-1:])
            self._built[number] = self._build(number)
        return self._built[number]

    def _build(self, number: int) -> Scene:
        rng = np.random.default_rng((self.seed, 0, number))
        chosen = rng.permutation(len(self.paths))[:TEXTURES_PER_SCENE]
        textures = [cv2.imread(str(self.paths[i]), cv2.IMREAD_COLOR) for i in chosen]
        readable = [texture for texture in textures if texture is not None]
        if not readable:
            raise ValueError(f"{self.paths[chosen[0]]}: not a readable image, nor are {len(chosen) - 1} others")
        return SCENES[self.kinds[number % len(self.kinds)]](rng, readable)
