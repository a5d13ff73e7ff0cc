"""Ground truth of a recording: readers, association in time, extrinsics."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from samfeat_ros.replay.bags import Bag, BagError
from samfeat_ros.replay.evaluation.ground_truth import (
    GroundTruth,
    GroundTruthError,
    parse_extrinsics,
    pose_matrix,
    read_ground_truth,
)

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
START = 1_700_000_000_000_000_000
HALF = np.sqrt(0.5)


def _stamped(kind: str, index: int):
    stamp = TYPES["builtin_interfaces/msg/Time"](*divmod(START + index * 100_000_000, 10**9))
    header = TYPES["std_msgs/msg/Header"](stamp, "world")
    numbers = (float(index), 2.0, 3.0)
    turn = TYPES["geometry_msgs/msg/Quaternion"](0.0, 0.0, HALF, HALF)  # 90 degrees about z
    if kind == "TransformStamped":
        transform = TYPES["geometry_msgs/msg/Transform"](TYPES["geometry_msgs/msg/Vector3"](*numbers), turn)
        return TYPES["geometry_msgs/msg/TransformStamped"](header, "camera", transform)
    pose = TYPES["geometry_msgs/msg/Pose"](TYPES["geometry_msgs/msg/Point"](*numbers), turn)
    if kind == "PoseStamped":
        return TYPES["geometry_msgs/msg/PoseStamped"](header, pose)
    with_covariance = TYPES["geometry_msgs/msg/PoseWithCovariance"](pose, np.zeros(36))
    if kind == "PoseWithCovarianceStamped":
        return TYPES["geometry_msgs/msg/PoseWithCovarianceStamped"](header, with_covariance)
    zero = TYPES["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    twist = TYPES["geometry_msgs/msg/TwistWithCovariance"](TYPES["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36))
    return TYPES["nav_msgs/msg/Odometry"](header, "camera", with_covariance, twist)


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Bag:
    path = tmp_path_factory.mktemp("truth") / "bag"
    kinds = {
        "PoseStamped": "geometry_msgs/msg/PoseStamped",
        "PoseWithCovarianceStamped": "geometry_msgs/msg/PoseWithCovarianceStamped",
        "TransformStamped": "geometry_msgs/msg/TransformStamped",
        "Odometry": "nav_msgs/msg/Odometry",
    }
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for name, kind in kinds.items():
            connection = writer.add_connection(f"/{name}", kind, typestore=STORE)
            for index in range(5):
                data = STORE.serialize_cdr(_stamped(name, index), kind)
                writer.write(connection, START + index * 100_000_000, data)
    return Bag(path)


@pytest.mark.parametrize("kind", ["PoseStamped", "PoseWithCovarianceStamped", "TransformStamped", "Odometry"])
def test_topics(bag, kind):
    truth = read_ground_truth(f"/{kind}", bag, 5)
    assert list(truth.stamps_ns) == [START + i * 100_000_000 for i in range(5)]
    np.testing.assert_allclose(truth.poses[3, :3, 3], [3, 2, 3])
    np.testing.assert_allclose(truth.poses[3, :3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)


def test_unknown_source_lists_the_pose_topics(bag):
    with pytest.raises(BagError, match="no topic '/nope'.*PoseStamped.*no such file"):
        read_ground_truth("/nope", bag, 5)


def test_tum_file(bag, tmp_path):
    path = tmp_path / "truth.txt"
    path.write_text(f"# time x y z qx qy qz qw\n0.5 1 2 3 0 0 {HALF} {HALF}\n0.25 0 0 0 0 0 0 2\n")
    truth = read_ground_truth(str(path), bag, 5)
    assert list(truth.stamps_ns) == [250_000_000, 500_000_000]
    np.testing.assert_allclose(truth.poses[0], np.eye(4))
    np.testing.assert_allclose(truth.poses[1, :3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_kitti_file_goes_by_frame_number(bag, tmp_path):
    path = tmp_path / "poses.txt"
    path.write_text("1 0 0 7 0 1 0 8 0 0 1 9\n1 0 0 0 0 1 0 0 0 0 1 0\n")
    truth = read_ground_truth(str(path), bag, 2)
    poses = truth.at(np.array([123, 5, 6]), np.array([0, 1, 2]), 0.01)
    np.testing.assert_allclose(poses[0, :3, 3], [7, 8, 9])
    assert np.isnan(poses[2]).all()
    with pytest.raises(GroundTruthError, match="2 poses for 5 images"):
        read_ground_truth(str(path), bag, 5)
    with pytest.raises(GroundTruthError, match="2 poses for 1 images"):
        read_ground_truth(str(path), bag, 1)
    first = read_ground_truth(str(path), bag, 1, cut=True)  # of the first image alone
    assert len(first.poses) == 1
    np.testing.assert_allclose(first.poses[0, :3, 3], [7, 8, 9])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("hello\n", "not a TUM or KITTI"), ("1 2 3\n", "rows of \\[3\\] numbers"), ("", "rows of \\[\\] numbers"),
     ("1 nan 0 0 0 0 0 1\n", "no usable pose"), ("1 0 0 0 0 0 0 0\n", "no usable pose"),
     ("nan " * 12 + "\n", "not finite"), ("1 2 3 4 5 6 7 8\n1 2\n", "rows of \\[2, 8\\]")],
)  # fmt: skip
def test_wrong_files(bag, tmp_path, text, expected):
    path = tmp_path / "wrong.txt"
    path.write_text(text)
    with pytest.raises(GroundTruthError, match=expected) as error:
        read_ground_truth(str(path), bag, 1)
    assert str(path) in str(error.value)


def test_association_interpolates_and_keeps_to_the_tolerance():
    turned = pose_matrix(np.array([2.0, 0, 0]), np.array([0, 0, HALF, HALF]))
    truth = GroundTruth("made", np.array([0, 100_000_000, 900_000_000]), np.stack([np.eye(4), turned, np.eye(4)]))
    stamps = np.array([50_000_000, 105_000_000, 400_000_000, 910_000_000, 1_000_000_000])
    poses = truth.at(stamps, np.arange(5), tolerance_s=0.05)
    np.testing.assert_allclose(poses[0, :3, 3], [1, 0, 0])
    np.testing.assert_allclose(poses[0, :3, :3] @ [1, 0, 0], [HALF, HALF, 0], atol=1e-12)
    np.testing.assert_allclose(poses[1], turned)  # a gap too wide to interpolate: the nearest
    assert np.isnan(poses[2]).all() and np.isfinite(poses[3]).all() and np.isnan(poses[4]).all()


@pytest.mark.parametrize(("gap_ms", "found"), [(100, True), (101, False), (199, False)])
def test_poses_are_interpolated_over_twice_the_tolerance(gap_ms, found):
    """A frame in the middle of a wider gap has no pose within the tolerance, and none is made up for it."""
    truth = GroundTruth("made", np.array([0, gap_ms * 1_000_000]), np.stack([np.eye(4)] * 2))
    middle = np.array([gap_ms * 500_000])
    assert np.isfinite(truth.at(middle, np.zeros(1, int), tolerance_s=0.05)).all() == found


def test_extrinsics():
    np.testing.assert_allclose(
        parse_extrinsics("1 2 3 0 0 0 1"), pose_matrix(np.array([1.0, 2, 3]), np.array([0, 0, 0, 1.0]))
    )
    forward = parse_extrinsics("ros")[:3, :3] @ [0, 0, 1]  # the camera's z axis in the body
    np.testing.assert_allclose(forward, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(parse_extrinsics("ros")[:3, :3] @ [0, 1, 0], [0, 0, -1], atol=1e-12)
    for wrong in ("1 2 3", "a b c d e f g", "0 0 0 0 0 0 0"):
        with pytest.raises(GroundTruthError, match="expected 'x y z qx qy qz qw' or 'ros'"):
            parse_extrinsics(wrong)
