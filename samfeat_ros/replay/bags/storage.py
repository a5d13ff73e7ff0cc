"""One storage file of a bag: read by rosbags as far as that goes, then record by record."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samfeat_ros.replay.bags.messages import (
    MAX_UNPACKED,
    ZSTD_MAGIC,
    BagError,
    BagMessage,
    BagTopic,
    brief,
    typestore,
)
from samfeat_ros.replay.bags.salvage import CHUNK, FOOTER, salvage_mcap, salvage_ros1, salvage_sqlite

MCAP_MAGIC = b"\x89MCAP0\r\n"
SUFFIXES = (".mcap", ".db3", ".bag")
COMPRESSED_SUFFIXES = (".zstd", ".zst")  # of a storage file that was compressed as a whole

_SALVAGE = {"mcap": salvage_mcap, "sqlite3": salvage_sqlite, "ROS 1": salvage_ros1}


def is_storage(path: Path) -> bool:
    """By the name, whole or compressed."""
    name = path.name[: -len(path.suffix)] if path.suffix in COMPRESSED_SUFFIXES else path.name
    return path.is_file() and name.endswith(SUFFIXES)


class StorageFile:
    """One storage file.

    Args:
        path: the file to read.
        shown: its name in texts; another than `path` where that is a decompressed copy.

    Attributes:
        topics: as declared, or as found where the file is damaged.
        notes: one line for each thing that is wrong with the file as a whole.

    Raises:
        BagError: nothing in it can be read.
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self.path, self.shown = path, shown
        self.notes: list[str] = []
        self.kind = _kind(path, shown)
        self.intact = False
        try:
            if self.kind == "mcap":
                _check_mcap_structure(path)
            with _open_with_rosbags(path, self.kind) as reader:
                self.topics = [BagTopic(c.topic, c.msgtype, c.msgcount) for c in reader.connections]
                total = reader.message_count if self.kind == "ROS 1" else reader.metadata.message_count
            self.intact = True
            if total != sum(topic.count for topic in self.topics):
                counted = sum(topic.count for topic in self.topics)
                self.notes.append(f"{shown}: declares {total} messages, its topics {counted}")
        except Exception as error:  # rosbags leaks KeyError, struct.error, MemoryError, apsw errors, ...
            self._recover_topics(error)
        if self.kind == "sqlite3":
            log = path.with_name(path.name + "-wal")
            if log.exists() and log.stat().st_size:
                self.notes.append(f"{shown}: has an unmerged write-ahead log (*.db3-wal); messages in it are not read")

    def _recover_topics(self, error: Exception) -> None:
        reader = _SALVAGE[self.kind](self.path)
        counts = Counter((message.topic, message.type) for message in reader)
        if not counts:
            raise BagError(f"{self.shown}: not readable as a {self.kind} bag ({brief(error)})") from error
        self.topics = [BagTopic(name, kind, count) for (name, kind), count in counts.items()]
        total = sum(counts.values())
        self.notes.append(f"{self.shown}: damaged ({brief(error)}); {total} messages could be recovered")

    def messages(self, wanted: frozenset[str] | None, problems: list[str]) -> Iterator[BagMessage]:
        """The readable messages of the wanted topics (None = all); losses are added to `problems`."""
        declared = sum(topic.count for topic in self.topics if wanted is None or topic.name in wanted)
        failures: list[Exception] = []
        count = lost = 0
        for message in self._twice(wanted, declared, failures) if declared else ():
            count += 1
            try:
                plain = _as_cdr(message, self.kind)
            except Exception:  # ZstdError, struct.error, KeyError of an unknown ROS 1 type: this message is lost
                lost += 1
            else:
                yield plain
        if failures:
            problems.append(f"{self.shown}: damaged ({brief(failures[0])}); {count} of {declared} messages were found")
        elif count != declared:
            problems.append(f"{self.shown}: {count} of {declared} declared messages were found")
        if lost:
            problems.append(f"{self.shown}: {lost} of {count} messages could not be decompressed or converted")

    def _twice(self, wanted: frozenset[str] | None, declared: int, failures: list[Exception]) -> Iterator[BagMessage]:
        """What rosbags reads, then, if that is less than declared, what the second pass finds beyond it."""
        seen: Counter[tuple[str, int]] = Counter()
        if self.intact:
            try:
                for message in self._by_rosbags(wanted):
                    seen[message.topic, message.time_ns] += 1
                    yield message
            except Exception as error:
                failures.append(error)
            if not failures and sum(seen.values()) >= declared:
                return
        for message in _SALVAGE[self.kind](self.path):
            key = (message.topic, message.time_ns)
            if seen[key] > 0:
                seen[key] -= 1
            elif wanted is None or message.topic in wanted:
                yield message

    def _by_rosbags(self, wanted: frozenset[str] | None) -> Iterator[BagMessage]:
        with _open_with_rosbags(self.path, self.kind) as reader:
            connections = [c for c in reader.connections if wanted is None or c.topic in wanted]
            for connection, time_ns, data in reader.messages(connections):
                yield BagMessage(connection.topic, connection.msgtype, time_ns, bytes(data))


@contextmanager
def _open_with_rosbags(path: Path, kind: str) -> Iterator[Any]:
    """rosbags' reader of the storage, chosen by content, where its `Reader` for ROS 2 goes by the file's suffix."""
    from rosbags.rosbag1 import Reader as Reader1
    from rosbags.rosbag2.storage_mcap import McapReader
    from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

    storages: dict[str, Any] = {"mcap": McapReader, "sqlite3": Sqlite3Reader, "ROS 1": Reader1}
    storage = storages[kind](path)
    storage.open()
    try:
        yield storage
    finally:
        storage.close()


def _as_cdr(message: BagMessage, kind: str) -> BagMessage:
    """The message as uncompressed CDR. CDR starts with a zero byte, so the magic tells a compressed message."""
    if kind == "ROS 1":
        data = bytes(typestore().ros1_to_cdr(message.data, message.type))
    elif message.data.startswith(ZSTD_MAGIC):
        data = _decompress_zstd(message.data)
    else:
        return message
    return BagMessage(message.topic, message.type, message.time_ns, data)


def _decompress_zstd(data: bytes) -> bytes:
    import zstandard

    if zstandard.frame_content_size(data) > MAX_UNPACKED:
        raise ValueError("zstd frame claims more than 1 GiB")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_UNPACKED)


def _kind(path: Path, shown: Path) -> str:
    """mcap, sqlite3 or ROS 1, by the first bytes; by the suffix where those are damaged."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise BagError(f"{shown}: the file is empty")
    by_content = {MCAP_MAGIC: "mcap", b"SQLite format 3\0": "sqlite3", b"#ROSBAG V": "ROS 1"}
    for magic, kind in by_content.items():
        if head.startswith(magic):
            return kind
    by_suffix = {".mcap": "mcap", ".db3": "sqlite3", ".bag": "ROS 1", ".active": "ROS 1"}
    if path.suffix not in by_suffix:
        raise BagError(f"{shown}: neither an MCAP, an sqlite3 nor a ROS 1 bag")
    return by_suffix[path.suffix]


def _check_mcap_structure(path: Path) -> None:
    """Walk over the records by their lengths, so that a wrong length is an error here, not a huge allocation later.

    Raises:
        ValueError: a record does not fit into the file, a chunk claims an absurd size, or the footer is missing.
    """
    import zstandard

    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8) != MCAP_MAGIC:
            raise ValueError("no MCAP magic")
        position = 8
        while position + 9 <= size:
            opcode, length = struct.unpack("<BQ", file.read(9))
            position += 9
            if length > size - position:
                raise ValueError(f"record at byte {position - 9} claims {length} bytes, the file ends before")
            if opcode == FOOTER:
                file.seek(position + length)
                if file.read(8) != MCAP_MAGIC:
                    raise ValueError("no MCAP magic at the end")
                return
            if opcode == CHUNK:
                head = file.read(min(length, 64))
                unpacked = struct.unpack_from("<Q", head, 16)[0]
                frame = head.find(ZSTD_MAGIC, 28)
                if frame >= 0:
                    with suppress(zstandard.ZstdError):
                        unpacked = max(unpacked, zstandard.frame_content_size(head[frame:]))
                if unpacked > MAX_UNPACKED:
                    raise ValueError(f"chunk at byte {position - 9} claims {unpacked} bytes decompressed")
            position += length
            file.seek(position)
    raise ValueError("the file ends before the footer")
