"""Folders of images become bags, and what is wrong with a folder is said with file and line."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from samfeat_core.poses import quaternion
from samfeat_ros.image_input import depth_from_msg
from samfeat_ros.replay.bags import Bag, decode
from samfeat_ros.replay.recording import Recording
from samfeat_ros.replay.sequence_to_bag import app
from samfeat_ros.stamps import stamp_to_ns

FRAMES = 5


def pose(index: int) -> np.ndarray:
    turn = cv2.Rodrigues(np.array([0.1, -0.4 * index, 0.2]))[0]
    return np.hstack([turn, [[0.1 * index], [1.0], [-2.0]]])


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "sequence"
    (path / "image").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(FRAMES):
        cv2.imwrite(str(path / "image" / f"{index:06d}.png"), rng.integers(0, 255, (24, 32, 3), np.uint8))
    (path / "calib.txt").write_text("P0: 30 0 16 -12 0 31 12 0 0 0 1 0\nP1: 1 2\n")
    (path / "poses.txt").write_text("".join(" ".join(map(str, pose(i).ravel())) + "\n" for i in range(FRAMES)))
    (path / "times.txt").write_text("0.5\n0.6\n0.725\n0.8\n1.5\n")
    return path


def convert(folder: Path, *options: str):
    output = folder.parent / "bag"
    return CliRunner().invoke(app, [str(folder), str(output), *options]), output


def messages(output: Path, topic: str) -> list:
    with Bag(output) as bag:
        return [decode(message) for message in bag.messages([topic])]


def test_the_bag_holds_the_images_calibration_and_poses(folder):
    result, output = convert(folder)
    assert result.exit_code == 0, result.output
    with Bag(output) as bag:
        assert {(t.name, t.type, t.count) for t in bag.topics.values()} == {
            ("/camera/image_raw", "sensor_msgs/msg/Image", FRAMES),
            ("/camera/camera_info", "sensor_msgs/msg/CameraInfo", FRAMES),
            ("/ground_truth/pose", "geometry_msgs/msg/PoseStamped", FRAMES),
        }
        assert not bag.problems
    images = messages(output, "/camera/image_raw")
    assert [stamp_to_ns(m.header.stamp) for m in images] == [
        500_000_000,
        600_000_000,
        725_000_000,
        800_000_000,
        1_500_000_000,
    ]
    for index, image in enumerate(images):
        expected = cv2.imread(str(folder / "image" / f"{index:06d}.png"))
        assert (image.encoding, image.step, image.header.frame_id) == ("bgr8", 96, "camera")
        np.testing.assert_array_equal(image.data.reshape(24, 32, 3), expected)
    info = messages(output, "/camera/camera_info")[3]
    assert (info.width, info.height, info.distortion_model) == (32, 24, "plumb_bob")
    assert info.k.tolist() == [30, 0, 16, 0, 31, 12, 0, 0, 1] and info.p.tolist()[3] == -12
    assert stamp_to_ns(info.header.stamp) == 800_000_000
    for index, stamped in enumerate(messages(output, "/ground_truth/pose")):
        q, p = stamped.pose.orientation, stamped.pose.position
        assert stamped.header.frame_id == "world"
        np.testing.assert_allclose([p.x, p.y, p.z], pose(index)[:, 3], atol=1e-9)
        np.testing.assert_allclose(rotation_of(q.x, q.y, q.z, q.w), pose(index)[:, :3], atol=1e-9)


def rotation_of(x: float, y: float, z: float, w: float) -> np.ndarray:
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


@pytest.mark.parametrize("axis", [[0, 0, 0], [np.pi, 0, 0], [0, 0, np.pi - 1e-7], [1e-13, 0, 0], [1, -2, 0.5]])
def test_quaternions_at_the_corners(axis):
    rotation = cv2.Rodrigues(np.array(axis, np.float64))[0]
    q = quaternion(rotation)
    assert np.linalg.norm(q) == pytest.approx(1)
    np.testing.assert_allclose(rotation_of(*q), rotation, atol=1e-7)


def test_poses_are_optional(folder):
    result, output = convert(folder, "--no-ground-truth")
    assert result.exit_code == 0, result.output
    with Bag(output) as bag:
        assert "/ground_truth/pose" not in bag.topics
    (folder / "poses.txt").unlink()
    result, output = convert(folder, "--overwrite")
    assert result.exit_code == 0, result.output
    with Bag(output) as bag:
        assert set(bag.topics) == {"/camera/image_raw", "/camera/camera_info"}


def test_options(folder):
    (folder / "times.txt").unlink()
    (folder / "poses.txt").unlink()
    result, output = convert(
        folder, "--rate", "4", "--start", "100", "--encoding", "mono8", "--limit", "3",
        "--image-topic", "/cam0/image", "--camera-info-topic", "/cam0/info", "--frame-id", "cam0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    images = messages(output, "/cam0/image")
    assert [stamp_to_ns(m.header.stamp) for m in images] == [100_000_000_000, 100_250_000_000, 100_500_000_000]
    grey = cv2.imread(str(folder / "image/000001.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(images[1].data.reshape(24, 32), grey)
    assert images[0].encoding == "mono8" and images[0].header.frame_id == "cam0"
    assert len(messages(output, "/cam0/info")) == 3


def test_compressed_images_are_the_files_themselves(folder):
    result, output = convert(folder, "--format", "png")
    assert result.exit_code == 0, result.output
    image = messages(output, "/camera/image_raw/compressed")[2]
    assert image.format == "png" and image.data.tobytes() == (folder / "image/000002.png").read_bytes()
    result, output = convert(folder, "--format", "jpeg", "--overwrite")
    image = messages(output, "/camera/image_raw/compressed")[2]
    assert image.format == "jpeg" and cv2.imdecode(image.data, cv2.IMREAD_COLOR).shape == (24, 32, 3)


def test_grey_files_become_mono8(folder):
    for path in (folder / "image").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    _, output = convert(folder)
    assert messages(output, "/camera/image_raw")[0].encoding == "mono8"


def remove_times(folder: Path) -> None:
    (folder / "times.txt").unlink()


def cut_poses(folder: Path) -> None:
    (folder / "poses.txt").write_text((folder / "poses.txt").read_text().splitlines()[0] + "\n")


def spoil_pose(folder: Path) -> None:
    lines = (folder / "poses.txt").read_text().splitlines()
    lines[2] = lines[2].replace(" ", " x", 1)
    (folder / "poses.txt").write_text("\n".join(lines))


def mirror_pose(folder: Path) -> None:
    lines = (folder / "poses.txt").read_text().splitlines()
    lines[3] = "1 0 0 0 0 1 0 0 0 0 -1 0"
    (folder / "poses.txt").write_text("\n".join(lines))


def turn_time_back(folder: Path) -> None:
    (folder / "times.txt").write_text("0.1\n0.2\n0.15\n0.3\n0.4\n")


def short_calibration(folder: Path) -> None:
    (folder / "calib.txt").write_text("K: 1 2 3\nP0: 1 2 3\n")


def no_calibration(folder: Path) -> None:
    (folder / "calib.txt").write_text("P2: 30 0 16 0 0 31 12 0 0 0 1 0\n")


def no_images(folder: Path) -> None:
    shutil.rmtree(folder / "image")
    (folder / "image").mkdir()


def broken_image(folder: Path) -> None:
    (folder / "image/000003.png").write_bytes(b"PNG, it says")


def other_size(folder: Path) -> None:
    cv2.imwrite(str(folder / "image/000004.png"), np.zeros((12, 16, 3), np.uint8))


def binary_poses(folder: Path) -> None:
    (folder / "poses.txt").write_bytes(bytes(range(128, 256)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove_times, "times.txt: no such file; give --rate"),
        (cut_poses, "poses.txt: 1 entries for 5 images"),
        (spoil_pose, "poses.txt: line 3: expected 12 finite numbers"),
        (mirror_pose, "poses.txt: pose 4"),
        (turn_time_back, "times.txt: line 3: 0.15 s"),
        (short_calibration, "calib.txt: line 2: expected 12 finite numbers, got '1 2 3'"),
        (no_calibration, "calib.txt: no line 'P0:'"),
        (no_images, "image: no images"),
        (broken_image, "000003.png: cannot be decoded"),
        (other_size, "000004.png: is 16x12, the first image 32x24"),
        (binary_poses, "poses.txt: cannot be read (not a text file)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(folder, spoil, said):
    spoil(folder)
    result, output = convert(folder)
    assert result.exit_code == 1
    (line,) = [text for text in result.output.splitlines() if text.startswith("sequence_to_bag:")]
    assert said in line
    assert sorted(path.name for path in folder.parent.iterdir()) == ["sequence"]


def test_a_bag_that_is_there_stays_unless_told(folder):
    _, output = convert(folder)
    before = (output / "metadata.yaml").stat().st_mtime_ns
    result, _ = convert(folder)
    assert result.exit_code == 1 and "--overwrite" in result.output
    assert (output / "metadata.yaml").stat().st_mtime_ns == before
    result, _ = convert(folder, "--overwrite", "--limit", "2")
    assert result.exit_code == 0 and len(messages(output, "/camera/image_raw")) == 2
    broken_image(folder)
    result, _ = convert(folder, "--overwrite")  # fails: the old bag stays
    assert result.exit_code == 1 and len(messages(output, "/camera/image_raw")) == 2
    other = folder.parent / "mine"
    other.mkdir()
    result = CliRunner().invoke(app, [str(folder), str(other), "--overwrite"])
    assert result.exit_code == 1 and other.is_dir()  # not a bag: nobody's folder is deleted


@pytest.mark.parametrize("option", [["--encoding", "yuv"], ["--format", "gif"], ["--rate", "-1"]])
def test_impossible_options(folder, option):
    result, _ = convert(folder, *option)
    assert result.exit_code == 2 and option[0].lstrip("-") in result.output


def test_depth_is_written_where_it_is_asked_for(folder):
    result, _ = convert(folder, "--depth")
    assert result.exit_code == 1 and "depth" in result.output
    (folder / "depth").mkdir()
    for index in range(FRAMES):
        millimetres = np.full((24, 32), 1000 + index, np.uint16)
        millimetres[0] = 65535  # none
        cv2.imwrite(str(folder / "depth" / f"{index:06d}.png"), millimetres)
    result, output = convert(folder, "--depth")
    assert result.exit_code == 0, result.output
    depth = messages(output, "/camera/depth/image_raw")[3]
    metres = depth_from_msg(depth)
    assert depth.encoding == "16UC1" and not metres[0].any()
    np.testing.assert_allclose(metres[1:], 1.003)
    assert Recording(output).image_topic == "/camera/image_raw"  # depth does not count where none is named
