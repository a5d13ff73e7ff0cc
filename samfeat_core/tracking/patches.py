"""Reference patches: the image around a point as its track first saw it, and alignment of later frames to them.

Frame-to-frame flow drifts, and a keypoint is detected anew to half a pixel only. Aligning every frame to one and the
same patch does neither. The alignment is inverse-compositional Lucas-Kanade (Baker and Matthews, IJCV 2004, sections
3.2 and 3.3) with an affine warp, on patches that are normalised to zero mean and unit deviation, so that exposure and
gain cancel. With T the normalised reference, S its steepest-descent images made orthogonal to 1 and to T, W Gaussian
weights and H = S W S^T, a step is

    d = H^-1 S W I / deviation(I),    warp <- warp o warp(d)^-1

The mean of the image and the reference itself drop out of it, because S is orthogonal to both.
"""

from __future__ import annotations

import cv2
import numpy as np

RADIUS = 5  # pixels: a patch is 11 x 11
SIGMA = 0.6 * RADIUS  # of the weights
SLOTS = 1024  # made at a time
NOISE = 1.0  # grey values added to deviations: flat patches are noise
# Added to the diagonal of H: an affine change wants more evidence than a shift.
DAMPING = np.array([1e-4, 1e-4, 0.1, 0.1, 0.1, 0.1], np.float32)
TINY = 1e-6  # avoids division by zero for flat patches
SMALLEST_DETERMINANT = 0.3  # of one step's warp

_y, _x = (offset.ravel() for offset in np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(np.float32))
_weights = np.exp(-(_x**2 + _y**2) / (2 * SIGMA**2))
_weights /= _weights.sum()
_grid = np.stack([_x, _y, np.ones_like(_x)])  # (3, P)


class ReferencePatches:
    """Patches of tracks, by slot.

    Attributes:
        warps: (slots, 2, 2) float32, from offsets in the reference patch to offsets in the frame last aligned to.
    """

    def __init__(self) -> None:
        self.warps = np.zeros((0, 2, 2), np.float32)
        self._reference = np.zeros((0, len(_weights)), np.float32)
        self._solver = np.zeros((0, 6, len(_weights)), np.float32)  # H^-1 S W
        self._free = np.zeros(0, np.int64)

    def allocate(self, count: int) -> np.ndarray:
        """(count,) int64 slots that nobody has."""
        if len(self._free) < count:
            total = len(self.warps)
            more = max(count - len(self._free), total, SLOTS)
            for name in ("warps", "_reference", "_solver"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros((more, *array.shape[1:]), np.float32)]))
            self._free = np.concatenate([self._free, np.arange(total, total + more)])
        slots, self._free = self._free[:count], self._free[count:]
        return slots

    def free(self, slots: np.ndarray) -> None:
        """Give slots back; -1 is none."""
        self._free = np.concatenate([self._free, slots[slots >= 0]])

    def anchor(self, image: np.ndarray, points: np.ndarray, slots: np.ndarray) -> None:
        """Take the image (H, W) float32 around points (n, 2) as the new references of these slots."""
        if not len(slots):
            return
        reference, solver = _reference_of(image, points)
        self._reference[slots], self._solver[slots] = reference, solver
        self.warps[slots] = np.eye(2, dtype=np.float32)

    def align(
        self, image: np.ndarray, points: np.ndarray, slots: np.ndarray, iterations: int = 2, reach: float = 3.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the reference patches lie in an image.

        Args:
            image: (H, W) float32.
            points: (n, 2) float32 where to begin.
            slots: (n,) whose references.
            iterations: Gauss-Newton steps.
            reach: pixels in x and in y that a point may move at most.

        Returns:
            points (n, 2) float32, warps (n, 2, 2) float32 (`warps` itself is not changed), and the weighted
            correlation (n,) float32 of the image there with the reference, at most 1.
        """
        reference, solver = self._reference[slots], self._solver[slots]
        points = points.astype(np.float32)
        warps, at = self.warps[slots], points
        for _ in range(iterations):
            patch = _sample(image, at, warps)
            step = np.matmul(solver, patch[:, :, None])[:, :, 0] / _deviation(patch)[:, None]
            warps = warps @ _inverse(step[:, 2:])
            at = at - np.matmul(warps, step[:, :2, None])[:, :, 0]
            at = points + np.clip(at - points, -reach, reach)
        patch = _sample(image, at, warps)
        return at, warps, ((patch * reference) @ _weights) / _deviation(patch)


def _sample(image: np.ndarray, points: np.ndarray, warps: np.ndarray) -> np.ndarray:
    """(n, P) float32 bilinear samples of the image around points (n, 2) at the grid warped by (n, 2, 2)."""
    if not len(points):
        return np.zeros((0, len(_weights)), np.float32)
    nothing = np.zeros((0, 0), np.float32)
    x, y = (
        cv2.gemm(np.concatenate([warps[:, axis], points[:, axis : axis + 1]], axis=1), _grid, 1, nothing, 0)
        for axis in (0, 1)
    )
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _deviation(patch: np.ndarray) -> np.ndarray:
    """(n,) weighted standard deviation of patches (n, P), with the noise added."""
    mean = patch @ _weights
    return np.sqrt(np.maximum((patch * patch) @ _weights - mean * mean, 0)) + np.float32(NOISE)


def _inverse(affine: np.ndarray) -> np.ndarray:
    """(n, 2, 2) inverses of 1 + the affine parts (n, 4) of steps."""
    a, b, c, d = 1 + affine[:, 0], affine[:, 1], affine[:, 2], 1 + affine[:, 3]
    determinant = np.maximum(a * d - b * c, SMALLEST_DETERMINANT)
    return (np.stack([d, -b, -c, a], axis=1) / determinant[:, None]).reshape(-1, 2, 2)


def _reference_of(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised references (n, P) and solvers (n, 6, P) of the patches around points (n, 2)."""
    side = 2 * RADIUS + 3  # one pixel more on each side, for the gradients
    y, x = (offset.ravel() for offset in np.mgrid[:side, :side].astype(np.float32) - (RADIUS + 1))
    around = cv2.remap(
        image, points[:, :1] + x, points[:, 1:] + y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    ).reshape(-1, side, side)
    patch = around[:, 1:-1, 1:-1].reshape(len(points), -1)
    scale = 1 / _deviation(patch)[:, None]
    reference = (patch - (patch @ _weights)[:, None]) * scale
    dx = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]).reshape(len(points), -1) * (scale / 2)
    dy = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]).reshape(len(points), -1) * (scale / 2)
    steepest = np.stack([dx, dy, dx * _x, dx * _y, dy * _x, dy * _y], axis=1)  # (n, 6, P)
    steepest -= (steepest @ _weights)[:, :, None]
    weighted = steepest * _weights
    length = np.maximum((reference * reference) @ _weights, TINY)[:, None, None]
    steepest -= np.matmul(weighted, reference[:, :, None]) / length * reference[:, None]
    weighted = steepest * _weights
    hessian = np.matmul(weighted, steepest.transpose(0, 2, 1))
    hessian[:, range(6), range(6)] += DAMPING
    return reference, np.matmul(np.linalg.inv(hessian), weighted)
