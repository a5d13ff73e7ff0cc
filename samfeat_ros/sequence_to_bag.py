"""`sequence_to_bag`: a folder of images with calibration, poses and times becomes a ROS 2 bag (MCAP).

    image/*.jpg|png|...   frames, in the order of their names, all of one size
    calib.txt             `P0:` and 12 numbers, the rows of the 3x4 projection matrix of the rectified images (KITTI)
    poses.txt             a camera-to-world pose per frame: 12 numbers, the rows of [R | t]
    times.txt             optional, a time per frame in seconds, increasing

The bag gets sensor_msgs/Image (or CompressedImage), sensor_msgs/CameraInfo and, as ground truth,
geometry_msgs/PoseStamped: the pose of the camera's optical frame (x right, y down, z forward) in the world.
Messages are recorded at their header stamps.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import typer

from samfeat_core.errors import SamfeatError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
ENCODINGS = ("auto", "mono8", "bgr8", "rgb8")
FORMATS = ("raw", "jpeg", "png")
METADATA_VERSION: Literal[8] = 8  # the newest that rosbag2 of Humble reads too


class SequenceError(SamfeatError):
    """The folder is not such a sequence. One line; names file and line."""


@dataclass(frozen=True)
class Sequence:
    """A folder in memory, images aside.

    images: paths of the N frames. projection: (3, 4) float64. times: (N,) float64 seconds.
    poses: (N, 3, 4) float64 camera-to-world, or None. size: (width, height) of the first image.
    """

    images: tuple[Path, ...]
    projection: np.ndarray
    times: np.ndarray
    poses: np.ndarray | None
    size: tuple[int, int]

    @classmethod
    def read(cls, folder: Path, rate: float | None = None, ground_truth: bool = True) -> Sequence:
        """Read and check the folder.

        Args:
            rate: frames per second where there is no times.txt.
            ground_truth: require poses.txt.

        Raises:
            SequenceError: something is missing, malformed, or of another length than the images.
        """
        images = _list_images(folder / "image")
        times_file = folder / "times.txt"
        if times_file.exists():
            times = _read_rows(times_file, 1, len(images))[:, 0]
            late = np.flatnonzero(np.diff(times) <= 0)
            if len(late):
                number, time = late[0] + 2, times[late[0] + 1]
                raise SequenceError(f"{times_file}: line {number}: {time:g} s is not after the line before")
            if times[0] < 0:
                raise SequenceError(f"{times_file}: line 1: {times[0]:g} s is negative, which no ROS stamp can be")
        elif rate:
            times = np.arange(len(images)) / rate
        else:
            raise SequenceError(f"{times_file}: no such file; give --rate, the frames per second")
        poses = _read_rows(folder / "poses.txt", 12, len(images)).reshape(-1, 3, 4) if ground_truth else None
        if poses is not None:
            _check_rotations(folder / "poses.txt", poses)
        height, width = _read_image(images[0]).shape[:2]
        return cls(images, _read_projection(folder / "calib.txt"), times, poses, (width, height))


def _list_images(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise SequenceError(f"{folder}: no such folder; expected the frames of the sequence there")
    images = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES))
    if not images:
        raise SequenceError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return images


def _read_image(path: Path, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise SequenceError(f"{path}: not a readable image")
    return image


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of the lines that are not empty."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SequenceError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _numbers(text: str, count: int, where: str) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise SequenceError(f"{where}: expected {count} finite numbers, got '{text.strip()[:60]}'")
    return values


def _read_rows(path: Path, count: int, images: int) -> np.ndarray:
    """(images, count) float64, one row per line."""
    rows = [_numbers(line, count, f"{path}: line {number}") for number, line in _lines(path)]
    if len(rows) != images:
        raise SequenceError(f"{path}: {len(rows)} lines for {images} images")
    return np.array(rows)


def _check_rotations(path: Path, poses: np.ndarray) -> None:
    turns = poses[:, :, :3]
    off = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    wrong = np.flatnonzero((off > 1e-2) | (np.linalg.det(turns) < 0))
    if len(wrong):
        raise SequenceError(f"{path}: pose {wrong[0] + 1}: its first three columns are no rotation")


def _read_projection(path: Path) -> np.ndarray:
    """(3, 4) of the line `P0:`."""
    for number, line in _lines(path):
        name, _, rest = line.partition(":")
        if name.strip() == "P0":
            matrix = np.array(_numbers(rest, 12, f"{path}: line {number}")).reshape(3, 4)
            if min(matrix[0, 0], matrix[1, 1]) <= 0:
                raise SequenceError(f"{path}: line {number}: focal lengths must be positive")
            return matrix
    raise SequenceError(f"{path}: no line 'P0:' with the 12 numbers of a projection matrix")


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w) of a rotation (3, 3)."""
    vector = cv2.Rodrigues(np.ascontiguousarray(rotation, np.float64))[0].ravel()
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle * np.sin(angle / 2) if angle > 1e-12 else vector / 2
    return float(x), float(y), float(z), float(np.cos(angle / 2))


class _Messages:
    """Builds the messages of a sequence as rosbags dataclasses."""

    def __init__(self, store: Any, sequence: Sequence, frame_id: str, world: str, encoding: str, form: str) -> None:
        self.types, self.sequence, self.frame_id, self.world = store.types, sequence, frame_id, world
        self.encoding, self.form = encoding, form

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        time = self.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return self.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)

    def image(self, index: int, stamp_ns: int) -> Any:
        path, header = self.sequence.images[index], self.header(stamp_ns, self.frame_id)
        if self.form != "raw":
            compressed = self.types["sensor_msgs/msg/CompressedImage"]
            return compressed(header=header, format=self.form, data=self._compressed(path))
        image = self._pixels(path)
        height, width = image.shape[:2]
        channels = 1 if image.ndim == 2 else 3
        encoding = self.encoding if self.encoding != "auto" else ("mono8" if channels == 1 else "bgr8")
        return self.types["sensor_msgs/msg/Image"](
            header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=width * channels,
            data=np.ascontiguousarray(image).reshape(-1),
        )  # fmt: skip

    def _pixels(self, path: Path) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8 as `encoding` says."""
        flags = {"auto": cv2.IMREAD_ANYCOLOR, "mono8": cv2.IMREAD_GRAYSCALE}.get(self.encoding, cv2.IMREAD_COLOR)
        image = _read_image(path, flags)
        if image.shape[1::-1] != self.sequence.size:
            width, height = self.sequence.size
            raise SequenceError(f"{path}: is {image.shape[1]}x{image.shape[0]}, the first image {width}x{height}")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if self.encoding == "rgb8" else image

    def _compressed(self, path: Path) -> np.ndarray:
        """(n,) uint8: the file itself where it has that format already, so that nothing is lost."""
        image = self._pixels(path)
        same = path.suffix.lower() in {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}[self.form]
        if same and self.encoding == "auto":
            return np.fromfile(path, np.uint8)
        return cv2.imencode(f".{self.form}", image)[1].reshape(-1)

    def camera_info(self, stamp_ns: int) -> Any:
        width, height = self.sequence.size
        region = self.types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self.types["sensor_msgs/msg/CameraInfo"](
            header=self.header(stamp_ns, self.frame_id), height=height, width=width, distortion_model="plumb_bob",
            d=np.zeros(5), k=self.sequence.projection[:, :3].reshape(-1), r=np.eye(3).reshape(-1),
            p=self.sequence.projection.reshape(-1), binning_x=0, binning_y=0, roi=region,
        )  # fmt: skip

    def pose(self, index: int, stamp_ns: int) -> Any:
        assert self.sequence.poses is not None
        matrix = self.sequence.poses[index]
        point = self.types["geometry_msgs/msg/Point"](*map(float, matrix[:, 3]))
        turn = self.types["geometry_msgs/msg/Quaternion"](*quaternion(matrix[:, :3]))
        pose = self.types["geometry_msgs/msg/Pose"](position=point, orientation=turn)
        return self.types["geometry_msgs/msg/PoseStamped"](header=self.header(stamp_ns, self.world), pose=pose)


def write_bag(
    sequence: Sequence,
    output: Path,
    image_topic: str = "/camera/image_raw",
    camera_info_topic: str = "/camera/camera_info",
    ground_truth_topic: str = "/ground_truth/pose",
    frame_id: str = "camera",
    world_frame_id: str = "world",
    encoding: str = "auto",
    form: str = "raw",
    start: float = 0.0,
    limit: int | None = None,
) -> Iterator[int]:
    """Write the bag folder `output`, yielding the index of every frame that is written.

    Args:
        encoding: of raw images: auto (mono8 for grey files, bgr8 for colour), mono8, bgr8 or rgb8.
        form: raw, or jpeg or png for CompressedImage on `image_topic`/compressed.
        start: seconds added to all times.
        limit: write only that many frames.

    Raises:
        SequenceError: an image is unreadable or of another size, or the bag cannot be written; nothing is left then.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    messages = _Messages(store, sequence, frame_id, world_frame_id, encoding, form)
    topics = {
        f"{image_topic}/compressed" if form != "raw" else image_topic: (
            "sensor_msgs/msg/CompressedImage" if form != "raw" else "sensor_msgs/msg/Image"
        ),
        camera_info_topic: "sensor_msgs/msg/CameraInfo",
    }
    if sequence.poses is not None:
        topics[ground_truth_topic] = "geometry_msgs/msg/PoseStamped"
    # written beside its place and moved there when it is whole
    unfinished = output.parent / f".{output.name}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        with Writer(unfinished / output.name, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = [
                writer.add_connection(topic, kind, typestore=store, serialization_format="cdr")
                for topic, kind in topics.items()
            ]
            for index, time in enumerate(sequence.times[:limit]):
                stamp = round((float(time) + start) * 1e9)
                batch = [messages.image(index, stamp), messages.camera_info(stamp)]
                if sequence.poses is not None:
                    batch.append(messages.pose(index, stamp))
                # CameraInfo and pose first: who takes the image has what belongs to it
                for connection, message in reversed(list(zip(connections, batch))):
                    writer.write(connection, stamp, store.serialize_cdr(message, connection.msgtype))
                yield index
        (unfinished / output.name).rename(output)
    except OSError as error:
        raise SequenceError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def sequence_to_bag(
    folder: Path = typer.Argument(..., help="Folder with image/, calib.txt, poses.txt and, optionally, times.txt."),
    output: Path = typer.Argument(..., help="Bag folder to write."),
    image_topic: str = typer.Option("/camera/image_raw", help="Topic of the images."),
    camera_info_topic: str = typer.Option("/camera/camera_info", help="Topic of the calibration."),
    ground_truth_topic: str = typer.Option("/ground_truth/pose", help="Topic of the poses."),
    ground_truth: bool = typer.Option(True, help="Write the poses of poses.txt; without, it need not be there."),
    frame_id: str = typer.Option("camera", help="frame_id of images and calibration."),
    world_frame_id: str = typer.Option("world", help="frame_id of the poses."),
    rate: float | None = typer.Option(None, min=0.001, help="Frames per second where there is no times.txt."),
    start: float = typer.Option(0.0, min=0.0, help="Seconds added to all times."),
    encoding: str = typer.Option("auto", help="auto (mono8 for grey files, bgr8 for colour), mono8, bgr8 or rgb8."),
    compress: str = typer.Option("raw", "--format", help="raw, or jpeg or png for CompressedImage."),
    limit: int | None = typer.Option(None, min=1, help="Convert only that many frames."),
    overwrite: bool = typer.Option(False, help="Replace a bag that is there."),
) -> None:
    """Turn a folder of images with calibration, poses and times into a ROS 2 bag."""
    from tqdm import tqdm

    try:
        if encoding not in ENCODINGS:
            raise SequenceError(f"--encoding {encoding}: expected one of {', '.join(ENCODINGS)}")
        if compress not in FORMATS:
            raise SequenceError(f"--format {compress}: expected one of {', '.join(FORMATS)}")
        if output.exists() and not (overwrite and (output / "metadata.yaml").is_file()):
            raise SequenceError(f"{output}: exists already; --overwrite replaces a bag")
        sequence = Sequence.read(folder, rate, ground_truth)
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        frames = write_bag(
            sequence, output, image_topic, camera_info_topic, ground_truth_topic, frame_id, world_frame_id, encoding,
            compress, start, limit,
        )  # fmt: skip
        total = min(len(sequence.images), limit or len(sequence.images))
        for _ in tqdm(frames, desc=output.name, total=total, unit="frame"):
            pass
    except SamfeatError as error:
        typer.echo(f"sequence_to_bag: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{output}: {total} frames of {sequence.size[0]}x{sequence.size[1]}")


def main() -> None:
    """Console entry."""
    app(prog_name="sequence_to_bag")


if __name__ == "__main__":
    main()
