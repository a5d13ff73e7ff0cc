"""Everything at once: every model and engine beside ORB and SIFT, over image sizes and keypoint budgets.

    make bench                                                  # about a quarter of an hour on two cores
    make bench BENCH_ARGS="--peer mymodule:make_extractor"      # and a peer of yours
    python benchmarks/bench.py --short                          # seconds: does it run?

What is timed is image -> features -> matches to the frame before (`cpu_path`); all contestants take turns. The sizes
are gone through at `--keypoints`, the budgets at `--at`. Memory and start are those of a process of its own that
loads a kept engine and extracts one image; the start of a whole node is `node_start.py`. Accuracy stands beside: of
engines as the table of `samfeat_core.engines.choice` has it, of the others measured here
(`training.evaluation.engines`).

Writes to the output folder report.md, curves.png, accuracy.png, and report.json:

    format    "samfeat-benchmark", version 1
    machine   `samfeat_core.measure.machine`
    settings  of the command line
    results   a row of `cpu_path` per contestant, size and budget, and: model, engine (null for others), width, height,
              max_keypoints; or error, why it did not run
    starts    contestant -> {"start_s", "memory_mib"}
    node      `node_start.starts` of `auto`: one cold start and warm ones; null where there is no ROS
    accuracy  contestant -> {"mma", "auc", "survival"} in per cent; engines: and verdict
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), ""]

import cpu_path  # noqa: E402

SIZES = ("320x240", "640x480", "1280x720", "1920x1080")
BUDGETS = (256, 512, 1024, 2048, 4096)
CLASSIC = ("orb", "sift")
TINY = ("64x48", "96x64")  # sizes of a short run
FRAMES = 24  # of the footage, which is gone through back and forth
SLOW_BUILD = ("compile",)  # built for a minute and more: at one size and budget only
PROCESS = """
import json, re, sys, time
start = time.perf_counter()
sys.path[:0] = json.loads(sys.argv[1])
import cv2
from training.evaluation.extractors import resolve
name, budget, engine, image = json.loads(sys.argv[2])
extractor = resolve(name, budget, "cpu", engine)
extractor(cv2.imread(image))
took = time.perf_counter() - start
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps({"start_s": took, "memory_mib": int(peak[1]) / 1024}))
"""


@dataclass(frozen=True)
class Contestant:
    """Who is measured. name: as `training.evaluation.extractors.resolve` takes it; engine: None for a foreign one."""

    name: str
    engine: str | None = None

    @property
    def label(self) -> str:
        return self.name if self.engine is None else f"{self.name} {self.engine}"


def contestants(models: list[str], engines: list[str], peers: list[str]) -> list[Contestant]:
    """Every model on every engine, then the others."""
    from samfeat_core.engines import BY_DEVICE
    from samfeat_core.extractor import SHIPPED_WEIGHTS

    models = models or sorted(path.stem for path in SHIPPED_WEIGHTS.glob("*.safetensors"))
    ours = [Contestant(model, engine) for model in models for engine in engines or BY_DEVICE["cpu"]]
    return [*ours, *(Contestant(name) for name in dict.fromkeys([*CLASSIC, *peers]))]


def run_setting(who: list[Contestant], size: str, budget: int, frames: int, seconds: float) -> list[dict]:
    """A row of each contestant at an image size and a keypoint budget."""
    from samfeat_core.errors import SamfeatError
    from training.evaluation.extractors import resolve

    width, height = map(int, size.split("x"))
    pictures = cpu_path.load_frames(cpu_path.footage(), (width, height), FRAMES)
    rows, runners = [], []
    for one in who:
        head = {"contestant": one.label, "model": one.name if one.engine else None, "engine": one.engine}
        head |= {"width": width, "height": height, "max_keypoints": budget}
        try:
            extractor = resolve(one.name, budget, "cpu", one.engine or "auto")
            if one.engine:
                extractor.prepare(width, height)  # type: ignore[attr-defined]
                if extractor.engine_name != one.engine:  # type: ignore[attr-defined]
                    raise SamfeatError(f"{one.engine} cannot be built here")
            runners.append(cpu_path.Runner(one.label, extractor, pictures, budget, "match"))
            rows.append(head)
        except SamfeatError as error:
            rows.append({**head, "error": str(error)})
    measured = iter(cpu_path.measure(runners, frames, seconds, warm_up=3))
    return [row if "error" in row else {**row, **next(measured)} for row in rows]


def start(one: Contestant, size: str, budget: int, image: Path) -> dict[str, float] | None:
    """Seconds from a process's start to its first features, and its memory; None if it fails. Its engine is kept."""
    arguments = [json.dumps(sys.path[:3]), json.dumps([one.name, budget, one.engine or "auto", str(image)])]
    done = subprocess.run([sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def known_accuracy(who: list[Contestant]) -> dict[str, dict]:
    """Of engines, from the table; eager's is what the others were compared with."""
    from samfeat_core.engines.choice import identity, read_table
    from samfeat_core.errors import WeightsError
    from samfeat_core.extractor import find_weights

    accuracy = {}
    for row in read_table():
        for one in who:
            model, _, file = one.name.partition("=")
            try:
                same = model == row.model and row.weights == identity(row.engine, find_weights(model, file))
            except WeightsError:
                same = False
            if same and one.engine == row.engine:
                means = {name: m["eager"] + m["difference"] for name, m in row.measures.items()}
                accuracy[one.label] = {**means, "as_accurate": row.as_accurate, "measures": row.measures}
            elif same and one.engine == "eager":
                accuracy[one.label] = {name: m["eager"] for name, m in row.measures.items()}
    return accuracy


def foreign_accuracy(one: Contestant, data: Path, budget: int) -> dict[str, float]:
    """Of an extractor that the table does not have, measured now."""
    from training.evaluation.engines import measure
    from training.evaluation.extractors import resolve

    return {name: float(rows.mean()) for name, rows in measure(resolve(one.name, budget), data, budget).items()}


def node_starts(size: str) -> list[dict] | None:
    """`node_start.starts` with one cold start and three warm ones; None where there is no ROS."""
    try:
        import node_start
    except ImportError:
        return None
    node_start.prepare_environment()
    return node_start.starts(4, "auto", *map(int, size.split("x")))


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    model: Annotated[list[str] | None, typer.Option(help="MODEL or MODEL=FILE; repeatable. Default: shipped.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all of the CPU.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="module:function, or akaze; repeatable.")] = None,
    size: Annotated[list[str] | None, typer.Option(help=f"Repeatable. Default: {', '.join(SIZES)}.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Keypoints; repeatable. Default: 256 to 4096.")] = None,
    at: Annotated[str, typer.Option(help="Size at which the budgets are gone through.")] = "640x480",
    keypoints: Annotated[int, typer.Option(help="Budget at which the sizes are gone through.")] = 1024,
    frames: Annotated[int, typer.Option(min=2, help="Most frames of a contestant at a setting.")] = 60,
    seconds: Annotated[float, typer.Option(help="Most seconds of a contestant at a setting.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Cores that the process is tied to.")] = 2,
    data: Annotated[Path | None, typer.Option(help="Evaluation sets.", show_default="$SAMFEAT_DATA/eval")] = None,
    accuracy: Annotated[bool, typer.Option(help="Measure the accuracy of ORB, SIFT and peers.")] = True,
    node: Annotated[bool, typer.Option(help="Measure the start of the node.")] = True,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/bench"),
    short: Annotated[bool, typer.Option(help="A rehearsal: tiny images, few frames, nothing beside.")] = False,
) -> None:
    """Measure everything."""
    cpu_path.limit_threads(threads)
    import bench_report

    from samfeat_core.command import errors_in_one_line
    from samfeat_core.files import write_json
    from samfeat_core.measure import machine
    from training.environment import data_folder

    if short:
        size, budget, at, keypoints = list(TINY), [64, 128], TINY[1], 128
        frames, accuracy, node = min(frames, 4), False, False
    sizes, budgets, folder = size or list(SIZES), budget or list(BUDGETS), data or data_folder() / "eval"
    settings = {"at": at, "keypoints": keypoints, "sizes": sizes, "budgets": budgets, "frames": frames}
    settings |= {"seconds": seconds, "threads": threads, "load_before": os.getloadavg()[0]}
    with errors_in_one_line("bench", ValueError):
        who = contestants(model or [], engine or [], peer or [])
        report: dict[str, Any] = {"format": "samfeat-benchmark", "version": 1, "machine": machine()}
        report |= {"settings": settings, "results": [], "starts": {}, "node": None, "accuracy": known_accuracy(who)}
        output.mkdir(parents=True, exist_ok=True)

        def keep() -> None:  # a run that is cut short has its figures
            write_json(output / "report.json", report)

        for place in dict.fromkeys([(at, keypoints), *((s, keypoints) for s in sizes), *((at, b) for b in budgets)]):
            there = [one for one in who if one.engine not in SLOW_BUILD or place == (at, keypoints)]
            typer.echo(f"{place[0]}, {place[1]} keypoints")
            report["results"] += run_setting(there, *place, frames, seconds)
            keep()
        image = output / "image.png"
        bench_report.write_image(image, cpu_path.load_frames(cpu_path.footage(), tuple(map(int, at.split("x"))), 2)[0])
        failed = {row["contestant"] for row in report["results"] if "error" in row}
        for one in who:
            if one.label not in failed and one.engine not in SLOW_BUILD:
                report["starts"][one.label] = start(one, at, keypoints, image)
        keep()
        if accuracy:
            for one in who:
                if one.engine is None:
                    typer.echo(f"accuracy of {one.label}")
                    report["accuracy"][one.label] = foreign_accuracy(one, folder, keypoints)
                    keep()
        if node:
            typer.echo("start of the node")
            report["node"] = node_starts(at)
        keep()
        for path in bench_report.write(output, report):
            typer.echo(f"wrote {path}")


if __name__ == "__main__":
    app()
