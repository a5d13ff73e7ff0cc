"""Reading damaged storage files record by record: every message up to the damage, and past it where that is possible.

Each function takes a path and yields messages as the file holds them, in file order. None of them raises for damage.
"""

from __future__ import annotations

import sqlite3
import struct
from bz2 import BZ2Decompressor
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from samfeat_ros.replay.bags.messages import MAX_UNPACKED, BagMessage
from samfeat_ros.stamps import join_ns

FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = 0x02, 0x03, 0x04, 0x05, 0x06  # opcodes of MCAP records
ROS1_MESSAGE, ROS1_CHUNK, ROS1_CONNECTION = b"\x02", b"\x05", b"\x07"  # op fields of ROS 1 records
MAX_DAMAGED_PLACES = 200  # of an sqlite3 file: after so many failures the rest is given up
ROS1_MAGIC = b"#ROSBAG V2.0\n"


def salvage_mcap(path: Path) -> Iterator[BagMessage]:
    """Messages in file order, up to the first wrong record length; of a damaged chunk the part before the damage."""
    from mcap.data_stream import ReadDataStream
    from mcap.records import Channel, Message, Schema

    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    for opcode, content in _mcap_records(path):
        with suppress(Exception):
            stream = ReadDataStream(BytesIO(content))
            if opcode == SCHEMA:
                schema = Schema.read(stream)
                schemas[schema.id] = schema.name
            elif opcode == CHANNEL:
                channel = Channel.read(stream)
                channels[channel.id] = (channel.topic, schemas.get(channel.schema_id, ""))
            elif opcode == MESSAGE:
                message = Message.read(stream, len(content))
                if message.channel_id in channels:
                    yield BagMessage(*channels[message.channel_id], message.log_time, message.data)


def _mcap_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(opcode, content) of all records outside and inside chunks; only a chunk may be cut off by the file's end."""
    with path.open("rb") as file:
        for opcode, content in _split_mcap(file, 8, path.stat().st_size):
            if opcode == CHUNK:
                yield from _split_mcap(BytesIO(data := _mcap_chunk(content)), 0, len(data))
            else:
                yield opcode, content


def _split_mcap(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    file.seek(start)
    while end - file.tell() >= 9:
        opcode, length = struct.unpack("<BQ", file.read(9))
        left = end - file.tell()
        if length > left and (opcode != CHUNK or length > MAX_UNPACKED):
            return
        yield opcode, file.read(min(length, left))


def _mcap_chunk(content: bytes) -> bytes:
    """The decompressed records of a chunk, as far as they can be decompressed. Its checksum is not asked here."""
    with suppress(struct.error):
        unpacked, _, name_length = struct.unpack_from("<QII", content, 16)
        compression = content[32 : 32 + name_length]
        packed = content[40 + name_length :]
        if unpacked <= MAX_UNPACKED:
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


def salvage_sqlite(path: Path) -> Iterator[BagMessage]:
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


def salvage_ros1(path: Path) -> Iterator[BagMessage]:
    """Messages of all chunks that can still be decoded, without the index at the end (a recording that was cut off)."""
    connections: dict[bytes, tuple[str, str]] = {}
    size = path.stat().st_size
    with path.open("rb") as file, suppress(Exception):
        if file.read(len(ROS1_MAGIC)) != ROS1_MAGIC:
            return
        while True:
            header, data = _read_ros1_record(file, size)
            with suppress(Exception):
                if header[b"op"] == ROS1_CHUNK:
                    yield from _salvage_ros1_chunk(header, data, connections)


def _salvage_ros1_chunk(
    header: dict[bytes, bytes], data: bytes, connections: dict[bytes, tuple[str, str]]
) -> Iterator[BagMessage]:
    from rosbags.typesys.msg import normalize_msgtype

    data = _decompress_partly(data, header[b"compression"], min(MAX_UNPACKED, struct.unpack("<I", header[b"size"])[0]))
    stream = BytesIO(data)
    while stream.tell() < len(data):
        record, body = _read_ros1_record(stream, len(data))
        if record[b"op"] == ROS1_CONNECTION:
            fields = _ros1_fields(body)
            connections[record[b"conn"]] = (record[b"topic"].decode(), normalize_msgtype(fields[b"type"].decode()))
        elif record[b"op"] == ROS1_MESSAGE and record[b"conn"] in connections:
            sec, nsec = struct.unpack("<II", record[b"time"])
            yield BagMessage(*connections[record[b"conn"]], join_ns(sec, nsec), body)


def _read_ros1_record(stream: BinaryIO, size: int) -> tuple[dict[bytes, bytes], bytes]:
    """Header fields and data of the next record; only the data of a chunk may be cut off by the end of the file."""
    (length,) = struct.unpack("<I", stream.read(4))
    header = _ros1_fields(stream.read(min(length, size - stream.tell())))
    (length,) = struct.unpack("<I", stream.read(4))
    left = size - stream.tell()
    if length > left and header.get(b"op") != ROS1_CHUNK:
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
