"""`python -m training.train --config config/train/samfeat_nano.yaml --output runs/nano`: train a network."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import typer

from samfeat_core.errors import SamfeatError
from samfeat_core.models import build_network, model_spec
from samfeat_core.weights import load_into
from training.data.feature_store import FeatureStore
from training.data.homography_pairs import HomographyPairs
from training.data.label_store import LabelStore
from training.data.pairs import PairBatch, concatenate
from training.data.photo_store import PhotoStore, StoreError
from training.data.photometric import Photometric
from training.data.photos import PhotoLoader, PhotoSource, load_photos
from training.data.stored_pairs import Pair, PairSampler, StoredPairs
from training.data.teacher_store import TeacherStore
from training.loop.config import DataConfig, TrainConfig, load_config
from training.loop.trainer import Trainer, check_same_run, own_rank, start_distributed, write_config
from training.samfeat.losses.matching import CELL
from training.samfeat.task import FeatureTask
from training.samfeat.validation import MatchingValidation
from training.scfeat.train import ScfeatConfig, names_stage
from training.scfeat.train import train as train_scfeat

COLOUR = 3  # also for a grey network: what is grey to it is drawn anew for every view (`photometric.grey`)

Store = TypeVar("Store", bound=PhotoStore)


class MixedSource:
    """Batches of photographs under homographies, with a share of pairs that have true parallax."""

    def __init__(self, photos: HomographyPairs | None, parallax: PairSampler | None, share: float) -> None:
        self.photos, self.parallax, self.share = photos, parallax, share

    def sample(self, count: int) -> PairBatch:
        from_parallax = 0 if self.parallax is None else count if self.photos is None else round(count * self.share)
        batches = []
        if self.photos is not None and count > from_parallax:
            batches.append(self.photos.sample(count - from_parallax))
        if self.parallax is not None and from_parallax:
            batches.append(self.parallax.sample(from_parallax))
        return concatenate(batches)

    def state(self) -> Any:
        return [part.state() for part in (self.photos, self.parallax) if part is not None]

    def restore(self, state: Any) -> None:
        for part, value in zip([p for p in (self.photos, self.parallax) if p is not None], state, strict=True):
            part.restore(value)


def hold_out(photos: PhotoSource, share: float) -> tuple[PhotoSource, PhotoSource]:
    """Training and validation photographs; which is which depends on the name alone."""
    by_hash = sorted(photos.photos, key=lambda photo: zlib.crc32(photo.name.encode()))
    count = max(round(share * len(by_hash)), 1)
    if count >= len(by_hash):
        raise ValueError(f"data.validation {share} of {len(by_hash)} photographs leaves none to train on")
    return PhotoSource(by_hash[count:], photos.skipped), PhotoSource(by_hash[:count])


def validation_batches(
    photos: PhotoSource, data: DataConfig, device: torch.device, channels: int, count: int = 48
) -> list[PairBatch]:
    """The same photometrically changed pairs every time."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(1234)
        pairs = HomographyPairs(photos, data.size, device, data.homography)
        change = Photometric(channels=channels)
        batches = []
        for _ in range(0, count, 8):
            batch = pairs.sample(8)
            batch.image0, batch.image1 = change(batch.image0), change(batch.image1)
            batches.append(batch)
    return batches


def opened(store: Store) -> Store:
    """The store, after a look at its manifest."""
    store.settings()
    return store


def check_losses(config: TrainConfig) -> None:
    """ValueError names a loss that is on without the data that it needs."""
    needed = {"teacher": ("dis", "wsc", "edge"), "labels": ("det",), "features": ("score", "relation")}
    for needs, names in needed.items():
        used = [name for name in names if getattr(config.losses, name)]
        if used and not getattr(config.data, needs):
            raise ValueError(f"losses.{used[0]} is {getattr(config.losses, used[0])}, but data.{needs} names no store")


@dataclass(frozen=True)
class Prepared:
    """What a configuration's data are once they are in memory; runs that differ elsewhere share them."""

    photos: PhotoSource
    held_out: PhotoSource
    parallax: list[Pair]


def prepare(config: TrainConfig, device: torch.device) -> Prepared:
    """Read and check everything that `config.data` names.

    Raises:
        ValueError: a folder or a size is not as expected. StoreError: a store is of another kind.
    """
    data = config.data
    multiple = max(model_spec(config.model).stride_multiple, CELL)
    if any(side % multiple for side in data.size):
        raise ValueError(f"data.size is {data.size[0]}x{data.size[1]}, {config.model} takes multiples of {multiple}")
    loader = PhotoLoader(
        COLOUR,
        data.long_side,
        opened(TeacherStore(data.teacher)) if data.teacher else None,
        opened(LabelStore(data.labels)) if data.labels else None,
        opened(FeatureStore(data.features)) if data.features else None,
    )
    stored = [StoredPairs(folder) for folder in data.pairs if data.parallax]
    photos, held_out = hold_out(load_photos(data.photos, loader, device), data.validation)
    return Prepared(photos, held_out, [pairs[index] for pairs in stored for index in range(len(pairs))])


def train(config: TrainConfig, output: Path, device: torch.device, prepared: Prepared | None = None) -> float:
    """Run one configuration, on data that are prepared already where given; returns the best validation score."""
    check_losses(config)
    check_same_run(config, output)
    prepared = prepared or prepare(config, device)
    data, spec = config.data, model_spec(config.model)
    batches = validation_batches(prepared.held_out, data, device, spec.channels)
    validate = MatchingValidation(batches, spec.usual.nms_radius)
    rank = own_rank()
    torch.manual_seed(config.seed)
    network = build_network(config.model)
    if config.init:
        load_into(network, config.init)
    torch.manual_seed(config.seed + 1000 * rank)  # the same network everywhere, other views on every rank
    parallax = PairSampler(prepared.parallax, data.size, COLOUR, device) if prepared.parallax else None
    source = MixedSource(HomographyPairs(prepared.photos, data.size, device, data.homography), parallax, data.parallax)
    if rank == 0:
        write_config(config, output)
    trainer = Trainer(
        FeatureTask(network, config.task, config.losses),
        source,
        validate,
        output,
        batch=data.batch,
        steps=config.steps,
        optimizer=config.optimizer,
        precision=config.precision,
        validate_every=config.validate_every,
        device=device,
    )
    return trainer.run()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Path = typer.Option(..., help="YAML file of the run"),
    output: Path = typer.Option(..., help="folder for weights, checkpoints and logs; an interrupted run there resumes"),
    device: str = typer.Option("auto", help="auto, cuda or cpu"),
    threads: int = typer.Option(0, help="CPU threads of this process, 0 = torch's choice"),
    set_: list[str] = typer.Option([], "--set", help="override of a key, as data.batch=16"),
) -> None:
    """Train a network; start with torchrun for several processes."""
    if threads:
        torch.set_num_threads(threads)
    try:
        chosen = start_distributed(device)
        if names_stage(config):
            best = train_scfeat(load_config(config, set_, ScfeatConfig), output, chosen)
        else:
            best = train(load_config(config, set_), output, chosen)
    except (ValueError, OSError, SamfeatError, StoreError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"best validation score {best:.4f}; weights in {output / 'best.safetensors'}")


if __name__ == "__main__":
    app()
