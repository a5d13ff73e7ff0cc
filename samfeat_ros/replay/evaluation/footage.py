"""The frames that are evaluated: the images of a recording that can be used, with their camera."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from samfeat_core.camera import Camera
from samfeat_core.errors import SamfeatError
from samfeat_ros.image_input import FULL_SCALE_16BIT, ImageError, image_from_msg
from samfeat_ros.messages import camera_from_msg
from samfeat_ros.replay.bags import Bag, BagError, BagMessage, decode
from samfeat_ros.replay.evaluation.calibration import read_calibration
from samfeat_ros.replay.evaluation.image_cache import ImageCache
from samfeat_ros.replay.recording import ImageMessage, Recording
from samfeat_ros.stamps import NS_PER_S, with_cdr_stamp
from samfeat_ros.topics import CAMERA_INFO

INFO_BEGIN = 12  # bytes of a CameraInfo's encapsulation and stamp; what comes after them is the same in each
LONGEST_PAUSE_NS = 10 * NS_PER_S  # longer gaps between recorded images are cut to this when they are played


class FootageError(SamfeatError):
    """Nothing of the recording can be evaluated. One line."""


@dataclass(frozen=True)
class Frame:
    """One usable image of the footage, without its pixels.

    Attributes:
        number: in the topic, 0 = first, refused images counted.
        stamp_ns: header stamp.
        time_ns: on the play's clock, 0 = start.
        size: (width, height).
    """

    number: int
    stamp_ns: int
    time_ns: int
    size: tuple[int, int]


class Footage:
    """A recording, looked through once: what is usable, at which times, by which camera. Close it after use.

    Args:
        recording: images and CameraInfo.
        camera_info: calibration file (YAML of camera_calibration) that replaces the CameraInfo of the bag.
        rectified: the images are rectified: take P of CameraInfo, and no distortion.
        on_frame: called after every image, for a progress bar.
        full_scale_16bit: white of 16-bit images, as the node's parameter.
        recorded: stamp frames by their time of recording, not by their header.

    Attributes:
        frames: usable images in order. refused: cause -> count of the others. total: images read.
        reached: images of the topic up to the last one that was read.
        cameras: frame number -> its intrinsics, where there is a usable CameraInfo.
        camera: the first of them, None without any.
        problems: one line for each thing that a reader of the report should know.

    Raises:
        FootageError: no image can be used. FileError: the calibration file is wrong.
    """

    def __init__(
        self,
        recording: Recording,
        camera_info: Path | None = None,
        rectified: bool = False,
        on_frame: Callable[[], None] = lambda: None,
        full_scale_16bit: int = FULL_SCALE_16BIT,
        recorded: bool = False,
    ) -> None:
        self.recording = recording
        self._full_scale_16bit = full_scale_16bit
        self._recorded = recorded
        self._camera_info = None if camera_info is None else read_calibration(camera_info)
        self._last_checked: bytes | None = None
        self._decoded = ImageCache()
        self._notes: list[str] = []
        self.refused: Counter[str] = Counter()
        self.total = self.reached = 0
        self.cameras: dict[int, Camera] = {}
        self._infos: list[tuple[bytes | None, Camera | None]] = []  # CameraInfos one after another, without repetition
        self.frames = self._look_through(rectified, on_frame)
        if not self.frames:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.refused.items()) or "none could be read"
            raise FootageError(f"{recording.bag.path}: no image of {recording.image_topic} can be used ({causes})")
        self.camera = next(iter(self.cameras.values()), None)
        self._note_oddities()

    def close(self) -> None:
        """Close the recording and drop the decoded images."""
        self._decoded.close()
        self.recording.close()

    @property
    def bag(self) -> Bag:
        return self.recording.bag

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys([*self.bag.problems, *self._notes]))

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.frames[-1].time_ns - self.frames[0].time_ns) * 1e-9

    def camera_of(self, frame: Frame) -> Camera | None:
        """The camera of a frame: of the last CameraInfo before it, if that is usable and of its size (or says none)."""
        return self.cameras.get(frame.number)

    def messages(self) -> Iterator[tuple[Frame, ImageMessage]]:
        """The usable frames as messages, to be played; each call reads the bag again."""
        usable = {frame.number: frame for frame in self.frames}
        for message in self.recording.messages():
            if frame := usable.get(message.number):
                image = message.image
                if message.stamp_ns != frame.stamp_ns:
                    image = with_cdr_stamp(image, frame.stamp_ns)
                info = self._camera_info or self._checked(message.camera_info)
                yield frame, ImageMessage(frame.stamp_ns, frame.time_ns, image, info, frame.number)

    def images(self, numbers: Collection[int] | None = None) -> Iterator[tuple[Frame, np.ndarray]]:
        """The usable frames (of these numbers) as arrays, (H, W) grey or (H, W, 3) BGR uint8, read-only.

        Each image has been decoded before and is read from the cache; what did not fit there is decoded again.
        """
        chosen = [
            (index, frame) for index, frame in enumerate(self.frames) if numbers is None or frame.number in numbers
        ]
        kept = len(self._decoded)
        for index, frame in chosen:
            if index < kept:
                yield frame, self._decoded[index]
        if later := {frame.number for index, frame in chosen if index >= kept}:
            for frame, message in self.messages():
                if frame.number in later:
                    yield frame, self._decode(message)

    def _decode(self, message: ImageMessage) -> np.ndarray:
        topic, kind = self.recording.image_topic, self.recording.image_type
        return image_from_msg(decode(BagMessage(topic, kind, message.time_ns, message.image)), self._full_scale_16bit)

    def _checked(self, camera_info: bytes | None) -> bytes | None:
        """The CameraInfo if it can be decoded: a middleware that meets a broken message may end the node."""
        if camera_info is None or camera_info is self._last_checked:
            return camera_info
        try:
            decode(BagMessage("camera_info", CAMERA_INFO, 0, camera_info))
        except BagError:
            return self._last_checked
        self._last_checked = camera_info
        return camera_info

    def _look_through(self, rectified: bool, on_frame: Callable[[], None]) -> list[Frame]:
        found: list[Frame] = []
        clock, last_ns, cut = 0, None, 0
        for message in self.recording.messages():
            self.total += 1
            self.reached = message.number + 1
            on_frame()
            try:
                image = self._decode(message)
            except ImageError as error:
                self.refused[error.cause] += 1
                continue
            except BagError:
                self.refused["message"] += 1
                continue
            self._decoded.append(image)
            pause = 0 if last_ns is None else message.time_ns - last_ns
            cut += not 0 <= pause <= LONGEST_PAUSE_NS
            clock += min(max(pause, 0), LONGEST_PAUSE_NS)
            last_ns = message.time_ns
            height, width = image.shape[:2]
            stamp = message.time_ns if self._recorded else message.stamp_ns
            found.append(Frame(message.number, stamp, clock, (width, height)))
            camera = self._camera_of_info(self._camera_info or self._checked(message.camera_info), rectified)
            if camera and (not camera.width or (camera.width, camera.height) == (width, height)):
                self.cameras[message.number] = camera
        if cut:
            self._notes.append(f"{cut} times the recording pauses for more than 10 s or goes back: played without that")
        return self._with_unique_stamps(found)

    def _with_unique_stamps(self, found: list[Frame]) -> list[Frame]:
        """Outputs are told apart by their stamps: where these repeat, frames get the time on the play's clock."""
        if len({frame.stamp_ns for frame in found}) == len(found):
            return found
        self._notes.append("header stamps repeat: frames are stamped by their time of recording instead")
        stamps = [NS_PER_S + frame.time_ns + index for index, frame in enumerate(found)]
        return [replace(frame, stamp_ns=stamp) for frame, stamp in zip(found, stamps)]

    def _camera_of_info(self, data: bytes | None, rectified: bool) -> Camera | None:
        """The camera of a CameraInfo, the same object while nothing changes; None where it is not usable."""
        content = None if data is None else data[INFO_BEGIN:]
        if self._infos and self._infos[-1][0] == content:
            return self._infos[-1][1]
        camera = None
        if data is not None:
            try:
                camera = camera_from_msg(decode(BagMessage("camera_info", CAMERA_INFO, 0, data)), rectified)
            except (BagError, ValueError) as error:
                self._notes.append(f"CameraInfo is not used: {error}")
        self._infos.append((content, camera))
        return camera

    def _note_oddities(self) -> None:
        stamps = [frame.stamp_ns for frame in self.frames]
        if backward := sum(later < earlier for earlier, later in pairwise(stamps)):
            self._notes.append(f"the stamps of the images go back {backward} times: tracks restart there")
        if self.refused:
            causes = ", ".join(f"{count} for {cause}" for cause, count in sorted(self.refused.items()))
            self._notes.append(f"{sum(self.refused.values())} of {self.total} images are refused: {causes}")
        sizes = Counter(frame.size for frame in self.frames)
        if len(sizes) > 1:
            parts = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.items())
            self._notes.append(f"frames of several sizes: {parts}; tracks restart where the size changes")
        self._note_cameras()

    def _note_cameras(self) -> None:
        known = [camera for _, camera in self._infos if camera]
        if all(data is None for data, _ in self._infos):
            self._notes.append(
                "no CameraInfo (give --camera-info-topic or --camera-info): inliers are of the fundamental matrix, "
                "and there are no metrics under ground truth"
            )
        elif known and not self.cameras:
            size = f"{known[0].width}x{known[0].height}"
            self._notes.append(f"CameraInfo is for {size}, which is the size of no image: it is not used")
        elif len(self._infos) > 1:
            self._notes.append(
                f"CameraInfo changes {len(self._infos) - 1} times: each is used from there on; "
                f"{len(self.frames) - len(self.cameras)} frames have none that is usable"
            )
