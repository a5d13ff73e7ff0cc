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
from training.data.teacher_store import TeacherEntry, TeacherStore
from training.data.teacher_views import EMBEDDING, embedding_views, label_maps


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
        height, width = batch.image0.shape[-2:]
        pixels = pixel_grid(height, width, self.device).flatten(0, 1)
        for side in "01":
            entries = [self._entry(pair, side) for pair in pairs]
            # A view that the teacher did not see is its own photograph, with nothing on it.
            crops = [np.eye(3) if entry is None else pair[f"crop{side}"] for entry, pair in zip(entries, pairs)]
            sizes = [(width, height) if entry is None else entry.image_size for entry in entries]
            crop, size = (torch.tensor(np.stack(part), device=self.device) for part in (crops, sizes))
            at = warp_homography(pixels, crop.float()).view(1, -1, height, width, 2)
            inside = within(at, size[:, None, None] - 1)
            groups, edges = label_maps([self._label_maps(entry) for entry in entries], size, at)
            setattr(batch, f"groups{side}", (groups * inside)[0])
            setattr(batch, f"edges{side}", edges.masked_fill(~inside, float("nan"))[0, :, None])
            taught = [entry is not None for entry in entries]
            setattr(batch, f"has_teacher{side}", torch.tensor(taught, device=self.device))
            if self.embedded:
                embeddings = torch.stack([self._embedding(entry) for entry in entries])
                setattr(batch, f"embedding{side}", embedding_views(embeddings, size, at, inside)[0])

    def _entry(self, pair: Pair, side: str) -> TeacherEntry | None:
        name = self._entries.get(_photo(pair, side)) if f"photo{side}" in pair else None
        return None if name is None else self.store.entry(name, embedding=self.embedded)

    def _label_maps(self, entry: TeacherEntry | None) -> tuple[Tensor, Tensor] | None:
        if entry is None:
            return None
        return (
            torch.from_numpy(entry.groups.astype(np.int32)).to(self.device),
            torch.from_numpy(entry.edges).to(self.device),
        )

    def _embedding(self, entry: TeacherEntry | None) -> Tensor:
        if entry is None or entry.embedding is None:
            return torch.zeros(EMBEDDING, dtype=torch.float16, device=self.device)
        return torch.from_numpy(entry.embedding).to(self.device)


def _photos(pair: Pair) -> list[tuple[str, str]]:
    return [_photo(pair, side) for side in "01" if f"photo{side}" in pair]


def _photo(pair: Pair, side: str) -> tuple[str, str]:
    """Path and content of a view's photograph."""
    return str(pair[f"photo{side}"]), str(pair[f"content{side}"])
