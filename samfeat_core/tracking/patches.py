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

import numpy as np

from samfeat_core.compiled import TwoThreads, compiled, inlined

RADIUS = 5  # pixels: a patch is 11 x 11
SIGMA = 0.6 * RADIUS  # of the weights
SLOTS = 1024  # made at a time
NOISE = 1.0  # grey values added to deviations: flat patches are noise
# Added to the diagonal of H: an affine change wants more evidence than a shift.
DAMPING = np.array([1e-4, 1e-4, 0.1, 0.1, 0.1, 0.1], np.float32)
TINY = 1e-6  # avoids division by zero for flat patches
SMALLEST_DETERMINANT = 0.3  # of one step's warp
SETTLED_PX = 0.02  # a step smaller than this is the last

_side = 2 * RADIUS + 1
_y, _x = (offset.ravel() for offset in np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(np.float32))
_weights = np.exp(-(_x**2 + _y**2) / (2 * SIGMA**2))
_weights /= _weights.sum()
# The grid with one pixel more on each side, for gradients.
_outer_side = _side + 2
_outer_y, _outer_x = (
    offset.ravel() for offset in np.mgrid[:_outer_side, :_outer_side].astype(np.float32) - (RADIUS + 1)
)


class ReferencePatches:
    """Patches of tracks, by slot.

    Attributes:
        warps: (slots, 2, 2) float32, from offsets in the reference patch to offsets in the frame last aligned to.
    """

    def __init__(self) -> None:
        self.warps = np.zeros((0, 2, 2), np.float32)
        self._reference = np.zeros((0, len(_weights)), np.float32)  # T, weighted
        self._solver = np.zeros((0, 6, len(_weights)), np.float32)  # H^-1 S W
        self._free = np.zeros(0, np.int64)
        self._threads = TwoThreads()

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
        """Take the image (H, W) uint8 around points (n, 2) as the new references of these slots."""
        points = np.asarray(points, np.float32)
        self._threads.run(
            lambda some: _anchor(image, points[some], slots[some], self._reference, self._solver), len(points)
        )
        self.warps[slots] = np.eye(2, dtype=np.float32)

    def align(
        self, image: np.ndarray, points: np.ndarray, slots: np.ndarray, iterations: int = 2, reach: float = 3.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the reference patches lie in an image.

        Args:
            image: (H, W) uint8.
            points: (n, 2) float32 where to begin.
            slots: (n,) whose references.
            iterations: Gauss-Newton steps, at most.
            reach: pixels in x and in y that a point may move at most.

        Returns:
            points (n, 2) float32, warps (n, 2, 2) float32 (`warps` itself is not changed), and the weighted
            correlation (n,) float32 of the image with the reference, at most 1, as it was before the last step.
        """
        at, warps, trust = points.astype(np.float32), self.warps[slots], np.empty(len(points), np.float32)
        self._threads.run(
            lambda some: _align(
                image, slots[some], self._reference, self._solver, iterations, reach, at[some], warps[some], trust[some]
            ),
            len(at),
        )
        return at, warps, trust


def compile_patches() -> None:
    """Compile what is below before the first frame, which should not wait for it."""
    image, slots = np.zeros((_side, _side), np.uint8), np.zeros(1, np.int64)
    point, warp = np.full((1, 2), RADIUS, np.float32), np.eye(2, dtype=np.float32)[None]
    reference, solver = np.zeros((1, len(_weights)), np.float32), np.zeros((1, 6, len(_weights)), np.float32)
    _anchor(image, point, slots, reference, solver)
    _align(image, slots, reference, solver, 1, 1.0, point, warp, np.zeros(1, np.float32))


@inlined
def _sample(image, x, y, warp, grid_x, grid_y, patch):
    """Bilinear samples of the image around (x, y) at the warped grid, into patch (P,); beyond the border as on it."""
    height, width = image.shape
    flat = image.reshape(-1)
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    a, b, c, d = warp[0, 0], warp[0, 1], warp[1, 0], warp[1, 1]
    for p in range(len(patch)):
        u = min(max(x + a * grid_x[p] + b * grid_y[p], np.float32(0)), right)
        v = min(max(y + c * grid_x[p] + d * grid_y[p], np.float32(0)), bottom)
        # Whatever NaN becomes as an integer, it must lie in the image.
        column, line = max(min(np.int32(u), width - 2), 0), max(min(np.int32(v), height - 2), 0)
        share_x, share_y = u - np.float32(column), v - np.float32(line)
        at = np.uint32(line * width + column)
        upper, lower = np.float32(flat[at]), np.float32(flat[at + width])
        upper += share_x * (np.float32(flat[at + 1]) - upper)
        lower += share_x * (np.float32(flat[at + width + 1]) - lower)
        patch[p] = upper + share_y * (lower - upper)


@inlined
def _spread(patch):
    """Weighted mean of a patch (P,), and its weighted standard deviation with the noise added."""
    mean = square = np.float32(0)
    for p in range(len(patch)):
        mean += _weights[p] * patch[p]
    for p in range(len(patch)):
        square += _weights[p] * (patch[p] - mean) ** 2
    return mean, np.sqrt(square) + np.float32(NOISE)


@compiled
def _align(image, slots, references, solvers, iterations, reach, points, warps, trust):
    """`ReferencePatches.align` in place: points and warps are the start, and become the answer."""
    patch = np.empty(len(_weights), np.float32)
    step = np.empty(6, np.float32)
    for n in range(len(points)):
        start_x, start_y = points[n, 0], points[n, 1]
        for _ in range(iterations):
            _sample(image, points[n, 0], points[n, 1], warps[n], _x, _y, patch)
            deviation = _spread(patch)[1]
            for k in range(6):
                total = np.float32(0)
                for p in range(len(patch)):
                    total += solvers[slots[n], k, p] * patch[p]
                step[k] = total / deviation
            _undo(step, warps[n])
            x = points[n, 0] - (warps[n, 0, 0] * step[0] + warps[n, 0, 1] * step[1])
            y = points[n, 1] - (warps[n, 1, 0] * step[0] + warps[n, 1, 1] * step[1])
            x = min(max(x, start_x - reach), start_x + reach)
            y = min(max(y, start_y - reach), start_y + reach)
            moved = max(abs(x - points[n, 0]), abs(y - points[n, 1]))
            points[n, 0], points[n, 1] = x, y
            if moved < SETTLED_PX:
                break
        total = np.float32(0)
        for p in range(len(patch)):
            total += patch[p] * references[slots[n], p]
        trust[n] = total / deviation


@inlined
def _undo(step, warp):
    """Multiply a warp (2, 2) by the inverse of the affine part of a step (6,)."""
    a, b, c, d = 1 + step[2], step[3], step[4], 1 + step[5]
    scale = 1 / max(a * d - b * c, np.float32(SMALLEST_DETERMINANT))
    for row in range(2):
        left, right = warp[row, 0], warp[row, 1]
        warp[row, 0], warp[row, 1] = (left * d - right * c) * scale, (right * a - left * b) * scale


@compiled
def _anchor(image, points, slots, references, solvers):
    """Weighted normalised references (P,) and solvers (6, P) of the patches around points (n, 2), into their slots."""
    count = len(_weights)
    identity = np.eye(2).astype(np.float32)
    around = np.empty(_outer_side * _outer_side, np.float32)
    patch, steepest = np.empty(count, np.float32), np.empty((6, count), np.float32)
    hessian, inverse = np.empty((6, 6)), np.empty((6, 6))
    for n in range(len(points)):
        _sample(image, points[n, 0], points[n, 1], identity, _outer_x, _outer_y, around)
        for p in range(count):
            patch[p] = around[_outer_index(p)]
        mean, deviation = _spread(patch)
        for p in range(count):
            at = _outer_index(p)
            patch[p] = (patch[p] - mean) / deviation
            dx = (around[at + 1] - around[at - 1]) / (2 * deviation)
            dy = (around[at + _outer_side] - around[at - _outer_side]) / (2 * deviation)
            steepest[0, p], steepest[1, p] = dx, dy
            steepest[2, p], steepest[3, p] = dx * _x[p], dx * _y[p]
            steepest[4, p], steepest[5, p] = dy * _x[p], dy * _y[p]
        _make_orthogonal(steepest, patch)
        for i in range(6):
            for j in range(i + 1):
                hessian[i, j] = hessian[j, i] = _inner(steepest[i], steepest[j])
            hessian[i, i] += DAMPING[i]
        _invert(hessian, inverse)
        for p in range(count):
            references[slots[n], p] = patch[p] * _weights[p]
            for i in range(6):
                total = np.float32(0)
                for j in range(6):
                    total += np.float32(inverse[i, j]) * steepest[j, p]
                solvers[slots[n], i, p] = total * _weights[p]


@inlined
def _outer_index(p):
    """Where element p of the grid lies in the outer one."""
    return (p // _side + 1) * _outer_side + p % _side + 1


@inlined
def _inner(one, other):
    """Weighted inner product of two patches (P,)."""
    total = np.float32(0)
    for p in range(len(one)):
        total += _weights[p] * one[p] * other[p]
    return total


@inlined
def _make_orthogonal(steepest, reference):
    """Make the rows (6, P) orthogonal to 1 and to the reference (P,)."""
    length = max(_inner(reference, reference), np.float32(TINY))
    for k in range(6):
        mean = np.float32(0)
        for p in range(len(reference)):
            mean += _weights[p] * steepest[k, p]
        share = _inner(steepest[k], reference) / length  # the reference has no mean
        for p in range(len(reference)):
            steepest[k, p] -= mean + share * reference[p]


@inlined
def _invert(matrix, inverse):
    """Gauss-Jordan inverse of a positive definite matrix (N, N), which is used up: no pivots are needed."""
    size = len(matrix)
    for i in range(size):
        for j in range(size):
            inverse[i, j] = 1.0 if i == j else 0.0
    for i in range(size):
        scale = 1 / matrix[i, i]
        for j in range(size):
            matrix[i, j] *= scale
            inverse[i, j] *= scale
        for row in range(size):
            if row != i:
                factor = matrix[row, i]
                for j in range(size):
                    matrix[row, j] -= factor * matrix[i, j]
                    inverse[row, j] -= factor * inverse[i, j]
