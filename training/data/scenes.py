"""Rendered scenes whose surfaces are photographs: exact depth, pose and occlusion for training and for the demo.

A scene is a set of textured parallelograms (`Quad`). For a pinhole camera the inverse depth of a plane and its texture
coordinates over depth are affine in the pixel position, so a frame is a z-buffer over a few affine functions followed
by a single `cv2.remap` out of one atlas that holds every texture with its mip levels. Light is baked into the atlas.

Conventions: x right, y down, z forward; metres; poses are camera-to-world (4, 4) float64; the centre of the top-left
pixel is (0, 0); depth is along z, 0 where nothing is hit. The world has the same axes, so gravity is +y.

`training.data.scene_pairs` makes training pairs of them, `python -m training.render_sequence` a posed sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from samfeat_core.files import is_image
from samfeat_core.poses import relative_pose, rotation_angle

GUTTER = 4  # texels of replicated border around every mip level, so that bilinear sampling never sees a neighbour
MIN_LEVEL = 4  # texels of the smallest mip level
LIGHT_GRID = 24  # light is computed on that many samples across a quad and smoothed

# Pictures inside scikit-image's wheel whose documentation says public domain, CC0 or no known restrictions.
SKIMAGE_TEXTURES = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "rocket.jpg", "text.png",
)  # fmt: skip


@dataclass(frozen=True)
class Quad:
    """A textured parallelogram: the points origin + u * edge_u + v * edge_v with u, v in [0, 1].

    `origin`, `edge_u`, `edge_v` are (3,) float64 world coordinates in metres; u runs along the columns of the texture,
    v along its rows. Its front side, towards which edge_u x edge_v points *away*, is the one on which the
    texture reads unmirrored. `emissive` quads (a sky) take no light and throw no shadow.
    """

    origin: np.ndarray
    edge_u: np.ndarray
    edge_v: np.ndarray
    texture: int
    two_sided: bool = False
    emissive: bool = False

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) towards the side that is seen."""
        away = np.cross(self.edge_u, self.edge_v)
        return -away / np.linalg.norm(away)

    def points(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """World points (..., 3) of texture coordinates u, v of any common shape."""
        return self.origin + u[..., None] * self.edge_u + v[..., None] * self.edge_v


class RenderedFrame(NamedTuple):
    """A picture of a scene, with what is known of every pixel."""

    image: np.ndarray  # (H, W, 3) uint8 BGR
    depth: np.ndarray  # (H, W) float32 metres along z at the pixel centres, 0 = nothing there
    surface: np.ndarray  # (H, W) int16 index of the quad at the pixel centres, -1 = nothing there


class Buffers(NamedTuple):
    """z-buffer: at every sample inverse depth, texture coordinates over depth, and the quad that is nearest."""

    inverse_depth: np.ndarray  # (H, W) float32
    u: np.ndarray  # (H, W) float32, u / z
    v: np.ndarray  # (H, W) float32, v / z
    surface: np.ndarray  # (H, W) int16
    density: np.ndarray  # (number of quads,) float32, texture-space area of a pixel at z = 1


@dataclass
class Scene:
    """Quads, their textures and the lights; `render` takes a picture of them.

    Args:
        quads: the surfaces.
        textures: images (H, W, 3) uint8 BGR that `Quad.texture` indexes.
        lights: (L, 3) world positions of point lights; none = flat light.
        free: ((3,), (3,)) corners of the axis-aligned box in which cameras may be put.
        heading: yaw in radians along which cameras look by preference (a street), None = anywhere (a room).
        clearance: metres that a camera keeps from everything it sees.
    """

    quads: list[Quad]
    textures: Sequence[np.ndarray]
    lights: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    free: tuple[np.ndarray, np.ndarray] = field(default_factory=lambda: (-np.ones(3), np.ones(3)))
    heading: float | None = None
    clearance: float = 0.5
    texture_size: int = 512

    def __post_init__(self) -> None:
        if not self.quads:
            raise ValueError("a scene needs at least one quad")
        self._atlas = _Atlas([self._lit_texture(index) for index in range(len(self.quads))])

    def render(
        self, matrix: np.ndarray, size: tuple[int, int], pose: np.ndarray, supersample: int = 2
    ) -> RenderedFrame:
        """Take a picture.

        Args:
            matrix: (3, 3) camera matrix in pixels.
            size: (width, height) in pixels.
            pose: (4, 4) camera-to-world.
            supersample: samples per pixel along each axis for the colour; depth is exact at pixel centres always.
        """
        width, height = size
        centres = self.trace(matrix, size, pose)
        # pixel p of the fine image covers the coarse position (p + 0.5) / s - 0.5
        shift = (supersample - 1) / 2
        scale = np.array([[supersample, 0, shift], [0, supersample, shift], [0, 0, 1.0]])
        fine = centres
        if supersample > 1:
            fine = self.trace(scale @ matrix, (width * supersample, height * supersample), pose)
        image = self._atlas.shade(fine)
        if supersample > 1:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return RenderedFrame(image, _depth(centres.inverse_depth), centres.surface)

    def depth(self, matrix: np.ndarray, size: tuple[int, int], pose: np.ndarray) -> np.ndarray:
        """Depth (H, W) float32 alone, for looking around cheaply."""
        return _depth(self.trace(matrix, size, pose).inverse_depth)

    def trace(self, matrix: np.ndarray, size: tuple[int, int], pose: np.ndarray) -> Buffers:
        """The z-buffer. With M = [edge_u, edge_v, origin] in camera axes, M^-1 K^-1 (x, y, 1) = (u, v, 1) / z."""
        width, height = size
        rotation, centre = pose[:3, :3], pose[:3, 3]
        inverse_matrix = np.linalg.inv(matrix)
        buffers = Buffers(
            np.zeros((height, width), np.float32),
            np.zeros((height, width), np.float32),
            np.zeros((height, width), np.float32),
            np.full((height, width), -1, np.int16),
            np.zeros(len(self.quads), np.float32),
        )
        corners = self._corners() - centre
        distance = np.linalg.norm(corners.mean(1), axis=1)
        for index in np.argsort(distance):  # nearest first: later quads then write less
            quad = self.quads[index]
            if not quad.two_sided and quad.normal @ (centre - quad.origin) <= 0:
                continue
            box = _screen_box(corners[index] @ rotation, matrix, width, height)
            basis = rotation.T @ np.stack([quad.edge_u, quad.edge_v, quad.origin - centre], axis=1)
            if box is None or abs(np.linalg.det(basis)) < 1e-12:
                continue
            affine = np.linalg.inv(basis) @ inverse_matrix
            buffers.density[index] = abs(np.linalg.det(affine))
            _rasterise(buffers, int(index), affine.astype(np.float32), box)
        return buffers

    def _corners(self) -> np.ndarray:
        """(number of quads, 4, 3) world corners in order around each quad."""
        u, v = np.array([0.0, 1, 1, 0]), np.array([0.0, 0, 1, 1])
        return np.stack([quad.points(u, v) for quad in self.quads])

    def _lit_texture(self, index: int) -> np.ndarray:
        """The texture of a quad cropped to its shape and with the light baked in, (h, w, 3) uint8."""
        quad = self.quads[index]
        aspect = float(np.linalg.norm(quad.edge_u) / np.linalg.norm(quad.edge_v))
        texture = _crop_to_aspect(self.textures[quad.texture], aspect, self.texture_size)
        if quad.emissive or not len(self.lights):
            return texture
        light = cv2.resize(self._light(quad), texture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return cv2.multiply(texture, cv2.merge([light] * 3), dtype=cv2.CV_8U)

    def _light(self, quad: Quad) -> np.ndarray:
        """Ambient, Lambert and shadow factor (LIGHT_GRID, LIGHT_GRID) float32, about 1 where lit."""
        steps = (np.arange(LIGHT_GRID) + 0.5) / LIGHT_GRID
        points = quad.points(*np.meshgrid(steps, steps)).reshape(-1, 3)
        total = np.full(len(points), 0.45)
        for light in self.lights:
            towards = light - points
            distance = np.linalg.norm(towards, axis=1)
            cosine = np.abs(towards @ quad.normal) if quad.two_sided else np.maximum(towards @ quad.normal, 0)
            # cosine / distance is the Lambert term; the fall-off is linear, as in a room whose walls throw light back
            lit = 0.8 / len(self.lights) * cosine / distance * np.clip(2.5 / distance, 0.5, 1.5)
            total += lit * ~self._shadowed(points, light, quad)
        grid = total.reshape(LIGHT_GRID, LIGHT_GRID).astype(np.float32)
        return cv2.GaussianBlur(grid, (0, 0), 0.8, borderType=cv2.BORDER_REPLICATE)

    def _shadowed(self, points: np.ndarray, light: np.ndarray, receiver: Quad) -> np.ndarray:
        """Whether the segment from each point (N, 3) to the light is cut by a quad, (N,) bool."""
        shadowed = np.zeros(len(points), bool)
        for quad in self.quads:
            if quad is receiver or quad.emissive:
                continue
            basis = np.stack([quad.edge_u, quad.edge_v, quad.origin - light], axis=1)
            if abs(np.linalg.det(basis)) < 1e-12:
                continue
            # the ray light + t * (point - light) meets the plane at (u, v, w) = (u, v, 1) / t
            u, v, w = np.linalg.solve(basis, (points - light).T)
            shadowed |= (w > 1.02) & (u >= 0) & (u <= w) & (v >= 0) & (v <= w)
        return shadowed


def _rasterise(buffers: Buffers, index: int, affine: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Write one quad into the z-buffer inside the pixel box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    xs, ys = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]
    window = np.s_[y0:y1, x0:x1]
    inverse_depth = (affine[2, 0] * xs + affine[2, 2]) + affine[2, 1] * ys
    hit = inverse_depth > buffers.inverse_depth[window]
    if not hit.any():
        return
    u = (affine[0, 0] * xs + affine[0, 2]) + affine[0, 1] * ys
    v = (affine[1, 0] * xs + affine[1, 2]) + affine[1, 1] * ys
    hit &= (u >= 0) & (u <= inverse_depth)
    hit &= (v >= 0) & (v <= inverse_depth)
    np.copyto(buffers.inverse_depth[window], inverse_depth, where=hit)
    np.copyto(buffers.u[window], u, where=hit)
    np.copyto(buffers.v[window], v, where=hit)
    buffers.surface[window][hit] = index


def _depth(inverse_depth: np.ndarray) -> np.ndarray:
    """1 / inverse depth, 0 where that is 0."""
    return np.divide(1, inverse_depth, out=np.zeros_like(inverse_depth), where=inverse_depth > 0)


def _screen_box(corners: np.ndarray, matrix: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Pixel box of a polygon (4, 3) in camera axes after clipping it in front of the camera; None = not in sight."""
    near = 1e-3
    clipped = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if start[2] >= near:
            clipped.append(start)
        if (start[2] >= near) != (end[2] >= near):
            clipped.append(start + (near - start[2]) / (end[2] - start[2]) * (end - start))
    if len(clipped) < 3:
        return None
    homogeneous = np.asarray(clipped) @ matrix.T
    pixels = homogeneous[:, :2] / homogeneous[:, 2:]
    low = np.maximum(np.ceil(pixels.min(0) - 1e-6), 0).astype(int)
    high = np.minimum(np.floor(pixels.max(0) + 1e-6) + 1, (width, height)).astype(int)
    return None if (low >= high).any() else (int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def _crop_to_aspect(image: np.ndarray, aspect: float, longest: int) -> np.ndarray:
    """The centre of an image with width / height = aspect (within 1:4 .. 4:1), long side at most `longest`."""
    aspect = float(np.clip(aspect, 0.25, 4))
    height, width = image.shape[:2]
    crop_w, crop_h = min(width, round(height * aspect)), min(height, round(width / aspect))
    x, y = (width - crop_w) // 2, (height - crop_h) // 2
    crop = image[y : y + crop_h, x : x + crop_w]
    scale = min(1.0, longest / max(crop.shape[:2]))
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    return cv2.resize(crop, size, interpolation=cv2.INTER_AREA)


class _Atlas:
    """All textures with their mip levels in one image, so that a frame is textured by one `cv2.remap`."""

    def __init__(self, textures: Sequence[np.ndarray]):
        chains = [_mip_chain(texture) for texture in textures]
        self.levels = max(map(len, chains))
        sizes = [_cell_size(chain) for chain in chains]
        cell_w, cell_h = max(w for w, _ in sizes), max(h for _, h in sizes)
        columns = max(1, int(np.ceil(np.sqrt(len(chains) * cell_h / cell_w))))
        rows = -(-len(chains) // columns)
        if max(columns * cell_w, rows * cell_h) > 32767:  # cv2.remap counts in 16 bits
            raise ValueError(
                f"{len(chains)} textures of up to {cell_w}x{cell_h} texels do not fit one atlas: reduce texture_size"
            )
        self.image = np.zeros((rows * cell_h, columns * cell_w, 3), np.uint8)
        # per quad and level: where the level lies (x, y) and how large it is (w, h)
        self.place = np.zeros((len(chains), self.levels, 4), np.float32)
        self.texels = np.array([chain[0].shape[0] * chain[0].shape[1] for chain in chains], np.float32)
        for index, chain in enumerate(chains):
            self._put(index, chain, index % columns * cell_w, index // columns * cell_h)

    def _put(self, index: int, chain: list[np.ndarray], left: int, top: int) -> None:
        x, y = left, top
        for level in range(self.levels):
            if level < len(chain):
                padded = cv2.copyMakeBorder(chain[level], GUTTER, GUTTER, GUTTER, GUTTER, cv2.BORDER_REPLICATE)
                height, width = padded.shape[:2]
                self.image[y : y + height, x : x + width] = padded
                self.place[index, level] = (x + GUTTER, y + GUTTER, width - 2 * GUTTER, height - 2 * GUTTER)
                x, y = (left + width, top) if level == 0 else (x, y + height)
            else:
                self.place[index, level] = self.place[index, len(chain) - 1]

    def shade(self, buffers: Buffers) -> np.ndarray:
        """Colours (H, W, 3) uint8 of the samples; black where nothing was hit.

        The level is chosen by the area that a sample covers on the texture: |det A| z^3 in texture units.
        """
        surface = np.maximum(buffers.surface, 0)
        z = _depth(buffers.inverse_depth)
        texels = (buffers.density * self.texels)[surface] * z * z * z
        level = np.clip(np.rint(0.5 * np.log2(np.maximum(texels, 1e-6))), 0, self.levels - 1).astype(np.int32)
        place = self.place.reshape(-1, 4).T
        where = surface * self.levels + level
        map_x = place[0][where] + buffers.u * z * place[2][where] - 0.5
        map_y = place[1][where] + buffers.v * z * place[3][where] - 0.5
        image = cv2.remap(self.image, map_x, map_y, cv2.INTER_LINEAR)
        image[buffers.surface < 0] = 0
        return image


def _mip_chain(texture: np.ndarray) -> list[np.ndarray]:
    """The texture and its halvings down to about MIN_LEVEL texels."""
    chain = [texture]
    while min(chain[-1].shape[:2]) >= 2 * MIN_LEVEL:
        height, width = chain[-1].shape[:2]
        chain.append(cv2.resize(chain[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return chain


def _cell_size(chain: list[np.ndarray]) -> tuple[int, int]:
    """(width, height) of the first level with the smaller ones stacked to its right, gutters included."""
    shapes = [(level.shape[1] + 2 * GUTTER, level.shape[0] + 2 * GUTTER) for level in chain]
    beside = shapes[1:]
    width = shapes[0][0] + max((w for w, _ in beside), default=0)
    return width, max(shapes[0][1], sum(h for _, h in beside))


# --- building scenes --------------------------------------------------------------------------------------------------


class _Builder:
    """Collects quads; every quad draws its own texture at random, all once before any comes twice."""

    def __init__(self, rng: np.random.Generator, textures: Sequence[np.ndarray]):
        if not len(textures):
            raise ValueError("a scene needs at least one texture")
        self.rng, self.textures, self.quads = rng, textures, list[Quad]()
        self._order: list[int] = []

    def next_texture(self) -> int:
        if not self._order:
            self._order = list(self.rng.permutation(len(self.textures)))
        return int(self._order.pop())

    def quad(self, origin: np.ndarray, edge_u: np.ndarray, edge_v: np.ndarray, two_sided: bool = False) -> None:
        self.quads.append(Quad(origin, edge_u, edge_v, self.next_texture(), two_sided))

    def box(self, centre: np.ndarray, size: np.ndarray, yaw: float, inward: bool = False, bottom: bool = True) -> None:
        """Six (or five) faces of a box turned by `yaw` about the vertical, seen from outside or from within."""
        ex, ey, ez = (axis * length for axis, length in zip(rotation_y(yaw).T, size, strict=True))
        corner = centre - (ex + ey + ez) / 2
        faces = [  # (origin, u, v) as read from outside
            (corner, ex, ey),  # front, -z
            (corner + ez + ex, -ex, ey),  # back
            (corner + ez, -ez, ey),  # left
            (corner + ex, ez, ey),  # right
            (corner + ez, ex, -ez),  # top, -y
            (corner + ey, ex, ez),  # bottom
        ]
        for origin, u, v in faces if bottom else faces[:5]:
            self.quad(origin + u, -u, v) if inward else self.quad(origin, u, v)

    def hall(self, half: np.ndarray, panel: float) -> None:
        """A box of half extents `half` (3,) about the origin seen from within, sides in panels of about `panel` m."""
        axes = np.diag(2 * half)
        corner = -half
        sides = [  # (origin, u, v) as read from within
            (corner + axes[2], axes[0], axes[1]),  # +z
            (corner + axes[0], -axes[0], axes[1]),  # -z
            (corner, axes[2], axes[1]),  # -x
            (corner + axes[0] + axes[2], -axes[2], axes[1]),  # +x
            (corner, axes[0], axes[2]),  # ceiling
            (corner + axes[1] + axes[2], axes[0], -axes[2]),  # floor
        ]
        for origin, u, v in sides:
            across, down = (max(1, round(np.linalg.norm(edge) / panel)) for edge in (u, v))
            for i in range(across):
                for j in range(down):
                    self.quad(origin + u * (i / across) + v * (j / down), u / across, v / down)

    def scene(self, **options: object) -> Scene:
        return Scene(self.quads, self.textures, **options)  # type: ignore[arg-type]


def rotation_y(angle: float) -> np.ndarray:
    """Rotation (3, 3) about the vertical; positive turns the gaze to the right."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def camera_pose(centre: np.ndarray, yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Camera-to-world (4, 4) of a camera at `centre` (3,). Radians: positive yaw right, pitch up, roll clockwise."""
    c, s = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(roll), np.sin(roll)
    spin = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = rotation_y(yaw) @ tilt @ spin
    pose[:3, 3] = centre
    return pose


def room(rng: np.random.Generator, textures: Sequence[np.ndarray], furniture: int = 9, posters: int = 16) -> Scene:
    """A box room of 4-7 m with pictures on the walls and boxes of furniture along them and on the floor."""
    build = _Builder(rng, textures)
    width, depth, height = rng.uniform(4.5, 7), rng.uniform(4.5, 7), rng.uniform(2.4, 3.2)
    half = np.array([width, height, depth]) / 2
    build.hall(half, rng.uniform(1.5, 2.4))
    for index in range(posters):  # 2 cm in front of a wall: far enough for the z-buffer, flat for the eye
        side = index % 4
        turn = rotation_y(side * np.pi / 2)
        wall_half, wall_distance = (half[0], half[2]) if side % 2 == 0 else (half[2], half[0])
        size = rng.uniform(0.35, 1.0, 2)
        x = rng.uniform(-wall_half + 0.1, wall_half - 0.1 - size[0])
        y = rng.uniform(-half[1] + 0.1, half[1] - 0.3 - size[1])
        across, down = turn @ np.array([size[0], 0, 0]), np.array([0, size[1], 0])
        build.quad(turn @ np.array([x, y, wall_distance - 0.02]), across, down)
    for _ in range(furniture):
        size = rng.uniform((0.35, 0.3, 0.35), (1.2, 1.5, 0.9))
        reach = half[[0, 2]] - 0.5 * np.hypot(size[0], size[2]) - 0.05
        x, z = rng.uniform(-reach, reach)
        if abs(x) < 0.55 * reach[0] and abs(z) < 0.55 * reach[1]:  # leave the middle to the camera
            x = np.copysign(rng.uniform(0.55, 1) * reach[0], x)
        build.box(np.array([x, half[1] - size[1] / 2 - 1e-3, z]), size, rng.uniform(-np.pi, np.pi), bottom=False)
    lights = rng.uniform(-half * (0.7, 0.9, 0.7), half * (0.7, -0.5, 0.7), (2, 3))
    reach = half - (0.6, 0.4, 0.6)
    return build.scene(lights=lights, free=(-reach, reach * (1, 0.4, 1)), clearance=0.45)


def floating_planes(rng: np.random.Generator, textures: Sequence[np.ndarray], planes: int = 24) -> Scene:
    """Photographs hung at random in a hall: strong parallax and many occlusions."""
    build = _Builder(rng, textures)
    half = np.array([5.0, 3.0, 5.0])
    build.hall(half, 3.3)
    for _ in range(planes):
        turn = camera_pose(np.zeros(3), *rng.uniform((-np.pi, -0.5, -0.4), (np.pi, 0.5, 0.4)))[:3, :3]
        centre = rng.uniform(-half * 0.75, half * 0.75)
        u, v = turn[:, 0] * rng.uniform(0.6, 2.2), turn[:, 1] * rng.uniform(0.5, 1.6)
        build.quad(centre - u / 2 - v / 2, u, v, two_sided=True)
    lights = rng.uniform(-half * 0.8, half * (0.8, 0, 0.8), (2, 3))
    return build.scene(lights=lights, free=(-half * 0.7, half * 0.7), clearance=0.5)


def street(rng: np.random.Generator, textures: Sequence[np.ndarray], length: float = 60.0, vehicles: int = 6) -> Scene:
    """A street-like corridor along +z: ground tiles, facades with set-backs on both sides, boxes on the kerb, a sky."""
    build = _Builder(rng, textures)
    half_width, tile = rng.uniform(4, 7), rng.uniform(7, 10)
    build.box(np.array([0, -20.0, length / 2]), np.array([160.0, 120.0, length + 200]), 0.0, inward=True)
    build.quads = [Quad(q.origin, q.edge_u, q.edge_v, q.texture, emissive=True) for q in build.quads]  # the sky
    for z in np.arange(-10, length + 10, tile):
        across = np.array([2 * half_width + 6, 0, 0])
        build.quad(np.array([-half_width - 3, 0, z + tile]), across, np.array([0, 0, -tile]))
    for side in (-1, 1):
        z = -10.0
        while z < length + 10:
            width, height, back = rng.uniform(5, 10), rng.uniform(5, 12), rng.uniform(0, 2)
            centre = np.array([side * (half_width + back + 2), -height / 2 + 1e-3, z + width / 2])
            build.box(centre, np.array([4.0, height, width]), 0.0, bottom=False)
            z += width + rng.choice([0.0, 0.0, 1.5])
    for _ in range(vehicles):
        size = rng.uniform((1.4, 1.0, 2.0), (2.0, 2.2, 4.5))
        x = rng.choice([-1, 1]) * (half_width - size[0] / 2 - 0.3)
        centre = np.array([x, -size[1] / 2 - 1e-3, rng.uniform(4, length)])
        build.box(centre, size, rng.uniform(-0.1, 0.1), bottom=False)
    lights = np.array([[rng.uniform(-15, 15), -45, rng.uniform(0, length)]])
    free = (np.array([-half_width + 2.8, -2.2, 0.0]), np.array([half_width - 2.8, -1.0, length * 0.85]))
    return build.scene(lights=lights, free=free, heading=0.0, clearance=1.0)


SCENES: dict[str, Callable[..., Scene]] = {"room": room, "planes": floating_planes, "street": street}


# --- where cameras are put --------------------------------------------------------------------------------------------


def pinhole(size: tuple[int, int], field_of_view_deg: float = 65.0) -> np.ndarray:
    """Camera matrix (3, 3) of a (width, height) image whose horizontal field of view is given; centre in the middle."""
    width, height = size
    focal = width / 2 / np.tan(np.radians(field_of_view_deg) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def _sees_enough(scene: Scene, pose: np.ndarray) -> bool:
    """Whether nothing is nearer than the scene's clearance and the view is not all one near surface."""
    depth = scene.depth(pinhole((32, 24), 75), (32, 24), pose)
    hit = depth[depth > 0]
    return len(hit) > 0.9 * depth.size and hit.min() > scene.clearance and np.median(hit) > 3 * scene.clearance


def _random_pose(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    yaw = rng.uniform(-np.pi, np.pi) if scene.heading is None else scene.heading + rng.normal(0, 0.35)
    return camera_pose(rng.uniform(*scene.free), yaw, rng.normal(0, 0.12), rng.normal(0, 0.08))


def random_pair(
    scene: Scene,
    rng: np.random.Generator,
    overlap: tuple[float, float] = (0.25, 0.9),
    baseline: tuple[float, float] = (0.05, 0.5),
    max_rotation_deg: float = 45.0,
    field_of_view_deg: float = 65.0,
    min_surfaces: int = 5,
    min_relief: float = 0.3,
    attempts: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
    """Two camera-to-world poses (4, 4) that see the same surfaces from different places.

    Args:
        overlap: bounds of the share of either view that is visible in the other, occlusion counted.
        baseline: bounds of the distance of the cameras over the median depth of the first.
        max_rotation_deg: bound of the whole relative rotation, roll included.
        min_surfaces: the first view shows at least that many quads, so that a pair is not one flat wall.
        min_relief: its depths spread (10th to 90th percentile) over at least that share of their median.

    Raises:
        ValueError: no such pair was found in `attempts` tries (bounds that contradict each other).
    """
    size = (32, 24)
    matrix = pinhole(size, field_of_view_deg)
    for _ in range(attempts):
        first = _random_pose(scene, rng)
        if not _sees_enough(scene, first):
            continue
        seen = scene.trace(matrix, size, first)
        if len(np.unique(seen.surface)) < min_surfaces:
            continue
        depth = _depth(seen.inverse_depth)
        low, middle, high = np.percentile(depth[depth > 0], (10, 50, 90))
        if high - low < min_relief * middle:
            continue
        second = _moved_pose(scene, rng, first, middle, rng.uniform(*baseline) * middle)
        relative = relative_pose(first, second)
        if rotation_angle(relative[:3, :3]) > max_rotation_deg or not _sees_enough(scene, second):
            continue
        depth_second = scene.depth(matrix, size, second)
        forth = covisible(depth, depth_second, matrix, relative)
        back = covisible(depth_second, depth, matrix, np.linalg.inv(relative))
        if overlap[0] <= min(forth, back) and max(forth, back) <= overlap[1]:
            return first, second
    bounds = f"overlap {overlap}, baseline {baseline}, rotation <= {max_rotation_deg} deg"
    raise ValueError(f"no camera pair with {bounds} was found in {attempts} tries")


def _moved_pose(scene: Scene, rng: np.random.Generator, first: np.ndarray, depth: float, distance: float) -> np.ndarray:
    """A camera `distance` away that looks at about the same place as the first, rolled a little."""
    direction = rng.normal(size=3) * (1, 0.5, 1)
    centre = np.clip(first[:3, 3] + distance * direction / np.linalg.norm(direction), *scene.free)
    target = first[:3, 3] + depth * (first[:3, 2] + first[:3, :3] @ rng.normal(0, (0.2, 0.15, 0)))
    gaze = target - centre
    yaw, pitch = np.arctan2(gaze[0], gaze[2]), np.arctan2(-gaze[1], np.hypot(gaze[0], gaze[2]))
    return camera_pose(centre, yaw, pitch, rng.normal(0, 0.2))


def covisible(
    depth: np.ndarray, depth_other: np.ndarray, matrix: np.ndarray, to_other: np.ndarray, tolerance: float = 0.1
) -> float:
    """Share of the pixels of a view that a second camera with the same matrix sees too (nearest sample, coarse)."""
    height, width = depth.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ np.linalg.inv(matrix).T
    points = rays * depth.reshape(-1, 1) @ to_other[:3, :3].T + to_other[:3, 3]
    ahead = (depth.ravel() > 0) & (points[:, 2] > 1e-6)
    projected = points[ahead] @ matrix.T
    pixel = np.rint(projected[:, :2] / projected[:, 2:]).astype(int)
    inside = ((pixel >= 0) & (pixel < (width, height))).all(1)
    seen = depth_other[pixel[inside, 1], pixel[inside, 0]]
    return float((np.abs(seen - projected[inside, 2]) < tolerance * projected[inside, 2]).sum() / depth.size)


def fly_through(
    scene: Scene,
    rng: np.random.Generator,
    frames: int,
    rate_hz: float = 20.0,
    speed: float = 0.5,
    turn_deg_s: float = 14.0,
    attempts: int = 60,
) -> list[np.ndarray]:
    """A smooth camera path of `frames` camera-to-world poses (4, 4) at `rate_hz`: cubic splines through way points.

    Args:
        speed: mean metres per second (a street wants 8, a room 0.5).
        turn_deg_s: typical change of yaw per second.

    Raises:
        ValueError: no path that keeps the scene's clearance was found.
    """
    from scipy.interpolate import CubicSpline

    knots = np.arange(np.ceil(max(frames / rate_hz, 1)) + 1)
    times = np.arange(frames) / rate_hz
    for _ in range(attempts):
        waypoints = _waypoints(scene, rng, len(knots), speed, np.radians(turn_deg_s))
        if waypoints is None:
            continue
        path = CubicSpline(knots, waypoints)(times)
        poses = [camera_pose(row[:3], *row[3:]) for row in path]
        if all(_sees_enough(scene, pose) for pose in poses):
            return poses
    raise ValueError(f"no clear camera path of {frames} frames at {speed} m/s was found in this scene")


def _waypoints(scene: Scene, rng: np.random.Generator, count: int, speed: float, turn: float) -> np.ndarray | None:
    """(count, 6) x, y, z, yaw, pitch, roll one second apart, each with a clear view; None after a dead end."""
    low, high = scene.free
    yaw = rng.uniform(-np.pi, np.pi) if scene.heading is None else scene.heading
    points = [np.array([*rng.uniform(low, high), yaw, 0.0, 0.0])]
    if scene.heading is not None:
        points[0][2] = low[2]
    heading = rng.uniform(-np.pi, np.pi) if scene.heading is None else scene.heading
    while len(points) < count:
        for _ in range(20):
            course = heading + rng.normal(0, 0.6 if scene.heading is None else 0.05)
            step = speed * np.array([np.sin(course), rng.normal(0, 0.1) * (scene.heading is None), np.cos(course)])
            angles = np.array([points[-1][3] + rng.normal(0, turn), rng.normal(-0.05, 0.08), rng.normal(0, 0.05)])
            if scene.heading is not None:
                angles = np.array([scene.heading + rng.normal(0, 0.06), rng.normal(0, 0.02), rng.normal(0, 0.02)])
            centre = points[-1][:3] + step
            inside = bool((centre >= low).all() and (centre <= high).all())
            if inside and _sees_enough(scene, camera_pose(centre, *angles)):
                points.append(np.concatenate([centre, angles]))
                heading = course
                break
            heading = heading + rng.normal(0, 0.8) if scene.heading is None else heading
        else:
            return None
    return np.array(points)


def texture_paths(source: str | Path) -> list[Path]:
    """Image files of a folder and its subfolders, or `skimage` for those inside scikit-image; ValueError where none."""
    if str(source) == "skimage":
        import skimage

        data = Path(skimage.__file__).parent / "data"
        return [data / name for name in SKIMAGE_TEXTURES if (data / name).is_file()]
    paths = sorted(path for path in Path(source).rglob("*") if is_image(path))
    if not paths:
        raise ValueError(f"{source}: no images to use as textures")
    return paths


def load_textures(source: str | Path) -> list[np.ndarray]:
    """Texture images (H, W, 3) uint8 BGR of `texture_paths`.

    Raises:
        ValueError: not one image can be read. Single unreadable files are passed over.
    """
    paths = texture_paths(source)
    images = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths]
    textures = [image for image in images if image is not None]
    if not textures:
        raise ValueError(f"{source}: none of {len(paths)} images can be read")
    return textures
