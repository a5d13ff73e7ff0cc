"""The renderer against geometry worked out by hand, and the pictures against each other."""

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from samfeat_core.sequence import ImageSequence
from training.data.scenes import (
    SCENES,
    Quad,
    Scene,
    camera_pose,
    fly_through,
    load_textures,
    pinhole,
    random_pair,
    rotation_y,
    texture_paths,
)
from training.render_sequence import app as render_app

SIZE = (160, 120)
MATRIX = pinhole(SIZE, 70)


def noise_textures(count: int = 6, size: int = 128) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (count, size // 8, size // 8, 3), np.uint8)
    return [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in small]


def wall(z: float, half: float = 2.0, texture: int = 0, **options: bool) -> Quad:
    """A square that faces the camera at depth z; the texture reads upright from there."""
    return Quad(np.array([-half, -half, z]), np.array([2 * half, 0, 0]), np.array([0, 2 * half, 0]), texture, **options)


def test_depth_of_a_fronto_parallel_wall_is_its_distance():
    view = Scene([wall(3.0, 20)], noise_textures()).render(MATRIX, SIZE, np.eye(4))
    np.testing.assert_allclose(view.depth, 3.0, rtol=1e-6)
    assert view.image.shape == (120, 160, 3) and view.image.dtype == np.uint8 and view.depth.dtype == np.float32
    assert (view.surface == 0).all()


def test_depth_of_a_slanted_plane_is_the_ray_plane_intersection():
    turn = rotation_y(0.6) @ camera_pose(np.zeros(3), 0, 0.3)[:3, :3]
    u, v, origin = turn @ [40.0, 0, 0], turn @ [0, 40.0, 0], np.array([0.3, -0.2, 6.0])
    quad = Quad(origin - u / 2 - v / 2, u, v, 0)
    pose = camera_pose(np.array([0.5, 0.1, -0.4]), 0.1, -0.05, 0.2)
    depth = Scene([quad], noise_textures()).depth(MATRIX, SIZE, pose)
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(MATRIX).T @ pose[:3, :3].T
    normal = np.cross(u, v)
    expected = normal @ (origin - pose[:3, 3]) / (rays @ normal)
    hit = depth > 0
    assert hit.mean() > 0.9
    np.testing.assert_allclose(depth[hit], expected[hit], rtol=1e-4)


def test_nearer_quads_hide_farther_ones_and_the_edge_is_where_geometry_says():
    scene = Scene([wall(6.0, 20), wall(3.0, 0.5, 1)], noise_textures())
    depth = scene.depth(MATRIX, SIZE, np.eye(4))
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    inside = (abs(x - MATRIX[0, 2]) * 3 / MATRIX[0, 0] <= 0.5) & (abs(y - MATRIX[1, 2]) * 3 / MATRIX[1, 1] <= 0.5)
    np.testing.assert_array_equal(depth < 4, inside)


def test_backs_are_not_seen_unless_two_sided():
    behind = camera_pose(np.array([0, 0, 6.0]), np.pi)
    assert not Scene([wall(3.0)], noise_textures()).depth(MATRIX, SIZE, behind).any()
    assert Scene([wall(3.0, two_sided=True)], noise_textures()).depth(MATRIX, SIZE, behind).any()


def test_a_quad_that_reaches_behind_the_camera_is_clipped_not_lost():
    floor = Quad(np.array([-50.0, 1.0, 50.0]), np.array([100.0, 0, 0]), np.array([0, 0, -100.0]), 0)
    depth = Scene([floor], noise_textures()).depth(MATRIX, SIZE, np.eye(4))
    below = depth[int(MATRIX[1, 2]) + 5 :]
    rows = np.arange(int(MATRIX[1, 2]) + 5, SIZE[1])
    np.testing.assert_allclose(below, np.repeat((MATRIX[1, 1] / (rows - MATRIX[1, 2]))[:, None], SIZE[0], 1), rtol=1e-4)


def test_the_texture_reads_upright_and_lands_where_it_belongs():
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:32, :32] = (255, 0, 0)  # upper left blue
    texture[32:, 32:] = (0, 0, 255)  # lower right red
    image = Scene([wall(2.0, 1.0)], [texture]).render(MATRIX, SIZE, np.eye(4)).image
    cx, cy = np.rint(MATRIX[:2, 2]).astype(int)
    offset = int(0.5 / 2 * MATRIX[0, 0])
    assert image[cy - offset, cx - offset].tolist() == [255, 0, 0]
    assert image[cy + offset, cx + offset].tolist() == [0, 0, 255]
    assert image[cy - offset, cx + offset].max() == 0


def test_a_far_fine_texture_is_averaged_not_aliased():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    image = Scene([wall(40.0, 4.0)], [stripes]).render(MATRIX, SIZE, np.eye(4)).image
    middle = image[55:65, 75:85]
    assert 110 < middle.mean() < 145 and middle.std() < 6


def test_light_darkens_what_it_does_not_reach():
    lamp = np.array([[0.0, 0.0, 0.0]])
    grey = [np.full((64, 64, 3), 128, np.uint8)]
    lit = Scene([wall(4.0, 4)], grey, lights=lamp).render(MATRIX, SIZE, np.eye(4)).image
    shaded = Scene([wall(4.0, 4), wall(2.0, 0.3)], grey, lights=lamp).render(MATRIX, SIZE, camera_pose([2, 0, 1], -0.5))
    assert lit[60, 80].mean() > lit[5, 5].mean()
    behind_the_plate = shaded.image[shaded.surface == 0]
    assert behind_the_plate.min() < 0.75 * lit[60, 80].mean()


@pytest.mark.parametrize("kind", SCENES)
def test_random_scenes_give_pairs_that_overlap_and_repeat(kind):
    scene = SCENES[kind](np.random.default_rng(1), noise_textures())
    first, second = random_pair(scene, np.random.default_rng(5))
    again = random_pair(scene, np.random.default_rng(5))
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert np.linalg.norm(first[:3, 3] - second[:3, 3]) > 0.02
    for pose in (first, second):
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
        assert scene.depth(MATRIX, SIZE, pose).min() > 0


def test_a_flight_is_smooth_and_keeps_its_distance():
    scene = SCENES["room"](np.random.default_rng(3), noise_textures())
    poses = np.array(fly_through(scene, np.random.default_rng(3), 40, rate_hz=20, speed=0.5))
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert steps.max() < 0.08 and steps.mean() > 0.005
    cosines = np.einsum("nij,nij->n", poses[:-1, :3, :3], poses[1:, :3, :3])
    assert np.degrees(np.arccos(np.clip((cosines - 1) / 2, -1, 1))).max() < 5
    assert all(scene.depth(MATRIX, SIZE, pose).min() > 0.2 for pose in poses[::8])


def test_impossible_bounds_are_an_error():
    scene = SCENES["room"](np.random.default_rng(1), noise_textures())
    with pytest.raises(ValueError, match="overlap"):
        random_pair(scene, np.random.default_rng(0), overlap=(0.999, 0.9999), baseline=(3, 4), attempts=5)
    with pytest.raises(ValueError, match="quad"):
        Scene([], noise_textures())


def test_textures_come_from_inside_scikit_image_or_a_folder(tmp_path):
    paths = texture_paths("skimage")
    assert len(paths) >= 8 and all(path.is_file() for path in paths)
    with pytest.raises(ValueError, match=str(tmp_path)):
        texture_paths(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 1"):
        load_textures(tmp_path)
    cv2.imwrite(str(tmp_path / "good.png"), noise_textures()[0])
    assert len(load_textures(tmp_path)) == 1


def test_render_sequence_writes_the_folder_layout_and_is_idempotent(tmp_path):
    arguments = ["--output", str(tmp_path / "s"), "--frames", "6", "--width", "96", "--height", "64", "--seed", "2"]
    result = CliRunner().invoke(render_app, arguments)
    assert result.exit_code == 0, result.output
    sequence = ImageSequence.read(tmp_path / "s")
    assert len(sequence) == 6 and sequence.image(0).shape == (64, 96, 3)
    assert sequence.depth(5).min() > 0.2
    assert sequence.times is not None
    np.testing.assert_allclose(np.diff(sequence.times), 0.05)
    stamp = (tmp_path / "s/image/000003.jpg").stat().st_mtime_ns
    assert "already" in CliRunner().invoke(render_app, arguments).output
    assert (tmp_path / "s/image/000003.jpg").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("wrong", "code"), [(["--textures", "/does/not/exist"], 1), (["--scene", "moon"], 2)])
def test_render_sequence_says_what_is_wrong(tmp_path, wrong, code):
    result = CliRunner().invoke(render_app, ["--output", str(tmp_path / "s"), "--frames", "2", *wrong])
    assert result.exit_code == code and wrong[1] in result.output
    assert not (tmp_path / "s" / "image").exists()
