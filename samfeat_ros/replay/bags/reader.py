"""`Bag`: a bag of any kind, with its topics and its messages."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

import yaml

from samfeat_ros.replay.bags.messages import BagError, BagMessage, BagTopic, brief
from samfeat_ros.replay.bags.storage import COMPRESSED_SUFFIXES, StorageFile, is_storage
from samfeat_ros.topics import IMAGE_TYPES, short_name


class Bag:
    """A rosbag of any kind, open for reading.

    Args:
        path: a bag folder, or one `.mcap`, `.db3` or ROS 1 `.bag` file.

    Attributes:
        topics: name -> BagTopic.
        problems: one line for each thing that could not be read; grows while messages are read.

    Raises:
        BagError: nothing there can be read as a bag.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problems: list[str] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._files = self._open_files()
        except BaseException:
            self.close()
            raise
        self.topics = _merge_topics(self._files)

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was unpacked. The bag cannot be read afterwards."""
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None

    @property
    def image_topics(self) -> list[BagTopic]:
        """Topics of type Image or CompressedImage."""
        return [topic for topic in self.topics.values() if topic.type in IMAGE_TYPES]

    def require(self, name: str, types: Collection[str]) -> BagTopic:
        """The topic `name`, which must have one of `types`.

        Raises:
            BagError: it is not there or of another type; the line lists the topics of these types.
        """
        topic = self.topics.get(name) or self.topics.get("/" + name)
        if topic and topic.type in types:
            return topic
        short = " or ".join(map(short_name, types))
        have = [f"{t.name} ({short_name(t.type)}, {t.count})" for t in self.topics.values() if t.type in types]
        offer = f"{short} topics there: {', '.join(sorted(have))}" if have else f"there is no {short} topic in it"
        what = f"topic {name!r} is of type {topic.type}, not {short}" if topic else f"has no topic {name!r}"
        raise BagError(f"{self.path}: {what}; {offer}")

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """All readable messages of `topics` (None = all), in order of recording within each file.

        Never raises for damage: what could not be read is added to `problems`, with counts.
        """
        wanted = None if topics is None else frozenset(topics)
        for file in self._files:
            yield from file.messages(wanted, self.problems)

    def _open_files(self) -> list[StorageFile]:
        if not self.path.exists():
            raise BagError(f"{self.path}: no such file or folder")
        try:
            paths = self._storage_paths()
            files, failures = [], []
            for path in paths:
                try:
                    files.append(StorageFile(self._unpacked(path), path))
                except BagError as error:
                    failures.append(str(error))
        except OSError as error:
            raise BagError(f"{self.path}: {error.strerror or error}") from error
        if not files:
            raise BagError("; ".join(failures))
        self.problems += failures + [line for file in files for line in file.notes]
        return files

    def _storage_paths(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        found = sorted((p for p in self.path.iterdir() if is_storage(p)), key=_natural_order)
        if not found:
            raise BagError(f"{self.path}: holds no .mcap, .db3 or .bag file")
        if found[0].suffix == ".bag":
            return found
        return self._listed_paths(found)

    def _listed_paths(self, found: list[Path]) -> list[Path]:
        """The storage files in the order of metadata.yaml; all of the folder's where that file is unreadable."""
        metadata = self.path / "metadata.yaml"
        try:
            names = yaml.safe_load(metadata.read_text())["rosbag2_bagfile_information"]["relative_file_paths"]
            listed = [self.path / PurePath(str(name)).name for name in names]
        except Exception as error:  # whatever a damaged YAML file makes PyYAML raise
            self.problems.append(f"{metadata}: unreadable ({brief(error)}); all storage files in the folder are read")
            return found
        there = [path for path in listed if path.is_file()]
        self.problems += [f"{path}: listed in metadata.yaml but missing" for path in listed if path not in there]
        if not there:
            return found
        self.problems += [f"{path}: not listed in metadata.yaml; not read" for path in found if path not in there]
        return there

    def _unpacked(self, path: Path) -> Path:
        """The storage file itself, or its decompressed copy when the whole file is zstd-compressed."""
        if path.suffix not in COMPRESSED_SUFFIXES:
            return path
        import zstandard

        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="samfeat_bag_")
        target = Path(self._scratch.name, path.stem)
        with path.open("rb") as source, target.open("wb") as sink:
            try:
                zstandard.ZstdDecompressor().copy_stream(source, sink)
            except (zstandard.ZstdError, MemoryError) as error:
                self.problems.append(f"{path}: decompression stopped ({brief(error)}); the part before is read")
        return target


def _natural_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def _merge_topics(files: list[StorageFile]) -> dict[str, BagTopic]:
    merged: dict[str, BagTopic] = {}
    for file in files:
        for topic in file.topics:
            known = merged.get(topic.name)
            merged[topic.name] = BagTopic(topic.name, topic.type, topic.count + (known.count if known else 0))
    return merged
