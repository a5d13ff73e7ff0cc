"""A folder with one file per photograph: what the teacher and the labeller write, and training reads.

Layout of a store:

    store.json                 {"format": "...", "version": 1, "settings": {...}}: who wrote it, and how
    <name>.npz                 one entry per photograph; <name> is its path below the photographs' folder, no suffix
    skipped-<rank>-of-<n>.txt  photographs the last run could not use, one a line, with the reason

An entry is an npz archive of arrays (`numpy.load` reads it) with a JSON string `meta`. That names the photograph's file
and its `content`, a hash, so another photograph of the same name is not taken for it. An entry appears under its name
only when it is complete and on the disk, so a run that is killed at any moment leaves no broken entry: the same
command continues. Ranks of `torchrun` (RANK, WORLD_SIZE) take every n-th photograph and never the same one.
"""

from __future__ import annotations

import errno
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from samfeat_core.engines import fingerprint
from samfeat_core.errors import SamfeatError, UsageError
from samfeat_core.files import IMAGE_SUFFIXES, is_image, write_bytes
from samfeat_core.progress import progress

TIMED = 10  # entries after which `fill` says what all will take, if that is sooner than 20 s
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(SamfeatError):
    """A store cannot be read or written, or there is nothing to fill it with."""


class SkipPhoto(Exception):
    """This photograph cannot be used; the text says why. The run lists it and takes the next one."""


@dataclass(frozen=True)
class PhotoFile:
    """A photograph: its name in every store (path below the folder given, no suffix, '/' between parts), its file."""

    name: str
    path: Path


def find_photos(folder: str | Path) -> list[PhotoFile]:
    """All photographs below a folder, sorted by name.

    Raises:
        StoreError: the folder does not exist or holds none, or two files have one name (x.jpg beside x.png).
    """
    root = Path(folder)
    if not root.is_dir():
        raise StoreError(f"{root}: no such folder of photographs")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if not is_image(path):
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise StoreError(f"{path} and {found[name].name} have the same name: rename or remove one of them")
        found[name] = path
    if not found:
        raise StoreError(f"{root}: no photographs in it ({', '.join(IMAGE_SUFFIXES)})")
    return [PhotoFile(name, path) for name, path in sorted(found.items())]


def content_hash(path: Path) -> str:
    """What tells photographs of one name apart. SkipPhoto: the file cannot be read."""
    try:
        return fingerprint(path)
    except OSError as error:
        raise SkipPhoto(f"cannot be read: {error.strerror}") from error


def read_photo(path: str | Path, grey: bool = False) -> np.ndarray:
    """A photograph as (H, W, 3) BGR uint8, or (H, W) uint8, turned as its EXIF tag says.

    Raises:
        SkipPhoto: the file cannot be read or is no image.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SkipPhoto(f"cannot be read: {error.strerror}") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise SkipPhoto(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise SkipPhoto("cannot be decoded as an image")
    return image


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun sets them; (0, 1) alone.

    Raises:
        UsageError: RANK and WORLD_SIZE do not fit together.
    """
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise UsageError(f"RANK and WORLD_SIZE must be integers: {error}") from error
    if not 0 <= rank < world:
        raise UsageError(f"RANK={rank} is not below WORLD_SIZE={world}")
    return rank, world


class PhotoStore:
    """One kind of store; see the module for the layout.

    Args:
        folder: where it is.
        format_name: what it holds, as in store.json.
        former_name: what store.json may say instead, where the format had another name.
    """

    VERSION = 1

    def __init__(self, folder: str | Path, format_name: str, former_name: str | None = None) -> None:
        self.folder = Path(folder)
        self.format_name, self.former_name = format_name, former_name

    def create(self, settings: dict[str, object]) -> None:
        """Starts a store written with these settings, or continues one that was.

        Raises:
            StoreError: the folder cannot be made, or holds a store of another kind or of other settings.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._manifest.exists():
                manifest = {"format": self.format_name, "version": self.VERSION, "settings": settings}
                # Ranks start at the same time and write the same text: the last one stays.
                write_bytes(self._manifest, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise store_error(error, self.folder) from error
        stored = self.settings()
        if stored != settings:
            keys = sorted(key for key in {*stored, *settings} if stored.get(key) != settings.get(key))
            changes = ", ".join(f"{key} = {stored.get(key)!r} (now {settings.get(key)!r})" for key in keys)
            raise StoreError(f"{self.folder} was written with {changes}: choose another folder, or remove that one")

    def settings(self) -> dict[str, object]:
        """The settings that the store was written with.

        Raises:
            StoreError: no store of this kind and version there.
        """
        try:
            manifest = json.loads(self._manifest.read_text())
            kind = manifest["format"], manifest["version"]
            settings = manifest["settings"]
        except FileNotFoundError:
            raise StoreError(f"{self.folder}: no {self.format_name} there (store.json is missing)") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._manifest}: not readable as a {self.format_name}'s manifest: {error}") from error
        if kind not in ((self.format_name, self.VERSION), (self.former_name, self.VERSION)):
            expected = f"expected {self.format_name!r} version {self.VERSION}"
            raise StoreError(f"{self.folder} holds {kind[0]!r} version {kind[1]}, {expected}")
        return settings

    def names(self) -> list[str]:
        """The photographs that have an entry, sorted."""
        paths = self.folder.rglob("*.npz")
        return sorted(p.relative_to(self.folder).as_posix()[: -len(".npz")] for p in paths if p.name[0] != ".")

    def path(self, name: str) -> Path:
        """The entry's file."""
        return self.folder / f"{name}.npz"

    def __contains__(self, name: str) -> bool:
        """Whether the photograph has a complete entry."""
        try:
            with zipfile.ZipFile(self.path(name)) as archive:
                return "meta.npy" in archive.namelist()
        except (OSError, zipfile.BadZipFile):
            return False

    def keys(self, name: str) -> list[str]:
        """Which arrays an entry has. StoreError: there is none, or it is not readable."""
        try:
            with zipfile.ZipFile(self.path(name)) as archive:
                return [member.removesuffix(".npy") for member in archive.namelist() if member != "meta.npy"]
        except (OSError, zipfile.BadZipFile) as error:
            raise StoreError(f"{self.path(name)}: not readable as an entry of a {self.format_name}: {error}") from error

    def find(self, path: str | Path, content: str | None = None) -> str | None:
        """The entry of a photograph's file, whichever folder above it the store was made from; None without one.

        The longest part of the path counts: of entries `a/x` and `x`, `photos/a/x.jpg` finds the first.

        Args:
            content: `content_hash` of the file; entries that name another do not count. (Stores from before 0.2.0 name
                none.)
        """
        parts = Path(path).with_suffix("").parts
        names = ("/".join(parts[start:]) for start in range(len(parts)))
        there = (name for name in names if not name.startswith("/") and self.path(name).is_file())
        return next((name for name in there if content is None or self._content(name) in (content, None)), None)

    def _content(self, name: str) -> object:
        return self.read(name, "meta")[1].get("content")

    def write(self, name: str, arrays: dict[str, np.ndarray], meta: dict[str, object]) -> None:
        """Writes an entry, at once and whole.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        try:
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"version": self.VERSION, **meta})
            write_bytes(self.path(name), _pack({**arrays, "meta": np.array(text)}), shared=False)
        except OSError as error:
            raise store_error(error, self.path(name)) from error

    def read(self, name: str, *keys: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """An entry's arrays (those of `keys` that it has; all without keys) and its meta.

        Raises:
            StoreError: no such entry, or not readable.
        """
        try:
            with np.load(self.path(name), allow_pickle=False) as archive:
                wanted = [key for key in archive.files if key != "meta" and (not keys or key in keys)]
                return {key: archive[key] for key in wanted}, json.loads(str(archive["meta"]))
        except FileNotFoundError:
            raise StoreError(f"{self.folder}: no entry for {name}") from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise StoreError(f"{self.path(name)}: not readable as an entry of a {self.format_name}: {error}") from error

    @contextmanager
    def parsing(self, name: str) -> Iterator[None]:
        """Turns errors of reading an entry's arrays and meta into a StoreError that names the file."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise StoreError(f"{self.path(name)}: not an entry of a {self.format_name} store: {error!r}") from error

    @property
    def _manifest(self) -> Path:
        return self.folder / "store.json"


@dataclass
class Report:
    """What `fill` did: numbers of entries written and already there, and (name, reason) of photographs left out."""

    written: int = 0
    kept: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


Note = Callable[[str], None]
Work = Callable[[PhotoFile, Note], "tuple[dict[str, np.ndarray], dict[str, object]]"]


def fill(store: PhotoStore, photos: Iterable[PhotoFile], work: Work, title: str) -> Report:
    """Computes the missing entries of this rank's share of the photographs, with a progress bar.

    Args:
        work: `work(photo, note)` returns the entry's arrays and meta; it raises SkipPhoto where the photograph cannot
            be used, and calls `note(text)` about a part that it leaves out.

    Raises:
        StoreError: the store cannot be written (a full disk). What was written is whole, and the run can be continued.
    """
    rank, world = rank_and_world()
    started, told = time.monotonic(), False
    share = sorted(photos, key=lambda photo: photo.name)[rank::world]
    missing = [photo for photo in share if photo.name not in store]
    report = Report(kept=len(share) - len(missing))
    with progress(None, title, "photo", total=len(share), initial=report.kept, position=rank) as bar:
        for photo in missing:
            notes: list[str] = []
            try:
                arrays, meta = work(photo, notes.append)
                store.write(photo.name, arrays, {"photo": photo.path.name, "content": content_hash(photo.path), **meta})
                report.written += 1
            except SkipPhoto as reason:
                notes.append(str(reason))
            except (cv2.error, MemoryError) as error:
                notes.append(f"failed: {str(error).strip() or type(error).__name__}")
            for text in notes:
                report.skipped.append((photo.name, text))
                bar.write(f"{photo.path}: {text}")
            bar.update()
            spent = time.monotonic() - started
            if not rank and not told and report.written and (spent > 20 or report.written == TIMED):
                told = True
                bar.write(foretold(store, [p.name for p in missing], report.written, spent))
    _list_skipped(store.folder / f"skipped-{rank}-of-{world}.txt", report.skipped)
    return report


def foretold(store: PhotoStore, missing: list[str], written: int, seconds: float) -> str:
    """One line: what the entries written so far took in time and disk each, and what all missing ones will take."""
    sizes = [store.path(name).stat().st_size for name in missing if store.path(name).is_file()]
    each, room = seconds / written, sum(sizes) / len(sizes)
    hours, gigabytes = each * len(missing) / 3600, room * len(missing) / 1e9
    return (
        f"{each:.2g} s and {room / 1e6:.2g} MB a photograph: "
        f"the {len(missing):,} here take {hours:.2g} h and {gigabytes:.2g} GB"
    )


def _list_skipped(path: Path, skipped: list[tuple[str, str]]) -> None:
    try:
        if skipped:
            write_bytes(path, "".join(f"{name}: {reason}\n" for name, reason in skipped).encode())
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise store_error(error, path) from error


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An npz archive: integers deflated (label maps shrink twentyfold), floats as they are (they hardly do)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            method = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            # A ZipInfo of its own carries a fixed date: equal entries are equal files.
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), member.getvalue(), compress_type=method)
    return buffer.getvalue()


def store_error(error: OSError, path: Path) -> StoreError:
    """The line for a file that cannot be written."""
    if error.errno in DISK_FULL:
        return StoreError(f"{path}: the disk is full; free some space and run the same command again to continue")
    return StoreError(f"{path}: cannot be written: {error.strerror or error}")
