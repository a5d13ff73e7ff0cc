"""Photographs in memory on the training device, so that the cores train and do not decode; those that do not fit are
read when they are needed, ahead of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from samfeat_core.progress import progress
from training.data.feature_store import FeatureStore
from training.data.label_store import LabelStore
from training.data.photo_store import PhotoStore, SkipPhoto, StoreError, content_hash, find_photos, read_photo
from training.data.teacher_store import TeacherStore

MOST_GROUPS = np.iinfo(np.int16).max
AHEAD, READERS = 32, 4  # photographs on disk that are read before they are drawn, and threads that do
PARTS = ("groups", "embedding", "keypoints", "references")  # what a photograph may have besides its pixels


@dataclass
class ReferenceOctave:
    """What another extractor, whose features are to be imitated, finds in one octave of a photograph.

    Attributes:
        points: (n, 2) float32 in pixels of the full level, best first.
        logits: (n,) float32.
        descriptors: (n, E) float16 unit rows.
        pixel_width: width of this octave's pixels in pixels of the full level.
    """

    points: Tensor
    logits: Tensor
    descriptors: Tensor
    pixel_width: float

    @staticmethod
    def nothing(dim: int) -> ReferenceOctave:
        """No features, of that dimension."""
        return ReferenceOctave(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dim, dtype=torch.float16), 1.0)

    def to(self, device: torch.device | str) -> ReferenceOctave:
        points, logits, descriptors = (part.to(device) for part in (self.points, self.logits, self.descriptors))
        return ReferenceOctave(points, logits, descriptors, self.pixel_width)


@dataclass
class Photo:
    """One photograph with what the teacher said of it.

    Attributes:
        name: its path below the folder it came from, without suffix.
        levels: uint8 (C, h, w) at full, half and quarter size; C = 1 grey or 3 RGB.
        groups, edges: (K, h, w) alternative label maps (int16) and their border maps (bool), or None.
        embedding: (256, 64, 64) float16 of the SAM encoder, or None.
        keypoints: (n, 2) float32 labelled keypoints in pixels of the full level, or None.
        references: features to imitate, by octave; empty without.
        content: hash of its file.
    """

    name: str
    levels: list[Tensor]
    groups: Tensor | None = None
    edges: Tensor | None = None
    embedding: Tensor | None = None
    keypoints: Tensor | None = None
    references: list[ReferenceOctave] = field(default_factory=list)
    content: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.levels[0].shape[-1], self.levels[0].shape[-2]

    @property
    def has_teacher(self) -> bool:
        return self.groups is not None

    @property
    def parts(self) -> frozenset[str]:
        """Those of `PARTS` that it has."""
        having = {part: getattr(self, part) is not None for part in PARTS[:-1]}
        return frozenset(part for part, there in {**having, PARTS[-1]: bool(self.references)}.items() if there)

    @property
    def reference_dim(self) -> int:
        """Dimension of the reference features; 0 without."""
        return self.references[0].descriptors.shape[1] if self.references else 0

    @property
    def nbytes(self) -> int:
        rows = [(octave.points, octave.logits, octave.descriptors) for octave in self.references]
        maps = (self.groups, self.edges, self.embedding, self.keypoints)
        return sum(t.nbytes for t in (*self.levels, *maps, *(t for row in rows for t in row)) if t is not None)

    def level(self, step: float) -> int:
        """The pyramid level to sample from when one view pixel spans `step` photograph pixels."""
        return 0 if step < 1.5 else 1 if step < 3 else 2

    def reference(self, step: float) -> ReferenceOctave | None:
        """The features of the octave whose pixels are nearest to `step` photograph pixels wide."""
        return min(self.references, key=lambda octave: abs(math.log(octave.pixel_width / step)), default=None)

    def to(self, device: torch.device | str) -> Photo:
        self.levels = [level.to(device) for level in self.levels]
        self.references = [octave.to(device) for octave in self.references]
        for name in ("groups", "edges", "embedding", "keypoints"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.to(device))
        return self


@dataclass(frozen=True)
class PhotoOnDisk:
    """A photograph that is read when it is needed; what is known of it without. See `Photo`."""

    name: str
    content: str
    parts: frozenset[str]
    reference_dim: int
    path: Path
    loader: PhotoLoader
    device: torch.device | str

    def read(self) -> Photo:
        """StoreError: it could be read when the run began, and cannot any more."""
        try:
            return self.loader.load(self.path, self.name).to(self.device)
        except (SkipPhoto, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error


@dataclass
class PhotoSource:
    """A fixed set of photographs, drawn in shuffled epochs.

    Attributes:
        photos: all of them, in memory or on disk.
        skipped: (path, reason) of those that could not be read.
    """

    photos: Sequence[Photo | PhotoOnDisk]
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    _order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = frozenset().union(*(photo.parts for photo in self.photos))
        self.taught, self.embedded, self.labelled, self.referenced = (part in parts for part in PARTS)
        self.reference_dim = max((photo.reference_dim for photo in self.photos), default=0)
        self._coming: dict[int, Future[Photo]] = {}
        self._readers: ThreadPoolExecutor | None = None

    def draw(self, count: int) -> list[Photo]:
        """The next `count` photographs of the shuffled order (torch's global generator)."""
        while len(self._order) < count:
            self._order += torch.randperm(len(self.photos)).tolist()
        drawn, self._order = self._order[:count], self._order[count:]
        self._read_ahead(drawn + self._order[:AHEAD])
        return [self._photo(index) for index in drawn]

    def _read_ahead(self, indices: list[int]) -> None:
        for index in indices:
            photo = self.photos[index]
            if isinstance(photo, PhotoOnDisk) and index not in self._coming:
                self._readers = self._readers or ThreadPoolExecutor(READERS)
                self._coming[index] = self._readers.submit(photo.read)

    def _photo(self, index: int) -> Photo:
        photo = self.photos[index]
        if isinstance(photo, Photo):
            return photo
        coming = self._coming.pop(index, None)  # none for a second one in a batch, where an epoch ends
        return photo.read() if coming is None else coming.result()

    def state(self) -> list[int]:
        """The rest of the current epoch's order, for resuming."""
        return list(self._order)

    def restore(self, state: list[int]) -> None:
        self._order = list(state)

    def __len__(self) -> int:
        return len(self.photos)


@dataclass(frozen=True)
class PhotoLoader:
    """Decodes photographs, and finds what the stores hold of them.

    Attributes:
        channels: 1 grey or 3 RGB.
        long_side: photographs larger than this are reduced to it.
        teacher, labels, features: stores to look in, or None.
    """

    channels: int
    long_side: int = 640
    teacher: TeacherStore | None = None
    labels: LabelStore | None = None
    features: FeatureStore | None = None

    def load(self, path: Path, name: str) -> Photo:
        """One photograph. SkipPhoto or StoreError say why it cannot be used."""
        image = read_photo(path, grey=self.channels == 1)
        size = image.shape[1], image.shape[0]
        scale = self.long_side / max(size)
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if self.channels == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))
        photo = Photo(name, pyramid(planes), content=content_hash(path))
        self._add_teacher(photo, path, size)
        self._add_labels(photo, path, size)
        self._add_references(photo, path, size)
        return photo

    def _add_teacher(self, photo: Photo, path: Path, size: tuple[int, int]) -> None:
        entry_name = self.teacher.find(path, photo.content) if self.teacher is not None else None
        if self.teacher is None or entry_name is None:
            return
        entry = self.teacher.entry(entry_name)
        check_size(size, entry.image_size, "the teacher")
        if entry.groups.max(initial=0) > MOST_GROUPS:
            raise SkipPhoto(f"has {entry.groups.max()} groups, expected at most {MOST_GROUPS}")
        photo.groups = torch.from_numpy(entry.groups.astype(np.int16))  # half of int32, on the training device
        photo.edges = torch.from_numpy(entry.edges)
        photo.embedding = None if entry.embedding is None else torch.from_numpy(entry.embedding)

    def _add_labels(self, photo: Photo, path: Path, size: tuple[int, int]) -> None:
        entry_name = self.labels.find(path, photo.content) if self.labels is not None else None
        if self.labels is None or entry_name is None:
            return
        entry = self.labels.labels(entry_name)
        check_size(size, entry.image_size, "the labeller")
        photo.keypoints = resized(entry.keypoints, size, photo.size)

    def _add_references(self, photo: Photo, path: Path, size: tuple[int, int]) -> None:
        entry_name = self.features.find(path, photo.content) if self.features is not None else None
        if self.features is None or entry_name is None:
            return
        entry = self.features.features(entry_name)
        check_size(size, entry.image_size, "the reference extractor")
        points = resized(entry.keypoints, size, photo.size)
        for octave in range(int(entry.octaves.max(initial=0)) + 1):
            rows = np.flatnonzero(entry.octaves == octave)
            rows = rows[np.argsort(-entry.scores[rows], kind="stable")]
            photo.references.append(
                ReferenceOctave(
                    points[rows],
                    torch.logit(torch.from_numpy(entry.scores[rows]), eps=1e-4),
                    torch.from_numpy(entry.descriptors[rows]),
                    self.features.pixel_width(octave, size) * max(photo.size) / max(size),
                )
            )


def pyramid(image: Tensor) -> list[Tensor]:
    """A photograph (C, h, w) uint8 at full, half and quarter size."""
    levels = [image]
    for _ in range(2):
        levels.append(F.avg_pool2d(levels[-1].float(), 2).round().to(torch.uint8))
    return levels


def resized(points: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Pixel positions (n, 2) of an image of one (width, height) in that image at another, float32."""
    ratio = np.array(to, np.float32) / size
    return torch.from_numpy(((points + 0.5) * ratio - 0.5).astype(np.float32))


def check_size(size: tuple[int, int], seen: tuple[int, int], who: str) -> None:
    """SkipPhoto: a photograph is not of the size in which somebody saw it."""
    if seen != size:
        raise SkipPhoto(f"is {size[0]}x{size[1]}, {who} saw {seen[0]}x{seen[1]}")


def check_coverage(store: PhotoStore, have: int, photos: int) -> None:
    """Says of how many photographs a store has an entry. StoreError: of none."""
    line = f"{store.folder}: {have:,} of {photos:,} photographs have an entry"
    if not have:
        raise StoreError(f"{line}, of that name and content: it was made of others")
    if have < photos:
        tqdm.write(line)


def load_photos(
    folders: Sequence[str | Path],
    loader: PhotoLoader,
    device: torch.device | str = "cpu",
    workers: int = 4,
    memory: float = math.inf,
) -> PhotoSource:
    """Every photograph of the folders; those that cannot be used are listed and skipped.

    Args:
        memory: bytes. Photographs beyond it are not kept, but read again each time they are needed.

    Raises:
        StoreError: a folder has no photographs, or none of them can be used; a store has an entry of none of them.
    """
    found = [photo for folder in folders for photo in find_photos(folder)]
    skipped: list[tuple[Path, str]] = []
    photos: list[Photo | PhotoOnDisk] = []
    kept = needed = 0

    def decode(path: Path, name: str) -> Photo | str:
        try:
            return loader.load(path, name)
        except (SkipPhoto, StoreError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        results: Iterator[Photo | str] = pool.map(decode, [f.path for f in found], [f.name for f in found])
        for source, result in zip(found, progress(results, "photographs", "photo", total=len(found))):
            if isinstance(result, str):
                skipped.append((source.path, result))
                continue
            needed += result.nbytes
            if needed <= memory:
                kept = needed
                photos.append(result.to(device))
            else:
                known = result.name, result.content, result.parts, result.reference_dim
                photos.append(PhotoOnDisk(*known, source.path, loader, device))
    for path, reason in skipped:
        tqdm.write(f"skipped {path}: {reason}")
    if not photos:
        raise StoreError(f"none of the {len(found)} photographs under {', '.join(map(str, folders))} could be used")
    if kept < needed:
        tqdm.write(
            f"{len(photos):,} photographs take {needed / 1e9:.2g} GB: {kept / 1e9:.2g} GB stay in memory, "
            "the others are read when they are needed"
        )
    for store, part in ((loader.teacher, "groups"), (loader.labels, "keypoints"), (loader.features, "references")):
        if store is not None:
            check_coverage(store, sum(part in photo.parts for photo in photos), len(photos))
    return PhotoSource(photos, skipped)
