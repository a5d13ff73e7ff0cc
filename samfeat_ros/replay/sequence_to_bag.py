"""`sequence_to_bag`: a folder of camera frames (`samfeat_core.sequence`) becomes a ROS 2 bag (MCAP).

The bag gets sensor_msgs/Image (or CompressedImage), sensor_msgs/CameraInfo and, where the folder has poses, as ground
truth geometry_msgs/PoseStamped: the pose of the camera's optical frame (x right, y down, z forward) in the world.
Messages are recorded at their header stamps.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import typer

from samfeat_core.command import errors_in_one_line
from samfeat_core.errors import FileError, UsageError
from samfeat_core.files import read_image
from samfeat_core.progress import progress
from samfeat_core.sequence import ImageSequence
from samfeat_ros.replay.bags import compose, typestore
from samfeat_ros.stamps import NS_PER_S
from samfeat_ros.topics import CAMERA_INFO, IMAGE, TRANSPORTS, transport_topic

ENCODINGS = ("auto", "mono8", "bgr8", "rgb8")
FORMATS = ("raw", "jpeg", "png")
METADATA_VERSION: Literal[8] = 8  # the newest that rosbag2 of Humble reads too


def frame_times(sequence: ImageSequence, rate: float | None) -> np.ndarray:
    """(N,) seconds: those of times.txt, else by the rate in frames per second. FileError where there is neither."""
    if sequence.times is not None:
        return sequence.times
    if not rate:
        raise FileError(f"{sequence.folder / 'times.txt'}: no such file; give --rate, the frames per second")
    return np.arange(len(sequence)) / rate


class _Messages:
    """Builds the messages of a sequence as rosbags dataclasses."""

    def __init__(
        self, store: Any, sequence: ImageSequence, frame_id: str, world: str, encoding: str, form: str
    ) -> None:
        self.types, self.sequence, self.frame_id, self.world = store.types, sequence, frame_id, world
        self.encoding, self.form = encoding, form

    def image(self, index: int, stamp_ns: int) -> Any:
        path = self.sequence.images[index]
        if self.form != "raw":
            return compose.compressed_image(stamp_ns, self.frame_id, self.form, self._compressed(path))
        image = self._pixels(path)
        encoding = self.encoding if self.encoding != "auto" else ("mono8" if image.ndim == 2 else "bgr8")
        return compose.image(stamp_ns, self.frame_id, encoding, image)

    def _pixels(self, path: Path) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8 as `encoding` says."""
        flags = {"auto": cv2.IMREAD_ANYCOLOR, "mono8": cv2.IMREAD_GRAYSCALE}.get(self.encoding, cv2.IMREAD_COLOR)
        image = read_image(path, flags)
        if image.shape[1::-1] != self.sequence.image_size:
            width, height = self.sequence.image_size
            raise FileError(f"{path}: is {image.shape[1]}x{image.shape[0]}, the first image {width}x{height}")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if self.encoding == "rgb8" else image

    def _compressed(self, path: Path) -> np.ndarray:
        """(n,) uint8: the file itself where it has that format already, so that nothing is lost."""
        image = self._pixels(path)
        same = path.suffix.lower() in {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}[self.form]
        if same and self.encoding == "auto":
            return np.fromfile(path, np.uint8)
        return cv2.imencode(f".{self.form}", image)[1].reshape(-1)

    def camera_info(self, stamp_ns: int) -> Any:
        width, height = self.sequence.image_size
        region = self.types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self.types[CAMERA_INFO](
            header=compose.header(stamp_ns, self.frame_id), height=height, width=width, distortion_model="plumb_bob",
            d=np.zeros(5), k=self.sequence.projection[:, :3].reshape(-1), r=np.eye(3).reshape(-1),
            p=self.sequence.projection.reshape(-1), binning_x=0, binning_y=0, roi=region,
        )  # fmt: skip

    def depth(self, index: int, stamp_ns: int) -> Any:
        """16UC1, millimetres, 0 = none."""
        millimetres = np.rint(1000 * self.sequence.depth(index)).astype(np.uint16)
        return compose.image(stamp_ns, self.frame_id, "16UC1", millimetres)

    def pose(self, index: int, stamp_ns: int) -> Any:
        assert self.sequence.poses is not None
        return compose.pose_stamped(stamp_ns, self.world, self.sequence.poses[index])


def write_bag(
    sequence: ImageSequence,
    output: Path,
    times: np.ndarray,
    image_topic: str = "/camera/image_raw",
    camera_info_topic: str = "/camera/camera_info",
    ground_truth_topic: str = "/ground_truth/pose",
    frame_id: str = "camera",
    world_frame_id: str = "world",
    encoding: str = "auto",
    form: str = "raw",
    start: float = 0.0,
    limit: int | None = None,
    ground_truth: bool = True,
    depth_topic: str | None = None,
    overwrite: bool = False,
) -> Iterator[int]:
    """Write the bag folder `output`, yielding the index of every frame that is written.

    Args:
        times: (N,) seconds of the frames.
        encoding: of raw images: auto (mono8 for grey files, bgr8 for colour), mono8, bgr8 or rgb8.
        form: raw, or jpeg or png for CompressedImage on `image_topic`/compressed.
        start: seconds added to all times.
        limit: write only that many frames.
        ground_truth: write the poses, where there are any.
        depth_topic: write the depth images there; None = not at all.
        overwrite: replace a folder that is there, when the new one is whole.

    Raises:
        FileError: an image is unreadable or of another size, or the bag cannot be written. All is as before then.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    store = typestore()
    messages = _Messages(store, sequence, frame_id, world_frame_id, encoding, form)
    transport = "raw" if form == "raw" else "compressed"
    topics = {transport_topic(image_topic, transport): TRANSPORTS[transport], camera_info_topic: CAMERA_INFO}
    with_poses = ground_truth and sequence.poses is not None
    if with_poses:
        topics[ground_truth_topic] = compose.POSE_STAMPED
    if depth_topic:
        topics[depth_topic] = IMAGE
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
            for index, time in enumerate(times[:limit]):
                stamp = round((float(time) + start) * NS_PER_S)
                batch = [messages.image(index, stamp), messages.camera_info(stamp)]
                if with_poses:
                    batch.append(messages.pose(index, stamp))
                if depth_topic:
                    batch.append(messages.depth(index, stamp))
                # CameraInfo and pose first: a reader that has the image has what belongs to it
                for connection, message in reversed(list(zip(connections, batch))):
                    writer.write(connection, stamp, store.serialize_cdr(message, connection.msgtype))
                yield index
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        (unfinished / output.name).rename(output)
    except OSError as error:
        raise FileError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def sequence_to_bag(
    folder: Path = typer.Argument(..., help="Folder with image/, calib.txt and, optionally, poses.txt and times.txt."),
    output: Path = typer.Argument(..., help="Bag folder to write."),
    image_topic: str = typer.Option("/camera/image_raw", help="Topic of the images."),
    camera_info_topic: str = typer.Option("/camera/camera_info", help="Topic of the calibration."),
    ground_truth_topic: str = typer.Option("/ground_truth/pose", help="Topic of the poses."),
    ground_truth: bool = typer.Option(True, help="Write the poses, where there is a poses.txt."),
    depth: bool = typer.Option(False, help="Write the depth images, from the folder depth/."),
    depth_topic: str = typer.Option("/camera/depth/image_raw", help="Topic of the depth images."),
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
    with errors_in_one_line("sequence_to_bag"):
        if encoding not in ENCODINGS:
            raise UsageError(f"--encoding {encoding}: expected one of {', '.join(ENCODINGS)}")
        if compress not in FORMATS:
            raise UsageError(f"--format {compress}: expected one of {', '.join(FORMATS)}")
        if output.exists() and not (overwrite and (output / "metadata.yaml").is_file()):
            raise FileError(f"{output}: exists already; --overwrite replaces a bag")
        sequence = ImageSequence.read(folder, require=("depth",) if depth else ())
        times = frame_times(sequence, rate)
        frames = write_bag(
            sequence, output, times, image_topic, camera_info_topic, ground_truth_topic, frame_id, world_frame_id,
            encoding, compress, start, limit, ground_truth, depth_topic if depth else None, overwrite,
        )  # fmt: skip
        total = min(len(sequence), limit or len(sequence))
        for _ in progress(frames, output.name, "frame", total=total):
            pass
        typer.echo(f"{output}: {total} frames of {sequence.image_size[0]}x{sequence.image_size[1]}")


def main() -> None:
    """Console entry."""
    app(prog_name="sequence_to_bag")


if __name__ == "__main__":
    main()
