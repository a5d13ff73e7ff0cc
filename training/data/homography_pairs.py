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

from samfeat_core.two_view import to_homogeneous
from training.data.geometry import sampling_grid
from training.data.packed import padded
from training.data.pairs import PairBatch, keypoint_map, pixel_grid
from training.data.photos import Photo, PhotoSource, ReferenceOctave
from training.data.teacher_views import EMBEDDING, embedding_views, label_maps

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
        device: where the photographs are, and views are made.
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
        views = torch.stack((view0, view0 @ between))  # (2, B, 3, 3), view pixels -> photograph pixels
        # These and inverses are found here: the device would have to be waited for.
        widths = pixel_widths(views, self.width, self.height)
        matrices = torch.cat((torch.stack((between, torch.linalg.inv(between))), views, torch.linalg.inv(views)))
        sizes, matrices = sizes.to(self.device), matrices.to(self.device)
        warp10, warp01 = self._everywhere(matrices[:2])
        coordinates, into_views = self._everywhere(matrices[2:4]), matrices[4:]  # (2, B, H, W, 2), (2, B, 3, 3)
        images = self._render(photos, coordinates, widths)
        inside = within(coordinates, sizes[:, None, None] - 1)
        warp01 = self._valid_only(warp01, inside[0], inside[1])
        warp10 = self._valid_only(warp10, inside[1], inside[0])
        taught = torch.tensor([photo.has_teacher for photo in photos]).to(self.device)
        batch = PairBatch(images[0], images[1], warp01, warp10, taught, taught)
        self._add_teacher(batch, photos, sizes, coordinates, inside)
        if self.photos.labelled:
            self._add_labels(batch, photos, into_views, inside)
        if self.photos.referenced:
            self._add_references(batch, photos, into_views, widths.amax(0))
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
        # The reference extractor saw no mirrored photograph.
        mirror = (torch.rand(count) < 0.5) & (not self.photos.referenced)
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

    def _everywhere(self, matrices: Tensor) -> Tensor:
        """(..., H, W, 2) where homographies (..., 3, 3) take the pixels of a view."""
        return project(matrices, self.grid.flatten(0, 1)).unflatten(-2, (self.height, self.width))

    def _render(self, photos: list[Photo], coordinates: Tensor, widths: Tensor) -> Tensor:
        """(V, B, C, H, W) V views of each photograph at coordinates (V, B, H, W, 2) there, from the pyramid level of
        their pixels' widths (V, B)."""
        levels = [[photo.level(width) for photo, width in zip(photos, view)] for view in widths.tolist()]
        images = [photo.levels[level] for view in levels for photo, level in zip(photos, view)]
        # A pixel of a level covers a square of the photograph's: its centre is theirs.
        sizes = [
            (2**level * image.shape[-1], 2**level * image.shape[-2]) for image, level in zip(images, sum(levels, []))
        ]
        covered = torch.tensor(sizes, dtype=torch.float32).to(self.device).T[..., None, None]
        grids = sampling_grid(coordinates.flatten(0, 1), (covered[0], covered[1]))
        sampled = [
            F.grid_sample(image[None].float(), grid[None], padding_mode="reflection", align_corners=False)
            for image, grid in zip(images, grids)
        ]
        return (torch.cat(sampled) / 255).unflatten(0, (len(levels), -1))

    def _valid_only(self, warp: Tensor, inside: Tensor, inside_other: Tensor) -> Tensor:
        """NaN where the pixel or its counterpart is outside the view or the photograph."""
        visible = within(warp, self.grid[-1, -1]) & inside
        nearest = warp.masked_fill(~visible[..., None], 0).round().long()
        flat = nearest[..., 1] * self.width + nearest[..., 0]
        visible &= inside_other.flatten(1).gather(1, flat.flatten(1)).view_as(visible)
        return warp.masked_fill(~visible[..., None], float("nan"))

    def _add_teacher(self, batch: PairBatch, photos: list[Photo], sizes: Tensor, at: Tensor, inside: Tensor) -> None:
        """Teacher maps of both views (2, B, ...), in their frames."""
        # Present whenever any photograph of the source has them, so that all ranks evaluate the same losses.
        if self.photos.taught:
            maps = [
                None if photo.groups is None or photo.edges is None else (photo.groups, photo.edges) for photo in photos
            ]
            groups, edges = label_maps(maps, sizes, at)
            batch.groups0, batch.groups1 = groups * inside
            batch.edges0, batch.edges1 = edges.masked_fill(~inside, float("nan"))[:, :, None]
        if self.photos.embedded:
            nothing = torch.zeros(EMBEDDING, dtype=torch.float16, device=self.device)
            embeddings = torch.stack([nothing if photo.embedding is None else photo.embedding for photo in photos])
            batch.embedding0, batch.embedding1 = embedding_views(embeddings, sizes, at, inside)

    def _add_labels(self, batch: PairBatch, photos: list[Photo], into_views: Tensor, inside: Tensor) -> None:
        """Pseudo-labels of both views: ones at the labelled keypoints, NaN where there is no labelled photograph."""
        nothing = torch.zeros(0, 2, device=self.device)
        points = padded([nothing if photo.keypoints is None else photo.keypoints for photo in photos], math.nan)
        points = project(into_views, points)
        planes = keypoint_map(points.flatten(0, 1), (self.height, self.width)).unflatten(0, (2, -1))
        labelled = torch.tensor([photo.keypoints is not None for photo in photos]).to(self.device)
        known = inside & labelled[:, None, None]
        batch.keypoints0, batch.keypoints1 = planes.masked_fill(~known[:, :, None], math.nan)

    def _add_references(self, batch: PairBatch, photos: list[Photo], into_views: Tensor, widths: Tensor) -> None:
        """The reference features in both views: of one octave, that of the coarser view's pixel width."""
        nothing = ReferenceOctave.nothing(self.photos.reference_dim).to(self.device)
        found = [photo.reference(width) or nothing for photo, width in zip(photos, widths.tolist())]
        points = padded([octave.points for octave in found], math.nan, REFERENCES)
        points = project(into_views, points)
        shown = within(points, self.grid[-1, -1])
        batch.reference0, batch.reference1 = points.masked_fill(~shown[..., None], math.nan)
        batch.reference_logits = padded([octave.logits for octave in found], 0, REFERENCES)
        batch.reference_descriptors = padded([octave.descriptors for octave in found], 0, REFERENCES).float()


def pixel_widths(views: Tensor, width: int, height: int) -> Tensor:
    """(...): photograph pixels that the pixel at the centre of a view of that size spans, of homographies (..., 3, 3)
    into the photograph."""
    centre = torch.tensor([width // 2, height // 2], device=views.device)
    one, next_one = project(views, torch.stack((centre, centre + 1)).float()).unbind(-2)
    return (next_one - one).norm(dim=-1) / math.sqrt(2)


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


def project(matrices: Tensor, points: Tensor) -> Tensor:
    """(..., N, 2): points (..., N, 2) through homographies (..., 3, 3).

    Unlike by `warp_homography`, points beyond the horizon come out far away, and not mirrored into the view.
    """
    moved = to_homogeneous(points) @ matrices.transpose(-1, -2)
    return moved[..., :2] / moved[..., 2:].clamp(min=1e-6)
