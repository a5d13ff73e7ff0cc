"""SCFeat's data and training: pairs from poses alone, their limits, both stages on a small rendered scene."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from samfeat_core.models import MODELS, DenseFeatures, build_network
from samfeat_core.poses import relative_pose
from samfeat_core.two_view import epipolar_distance
from training.environment import data_folder
from training.loop.config import OptimizerConfig, load_config
from training.scfeat.epipolar import DescriptorConfig
from training.scfeat.pairs import (
    PoseDataConfig,
    PosedImage,
    PosedImagePair,
    PoseSource,
    fit,
    overlap,
    read_caps,
    read_img_cam,
    read_posed_pairs,
    read_sequence,
)
from training.scfeat.reinforce import DetectorConfig
from training.scfeat.tasks import DescriptorStage, DetectorStage, EpipolarValidation
from training.scfeat.train import NetworkConfig, ScfeatConfig, train
from training.train import METHODS, app

KITCHEN = Path(__file__).parents[2] / data_folder() / "posed" / "kitchen_rgbd"
K = np.array([[120.0, 0, 64], [0, 120.0, 48], [0, 0, 1]])
FRAMES = 24
WALL = 4.0


def pose(index: int, turn_deg: float = 0.0) -> np.ndarray:
    """Camera-to-world: a camera that moves along a wall, 8 cm a frame, and turns a little."""
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.radians([0.1 * index, turn_deg + 0.2 * index, 0]))[0]
    T[:3, 3] = [0.08 * index, 0.01 * index, 0.02 * index]
    return T


def view(texture: np.ndarray, T: np.ndarray) -> np.ndarray:
    """(96, 128, 3) image of a wall at z = WALL that carries the texture, 100 texels a metre."""
    to_camera = np.linalg.inv(T)
    origin = to_camera[:3, 2] * WALL + to_camera[:3, 3]
    wall_to_pixel = K @ np.column_stack([to_camera[:3, 0], to_camera[:3, 1], origin])
    texel_to_wall = np.array([[0.01, 0, -3.0], [0, 0.01, -3.0], [0, 0, 1]])
    return cv2.warpPerspective(texture, wall_to_pixel @ texel_to_wall, (128, 96), flags=cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def texture():
    rng = np.random.default_rng(0)
    layers = [cv2.resize(rng.integers(0, 255, (n, n, 3), np.uint8), (800, 800)) for n in (20, 60, 200)]
    return np.mean(layers, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def sequence(tmp_path_factory, texture):
    folder = tmp_path_factory.mktemp("posed") / "wall"
    (folder / "image").mkdir(parents=True)
    poses = [pose(i) for i in range(FRAMES)]
    for i, T in enumerate(poses):
        cv2.imwrite(str(folder / "image" / f"{i:04d}.png"), view(texture, T))
    np.savetxt(folder / "poses.txt", [T[:3].ravel() for T in poses])
    (folder / "calib.txt").write_text("P0: " + " ".join(map(str, np.c_[K, np.zeros(3)].ravel())) + "\n")
    return folder


@pytest.fixture(scope="module")
def caps(tmp_path_factory, texture):
    """Two scenes in the published layout; the pose unit is arbitrary there."""
    root = tmp_path_factory.mktemp("caps")
    for scene in ("0001", "0002"):
        folder = root / scene / "dense0" / "aligned"
        (folder / "images").mkdir(parents=True)
        rows = ["# name w h fx fy cx cy R t"]
        for i in range(6):
            T = np.linalg.inv(pose(3 * i, turn_deg=90.0 if i == 5 else 0.0))
            cv2.imwrite(str(folder / "images" / f"{i}.jpg"), view(texture, np.linalg.inv(T)))
            numbers = [128, 96, 120, 120, 64, 48, *T[:3, :3].ravel(), *(1e-3 * T[:3, 3])]
            rows.append(f"{i}.jpg " + " ".join(map(repr, map(float, numbers))))
        (folder / "img_cam.txt").write_text("\n".join(rows) + "\n")
        (folder / "pairs.txt").write_text("0.jpg 1.jpg\n1.jpg 3.jpg\n0.jpg 5.jpg\n2.jpg 4.jpg\n")
    return root


def data(**changes) -> PoseDataConfig:
    return PoseDataConfig(**{"size": (64, 48), "gap": (2, 4), "validation": 0.3, **changes})


def wall_points(T: np.ndarray) -> np.ndarray:
    """Pixels of fixed points of the wall in a camera."""
    world = np.stack(np.meshgrid([-0.5, 0.2, 0.7], [-0.4, 0.1, 0.5], [WALL]), -1).reshape(-1, 3)
    to_camera = np.linalg.inv(T)
    seen = world @ to_camera[:3, :3].T + to_camera[:3, 3]
    return (seen @ K.T)[:, :2] / seen[:, 2:]


def test_training_and_validation_frames_are_disjoint(sequence):
    training, validation = read_sequence(sequence, data())
    used, held = ({v.path for pair in pairs for v in pair} for pairs in (training, validation))
    assert training and validation and not used & held
    for pair in training + validation:
        gap = int(pair.second.path.stem) - int(pair.first.path.stem)
        assert 2 <= gap <= 4


def test_limits_of_rotation_baseline_and_overlap(sequence):
    size = (128, 96)
    still = PosedImage(Path("a"), K, size, np.eye(4))

    def pair(shift, degrees):
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = cv2.Rodrigues(np.radians([0.0, degrees, 0]))[0], shift
        return PosedImagePair(still, PosedImage(Path("b"), K, size, T))

    assert overlap(pair([0.1, 0, 0], 0)) > 0.7
    assert 0.2 < overlap(pair([0.1, 0, 0], 28)) < 0.6
    assert overlap(pair([0.1, 0, 0], 70)) == 0 == overlap(pair([0.1, 0, 0], 180))
    # the unit of the poses does not matter
    assert overlap(pair([1e-4, 0, 0], 10)) == pytest.approx(overlap(pair([1e3, 0, 0], 10)))
    full, _ = read_sequence(sequence, data(gap=(1, 12), min_baseline=0))
    far, _ = read_sequence(sequence, data(gap=(1, 12), min_baseline=0.5))
    assert len(far) < len(full)
    assert all(np.linalg.norm(p.T_0to1[:3, 3]) >= 0.5 for p in far)
    turned, _ = read_sequence(sequence, data(gap=(1, 12), max_rotation=1.0))
    assert {int(p.second.path.stem) - int(p.first.path.stem) for p in turned} == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="wall: no pair of its 24 frames is within the limits"):
        read_sequence(sequence, data(min_overlap=0.99, gap=(10, 12)))


def test_caps_layout(caps):
    training, _ = read_caps(caps, data(validation=0.0))
    names = sorted((p.first.path.parts[-5], p.first.path.name, p.second.path.name) for p in training)
    expected = [("0.jpg", "1.jpg"), ("1.jpg", "3.jpg"), ("2.jpg", "4.jpg")]  # 0-5 turns by more than 80 degrees
    assert names == [(scene, *pair) for scene in ("0001", "0002") for pair in expected]
    pair = next(p for p in training if p.second.path.name == "1.jpg")
    truth = relative_pose(pose(0), pose(3))
    np.testing.assert_allclose(pair.T_0to1[:3, :3], truth[:3, :3], atol=1e-9)
    np.testing.assert_allclose(pair.T_0to1[:3, 3], 1e-3 * truth[:3, 3], atol=1e-9)
    assert len(read_caps(caps, data(validation=0.0, per_scene=2))[0]) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg 10 10 5 5 5 5 1 0 0 0 1 0 0 0 1 0 0", "line 1: expected a name and 18 numbers"),
        ("# head\na.jpg 10 10 0 5 5 5 1 0 0 0 1 0 0 0 1 0 0 0", "line 2: expected a name"),
        ("a.jpg 10 10 5 5 5 5 2 0 0 0 1 0 0 0 1 0 0 0", "line 1: R is not a rotation"),
        ("a.jpg 10 10 5 5 5 5 1 0 x 0 1 0 0 0 1 0 0 0", "line 1: expected a name"),
        (None, "cannot be read"),
    ],
)
def test_damaged_img_cam_is_named(tmp_path, content, words):
    path = tmp_path / "img_cam.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"img_cam.txt: {words}"):
        read_img_cam(path)


def test_other_bad_data_is_named(tmp_path, caps):
    with pytest.raises(ValueError, match="no scene of CAPS-MegaDepth"):
        read_caps(tmp_path, data())
    with pytest.raises(ValueError, match="data.folders and data.caps are empty"):
        read_posed_pairs(data())
    with pytest.raises(ValueError, match="nowhere"):
        read_posed_pairs(data(folders=(str(tmp_path / "nowhere"),)))
    bad = tmp_path / "s" / "dense0" / "aligned"
    bad.mkdir(parents=True)
    (bad / "img_cam.txt").write_text((caps / "0001/dense0/aligned/img_cam.txt").read_text())
    (bad / "pairs.txt").write_text("0.jpg 9.jpg\n")
    with pytest.raises(ValueError, match="pairs.txt: line 1: 9.jpg is not in img_cam.txt"):
        read_caps(tmp_path, data())


@pytest.mark.parametrize("size", [(64, 48), (128, 96), (96, 96), (160, 48)])
def test_cut_images_keep_their_epipolar_geometry(sequence, size):
    training, _ = read_sequence(sequence, data())
    pair = training[3]
    source = PoseSource(training, size)
    rng = np.random.default_rng(0)
    shifts = rng.uniform(size=(2, 2))
    image0, image1, F = source.load(pair, shifts)
    assert image0.shape == image1.shape == (size[1], size[0], 3)
    points = []
    for frame, shift in zip(pair, shifts, strict=True):
        matrix = fit(np.zeros((96, 128, 3), np.uint8), K, size, shift)[1]
        points.append((wall_points(frame.pose) - K[:2, 2]) / [120, 120] * np.diag(matrix)[:2] + matrix[:2, 2])
    assert epipolar_distance(points[0], points[1], F).max() < 1e-6
    assert epipolar_distance(points[0] + [0, 3.0], points[1], F).max() > 1


def test_cut_images_show_what_their_matrix_says():
    """A bright dot is where the moved camera matrix projects it."""
    image = np.zeros((96, 128, 3), np.uint8)
    cv2.circle(image, (80, 30), 4, (255, 255, 255), -1)
    for size in ((64, 48), (128, 96), (256, 192), (64, 64)):
        cut, matrix = fit(image, K, size, np.array([0.7, 0.2]))
        moments = cv2.moments(cut[..., 0])
        centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
        ray = (np.array([80, 30]) - K[:2, 2]) / 120
        np.testing.assert_allclose(centre, ray * np.diag(matrix)[:2] + matrix[:2, 2], atol=0.15)


def test_batches_repeat_by_seed_and_pass_over_unreadable_images(sequence, tmp_path, capsys):
    training, _ = read_sequence(sequence, data())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    training = training[:4] + [PosedImagePair(training[0].first._replace(path=broken), training[0].second)] * 4
    source = PoseSource(training, (64, 48))
    torch.manual_seed(5)
    first = source.sample(6)
    torch.manual_seed(5)
    second = source.sample(6)
    assert torch.equal(first.image0, second.image0) and torch.equal(first.fundamental, second.fundamental)
    assert first.image0.shape == (6, 3, 48, 64) and first.image0.min() >= 0 and first.image0.max() <= 1
    assert first.size == (64, 48) and len(first) == 6
    assert source.skipped == [f"{broken}: cannot be decoded as an image"]
    assert capsys.readouterr().err.count("broken.png") == 1
    with pytest.raises(ValueError, match="no readable pair"):
        PoseSource(training[4:], (64, 48)).sample(1)


def test_validation_sees_good_descriptors(sequence):
    """A network that copies the image's neighbourhood matches better than one of noise."""
    _, held = read_sequence(sequence, data())

    class Patches(torch.nn.Module):
        spec = MODELS["scfeat"]

        def __init__(self, noise: float) -> None:
            super().__init__()
            self.noise = noise

        def forward(self, image):
            grey = image.mean(1, keepdim=True)
            rows = torch.nn.functional.unfold(grey, 9, padding=4).unflatten(2, grey.shape[2:])
            rows = rows - rows.mean(1, keepdim=True)
            score = rows.square().mean(1, keepdim=True)
            return DenseFeatures(score, rows + self.noise * torch.randn_like(rows))

    for detector in (True, False):
        validate = EpipolarValidation(held, (128, 96), "cpu", detector, count=4, keypoints=100)
        good, bad = validate(Patches(0.0)), validate(Patches(5.0))
        assert set(good) == {"epi1", "epi3", "epi5", "median", "matches", "score"}
        assert good["epi3"] > 0.75 > bad["epi3"] and good["median"] < bad["median"]


def small(stage: str, folder: Path, **changes) -> ScfeatConfig:
    options = {
        "stage": stage,
        "steps": 2,
        "validate_every": 2,
        "network": NetworkConfig(encoder="resnet18"),
        "data": data(folders=(str(folder),), size=(64, 48), batch=1),
        "detector": DetectorConfig(samples=10),
        "optimizer": OptimizerConfig(lr=1e-3, weight_decay=0, warmup=0, ema=0.5),
    }
    return ScfeatConfig(**{**options, **changes})


def test_both_stages_train_resume_and_leave_weights(sequence, tmp_path):
    cpu = torch.device("cpu")
    first = tmp_path / "descriptor"
    train(small("descriptor", sequence), first, cpu)
    curve = [json.loads(line) for line in (first / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 2]

    train(small("descriptor", sequence, steps=3), first, cpu)  # resumes at step 2
    curve = [json.loads(line) for line in (first / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [0, 2, 3]

    init = str(first / "best.safetensors")
    best = load_file(init)
    second = tmp_path / "detector"
    train(small("detector", sequence, init=init, steps=1), second, cpu)
    state = torch.load(second / "last.pt", weights_only=True)["network"]
    changed = {n for n, t in best.items() if not torch.equal(state[f"network.{n}"], t)}
    assert changed and all(name.startswith("head.") for name in changed)


class Constant(torch.nn.Module):
    """A network with given outputs, exact in bfloat16 too."""

    spec = MODELS["scfeat"]

    def __init__(self) -> None:
        super().__init__()
        self.maps = torch.nn.Parameter(torch.randn(2, 8, 12, 16).bfloat16().float())
        self.score = torch.nn.Parameter(torch.randn(2, 1, 48, 64).bfloat16().float())

    def forward(self, image):
        return DenseFeatures(self.score, self.maps)


@pytest.mark.parametrize("stage", ["descriptor", "detector"])
def test_losses_stay_in_single_precision(sequence, stage):
    torch.manual_seed(0)
    network = Constant()
    task = (
        DescriptorStage(network, DescriptorConfig(temperature=5.0))
        if stage == "descriptor"
        else DetectorStage(network, DetectorConfig(samples=10), ("score",))
    )
    batch = PoseSource(read_sequence(sequence, data())[0], (64, 48)).sample(1)
    values = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (loss,) = task(batch, 0).values()
        assert loss.dtype == torch.float32 and task.figures
        values.append(loss.item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_the_detector_stage_works_for_another_network():
    network = build_network("samfeat-nano")
    stage = DetectorStage(network, DetectorConfig(samples=5), ("score",))
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learning and all(name.startswith("score") for name in learning)
    stage.train()
    training = {name for name, m in network.named_modules() if m.training}
    assert training and all(name.startswith("score") for name in training)
    with pytest.raises(ValueError, match="no parameter of SamfeatNano"):
        DetectorStage(network, DetectorConfig(), ("nothing",))


def test_the_shipped_configurations_are_valid():
    folder = Path(__file__).parents[2] / "config/train"
    for stage, variant in itertools.product(("descriptor", "detector"), ("", "_small")):
        path = folder / f"scfeat_{stage}{variant}.yaml"
        config = load_config(path, ["network.encoder=resnet18", "data.size=[320,240]"], METHODS)
        assert (
            isinstance(config, ScfeatConfig)
            and config.stage == stage
            and config.network.encoder == "resnet18"
            and config.data.size == (320, 240)
        )
    assert load_config(folder / "scfeat_descriptor.yaml", None, METHODS).optimizer.lr == 1e-4
    assert load_config(folder / "scfeat_detector.yaml", None, METHODS).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "both"}, "stage is 'both'"),
        ({"stage": "detector", "init": None}, "needs init"),
        ({"stage": "descriptor", "model": "samfeat-nano"}, "trains scfeat alone"),
    ],
)
def test_impossible_configurations(changes, words):
    with pytest.raises(ValueError, match=words):
        ScfeatConfig(**changes)


def test_sizes_the_network_cannot_take(sequence, tmp_path):
    with pytest.raises(ValueError, match="expected multiples of 16"):
        train(small("descriptor", sequence, data=data(folders=(str(sequence),), size=(60, 48))), tmp_path, "cpu")


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="the shared data are not here")
def test_the_real_sequence_is_read_without_its_depth():
    training, validation = read_sequence(KITCHEN, PoseDataConfig(gap=(4, 8)))
    assert len(training) > 200 and len(validation) > 10
    batch = PoseSource(training, (320, 240)).sample(2)
    assert batch.image0.shape == (2, 3, 240, 320) and torch.isfinite(batch.fundamental).all()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["init=nowhere.safetensors"], 1, "nowhere.safetensors: no such weights file"),
        (["init=null"], 2, "needs init"),
        (["model=superglue"], 2, "unknown model 'superglue'"),
        (["detector.samples=many"], 2, "detector.samples is 'many'"),
    ],
)
def test_the_common_command_trains_it_too_and_refuses_in_one_line(overrides, code, words, tmp_path):
    config = Path(__file__).parents[2] / "config/train/scfeat_detector.yaml"
    arguments = ["--config", str(config), "--output", str(tmp_path), "--device", "cpu"]
    for override in overrides:
        arguments += ["--set", override]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert result.output.startswith("train: ") and words in result.output and result.output.count("\n") == 1
