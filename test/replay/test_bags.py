"""Bag reading: every kind of bag, and every kind of damage (a clear error or a stated partial result)."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from samfeat_ros.replay.bags import Bag, BagError, decode
from samfeat_ros.stamps import stamp_to_ns
from samfeat_ros.topics import IMAGE_TYPES

FOREIGN = Path(__file__).resolve().parents[3] / "shared" / "data" / "bags"
STORE = get_typestore(Stores.ROS2_JAZZY)
FRAMES = 6
START = 1_700_000_000_000_000_000


def _header(index: int):
    time_type = STORE.types["builtin_interfaces/msg/Time"]
    ns = START + index * 100_000_000
    return STORE.types["std_msgs/msg/Header"](time_type(ns // 10**9, ns % 10**9), "camera")


def _image(index: int):
    pixels = np.random.default_rng(index).integers(0, 255, 24 * 32, dtype=np.uint8)
    return STORE.types["sensor_msgs/msg/Image"](_header(index), 24, 32, "mono8", 0, 32, pixels)


def _pose(index: int):
    point = STORE.types["geometry_msgs/msg/Point"](float(index), 0.0, 0.0)
    turn = STORE.types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    pose = STORE.types["geometry_msgs/msg/Pose"](point, turn)
    return STORE.types["geometry_msgs/msg/PoseStamped"](_header(index), pose)


def write_ros2(path: Path, storage: StoragePlugin, mode: CompressionMode | None = None) -> Path:
    writer = Writer(path, version=9, storage_plugin=storage)
    if mode:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        _fill(writer, STORE, STORE.serialize_cdr)
    return path


def write_ros1(path: Path, compression: Writer1.CompressionFormat | None = None) -> Path:
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = Writer1(path)
    if compression:
        writer.set_compression(compression)
    with writer:
        _fill(writer, store, lambda message, kind: STORE.cdr_to_ros1(STORE.serialize_cdr(message, kind), kind))
    return path


def _fill(writer, store, serialize) -> None:
    image = writer.add_connection("/cam/image_raw", "sensor_msgs/msg/Image", typestore=store)
    pose = writer.add_connection("/pose", "geometry_msgs/msg/PoseStamped", typestore=store)
    for index in range(FRAMES):
        time_ns = START + index * 100_000_000
        writer.write(image, time_ns, serialize(_image(index), "sensor_msgs/msg/Image"))
        writer.write(pose, time_ns + 1, serialize(_pose(index), "geometry_msgs/msg/PoseStamped"))


KINDS = {
    "mcap": lambda d: write_ros2(d / "mcap", StoragePlugin.MCAP),
    "mcap_chunks": lambda d: write_ros2(d / "mcap_chunks", StoragePlugin.MCAP, CompressionMode.STORAGE),
    "mcap_messages": lambda d: write_ros2(d / "mcap_messages", StoragePlugin.MCAP, CompressionMode.MESSAGE),
    "mcap_file": lambda d: write_ros2(d / "mcap_file", StoragePlugin.MCAP, CompressionMode.FILE),
    "sqlite3": lambda d: write_ros2(d / "sqlite3", StoragePlugin.SQLITE3),
    "sqlite3_messages": lambda d: write_ros2(d / "sqlite3_messages", StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "sqlite3_file": lambda d: write_ros2(d / "sqlite3_file", StoragePlugin.SQLITE3, CompressionMode.FILE),
    "ros1": lambda d: write_ros1(d / "plain.bag"),
    "ros1_bz2": lambda d: write_ros1(d / "bz2.bag", Writer1.CompressionFormat.BZ2),
    "ros1_lz4": lambda d: write_ros1(d / "lz4.bag", Writer1.CompressionFormat.LZ4),
}


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bags")
    return {name: write(folder) for name, write in KINDS.items()}


def _storage(path: Path) -> Path:
    return path if path.is_file() else next(p for p in path.iterdir() if p.name != "metadata.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bag_reads_the_same(bags, kind):
    with Bag(bags[kind]) as bag:
        assert {t.name: t.count for t in bag.topics.values()} == {"/cam/image_raw": FRAMES, "/pose": FRAMES}
        assert [t.name for t in bag.image_topics] == ["/cam/image_raw"]
        messages = list(bag.messages(["/cam/image_raw"]))
        assert bag.problems == []
    assert [m.time_ns for m in messages] == [START + i * 100_000_000 for i in range(FRAMES)]
    for index, message in enumerate(messages):
        image = decode(message)
        assert (image.height, image.width, image.encoding, image.step) == (24, 32, "mono8", 32)
        assert stamp_to_ns(image.header.stamp) == message.time_ns
        np.testing.assert_array_equal(image.data, _image(index).data)


@pytest.mark.parametrize("kind", ["mcap", "sqlite3"])
def test_single_storage_file_without_metadata(bags, kind):
    with Bag(_storage(bags[kind])) as bag:
        assert len(list(bag.messages())) == 2 * FRAMES and bag.problems == []


def test_wrong_topic_lists_the_image_topics(bags):
    with Bag(bags["mcap"]) as bag:
        with pytest.raises(BagError, match=r"no topic '/nope'.*Image topics there: /cam/image_raw \(Image, 6\)"):
            bag.require("/nope", IMAGE_TYPES)
        with pytest.raises(BagError, match="is of type geometry_msgs/msg/PoseStamped, not Image"):
            bag.require("/pose", IMAGE_TYPES)
        assert bag.require("cam/image_raw", IMAGE_TYPES).name == "/cam/image_raw"


def test_split_bag_with_a_missing_file(bags, tmp_path):
    """Files are read in the order of metadata.yaml; a missing one is a stated problem."""
    folder = tmp_path / "split"
    folder.mkdir()
    names = ["split_0.mcap", "split_1.mcap"]
    for name in names:
        shutil.copy(_storage(bags["mcap"]), folder / name)
    lines = "".join(f"  - {name}\n" for name in names)
    (folder / "metadata.yaml").write_text(f"rosbag2_bagfile_information:\n  relative_file_paths:\n{lines}")
    with Bag(folder) as bag:
        assert bag.topics["/pose"].count == 2 * FRAMES and len(list(bag.messages(["/pose"]))) == 2 * FRAMES
    (folder / names[0]).unlink()
    with Bag(folder) as bag:
        assert len(list(bag.messages(["/pose"]))) == FRAMES
        assert any("split_0.mcap: listed in metadata.yaml but missing" in line for line in bag.problems)


def test_broken_metadata_yaml_reads_the_files_there(bags, tmp_path):
    folder = shutil.copytree(bags["sqlite3"], tmp_path / "bag")
    (folder / "metadata.yaml").write_text(":\n  - [")
    with Bag(folder) as bag:
        assert len(list(bag.messages())) == 2 * FRAMES
        assert "metadata.yaml: unreadable" in bag.problems[0]


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (None, "absent.mcap", "no such file"),
        (b"", "empty.mcap", "the file is empty"),
        (b"hello, not a bag at all", "text.txt", "neither an MCAP"),
        (b"hello, not a bag at all", "text.mcap", "not readable as a mcap bag"),
        (b"SQLite format 3\0" + bytes(100), "zeros.db3", "not readable as a sqlite3 bag"),
        (b"#ROSBAG V2.0\n", "head.bag", "not readable as a ROS 1 bag"),
    ],
)
def test_not_a_bag(tmp_path, content, name, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BagError, match=expected) as error:
        Bag(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_empty_folder(tmp_path):
    with pytest.raises(BagError, match="holds no .mcap, .db3 or .bag file"):
        Bag(tmp_path)


@pytest.mark.parametrize(("kind", "part"), [("mcap", 0.3), ("mcap", 0.55), ("sqlite3", 0.8), ("ros1", 0.55)])
def test_truncated_bag_gives_what_is_left_and_says_so(bags, kind, part, tmp_path):
    source = _storage(bags[kind])
    data = source.read_bytes()
    path = tmp_path / source.name
    path.write_bytes(data[: int(len(data) * part)])
    with Bag(path) as bag:
        assert 0 < len(list(bag.messages())) < 2 * FRAMES
        assert str(path) in bag.problems[0] and "damaged" in bag.problems[0]


def test_absurd_lengths_do_not_allocate(bags, tmp_path):
    """A record that claims 2^60 bytes and a chunk that claims to unpack to 2^50 are stated damage."""
    data = bytearray(_storage(bags["mcap_chunks"]).read_bytes())
    chunk = 9 + 8 + struct.unpack_from("<Q", data, 9)[0]
    assert data[chunk] == 0x06
    for offset, value in ((chunk + 1, 2**60), (chunk + 9 + 16, 2**50)):
        broken = bytearray(data)
        struct.pack_into("<Q", broken, offset, value)
        path = tmp_path / "absurd.mcap"
        path.write_bytes(broken)
        try:
            with Bag(path) as bag:
                assert len(list(bag.messages())) <= 2 * FRAMES and bag.problems
        except BagError as error:
            assert str(path) in str(error)


def mutants(data: bytes, count: int, seed: int):
    """Mutated copies: changed bytes, cut ends, removed and inserted pieces, zeroed stretches, huge lengths."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        out = bytearray(data)
        at = int(rng.integers(len(out)))
        kind = int(rng.integers(6))
        if kind == 0:
            for place in rng.integers(len(out), size=int(rng.integers(1, 20))):
                out[place] = int(rng.integers(256))
        elif kind == 1:
            out = out[:at]
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            out[at:at] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 4:
            stretch = int(rng.integers(1, 2000))
            out[at : at + stretch] = bytes(len(out[at : at + stretch]))
        else:
            out[at : at + 8] = b"\xff" * len(out[at : at + 8])
        yield bytes(out)


def check_mutants(source: Path, folder: Path, count: int, seed: int) -> None:
    """Each mutant: BagError of one line, or every loss stated; and what reads decodes or is a BagError."""
    path = folder / source.name
    for number, data in enumerate(mutants(source.read_bytes(), count, seed)):
        path.write_bytes(data)
        try:
            with Bag(path) as bag:
                messages = list(bag.messages())
                assert len(messages) == 2 * FRAMES or bag.problems, f"mutant {number} of {source.name}: silent loss"
        except BagError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        for message in messages:
            try:
                decode(message)
            except BagError as error:
                assert "\n" not in str(error)


MUTATED = ["mcap", "mcap_chunks", "mcap_messages", "mcap_file", "sqlite3", "sqlite3_messages", "ros1", "ros1_lz4"]


@pytest.mark.parametrize("kind", MUTATED)
def test_mutants(bags, kind, tmp_path):
    check_mutants(_storage(bags[kind]), tmp_path, 50, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATED)
@pytest.mark.parametrize("seed", [2, 3])
def test_many_mutants(bags, kind, seed, tmp_path):
    check_mutants(_storage(bags[kind]), tmp_path, 600, seed)


@pytest.mark.skipif(not FOREIGN.is_dir(), reason="foreign bags are not on this machine")
@pytest.mark.parametrize(
    ("name", "count", "images"),
    [
        ("ros1_images.bag", 9, {"/image", "/compressedimage"}),
        ("ros1_small.bag", 9, {"/camera/raw", "/camera/compressed"}),
        ("ros2_no_images.mcap", 8197, set()),
        ("ros2_sqlite3_small", 9, {"/camera/raw", "/camera/compressed"}),
    ],
)
def test_foreign_bags(name, count, images):
    with Bag(FOREIGN / name) as bag:
        assert {topic.name for topic in bag.image_topics} == images
        messages = list(bag.messages())
        assert len(messages) == count and bag.problems == []
        for message in messages:
            if message.type in IMAGE_TYPES:
                assert len(decode(message).data) > 0
