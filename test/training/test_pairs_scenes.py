"""Pairs of rendered scenes: correspondence against geometry, occlusion, and the store."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from samfeat_core.poses import relative_pose
from training.data.posed_pairs import View, dense_warp, make_pair
from training.data.scene_pairs import ScenePairs
from training.data.scenes import Quad, Scene, camera_pose, pinhole, texture_paths
from training.data.stored_pairs import (
    AllPairs,
    PairSampler,
    StoredPairs,
    crop_pair,
    kept_pairs,
    read_pair,
    store_pairs,
    to_batch,
    write_pair,
)
from training.pairs import app

SIZE = (160, 120)
MATRIX = pinhole(SIZE, 65)
BASELINE = 12 * 4 / MATRIX[0, 0]  # metres


@pytest.fixture(scope="module")
def pairs() -> ScenePairs:
    return ScenePairs("skimage", 6, SIZE, pairs_per_scene=2, seed=4)


def warped(image: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """`image` sampled at the warp, grey float."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.remap(grey, *np.nan_to_num(warp, nan=-100).transpose(2, 0, 1), cv2.INTER_LINEAR)


def two_walls() -> tuple[Scene, list[np.ndarray]]:
    """A plate at 2 m before a wall at 4 m, seen from two places: the wall moves by 12 pixels, the plate by 24."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8), (0, 0), 3)
    quads = [
        Quad(np.array([-8.0, -8, 4]), np.array([16.0, 0, 0]), np.array([0, 16.0, 0]), 0),
        Quad(np.array([-0.4, -0.4, 2]), np.array([0.8, 0, 0]), np.array([0, 0.8, 0]), 0),
    ]
    return Scene(quads, [texture]), [camera_pose(np.array([x, 0, 0]), 0) for x in (0.0, BASELINE)]


def test_the_same_surface_point_lands_on_the_same_texture_coordinate():
    scene, poses = two_walls()
    depths = [scene.depth(MATRIX, SIZE, pose) for pose in poses]
    warp = dense_warp(*depths, MATRIX, MATRIX, relative_pose(*poses), tolerance=0.02)
    first, second = (scene.trace(MATRIX, SIZE, pose) for pose in poses)
    y, x = np.nonzero(np.isfinite(warp[..., 0]))
    np.testing.assert_allclose(warp[y, x], np.rint(warp[y, x]), atol=1e-3)
    tx, ty = np.rint(warp[y, x]).astype(int).T
    assert len(y) > 0.7 * SIZE[0] * SIZE[1]
    np.testing.assert_array_equal(first.surface[y, x], second.surface[ty, tx])
    for a, b in ((first.u, second.u), (first.v, second.v)):  # texture coordinates, in units of the whole texture
        np.testing.assert_allclose(
            a[y, x] / first.inverse_depth[y, x], b[ty, tx] / second.inverse_depth[ty, tx], atol=2e-3
        )


def test_what_is_hidden_has_no_correspondence():
    scene, poses = two_walls()
    depths = [scene.depth(MATRIX, SIZE, pose) for pose in poses]
    warp = dense_warp(*depths, MATRIX, MATRIX, relative_pose(*poses), tolerance=0.02)
    # a wall point at x is hidden from the second camera when the segment between them crosses the plate at z = 2
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    wall_x, wall_y = (x - MATRIX[0, 2]) / MATRIX[0, 0] * 4, (y - MATRIX[1, 2]) / MATRIX[1, 1] * 4
    crossing_x, crossing_y = (wall_x + BASELINE) / 2, wall_y / 2
    on_wall = depths[0] > 3
    hidden = on_wall & (np.abs(crossing_x) < 0.38) & (np.abs(crossing_y) < 0.38)
    clear = on_wall & ((np.abs(crossing_x) > 0.45) | (np.abs(crossing_y) > 0.45)) & (wall_x > -2) & (wall_x < 2)
    assert hidden.sum() > 100 and clear.sum() > 1000
    assert np.isnan(warp[hidden]).all()
    expected = np.stack([x - 12.0, y], -1)
    inside = clear & (expected[..., 0] >= 0)
    np.testing.assert_allclose(warp[inside], expected[inside], atol=1e-2)


def test_warped_images_agree_and_a_shift_of_two_pixels_does_not(pairs):
    for index in range(len(pairs)):
        pair = pairs[index]
        for here, there, key in (("image0", "image1", "warp01"), ("image1", "image0", "warp10")):
            seen = np.isfinite(pair[key][..., 0])
            assert seen.mean() > 0.1
            grey = cv2.cvtColor(pair[here], cv2.COLOR_RGB2GRAY).astype(np.float32)
            right = np.abs(warped(pair[there], pair[key]) - grey)[seen].mean()
            wrong = np.abs(warped(pair[there], pair[key] + 2) - grey)[seen].mean()
            assert right < 9 and right < 0.6 * wrong


def test_forth_and_back_is_where_we_were(pairs):
    pair = pairs[1]
    y, x = np.nonzero(np.isfinite(pair["warp01"][..., 0]))
    there = pair["warp01"][y, x]
    channels = cv2.split(pair["warp10"])
    back = np.concatenate([cv2.remap(channel, there[:, None], None, cv2.INTER_LINEAR) for channel in channels], 1)
    known = np.isfinite(back).all(1)
    assert known.mean() > 0.9
    error = np.linalg.norm(back - np.stack([x, y], 1), axis=1)[known]
    assert np.percentile(error, 95) < 0.1


def test_the_epipolar_constraint_holds(pairs):
    pair = pairs[2]
    T = pair["T_0to1"].astype(np.float64)
    y, x = np.nonzero(np.isfinite(pair["warp01"][..., 0]))
    ones = np.ones(len(x))
    rays0 = np.linalg.inv(pair["matrix0"]) @ np.stack([x, y, ones])
    rays1 = np.linalg.inv(pair["matrix1"]) @ np.column_stack([pair["warp01"][y, x], ones]).T
    t = T[:3, 3] / np.linalg.norm(T[:3, 3])
    residual = np.einsum("in,in->n", rays1, np.cross(t, (T[:3, :3] @ rays0).T).T)
    assert np.abs(residual).max() < 1e-3


def test_pairs_repeat_by_seed_and_index(pairs):
    again = ScenePairs(texture_paths("skimage"), 6, SIZE, pairs_per_scene=2, seed=4)
    other = ScenePairs("skimage", 6, SIZE, pairs_per_scene=2, seed=5)
    for key, value in pairs[3].items():
        np.testing.assert_array_equal(value, again[3][key])
    assert not np.array_equal(pairs[3]["image0"], other[3]["image0"])
    with pytest.raises(IndexError):
        pairs[6]
    with pytest.raises(ValueError, match="moon"):
        ScenePairs("skimage", 1, kinds=("moon",))


def test_a_worker_process_gets_the_same_pairs(pairs):
    sent = pickle.loads(pickle.dumps(pairs))  # what torch's DataLoader does to reach a worker
    np.testing.assert_array_equal(sent[4]["warp10"], pairs[4]["warp10"])


def test_stored_pairs_come_back_the_same(tmp_path, pairs):
    write_pair(tmp_path / "pair_000000.npz", pairs[0])
    stored = read_pair(tmp_path / "pair_000000.npz")
    for key, value in pairs[0].items():
        assert stored[key].dtype == value.dtype and stored[key].shape == value.shape
        np.testing.assert_allclose(stored[key], value, atol=5e-3)
    (tmp_path / "pair_000001.npz").write_bytes((tmp_path / "pair_000000.npz").read_bytes()[:1000])
    with pytest.raises(ValueError, match="pair_000001.npz"):
        StoredPairs(tmp_path)[1]


def test_storing_continues_where_it_was_cut_off(tmp_path, pairs):
    class Half:
        asked: list[int] = []

        def __len__(self):
            return 4

        def __getitem__(self, index):
            self.asked.append(index)
            if index == 2 and self.asked.count(2) == 1:
                raise KeyboardInterrupt
            return pairs[0]

    source = Half()
    with pytest.raises(KeyboardInterrupt):
        store_pairs(source, tmp_path / "c", {"a": 1})
    store_pairs(source, tmp_path / "c", {"a": 1})
    assert source.asked == [0, 1, 2, 2, 3]
    assert len(StoredPairs(tmp_path / "c")) == 4
    with pytest.raises(ValueError, match="other settings"):
        store_pairs(source, tmp_path / "c", {"a": 2})


def test_cropped_pairs_keep_their_correspondence(pairs):
    crop = crop_pair(pairs[0], (96, 64), np.random.default_rng(0))
    assert crop["image0"].shape == (64, 96, 3) and crop["warp10"].shape == (64, 96, 2)
    seen = np.isfinite(crop["warp01"][..., 0])
    assert np.nanmin(crop["warp01"]) >= 0 and np.nanmax(crop["warp01"][..., 0]) <= 95
    if seen.any():
        grey = cv2.cvtColor(crop["image0"], cv2.COLOR_RGB2GRAY).astype(np.float32)
        assert np.abs(warped(crop["image1"], crop["warp01"]) - grey)[seen].mean() < 8
    with pytest.raises(ValueError, match="160x120"):
        crop_pair(pairs[0], (320, 64), np.random.default_rng(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_has_the_contract_s_shapes(pairs, channels):
    batch = to_batch([pairs[0], pairs[1]], channels)
    assert batch.image0.shape == (2, channels, 120, 160) and batch.image0.dtype == torch.float32
    assert batch.image0.min() >= 0 and batch.image0.max() <= 1
    assert batch.warp01.shape == (2, 120, 160, 2)
    np.testing.assert_array_equal(batch.valid01[0, 0].numpy(), np.isfinite(pairs[0]["warp01"][..., 0]))
    assert not batch.has_teacher0.any() and not batch.has_teacher1.any()


def test_the_sampler_visits_every_pair_and_repeats_by_seed(pairs):
    torch.manual_seed(3)
    sampler = PairSampler(pairs, (64, 48))
    seen = torch.cat([sampler.sample(2).image0 for _ in range(3)])
    assert seen.shape == (6, 1, 48, 64) and len({image.sum().item() for image in seen}) == 6
    torch.manual_seed(3)
    again = PairSampler(pairs, (64, 48)).sample(2)
    assert torch.equal(again.image0, seen[:2])


class Numbered:
    """20 pairs that differ in the colour of their first image."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        image, warp = np.full((8, 8, 3), index, np.uint8), np.zeros((8, 8, 2), np.float32)
        return {"image0": image, "image1": image, "warp01": warp, "warp10": warp}


def test_every_epoch_of_the_sampler_has_an_order_of_its_own():
    torch.manual_seed(0)
    sampler = PairSampler(Numbered())
    epochs = [(sampler.sample(20).image0[:, 0, 0, 0] * 255).round().int().tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(20))]}) == 4


def test_views_of_different_things_make_no_pair():
    image, depth = np.zeros((60, 80, 3), np.uint8), np.full((60, 80), 2, np.float32)
    view = View(image, depth, pinhole((80, 60)))
    behind = camera_pose(np.zeros(3), np.pi)
    assert make_pair(view, view, behind, (80, 60), np.random.default_rng(0)) is None


def test_the_command_fills_a_cache(tmp_path):
    arguments = ["scenes", "--textures", "skimage", "--output", str(tmp_path), "--pairs", "2", "--width", "64"]
    result = CliRunner().invoke(app, [*arguments, "--height", "48", "--scenes", "planes"])
    assert result.exit_code == 0, result.output
    assert StoredPairs(tmp_path)[1]["image0"].shape == (48, 64, 3)
    result = CliRunner().invoke(app, [*arguments, "--height", "64"])
    assert result.exit_code == 1 and "other settings" in result.output
    result = CliRunner().invoke(app, [*arguments, "--scenes", "moon"])
    assert result.exit_code == 2 and "scene kind ['moon']: expected some of room" in result.output


def test_pairs_that_do_not_fit_are_read_when_needed(tmp_path, pairs, capsys):
    for name in ("a", "b"):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            write_pair(tmp_path / name / f"pair_{index:06d}.npz", pairs[index])
    every = AllPairs([StoredPairs(tmp_path / name) for name in ("a", "b")])
    size = sum(part.nbytes for part in every[0].values())
    kept, read = kept_pairs(every, 4 * size), kept_pairs(every, 4 * size - 1)
    assert isinstance(kept, list) and read is every and len(kept) == len(read) == 4
    assert "4 pairs take" in capsys.readouterr().out
    for index in range(4):
        np.testing.assert_array_equal(kept[index]["warp01"], read[index]["warp01"])
    assert kept_pairs(AllPairs([]), 1e9) == []
