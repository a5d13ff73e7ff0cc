"""Synthetic shapes with exact corners: what a detector is bootstrapped on (SuperPoint's first step).

Images are drawn four times as large and averaged down, so that corners lie at fractions of pixels and edges are
smooth. Corners are where a person would point: vertices of polygons, ends of lines, crossings of checkerboards.
Ellipses and noise have none: on them the detector learns to be silent.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

SCALE = 4  # supersampling
SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
CONTRAST = 40  # least difference in grey of a shape and what is behind it

Random = np.random.Generator


class Canvas:
    """A grey image of `size` (width, height) to draw on in pixels of the final image."""

    def __init__(self, random: Random, size: tuple[int, int]) -> None:
        self.random = random
        self.size = np.array(size, np.float64)
        self.behind = float(random.integers(0, 256))
        self.image = background(random, (size[0] * SCALE, size[1] * SCALE), self.behind)

    def colour(self, *others: float) -> float:
        """A grey value that stands out from the background and from others."""
        taken = np.array((self.behind, *others))
        values = np.arange(256)
        distance = np.abs(values[:, None] - taken).min(1)
        return float(self.random.choice(values[distance >= min(CONTRAST, distance.max())]))

    def points(self, count: int, margin: float = 0.05) -> np.ndarray:
        """(count, 2) random positions inside the image."""
        return self.random.uniform(margin, 1 - margin, (count, 2)) * self.size

    def polygon(self, vertices: np.ndarray, colour: float) -> None:
        cv2.fillPoly(self.image, [_fixed(vertices)], colour, cv2.LINE_8, SHIFT)

    def line(self, start: np.ndarray, end: np.ndarray, colour: float, width: float) -> None:
        first, last = _fixed(np.stack((start, end)))
        thickness = max(1, round(width * SCALE))
        cv2.line(self.image, first.tolist(), last.tolist(), colour, thickness, cv2.LINE_AA, SHIFT)

    def ellipse(self, centre: np.ndarray, axes: np.ndarray, angle: float, colour: float) -> None:
        turns = np.linspace(0, 2 * np.pi, 100, endpoint=False)
        circle = np.stack((np.cos(turns), np.sin(turns)), 1) * axes
        self.polygon(circle @ _rotation(angle).T + centre, colour)

    def render(self) -> np.ndarray:
        """The image at its final size, (H, W) uint8."""
        width, height = self.size.astype(int)
        return cv2.resize(self.image, (int(width), int(height)), interpolation=cv2.INTER_AREA)


def draw_lines(canvas: Canvas) -> np.ndarray:
    """Segments; those that would cross an earlier one are left out, as crossings are corners, too."""
    drawn: list[np.ndarray] = []
    for _ in range(canvas.random.integers(1, 8)):
        segment = canvas.points(2)
        if np.linalg.norm(segment[1] - segment[0]) < 15 or any(_segments_meet(segment, other) for other in drawn):
            continue
        canvas.line(segment[0], segment[1], canvas.colour(), canvas.random.uniform(1, 3))
        drawn.append(segment)
    return _joined(drawn)


def draw_polygon(canvas: Canvas) -> np.ndarray:
    radius = canvas.random.uniform(0.15, 0.45) * canvas.size.min()
    vertices = _star_shaped(canvas.random, canvas.points(1, 0.3)[0], radius)
    canvas.polygon(vertices, canvas.colour())
    return vertices


def draw_polygons(canvas: Canvas) -> np.ndarray:
    """Several small polygons that do not touch."""
    circles: list[tuple[np.ndarray, float]] = []
    corners = []
    for _ in range(12):
        centre, radius = canvas.points(1)[0], canvas.random.uniform(0.08, 0.25) * canvas.size.min()
        if all(np.linalg.norm(centre - other) > radius + size + 2 for other, size in circles):
            circles.append((centre, radius))
            corners.append(_star_shaped(canvas.random, centre, radius))
            canvas.polygon(corners[-1], canvas.colour())
    return _joined(corners)


def draw_ellipses(canvas: Canvas) -> np.ndarray:
    """No corners: the negatives. Overlaps would make some."""
    circles: list[tuple[np.ndarray, float]] = []
    for _ in range(15):
        centre, radius = canvas.points(1)[0], canvas.random.uniform(0.05, 0.3) * canvas.size.min()
        if all(np.linalg.norm(centre - other) > radius + size + 2 for other, size in circles):
            circles.append((centre, radius))
            axes = np.array((radius, radius * canvas.random.uniform(0.4, 1)))
            canvas.ellipse(centre, axes, canvas.random.uniform(0, np.pi), canvas.colour())
    return np.empty((0, 2))


def draw_star(canvas: Canvas) -> np.ndarray:
    """Lines out of one point: the point and the tips."""
    centre = canvas.points(1, 0.3)[0]
    count = int(canvas.random.integers(3, 7))
    angles = _spread_angles(canvas.random, count)
    lengths = canvas.random.uniform(0.2, 0.5, count) * canvas.size.min()
    tips = centre + lengths[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    width = canvas.random.uniform(1, 3)
    for tip in tips:
        canvas.line(centre, tip, canvas.colour(), width)
    return np.vstack((centre, tips))


def draw_checkerboard(canvas: Canvas) -> np.ndarray:
    """A board in perspective with squares of two kinds of grey; every crossing and outer vertex."""
    columns, rows = canvas.random.integers(3, 8, 2).tolist()
    grid = _perspective_grid(canvas, columns, rows)
    first = canvas.colour()
    second = canvas.colour(first)
    for row in range(rows):
        for column in range(columns):
            shade = (first, second)[(row + column) % 2] + canvas.random.uniform(-10, 10)
            canvas.polygon(_cell(grid, row, column), float(np.clip(shade, 0, 255)))
    return grid.reshape(-1, 2)


def draw_stripes(canvas: Canvas) -> np.ndarray:
    """Bands in perspective; the ends of the lines between them."""
    columns = int(canvas.random.integers(2, 9))
    grid = _perspective_grid(canvas, columns, 1)
    shade = canvas.behind
    for column in range(columns):
        shade = canvas.colour(shade)
        canvas.polygon(_cell(grid, 0, column), shade)
    return grid.reshape(-1, 2)


def draw_cube(canvas: Canvas) -> np.ndarray:
    """A box seen from outside by parallel projection: seven visible corners."""
    random = canvas.random
    # Half axes in the image: about upright, and two that go off to the sides.
    angles = np.array((np.pi / 2, np.pi + np.pi / 6, -np.pi / 6)) + random.uniform(-0.35, 0.35, 3)
    lengths = random.uniform(0.15, 0.35, 3) * canvas.size.min()
    axes = lengths[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    axes = axes @ _rotation(random.uniform(-np.pi, np.pi)).T
    centre = canvas.points(1, 0.35)[0]
    shade = canvas.behind
    for one, two in ((0, 1), (1, 2), (2, 0)):
        shade = canvas.colour(shade)
        canvas.polygon(centre + np.stack((0 * axes[one], axes[one], axes[one] + axes[two], axes[two])), shade)
    pairs = np.stack((axes[0] + axes[1], axes[1] + axes[2], axes[2] + axes[0]))
    return centre + np.vstack((np.zeros((1, 2)), axes, pairs))


def draw_noise(canvas: Canvas) -> np.ndarray:
    """Noise from fine to coarse: nothing to find."""
    shape = canvas.image.shape
    grain = int(canvas.random.integers(1, 4)) * SCALE
    noise = canvas.random.integers(0, 256, (shape[0] // grain + 1, shape[1] // grain + 1), dtype=np.uint8)
    canvas.image[:] = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.empty((0, 2))


DRAWINGS: dict[str, tuple[Callable[[Canvas], np.ndarray], float]] = {
    "lines": (draw_lines, 1.0),
    "polygon": (draw_polygon, 1.0),
    "polygons": (draw_polygons, 1.5),
    "ellipses": (draw_ellipses, 0.75),
    "star": (draw_star, 1.0),
    "checkerboard": (draw_checkerboard, 1.5),
    "stripes": (draw_stripes, 1.0),
    "cube": (draw_cube, 1.5),
    "noise": (draw_noise, 0.25),
}


def render(random: Random, size: tuple[int, int], kind: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A random image of one kind of shape, with the corners in it.

    Args:
        random: the source of all chance.
        size: (width, height) in pixels, at least 32 each.
        kind: one of DRAWINGS, or None for a random one by their weights.

    Returns:
        image (H, W) uint8, and corners (n, 2) float32 x, y in its pixels, all inside.
    """
    if min(size) < 32:
        raise ValueError(f"shapes need at least 32 x 32 pixels, got {size[0]} x {size[1]}")
    if kind is None:
        weights = np.array([weight for _, weight in DRAWINGS.values()])
        kind = str(random.choice(list(DRAWINGS), p=weights / weights.sum()))
    canvas = Canvas(random, size)
    corners = DRAWINGS[kind][0](canvas)
    inside = ((corners >= 0) & (corners <= canvas.size - 1)).all(1)
    return degrade(random, canvas.render()), corners[inside].astype(np.float32)


def degrade(random: Random, image: np.ndarray) -> np.ndarray:
    """Blur, uneven light and noise, as a camera adds them."""
    height, width = image.shape
    degraded: np.ndarray = image.astype(np.float32)
    if random.random() < 0.7:
        degraded = cv2.GaussianBlur(degraded, (0, 0), random.uniform(0.3, 1.2))
    if random.random() < 0.5:
        light = cv2.resize(random.uniform(0.6, 1.4, (3, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        degraded = degraded * light.astype(np.float32)
    if random.random() < 0.8:
        degraded += random.standard_normal((height, width), np.float32) * random.uniform(1, 10)
    return np.clip(np.rint(degraded), 0, 255).astype(np.uint8)


def background(random: Random, size: tuple[int, int], grey: float) -> np.ndarray:
    """(height, width) uint8 about a grey value: flat, or with soft clouds of a fifth of the shapes' contrast."""
    width, height = size
    image = np.full((height, width), grey, np.float32)
    if random.random() < 0.7:
        cells = int(random.integers(3, 12))
        clouds = random.uniform(-CONTRAST / 5, CONTRAST / 5, (cells, cells)).astype(np.float32)
        image += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def _fixed(points: np.ndarray) -> np.ndarray:
    """Final pixels as OpenCV's fixed-point coordinates of the large canvas (half-pixel centres)."""
    return np.rint(((points + 0.5) * SCALE - 0.5) * (1 << SHIFT)).astype(np.int32)


def _rotation(angle: float) -> np.ndarray:
    return np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, 2))


def _spread_angles(random: Random, count: int) -> np.ndarray:
    """Ascending angles around a circle, no two nearer than half of an even share."""
    share = 2 * np.pi / count
    return share * (np.arange(count) + random.uniform(-0.25, 0.25, count)) + random.uniform(0, 2 * np.pi)


def _star_shaped(random: Random, centre: np.ndarray, radius: float) -> np.ndarray:
    """3 to 6 vertices around a centre; blunt ones, which nobody would call corners, are left out."""
    angles = _spread_angles(random, int(random.integers(3, 7)))
    lengths = radius * random.uniform(0.6, 1, len(angles))
    vertices = centre + lengths[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    before, after = np.roll(vertices, 1, 0) - vertices, np.roll(vertices, -1, 0) - vertices
    cosine = (before * after).sum(1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
    sharp = cosine > np.cos(np.deg2rad(155))
    return vertices[sharp] if sharp.sum() >= 3 else vertices


def _perspective_grid(canvas: Canvas, columns: int, rows: int) -> np.ndarray:
    """(rows + 1, columns + 1, 2) vertices of a regular or uneven grid under a random projective map."""
    random = canvas.random
    steps = [np.cumsum(random.uniform(0.7, 1.3, n)) for n in (columns, rows)]
    x, y = (np.concatenate(((0.0,), step)) / step[-1] * 2 - 1 for step in steps)
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    square = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), np.float64)
    corners = square * random.uniform(0.5, 0.9, 2) + random.uniform(-0.3, 0.3, (4, 2))
    corners = corners @ _rotation(random.uniform(-np.pi, np.pi)).T * canvas.size.min() / 2 * random.uniform(0.8, 1.2)
    corners += canvas.points(1, 0.4)
    matrix = cv2.getPerspectiveTransform(square.astype(np.float32), corners.astype(np.float32))
    return cv2.perspectiveTransform(grid[None], matrix).reshape(rows + 1, columns + 1, 2)


def _cell(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    indices = ((row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column))
    return np.stack([grid[index] for index in indices])


def _segments_meet(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two segments cross or come near each other (5 pixels)."""
    along = np.linspace(0, 1, 50)[:, None]
    first, second = (s[0] + along * (s[1] - s[0]) for s in (one, two))
    return bool(np.linalg.norm(first[:, None] - second[None], axis=2).min() < 5)
