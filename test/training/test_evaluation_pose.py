"""Relative pose AUC against known geometry, and the published pair lists, on images that carry their number."""

import pickle
import zipfile

import cv2
import numpy as np
import pytest

from samfeat_core.features import Features
from training.data.archives import read_archive
from training.evaluation import pairlists, pose
from training.evaluation.extractors import TimedExtractor
from training.evaluation.images import ImageStore
from training.evaluation.suites import Options, megadepth_suite, pairs_suite, pose_suite, scannet_suite

MATRIX = np.array([[400.0, 0, 319.5], [0, 410, 239.5], [0, 0, 1]])
SIZE = (640, 480)
WORLD = np.random.default_rng(3).uniform((-2, -1.5, 4), (2, 1.5, 9), (200, 3))


def pose_of(step, degrees=0.0):
    """Camera-to-world: ``step`` metres along x and a third along y, turned about y."""
    turn = cv2.Rodrigues(np.radians([0, degrees, 0]))[0]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, (step, step / 3, 0)
    return matrix


def see(camera_to_world, matrix=MATRIX, size=SIZE):
    """Features of the world's points, descriptor = which point."""
    inside = (WORLD - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    points = inside @ matrix.T
    points = points[:, :2] / points[:, 2:]
    scores = np.linspace(1, 0.5, len(WORLD), dtype=np.float32)
    return Features(points.astype(np.float32), scores, np.eye(len(WORLD), dtype=np.float32), size)


def write_image(path, number, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), number, np.uint8))


def write_sequence(folder, poses):
    for n in range(len(poses)):
        write_image(folder / "image" / f"{n:06d}.png", n)
    np.savetxt(folder / "poses.txt", np.reshape([p[:3] for p in poses], (len(poses), 12)))
    projection = np.hstack([MATRIX, np.zeros((3, 1))]).ravel()
    (folder / "calib.txt").write_text("P0: " + " ".join(map(str, projection)) + "\n")


def lookup(table):
    return lambda image: table[int(image[0, 0, 0])]


def turned(relative):
    return " ".join(f"{value:.12g}" for value in np.ravel(relative))


def test_true_geometry_scores_full(tmp_path):
    poses = [pose_of(0.1 * n, n) for n in range(11)]
    write_sequence(tmp_path / "sequences" / "walk", poses)
    (task,) = pose_suite(tmp_path, Options())
    result = task.run("prepared", lookup([see(p) for p in poses]))
    assert result["pairs"] == 3  # gap 5 from frames 0 and 5, gap 10 from frame 0
    assert result["matches"] == result["keypoints"] == 200
    assert result["inliers"] > 195 and result["failed"] == 0
    assert min(result["auc"].values()) > 99
    assert result["median_error_deg"] < 0.05


def test_known_rotation_error_gives_the_area_by_hand(tmp_path):
    poses = [pose_of(0.3 * n) for n in range(2)]
    write_sequence(tmp_path / "sequences" / "walk", poses)
    # what is seen has the second camera turned by 4 degrees, which the poses do not say
    seen = [see(poses[0]), see(pose_of(0.3, 4))]
    (task,) = pose_suite(tmp_path, Options(gaps=(1,), every=1))
    result = task.run("prepared", lookup(seen))
    error = result["median_error_deg"]
    assert error == pytest.approx(4, abs=0.05)
    # the curve rises linearly to 1 at the only error and stays there
    for limit in (5, 10, 20):
        assert result["auc"][str(limit)] == pytest.approx(100 * (error / 2 + limit - error) / limit, abs=1e-6)


def test_too_few_matches_count_as_failure(tmp_path):
    poses = [pose_of(0.3 * n) for n in range(3)]
    write_sequence(tmp_path / "sequences" / "walk", poses)
    (task,) = pose_suite(tmp_path, Options(gaps=(1,), every=1))
    result = task.run("prepared", lookup([see(poses[0]), see(poses[1]), Features.empty(SIZE, 200)]))
    assert result["pairs"] == 2 and result["failed"] == 1
    # one perfect pair of two: half the recall from the start on
    assert result["auc"]["20"] == pytest.approx(50, abs=0.5)


def test_kitchen_and_drive_have_their_own_gaps(tmp_path):
    write_sequence(tmp_path / "sequences" / "kitchen", [pose_of(0.05 * n) for n in range(30)])
    (task,) = pose_suite(tmp_path, Options())
    first = [int(pair.first.stem) for pair in task.pairs]
    gap = [int(pair.second.stem) - int(pair.first.stem) for pair in task.pairs]
    assert first == [0, 8, 16, 0, 8, 16] and gap == [6, 6, 6, 12, 12, 12]


def test_too_short_sequence_is_refused(tmp_path):
    write_sequence(tmp_path / "sequences" / "walk", [pose_of(0), pose_of(1)])
    with pytest.raises(ValueError, match="walk: 2 frames are too few"):
        pose_suite(tmp_path, Options())
    with pytest.raises(ValueError, match="no posed sequences"):
        pose_suite(tmp_path / "sequences" / "walk", Options())


# Pair lists: camera 1 has its own matrix and image size, so that a mix-up shows.
MATRIX1 = np.array([[500.0, 0, 399.5], [0, 500, 299.5], [0, 0, 1]])
SIZE1 = (800, 600)
POSES = [pose_of(0), pose_of(0.5, 6)]
RELATIVE = np.linalg.inv(POSES[1]) @ POSES[0]


def write_pair(root):
    write_image(root / "a" / "0.png", 0)
    write_image(root / "a" / "1.png", 1, SIZE1)


def run_pairs(pairs, images=None, table=None):
    table = table or [see(POSES[0]), see(POSES[1], MATRIX1, SIZE1)]
    return pose.evaluate(pairs, TimedExtractor("x", lookup(table), images or ImageStore(), 1024))


def superglue_line(rotation="0 0"):
    return f"a/0.png a/1.png {rotation} {turned(MATRIX)} {turned(MATRIX1)} {turned(RELATIVE)}\n"


@pytest.mark.parametrize("folder", [".", "images"])
def test_superglue_list(tmp_path, folder):
    write_pair(tmp_path / folder)
    (tmp_path / "pairs_with_gt.txt").write_text(superglue_line())
    pairs, name = pairlists.read_list(tmp_path)
    assert name == "pairs_with_gt.txt"
    assert run_pairs(pairs)["auc"]["5"] > 99


def test_superglue_rotations_show_the_extractor_upright_images(tmp_path):
    write_image(tmp_path / "a" / "0.png", 0)
    write_image(tmp_path / "a" / "1.png", 1, SIZE1)
    (tmp_path / "pairs_with_gt.txt").write_text(superglue_line("1 3"))
    pairs, _ = pairlists.read_list(tmp_path)
    shapes = []

    def extractor(image):
        number = int(image[0, 0, 0])
        shapes.append(image.shape[:2])
        seen = see(POSES[number], (MATRIX, MATRIX1)[number], (SIZE, SIZE1)[number])
        turns, (width, height) = (1, 3)[number], seen.image_size
        points = seen.keypoints
        for _ in range(turns):  # a quarter turn counter-clockwise, as numpy.rot90 does to the image
            points = np.stack([points[:, 1], width - 1 - points[:, 0]], axis=1)
            width, height = height, width
        return Features(points, seen.scores, seen.descriptors, (width, height))

    result = pose.evaluate(pairs, TimedExtractor("x", extractor, ImageStore(), 1024))
    assert shapes == [(640, 480), (800, 600)]
    assert result["auc"]["5"] > 99


def test_turning_agrees_with_numpy():
    image = np.zeros((5, 7), np.uint8)
    image[1, 6] = 1
    for turns in range(4):
        rotated = np.rot90(image, turns)
        y, x = np.argwhere(rotated)[0]
        found = Features(np.float32([[x, y]]), np.ones(1, np.float32), np.ones((1, 1), np.float32), rotated.shape[::-1])
        back = pose.turn_back(found, turns)
        assert back.keypoints.tolist() == [[6, 1]] and back.image_size == (7, 5)


def test_glue_factory_list(tmp_path):
    write_pair(tmp_path / "megadepth1500" / "images")
    line = f"a/0.png a/1.png {turned(MATRIX)} {turned(MATRIX1)} {turned(RELATIVE[:3, :3])} {turned(RELATIVE[:3, 3])}\n"
    (tmp_path / "megadepth1500" / "pairs_calibrated.txt").write_text(line * 3)
    (task,) = megadepth_suite(tmp_path, Options())
    result = task.run("prepared", lookup([see(POSES[0]), see(POSES[1], MATRIX1, SIZE1)]))
    assert result["pairs"] == 3 and result["images"] == 2
    assert result["protocol"]["list"] == "pairs_calibrated.txt"
    assert result["auc"]["5"] > 99


def view_line(name, pose, model, size, *parameters):
    world_to_camera = np.linalg.inv(pose)
    numbers = (*world_to_camera[:3, :3].ravel(), *world_to_camera[:3, 3])
    return f"{name} {turned(numbers)} {model} {size[0]} {size[1]} {turned(parameters)}\n"


def write_views(folder, first=None, second=None, pairs="a/0.png a/1.png\na/1.png a/0.png\n"):
    """COLMAP's principal points are half a pixel further than ours."""
    write_pair(folder / "images")
    first = first or view_line("a/0.png", POSES[0], "PINHOLE", SIZE, 400, 410, 320, 240)
    second = second or view_line("a/1.png", POSES[1], "SIMPLE_PINHOLE", SIZE1, 500, 400, 300)
    (folder / "views.txt").write_text(first + second)
    (folder / "pairs.txt").write_text(pairs)


@pytest.mark.parametrize("scene", [".", "0022"])
def test_views_and_pairs(tmp_path, scene):
    write_views(tmp_path / "megadepth1500" / scene)
    (task,) = megadepth_suite(tmp_path, Options())
    pair = task.pairs[0]
    np.testing.assert_allclose(pair.matrix0, MATRIX, atol=1e-9)
    np.testing.assert_allclose(pair.matrix1, MATRIX1, atol=1e-9)
    np.testing.assert_allclose(pair.transform, RELATIVE, atol=1e-9)
    result = task.run("prepared", lookup([see(POSES[0]), see(POSES[1], MATRIX1, SIZE1)]))
    assert result["pairs"] == 2 and result["auc"]["5"] > 99 and result["median_error_deg"] < 0.05
    assert result["best"]["auc"]["5"] > 99


def test_a_view_may_be_calibrated_at_another_size(tmp_path):
    half = view_line("a/1.png", POSES[1], "RADIAL", (400, 300), 250, 200, 150, 0, 0)
    write_views(tmp_path / "pairs" / "eth3d", second=half)
    (task,) = pairs_suite(tmp_path, Options())
    result = task.run("prepared", lookup([see(POSES[0]), see(POSES[1], MATRIX1, SIZE1)]))
    assert (result["suite"], result["dataset"]) == ("pairs", "eth3d")
    assert result["auc"]["5"] > 99 and result["median_error_deg"] < 0.05


def test_cameras_of_colmap_are_brought_to_our_pixels(tmp_path):
    write_pair(tmp_path)
    write_scene_info(tmp_path / "scene.npz")
    np.testing.assert_allclose(pairlists.read_list(tmp_path)[0][0].matrix0[:2, 2], [319.0, 239.0])
    line = f"a/0.png a/1.png {turned(MATRIX)} {turned(MATRIX1)} {turned(RELATIVE[:3, :3])} {turned(RELATIVE[:3, 3])}\n"
    (tmp_path / "pairs.txt").write_text(line)
    np.testing.assert_allclose(pairlists.read_list(tmp_path)[0][0].matrix1[:2, 2], [399.0, 299.0])
    (tmp_path / "pairs.txt").write_text(superglue_line())  # ScanNet's are not COLMAP's
    np.testing.assert_allclose(pairlists.read_list(tmp_path)[0][0].matrix0, MATRIX)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": "a/0.png\n"}, r"pairs\.txt: line 1: expected the names of two images of views\.txt, got a/0\.png"),
        ({"pairs": "a/0.png a/7.png\n"}, r"pairs\.txt: line 1: expected the names"),
        ({"first": "a/0.png 1 0 0\n"}, r"views\.txt: line 1: expected name R\(9\) t\(3\) MODEL"),
        (
            {"first": view_line("a/0.png", POSES[0], "OPENCV", SIZE, 400, 410, 320, 240, 0.1, 0, 0, 0)},
            r"views\.txt: line 1: .* OPENCV with distortion \[0\.1",
        ),
        (
            {"second": view_line("a/1.png", POSES[1], "FISHEYE", SIZE, 400, 320, 240)},
            r"views\.txt: line 2: .*FISHEYE, expected one of SIMPLE_PINHOLE",
        ),
        ({"first": view_line("a/9.png", POSES[0], "PINHOLE", SIZE, 400, 410, 320, 240)}, "no image a/9"),
        ({"first": view_line("a/0.png", 2 * POSES[0], "PINHOLE", SIZE, 400, 410, 320, 240)}, "is not a rotation"),
    ],
)
def test_bad_views_name_file_and_line(tmp_path, changes, said):
    write_views(tmp_path, **changes)
    with pytest.raises(ValueError, match=said):
        pairlists.read_list(tmp_path)


def test_views_without_pairs(tmp_path):
    write_views(tmp_path)
    (tmp_path / "pairs.txt").unlink()
    with pytest.raises(ValueError, match=r"pairs\.txt: no such file"):
        pairlists.read_list(tmp_path)


def test_the_swept_threshold_is_reported_beside_the_fixed_one(tmp_path):
    """Keypoints with 1 px of noise: half a pixel keeps too few of them."""
    poses = [pose_of(0.3 * n, n) for n in range(6)]
    write_sequence(tmp_path / "sequences" / "walk", poses)
    random = np.random.default_rng(0)
    noisy = [see(p) for p in poses]
    for features in noisy:
        features.keypoints[:] += random.normal(0, 1, features.keypoints.shape).astype(np.float32)
    (task,) = pose_suite(tmp_path, Options(gaps=(1,), every=1, threshold_px=0.5))
    result = task.run("prepared", lookup(noisy))
    (other,) = pose_suite(tmp_path, Options(gaps=(1,), every=1, threshold_px=result["best"]["threshold_px"]))
    at_best = other.run("prepared", lookup(noisy))
    assert result["best"]["threshold_px"] > 0.5
    assert result["best"]["auc"] == at_best["auc"]
    assert sum(result["best"]["auc"].values()) > sum(result["auc"].values())


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def write_scene_info(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "image_paths": object_array([None, "a/0.png", "a/1.png"]),
        "depth_paths": object_array([None, "a/0.h5", "a/1.h5"]),
        "intrinsics": object_array([None, MATRIX, MATRIX1]),
        "poses": object_array([None, *(np.linalg.inv(p) for p in POSES)]),
        "pair_infos": object_array([((1, 2), 0.4, np.zeros((3, 4))), ((2, 1), 0.4, None)]),
    }
    np.savez(path, **{**arrays, **changes})


def test_loftr_scene_info(tmp_path):
    root = tmp_path / "megadepth1500"
    write_pair(root)
    write_scene_info(root / "megadepth_test_1500_scene_info" / "0015_0.1_0.3.npz")
    (root / "megadepth_test_1500.txt").write_text("0015_0.1_0.3\n")  # LoFTR's list of archives: not a pair list
    (task,) = megadepth_suite(tmp_path, Options())
    result = task.run("prepared", lookup([see(POSES[0]), see(POSES[1], MATRIX1, SIZE1)]))
    assert result["pairs"] == 2
    assert result["auc"]["5"] > 99


def scaled(matrix, factor):
    """Camera matrix for the image resized by ``factor``, half-pixel centres."""
    half = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])
    return half @ matrix


@pytest.mark.parametrize("with_poses", [False, True])
def test_loftr_scannet(tmp_path, with_poses):
    root = tmp_path / "scannet1500"
    scene = root / "scannet_test_1500" / "scene0707_00"
    for number in (0, 1):
        write_image(scene / "color" / f"{15 * number}.jpg", 100 * number, (1296, 972))
    arrays = {"name": np.array([[707, 0, 0, 15]], np.uint16)}
    if with_poses:
        (scene / "pose").mkdir()
        for number, matrix in enumerate(POSES):
            np.savetxt(scene / "pose" / f"{15 * number}.txt", matrix)
        np.savez(root / "intrinsics.npz", scene0707_00=MATRIX)
    else:
        arrays["rel_pose"] = RELATIVE[:3].reshape(1, 12)
        (scene / "intrinsic").mkdir()
        colour = np.eye(4)
        colour[:3, :3] = scaled(MATRIX, 1296 / 640)
        np.savetxt(scene / "intrinsic" / "intrinsic_color.txt", colour)
    np.savez(root / "test.npz", **arrays)
    (task,) = scannet_suite(tmp_path, Options())
    result = task.run("prepared", lookup({0: see(POSES[0]), 100: see(POSES[1])}))
    assert result["auc"]["5"] > 99 and result["median_error_deg"] < 0.05
    assert result["protocol"]["size"] == SIZE


def test_camera_follows_the_shrunk_image(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "pairs.txt").write_text(superglue_line())
    small = [
        see(POSES[0], scaled(MATRIX, 0.5), (320, 240)),
        see(POSES[1], scaled(MATRIX1, 0.4), (320, 240)),
    ]
    result = run_pairs(pairlists.read_list(tmp_path)[0], ImageStore(320), small)
    assert result["auc"]["5"] > 99 and result["median_error_deg"] < 0.05


class Intruder:
    def __reduce__(self):
        return (print, ("code of the archive ran",))


def test_archive_cannot_run_code(tmp_path, capsys):
    write_pair(tmp_path)
    write_scene_info(tmp_path / "scene.npz", intrinsics=object_array([Intruder(), Intruder()]))
    with pytest.raises(
        ValueError, match=r"scene\.npz: not a readable NumPy archive \(refused, it wants to run code: builtins\.print"
    ):
        pairlists.read_list(tmp_path)
    assert "code of the archive" not in capsys.readouterr().out


def write_text(text):
    return lambda root: (root / "pairs.txt").write_text(text)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_text(superglue_line() + "a/0.png a/1.png 1 2 3\n"), r"pairs\.txt: line 2: 5 words; expected 38 or 32"),
        (write_text(superglue_line().replace("400", "wide", 1)), r"pairs\.txt: line 1: could not convert"),
        (write_text(superglue_line().replace("400", "-400", 1)), r"pairs\.txt: line 1: not a camera matrix"),
        (write_text(superglue_line().replace("a/1.png", "a/9.png")), r"pairs\.txt: line 1: no image a/9\.png"),
        (write_text(superglue_line().replace(turned(RELATIVE), turned(2 * RELATIVE))), "line 1: the relative pose"),
        (lambda root: None, "no pair list"),
        (lambda root: (root / "test.npz").write_bytes(b"PK broken"), r"test\.npz: not a readable NumPy archive"),
        (lambda root: np.savez(root / "test.npz", other=np.zeros(3)), r"test\.npz: no array 'name' \(has other\)"),
        (lambda root: np.savez(root / "test.npz", name=np.zeros((2, 3))), r"test\.npz: 'name' has shape \(2, 3\)"),
        (lambda root: np.savez(root / "x.npz", pair_infos=np.zeros(3)), r"x\.npz: no array 'image_paths'"),
        (
            lambda root: write_scene_info(root / "x.npz", pair_infos=object_array([((1, 7), 0.1, None), None])),
            r"x\.npz: pair 0: malformed",
        ),
    ],
)
def test_bad_lists_name_file_and_line(tmp_path, write, said):
    write_pair(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match=said):
        pairlists.read_list(tmp_path)


def test_archives_written_by_numpy_1_load(tmp_path):
    """NumPy 1 names numpy.core in its pickles, NumPy 2 numpy._core."""
    path = tmp_path / "old.npz"
    payload = pickle.dumps(object_array(["a/0.png"]), protocol=2).replace(b"numpy._core.", b"numpy.core.")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image_paths.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload)
    assert read_archive(path)["image_paths"].tolist() == ["a/0.png"]
