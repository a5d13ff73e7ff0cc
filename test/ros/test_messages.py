"""Features and matches to messages and back, through the serialised form that travels."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import CameraInfo, PointCloud, PointCloud2, PointField, RegionOfInterest  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from samfeat_core.features import Features, Matches  # noqa: E402
from samfeat_ros import messages  # noqa: E402
from samfeat_ros.image_input import image_from_msg  # noqa: E402

STAMP_NS = 12_345_678_901_234_567
HEADER = Header(stamp=messages.ns_to_stamp(STAMP_NS), frame_id="camera_optical")
RNG = np.random.default_rng(1)


def features(count: int = 7, dim: int = 64, weights: bool = False) -> Features:
    rows = RNG.normal(size=(count, dim)).astype(np.float32)
    return Features(
        keypoints=RNG.uniform(0, 640, (count, 2)).astype(np.float32),
        scores=np.sort(RNG.uniform(0, 1, count).astype(np.float32))[::-1],
        descriptors=rows / np.linalg.norm(rows, axis=1, keepdims=True),
        image_size=(640, 480),
        weights=RNG.uniform(0.1, 2, count).astype(np.float32) if weights else None,
    )


def travel(msg):
    """What a subscriber gets."""
    return deserialize_message(serialize_message(msg), type(msg))


def test_stamps():
    assert messages.stamp_to_ns(messages.ns_to_stamp(STAMP_NS)) == STAMP_NS


@pytest.mark.parametrize("count", [0, 1, 1024])
def test_keypoints(count):
    sent = features(count)
    ids = np.arange(count) + 2**24 - 1 - count
    tracks = Matches(
        *[np.zeros(0, int)] * 3, np.zeros(0, bool), ids, False, np.arange(count) + 1,
        np.arange(count, dtype=np.uint8) % 3, np.linspace(-1, 1, count, dtype=np.float32),
    )  # fmt: skip
    msg = travel(messages.keypoints_to_msg(HEADER, sent, tracks))
    assert msg.header == HEADER
    assert [(field.name, field.datatype) for field in msg.fields] == [
        *((name, PointField.FLOAT32) for name in ("x", "y", "z", "score")),
        ("id", PointField.UINT32),
        ("length", PointField.UINT32),
        ("trust", PointField.FLOAT32),
        ("source", PointField.UINT8),
    ]
    got = messages.keypoints_from_msg(msg)
    np.testing.assert_array_equal(got.lengths, tracks.lengths)
    np.testing.assert_array_equal(got.trust, tracks.trust)
    np.testing.assert_array_equal(got.sources, tracks.sources)
    np.testing.assert_array_equal(got.points, sent.keypoints)
    np.testing.assert_array_equal(got.scores, sent.scores)
    np.testing.assert_array_equal(got.ids, ids)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("count", [0, 1, 1024])
def test_descriptors(count, dim):
    sent = features(count, dim)
    msg = travel(messages.descriptors_to_msg(HEADER, sent))
    assert [(field.name, field.datatype, field.count) for field in msg.fields] == [
        ("descriptor", PointField.FLOAT32, dim)
    ]
    np.testing.assert_array_equal(messages.descriptors_from_msg(msg), sent.descriptors)


def test_the_norm_of_a_descriptor_row_is_its_weight():
    sent = features(5, weights=True)
    rows = messages.descriptors_from_msg(travel(messages.descriptors_to_msg(HEADER, sent)))
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms, sent.weights, rtol=1e-5)
    np.testing.assert_allclose(rows / norms[:, None], sent.descriptors, atol=1e-6)


def match_rows(count: int, prev: int, matched: int) -> Matches:
    return Matches(
        index=RNG.permutation(count)[:matched],
        index_prev=RNG.permutation(prev)[:matched],
        similarity=RNG.uniform(0, 1, matched).astype(np.float32),
        inlier=RNG.random(matched) < 0.5,
        track_ids=RNG.permutation(2**24)[:count],
    )


def test_matches():
    now, before = features(20), features(30)
    matches = match_rows(20, 30, 15)
    msg = travel(messages.matches_to_msg(HEADER, now, before, matches, STAMP_NS - 33_000_000))
    got = messages.matches_from_msg(msg)
    np.testing.assert_array_equal(got.points, now.keypoints[matches.index])
    np.testing.assert_array_equal(got.points_prev, before.keypoints[matches.index_prev])
    np.testing.assert_array_equal(got.similarity, matches.similarity)
    np.testing.assert_array_equal(got.index, matches.index)
    np.testing.assert_array_equal(got.index_prev, matches.index_prev)
    np.testing.assert_array_equal(got.ids, matches.track_ids[matches.index])
    np.testing.assert_array_equal(got.inlier, matches.inlier)
    assert got.stamp_prev_ns == STAMP_NS - 33_000_000
    assert got.inlier.dtype == bool
    assert {"stamp_prev_sec", "stamp_prev_nanosec", "inlier"} <= {field.name for field in msg.fields}


@pytest.mark.parametrize("stamp_ns", [-1, -(2**31) * 10**9, (2**31 - 1) * 10**9 + 999_999_999])
def test_matches_know_every_stamp_of_the_frame_before(stamp_ns):
    matches = match_rows(20, 30, 15)
    msg = travel(messages.matches_to_msg(HEADER, features(20), features(30), matches, stamp_ns))
    assert messages.matches_from_msg(msg).stamp_prev_ns == stamp_ns


def test_matches_after_a_restart_are_empty():
    matches = match_rows(20, 30, 0)
    got = messages.matches_from_msg(travel(messages.matches_to_msg(HEADER, features(20), None, matches, None)))
    assert got.points.shape == (0, 2) and got.stamp_prev_ns is None


@pytest.mark.parametrize(("layout", "channels"), [("fusion", 9), ("mono", 5)])
@pytest.mark.parametrize("count", [0, 50])
def test_tracks(layout, channels, count):
    ids = np.arange(count) + 2**24 - 1 - count
    rays, velocities = RNG.normal(size=(2, count, 2))
    points = RNG.uniform(0, 640, (count, 2)).astype(np.float32)
    msg = travel(messages.tracks_to_msg(HEADER, ids, rays, points, velocities, layout))
    assert len(msg.channels) == channels
    assert all(len(channel.values) == count for channel in msg.channels)
    assert all(point.z == 1.0 for point in msg.points)
    got = messages.tracks_from_msg(msg)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.points, points)
    np.testing.assert_allclose(got.rays, rays, rtol=1e-6)
    np.testing.assert_allclose(got.velocities, velocities, rtol=1e-6)


def test_the_reader_of_vins_fusion_finds_what_it_indexes():
    """Its callback reads channels by number: id, camera, u, v, vx, vy, and 6 to 8 where there are more than 5."""
    msg = messages.tracks_to_msg(
        HEADER, np.array([42]), np.array([[0.1, 0.2]]), np.array([[320.0, 240.0]]), np.array([[1.0, 2.0]]), "fusion"
    )
    assert [channel.values[0] for channel in msg.channels] == [42, 0, 320, 240, 1, 2, 0, 0, 0]


def test_the_reader_of_vins_mono_finds_what_it_indexes():
    msg = messages.tracks_to_msg(
        HEADER, np.array([42]), np.array([[0.1, 0.2]]), np.array([[320.0, 240.0]]), np.array([[1.0, 2.0]]), "mono"
    )
    assert [channel.values[0] for channel in msg.channels] == [42, 320, 240, 1, 2]


def test_either_byte_order_and_foreign_offsets():
    names = ["source", "id", "length", "score", "trust", "z", "y", "x"]
    layout = np.dtype({"names": names, "formats": [">u1", *[">u4"] * 2, *[">f4"] * 5], "itemsize": 32})
    rows = np.zeros(3, layout)
    rows["x"], rows["id"], rows["score"] = [1.5, 2.5, 3.5], [7, 8, 9], 0.25
    kinds = {"f4": PointField.FLOAT32, "u4": PointField.UINT32, "u1": PointField.UINT8}
    msg = PointCloud2(height=1, width=3, point_step=32, row_step=96, is_bigendian=True)
    msg.fields = [
        PointField(name=name, offset=layout.fields[name][1], datatype=kinds[layout[name].str[1:]], count=1)
        for name in layout.names
    ]
    msg.data.frombytes(rows.tobytes())
    got = messages.keypoints_from_msg(travel(msg))
    np.testing.assert_array_equal(got.points[:, 0], [1.5, 2.5, 3.5])
    np.testing.assert_array_equal(got.ids, [7, 8, 9])


def test_foreign_clouds_are_refused():
    keypoints = messages.keypoints_to_msg(
        HEADER, features(3), Matches(*[np.zeros(0, int)] * 3, np.zeros(0, bool), np.arange(3))
    )
    with pytest.raises(messages.MessageError, match="lacks the field x_prev"):
        messages.matches_from_msg(keypoints)
    with pytest.raises(messages.MessageError, match="descriptor"):
        messages.descriptors_from_msg(keypoints)
    with pytest.raises(messages.MessageError, match="its fields: none"):
        messages.keypoints_from_msg(PointCloud2())
    descriptors = messages.descriptors_to_msg(HEADER, features(3))
    for count in (0, 65, 2**32 - 1):
        descriptors.fields[0].count = count
        with pytest.raises(messages.MessageError, match=f"descriptors of {count} float32 in points of 256 bytes"):
            messages.descriptors_from_msg(descriptors)
    keypoints.data = keypoints.data[:-1]
    with pytest.raises(messages.MessageError, match="95 bytes, expected 3 points of 32"):
        messages.keypoints_from_msg(keypoints)
    with pytest.raises(messages.MessageError, match="0 channels"):
        messages.tracks_from_msg(PointCloud())


def test_image():
    for image in (RNG.integers(0, 256, (4, 6), np.uint8), RNG.integers(0, 256, (4, 6, 3), np.uint8)):
        msg = messages.image_to_msg(HEADER, image)
        assert msg.encoding == ("mono8" if image.ndim == 2 else "bgr8")
        assert bytes(msg.data) == image.tobytes() and msg.step * msg.height == image.nbytes


def test_compressed_image():
    image = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    msg = travel(messages.image_to_compressed_msg(HEADER, image))
    assert msg.header == HEADER and msg.format == "bgr8; jpeg compressed bgr8"
    assert np.abs(image_from_msg(msg).astype(int) - image).max() <= 3


def test_image_marker():
    pytest.importorskip("visualization_msgs")
    points = np.array([[0, 0], [10.25, 20.5], [3, 4]], np.float32)
    colors = np.array([[255, 0, 0], [0, 0, 255], [255, 0, 0]], np.uint8)
    msg = travel(messages.points_to_image_marker(HEADER, points, colors))
    assert msg.header == HEADER and msg.type == msg.POINTS and msg.action == msg.ADD
    assert [(point.x, point.y) for point in msg.points] == [(0.5, 0.5), (10.75, 21.0), (3.5, 4.5)]
    assert [(c.r, c.g, c.b, c.a) for c in msg.outline_colors] == [(0, 0, 1, 1), (1, 0, 0, 1), (0, 0, 1, 1)]
    empty = travel(messages.points_to_image_marker(HEADER, points[:0], colors[:0]))
    assert not empty.points and not empty.outline_colors


def camera_info(**changes) -> CameraInfo:
    info = CameraInfo(
        width=640, height=480, distortion_model="plumb_bob", d=[0.1, -0.2, 0.001, 0.002, 0.0],
        k=[500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0],
        p=[400.0, 0.0, 300.0, 0.0, 0.0, 400.0, 200.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def test_camera():
    camera = messages.camera_from_msg(camera_info())
    assert (camera.width, camera.height, camera.model) == (640, 480, "plumb_bob")
    np.testing.assert_array_equal(camera.matrix, [[500, 0, 320], [0, 510, 240], [0, 0, 1]])
    np.testing.assert_array_equal(camera.distortion, [0.1, -0.2, 0.001, 0.002, 0.0])


def test_camera_of_rectified_images():
    camera = messages.camera_from_msg(camera_info(), rectified=True)
    np.testing.assert_array_equal(camera.matrix, [[400, 0, 300], [0, 400, 200], [0, 0, 1]])
    assert not np.any(camera.distortion)


def test_region_of_interest_and_binning_shift_the_camera():
    roi = RegionOfInterest(x_offset=100, y_offset=50, width=400, height=300)
    full, part = camera_info(d=[]), camera_info(d=[], roi=roi, binning_x=2, binning_y=2)
    camera = messages.camera_from_msg(part)
    assert (camera.width, camera.height) == (200, 150)
    # The bin (10, 20) covers the pixels 120, 121 x 90, 91 of the sensor; its centre is 120.5, 90.5.
    np.testing.assert_allclose(
        camera.normalize(np.array([[10.0, 20.0]])), messages.camera_from_msg(full).normalize(np.array([[120.5, 90.5]]))
    )


@pytest.mark.parametrize("model", ["", "none", "plumb_bob", "rational_polynomial"])
def test_no_distortion_under_any_name(model):
    info = camera_info(d=[0.0] * 5, distortion_model=model)
    np.testing.assert_allclose(messages.camera_from_msg(info).normalize(np.array([[820.0, 240.0]])), [[1.0, 0.0]])


def test_uncalibrated_and_unknown_cameras_are_refused():
    with pytest.raises(ValueError, match="not calibrated"):
        messages.camera_from_msg(CameraInfo(width=640, height=480))
    with pytest.raises(ValueError, match="kannala"):
        messages.camera_from_msg(camera_info(distortion_model="kannala"))
