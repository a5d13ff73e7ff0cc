"""Reading rosbags that may be broken, foreign or huge.

ROS 2 bags (MCAP, sqlite3; compressed per message, chunk or file; split) and ROS 1 bags are read by `rosbags`. What
rosbags cannot read to the end is read a second time, record by record, past the damaged place. Whatever is lost is
said in `Bag.problems` and counted; a bag of which nothing can be read is a `BagError` of one line that names the file.

Messages are handed out as CDR bytes, ready for `rclpy.serialization.deserialize_message`. Definitions embedded in a
bag are not parsed: the few message types this package reads are the same in every ROS distribution, and a bag with one
unparsable custom type stays readable.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import tempfile
from bz2 import BZ2Decompressor
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import yaml

from samfeat_core.errors import SamfeatError

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MCAP_MAGIC = b"\x89MCAP0\r\n"
ROS1_MAGIC = b"#ROSBAG V2.0\n"
MAX_CHUNK = 2**30  # bytes of one decompressed chunk or message; more is damage, not data
MAX_DAMAGED_PLACES = 200  # of an sqlite3 file: after so many failures the rest is given up
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


class BagError(SamfeatError):
    """A bag, or a topic of it, cannot be read. One line; names the file."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))  # damaged names may hold line breaks


@dataclass(frozen=True)
class Topic:
    """One topic of a bag: name, ROS 2 type (`sensor_msgs/msg/Image`), number of messages as the bag declares it."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class BagMessage:
    """One message: topic, ROS 2 type name, time of recording in nanoseconds, CDR bytes."""

    topic: str
    type: str
    time_ns: int
    data: bytes


class Bag:
    """A rosbag of any kind, open for reading.

    Args:
        path: a bag folder, or one `.mcap`, `.db3` or ROS 1 `.bag` file.

    Attributes:
        topics: name -> Topic.
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
        """Removes what was unpacked. The bag cannot be read afterwards."""
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None

    @property
    def image_topics(self) -> list[Topic]:
        """Topics of type Image or CompressedImage."""
        return [topic for topic in self.topics.values() if topic.type in IMAGE_TYPES]

    def require(self, name: str, types: Collection[str]) -> Topic:
        """The topic `name`, which must have one of `types`.

        Raises:
            BagError: it is not there or of another type; the line lists the topics of these types.
        """
        topic = self.topics.get(name) or self.topics.get("/" + name)
        if topic and topic.type in types:
            return topic
        short = " or ".join(t.rsplit("/", 1)[1] for t in types)
        have = [f"{t.name} ({t.type.rsplit('/', 1)[1]}, {t.count})" for t in self.topics.values() if t.type in types]
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

    def _open_files(self) -> list[_File]:
        if not self.path.exists():
            raise BagError(f"{self.path}: no such file or folder")
        try:
            paths = self._storage_paths()
            files, failures = [], []
            for path in paths:
                try:
                    files.append(_File(self._unpacked(path), path))
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
        found = sorted((p for p in self.path.iterdir() if _is_storage(p)), key=_natural_order)
        if not found:
            raise BagError(f"{self.path}: holds no .mcap, .db3 or .bag file")
        if found[0].suffix == ".bag":
            return found
        return self._listed_paths(found)

    def _listed_paths(self, found: list[Path]) -> list[Path]:
        """The storage files in the order of metadata.yaml; all that are there where it is of no use."""
        metadata = self.path / "metadata.yaml"
        try:
            names = yaml.safe_load(metadata.read_text())["rosbag2_bagfile_information"]["relative_file_paths"]
            listed = [self.path / PurePath(str(name)).name for name in names]
        except Exception as error:  # any damage in YAML is the same to the reader
            self.problems.append(f"{metadata}: unreadable ({_brief(error)}); all storage files in the folder are read")
            return found
        there = [path for path in listed if path.is_file()]
        self.problems += [f"{path}: listed in metadata.yaml but missing" for path in listed if path not in there]
        if not there:
            return found
        self.problems += [f"{path}: not listed in metadata.yaml; not read" for path in found if path not in there]
        return there

    def _unpacked(self, path: Path) -> Path:
        """The storage file itself, or its decompressed copy when the whole file is zstd-compressed."""
        if path.suffix not in (".zstd", ".zst"):
            return path
        import zstandard

        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="samfeat_bag_")
        target = Path(self._scratch.name, path.stem)
        with path.open("rb") as source, target.open("wb") as sink:
            try:
                zstandard.ZstdDecompressor().copy_stream(source, sink)
            except (zstandard.ZstdError, MemoryError) as error:
                self.problems.append(f"{path}: decompression stopped ({_brief(error)}); the part before is read")
        return target


def decode(message: BagMessage) -> Any:
    """The message as a `rosbags` dataclass with the fields of the ROS message.

    Raises:
        BagError: its bytes are not a message of its type.
    """
    try:
        return typestore().deserialize_cdr(message.data, message.type)
    except Exception as error:  # rosbags leaks struct, Unicode, key and value errors
        raise BagError(f"{message.topic} at {message.time_ns} ns: not a {message.type} ({_brief(error)})") from error


def stamp_ns(header: Any) -> int:
    """Header stamp in nanoseconds."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


class _File:
    """One storage file: by rosbags as far as it goes, then record by record."""

    def __init__(self, path: Path, shown: Path) -> None:
        self.path, self.shown = path, shown
        self.notes: list[str] = []
        self.kind = _kind(path, shown)
        self.intact = False
        try:
            if self.kind == "mcap":
                _check_mcap_structure(path)
            with _open_with_rosbags(path, self.kind) as reader:
                self.topics = [Topic(c.topic, c.msgtype, c.msgcount) for c in reader.connections]
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
            raise BagError(f"{self.shown}: not readable as a {self.kind} bag ({_brief(error)})") from error
        self.topics = [Topic(name, kind, count) for (name, kind), count in counts.items()]
        total = sum(counts.values())
        self.notes.append(f"{self.shown}: damaged ({_brief(error)}); {total} messages could be recovered")

    def messages(self, wanted: frozenset[str] | None, problems: list[str]) -> Iterator[BagMessage]:
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
            problems.append(f"{self.shown}: damaged ({_brief(failures[0])}); {count} of {declared} messages were found")
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


def _open_with_rosbags(path: Path, kind: str) -> Any:
    from rosbags.rosbag1 import Reader as Reader1
    from rosbags.rosbag2.storage_mcap import McapReader
    from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

    return Reader1(path) if kind == "ROS 1" else _Opened((McapReader if kind == "mcap" else Sqlite3Reader)(path))


class _Opened:
    """rosbags' storage readers as context managers; by content, where its Reader goes by the file's suffix."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def __enter__(self) -> Any:
        self.storage.open()
        return self.storage

    def __exit__(self, *exc: object) -> None:
        self.storage.close()


@lru_cache(maxsize=1)
def typestore() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


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

    if zstandard.frame_content_size(data) > MAX_CHUNK:
        raise ValueError("zstd frame claims more than 1 GiB")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_CHUNK)


def _kind(path: Path, shown: Path) -> str:
    """mcap, sqlite3 or ROS 1, by the first bytes; by the suffix where these are damaged."""
    if path.is_dir():
        raise BagError(f"{shown}: is a folder")
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


def _is_storage(path: Path) -> bool:
    name = path.name[: -len(path.suffix)] if path.suffix in (".zstd", ".zst") else path.name
    return path.is_file() and name.endswith((".mcap", ".db3", ".bag"))


def _natural_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def _merge_topics(files: list[_File]) -> dict[str, Topic]:
    merged: dict[str, Topic] = {}
    for file in files:
        for topic in file.topics:
            known = merged.get(topic.name)
            merged[topic.name] = Topic(topic.name, topic.type, topic.count + (known.count if known else 0))
    return merged


def _brief(error: Exception | str) -> str:
    """One line of at most 160 characters."""
    text = str(error) if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:157] + "..."


def _check_mcap_structure(path: Path) -> None:
    """Walks the records by their lengths, so that a wrong length is an error here, not a huge allocation later.

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
            if opcode == 0x02:
                file.seek(position + length)
                if file.read(8) != MCAP_MAGIC:
                    raise ValueError("no MCAP magic at the end")
                return
            if opcode == 0x06:
                head = file.read(min(length, 64))
                unpacked = struct.unpack_from("<Q", head, 16)[0]
                frame = head.find(ZSTD_MAGIC, 28)
                if frame >= 0:
                    with suppress(zstandard.ZstdError):
                        unpacked = max(unpacked, zstandard.frame_content_size(head[frame:]))
                if unpacked > MAX_CHUNK:
                    raise ValueError(f"chunk at byte {position - 9} claims {unpacked} bytes decompressed")
            position += length
            file.seek(position)
    raise ValueError("the file ends before the footer")


def _salvage_mcap(path: Path) -> Iterator[BagMessage]:
    """Messages in file order, up to the first wrong record length; of a damaged chunk the part before the damage."""
    from mcap.data_stream import ReadDataStream
    from mcap.records import Channel, Message, Schema

    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    for opcode, content in _mcap_records(path):
        with suppress(Exception):
            stream = ReadDataStream(BytesIO(content))
            if opcode == 0x03:
                schema = Schema.read(stream)
                schemas[schema.id] = schema.name
            elif opcode == 0x04:
                channel = Channel.read(stream)
                channels[channel.id] = (channel.topic, schemas.get(channel.schema_id, ""))
            elif opcode == 0x05:
                message = Message.read(stream, len(content))
                if message.channel_id in channels:
                    yield BagMessage(*channels[message.channel_id], message.log_time, message.data)


def _mcap_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(opcode, content) of all records outside and inside chunks; only a chunk may be cut off by the file's end."""
    with path.open("rb") as file:
        for opcode, content in _split_mcap(file, 8, path.stat().st_size):
            if opcode == 0x06:
                yield from _split_mcap(BytesIO(data := _mcap_chunk(content)), 0, len(data))
            else:
                yield opcode, content


def _split_mcap(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    file.seek(start)
    while end - file.tell() >= 9:
        opcode, length = struct.unpack("<BQ", file.read(9))
        left = end - file.tell()
        if length > left and (opcode != 0x06 or length > MAX_CHUNK):
            return
        yield opcode, file.read(min(length, left))


def _mcap_chunk(content: bytes) -> bytes:
    """The decompressed records of a chunk, as far as they can be decompressed. Its checksum is not asked here."""
    with suppress(struct.error):
        unpacked, _, name_length = struct.unpack_from("<QII", content, 16)
        compression = content[32 : 32 + name_length]
        packed = content[40 + name_length :]
        if unpacked <= MAX_CHUNK:
            return _decompress_partly(packed, compression, unpacked)
    return b""


def _decompress_partly(packed: bytes, compression: bytes, limit: int) -> bytes:
    """Decompresses piece by piece and keeps what came out before an error; at most `limit` bytes or little more."""
    import lz4.frame
    import zstandard

    if compression not in (b"zstd", b"lz4", b"bz2"):
        return packed
    frames = {b"zstd": zstandard.ZstdDecompressor().decompressobj, b"lz4": lz4.frame.LZ4FrameDecompressor}
    decompress = frames.get(compression, BZ2Decompressor)().decompress
    out = bytearray()
    with suppress(Exception):
        for start in range(0, len(packed), 4096):
            out += decompress(packed[start : start + 4096])
            if len(out) >= limit:
                break
    return bytes(out)


def _salvage_sqlite(path: Path) -> Iterator[BagMessage]:
    """Messages row by row without the index, past unreadable rows."""
    query = "SELECT id, topic_id, timestamp, data FROM messages NOT INDEXED WHERE id > ? ORDER BY id"
    with suppress(Exception):
        connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        connection.execute("PRAGMA writable_schema=ON")  # else sqlite refuses a file shorter than its header says
        topics = {row[0]: (str(row[1]), str(row[2])) for row in connection.execute("SELECT id, name, type FROM topics")}
        last, skip = 0, 1
        for _ in range(MAX_DAMAGED_PLACES):
            try:
                for number, topic, time_ns, data in connection.execute(query, (last,)):
                    if number <= last:
                        raise sqlite3.DatabaseError("row ids do not ascend: damaged pages form a loop")
                    last, skip = number, 1
                    if topic in topics and isinstance(time_ns, int) and isinstance(data, bytes):
                        yield BagMessage(*topics[topic], time_ns, data)
                break
            except (sqlite3.Error, MemoryError):
                last += skip  # each failure in a row doubles the jump over the damaged pages
                skip *= 2
        connection.close()


def _salvage_ros1(path: Path) -> Iterator[BagMessage]:
    """Messages of all chunks that can still be decoded, without the index at the end (a recording that was cut off)."""
    connections: dict[bytes, tuple[str, str]] = {}
    size = path.stat().st_size
    with path.open("rb") as file, suppress(Exception):
        if file.read(len(ROS1_MAGIC)) != ROS1_MAGIC:
            return
        while True:
            header, data = _read_ros1_record(file, size)
            with suppress(Exception):
                if header[b"op"] == b"\x05":
                    yield from _salvage_ros1_chunk(header, data, connections)


def _salvage_ros1_chunk(
    header: dict[bytes, bytes], data: bytes, connections: dict[bytes, tuple[str, str]]
) -> Iterator[BagMessage]:
    from rosbags.typesys.msg import normalize_msgtype

    data = _decompress_partly(data, header[b"compression"], min(MAX_CHUNK, struct.unpack("<I", header[b"size"])[0]))
    stream = BytesIO(data)
    while stream.tell() < len(data):
        record, body = _read_ros1_record(stream, len(data))
        if record[b"op"] == b"\x07":
            fields = _ros1_fields(body)
            connections[record[b"conn"]] = (record[b"topic"].decode(), normalize_msgtype(fields[b"type"].decode()))
        elif record[b"op"] == b"\x02" and record[b"conn"] in connections:
            sec, nsec = struct.unpack("<II", record[b"time"])
            yield BagMessage(*connections[record[b"conn"]], sec * 10**9 + nsec, body)


def _read_ros1_record(stream: BinaryIO, size: int) -> tuple[dict[bytes, bytes], bytes]:
    """Header fields and data of the next record; only the data of a chunk may be cut off by the end of the file."""
    (length,) = struct.unpack("<I", stream.read(4))
    header = _ros1_fields(stream.read(min(length, size - stream.tell())))
    (length,) = struct.unpack("<I", stream.read(4))
    left = size - stream.tell()
    if length > left and header.get(b"op") != b"\x05":
        raise ValueError("record longer than the file")
    return header, stream.read(min(length, left))


def _ros1_fields(raw: bytes) -> dict[bytes, bytes]:
    fields, position = {}, 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        name, _, value = raw[position + 4 : position + 4 + length].partition(b"=")
        fields[name] = value
        position += 4 + length
    return fields


_SALVAGE = {"mcap": _salvage_mcap, "sqlite3": _salvage_sqlite, "ROS 1": _salvage_ros1}
