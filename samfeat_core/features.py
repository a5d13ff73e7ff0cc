"""The two typed objects that flow through the package: `Features` of a frame, `Matches` between two frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MAX_SIDE = 8192  # pixels of the largest image whose features are computed


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Features:
    """Keypoints and descriptors of one image, rows in order of descending score.

    Attributes:
        keypoints: (N, 2) float32, x right and y down in pixels of the image as received; the centre
            of the top-left pixel is (0, 0).
        scores: (N,) float32 in [0, 1].
        descriptors: (N, D) float32 unit rows.
        image_size: (width, height) of the image as received.
        weights: (N,) float32 attention weight of each descriptor (SAMFeat's attention map), or None
            where a model has none. Descriptors stay unit rows; `matchable` applies the weight.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    descriptors: np.ndarray
    image_size: tuple[int, int]
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.keypoints.shape != (count, 2) or len(self.descriptors) != count or self.descriptors.ndim != 2:
            raise ValueError(
                f"Features rows differ: keypoints {self.keypoints.shape}, scores {self.scores.shape}, "
                f"descriptors {self.descriptors.shape}; expected (N, 2), (N,), (N, D)"
            )
        if self.weights is not None and self.weights.shape != (count,):
            raise ValueError(f"Features.weights has shape {self.weights.shape}, expected ({count},)")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def matchable(self) -> np.ndarray:
        """(N, D) float32 descriptors times their weights: what a matcher compares by dot product."""
        return self.descriptors if self.weights is None else self.descriptors * self.weights[:, None]

    @staticmethod
    def empty(image_size: tuple[int, int], dim: int) -> Features:
        """No features, for an image in which nothing was found."""
        return Features(
            np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, dim), np.float32), image_size
        )


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Matches:
    """Matches of the current frame to the previous one, with the identity of every current row.

    N rows belong to the current `Features`, M matches connect some of them with rows of the previous frame.

    Attributes:
        index: (M,) int64 rows into the current `Features`.
        index_prev: (M,) int64 rows into the previous `Features`.
        similarity: (M,) float32 dot product of the descriptors of the two rows.
        inlier: (M,) bool, agrees with the epipolar geometry of the frame pair.
        track_ids: (N,) int64.
        restarted: tracks started anew with this frame, so there is nothing to match to.
        lengths: (N,) int64 frames in which the track was seen, this one included; 1 = new.
        sources: (N,) uint8 where the position comes from: `samfeat_core.tracking.DETECTED`, `FOLLOWED` or `RECOVERED`.
        trust: (N,) float32, correlation of the image around the point with the track's reference patch, at most 1;
            1 for new points and for trackers that compare no images.
    """

    index: np.ndarray
    index_prev: np.ndarray
    similarity: np.ndarray
    inlier: np.ndarray
    track_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    restarted: bool = False
    lengths: np.ndarray = None  # type: ignore[assignment]
    sources: np.ndarray = None  # type: ignore[assignment]
    trust: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        count = len(self.track_ids)
        defaults = {"lengths": np.ones(count, np.int64), "sources": np.zeros(count, np.uint8)}
        for name, default in {**defaults, "trust": np.ones(count, np.float32)}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def inlier_ratio(self) -> float:
        """Share of matches that are inliers; nan where there are no matches."""
        return float(self.inlier.mean()) if len(self.inlier) else float("nan")
