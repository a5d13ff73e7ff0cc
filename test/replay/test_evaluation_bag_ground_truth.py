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
    [("hello\n", "not a TUM, EuRoC or KITTI"), ("1 2 3\n", "rows of \\[3\\] numbers"), ("", "rows of \\[\\] numbers"),
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


# ---- files in nanoseconds ----


def test_euroc_files_have_nanoseconds_and_w_first(bag, tmp_path):
    """Both kinds: the state estimate with 17 columns, and a motion capture's 8."""
    path = tmp_path / "data.csv"
    head = "#timestamp [ns], p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z []\n"
    for rest in ("", ",0,0,0,0,0,0,0,0,0"):
        rows = [f"{START + 1},1,2,3,{HALF},0,0,{HALF}{rest}", f"{START + 50_000_001},4,5,6,1,0,0,0{rest}"]
        path.write_text(head + "\n".join(rows))
        truth = read_ground_truth(str(path), bag, 5)
        assert list(truth.stamps_ns) == [START + 1, START + 50_000_001]  # exact: a float has steps of 256 ns there
        np.testing.assert_allclose(truth.poses[0, :3, 3], [1, 2, 3])
        np.testing.assert_allclose(truth.poses[0, :3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_tum_files_may_count_nanoseconds(bag, tmp_path):
    path = tmp_path / "tum.txt"
    path.write_text(f"{START + 7} 1 2 3 0 0 {HALF} {HALF}\n")
    truth = read_ground_truth(str(path), bag, 5)
    assert list(truth.stamps_ns) == [START + 7]
    np.testing.assert_allclose(truth.poses[0, :3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


# ---- what is wrong with it ----


def write_tum(path, rows) -> str:
    path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    return str(path)


def straight(count: int = 30) -> list[list[float]]:
    return [[0.1 * i, 0.2 * i, 0, 0, 0, 0, 0, 1] for i in range(count)]


def test_a_straight_path_has_no_problem(bag, tmp_path):
    assert read_ground_truth(write_tum(tmp_path / "tum.txt", straight()), bag, 5).problems == ()


def test_a_jump_is_said(bag, tmp_path):
    rows = straight()
    for row in rows[12:]:
        row[2] += 5.0
    (line,) = read_ground_truth(write_tum(tmp_path / "tum.txt", rows), bag, 5).problems
    assert "tum.txt: jumps by 5 m in 0.1 s at 1.200 s" in line
    rows = straight()
    for row in rows[20:]:
        row[6:8] = HALF, HALF
    (line,) = read_ground_truth(write_tum(tmp_path / "tum.txt", rows), bag, 5).problems
    assert "jumps by 90 degrees in 0.1 s at 2.000 s" in line


def test_a_robot_that_starts_and_stops_does_not_jump(bag, tmp_path):
    rng, rows, x = np.random.default_rng(0), [], 0.0
    for i in range(90):
        x += 0.1 * np.clip(min(i - 30, 60 - i) / 5, 0, 1)
        rows.append([0.1 * i, x + rng.normal(0, 0.001), rng.normal(0, 0.001), 0, 0, 0, 0, 1])
    assert read_ground_truth(write_tum(tmp_path / "tum.txt", rows), bag, 5).problems == ()


def test_poses_that_are_no_numbers_and_stamps_that_go_back_are_said(bag, tmp_path):
    rows = straight()
    rows[3][1] = rows[5][4] = float("nan")
    rows[8], rows[9] = rows[9], rows[8]
    truth = read_ground_truth(write_tum(tmp_path / "tum.txt", rows), bag, 5)
    assert len(truth.poses) == 28 and (np.diff(truth.stamps_ns) > 0).all()
    first, second = truth.problems
    assert "2 of 30 poses are not finite" in first and "the stamps go back 1 times" in second


# ---- /tf ----


def transform(parent: str, child: str, stamp_ns: int, shift, turn=(0.0, 0.0, 0.0, 1.0)):
    stamp = TYPES["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
    return TYPES["geometry_msgs/msg/TransformStamped"](
        TYPES["std_msgs/msg/Header"](stamp, parent),
        child,
        TYPES["geometry_msgs/msg/Transform"](
            TYPES["geometry_msgs/msg/Vector3"](*map(float, shift)), TYPES["geometry_msgs/msg/Quaternion"](*turn)
        ),
    )


@pytest.fixture(scope="module")
def tf_bag(tmp_path_factory) -> Bag:
    """map > odom at 5 Hz, odom > base at 10 Hz, each recorded 10 ms after its stamp; base > camera is static."""
    path = tmp_path_factory.mktemp("tf") / "bag"
    kind = "tf2_msgs/msg/TFMessage"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {name: writer.add_connection(name, kind, typestore=STORE) for name in ("/tf", "/tf_static")}

        def write(name: str, stamp_ns: int, *transforms) -> None:
            message = TYPES[kind](list(transforms))
            writer.write(topics[name], stamp_ns + 10_000_000, STORE.serialize_cdr(message, kind))

        write("/tf_static", START, transform("base", "camera", START, (0, 0, 1)))
        for index in range(11):
            stamp = START + index * 100_000_000
            moved = [transform("odom", "base", stamp, (index, 0, 0), (0, 0, HALF, HALF))]
            if index % 2 == 0:
                moved.append(transform("map", "odom", stamp, (0, 0.5 * index, 0)))
            write("/tf", stamp, *moved)
    return Bag(path)


def test_frames_of_tf_by_name(tf_bag):
    truth = read_ground_truth("/tf:odom,base", tf_bag, 5)
    assert list(truth.stamps_ns) == [START + i * 100_000_000 for i in range(11)]
    np.testing.assert_allclose(truth.poses[3, :3, 3], [3, 0, 0])
    np.testing.assert_allclose(truth.poses[3, :3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_a_chain_of_frames_with_a_static_end(tf_bag):
    """Between two poses of map > odom that transform is interpolated."""
    truth = read_ground_truth("/tf:map,camera", tf_bag, 5)
    assert len(truth.poses) == 11
    np.testing.assert_allclose(truth.poses[3, :3, 3], [3, 1.5, 1])
    np.testing.assert_allclose(truth.poses[4, :3, 3], [4, 2, 1])


def test_times_of_recording(tf_bag, bag):
    truth = read_ground_truth("/tf:odom,base", tf_bag, 5, recorded=True)
    assert truth.stamps_ns[0] == START + 10_000_000
    assert read_ground_truth("/PoseStamped", bag, 5, recorded=True).stamps_ns[1] == START + 100_000_000


@pytest.mark.parametrize(
    ("source", "expected"),
    [("/tf", "expected /tf:PARENT,CHILD"), ("/tf:map", "expected /tf:PARENT,CHILD"),
     ("/tf:map,lidar", "do not lead from map to lidar; there are odom > base, base > camera, map > odom"),
     ("/tf:base,map", "do not lead from base to map"), ("/tf:map,map", "two different frames")],
)  # fmt: skip
def test_frames_that_are_not_there(tf_bag, source, expected):
    with pytest.raises(GroundTruthError, match=expected):
        read_ground_truth(source, tf_bag, 5)


def test_only_tf_has_frames(bag):
    with pytest.raises(GroundTruthError, match="expected /PoseStamped"):
        read_ground_truth("/PoseStamped:a,b", bag, 5)
