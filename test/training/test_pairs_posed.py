"""Pairs of posed depth images: against rendered truth, with a depth camera beside the colour camera, on real data."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from samfeat_core.poses import relative_pose
from samfeat_core.sequence import ImageSequence
from training.data.posed_pairs import (
    PosedPairs,
    View,
    dense_warp,
    kinect_depth_to_colour,
    make_pair,
    refine_pose,
    register_depth,
)
from training.data.scenes import SCENES, camera_pose, fly_through, load_textures, pinhole
from training.data.stored_pairs import StoredPairs
from training.environment import data_folder
from training.pairs import app
from training.render_sequence import write_frame, write_numbers

SIZE = (160, 120)
MATRIX = pinhole(SIZE, 65)
KITCHEN = Path(__file__).parents[2] / data_folder() / "posed" / "kitchen_rgbd"


@pytest.fixture(scope="module")
def world():
    scene = SCENES["room"](np.random.default_rng(2), load_textures("skimage"))
    return scene, fly_through(scene, np.random.default_rng(2), 24, rate_hz=10, speed=0.8)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    """The flight in the simple folder layout."""
    scene, poses = world
    path = tmp_path_factory.mktemp("posed")
    for name in ("image", "depth"):
        (path / name).mkdir()
    for index, pose in enumerate(poses):
        write_frame(path, index, scene.render(MATRIX, SIZE, pose))
    write_numbers(path / "calib.txt", np.hstack([MATRIX, np.zeros((3, 1))]).reshape(1, 12), "P0: ")
    write_numbers(path / "poses.txt", np.stack([pose[:3].ravel() for pose in poses]))
    return path


def photometric_error(pair: dict[str, np.ndarray], shift: float = 0.0) -> float:
    """Mean grey difference of image 1 at the warp (plus a shift in x) to image 0."""
    grey0, grey1 = (cv2.cvtColor(pair[key], cv2.COLOR_RGB2GRAY).astype(np.float32) for key in ("image0", "image1"))
    warp = pair["warp01"] + np.array([shift, 0], np.float32)
    seen = np.isfinite(warp[..., 0])
    sampled = cv2.remap(grey1, *np.nan_to_num(warp, nan=-100).transpose(2, 0, 1), cv2.INTER_LINEAR)
    return float(np.abs(sampled - grey0)[seen].mean())


def test_pairs_of_a_folder_agree_with_their_images(folder):
    pairs = PosedPairs(folder, (120, 80), gaps=(2, 6), refine=False)
    assert len(pairs) == sum(24 - gap for gap in range(2, 7))
    for index in range(0, 40, 10):
        pair = pairs[index]
        assert pair["image0"].shape == (80, 120, 3) and pair["warp01"].shape == (80, 120, 2)
        assert photometric_error(pair) < 0.7 * photometric_error(pair, 2)
    again = PosedPairs(folder, (120, 80), gaps=(2, 6), refine=False)
    for key, value in pairs[7].items():
        np.testing.assert_array_equal(value, again[7][key])


def test_scaling_and_cropping_move_the_geometry_along(world):
    scene, poses = world
    rendered = [scene.render(MATRIX, SIZE, pose) for pose in (poses[0], poses[5])]
    views = [View(view.image, view.depth, MATRIX) for view in rendered]
    pair = make_pair(*views, relative_pose(poses[0], poses[5]), (100, 60), np.random.default_rng(0))
    assert pair is not None
    y, x = np.nonzero(np.isfinite(pair["warp01"][..., 0]))
    T, K0, K1 = (pair[key].astype(np.float64) for key in ("T_0to1", "matrix0", "matrix1"))
    rays = np.linalg.inv(K0) @ np.stack([x, y, np.ones(len(x))])
    target = np.linalg.inv(K1) @ np.column_stack([pair["warp01"][y, x], np.ones(len(x))]).T
    t = T[:3, 3] / np.linalg.norm(T[:3, 3])
    assert np.abs((target * np.cross(t, (T[:3, :3] @ rays).T).T).sum(0)).max() < 2e-3
    assert photometric_error(pair) < 0.7 * photometric_error(pair, 2)


def test_depth_of_another_camera_is_registered(world):
    scene, poses = world
    depth_matrix = np.array([[150.0, 0, 82], [0, 150, 58], [0, 0, 1]])
    offset = kinect_depth_to_colour()  # depth camera -> colour camera
    seen = scene.depth(depth_matrix, SIZE, poses[3] @ offset)
    truth = scene.depth(MATRIX, SIZE, poses[3])
    registered = register_depth(seen, depth_matrix, MATRIX, offset, SIZE)
    known = registered > 0
    inner = known[20:-20, 25:-25]
    assert inner.mean() > 0.95
    wrong = np.abs(registered - truth) > 0.03 * truth
    assert wrong[known].mean() < 0.04  # pixels along depth edges
    unregistered = np.abs(seen - truth) > 0.03 * truth
    assert wrong[known].mean() < 0.5 * unregistered.mean()


def test_a_wrong_pose_is_corrected_by_the_images(world):
    scene, poses = world
    size = (320, 240)
    matrix = pinhole(size, 65)
    views = [View(r.image, r.depth, matrix) for r in (scene.render(matrix, size, poses[i]) for i in (0, 4))]
    truth = relative_pose(poses[0], poses[4])
    wrong = camera_pose(np.array([0.02, 0, -0.02]), 0.02, -0.01) @ truth
    refined = refine_pose(*views, wrong)
    assert refined is not None
    depths = views[0].depth, views[1].depth
    right, fixed, off = (dense_warp(*depths, matrix, matrix, T, tolerance=0.2) for T in (truth, refined, wrong))
    assert np.nanmedian(np.linalg.norm(off - right, axis=-1)) > 3  # pixels
    assert np.nanmedian(np.linalg.norm(fixed - right, axis=-1)) < 0.75
    contradiction = camera_pose(np.array([1.0, 0, 0]), 0.5) @ truth
    assert refine_pose(*views, contradiction) is None


def test_too_little_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="24 frames are too few"):
        PosedPairs(folder, gaps=(30, 40))
    for name in ("image", "calib.txt", "poses.txt"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match="depth: no such folder"):
        PosedPairs(tmp_path)


def test_the_command_fills_a_cache(folder, tmp_path):
    arguments = ["posed", "--folder", str(folder), "--output", str(tmp_path / "c"), "--pairs", "3", "--width", "80"]
    result = CliRunner().invoke(app, [*arguments, "--height", "60", "--no-refine"])
    assert result.exit_code == 0, result.output
    assert len(StoredPairs(tmp_path / "c")) == 3
    result = CliRunner().invoke(app, ["posed", "--folder", "/nowhere", "--output", str(tmp_path / "d")])
    assert result.exit_code == 1 and "/nowhere" in result.output


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="the kitchen sequence is not here")
def test_the_kinect_s_depth_edges_lie_on_image_edges():
    """The measured offset of the depth camera against none, and against the same offset the other way."""
    sequence = ImageSequence.read(KITCHEN)
    opposite = np.linalg.inv(kinect_depth_to_colour())
    scores = {}
    for name, offset in (("measured", kinect_depth_to_colour()), ("none", np.eye(4)), ("opposite", opposite)):
        pairs = PosedPairs(KITCHEN, depth_to_colour=offset)
        scores[name] = np.mean([edge_strength(pairs.view(index)) for index in range(0, len(sequence), 24)])
    assert scores["measured"] > 1.15 * scores["none"] > scores["opposite"]


def edge_strength(view: View) -> float:
    """Mean image gradient at the near side of depth edges."""
    grey = cv2.GaussianBlur(view.image[..., 1].astype(np.float32), (0, 0), 1)
    gradient = np.minimum(np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1)), 100)
    far = cv2.dilate(view.depth, np.ones((3, 3)))
    edge = (view.depth > 0.4) & (view.depth < 1.8) & (far - view.depth > 0.25)
    edge[:20], edge[-20:], edge[:, :30], edge[:, -30:] = False, False, False, False
    return float(gradient[edge].mean())


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="the kitchen sequence is not here")
def test_refined_kitchen_pairs_agree_with_their_images():
    pairs = PosedPairs(KITCHEN, (320, 240), depth_to_colour=kinect_depth_to_colour())
    errors = [(photometric_error(pair), photometric_error(pair, 3)) for pair in (pairs[index] for index in (0, 5, 9))]
    assert all(right < 0.8 * shifted for right, shifted in errors)
