"""The trainer: resuming, distribution, selection; configurations; the task's switches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from typer.testing import CliRunner

from samfeat_core.errors import FileError
from samfeat_core.models import MODELS, DenseFeatures, build_network
from samfeat_core.weights import load_network
from training.ablate import app as ablate
from training.data.pairs import PairBatch, pixel_grid
from training.label import app as label
from training.loop.config import OptimizerConfig, RunConfig, load_config
from training.loop.trainer import Trainer, TrainingError
from training.samfeat.task import FeatureTask, FeatureTaskConfig, LossWeights, carry
from training.samfeat.train import SamfeatConfig
from training.samfeat.validation import MatchingValidation
from training.train import METHODS, app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        image = cv2.resize(rng.integers(0, 255, (15, 20, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture
def config(tmp_path, photos):
    path = tmp_path / "run.yaml"
    tree = {
        "method": "samfeat", "model": "samfeat-nano", "steps": 6, "validate_every": 3, "precision": "fp32",
        "data": {"photos": [str(photos)], "size": [64, 64], "batch": 2, "validation": 0.3},
        "task": {"corner_steps": 2, "points": 64},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(tree))
    return path


def run_training(config, output, *overrides, processes=0):
    with started_training(config, output, *overrides, processes=processes) as run:
        stdout, stderr = run.communicate(timeout=300)
    return subprocess.CompletedProcess(run.args, run.returncode, stdout, stderr)


def started_training(config, output, *overrides, processes=0):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launcher if processes else [sys.executable]), "-m", "training.train"]
    arguments = ["--config", str(config), "--output", str(output), "--device", "cpu", "--threads", "1", *overrides]
    options = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, "text": True}
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_writes_weights_that_load_and_resumes_to_the_same_result(config, tmp_path):
    whole = run_training(config, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    load_network("samfeat-nano", tmp_path / "whole" / "best.safetensors")
    with safe_open(tmp_path / "whole" / "best.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "samfeat-nano" and metadata["processes"] == "1" and metadata["torch"]
    assert json.loads(metadata["config"])["seed"] == 0 and int(metadata["step"]) in (3, 6)
    assert len(metadata["data"]) == 16 and (metadata["commit"] == "unknown" or len(metadata["commit"]) >= 40)
    half = run_training(config, tmp_path / "half", "--set", "steps=3", "--set", "optimizer.cooldown=0")
    assert half.returncode == 0, half.stderr
    straight = run_training(config, tmp_path / "straight", "--set", "optimizer.cooldown=0")
    resumed = run_training(config, tmp_path / "half", "--set", "optimizer.cooldown=0")
    assert straight.returncode == resumed.returncode == 0, straight.stderr + resumed.stderr
    first, second = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("straight", "half"))
    assert first["step"] == second["step"] == 6
    for name, tensor in first["network"].items():
        torch.testing.assert_close(second["network"][name], tensor, rtol=0, atol=0, msg=name)
    lines = (tmp_path / "straight" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    other = run_training(config, tmp_path / "half", "--set", "optimizer.cooldown=0", "--set", "optimizer.lr=0.5")
    assert other.returncode == 1 and "holds a run with optimizer.lr 0.001, not 0.5" in other.stderr


def test_a_run_imitates_the_features_in_a_store(config, photos, tmp_path):
    store = str(tmp_path / "features")
    made = CliRunner().invoke(label, ["features", str(photos), store, "--extractor", "sift", "--count", "100"])
    assert made.exit_code == 0, made.output
    changes = (f"data.features={store}", "losses.score=1", "losses.relation=1", "steps=3")
    result = run_training(config, tmp_path / "run", *(part for change in changes for part in ("--set", change)))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress bar without a terminal
    logged = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    assert {"train/score", "train/relation", "validation/score"} <= set(logged)


@pytest.mark.slow
def test_two_processes_train_one_network(config, tmp_path):
    result = run_training(config, tmp_path / "two", processes=2)
    assert result.returncode == 0, result.stderr
    assert len(torch.load(tmp_path / "two" / "last.pt", weights_only=True)["random"]) == 2


@pytest.mark.slow
def test_batch_statistics_of_all_processes_need_gpus(config, tmp_path):
    result = run_training(config, tmp_path / "two", "--set", "sync_batch_norm=true", processes=2)
    assert "sync_batch_norm is on, but PyTorch has it for GPUs only, and this is cpu" in result.stderr


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(config, tmp_path):
    for compiled in ("true", "false"):
        result = run_training(config, tmp_path / compiled, "--set", f"compile={compiled}", "--set", "steps=3")
        assert result.returncode == 0, result.stderr
    states = [load_file(tmp_path / compiled / "best.safetensors") for compiled in ("true", "false")]
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=2e-3, rtol=0.02, msg=name)
    metadata = safe_open(tmp_path / "true" / "best.safetensors", "pt").metadata()
    assert json.loads(metadata["config"])["compile"]


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"method": None}, 2, "method is None, expected one of samfeat, scfeat, shapes"),
        ({"method": "disk"}, 2, "method is 'disk', expected one of samfeat, scfeat, shapes"),
        ({"method": ["samfeat"]}, 2, "method is ['samfeat'], expected one of samfeat, scfeat, shapes"),
        ({"stepz": 3}, 2, "unknown key stepz"),
        ({"data": {"photoz": []}}, 2, "unknown key data.photoz"),
        ({"steps": "many"}, 2, "steps is 'many', expected int"),
        ({"data": {"size": [64]}}, 2, "data.size is [64], expected a list of 2"),
        ({"data": 3}, 2, "data is 3, expected a section"),
        ({"model": "sift"}, 2, "unknown model 'sift'"),
        ({"precision": "fp8"}, 2, "precision is 'fp8'"),
        ({"steps": 0}, 2, "steps is 0, expected at least 1"),
        ({"validate_every": 0}, 2, "validate_every is 0, expected at least 1"),
        ({"data": {"pairs": ["x"], "parallax": 0.2}}, 2, "data.parallax is 0.2, which of a batch of 2 is no pair"),
        ({"data": {"batch": 0}}, 2, "data.batch is 0, expected at least 1"),
        ({"optimizer": {"lr": 0.0}}, 2, "optimizer.lr is 0, expected more than 0"),
        ({"optimizer": {"schedule": "cosin"}}, 2, "optimizer.schedule is 'cosin', expected one of linear, cosine"),
        ({"data": {"photos": ["/nowhere"]}}, 1, "/nowhere: no such folder of photographs"),
        ({"data": {"size": [60, 64]}}, 2, "data.size is 60x64"),
        ({"losses": {"edge": 1.0}}, 2, "losses.edge is 1.0, but data.teacher names no store"),
        ({"losses": {"relation": 1.0}}, 2, "losses.relation is 1.0, but data.features names no store"),
        ({"data": {"teacher": "/nowhere"}}, 1, "/nowhere: no samfeat teacher there"),
        ({"init": "/nowhere.safetensors"}, 1, "/nowhere.safetensors: no such weights file"),
    ],
)
def test_bad_configurations_get_one_line_that_names_the_key(config, tmp_path, change, code, text):
    tree = yaml.safe_load(config.read_text())
    for key, value in change.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    config.write_text(yaml.safe_dump(tree))
    result = CliRunner().invoke(app, ["--config", str(config), "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert result.exit_code == code
    assert result.output.startswith("train: ") and result.output.count("\n") == 1 and text in result.output


def test_overrides_and_shipped_configurations_load(config, monkeypatch):
    assert load_config(config, ["steps=9", "optimizer.lr=1e-4"], METHODS).optimizer.lr == 1e-4
    for value, folder in ((None, "../shared/data"), ("/my/data", "/my/data")):
        monkeypatch.delenv("SAMFEAT_DATA", raising=False)
        if value:
            monkeypatch.setenv("SAMFEAT_DATA", value)
        for path in sorted((ROOT / "config" / "train").glob("samfeat*.yaml")):
            shipped = load_config(path, None, METHODS)
            assert isinstance(shipped, SamfeatConfig)
            assert shipped.data.photos == (f"{folder}/photos/a", f"{folder}/photos/b")


class Regression(nn.Module):
    """A task without batch norm, so that a joint batch equals two halves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, batch, step):
        return {"loss": (self.network(batch) - batch.sum(1, keepdim=True)).square().mean()}


class Numbers:
    def __init__(self, rank=0, world=1):
        self.rank, self.world = rank, world

    def sample(self, count):
        everything = torch.randn(count * self.world, 4)
        return everything[self.rank * count : (self.rank + 1) * count]

    def state(self):
        return None

    def restore(self, state):
        pass


def ddp_worker(rank, world, folder, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(5)
    make_trainer(Numbers(rank, world), Path(folder) / "two", 8 // world).run()
    torch.distributed.destroy_process_group()


def make_trainer(source, output, batch):
    optimizer = OptimizerConfig(warmup=2, weight_decay=0.1)
    config = RunConfig(steps=10, precision="fp32", validate_every=5, optimizer=optimizer)
    return Trainer(Regression(), source, lambda network: {"score": 0.0}, output, config, batch=batch)


def test_two_processes_give_the_gradients_of_one_with_the_joint_batch(tmp_path, unused_port):
    torch.multiprocessing.spawn(ddp_worker, (2, str(tmp_path), unused_port), nprocs=2)
    torch.manual_seed(5)
    make_trainer(Numbers(), tmp_path / "one", 8).run()
    one, two = (torch.load(tmp_path / name / "last.pt", weights_only=True)["network"] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_ablation_trains_each_variant_on_the_same_data(config, tmp_path):
    options = ["--config", str(config), "--output", str(tmp_path / "out"), "--steps", "2", "--device", "cpu"]
    result = CliRunner().invoke(ablate, [*options, "--variants", "baseline,-repeat"])
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert list(table) == ["baseline", "-repeat"] and all(scores["step"] == 2 for scores in table.values())
    weights = [json.loads((tmp_path / "out" / name / "config.json").read_text())["losses"] for name in table]
    assert [losses["repeat"] for losses in weights] == [1.0, 0.0]
    result = CliRunner().invoke(ablate, [*options, "--variants", "+edge"])
    assert result.exit_code == 2 and "losses.edge is 1.0, but data.teacher names no store" in result.output


@pytest.mark.parametrize("cooldown", [None, 4, 100])
def test_the_rate_falls_from_the_end_of_the_warm_up_at_the_earliest(tmp_path, cooldown):
    trainer = make_trainer(Numbers(), tmp_path, 8)
    trainer.config = OptimizerConfig(warmup=2, cooldown=cooldown)
    rates = [trainer._rate(step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[10] == pytest.approx(trainer.config.final)
    steps = np.diff(rates[2:])
    assert (steps <= 0).all()
    np.testing.assert_allclose(steps[steps < 0], -0.99 / (4 if cooldown == 4 else 8))


def test_the_average_follows_its_definition(tmp_path):
    trainer = make_trainer(Numbers(), tmp_path, 8)
    mean = trainer.network[0].weight.detach().clone()
    for step in range(5):
        trainer.train_step()
        new = trainer.network[0].weight.detach()
        mean = new.clone() if step == 0 else mean + max(0.001, 9 / (10 + step)) * (new - mean)
    torch.testing.assert_close(trainer.average.module[0].weight.detach(), mean)


class Points(nn.Module):
    """Every pixel of a random map is as good a keypoint as its score, and has a descriptor of its own."""

    def forward(self, image):
        torch.manual_seed(1)
        return DenseFeatures(torch.randn_like(image), F.normalize(torch.randn(len(image), 32, *image.shape[2:]), dim=1))


def test_validation_counts_matches_of_what_is_not_shown_as_wrong():
    batch = synthetic_batch()
    assert MatchingValidation([batch], 2)(Points())["mma1"] == 1
    batch.warp01[:, :, 32:] = torch.nan
    scores = MatchingValidation([batch], 2)(Points())
    assert 0.3 < scores["mma1"] < 0.7 and scores["mma1"] == scores["mma3"]


def test_views_are_made_in_full_precision():
    class Network(nn.Module):
        spec = MODELS["samfeat-nano"]

        def forward(self, images):
            seen.append(images)
            raise StopIteration

    seen, off = [], LossWeights(**dict.fromkeys(LossWeights.__dataclass_fields__, 0.0))
    for enabled in (False, True):
        batch = synthetic_batch(8)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), pytest.raises(StopIteration):
            FeatureTask(Network(), FeatureTaskConfig(), off)(batch, 0)
    assert torch.equal(*seen)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["samfeat-nano", "samfeat"])
def test_a_step_with_every_loss_on_a_gpu(tmp_path, model, precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA")
    everything = LossWeights(**dict.fromkeys(LossWeights.__dataclass_fields__, 1.0))
    network = build_network(model)

    class Source(Numbers):
        def sample(self, count):
            batch = synthetic_batch(count)
            if network.spec.channels == 3:
                batch.image0, batch.image1 = (view.expand(-1, 3, -1, -1) for view in (batch.image0, batch.image1))
            return PairBatch(*(None if value is None else value.cuda() for value in vars(batch).values()))

    task = FeatureTask(network, FeatureTaskConfig(points=32, corner_steps=0), everything)
    validate = MatchingValidation([Source().sample(2)], 2)
    config = RunConfig(steps=6, precision=precision, validate_every=3, optimizer=OptimizerConfig(warmup=2))
    trainer = Trainer(task, Source(), validate, tmp_path, config, batch=8, device="cuda")
    trainer.run()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    resumed = Trainer(task, Source(), validate, tmp_path, config, batch=8, device="cuda")
    resumed.resume()
    assert resumed.step == 6


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    make_trainer(Numbers(), tmp_path, 8).run()
    other = make_trainer(Numbers(), tmp_path, 8)
    other.task.network = other.network = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="last.pt: cannot be resumed"):
        other.run()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"random": [None, None]}, "a run of 2 processes, which 1 cannot resume"),
        ({"data": "others"}, "its run was trained on other data"),
    ],
)
def test_a_checkpoint_of_other_ranks_or_data_is_refused(tmp_path, change, text):
    make_trainer(Numbers(), tmp_path, 8).run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save({**state, **change}, tmp_path / "last.pt")
    with pytest.raises(FileError, match=f"last.pt: {text}"):
        make_trainer(Numbers(), tmp_path, 8).run()


def test_a_resumed_run_validates_each_step_once(tmp_path):
    make_trainer(Numbers(), tmp_path, 8).run()
    curve = tmp_path / "validation.jsonl"
    with curve.open("a") as file:  # as a run killed between a validation and its checkpoint leaves it
        file.write('{"step": 15, "score": 9.0}\n')
    trainer = make_trainer(Numbers(), tmp_path, 8)
    trainer.steps = 15
    trainer.run()
    assert [json.loads(line)["step"] for line in curve.read_text().splitlines()] == [5, 10, 15]
    assert json.loads(curve.read_text().splitlines()[-1])["score"] == 0.0


class Normalized(nn.Module):
    """A task with running statistics, and batches of which some are broken."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, batch, step):
        return {"loss": self.network(batch).square().mean()}


class Broken(Numbers):
    def __init__(self, bad):
        super().__init__()
        self.bad, self.count = bad, 0

    def sample(self, count):
        self.count += 1
        return super().sample(count) * (torch.nan if self.count in self.bad else 1)


def test_a_batch_that_is_not_finite_leaves_no_trace_and_is_counted(tmp_path):
    config = RunConfig(steps=100, precision="fp32", validate_every=100)
    trainer = Trainer(Normalized(), Broken({2, 3}), lambda _: {"score": 0.0}, tmp_path, config, batch=8)
    trainer.train_step()
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.train_step()
    trainer.train_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.network.state_dict().items())
    assert (trainer.bad, trainer.bad_in_a_row) == (2, 2)
    trainer.train_step()
    assert (trainer.bad, trainer.bad_in_a_row) == (2, 0)
    assert not torch.equal(trainer.network[0].running_mean, before["0.running_mean"])


def test_a_run_whose_batches_stay_broken_ends(tmp_path):
    config = RunConfig(steps=100, precision="fp32", validate_every=100)
    trainer = Trainer(Normalized(), Broken(range(5, 1000)), lambda _: {"score": 0.0}, tmp_path, config, batch=8)
    with pytest.raises(TrainingError, match=r"step 53: the gradient of 50 steps in a row was not finite"):
        trainer.run()


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_ends_in_a_checkpoint_that_resumes(config, tmp_path, processes):
    overrides = ("--set", "steps=100000", "--set", "validate_every=100000")
    with started_training(config, tmp_path / "run", *overrides, processes=processes) as run:
        until(lambda: any((tmp_path / "run").glob("events*")))
        time.sleep(3)  # some steps
        run.send_signal(signal.SIGTERM)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode != 0
    step = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert f"train: stopped by SIGTERM at step {step}; the same command resumes there" in stderr
    assert step > 0


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"network": Payload()}, tmp_path / "last.pt")
    with pytest.raises(FileError, match="last.pt: cannot be resumed"):
        make_trainer(Numbers(), tmp_path, 8).run()
    assert not (tmp_path / "ran").exists()


def synthetic_batch(count=2, size=64):
    torch.manual_seed(0)
    image = torch.rand(count, 1, size, size)
    warp = pixel_grid(size, size).expand(count, size, size, 2).clone()
    groups = torch.zeros(count, size, size, dtype=torch.int64)
    groups[:, : size // 2], groups[:, size // 2 :] = 1, 2
    edges = torch.zeros(count, 1, size, size)
    edges[:, :, size // 2] = 1
    labels = (torch.rand(count, 1, size, size) > 0.99).float()
    has = torch.tensor([True] + [False] * (count - 1))
    points = torch.rand(count, 40, 2) * (size - 1)
    points[0] = float("nan")  # there are no reference features of the first one
    references = (points, points.clone(), torch.randn(count, 40), F.normalize(torch.randn(count, 40, 12), dim=-1))
    twice = (part for maps in (groups, edges, None, labels) for part in (maps, maps))
    return PairBatch(image, image.clone(), warp, warp.clone(), has, has, *twice, *references)


@pytest.mark.parametrize(
    "name",
    [
        *("dis", "wsc", "edge", "det", "des", "match", "reward"),
        *("repeat", "matchability", "reproject", "corner", "score", "relation"),
    ],
)
def test_every_loss_has_a_switch_and_a_finite_gradient(name):
    off = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
    task = FeatureTask(build_network("samfeat-nano"), FeatureTaskConfig(points=32), LossWeights(**{**off, name: 1.0}))
    losses = {key: value for key, value in task(synthetic_batch(), 10_000).items() if value.detach() != 0}
    assert set(losses) == {name}
    losses[name].backward()
    gradients = [p.grad for p in task.network.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients) and any(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("name", ["dis", "wsc", "edge", "det"])
def test_teacher_losses_act_on_both_views(name):
    """The loss of a pair of which only the second view has teacher output is that view's own."""
    off = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
    settings = FeatureTaskConfig(points=32, photometric=0, relation_positions=64)
    task = FeatureTask(build_network("samfeat-nano").eval(), settings, LossWeights(**{**off, name: 1.0}))
    task.network.training = True  # its edge and distillation heads answer; its norms do not depend on the batch

    def loss(first, second):
        batch = synthetic_batch(1)
        batch.image1 = torch.rand(batch.image0.shape, generator=torch.Generator().manual_seed(5))
        batch.has_teacher0, batch.has_teacher1 = torch.tensor([first]), torch.tensor([second])
        if name == "det":
            batch.keypoints0 = batch.keypoints0 if first else torch.full_like(batch.keypoints0, float("nan"))
            batch.keypoints1 = batch.keypoints1 if second else torch.full_like(batch.keypoints1, float("nan"))
        torch.manual_seed(0)  # the points
        return float(task(batch, 10_000)[name].detach())

    alone, other, together = loss(True, False), loss(False, True), loss(True, True)
    assert alone > 0 and other > 0 and abs(alone - other) > 1e-6
    assert together == pytest.approx((alone + other) / 2, rel=1e-4)


def test_a_batch_without_teacher_trains_the_geometric_losses_only():
    batch = synthetic_batch()
    batch.groups0 = batch.edges0 = batch.keypoints0 = batch.reference0 = None
    batch.groups1 = batch.edges1 = batch.keypoints1 = None
    batch.has_teacher0[:] = False
    everything = LossWeights(**dict.fromkeys(LossWeights.__dataclass_fields__, 1.0))
    losses = FeatureTask(build_network("samfeat-nano"), FeatureTaskConfig(points=32), everything)(batch, 10_000)
    assert set(losses) == {"match", "reward", "des", "corner", "repeat", "matchability", "reproject"}


def test_carry_follows_an_affine_warp_to_a_fraction_of_a_pixel():
    grid = pixel_grid(32, 32)
    matrix = torch.tensor([[1.2, 0.3], [-0.1, 0.9]])
    warp = (grid @ matrix.T + torch.tensor([2.0, 1.0]))[None]
    pixels, offset = torch.tensor([[[10.0, 12.0]]]), torch.tensor([[[0.3, -0.4]]])
    carried = carry(warp, pixels, offset)
    torch.testing.assert_close(carried.points[0, 0], (pixels + offset)[0, 0] @ matrix.T + torch.tensor([2.0, 1.0]))
    assert float(carried.scale[0, 0]) == pytest.approx(float(matrix.det().sqrt()), rel=1e-4)
