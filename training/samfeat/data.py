"""What SAMFeat is trained on: photographs under homographies, with a share of stored pairs that have true parallax."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from samfeat_core.errors import UsageError
from samfeat_core.models import model_spec
from training.data.feature_store import FeatureStore
from training.data.homography_pairs import HomographyConfig, HomographyPairs
from training.data.label_store import LabelStore
from training.data.pair_teacher import PairTeacher
from training.data.pairs import PairBatch, concatenate
from training.data.photo_store import PhotoStore
from training.data.photometric import Photometric
from training.data.photos import PhotoLoader, PhotoSource, load_photos
from training.data.stored_pairs import AllPairs, PairSampler, PairSource, StoredPairs, kept_pairs
from training.data.teacher_store import TeacherStore
from training.loop.config import at_least
from training.samfeat.losses.matching import CELL

COLOUR = 3  # channels, also for a grey network: the grey conversion is randomised per view (`photometric.grey`)
VALIDATION_PAIRS, VALIDATION_BATCH, VALIDATION_SEED = 48, 8, 1234

Store = TypeVar("Store", bound=PhotoStore)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        photos: folders of photographs, for pairs under homographies.
        teacher: store of `python -m training.teach`, or none. It may hold the photographs of `pairs`, too.
        labels: store of `python -m training.label photos`, or none.
        features: store of `python -m training.label features`, reference features to imitate, or none.
        pairs: folders of `python -m training.pairs`, stored pairs with true parallax, or none.
        size: (width, height) of the views, multiples of 32.
        batch: pairs per step and process.
        parallax: share of every batch that comes from `pairs`.
        long_side: photographs are decoded no larger than this.
        memory: gigabytes of photographs, and of pairs, that a process keeps. The others are read when they are needed.
        validation: share of the photographs held out to select the best checkpoint.

    Raises:
        UsageError: the batch is below 1, or the share of `pairs` in it is none.
    """

    photos: tuple[str, ...] = ()
    teacher: str | None = None
    labels: str | None = None
    features: str | None = None
    pairs: tuple[str, ...] = ()
    size: tuple[int, int] = (320, 224)
    batch: int = 8
    parallax: float = 0.25
    long_side: int = 640
    memory: float = 16.0
    validation: float = 0.03
    homography: HomographyConfig = HomographyConfig()

    def __post_init__(self) -> None:
        at_least("data.batch", self.batch, 1)
        if self.pairs and self.parallax and not round(self.batch * self.parallax):
            raise UsageError(
                f"data.parallax is {self.parallax:g}, which of a batch of {self.batch} is no pair: "
                f"give data.pairs=[], or a data.parallax of more than {0.5 / self.batch:g}"
            )


@dataclass(frozen=True)
class PreparedData:
    """A configuration's data in memory. Runs whose data are the same can share them, as an ablation does.

    Attributes:
        identity: hash of what is trained on: the photographs' contents, and the files of the stored pairs.
    """

    photos: PhotoSource
    held_out: PhotoSource
    parallax: PairSource
    identity: str


def prepare(config: DataConfig, model: str, device: torch.device) -> PreparedData:
    """Read and check everything that a configuration names.

    Raises:
        UsageError: the size does not suit the model. ValueError: a folder is not as expected. StoreError: a store is of
            another kind.
    """
    multiple = max(model_spec(model).stride_multiple, CELL)
    if any(side % multiple for side in config.size):
        raise UsageError(f"data.size is {config.size[0]}x{config.size[1]}, {model} takes multiples of {multiple}")
    loader = PhotoLoader(
        COLOUR,
        config.long_side,
        opened(TeacherStore(config.teacher)) if config.teacher else None,
        opened(LabelStore(config.labels)) if config.labels else None,
        opened(FeatureStore(config.features)) if config.features else None,
    )
    stored = [StoredPairs(folder) for folder in config.pairs if config.parallax]
    every = load_photos(config.photos, loader, device, memory=config.memory * 1e9)
    photos, held_out = hold_out(every, config.validation)
    parallax = kept_pairs(AllPairs(stored), config.memory * 1e9)
    return PreparedData(photos, held_out, parallax, identity(every, stored))


def identity(photos: PhotoSource, stored: list[StoredPairs]) -> str:
    """16 hex digits that change with any photograph's content, and with the number or sizes of the stored pairs."""
    parts = [f"{photo.name} {photo.content}" for photo in photos.photos]
    parts += [f"{path.name} {path.stat().st_size}" for pairs in stored for path in pairs.paths]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def opened(store: Store) -> Store:
    """The store itself; StoreError where there is none of its kind."""
    store.settings()
    return store


def hold_out(photos: PhotoSource, share: float) -> tuple[PhotoSource, PhotoSource]:
    """Training and validation photographs; which is which depends on the name alone."""
    by_hash = sorted(photos.photos, key=lambda photo: zlib.crc32(photo.name.encode()))
    count = max(round(share * len(by_hash)), 1)
    if count >= len(by_hash):
        raise ValueError(f"data.validation {share} of {len(by_hash)} photographs leaves none to train on")
    return PhotoSource(by_hash[count:], photos.skipped), PhotoSource(by_hash[:count])


class MixedSource:
    """Batches of photographs under homographies, with a share of pairs that have true parallax."""

    def __init__(self, photos: HomographyPairs, parallax: PairSampler | None, share: float) -> None:
        self.photos, self.parallax, self.share = photos, parallax, share

    def sample(self, count: int) -> PairBatch:
        from_parallax = 0 if self.parallax is None else round(count * self.share)
        batches = []
        if count > from_parallax:
            batches.append(self.photos.sample(count - from_parallax))
        if self.parallax is not None and from_parallax:
            batches.append(self.parallax.sample(from_parallax))
        return concatenate(batches)

    def state(self) -> Any:
        return [part.state() for part in self._parts()]

    def restore(self, state: Any) -> None:
        for part, value in zip(self._parts(), state, strict=True):
            part.restore(value)

    def _parts(self) -> list[HomographyPairs | PairSampler]:
        return [self.photos] if self.parallax is None else [self.photos, self.parallax]


def training_source(data: PreparedData, config: DataConfig, device: torch.device) -> MixedSource:
    """Where batches come from, as the configuration mixes them."""
    photos = HomographyPairs(data.photos, config.size, device, config.homography)
    if not len(data.parallax):
        return MixedSource(photos, None, config.parallax)
    teach = PairTeacher(TeacherStore(config.teacher), data.parallax, device).add if config.teacher else None
    return MixedSource(photos, PairSampler(data.parallax, config.size, COLOUR, device, teach), config.parallax)


def validation_batches(photos: PhotoSource, config: DataConfig, device: torch.device, channels: int) -> list[PairBatch]:
    """The same photometrically changed pairs in every validation of every run."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(VALIDATION_SEED)
        pairs = HomographyPairs(photos, config.size, device, config.homography)
        change = Photometric(channels=channels)
        batches = []
        for _ in range(VALIDATION_PAIRS // VALIDATION_BATCH):
            batch = pairs.sample(VALIDATION_BATCH)
            batch.image0, batch.image1 = change(batch.image0), change(batch.image1)
            batches.append(batch)
    return batches
