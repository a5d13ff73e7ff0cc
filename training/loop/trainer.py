"""The training loop that every network shares. It knows no task.

A task answers `task(batch, step) -> dict of weighted losses` and has `.network`; a source answers
`source.sample(count) -> batch`. The trainer owns precision, optimisation, averaging, checkpoints, logs and
distribution. All randomness is torch's global generator, whose state is in the checkpoint: a resumed run
continues to the same result. A step whose gradient is not finite is undone, and a SIGTERM ends in a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from samfeat_core.errors import FileError, SamfeatError, UsageError, WeightsError, one_line
from samfeat_core.files import replacing, write_bytes
from samfeat_core.progress import progress
from samfeat_core.weights import load_pth
from training.loop.config import RunConfig
from training.loop.provenance import provenance

Tensors = tuple[Tensor, ...] | list[Tensor]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT = "last.pt"
CONFIG = "config.json"
MAY_CHANGE = ("steps", "validate_every")  # between an interrupted run and its continuation
BEST = "best.safetensors"
CURVE = "validation.jsonl"
MOST_BAD = 50  # steps in a row without a finite gradient; the scaler of fp16 needs about 16 to find its scale


class TrainingError(SamfeatError):
    """A run cannot go on, or was told to stop."""


class Source(Protocol):
    """Where batches come from."""

    def sample(self, count: int) -> Any: ...

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class Trainer:
    """Trains `task.network`; rank 0 validates, logs and writes checkpoints to `output`.

    Args:
        validate: network -> dict of scores; "score" selects the best checkpoint.
        batch: samples per step and process.
        metadata: what the best weights file says about itself, besides configuration, provenance and step.
        data: identity of what is trained on; a run whose checkpoint names another is not resumed.

    Raises:
        UsageError: `config.sync_batch_norm` without GPUs.
    """

    def __init__(
        self,
        task: nn.Module,
        source: Source,
        validate: Callable[[nn.Module], dict[str, float]],
        output: Path,
        config: RunConfig,
        *,
        batch: int,
        device: torch.device | str = "cpu",
        metadata: Mapping[str, str] | None = None,
        data: str = "",
    ) -> None:
        self.device = torch.device(device)
        if config.sync_batch_norm and dist.is_initialized():
            if self.device.type != "cuda":
                raise UsageError(f"sync_batch_norm is on, but PyTorch has it for GPUs only, and this is {device}")
            task.network = nn.SyncBatchNorm.convert_sync_batchnorm(task.network)
        self.task = task.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = task.network  # type: ignore[assignment]
        self.source, self.validate, self.output = source, validate, Path(output)
        self.batch, self.steps, self.validate_every = batch, config.steps, config.validate_every
        self.config, self.data = config.optimizer, data
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.metadata = {
            **provenance(),
            "config": json.dumps(dataclasses.asdict(config)),
            "data": data,
            "processes": str(self.ranks),
            **(metadata or {}),
        }
        self.dtype = AUTOCAST[config.precision]
        self.rank = own_rank()
        # Losses come and go by schedule, so not every parameter has a gradient in every step.
        self.model = DistributedDataParallel(task, find_unused_parameters=True) if dist.is_initialized() else task
        parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.parameters, self.buffers = parameters, list(task.buffers())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=self.device.type == "cuda"
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")  # type: ignore[attr-defined]
        self.average = AveragedModel(self.network, multi_avg_fn=self._average, use_buffers=True)
        if config.compile:
            self.network.compile(dynamic=False)  # in place; the average, which is only validated, stays as it is
        # Batches have one size: let cuDNN try its kernels once. It takes TF32 by default. Matrix products must not, as
        # they carry positions: TF32 rounds them to a third of a pixel.
        torch.backends.cudnn.benchmark = True
        self.step, self.best = 0, -math.inf
        self.bad, self.bad_in_a_row, self.told_to_stop = 0, 0, False
        self.busy, self.waited = 0.0, 0.0

    def _rate(self, step: int) -> float:
        """Learning rate relative to `lr`: warm-up, then decay."""
        if step < self.config.warmup:
            return (step + 1) / self.config.warmup
        start = self.config.warmup
        if self.config.cooldown is not None:  # a run may be shorter than its cooldown
            start = max(start, self.steps - self.config.cooldown)
        done = min(max(step - start, 0) / max(self.steps - start, 1), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if self.config.schedule == "cosine" else 1 - done
        return self.config.final + (1 - self.config.final) * left

    def _average(self, means: Tensors, new: Tensors, count: Tensor | int) -> None:
        """Exponential moving average, in place. Early steps weigh new values more, so that it does not lag behind.

        `means` and `new` are all tensors of one dtype. The weight follows `self.step`: reading `count`, which may be on
        the GPU, would wait for it.
        """
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, new, max(1 - self.config.ema, 9 / (10 + self.step)))
        else:
            torch._foreach_copy_(means, new)

    def run(self) -> float:
        """Train to the last step, resuming from `output/last.pt` where it exists; returns the best score (rank 0).

        Raises:
            FileError: the checkpoint is damaged or of another run.
            TrainingError: no finite gradient in `MOST_BAD` steps in a row; or a SIGTERM came, and the checkpoint holds
                the last step.
        """
        self.resume()
        writer = None
        if self.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            writer = SummaryWriter(str(self.output))
        self.model.train()
        steps = range(self.step, self.steps)
        bar = progress(steps, "training", "step", shown=self.rank == 0, total=self.steps, initial=self.step)
        with self._stopping_on_sigterm():
            for _ in bar:
                losses = self.train_step()
                if writer is not None and (self.step % 50 == 0 or self.step == 1):
                    self._log(writer, losses, bar)
                if self.step % self.validate_every == 0 or self.step == self.steps:
                    self._validate_and_save(writer)
                elif self._shall_stop():
                    self.save()
                    raise TrainingError(f"stopped by SIGTERM at step {self.step}; the same command resumes there")
        if writer is not None:
            writer.close()
        if dist.is_initialized():
            dist.barrier()  # a rank that leaves while another still writes can take it down
        return self.best

    @contextmanager
    def _stopping_on_sigterm(self) -> Iterator[None]:
        def note(*_: object) -> None:
            self.told_to_stop = True

        former = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    def _shall_stop(self) -> bool:
        """Whether any rank was told to stop: the signal reaches them in different steps, but they save together."""
        if not dist.is_initialized():
            return self.told_to_stop
        told = torch.tensor(float(self.told_to_stop), device=self.device)
        dist.all_reduce(told)
        return bool(told)

    def train_step(self) -> dict[str, Tensor]:
        """One optimisation step on one fresh batch. TrainingError: the gradient was not finite `MOST_BAD` times."""
        begin = time.perf_counter()
        batch = self.source.sample(self.batch)
        self.waited += time.perf_counter() - begin
        before = [buffer.clone() for buffer in self.buffers]
        autocast = torch.autocast(self.device.type, self.dtype) if self.dtype is not None else nullcontext()
        with autocast:
            losses = self.model(batch, self.step)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if torch.isfinite(norm):  # the gradient is the joint one, so all ranks decide alike
            self.scaler.step(self.optimizer)
            self.bad_in_a_row = 0
        else:
            self._undo(before)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.network)
        self.step += 1
        self.busy += time.perf_counter() - begin
        return {**{name: loss.detach() for name, loss in losses.items()}, "total": total.detach(), "norm": norm}

    def _undo(self, buffers: list[Tensor]) -> None:
        """One bad batch must not end a long run: it leaves no trace in running statistics, but is counted."""
        for buffer, former in zip(self.buffers, buffers, strict=True):
            buffer.copy_(former)
        self.bad += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row == MOST_BAD:
            raise TrainingError(
                f"step {self.step}: the gradient of {MOST_BAD} steps in a row was not finite; the last checkpoint in "
                f"{self.output} is from before (a lower optimizer.lr, or precision=fp32, may help)"
            )

    def _log(self, writer: SummaryWriter, losses: dict[str, Tensor], bar: tqdm) -> None:
        values = {name: float(value) for name, value in losses.items()}
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, self.step)
        for name, figure in getattr(self.task, "figures", {}).items():  # what else a task wants logged
            writer.add_scalar(f"train/{name}", float(figure), self.step)
        writer.add_scalar("train/bad_steps", self.bad, self.step)
        writer.add_scalar("train/rate", self.schedule.get_last_lr()[0], self.step)
        writer.add_scalar("train/data_share", self.waited / max(self.busy, 1e-9), self.step)
        if (busy := gpu_busy(self.device)) is not None:
            writer.add_scalar("train/gpu_busy", busy, self.step)
        self.busy = self.waited = 0.0
        bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})

    def _validate_and_save(self, writer: SummaryWriter | None) -> None:
        if self.rank == 0:
            network = self.average.module
            network.eval()
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                scores = self.validate(network)
            network.train()
            for name, value in scores.items():
                writer.add_scalar(f"validation/{name}", value, self.step)  # type: ignore[union-attr]
            tqdm.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
            with (self.output / CURVE).open("a") as file:
                file.write(json.dumps({"step": self.step, **scores}) + "\n")
            if scores["score"] > self.best:
                self.best = scores["score"]
                state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
                metadata = {**self.metadata, "step": str(self.step), "score": f"{self.best:.4f}"}
                write_whole(self.output / BEST, lambda path: save_file(state, path, metadata))
        if dist.is_initialized():
            dist.barrier()
        self.save()

    def save(self) -> None:
        """Write `output/last.pt`, which holds all that resuming needs; every rank has its own random state."""
        random = {"cpu": torch.get_rng_state(), "source": self.source.state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        states: list[Any] = [random]
        if dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, random)
        if self.rank != 0:
            return
        state = {
            "network": self.task.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "bad": self.bad,
            "data": self.data,
            "random": states,
        }
        write_whole(self.output / CHECKPOINT, lambda path: torch.save(state, path))

    def resume(self) -> None:
        """Load `output/last.pt` if it is there; FileError names it when it is damaged or of another run."""
        path = self.output / CHECKPOINT
        if not path.exists():
            return
        try:
            state = load_pth(path)
            self.task.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            states, data = state["random"], state.get("data", self.data)  # earlier checkpoints do not say
            random = states[self.rank % len(states)]
        except (WeightsError, RuntimeError, KeyError, IndexError, ValueError) as error:
            reason = one_line(str(error).removeprefix(f"{path}: "), 160) or "damaged"
            raise FileError(f"{path}: cannot be resumed ({reason})") from None
        if len(states) != self.ranks:
            raise FileError(f"{path}: a run of {len(states)} processes, which {self.ranks} cannot resume")
        if data != self.data:
            raise FileError(f"{path}: its run was trained on other data: give another --output")
        self.step, self.best, self.bad = state["step"], state["best"], state.get("bad", 0)
        if self.rank == 0:
            forget_after(self.output / CURVE, self.step)
        torch.set_rng_state(random["cpu"])
        self.source.restore(random["source"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)


def forget_after(curve: Path, step: int) -> None:
    """Remove validations after a step, which a resumed run makes again."""
    if curve.exists():
        lines = [line for line in curve.read_text().splitlines() if json.loads(line)["step"] <= step]
        write_bytes(curve, "".join(f"{line}\n" for line in lines).encode())


def write_config(config: Any, output: Path) -> None:
    """Put a run's configuration (a dataclass) beside its checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    (output / CONFIG).write_text(json.dumps(dataclasses.asdict(config), indent=1))


def check_same_run(config: Any, output: Path) -> None:
    """FileError where `output` holds a run of another configuration, which would silently be continued."""
    if not (output / CHECKPOINT).exists() or not (output / CONFIG).exists():
        return
    there = flat(json.loads((output / CONFIG).read_text()))
    here = flat(json.loads(json.dumps(dataclasses.asdict(config))))
    # A key that the run does not have is newer than it.
    changed = [key for key in here if there.get(key, here[key]) != here[key] and key not in MAY_CHANGE]
    if changed:
        raise FileError(
            f"{output} holds a run with {changed[0]} {there[changed[0]]}, not {here[changed[0]]}: "
            f"give another --output, or remove it"
        )


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    parts = [
        flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
        for key, value in tree.items()
    ]
    return {key: value for part in parts for key, value in part.items()}


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write by a library's function, so that a kill or a full disk leaves the file that was there. OSError names it."""
    try:
        with replacing(path, shared=False) as partial:
            write(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(f"{path}: could not be written ({error})") from None


def gpu_busy(device: torch.device) -> float | None:
    """Share of the recent past in which the GPU computed, in [0, 1]; None where the driver does not say."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (ImportError, RuntimeError):  # without nvidia-ml-py, or on a board without NVML
        return None


def own_rank() -> int:
    """This process's rank in the process group; 0 where there is none."""
    return dist.get_rank() if dist.is_initialized() else 0


def start_distributed(device: str) -> torch.device:
    """The device cpu, cuda or cuda:N; started by torchrun, this process joins the group and takes its own GPU."""
    chosen = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(chosen)
    return chosen
