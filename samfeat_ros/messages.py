"""Features and matches to ROS messages, and back.

The `*_to_msg` functions are what the node publishes; the `*_from_msg` functions are public API for consumers. Layouts:

- `~/keypoints`, one row per point: x, y (pixels), z = 0, score: float32; id, length (of the track, in frames): uint32;
  trust: float32; source: uint8, 0 detected, 1 followed, 2 recovered (`samfeat_core.tracking.SOURCES`).
- `~/descriptors`, one row per keypoint: descriptor: float32[D].
- `~/matches`, one row per match: x, y, x_prev, y_prev, similarity: float32; index, index_prev, id: uint32;
  inlier: uint8; stamp_prev_sec, stamp_prev_nanosec, length: uint32; source: uint8, as those of the keypoint.
- `~/tracks`, one row per tracked keypoint: sensor_msgs/PointCloud as VINS-Fusion (9 channels) or VINS-Mono (5) reads.
- `~/annotations`: one visualization_msgs/ImageMarker of type POINTS, a point for each row of `~/keypoints`.

A descriptor row is the unit descriptor times its attention weight (`Features.matchable`): the dot product of two rows
is the similarity that the node matches by, the norm of a row is the weight, and normalising gives the unit row back.
"""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Point32
from sensor_msgs.msg import ChannelFloat32, CompressedImage, Image, PointCloud, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header

from samfeat_core.camera import Camera
from samfeat_core.features import Features, Matches
from samfeat_ros.stamps import join_ns, split_ns
from samfeat_ros.stamps import stamp_to_ns as stamp_to_ns  # part of this module for its users

KEYPOINT = np.dtype(
    [
        ("x", "f4"),
        ("y", "f4"),
        ("z", "f4"),
        ("score", "f4"),
        ("id", "u4"),
        ("length", "u4"),
        ("trust", "f4"),
        ("source", "u1"),
    ],
    align=True,
)
MATCH = np.dtype(
    [
        ("x", "f4"),
        ("y", "f4"),
        ("x_prev", "f4"),
        ("y_prev", "f4"),
        ("similarity", "f4"),
        ("index", "u4"),
        ("index_prev", "u4"),
        ("id", "u4"),
        ("inlier", "u1"),
        ("stamp_prev_sec", "u4"),
        ("stamp_prev_nanosec", "u4"),
        ("length", "u4"),
        ("source", "u1"),
    ],
    align=True,  # as a C++ struct has it
)

TRACKS_LAYOUTS = {
    # VINS-Fusion's reader takes channels 6..8 as ground truth as soon as there are more than 5.
    "fusion": ("id", "camera", "u", "v", "vx", "vy", "gx", "gy", "gz"),
    "mono": ("id", "u", "v", "vx", "vy"),
}

_DATATYPES = {
    PointField.INT8: "i1",
    PointField.UINT8: "u1",
    PointField.INT16: "i2",
    PointField.UINT16: "u2",
    PointField.INT32: "i4",
    PointField.UINT32: "u4",
    PointField.FLOAT32: "f4",
    PointField.FLOAT64: "f8",
}
_CODES = {np.dtype(code): datatype for datatype, code in _DATATYPES.items()}
_BIG_ENDIAN_HOST = sys.byteorder == "big"


class MessageError(ValueError):
    """A message does not have the layout that its topic promises."""


class Keypoints(NamedTuple):
    """Rows of `~/keypoints`.

    points (N, 2) float32 pixels; scores (N,) float32; ids (N,) uint32 of the tracks; lengths (N,) uint32 frames in
    which the track was seen; trust (N,) float32, see `Matches.trust`; sources (N,) uint8, see
    `samfeat_core.tracking.SOURCES`.
    """

    points: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    trust: np.ndarray
    sources: np.ndarray


@dataclass(frozen=True)
class MatchRows:
    """Rows of `~/matches`.

    points, points_prev (M, 2) float32 pixels in this frame and in the previous one; similarity (M,) float32; index,
    index_prev (M,) uint32 rows in this and in the previous `~/keypoints`; ids (M,) uint32; inlier (M,) bool;
    stamp_prev_ns: stamp of the previous frame in nanoseconds, None when there is no match; lengths (M,) uint32 and
    sources (M,) uint8 as in `Keypoints`.
    """

    points: np.ndarray
    points_prev: np.ndarray
    similarity: np.ndarray
    index: np.ndarray
    index_prev: np.ndarray
    ids: np.ndarray
    inlier: np.ndarray
    stamp_prev_ns: int | None
    lengths: np.ndarray
    sources: np.ndarray


class Tracks(NamedTuple):
    """Rows of `~/tracks`.

    ids (N,) int64; rays (N, 2) undistorted normalised; points (N, 2) pixels; velocities (N, 2) of the rays in 1/s.
    """

    ids: np.ndarray
    rays: np.ndarray
    points: np.ndarray
    velocities: np.ndarray


def ns_to_stamp(nanoseconds: int) -> Time:
    """Nanoseconds to builtin_interfaces/Time."""
    sec, nanosec = split_ns(nanoseconds)
    return Time(sec=sec, nanosec=nanosec)


def keypoints_to_msg(header: Header, features: Features, matches: Matches) -> PointCloud2:
    """`~/keypoints` of one frame, rows in the order of `features`."""
    rows = np.zeros(len(features), KEYPOINT)
    rows["x"], rows["y"] = features.keypoints.T
    rows["score"], rows["id"], rows["length"] = features.scores, matches.track_ids, matches.lengths
    rows["trust"], rows["source"] = matches.trust, matches.sources
    return _cloud(header, rows)


def descriptors_to_msg(header: Header, features: Features) -> PointCloud2:
    """`~/descriptors` of one frame: row i belongs to row i of `~/keypoints` with the same stamp."""
    rows = np.ascontiguousarray(features.matchable, np.float32)
    dim = rows.shape[1]
    field = PointField(name="descriptor", offset=0, datatype=PointField.FLOAT32, count=dim)
    return _fill(header, rows, [field], 4 * dim)


def matches_to_msg(
    header: Header, features: Features, features_prev: Features | None, matches: Matches, stamp_prev_ns: int | None
) -> PointCloud2:
    """`~/matches` of one frame to the one before (`features_prev` is None after a restart, then there are no rows)."""
    rows = np.zeros(len(matches), MATCH)
    if features_prev is not None and len(matches):
        rows["x"], rows["y"] = features.keypoints[matches.index].T
        rows["x_prev"], rows["y_prev"] = features_prev.keypoints[matches.index_prev].T
        rows["similarity"], rows["inlier"] = matches.similarity, matches.inlier
        rows["index"], rows["index_prev"] = matches.index, matches.index_prev
        rows["id"] = matches.track_ids[matches.index]
        rows["length"], rows["source"] = matches.lengths[matches.index], matches.sources[matches.index]
        sec, rows["stamp_prev_nanosec"] = split_ns(stamp_prev_ns or 0)
        rows["stamp_prev_sec"] = sec % 2**32  # a stamp has int32 seconds
    return _cloud(header, rows)


def tracks_to_msg(
    header: Header,
    ids: np.ndarray,
    rays: np.ndarray,
    points: np.ndarray,
    velocities: np.ndarray,
    layout: str = "fusion",
) -> PointCloud:
    """`~/tracks` in the layout that VINS back-ends read.

    Args:
        ids: (N,) track ids below 2**24, because they travel as float32.
        rays: (N, 2) undistorted normalised coordinates.
        points: (N, 2) pixels.
        velocities: (N, 2) velocity of the rays in 1/s.
        layout: "fusion" (9 channels) or "mono" (5 channels).
    """
    zeros = np.zeros(len(ids), np.float32)
    columns = {"id": ids, "u": points[:, 0], "v": points[:, 1], "vx": velocities[:, 0], "vy": velocities[:, 1]}
    return PointCloud(
        header=header,
        points=[Point32(x=x, y=y, z=1.0) for x, y in rays.tolist()],
        channels=[
            ChannelFloat32(name=name, values=_floats(columns.get(name, zeros))) for name in TRACKS_LAYOUTS[layout]
        ],
    )


def image_to_msg(header: Header, image: np.ndarray) -> Image:
    """(H, W) grey or (H, W, 3) BGR uint8 to sensor_msgs/Image."""
    height, width = image.shape[:2]
    encoding, step = ("mono8", width) if image.ndim == 2 else ("bgr8", 3 * width)
    msg = Image(header=header, height=height, width=width, encoding=encoding, step=step)
    msg.data.frombytes(image.tobytes())
    return msg


def image_to_compressed_msg(header: Header, image: np.ndarray, quality: int = 85) -> CompressedImage:
    """(H, W, 3) BGR uint8 to a JPEG, named as image_transport names it."""
    data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    msg = CompressedImage(header=header, format="bgr8; jpeg compressed bgr8")
    msg.data.frombytes(data.tobytes())
    return msg


def points_to_image_marker(header: Header, points: np.ndarray, colors: np.ndarray) -> Any:
    """Points that a viewer draws on the image of the same stamp.

    Args:
        points: (N, 2) pixels, the centre of the top-left pixel at (0, 0). In the message its corner is, as viewers
            have it.
        colors: (N, 3) BGR uint8.

    Returns:
        visualization_msgs/ImageMarker. Raises ImportError where that package is missing.
    """
    from visualization_msgs.msg import ImageMarker

    shades, which = np.unique(colors, axis=0, return_inverse=True)
    palette = [ColorRGBA(r=r / 255, g=g / 255, b=b / 255, a=1.0) for b, g, r in shades.tolist()]
    return ImageMarker(
        header=header,
        ns="samfeat",
        type=ImageMarker.POINTS,
        scale=3.0,
        points=[Point(x=x, y=y) for x, y in (points.astype(np.float64) + 0.5).tolist()],
        outline_colors=[palette[index] for index in which.ravel().tolist()],
    )


def keypoints_from_msg(msg: PointCloud2) -> Keypoints:
    """Arrays of a `~/keypoints` message. Raises MessageError for any other layout."""
    rows = _rows(msg, KEYPOINT)
    columns = (rows[name].copy() for name in ("score", "id", "length", "trust", "source"))
    return Keypoints(_pairs(rows, "x", "y"), *columns)


def descriptors_from_msg(msg: PointCloud2) -> np.ndarray:
    """(N, D) float32 descriptors of a `~/descriptors` message. Raises MessageError for any other layout."""
    counts = [field.count for field in msg.fields if field.name == "descriptor"]
    dim = counts[0] if counts else 1
    if not 0 < 4 * dim <= msg.point_step:
        raise MessageError(f"PointCloud2 has descriptors of {dim} float32 in points of {msg.point_step} bytes")
    return _rows(msg, np.dtype([("descriptor", "f4", (dim,))]))["descriptor"].reshape(-1, dim).copy()


def matches_from_msg(msg: PointCloud2) -> MatchRows:
    """Arrays of a `~/matches` message. Raises MessageError for any other layout."""
    rows = _rows(msg, MATCH)
    stamp_prev_ns = join_ns(rows["stamp_prev_sec"].view("i4")[0], rows["stamp_prev_nanosec"][0]) if len(rows) else None
    return MatchRows(
        _pairs(rows, "x", "y"),
        _pairs(rows, "x_prev", "y_prev"),
        rows["similarity"].copy(),
        rows["index"].copy(),
        rows["index_prev"].copy(),
        rows["id"].copy(),
        rows["inlier"].astype(bool),
        stamp_prev_ns,
        rows["length"].copy(),
        rows["source"].copy(),
    )


def tracks_from_msg(msg: PointCloud) -> Tracks:
    """Arrays of a `~/tracks` message of either layout. Raises MessageError for any other."""
    for names in TRACKS_LAYOUTS.values():
        if len(msg.channels) == len(names):
            channels = {name: np.array(channel.values, np.float64) for name, channel in zip(names, msg.channels)}
            break
    else:
        raise MessageError(f"tracks have {len(msg.channels)} channels, expected 9 (fusion) or 5 (mono)")
    if any(len(values) != len(msg.points) for values in channels.values()):
        raise MessageError(f"tracks have {len(msg.points)} points, but channels of another length")
    rays = np.array([(point.x, point.y) for point in msg.points], np.float64).reshape(-1, 2)
    return Tracks(channels["id"].astype(np.int64), rays, _pairs(channels, "u", "v"), _pairs(channels, "vx", "vy"))


def camera_from_msg(msg: Any, rectified: bool = False) -> Camera:
    """Intrinsics from a sensor_msgs/CameraInfo.

    Args:
        msg: the message; its region of interest and binning are applied, so that the camera is that of the image.
        rectified: the image is rectified already: take P, and no distortion.

    Raises:
        ValueError: the camera is not calibrated, or its distortion model is unknown.
    """
    matrix = (
        np.array(msg.p, np.float64).reshape(3, 4)[:, :3] if rectified else np.array(msg.k, np.float64).reshape(3, 3)
    )
    if not matrix[0, 0] > 0 or not matrix[1, 1] > 0:
        raise ValueError(f"CameraInfo {'P' if rectified else 'K'} has no focal length: the camera is not calibrated")
    matrix[:2, 2] -= msg.roi.x_offset, msg.roi.y_offset
    binning = np.array([max(msg.binning_x, 1), max(msg.binning_y, 1)], np.float64)
    # The centre of the top-left pixel is (0, 0), of which a bin covers half a pixel more on each side.
    matrix[:2, 2] = (matrix[:2, 2] + 0.5) / binning - 0.5
    matrix[:2, :2] /= binning[:, None]
    size = np.array([msg.roi.width or msg.width, msg.roi.height or msg.height]) // binning.astype(int)
    distortion = np.array([] if rectified else msg.d, np.float64)
    if not np.any(distortion) and msg.distortion_model != "equidistant":
        distortion = np.zeros(0)
    model = "plumb_bob" if rectified else _DISTORTION_MODELS.get(msg.distortion_model, msg.distortion_model)
    return Camera(matrix, distortion, int(size[0]), int(size[1]), model)


# Drivers leave the model empty where there is no distortion, and some say fisheye.
_DISTORTION_MODELS = {"": "plumb_bob", "none": "plumb_bob", "fisheye": "equidistant"}


def _floats(values: np.ndarray) -> array.array:
    """What a float32[] field holds; filling it this way skips the check of every element."""
    return array.array("f", np.ascontiguousarray(values, np.float32).tobytes())


def _cloud(header: Header, rows: np.ndarray) -> PointCloud2:
    """PointCloud2 of a structured array, one field per column."""
    fields = [
        PointField(name=name, offset=offset, datatype=_CODES[kind], count=1)
        for name, (kind, offset, *_) in (rows.dtype.fields or {}).items()
    ]
    return _fill(header, rows, fields, rows.dtype.itemsize)


def _fill(header: Header, rows: np.ndarray, fields: list, point_step: int) -> PointCloud2:
    msg = PointCloud2(
        header=header,
        height=1,
        width=len(rows),
        fields=fields,
        is_bigendian=_BIG_ENDIAN_HOST,
        point_step=point_step,
        row_step=point_step * len(rows),
        is_dense=True,
    )
    # Assigning the bytes is up to a thousand times slower: rclpy checks each one.
    msg.data.frombytes(rows.tobytes())
    return msg


def _rows(msg: PointCloud2, expected: np.dtype) -> np.ndarray:
    """(N,) structured array in the host's byte order with the columns of `expected`."""
    order: Literal["<", ">"] = ">" if msg.is_bigendian else "<"
    fields = {field.name: field for field in msg.fields}
    names = expected.names or ()
    formats: list[Any] = []
    offsets: list[int] = []
    for name in names:
        kind = expected[name].base
        dim = expected[name].shape
        field = fields.get(name)
        if field is None or _DATATYPES.get(field.datatype) != kind.str[1:] or field.count != (dim[0] if dim else 1):
            found = ", ".join(f"{f.name}:{_DATATYPES.get(f.datatype)}[{f.count}]" for f in msg.fields) or "none"
            raise MessageError(f"PointCloud2 lacks the field {name} of type {kind.str[1:]}; its fields: {found}")
        formats.append((kind.newbyteorder(order), dim) if dim else kind.newbyteorder(order))
        offsets.append(field.offset)
    count = msg.width * msg.height
    if msg.row_step != msg.width * msg.point_step or len(msg.data) != count * msg.point_step:
        raise MessageError(f"PointCloud2 has {len(msg.data)} bytes, expected {count} points of {msg.point_step} bytes")
    try:
        description: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": msg.point_step}
        layout = np.dtype(description)
    except ValueError as error:
        raise MessageError(f"PointCloud2 fields do not fit into a point of {msg.point_step} bytes: {error}") from error
    return np.frombuffer(msg.data, layout, count).astype(expected)


def _pairs(columns: Any, first: str, second: str) -> np.ndarray:
    """(N, 2) of two columns."""
    return np.column_stack([columns[first], columns[second]])
