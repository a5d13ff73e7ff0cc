"""Teacher output for stored pairs that know their photographs: so the teacher's losses act across true parallax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.geometry import warp_homography
from training.data.homography_pairs import within
from training.data.pairs import PairBatch, pixel_grid
from training.data.stored_pairs import Pair, PairSource
from training.data.teacher_store import TeacherStore
from training.data.teacher_views import CELL, embedding_views, label_maps

Maps = tuple[Tensor, Tensor, Tensor, bool]  # groups, edges, embedding, and whether there is any teacher output


class PairTeacher:
    """Looks up what a store says of the photographs of pairs. Entries are read when a batch needs them.

    Args:
        store: of `python -m training.teach`, made of the photographs that the pairs were cut from.
        source: the pairs; those that do not name their photographs have no teacher output.
        device: where views are made.
    """

    def __init__(self, store: TeacherStore, source: PairSource, device: torch.device | str = "cpu") -> None:
        self.store, self.device = store, device
        photos = {photo for index in range(len(source)) for photo in _photos(source[index])}
        self._entries = {photo: store.find(*photo) for photo in photos}
        found = [name for name in self._entries.values() if name is not None]
        if photos:
            tqdm.write(f"{store.folder}: {len(found):,} of {len(photos):,} photographs of the pairs have an entry")
        self.embedded = any("embedding" in store.keys(name) for name in found)

    def add(self, batch: PairBatch, pairs: Sequence[Pair]) -> None:
        """Adds the teacher's maps to a batch of these pairs. All parts always: ranks must agree on the losses."""
        grid = pixel_grid(batch.image0.shape[-2], batch.image0.shape[-1], self.device)
        for side in "01":
            maps = [self._maps(pair, side, grid) for pair in pairs]
            groups, edges, embeddings, taught = zip(*maps)
            setattr(batch, f"groups{side}", torch.stack(groups))
            setattr(batch, f"edges{side}", torch.stack(edges)[:, None])
            setattr(batch, f"has_teacher{side}", torch.tensor(taught, device=self.device))
            if self.embedded:
                setattr(batch, f"embedding{side}", torch.stack(embeddings))

    def _maps(self, pair: Pair, side: str, grid: Tensor) -> Maps:
        name = self._entries.get(_photo(pair, side)) if f"photo{side}" in pair else None
        height, width = grid.shape[:2]
        if name is None:
            empty = torch.zeros(height, width, device=self.device)
            return empty.long(), empty, self._no_embedding(height, width), False
        entry = self.store.entry(name, embedding=self.embedded)
        crop = torch.from_numpy(pair[f"crop{side}"]).float().to(self.device)
        at = warp_homography(grid.flatten(0, 1), crop).view(1, height, width, 2)
        sizes = torch.tensor([entry.image_size], device=self.device)
        inside = within(at, sizes[0] - 1)
        groups, edges = (torch.from_numpy(p).to(self.device) for p in (entry.groups.astype(np.int32), entry.edges))
        groups, edges = (plane[0, 0] for plane in label_maps([(groups, edges)], sizes, at[None]))
        embedding = self._no_embedding(height, width)
        if entry.embedding is not None:
            stored = torch.from_numpy(entry.embedding).to(self.device)[None]
            embedding = embedding_views(stored, sizes, at[None], inside[None])[0, 0]
        return groups * inside[0], edges.masked_fill(~inside[0], float("nan")), embedding, True

    def _no_embedding(self, height: int, width: int) -> Tensor:
        return torch.zeros(256, height // CELL, width // CELL, device=self.device)


def _photos(pair: Pair) -> list[tuple[str, str]]:
    return [_photo(pair, side) for side in "01" if f"photo{side}" in pair]


def _photo(pair: Pair, side: str) -> tuple[str, str]:
    """Path and content of a view's photograph."""
    return str(pair[f"photo{side}"]), str(pair[f"content{side}"])
