"""ROS image messages to arrays: sensor_msgs/Image and CompressedImage to (H, W) grey or (H, W, 3) BGR uint8.

Every size is checked before a byte is converted, and whatever is wrong with a message ends in one `ImageError` with a
short `cause` that the node counts. Encodings outside the tables below go to cv_bridge where it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from samfeat_core.errors import one_line, quoted
from samfeat_ros.compressed_input import decode
from samfeat_ros.image_error import ImageError as ImageError  # part of this module for its users
from samfeat_ros.image_error import check_size

FULL_SCALE_16BIT = 65535


@dataclass(frozen=True)
class _Layout:
    """How one encoding lies in memory: interleaved channels of uint8 or uint16, and its way to grey or BGR."""

    channels: int
    bits: int = 8
    code: int | None = None  # cv2.cvtColor; None: nothing to do
    even_width: bool = False


_LAYOUTS = {
    "mono8": _Layout(1),
    "8UC1": _Layout(1),
    "bgr8": _Layout(3),
    "8UC3": _Layout(3),
    "rgb8": _Layout(3, code=cv2.COLOR_RGB2BGR),
    "bgra8": _Layout(4, code=cv2.COLOR_BGRA2BGR),
    "8UC4": _Layout(4, code=cv2.COLOR_BGRA2BGR),
    "rgba8": _Layout(4, code=cv2.COLOR_RGBA2BGR),
    "mono16": _Layout(1, 16),
    "16UC1": _Layout(1, 16),
    "bgr16": _Layout(3, 16),
    "16UC3": _Layout(3, 16),
    "rgb16": _Layout(3, 16, cv2.COLOR_RGB2BGR),
    "bgra16": _Layout(4, 16, cv2.COLOR_BGRA2BGR),
    "16UC4": _Layout(4, 16, cv2.COLOR_BGRA2BGR),
    "rgba16": _Layout(4, 16, cv2.COLOR_RGBA2BGR),
    # ROS calls UYVY "yuv422" (since Iron "uyvy") and YUYV "yuv422_yuy2" (since Iron "yuyv").
    "yuv422": _Layout(2, code=cv2.COLOR_YUV2BGR_UYVY, even_width=True),
    "uyvy": _Layout(2, code=cv2.COLOR_YUV2BGR_UYVY, even_width=True),
    "yuv422_yuy2": _Layout(2, code=cv2.COLOR_YUV2BGR_YUY2, even_width=True),
    "yuyv": _Layout(2, code=cv2.COLOR_YUV2BGR_YUY2, even_width=True),
}

# ROS names the mosaic by its first row and column, OpenCV by the pixels one further in.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2BGR,
    "bggr": cv2.COLOR_BayerRG2BGR,
    "gbrg": cv2.COLOR_BayerGR2BGR,
    "grbg": cv2.COLOR_BayerGB2BGR,
}
_LAYOUTS |= {f"bayer_{name}{bits}": _Layout(1, bits, code) for name, code in _BAYER.items() for bits in (8, 16)}

# A plane of luma, then interleaved chroma.
_PLANAR = {"nv12": cv2.COLOR_YUV2BGR_NV12, "nv21": cv2.COLOR_YUV2BGR_NV21, "nv24": cv2.COLOR_YUV2BGR_NV12}

ENCODINGS = (*_LAYOUTS, *_PLANAR)


def image_from_msg(msg: Any, full_scale_16bit: int = FULL_SCALE_16BIT) -> np.ndarray:
    """Pixels of a sensor_msgs/Image or CompressedImage, as rclpy or rosbags has it.

    Args:
        msg: the message; rows may be padded (`step` > row), 16-bit data may have either byte order.
            A CompressedImage goes to `image_from_compressed_msg`.
        full_scale_16bit: the 16-bit value that becomes 255; brighter ones saturate. Set it to 4095 for a 12-bit camera
            that leaves the high bits empty.

    Returns:
        (H, W) grey or (H, W, 3) BGR uint8. Grey and BGR of 8 bits are views of the message's own buffer.

    Raises:
        ImageError: the message contradicts itself, or its encoding is unknown here and to cv_bridge.
    """
    if hasattr(msg, "format"):
        return image_from_compressed_msg(msg, full_scale_16bit)
    encoding, width, height = msg.encoding, int(msg.width), int(msg.height)
    check_size(width, height, f"an image of encoding {quoted(encoding)}")
    buffer = _buffer(msg.data)
    try:
        if encoding in _LAYOUTS:
            return _interleaved(_LAYOUTS[encoding], msg, buffer, full_scale_16bit)
        if encoding in _PLANAR:
            return _planar(msg, buffer)
        return _by_cv_bridge(msg, buffer)
    except cv2.error as error:
        raise ImageError("convert", f"OpenCV cannot convert {width}x{height} {encoding}: {one_line(error)}") from error


def image_from_compressed_msg(msg: Any, full_scale_16bit: int = FULL_SCALE_16BIT) -> np.ndarray:
    """Pixels of a sensor_msgs/CompressedImage with JPEG or PNG inside, of 8 or 16 bits, grey or colour.

    The data tell which of the two they are; `format` ("jpeg", "bgr8; jpeg compressed bgr8", ...) only tells the colour
    order and a Bayer mosaic. EXIF orientation is ignored: the calibration belongs to the sensor's pixels.

    Args, Returns, Raises: as `image_from_msg`.
    """
    if "compressedDepth" in msg.format:
        raise ImageError("encoding", f"format {quoted(msg.format)} is a depth image; expected jpeg or png of a camera")
    return _decoded_to_bgr(decode(bytes(msg.data)), msg.format, full_scale_16bit)


def _buffer(data: Any) -> np.ndarray:
    """(n,) uint8 view of message data (array.array, bytes, or an ndarray)."""
    if isinstance(data, list):  # an empty sequence, or a hand-made message
        data = bytes(data)
    return np.frombuffer(data, np.uint8)


def _rows(msg: Any, buffer: np.ndarray, row_bytes: int, rows: int) -> np.ndarray:
    """(rows, row_bytes) uint8 view without row padding. Checks that step and length fit, which the callers rely on."""
    step = int(msg.step)
    if step < row_bytes:
        raise ImageError(
            "step", f"step is {step} bytes, but a row of {msg.width} {msg.encoding} pixels has {row_bytes}"
        )
    if len(buffer) != rows * step:
        raise ImageError(
            "length", f"{len(buffer)} bytes of data, but {rows} rows of {step} bytes are {rows * step} ({msg.encoding})"
        )
    return buffer.reshape(rows, step)[:, :row_bytes]


# Of depth images (REP 118): the type of a pixel, and metres in its unit.
_DEPTH = {"16UC1": ("u2", 1e-3), "mono16": ("u2", 1e-3), "32FC1": ("f4", 1.0)}


def depth_from_msg(msg: Any) -> np.ndarray:
    """Depth of a sensor_msgs/Image of encoding 16UC1 (millimetres) or 32FC1 (metres), as rclpy or rosbags has it.

    Returns:
        (H, W) float32 metres, 0 where there is none.

    Raises:
        ImageError: the message contradicts itself, or its encoding is another.
    """
    width, height = int(msg.width), int(msg.height)
    check_size(width, height, "a depth image")
    if msg.encoding not in _DEPTH:
        raise ImageError("encoding", f"encoding {quoted(msg.encoding)} of a depth image: expected {', '.join(_DEPTH)}")
    kind, unit = _DEPTH[msg.encoding]
    rows = _rows(msg, _buffer(msg.data), width * int(kind[1]), height)
    values = np.ascontiguousarray(rows).view(f"{'>' if msg.is_bigendian else '<'}{kind}")
    metres = values.astype(np.float32) * np.float32(unit)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def _interleaved(layout: _Layout, msg: Any, buffer: np.ndarray, full_scale: int) -> np.ndarray:
    pixel_bytes = layout.channels * layout.bits // 8
    rows = _rows(msg, buffer, msg.width * pixel_bytes, msg.height)
    if layout.even_width and msg.width % 2:
        raise ImageError("size", f"{msg.encoding} needs an even width, got {msg.width}")
    if layout.bits == 16:
        order = ">" if msg.is_bigendian else "<"
        rows = _to_8bit(np.ascontiguousarray(rows).view(f"{order}u2"), full_scale)
    image = rows if layout.channels == 1 else rows.reshape(int(msg.height), int(msg.width), layout.channels)
    image = np.ascontiguousarray(image)
    return image if layout.code is None else cv2.cvtColor(image, layout.code)


def _to_8bit(values: np.ndarray, full_scale: int) -> np.ndarray:
    """uint16 of either byte order to uint8: `full_scale` becomes 255, values above it saturate."""
    native = values.astype(np.uint16, copy=False)
    return cv2.convertScaleAbs(native, alpha=255.0 / full_scale).reshape(native.shape)


def _planar(msg: Any, buffer: np.ndarray) -> np.ndarray:
    """NV12, NV21 (chroma at half resolution) and NV24 (chroma at full resolution, halved here)."""
    width, height, encoding = int(msg.width), int(msg.height), msg.encoding
    if width % 2 or height % 2:
        raise ImageError("size", f"{encoding} needs an even width and height, got {width}x{height}")
    if encoding == "nv24":
        luma = _rows(msg, buffer, width, 3 * height)[:height]
        # One row of chroma fills two steps.
        chroma = buffer[height * msg.step :].reshape(height, 2 * msg.step)[::2, : 2 * width]
        rows = np.concatenate([luma, chroma.reshape(height // 2, width, 2)[:, ::2].reshape(height // 2, width)])
    elif int(msg.step) == width * 3 // 2 and len(buffer) == height * msg.step:
        # Some drivers spread the bytes of the chroma rows over `step`; the data are packed all the same.
        rows = buffer.reshape(height * 3 // 2, width)
    else:
        rows = _rows(msg, buffer, width, height * 3 // 2)
    return cv2.cvtColor(np.ascontiguousarray(rows), _PLANAR[encoding])


def _by_cv_bridge(msg: Any, buffer: np.ndarray) -> np.ndarray:
    if int(msg.step) <= 0 or len(buffer) != msg.height * msg.step:
        raise ImageError(
            "length", f"{len(buffer)} bytes of data, but {msg.height} rows of {msg.step} bytes ({quoted(msg.encoding)})"
        )
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise ImageError(
            "encoding",
            f"unknown encoding {quoted(msg.encoding)}, and cv_bridge is not installed; known: {', '.join(ENCODINGS)}",
        ) from None
    try:
        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(msg, "bgr8"))
    except Exception as error:  # cv_bridge raises what its parts raise: CvBridgeError, cv2.error, TypeError, ...
        raise ImageError(
            "encoding", f"cv_bridge cannot convert encoding {quoted(msg.encoding)}: {one_line(error)}"
        ) from error


def _decoded_to_bgr(image: np.ndarray, text: str, full_scale: int) -> np.ndarray:
    if image.dtype == np.uint16:
        image = _to_8bit(image, full_scale)
    if image.ndim == 2:
        mosaic = _BAYER.get(text.partition("compressed")[2].strip()[len("bayer_") :][:4])
        return image if mosaic is None else cv2.cvtColor(image, mosaic)
    if image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    # image_transport's "compressed rgb8" means that red and blue were swapped before compressing.
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if "compressed rgb" in text else image
