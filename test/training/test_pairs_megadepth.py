"""MegaDepth's published layouts, made in miniature out of a rendered scene."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from training.data.megadepth_pairs import MegaDepthPairs, SceneInfo, read_depth
from training.data.pair_teacher import PairTeacher
from training.data.photo_store import content_hash, find_photos, read_photo
from training.data.scenes import SCENES, fly_through, load_textures, pinhole
from training.data.stored_pairs import PairSampler, StoredPairs, store_pairs, to_batch
from training.data.teacher_store import TeacherEntry, TeacherStore
from training.pairs import app

FRAMES = 6
SIZES = [(160, 120), (120, 160)]  # portrait and landscape, as photographs are
ARCHIVE = "phoenix/S6/zl548/MegaDepth_v1/0007/dense0"


@pytest.fixture(scope="module")
def rendered():
    scene = SCENES["planes"](np.random.default_rng(1), load_textures("skimage"))
    poses = fly_through(scene, np.random.default_rng(1), FRAMES, rate_hz=2, speed=0.5)
    matrices = [pinhole(SIZES[i % 2], 70) for i in range(FRAMES)]
    return [(scene.render(matrices[i], SIZES[i % 2], pose), matrices[i], pose) for i, pose in enumerate(poses)]


def colmap(matrix):
    """The camera matrix as MegaDepth has it: the first pixel's centre is (0.5, 0.5)."""
    return matrix + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def write_scene(root: Path, rendered, layout: str) -> Path:
    """Images and depths below root, scene information in root/scene_info; layout d2net or loftr."""
    images = root / ("Undistorted_SfM/0007/images" if layout == "d2net" else f"{ARCHIVE}/imgs")
    depths, infos = root / ARCHIVE / "depths", root / "scene_info"
    for folder in (images, depths, infos):
        folder.mkdir(parents=True)
    for index, (view, _, _) in enumerate(rendered):
        cv2.imwrite(str(images / f"{index}.jpg"), view.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        with h5py.File(depths / f"{index}.h5", "w") as file:
            file["depth"] = view.depth
    info: dict[str, Any] = {
        # both index files name the images by D2-Net's undistorted folder; a reconstruction has holes
        "image_paths": np.array([f"Undistorted_SfM/0007/images/{i}.jpg" for i in range(FRAMES)] + [None], object),
        "depth_paths": np.array([f"{ARCHIVE}/depths/{i}.h5" for i in range(FRAMES)] + [None], object),
        "intrinsics": np.array([colmap(m) for _, m, _ in rendered] + [None], object),
        "poses": np.array([np.linalg.inv(pose) for _, _, pose in rendered] + [None], object),
    }
    if layout == "d2net":
        overlap = np.full((FRAMES + 1, FRAMES + 1), 0.5)
        overlap[0] = 0.95
        np.savez(infos / "0007.0.npz", overlap_matrix=overlap, scale_ratio_matrix=np.ones_like(overlap), **info)
    else:
        info["pair_infos"] = [((i, i + 1), 0.5, None) for i in range(FRAMES - 1)] + [((0, 5), 0.05, None)]
        with (infos / "0007_0.1_0.3.npz").open("wb") as file:
            pickle.dump(info, file)
    return root


@pytest.fixture(params=["d2net", "loftr"])
def root(request, tmp_path, rendered) -> Path:
    return write_scene(tmp_path, rendered, request.param)


def test_pairs_agree_with_their_images(root):
    pairs = MegaDepthPairs(root, root / "scene_info", (96, 96))
    assert len(pairs) >= 5
    for index in range(len(pairs)):
        pair = pairs[index]
        assert pair["image0"].shape == (96, 96, 3)
        grey0, grey1 = (cv2.cvtColor(pair[key], cv2.COLOR_RGB2GRAY).astype(np.float32) for key in ("image0", "image1"))

        def error(shift, warp=pair["warp01"], grey0=grey0, grey1=grey1):
            seen = np.isfinite(warp[..., 0])
            sampled = cv2.remap(grey1, *np.nan_to_num(warp + shift, nan=-9).transpose(2, 0, 1), cv2.INTER_LINEAR)
            return np.abs(sampled - grey0)[seen].mean()

        assert error(np.float32(0)) < 0.75 * error(np.float32(2))
    np.testing.assert_array_equal(pairs[2]["warp01"], MegaDepthPairs(root, root / "scene_info", (96, 96))[2]["warp01"])


def test_a_zoom_keeps_the_middle_of_the_image(tmp_path):
    """A wall seen from one place at twice the focal length: image corners, not pixel centres, are COLMAP's origin."""
    size = width, height = (96, 64)
    pictures = tmp_path / "imgs"
    pictures.mkdir()
    for name in "01":
        cv2.imwrite(str(pictures / f"{name}.png"), np.zeros((height, width, 3), np.uint8))
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["depth"] = np.full((height, width), 3.0)
    published = [np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]) for f in (80.0, 160.0)]
    np.savez(
        tmp_path / "scene.npz",
        image_paths=np.array(["imgs/0.png", "imgs/1.png"]),
        depth_paths=np.array(["0.h5", "1.h5"]),
        intrinsics=np.array(published),
        poses=np.array([np.eye(4)] * 2),
        pair_infos=np.array([((0, 1), 0.5)], object),
    )
    warp = MegaDepthPairs(tmp_path, tmp_path / "scene.npz", size)[0]["warp01"]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    expected = np.stack([2 * x - (width - 1) / 2, 2 * y - (height - 1) / 2], -1)  # twice as far from the middle
    seen = np.isfinite(warp).all(-1)
    assert seen.mean() > 0.2
    np.testing.assert_allclose(warp[seen], expected[seen], atol=1e-3)


def brightness(image):
    """Groups 1 to 4 of an RGB or BGR image (H, W, 3): how bright a pixel is."""
    return np.uint16(image.mean(-1) // 64 + 1)


def teach(root, store, column=False, skip=()):
    """A store whose groups say how bright the photographs are, and the embedding which column of 64 it is."""
    store.create({})
    for photo in find_photos(root):
        if photo.name.endswith(skip):
            continue
        image = read_photo(photo.path)
        groups = brightness(image)[None]
        embedding = np.tile(np.arange(1, 65, dtype=np.float16), (256, 64, 1)) if column else None
        entry = TeacherEntry(groups, groups == 4, embedding)
        store.write(photo.name, entry.arrays(), {**entry.meta(), "content": content_hash(photo.path)})


@pytest.mark.parametrize("size", [(96, 96), (64, 48)])
def test_teacher_output_follows_the_photographs_into_pairs(root, tmp_path, size):
    source = MegaDepthPairs(root, root / "scene_info", (96, 96))
    store_pairs(source, tmp_path / "pairs", {})
    pairs, store = StoredPairs(tmp_path / "pairs"), TeacherStore(tmp_path / "store")
    teach(root, store, column=True)
    teacher = PairTeacher(store, pairs)
    assert teacher.embedded
    torch.manual_seed(0)
    batch = PairSampler(pairs, size, 3, teach=teacher.add).sample(5)
    assert batch.has_teacher0.all() and batch.has_teacher1.all()
    for side in "01":
        image = getattr(batch, f"image{side}").permute(0, 2, 3, 1).numpy() * 255
        groups, edges = getattr(batch, f"groups{side}").numpy(), getattr(batch, f"edges{side}").numpy()[:, 0]
        # the photographs are 120 pixels wide or high and were brought to 96: brightness changes a little by that
        assert (groups == brightness(image)).mean() > 0.9
        assert ((edges == 1) == (groups == 4)).all()
        # a photograph is 160 pixels at its longest: a cell of its embedding is 2.5 of them, and 2 of a pair's
        columns = getattr(batch, f"embedding{side}")[:, 0]
        step = (columns[..., 1:] - columns[..., :-1])[columns[..., 1:] > 0]
        assert step.median() == pytest.approx(8 * 1.25 / 2.5, abs=0.05)


def test_pairs_without_teacher_output_join_those_with_some(root, tmp_path):
    pairs = MegaDepthPairs(root, root / "scene_info", (96, 96))
    store = TeacherStore(tmp_path / "store")
    teach(root, store, skip=("0", "2"))
    teacher = PairTeacher(store, pairs)
    drawn = [pairs[index] for index in range(len(pairs))]
    batch = to_batch(drawn, 3)
    teacher.add(batch, drawn)
    named = [str(pair["photo0"]).endswith(("0.jpg", "2.jpg")) for pair in drawn]
    assert batch.has_teacher0.tolist() == [not missing for missing in named] and any(named)
    assert not batch.groups0[named].any() and batch.groups0[~torch.tensor(named)].any()
    assert batch.embedding0 is None
    plain = {key: value for key, value in drawn[0].items() if not key.startswith(("photo", "content", "crop"))}
    teacher.add(batch := to_batch([plain], 3), [plain])
    assert not batch.has_teacher0.any() and batch.edges1.shape == (1, 1, 96, 96)


def test_teacher_output_of_another_photograph_is_not_taken(root, tmp_path):
    pairs = MegaDepthPairs(root, root / "scene_info", (96, 96))
    store = TeacherStore(tmp_path / "store")
    teach(root, store)
    drawn = [{**pairs[0], "content0": np.array("another")}]
    teacher = PairTeacher(store, drawn)
    teacher.add(batch := to_batch(drawn, 3), drawn)
    assert batch.has_teacher0.tolist() == [False] and batch.has_teacher1.tolist() == [True]


def test_the_overlap_bounds_choose_the_pairs(tmp_path, rendered):
    d2net = write_scene(tmp_path / "a", rendered, "d2net")
    (info,) = (d2net / "scene_info").glob("*.npz")
    scene = SceneInfo.read(info, (0.1, 0.9))
    assert len(scene.pairs) == (FRAMES - 1) ** 2  # row 0 overlaps too much, frame 6 has no image
    assert len(SceneInfo.read(info, (0.9, 1.0)).pairs) == FRAMES - 1
    assert not len(SceneInfo.read(info, (0.1, 0.9), max_scale_ratio=0.5).pairs)
    loftr = write_scene(tmp_path / "b", rendered, "loftr")
    (info,) = (loftr / "scene_info").glob("*.npz")
    assert SceneInfo.read(info, (0.1, 0.9)).pairs.tolist() == [[i, i + 1] for i in range(FRAMES - 1)]
    with pytest.raises(ValueError, match="no pair with an overlap"):
        MegaDepthPairs(loftr, info, overlap=(0.95, 1.0))


def test_large_scenes_do_not_outweigh(root):
    assert len(MegaDepthPairs(root, root / "scene_info", pairs_per_scene=3)) == 3


def test_a_bad_photograph_is_listed_and_skipped(root):
    (image,) = list(root.rglob("2.jpg"))
    image.write_bytes(b"not a picture")
    (root / ARCHIVE / "depths" / "4.h5").write_bytes(b"not a depth map")
    pairs = MegaDepthPairs(root, root / "scene_info", (64, 64))
    assert all(pairs[index]["image0"].shape == (64, 64, 3) for index in range(len(pairs)))
    assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in pairs.skipped) == ["2.jpg", "4.h5"]


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="no scene information"):
        MegaDepthPairs(tmp_path, tmp_path)
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.npz"):
        MegaDepthPairs(tmp_path, tmp_path)
    np.savez(tmp_path / "junk.npz", image_paths=np.array(["a"]))
    with pytest.raises(ValueError, match="no array 'depth_paths'"):
        MegaDepthPairs(tmp_path, tmp_path)
    (tmp_path / "junk.npz").write_bytes(pickle.dumps({"image_paths": print}))
    with pytest.raises(ValueError, match=r"junk.npz: not .* wants to run code: builtins.print"):
        MegaDepthPairs(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        read_depth(tmp_path / "none.h5")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["depth"] = np.zeros(5)
    with pytest.raises(ValueError, match="two dimensions"):
        read_depth(tmp_path / "flat.h5")


def test_the_command_fills_a_cache(root, tmp_path):
    arguments = [
        "megadepth",
        "--root",
        str(root),
        "--scene-info",
        str(root / "scene_info"),
        "--output",
        str(tmp_path / "cache"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--pairs", "2", "--width", "64", "--height", "48"])
    assert result.exit_code == 0, result.output
    assert StoredPairs(tmp_path / "cache")[0]["image1"].shape == (48, 64, 3)
    result = CliRunner().invoke(app, [*arguments[:3], "--scene-info", "/none", "--output", str(tmp_path / "x")])
    assert result.exit_code == 1 and "/none" in result.output
