"""`python -m training.compare_engines`: paired differences, their intervals, the verdict, and the table."""

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from samfeat_core.engines.choice import identity, read_table
from samfeat_core.extractor import SHIPPED_WEIGHTS
from samfeat_core.features import Features
from samfeat_core.sequence import ImageSequence
from training import compare_engines
from training.evaluation import engines, homography
from training.evaluation.engines import as_accurate, compare, interval, measure
from training.evaluation.tracks.footage import recorded

SHIFT = np.array([[1.0, 0, 7], [0, 1, -4], [0, 0, 1]])


def texture(seed, height, width):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One homography pair, and a sequence of a wall that the camera slides along, 2 px a frame."""
    root = tmp_path_factory.mktemp("data")
    scene, sequence = root / "homography" / "v_texture", root / "sequences" / "wall"
    scene.mkdir(parents=True)
    image = texture(0, 480, 640)
    cv2.imwrite(str(scene / "1.png"), image)
    cv2.imwrite(str(scene / "2.png"), cv2.warpPerspective(image, SHIFT, (640, 480)))
    np.savetxt(scene / "H_1_2", SHIFT)
    (sequence / "image").mkdir(parents=True)
    wall, frames = texture(1, 128, 260), 48
    for frame in range(frames):
        cv2.imwrite(str(sequence / "image" / f"{frame:03d}.png"), wall[:, 2 * frame : 2 * frame + 160])
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = 0.02 * np.arange(frames)
    np.savetxt(sequence / "poses.txt", poses[:, :3].reshape(frames, 12))
    projection = np.array([[100.0, 0, 79.5, 0], [0, 100, 63.5, 0], [0, 0, 1, 0]])
    (sequence / "calib.txt").write_text("P0: " + " ".join(map(str, projection.ravel())))
    return root


def test_the_interval_is_that_of_the_mean():
    differences = np.random.default_rng(5).normal(2.0, 3.0, 400)
    low, high = interval(differences)
    half = 1.96 * differences.std() / 20
    assert low == pytest.approx(differences.mean() - half, abs=0.05)
    assert high == pytest.approx(differences.mean() + half, abs=0.05)
    assert interval(differences) == [low, high]
    assert interval(np.full(7, -0.25)) == [-0.25, -0.25]


def test_differences_are_paired():
    eager = np.random.default_rng(2).uniform(0, 100, 500)  # which varies far more than the engines differ
    result = compare({"mma": eager - 0.5}, {"mma": eager})["mma"]
    assert result["pairs"] == 500 and result["eager"] == pytest.approx(eager.mean())
    assert result["difference"] == pytest.approx(-0.5) and np.ptp(result["interval"]) < 1e-9


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.9, 2.0, True), (-0.9, -0.5, True), (-1.1, 3.0, False), (-3.0, -2.0, False)]
)
def test_a_loss_of_more_than_a_point_must_be_ruled_out_in_every_measure(low, high, verdict):
    sure = {"interval": [-0.1, 0.1]}
    assert as_accurate({"mma": sure, "auc": {"interval": [low, high]}, "survival": sure}) is verdict
    assert as_accurate({"mma": sure, "auc": sure}) is True


class Perfect:
    """Corners of the wall that know where they are on it."""

    def __init__(self, noise_px=0.0):
        self.noise, self.random, self.calls = noise_px, np.random.default_rng(0), 0

    def __call__(self, image):
        self.calls += 1
        points = cv2.goodFeaturesToTrack(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), 200, 0.01, 6)[:, 0]
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        patches = np.stack([cv2.getRectSubPix(grey, (9, 9), tuple(map(float, p))).ravel() for p in points])
        patches = patches.astype(np.float32) - patches.mean(axis=1, keepdims=True)
        patches /= np.linalg.norm(patches, axis=1, keepdims=True)
        points = points + self.random.normal(0, self.noise, points.shape).astype(np.float32) if self.noise else points
        scores = np.linspace(1, 0.5, len(points), dtype=np.float32)
        return Features(points.astype(np.float32), scores, patches, image.shape[1::-1])


def test_a_sharp_extractor_scores_high_and_a_blurred_one_lower(data):
    sharp = Perfect()
    scores, worse = (measure(extractor, data, 200) for extractor in (sharp, Perfect(2.0)))
    pairs = sum(len(range(0, 48 - gap, engines.STEP)) for gap in engines.GAPS)
    assert {name: len(rows) for name, rows in scores.items()} == {"mma": 1, "auc": pairs, "survival": 7}
    assert sharp.calls == 2 + 24  # every second frame, and once
    reference = homography.evaluate(
        homography.read_pairs(data / "homography"),
        engines.TimedExtractor("", Perfect(), engines.ImageStore(size=engines.SIZE), 200),
    )
    assert scores["mma"].mean() == pytest.approx(reference["mma"]["3"])
    assert scores["mma"].mean() > 85 and scores["auc"].mean() > 30 and 20 < scores["survival"].mean() <= 100
    assert worse["mma"].mean() < scores["mma"].mean() - 20 and worse["auc"].mean() < scores["auc"].mean()


def test_survival_is_the_share_of_the_first_frames_tracks(data):
    sequence = ImageSequence.read(data / "sequences" / "wall", require=("poses",))
    footage, last = recorded(sequence, "wall", 2), 10
    points = np.float32([[x, y] for x in (100, 120, 140) for y in (20, 60, 100)])

    def features(frame, kept=9):
        rows = points[: 9 if frame == 0 else kept] - np.float32([4 * frame, 0])
        return Features(rows, np.ones(len(rows), np.float32), np.eye(9, dtype=np.float32)[: len(rows)], footage.size)

    assert engines._survival(footage, 0, features) == 100
    nothing = engines._survival(footage, 0, lambda frame: Features.empty(footage.size, 9))
    assert nothing == 0 and len(footage) > last


def test_the_command_writes_a_row_with_its_verdict(data, tmp_path):
    table = tmp_path / "table.json"
    command = ["--model", "samfeat-nano", "--engine", "openvino", "--data", str(data), "--table", str(table)]
    done = CliRunner().invoke(compare_engines.app, [*command, "--max-keypoints", "200"])
    assert done.exit_code == 0, done.output
    (row,) = read_table(table)
    assert (row.model, row.engine) == ("samfeat-nano", "openvino") and row.library.startswith("openvino 2")
    assert row.weights == identity("openvino", SHIPPED_WEIGHTS / "samfeat-nano.safetensors")
    assert "samfeat-nano openvino: as accurate; mma" in done.output
    # the same arithmetic but for its order
    assert all(abs(m["difference"]) < 2 and m["eager"] > 30 for m in row.measures.values())


def test_an_engine_that_cannot_be_built_fails_where_it_is_named(data, tmp_path):
    command = ["--model", "samfeat-nano", "--engine", "openvino_int8", "--data", str(data)]
    weights = tmp_path / "other.safetensors"
    weights.write_bytes((SHIPPED_WEIGHTS / "samfeat-nano.safetensors").read_bytes())  # without ranges
    command[1] = f"samfeat-nano={weights}"
    done = CliRunner().invoke(compare_engines.app, [*command, "--table", str(tmp_path / "table.json")])
    assert done.exit_code == 1 and "openvino_int8 cannot be built" in done.output
