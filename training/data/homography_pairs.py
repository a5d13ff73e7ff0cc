"""Pairs from single photographs under random homographies, made on the training device.

A view is a perspective crop of the photograph. The second view is the first one seen through a random
homography P (rotation, scale, translation, perspective), so that the correspondence is exact:
x1 = P^-1 x0, both ways for every pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.geometry import sampling_grid
from training.data.pairs import PairBatch, keypoint_map, pixel_grid
from training.data.photos import Photo, PhotoSource
from training.data.teacher_views import CELL, embedding_views, label_maps

REFERENCES = 1024  # the best keypoints of the reference extractor, per photograph


@dataclass(frozen=True)
class HomographyConfig:
    """Ranges of the random views.

    Attributes:
        min_crop: smallest share of the photograph's fitting extent that the first view covers.
        rotation_deg: standard deviation of the rotation between the views.
        scale: the scale between the views is in [1/scale, scale], log-uniform.
        tilt: the view is compressed by up to this factor along a random direction, as a plane seen obliquely is.
        perspective: corners move by up to this share of the view's size.
        translation: centre moves by up to this share of the view's size.
    """

    min_crop: float = 0.7
    rotation_deg: float = 12.0
    scale: float = 2.5
    tilt: float = 2.5
    perspective: float = 0.15
    translation: float = 0.15


class HomographyPairs:
    """Endless source of `PairBatch` from photographs.

    Args:
        photos: where photographs (and their teacher output, where there is any) come from.
        size: (width, height) of the views.
        device: where views are made.
    """

    def __init__(
        self, photos: PhotoSource, size: tuple[int, int], device: torch.device | str, config: HomographyConfig
    ) -> None:
        self.photos = photos
        self.width, self.height = size
        self.device = torch.device(device)
        self.config = config
        self.grid = pixel_grid(self.height, self.width, self.device)

    def sample(self, count: int) -> PairBatch:
        """`count` pairs; randomness is torch's global generator, so a saved state resumes the sequence."""
        photos = self.photos.draw(count)
        sizes = torch.tensor([photo.size for photo in photos], dtype=torch.float32)
        view0 = self._first_view(sizes)
        between = self._between(count)
        views = torch.stack((view0, view0 @ between)).to(self.device)  # view pixels -> photograph pixels
        between = between.to(self.device)
        warp10 = project(between, self.grid)
        warp01 = project(torch.linalg.inv(between), self.grid)
        coordinates = torch.stack([project(view, self.grid) for view in views])  # (2, B, H, W, 2)
        widths = pixel_widths(coordinates).tolist()
        images = torch.stack([self._render(photos, coordinates[side], widths[side]) for side in (0, 1)])
        inside = self._inside(coordinates, sizes.to(self.device))
        warp01 = self._valid_only(warp01, inside[0], inside[1])
        warp10 = self._valid_only(warp10, inside[1], inside[0])
        taught = torch.tensor([photo.has_teacher for photo in photos]).to(self.device)
        batch = PairBatch(images[0], images[1], warp01, warp10, taught, taught)
        self._add_teacher(batch, photos, coordinates, inside)
        if self.photos.labelled:
            self._add_labels(batch, photos, views, inside)
        if self.photos.referenced:
            self._add_references(batch, photos, views, [max(both) for both in zip(*widths)])
        return batch

    def state(self) -> list[int]:
        """What resuming needs besides torch's random state."""
        return self.photos.state()

    def restore(self, state: list[int]) -> None:
        self.photos.restore(state)

    def _first_view(self, sizes: Tensor) -> Tensor:
        """(B, 3, 3) similarity from view pixels to photograph pixels: a random, sometimes mirrored crop."""
        count = len(sizes)
        view = torch.tensor([self.width, self.height], dtype=torch.float32)
        fit = (sizes / view).amin(1)
        scale = fit * uniform(count, self.config.min_crop, 1.0)
        room = (sizes - scale[:, None] * view).clamp(min=0)
        corner = torch.rand(count, 2) * room
        mirror = (torch.rand(count) < 0.5) & (
            not self.photos.referenced
        )  # the reference extractor saw no mirrored photograph
        matrix = torch.zeros(count, 3, 3)
        matrix[:, 0, 0] = torch.where(mirror, -scale, scale)
        matrix[:, 1, 1] = scale
        matrix[:, 0, 2] = corner[:, 0] + torch.where(mirror, scale * (self.width - 1), torch.zeros(count))
        matrix[:, 1, 2] = corner[:, 1]
        matrix[:, 2, 2] = 1
        return matrix

    def _between(self, count: int) -> Tensor:
        """(B, 3, 3) random homography from the second view's pixels to the first one's."""
        config = self.config
        centre = torch.tensor([(self.width - 1) / 2, (self.height - 1) / 2])
        extent = torch.tensor([self.width, self.height], dtype=torch.float32)
        angle = torch.randn(count) * math.radians(config.rotation_deg)
        scale = torch.exp(uniform(count, -1.0, 1.0) * math.log(config.scale))
        stretch = torch.exp(0.5 * torch.rand(count) * math.log(config.tilt))
        direction = rotation(torch.rand(count) * math.pi)
        tilt = direction @ torch.diag_embed(torch.stack((stretch, 1 / stretch), -1)) @ direction.transpose(1, 2)
        matrix = torch.zeros(count, 3, 3)
        matrix[:, :2, :2] = scale[:, None, None] * rotation(angle) @ tilt
        matrix[:, :2, 2] = uniform((count, 2), -1.0, 1.0) * config.translation * extent
        # The third row tilts the plane: at the view's edge the depth changes by up to `perspective`.
        matrix[:, 2, :2] = uniform((count, 2), -1.0, 1.0) * config.perspective * 2 / extent
        matrix[:, 2, 2] = 1
        shift = torch.eye(3).repeat(2, 1, 1)
        shift[0, :2, 2], shift[1, :2, 2] = centre, -centre
        return shift[0] @ matrix @ shift[1]

    def _render(self, photos: list[Photo], coordinates: Tensor, widths: list[float]) -> Tensor:
        """(B, C, H, W) views sampled at photograph coordinates, from the pyramid level of their pixels' width."""
        views = []
        for photo, at, width in zip(photos, coordinates, widths):
            level = photo.level(width)
            image = photo.levels[level][None].to(self.device).float() / 255
            # A pixel of a level covers a square of the photograph's: its centre is theirs.
            views.append(sample_at(image, (at[None] + 0.5) / 2**level - 0.5, "bilinear"))
        return torch.cat(views)

    def _inside(self, coordinates: Tensor, sizes: Tensor) -> Tensor:
        """(2, B, H, W) bool: the view's pixel lies on the photograph."""
        return within(coordinates, sizes[:, None, None] - 1)

    def _valid_only(self, warp: Tensor, inside: Tensor, inside_other: Tensor) -> Tensor:
        """NaN where the pixel or its counterpart is outside the view or the photograph."""
        visible = within(warp, self.grid[-1, -1]) & inside
        nearest = warp.masked_fill(~visible[..., None], 0).round().long()
        flat = nearest[..., 1] * self.width + nearest[..., 0]
        visible &= inside_other.flatten(1).gather(1, flat.flatten(1)).view_as(visible)
        return warp.masked_fill(~visible[..., None], float("nan"))

    def _add_teacher(self, batch: PairBatch, photos: list[Photo], at: Tensor, inside: Tensor) -> None:
        """Teacher maps of both views (2, B, ...), in their frames."""
        # Present whenever any photograph of the source has them, so that all ranks evaluate the same losses.
        if self.photos.taught:
            planes = [self._label_maps(photo, at[:, n]) for n, photo in enumerate(photos)]
            groups, edges = (torch.stack(plane, 1) for plane in zip(*planes))
            batch.groups0, batch.groups1 = groups * inside
            batch.edges0, batch.edges1 = edges.masked_fill(~inside, float("nan"))[:, :, None]
        if self.photos.embedded:
            embeddings = [self._embedding(photo, at[:, n], inside[:, n]) for n, photo in enumerate(photos)]
            batch.embedding0, batch.embedding1 = torch.stack(embeddings, 1)

    def _add_labels(self, batch: PairBatch, photos: list[Photo], views: Tensor, inside: Tensor) -> None:
        """Pseudo-labels of both views: ones at the labelled keypoints, NaN where there is no labelled photograph."""
        into_views = torch.linalg.inv(views)
        planes = torch.full((2, len(photos), 1, self.height, self.width), float("nan"), device=self.device)
        for index, photo in enumerate(photos):
            if photo.keypoints is None:
                continue
            for plane, into_view, seen in zip(planes[:, index], into_views[:, index], inside[:, index]):
                points = project(into_view[None], photo.keypoints.to(self.device)[None])[0]
                plane.copy_(keypoint_map(points, (self.height, self.width))[0].masked_fill(~seen, float("nan")))
        batch.keypoints0, batch.keypoints1 = planes

    def _add_references(self, batch: PairBatch, photos: list[Photo], views: Tensor, widths: list[float]) -> None:
        """The reference features in both views: of one octave, that of the coarser view's pixel width."""
        count = len(photos)
        nowhere = torch.full((count, REFERENCES, 2), float("nan"), device=self.device)
        batch.reference0, batch.reference1 = nowhere, nowhere.clone()
        batch.reference_logits = torch.zeros(count, REFERENCES, device=self.device)
        shape = count, REFERENCES, self.photos.reference_dim
        batch.reference_descriptors = torch.zeros(shape, device=self.device)
        into_views = torch.linalg.inv(views)
        for index, (photo, width) in enumerate(zip(photos, widths)):
            reference = photo.reference(width)
            if reference is None:
                continue
            n = min(len(reference.points), REFERENCES)
            for points, into_view in zip((batch.reference0, batch.reference1), into_views[:, index]):
                points[index, :n] = self._shown(project(into_view[None], reference.points[None, :n])[0])
            batch.reference_logits[index, :n] = reference.logits[:n]
            batch.reference_descriptors[index, :n] = reference.descriptors[:n].float()

    def _shown(self, points: Tensor) -> Tensor:
        """Positions (n, 2), NaN where they are outside the view."""
        return points.masked_fill(~within(points, self.grid[-1, -1])[..., None], float("nan"))

    def _label_maps(self, photo: Photo, at: Tensor) -> tuple[Tensor, Tensor]:
        """(2, H, W) int64 groups and (2, H, W) float32 edges at the views' pixels."""
        if photo.groups is None or photo.edges is None:
            empty = torch.zeros(at.shape[:-1], device=self.device)
            return empty.long(), empty
        return label_maps(photo.groups, photo.edges, photo.size, at)

    def _embedding(self, photo: Photo, at: Tensor, inside: Tensor) -> Tensor:
        """(2, 256, H/8, W/8)."""
        if photo.embedding is None:
            return torch.zeros(2, 256, self.height // CELL, self.width // CELL, device=self.device)
        return embedding_views(photo.embedding.to(self.device), photo.size, at, inside)


def pixel_widths(at: Tensor) -> Tensor:
    """(...): photograph pixels that one pixel of a view spans at its centre, from coordinates (..., H, W, 2) there."""
    row, column = at.shape[-3] // 2, at.shape[-2] // 2
    return (at[..., row + 1, column + 1, :] - at[..., row, column, :]).norm(dim=-1) / math.sqrt(2)


def within(points: Tensor, limit: Tensor) -> Tensor:
    """(...) bool: positions (..., 2) from 0 to the limit, both included; NaN is not."""
    return ((points >= 0) & (points <= limit)).all(-1)


def uniform(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    shape = (shape,) if isinstance(shape, int) else shape
    return torch.rand(*shape) * (high - low) + low


def rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2) rotations by angles (B,) in radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)


def project(matrices: Tensor, grid: Tensor) -> Tensor:
    """(B, H, W, 2): the pixel grid (H, W, 2) through homographies (B, 3, 3)."""
    homogeneous = torch.cat((grid, torch.ones_like(grid[..., :1])), -1).flatten(0, 1)
    points = homogeneous @ matrices.transpose(1, 2)
    return (points[..., :2] / points[..., 2:].clamp(min=1e-6)).view(-1, *grid.shape)


def sample_at(image: Tensor, at: Tensor, mode: str) -> Tensor:
    """Sample (B, C, h, w) at its own pixel positions (B, H, W, 2); the border is mirrored."""
    grid = sampling_grid(at, (image.shape[-1], image.shape[-2]))
    return F.grid_sample(image, grid, mode=mode, padding_mode="reflection", align_corners=False)
