"""Public networks beside ours, run by their authors' code: to be measured, and to be imitated.

    EDGEPOINT2=~/EdgePoint2 python -m training.evaluate --extractor training.evaluation.peers:edgepoint2_e64

The user brings code and weights: an environment variable names a checkout of

    EDGEPOINT2  https://github.com/HITCSC/EdgePoint2 (MIT)
    ALIKED      https://github.com/Shiaoming/ALIKED (BSD 3-Clause; its CUDA extension need not be built)
    LIGHTGLUE   https://github.com/cvg/LightGlue (Apache-2.0; its code needs kornia and fetches the weights)

Each function but the last answers an extractor for `training.evaluation.extractors.resolve`: of BGR or grey uint8
images, on the CPU. Scores are in [0, 1]. `lightglue_aliked` answers a matcher for
`training.evaluation.matchers.resolve_matcher`:

    python -m training.evaluate --no-peers --extractor training.evaluation.peers:aliked_n16 \
        --matcher training.evaluation.peers:lightglue_aliked
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from samfeat_core.classic import Extractor
from samfeat_core.errors import UsageError
from samfeat_core.features import Features
from training.evaluation.matchers import Match


def edgepoint2_e64(max_keypoints: int) -> Extractor:
    """EdgePoint2-E64."""
    return _EdgePoint2("E64", max_keypoints)


def edgepoint2_t32(max_keypoints: int) -> Extractor:
    """EdgePoint2-T32."""
    return _EdgePoint2("T32", max_keypoints)


def aliked_n32(max_keypoints: int) -> Extractor:
    """ALIKED-N32 (arXiv 2304.03608)."""
    return _Aliked("aliked-n32", max_keypoints)


def aliked_n16(max_keypoints: int) -> Extractor:
    """ALIKED-N16, whose features LightGlue was trained on."""
    return _Aliked("aliked-n16", max_keypoints)


def aliked_n16rot(max_keypoints: int) -> Extractor:
    """ALIKED-N16, trained with rotations."""
    return _Aliked("aliked-n16rot", max_keypoints)


def edgepoint2_e64_described_by_aliked_n32(max_keypoints: int) -> Extractor:
    """EdgePoint2-E64's keypoints with ALIKED-N32's descriptors there: what our networks imitate."""
    detect, describe = _EdgePoint2("E64", max_keypoints), _Aliked("aliked-n32", max_keypoints)

    def extract(image: np.ndarray) -> Features:
        found = detect(image)
        descriptors = describe.descriptors(image, found.keypoints)
        return Features(found.keypoints, found.scores, descriptors, found.image_size)

    return extract


def lightglue_aliked() -> Match:
    """LightGlue (arXiv 2306.13643) for ALIKED's features."""
    with working_in(checkout("LIGHTGLUE", "lightglue/lightglue.py")):
        from lightglue import LightGlue

        network = LightGlue("aliked").eval()

    def view(features: Features) -> dict[str, Tensor]:
        rows = {"keypoints": features.keypoints, "descriptors": features.descriptors}
        size = torch.tensor([features.image_size], dtype=torch.float32)
        return {"image_size": size, **{name: torch.from_numpy(row)[None] for name, row in rows.items()}}

    @torch.inference_mode()
    def match(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
        if not len(first) or not len(second):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows = network({"image0": view(first), "image1": view(second)})["matches"][0].numpy()
        return rows[:, 0], rows[:, 1]

    return match


class _EdgePoint2:
    def __init__(self, name: str, max_keypoints: int) -> None:
        folder = checkout("EDGEPOINT2", "edgepoint2.py")
        with working_in(folder):  # the authors' code reads ./weights
            from edgepoint2 import EdgePoint2Wrapper

            self.network = EdgePoint2Wrapper(name, top_k=max_keypoints).eval()

    def __call__(self, image: np.ndarray) -> Features:
        found = self.network(rgb(image))[0]
        # logits are spread over a wider range than ours; so their odds become alike
        scores = torch.sigmoid(0.6 * found["scores"] - 0.7)
        keypoints, descriptors = found["keypoints"].float().numpy(), found["descriptors"].numpy()
        return Features(keypoints, scores.numpy(), descriptors, (image.shape[1], image.shape[0]))


class _Aliked:
    def __init__(self, name: str, max_keypoints: int) -> None:
        folder = checkout("ALIKED", "nets/aliked.py")
        sys.modules.setdefault("custom_ops", None)  # type: ignore[arg-type]  # its code then takes its PyTorch fallback
        with working_in(folder):
            from nets.aliked import ALIKED

            self.network = ALIKED(name, device="cpu", top_k=max_keypoints)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Features:
        features, score = self.network.extract_dense_map(rgb(image))
        (points,), (scores,), _ = self.network.dkd(score)
        (descriptors,), _ = self.network.desc_head(features, [points])
        at = (points + 1) / 2 * self._span(image)
        return Features(at.numpy(), scores.numpy(), descriptors.numpy(), (image.shape[1], image.shape[0]))

    @torch.inference_mode()
    def descriptors(self, image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """Unit rows (n, 128) at keypoints (n, 2) in pixels."""
        features, _ = self.network.extract_dense_map(rgb(image))
        points = torch.from_numpy(keypoints) / self._span(image) * 2 - 1
        return self.network.desc_head(features, [points])[0][0].numpy()

    @staticmethod
    def _span(image: np.ndarray) -> Tensor:
        height, width = image.shape[:2]
        return torch.tensor([width - 1.0, height - 1.0])


def rgb(image: np.ndarray) -> Tensor:
    """A BGR or grey uint8 image as (1, 3, H, W) in [0, 1]."""
    colour = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
    return torch.from_numpy(colour).permute(2, 0, 1)[None].float() / 255


def checkout(variable: str, file: str) -> Path:
    """The folder that an environment variable names. UsageError: it is not set, or the folder lacks the file."""
    folder = Path(os.environ.get(variable, "")).expanduser()
    if not os.environ.get(variable) or not (folder / file).is_file():
        raise UsageError(f"{variable} is {os.environ.get(variable)!r}, expected a checkout of it, with {file} in it")
    return folder.resolve()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Imports and relative paths from a folder."""
    former: Any = os.getcwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(former)
        sys.path.remove(str(folder))
