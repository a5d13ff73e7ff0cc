"""MMA, homography accuracy, repeatability against truths worked out by hand, on flat images that carry their number.

An image is one grey value, its number; the extractor under test looks the number up and answers with prepared
keypoints. So every error of every match is known exactly, whatever the size or format of an image.
"""

import cv2
import numpy as np
import pytest

from samfeat_core.features import Features
from training.evaluation import homography
from training.evaluation.extractors import TimedExtractor, cut
from training.evaluation.images import ImageStore, resize_map
from training.evaluation.suites import Options, homography_suite, hpatches_suite
from training.evaluation.sweep import THRESHOLDS, best_threshold

SHIFT = np.array([[1.0, 0, 5], [0, 1, -3], [0, 0, 1]])
TILT = np.array([[1.05, 0.02, -12.0], [-0.03, 0.98, 7.0], [8e-5, -5e-5, 1]])


def write_scene(folder, number, homographies, size=(320, 240), suffix="ppm"):
    folder.mkdir(parents=True)
    width, height = size
    for k in range(1, len(homographies) + 2):
        cv2.imwrite(str(folder / f"{k}.{suffix}"), np.full((height, width, 3), number + k, np.uint8))
    for k, matrix in enumerate(homographies, 2):
        np.savetxt(folder / f"H_1_{k}", matrix)


def features(points, size=(320, 240), descriptors=None):
    points = np.asarray(points, np.float32).reshape(-1, 2)
    if descriptors is None:
        descriptors = np.eye(len(points), 64, dtype=np.float32)
    return Features(points, np.linspace(1, 0.5, len(points), dtype=np.float32), descriptors, size)


def grid(count=48, low=60, high=180, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (count, 2)).astype(np.float32)


def warp(points, matrix):
    return cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0]


def lookup(table):
    return lambda image: table[int(image[0, 0, 0])]


def run(folder, table, **options):
    (task,) = homography_suite(folder, Options(**options))
    return task.run("prepared", lookup(table))


def test_perfect_extractor(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [TILT, SHIFT])
    points = grid()
    result = run(tmp_path, {1: features(points), 2: features(warp(points, TILT)), 3: features(warp(points, SHIFT))})
    assert result["pairs"] == 2
    assert result["matches"] == result["keypoints"] == result["correct"] == 48
    assert set(result["mma"].values()) == {100.0}
    assert set(result["mha"].values()) == {100.0}
    assert result["repeatability"] == 100
    assert result["localisation_px"] == pytest.approx(0, abs=1e-3)


def test_known_error_shifts_the_curve(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [SHIFT])
    points = grid()
    off = warp(points, SHIFT) + (1.5, 2.0)  # 2.5 px, every one
    result = run(tmp_path, {1: features(points), 2: features(off)})
    assert [result["mma"][str(t)] for t in (1, 2, 3, 10)] == [0, 0, 100, 100]
    # a map that is off by the same 2.5 px everywhere
    assert result["mha"] == {"1": 0, "3": 100, "5": 100}
    assert 0 < result["localisation_px"] <= 2.5


def test_share_of_wrong_matches(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [SHIFT, SHIFT])
    points = grid()
    wrong = warp(points, SHIFT)
    wrong[:12] += 6.5
    right = features(warp(points, SHIFT))
    result = run(tmp_path, {1: features(points), 2: features(wrong), 3: right})
    assert result["mma"]["3"] == pytest.approx((75 + 100) / 2)
    assert result["mma"]["10"] == 100  # 6.5 * sqrt(2) = 9.2 px
    assert result["mma"]["9"] == pytest.approx(87.5)


def test_a_pair_without_matches_counts_as_zero(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [SHIFT, SHIFT])
    points = grid()
    nothing = Features.empty((320, 240), 64)
    result = run(tmp_path, {1: features(points), 2: nothing, 3: features(warp(points, SHIFT))})
    assert result["mma"]["1"] == result["mha"]["5"] == result["repeatability"] == 50
    assert result["matches"] == 24 and result["keypoints"] == 36
    everywhere_nothing = run(tmp_path, dict.fromkeys((1, 2, 3), nothing))
    assert everywhere_nothing["mma"]["10"] == 0 and everywhere_nothing["localisation_px"] is None


def test_large_images_shrink_and_the_homography_with_them(tmp_path):
    size = (1280, 960)
    write_scene(tmp_path / "homography" / "v_one", 0, [TILT], size)
    native = grid(low=300, high=800)
    to_small = resize_map(size, (640, 480))
    small = [features(warp(points, to_small), (640, 480)) for points in (native, warp(native, TILT))]
    result = run(tmp_path, {1: small[0], 2: small[1]})
    assert result["mma"]["1"] == 100 and result["localisation_px"] < 1e-3
    # the centre of the first 2x2 block of pixels is the centre of the first small pixel
    assert np.allclose(warp(np.array([[0.5, 0.5]]), to_small), 0)


def test_small_images_are_not_enlarged(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((100, 200, 3), np.uint8))
    image = ImageStore(640)(tmp_path / "1.png")
    assert image.size == image.native == (200, 100)
    assert np.array_equal(image.to_resized, np.eye(3))


def test_hpatches_leaves_out_eight_scenes_and_splits_the_rest(tmp_path):
    root = tmp_path / "hpatches"
    points = grid()
    table = {}
    for n, scene in enumerate(["i_good", "v_good", *homography.UNRELIABLE_SCENES]):
        write_scene(root / scene, 10 * n, [SHIFT])
        table[10 * n + 1] = features(points)
        table[10 * n + 2] = features(warp(points, SHIFT) + (0 if scene == "i_good" else 2.5))
    native, _ = hpatches_suite(tmp_path, Options())
    result = native.run("prepared", lookup(table))
    assert len(homography.UNRELIABLE_SCENES) == 8
    assert result["pairs"] == 2
    assert result["illumination"]["pairs"] == result["viewpoint"]["pairs"] == 1
    assert (result["illumination"]["mma"]["3"], result["viewpoint"]["mma"]["3"]) == (100, 0)
    assert result["mma"]["3"] == 50


def test_hpatches_is_also_seen_with_a_short_side_of_480(tmp_path):
    """The error of the corners is counted in those pixels, as glue-factory does."""
    native = (320, 240)
    write_scene(tmp_path / "hpatches" / "v_good", 0, [TILT], native)
    points, to_large = grid(), resize_map(native, (640, 480))
    large = [features(warp(p, to_large), (640, 480)) for p in (points, warp(points, TILT))]
    large[1] = features(large[1].keypoints + np.float32([2, 0]), (640, 480))  # every point 2 px off
    plain, resized = hpatches_suite(tmp_path, Options())
    assert (plain.dataset, resized.dataset) == ("hpatches", "hpatches 480")
    result = resized.run("prepared", lookup({1: large[0], 2: large[1]}))
    assert resized.protocol["short_side"] == 480
    # the only error is e = 2 px: recall rises linearly to 1 there
    assert result["best"]["auc"]["1"] == 0
    assert result["best"]["auc"]["5"] == pytest.approx(100 * (2 / 2 + 5 - 2) / 5, abs=1)
    assert len(hpatches_suite(tmp_path, Options(long_side=640))) == 1


def test_every_extractor_gets_the_threshold_that_suits_it(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [SHIFT])
    points = grid(64)
    noise = np.random.default_rng(1).normal(0, 0.8, points.shape)
    far = np.random.default_rng(2).uniform(-80, 80, points.shape) * (np.arange(64) >= 40)[:, None]
    result = run(tmp_path, {1: features(points), 2: features(warp(points, SHIFT) + noise + far)})
    swept = [
        homography.corner_error(
            homography.ransac_homography(points, np.float32(warp(points, SHIFT) + noise + far), threshold),
            SHIFT,
            homography.EvalImage(np.zeros((240, 320, 3), np.uint8), (320, 240), np.eye(3)),
        )
        for threshold in THRESHOLDS
    ]
    assert THRESHOLDS == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    assert result["best"]["threshold_px"] == THRESHOLDS[int(np.argmin(swept))]
    assert max(swept) > 1.5 * min(swept)


def test_the_best_threshold_is_that_of_the_largest_mean_area():
    errors = np.full((2, 6), np.inf)
    errors[:, 3] = 0.5, np.inf
    errors[:, 4] = 0.5, 4.0  # recovers both: more area in sum, less at 1 px
    best = best_threshold(errors, (1, 5))
    assert best["threshold_px"] == 2.5
    # recall 1/2 from 0.5 on; the second error comes at 4 px
    assert best["auc"]["1"] == pytest.approx(100 * (0.5 * 0.5 / 2 + 0.5 * 0.5))
    assert best["auc"]["5"] == pytest.approx(100 * (0.125 + (0.5 + 1) / 2 * 3.5 + 1 * 1) / 5)
    nothing = best_threshold(np.full((2, 6), np.inf), (1, 5))
    assert nothing == {"threshold_px": 0.5, "auc": {"1": 0, "5": 0}}


def test_repeatability_counts_only_the_shared_view():
    truth = np.array([[1.0, 0, 100], [0, 1, 0], [0, 0, 1]])
    # the first shows up at (150, 50), 2 px from a keypoint; the second leaves the image; the last of the other image
    # comes from outside
    first = features([[50, 50], [300, 50]])
    second = features([[152, 50], [250, 200], [20, 20]])
    share, error = homography.repeat(first, second, truth)
    assert share == pytest.approx(2 / 3)  # (50, 50) and its partner of three keypoints in view; (250, 200) has none
    assert error == pytest.approx(2)


def test_attention_weights_take_part_in_matching(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [np.eye(3)])
    descriptors = np.eye(2, 64, dtype=np.float32)
    both = np.tile(np.float32([0.6, 0.8] + [0] * 62), (2, 1))
    points = [[50, 50], [200, 200]]
    plain = features(points, descriptors=both)
    weighted = Features(plain.keypoints, plain.scores, both, (320, 240), np.float32([1, 5]))
    table = {1: features([[200, 200]], descriptors=descriptors[1:]), 2: weighted}
    result = run(tmp_path, table)
    assert result["matches"] == 1 and result["mma"]["1"] == 100  # unweighted the tie would go to the first row


def test_budget_keeps_the_best():
    many = features(grid(20))
    shuffled = Features(many.keypoints[::-1], many.scores[::-1], many.descriptors[::-1], many.image_size)
    assert np.array_equal(cut(shuffled, 5).keypoints, many.keypoints[:5])
    assert cut(many, 20) is many


def test_features_and_images_are_computed_once(tmp_path):
    write_scene(tmp_path / "homography" / "v_one", 0, [SHIFT, SHIFT, SHIFT])
    calls = []
    pairs = homography.read_pairs(tmp_path / "homography")
    extractor = TimedExtractor("x", lambda image: calls.append(1) or features(grid()), ImageStore(), 1024)
    homography.evaluate(pairs, extractor)
    assert len(calls) == len(extractor.wall_ms) == 4
    assert extractor.timing()["wall_ms"] >= 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda scene: (scene / "H_1_2").write_text("1 0 0 0 1 0 0 0"), "H_1_2: expected the nine"),
        (lambda scene: (scene / "H_1_2").write_text("1 0 0 0 one 0 0 0 1"), "H_1_2: expected the nine"),
        (lambda scene: (scene / "H_1_2").write_text("0 " * 9), "H_1_2: the homography is singular"),
        (lambda scene: (scene / "2.ppm").unlink(), "no such image"),
        (lambda scene: (scene / "2.ppm").write_bytes(b"P6 broken"), "2.ppm: cannot be decoded"),
        (lambda scene: (scene / "H_1_2").unlink(), "no scene with a file H_1_k"),
    ],
)
def test_bad_input_names_the_file(tmp_path, damage, said):
    write_scene(tmp_path / "homography" / "v_one", 0, [SHIFT])
    damage(tmp_path / "homography" / "v_one")
    with pytest.raises(ValueError, match=said):
        run(tmp_path, {1: features(grid()), 2: features(grid())})
