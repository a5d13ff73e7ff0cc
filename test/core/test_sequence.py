"""The reader of the posed sequence layout."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from samfeat_core.errors import FileError
from samfeat_core.sequence import ImageSequence, read_poses, read_projection, read_times

STILL = "1 0 0 0 0 1 0 0 0 0 1 0\n"
CALIBRATION = "P0: 525 0 320 0 0 520 240 0 0 0 1 0\n"


def write_sequence(folder, count=3, size=(64, 48)):
    (folder / "image").mkdir(parents=True)
    for n in range(count):
        cv2.imwrite(str(folder / "image" / f"{n:03d}.png"), np.full((size[1], size[0], 3), n, np.uint8))
    poses = np.tile(np.eye(4)[:3], (count, 1, 1))
    poses[:, 2, 3] = np.arange(count) * 0.5
    np.savetxt(folder / "poses.txt", poses.reshape(count, 12))
    (folder / "calib.txt").write_text(CALIBRATION)
    return folder


def write_depth(folder, values):
    (folder / "depth").mkdir()
    for n, depth in enumerate(values):
        cv2.imwrite(str(folder / "depth" / f"{n:03d}.png"), np.asarray(depth, np.uint16))


def test_reads_frames_poses_and_camera(tmp_path):
    sequence = ImageSequence.read(write_sequence(tmp_path / "s"))
    assert len(sequence) == 3 and sequence.depths is None and sequence.times is None
    assert sequence.matrix.tolist() == [[525, 0, 320], [0, 520, 240], [0, 0, 1]]
    assert sequence.image(2)[0, 0, 0] == 2
    assert sequence.image_size == (64, 48)
    # the second camera stands half a metre ahead: what the first sees at 2 m it sees at 1.5 m
    assert np.allclose(sequence.relative_pose(0, 1) @ [0, 0, 2, 1], [0, 0, 1.5, 1])


def test_times_and_depth(tmp_path):
    folder = write_sequence(tmp_path / "s")
    (folder / "times.txt").write_text("0.0\n0.1\n0.2\n")
    depth = np.full((48, 64), 1500)
    depth[0, 0], depth[0, 1] = 65535, 0
    write_depth(folder, [depth] * 3)
    sequence = ImageSequence.read(folder, require=("poses",))
    assert sequence.times.tolist() == [0, 0.1, 0.2]
    metres = sequence.depth(0)
    assert metres.dtype == np.float32
    assert metres[0, 0] == metres[0, 1] == 0 and metres[10, 10] == pytest.approx(1.5)


def test_depth_of_another_camera_comes_to_the_pixels_of_the_image(tmp_path):
    folder = write_sequence(tmp_path / "s", 1)
    (folder / "calib.txt").write_text("P0: 40 0 32 0 0 40 24 0 0 0 1 0\n")
    (folder / "calib_depth.txt").write_text("P0: 20 0 16 0 0 20 12 0 0 0 1 0\n")
    depth = np.zeros((24, 32))
    depth[12, 26] = 2000  # ten pixels right of the axis: a slope of 0.5, so column 32 + 20 of the image
    write_depth(folder, [depth])
    metres = ImageSequence.read(folder).depth(0)
    assert metres.shape == (48, 64)
    assert metres[24, 52] == 2
    assert (metres > 0).sum() in (4, 6, 9)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "poses.txt").unlink(), r"poses\.txt: cannot be read \(No such file"),
        (lambda f: (f / "poses.txt").write_text(STILL[3:] * 3), r"poses\.txt: line 1: expected 12 finite"),
        (lambda f: (f / "poses.txt").write_text("2" + STILL[1:]), r"poses\.txt: pose 1 is not a rotation"),
        (lambda f: (f / "poses.txt").write_text(STILL.replace("0\n", "nan\n")), "expected 12 finite numbers"),
        (lambda f: (f / "poses.txt").write_text(STILL * 2), r"poses\.txt: 2 entries for 3 images"),
        (lambda f: (f / "poses.txt").write_bytes(b"\xff\xfe\x80"), r"poses\.txt: cannot be read \(not a text file"),
        (lambda f: (f / "poses.txt").write_text(""), r"poses\.txt: empty"),
        (lambda f: (f / "calib.txt").write_text("P1: 1 2 3\n"), r"calib\.txt: no line 'P0:'"),
        (
            lambda f: (f / "calib.txt").write_text(CALIBRATION.replace("525", "0")),
            r"calib\.txt: line 1: focal lengths 0, 520",
        ),
        (lambda f: (f / "times.txt").write_text("0\n1\n"), r"times\.txt: 2 entries for 3 images"),
        (lambda f: [p.unlink() for p in (f / "image").iterdir()], "image: no images"),
        (lambda f: write_depth(f, [np.zeros((4, 4))]), "depth: 1 entries for 3 images"),
    ],
)
def test_bad_input_names_the_file(tmp_path, damage, said):
    folder = write_sequence(tmp_path / "s")
    damage(folder)
    with pytest.raises(ValueError, match=said):
        ImageSequence.read(folder, require=("poses",))


def test_bad_pictures_name_the_file(tmp_path):
    folder = write_sequence(tmp_path / "s")
    write_depth(folder, [np.zeros((48, 64))] * 3)
    cv2.imwrite(str(folder / "depth" / "001.png"), np.zeros((48, 64), np.uint8))
    (folder / "image" / "001.png").write_bytes(b"no picture")
    sequence = ImageSequence.read(folder, require=("poses",))
    with pytest.raises(ValueError, match=r"001\.png: cannot be decoded"):
        sequence.image(1)
    with pytest.raises(ValueError, match=r"001\.png: expected a 16-bit"):
        sequence.depth(1)
    plain = ImageSequence.read(write_sequence(tmp_path / "t"))
    for half in (plain, replace(plain, depths=plain.images), replace(plain, depth_matrix=np.eye(3))):
        with pytest.raises(FileError, match="t: the sequence has no depth/ folder"):
            half.depth(0)


@pytest.mark.parametrize("missing", ["poses", "times", "depth"])
def test_what_is_required_must_be_there(tmp_path, missing):
    folder = write_sequence(tmp_path / "s")
    (folder / "poses.txt").unlink()
    plain = ImageSequence.read(folder)
    assert (plain.poses, plain.times, plain.depths, plain.depth_matrix) == (None,) * 4 and plain.folder == folder
    with pytest.raises(FileError, match=f"{missing}(.txt)?: (cannot be read|no such folder)"):
        ImageSequence.read(str(folder), require=(missing,))


def test_motion_without_poses_is_refused(tmp_path):
    folder = write_sequence(tmp_path / "s")
    (folder / "poses.txt").unlink()
    with pytest.raises(FileError, match="s: the sequence has no poses.txt"):
        ImageSequence.read(folder).relative_pose(0, 1)


def test_depth_without_a_calibration_of_its_own_is_that_of_the_image(tmp_path):
    folder = write_sequence(tmp_path / "s")
    depth = np.arange(48 * 64).reshape(48, 64) + 1
    write_depth(folder, [depth] * 3)
    sequence = ImageSequence.read(folder)
    np.testing.assert_array_equal(sequence.depth_matrix, sequence.matrix)
    assert sequence.matrix.flags.c_contiguous and sequence.projection.shape == (3, 4)
    np.testing.assert_allclose(sequence.depth(1), depth / 1000, rtol=1e-6)
    cv2.imwrite(str(folder / "depth" / "000.png"), depth[:40, :50].astype(np.uint16))
    assert sequence.depth(0).shape == (40, 50)  # as it is: nothing is warped


@pytest.mark.parametrize("raw", [np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.uint16), None])
def test_depth_is_one_channel_of_16_bit(tmp_path, raw):
    folder = write_sequence(tmp_path / "s", 1)
    write_depth(folder, [np.zeros((48, 64))])
    path = folder / "depth" / "000.png"
    path.write_bytes(b"no picture") if raw is None else cv2.imwrite(str(path), raw)
    with pytest.raises(FileError, match=r"000\.png: expected a 16-bit single-channel depth image"):
        ImageSequence.read(folder).depth(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5\n0.25\n", "line 2: 0.25 s is not after the line before"),
        ("1\n2\n\n2\n", "line 4: 2 s is not after the line before"),
        ("-0.5\n1\n", "line 1: -0.5 s is negative, which no ROS stamp can be"),
        ("0\n1 2\n", "line 2: expected 1 finite numbers"),
    ],
)
def test_times_increase_from_zero_on(tmp_path, text, said):
    path = tmp_path / "times.txt"
    path.write_text(text)
    with pytest.raises(FileError, match=f"^{path}: {said}"):
        read_times(path)
    path.write_text("0\n1e-9\n\n2.5\n")
    np.testing.assert_array_equal(read_times(path), [0, 1e-9, 2.5])


@pytest.mark.parametrize(("off", "refused"), [(0.004, False), (0.006, True)])
def test_poses_are_rotations_to_a_hundredth(tmp_path, off, refused):
    """Printed numbers are rotations to their last digit only; (1 + off)^2 - 1 is what the check sees."""
    path, stretched = tmp_path / "poses.txt", f"1 0 0 7 0 {1 + off} 0 8 0 0 1 9\n"
    path.write_text(STILL + stretched)
    if refused:
        with pytest.raises(FileError, match="pose 2 is not a rotation and a translation"):
            read_poses(path)
    else:
        poses = read_poses(path)
        np.testing.assert_array_equal(poses[:, 3], [[0, 0, 0, 1]] * 2)
        np.testing.assert_array_equal(poses[1, :3, 3], [7, 8, 9])
        assert poses[1, 1, 1] == 1 + off


def test_a_mirrored_pose_is_no_rotation(tmp_path):
    path = tmp_path / "poses.txt"
    path.write_text(STILL.replace("1 0\n", "-1 0\n"))
    with pytest.raises(FileError, match="pose 1 is not a rotation and a translation"):
        read_poses(path)


def test_the_projection_is_the_line_p0(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text("# Kinect: first camera\nP1: 1 2 3\nP0 : 5 6 7 8 9 10 11 12 13 14 15 16\nP0: 1 1\n")
    np.testing.assert_array_equal(read_projection(path), np.arange(5, 17).reshape(3, 4))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\nP0: 5 0 0 0 0 0 0 0 0 0 1 0\n", "line 2: focal lengths 5, 0; expected both > 0"),
        ("P0: -5 0 0 0 0 5 0 0 0 0 1 0\n", "line 1: focal lengths -5, 5; expected both > 0"),
        ("P0: 5 0 0\n", "line 1: expected 12 finite numbers"),
    ],
)
def test_a_projection_that_is_none(tmp_path, text, said):
    path = tmp_path / "calib.txt"
    path.write_text(text)
    with pytest.raises(FileError, match=f"^{path}: {said}"):
        read_projection(path)
