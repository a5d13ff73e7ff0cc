"""The frames that are evaluated: the images of a recording that can be used, with their camera."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from samfeat_core.camera import Camera
from samfeat_core.errors import SamfeatError
from samfeat_ros.image_input import FULL_SCALE_16BIT, ImageError, image_from_compressed_msg, image_from_msg
from samfeat_ros.messages import camera_from_msg
from samfeat_ros.replay.bags import Bag, BagError, BagMessage, decode, typestore
from samfeat_ros.replay.playback import CAMERA_INFO_TYPE, IMAGE_TOPIC, Frame, Recording

LONGEST_PAUSE_NS = 10_000_000_000  # longer gaps between recorded images are cut to this when they are played


class FootageError(SamfeatError):
    """Nothing of the recording can be evaluated. One line."""


@dataclass(frozen=True)
class FrameInfo:
    """One usable image: number in the topic (0 = first), header stamp, time on the play's clock (0 = start), size."""

    number: int
    stamp_ns: int
    time_ns: int
    size: tuple[int, int]


class Footage:
    """A recording, looked through once: what is usable, at which times, by which camera.

    Args:
        recording: images and CameraInfo.
        camera_info: calibration file (YAML of camera_calibration) that replaces the CameraInfo of the bag.
        rectified: the images are rectified: take P of CameraInfo, and no distortion.
        on_frame: called after every image, for a progress bar.
        full_scale_16bit: white of 16-bit images, as the node's parameter.

    Attributes:
        frames: usable images in order. refused: cause -> count of the others.
        camera: intrinsics, None where there is no usable CameraInfo.
        problems: one line for each thing that a reader of the report should know.

    Raises:
        FootageError: no image can be used, or the calibration file is wrong.
    """

    def __init__(
        self,
        recording: Recording,
        camera_info: Path | None = None,
        rectified: bool = False,
        on_frame: Callable[[], None] = lambda: None,
        full_scale_16bit: int = FULL_SCALE_16BIT,
    ) -> None:
        self.recording = recording
        self._full_scale_16bit = full_scale_16bit
        self._camera_info = None if camera_info is None else read_calibration(camera_info)
        self._last_checked: bytes | None = None
        self._notes: list[str] = []
        self.refused: Counter[str] = Counter()
        self.total = 0
        self.frames = self._look_through(on_frame)
        if not self.frames:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.refused.items()) or "none could be read"
            raise FootageError(f"{recording.bag.path}: no image of {recording.image_topic} can be used ({causes})")
        self.camera = self._find_camera(rectified)
        self._note_oddities()

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

    def camera_of(self, size: tuple[int, int]) -> Camera | None:
        """The camera if it is of images of that size (or does not say)."""
        if self.camera and self.camera.width and (self.camera.width, self.camera.height) != size:
            return None
        return self.camera

    def messages(self) -> Iterator[tuple[FrameInfo, Frame]]:
        """The usable frames as messages, to be played."""
        usable = {frame.number: frame for frame in self.frames}
        for number, frame in enumerate(self.recording.frames()):
            if info := usable.get(number):
                camera_info = self._camera_info or self._checked(frame.camera_info)
                image = frame.image if frame.stamp_ns == info.stamp_ns else _restamped(frame.image, info.stamp_ns)
                yield (
                    info,
                    replace(frame, stamp_ns=info.stamp_ns, time_ns=info.time_ns, image=image, camera_info=camera_info),
                )

    def images(self) -> Iterator[tuple[FrameInfo, np.ndarray]]:
        """The usable frames as arrays, (H, W) grey or (H, W, 3) BGR uint8."""
        for info, frame in self.messages():
            yield info, self._decode(frame)

    def _decode(self, frame: Frame) -> np.ndarray:
        message = decode(BagMessage(IMAGE_TOPIC, self.recording.image_type, frame.time_ns, frame.image))
        convert = image_from_msg
        if self.recording.image_type.endswith("CompressedImage"):
            convert = image_from_compressed_msg
        return convert(message, self._full_scale_16bit)

    def _checked(self, camera_info: bytes | None) -> bytes | None:
        """The CameraInfo if it can be decoded: a middleware that meets a broken message may end the node."""
        if camera_info is None or camera_info is self._last_checked:
            return camera_info
        try:
            decode(BagMessage("camera_info", CAMERA_INFO_TYPE, 0, camera_info))
        except BagError:
            return self._last_checked
        self._last_checked = camera_info
        return camera_info

    def _look_through(self, on_frame: Callable[[], None]) -> list[FrameInfo]:
        found: list[FrameInfo] = []
        clock, last_ns, cut = 0, None, 0
        for number, frame in enumerate(self.recording.frames()):
            self.total += 1
            on_frame()
            try:
                height, width = self._decode(frame).shape[:2]
            except ImageError as error:
                self.refused[error.cause] += 1
                continue
            except BagError:
                self.refused["message"] += 1
                continue
            pause = 0 if last_ns is None else frame.time_ns - last_ns
            cut += not 0 <= pause <= LONGEST_PAUSE_NS
            clock += min(max(pause, 0), LONGEST_PAUSE_NS)
            last_ns = frame.time_ns
            found.append(FrameInfo(number, frame.stamp_ns, clock, (width, height)))
        if cut:
            self._notes.append(f"{cut} times the recording pauses for more than 10 s or goes back: played without that")
        return self._with_unique_stamps(found)

    def _with_unique_stamps(self, found: list[FrameInfo]) -> list[FrameInfo]:
        """Answers are told apart by their stamps: where these repeat, frames get the time on the play's clock."""
        if len({frame.stamp_ns for frame in found}) == len(found):
            return found
        self._notes.append("header stamps repeat: frames are stamped by their time of recording instead")
        second = 1_000_000_000
        stamps = [second + frame.time_ns + index for index, frame in enumerate(found)]
        return [replace(frame, stamp_ns=stamp) for frame, stamp in zip(found, stamps)]

    def _find_camera(self, rectified: bool) -> Camera | None:
        data = self._camera_info
        if data is None:
            data = next((frame.camera_info for _, frame in self.messages()), None)
        if data is None:
            self._notes.append(
                "no CameraInfo (give --camera-info-topic or --camera-info): inliers are of the fundamental matrix, "
                "and there are no metrics under ground truth"
            )
            return None
        try:
            return camera_from_msg(decode(BagMessage("camera_info", CAMERA_INFO_TYPE, 0, data)), rectified)
        except (BagError, ValueError) as error:
            self._notes.append(f"CameraInfo is not used: {error}")
            return None

    def _note_oddities(self) -> None:
        if self.refused:
            causes = ", ".join(f"{count} for {cause}" for cause, count in sorted(self.refused.items()))
            self._notes.append(f"{sum(self.refused.values())} of {self.total} images are refused: {causes}")
        sizes = Counter(frame.size for frame in self.frames)
        if len(sizes) > 1:
            parts = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.items())
            self._notes.append(f"frames of several sizes: {parts}; tracks restart where the size changes")
        if self.camera and not any(self.camera_of(size) for size in sizes):
            size = f"{self.camera.width}x{self.camera.height}"
            self._notes.append(f"CameraInfo is for {size}, which is the size of no image: it is not used")
            self.camera = None


def read_calibration(path: Path) -> bytes:
    """A calibration file as camera_calibration writes it, as the CDR bytes of a CameraInfo.

    Raises:
        FootageError: the file is missing or not such a file; the line says which key.
    """
    types = typestore().types
    try:
        content = yaml.safe_load(path.read_text())
        width, height = int(content["image_width"]), int(content["image_height"])
        k = _numbers(content, "camera_matrix", 9)
        d = _numbers(content, "distortion_coefficients", None)
        model = str(content.get("distortion_model", "plumb_bob"))
        r = _numbers(content, "rectification_matrix", 9) if "rectification_matrix" in content else np.eye(3).ravel()
        default_p = np.column_stack([k.reshape(3, 3), np.zeros(3)]).ravel()
        p = _numbers(content, "projection_matrix", 12) if "projection_matrix" in content else default_p
    except OSError as error:
        raise FootageError(f"{path}: {error.strerror or error}") from error
    except KeyError as error:
        raise FootageError(f"{path}: key {error} is missing; expected a file of camera_calibration") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise FootageError(
            f"{path}: not a file of camera_calibration ({' '.join(str(error).split())[:160]})"
        ) from error
    header: Any = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](0, 0), "")
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    info = types[CAMERA_INFO_TYPE](header, height, width, model, d, k, r, p, 0, 0, roi)
    return bytes(typestore().serialize_cdr(info, CAMERA_INFO_TYPE))


def _numbers(content: dict[str, Any], key: str, count: int | None) -> np.ndarray:
    values = np.array(content[key]["data"], np.float64).ravel()
    if count is not None and len(values) != count:
        raise ValueError(f"{key} has {len(values)} numbers, expected {count}")
    return values


def _restamped(cdr: bytes, stamp_ns: int) -> bytes:
    """The message with another header stamp (bytes 4 to 12 of CDR)."""
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return cdr[:4] + struct.pack("<iI" if cdr[1] & 1 else ">iI", sec, nanosec) + cdr[12:]
