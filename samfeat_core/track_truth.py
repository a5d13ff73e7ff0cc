"""How true tracks are: where a point of one frame is in another, by depth and pose, and what a track says instead.

Measured as in TAP-Vid (Doersch et al., NeurIPS 2022, section 3): the share of positions within 1, 2 and 4 pixels of the
true ones, here by the age of the track, among points that the frame shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import cv2
import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.poses import transform_points
from samfeat_core.tracking.motion import inside, pixels
from samfeat_core.two_view import to_homogeneous

AGES = (1, 5, 10, 20)
WITHIN_PX = (1, 2, 4)
OCCLUSION = 0.02  # a surface nearer than this share of a point's depth hides it
EDGE_RADIUS = 5  # pixels around a point within which a step in depth makes it a silhouette
EDGE_STEP = 0.05  # of the depth


class Scene(Protocol):
    """Frames of known depth and motion, by number."""

    def carry(self, points: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """True places (n, 2) in the second frame of points (n, 2) of the first, and (n,) bool: visible there."""

    def on_silhouette(self, points: np.ndarray, frame: int) -> np.ndarray:
        """(n,) bool: points (n, 2) lie where depth jumps."""


def carry_points(
    points: np.ndarray, depth: np.ndarray, depth_there: np.ndarray, motion: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """True places of points of one frame in another.

    Args:
        points: (n, 2) pixels. depth, depth_there: (H, W) metres along the optical axis in both frames, 0 = none.
        motion: (4, 4) transform of points from the first camera to the second.

    Returns:
        (n, 2) pixels, NaN where the depth of a point is unknown; and (n,) bool, whether the point is visible there.
    """
    metres = depth_at(depth, points)
    rays = to_homogeneous(camera.normalize(points))
    there = transform_points(rays * metres[:, None], motion)
    ahead = there[:, 2] > 0
    places = np.full((len(points), 2), np.nan)
    places[ahead] = camera.project(there[ahead, :2] / there[ahead, 2:])
    surface = depth_at(depth_there, places)
    return places, ahead & (surface > 0) & (np.abs(surface - there[:, 2]) < OCCLUSION * there[:, 2])


def depth_at(depth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n,) depth at sub-pixel places (n, 2) of a depth image (H, W), 0 where it has none or they are outside.

    Inverse depth is linear on a plane; where the four pixels around a place lie on different surfaces, the nearest
    pixel decides.
    """
    height, width = depth.shape
    within = inside(points, (width, height))
    at = np.where(within[:, None], points, 0)
    corner = np.minimum(at.astype(np.int64), (width - 2, height - 2))
    share = at - corner
    x, y = corner.T
    around = np.stack([depth[y + dy, x + dx] for dy in (0, 1) for dx in (0, 1)])
    weights = np.stack([wy * wx for wy in (1 - share[:, 1], share[:, 1]) for wx in (1 - share[:, 0], share[:, 0])])
    near, far = around.min(axis=0), around.max(axis=0)
    one = (near > 0) & (far < (1 + OCCLUSION) * near)
    smooth = 1 / (weights / np.maximum(around, 1e-6)).sum(axis=0)
    nearest = around[weights.argmax(axis=0), np.arange(len(points))]
    return np.where(within, np.where(one, smooth, nearest), 0)


def silhouette(points: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(n,) bool: depth (H, W) jumps near a point (n, 2), so that what is seen there belongs to two surfaces."""
    kernel = np.ones((2 * EDGE_RADIUS + 1, 2 * EDGE_RADIUS + 1), np.uint8)
    step = np.asarray(cv2.dilate(depth, kernel) > (1 + EDGE_STEP) * cv2.erode(depth, kernel))
    at = pixels(points, (depth.shape[1], depth.shape[0]))
    return np.asarray(step[at[:, 1], at[:, 0]])


Tracks = tuple[np.ndarray, np.ndarray]  # ids (n,) and points (n, 2) of a frame
_NONE: Tracks = np.zeros(0, np.int64), np.zeros((0, 2))


def truth_by_age(frames: Mapping[int, Tracks], scene: Scene, known: Collection[int]) -> dict[str, Any]:
    """Survival and truth of tracks by age: `ages` of all, `flat` of those not born on a silhouette.

    A figure is {"tracks", "survival", "within", "median_px"}, None without tracks. survival: of the points that are
    visible at that age, the share in per cent whose track is still there. within: {pixels: share in per cent of those
    tracks that are so near to the truth}.

    Args:
        frames: by number, in order; in a frame that is missing no track is alive.
        known: numbers of the frames of which the scene knows depth and pose.
    """
    rows: dict[int, list[np.ndarray]] = {age: [] for age in AGES}
    for number, (ids, points) in births(frames).items():
        if number not in known:
            continue
        flat = ~scene.on_silhouette(points, number)
        for age in AGES:
            if number + age in known:
                fate = _fate(frames.get(number + age, _NONE), scene, ids, points, number, number + age)
                rows[age].append(np.column_stack([*fate, flat]))
    tables = {str(age): np.concatenate(parts) if parts else np.zeros((0, 4)) for age, parts in rows.items()}
    return {
        "ages": {age: _summary(table) for age, table in tables.items()},
        "flat": {age: _summary(table[table[:, 3] > 0]) for age, table in tables.items()},
    }


def births(frames: Mapping[int, Tracks]) -> dict[int, Tracks]:
    """The tracks that begin in each frame."""
    seen, found = np.zeros(0, np.int64), {}
    for number, (ids, points) in frames.items():
        new = ~np.isin(ids, seen)
        found[number] = ids[new], points[new]
        seen = np.union1d(seen, ids)
    return found


def _fate(
    later: Tracks, scene: Scene, ids: np.ndarray, points: np.ndarray, first: int, second: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) alive, visible, and pixels from the truth of tracks in a later frame; inf where not alive, or no truth."""
    truth, visible = scene.carry(points, first, second)
    ids_later, points_later = later
    errors, alive = np.full(len(ids), np.inf), np.isin(ids, ids_later)
    _, mine, theirs = np.intersect1d(ids, ids_later, assume_unique=True, return_indices=True)
    errors[mine] = np.linalg.norm(points_later[theirs] - truth[mine], axis=1)
    return alive, visible, np.where(np.isnan(errors), np.inf, errors)


def _summary(table: np.ndarray) -> dict[str, Any] | None:
    """The figures of tracks in rows of alive, visible, error, ...; None without any."""
    alive, visible, errors = table.T[:3]
    living = alive > 0
    if not living.any() or not visible.any():
        return None
    return {
        "tracks": int(living.sum()),
        "survival": float(100 * living[visible > 0].mean()),
        "within": {str(px): float(100 * (errors[living] <= px).mean()) for px in WITHIN_PX},
        "median_px": float(np.median(errors[living])),
    }
