"""``python -m training.evaluate``: how good are keypoints and descriptors, ours and the peers', in one run.

    python -m training.evaluate --extractor samfeat-nano      # on $SAMFEAT_DATA/eval, beside ORB, SIFT and AKAZE
    python -m training.evaluate --extractor samfeat-nano=out/train/best.safetensors --reuse out/eval/report.json
    python -m training.evaluate --suite hpatches --data /data --extractor mymodule:make_extractor

Writes the table to the terminal, and report.json and mma_*.png to --output.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from samfeat_core.classic import CLASSIC, Extractor
from samfeat_core.command import DEVICE_HELP, ENGINE_HELP
from samfeat_core.errors import UsageError
from samfeat_core.progress import progress
from training.cli import application, one_line_errors
from training.environment import data_folder
from training.evaluation import report
from training.evaluation.extractors import resolve
from training.evaluation.matchers import resolve_matcher
from training.evaluation.suites import FOLDERS, SUITES, Options, Task, find_folder
from training.evaluation.tracks.suite import TrackTask

WEIGHTS = Path(__file__).parents[1] / "samfeat_core" / "weights"


def collect_tasks(
    suites: Sequence[str], data: Path, options: Options, datasets: Sequence[str] = ()
) -> list[Task | TrackTask]:
    """The data sets of the suites; of ``all``, those under ``data``.

    Raises:
        UsageError: no such suite. ValueError: naming what is missing.
    """
    if not data.is_dir():
        raise ValueError(f"{data}: no such folder (--data)")
    unknown = [suite for suite in suites if suite not in (*SUITES, "all")]
    if unknown:
        raise UsageError(f"--suite {unknown[0]}: unknown; expected one of {', '.join([*SUITES, 'all'])}")
    found = [suite for suite in SUITES if suite != "tracks" and find_folder(data, suite).is_dir()]
    if "all" in suites and not found:
        folders = dict.fromkeys(names[0] for names in FOLDERS.values())
        raise ValueError(f"{data}: none of the folders {', '.join(folders)}")
    chosen = [name for suite in suites for name in (found if suite == "all" else [suite])]
    tasks = [task for name in dict.fromkeys(chosen) for task in SUITES[name](data, options)]
    missing = set(datasets) - {task.dataset for task in tasks}
    if missing:
        raise UsageError(f"--dataset {min(missing)}: expected some of {', '.join(task.dataset for task in tasks)}")
    return [task for task in tasks if not datasets or task.dataset in datasets]


def run_tasks(
    tasks: Sequence[Task | TrackTask], extractors: dict[str, Extractor], earlier: Sequence[dict] = ()
) -> Iterator[dict]:
    """Every extractor on every task, as entries of the report, each as soon as it is known.

    Foreign extractors (OpenCV's, ``module:function``) are taken from ``earlier`` results of the same protocol and
    number of pairs. Our own models are always measured: their weights change under the same name.
    """
    known = {_key(result): result for result in earlier if _is_foreign(result["extractor"])}
    for task in tasks:
        for label, entrant in task.entrants(extractors).items():
            head = {"extractor": label, "suite": task.suite, "dataset": task.dataset, "protocol": task.protocol}
            found = known.get(_key({**head, "pairs": len(task.pairs)}))
            # each task runs the kind of entrant that it has named itself
            yield {**found, "reused": True} if found else task.run(label, entrant, _bar(label, task))  # type: ignore[arg-type]


def _bar(label: str, task: Task | TrackTask):
    def bar(pairs: Sequence) -> Iterable:
        return progress(pairs, f"{task.dataset}: {label}", "pair", leave=False, mininterval=0.5)

    return bar


def _is_foreign(label: str) -> bool:
    return label in CLASSIC or (":" in label and "=" not in label)


def _key(result: dict) -> str:
    """What two results must have in common for one to stand for the other."""
    return json.dumps([result[key] for key in ("extractor", "suite", "dataset", "protocol", "pairs")], sort_keys=True)


def shipped_models() -> list[str]:
    """Names of the models whose weights are in the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def write_curves(output: Path, results: Sequence[dict]) -> list[Path]:
    """One mma_DATASET.png for each homography data set. Returns the paths."""
    written = []
    curves = [result for result in results if result["kind"] == "homography"]
    for dataset in dict.fromkeys(result["dataset"] for result in curves):
        path = output / f"mma_{dataset}.png"
        report.draw_mma(path, [result for result in curves if result["dataset"] == dataset], dataset)
        written.append(path)
    return written


app = application()


@app.command()
def main(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join([*SUITES, 'all'])}; repeatable. Default: homography and pose. "
            "all does not include tracks, which renders for minutes."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the evaluation sets.", show_default="$SAMFEAT_DATA/eval")
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(help="MODEL, MODEL=FILE, orb, sift, akaze, module:function; repeatable. Default: shipped models."),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Run OpenCV's ORB, SIFT and AKAZE too.")] = True,
    matcher: Annotated[
        str | None,
        typer.Option(
            help="module:function in place of mutual nearest neighbours; the function returns a matcher "
            "(training/evaluation/matchers.py). The suite tracks keeps its own."
        ),
    ] = None,
    max_keypoints: Annotated[int, typer.Option(min=1, help="Budget of every extractor, per image.")] = 1024,
    threshold: Annotated[float, typer.Option(min=0.01, help="poselib's epipolar threshold, pixels.")] = 1.0,
    long_side: Annotated[
        int | None, typer.Option(min=32, help="Shrink images to this long side. Default: the suite's own protocol.")
    ] = None,
    gap: Annotated[list[int] | None, typer.Option(min=1, help="Frame gap of posed sequences; repeatable.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Stride of the first frame in posed sequences.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this data set of the suites; repeatable.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for report.json and the MMA curves.")] = Path("out/eval"),
    reuse: Annotated[
        Path | None, typer.Option(help="An earlier report.json whose results of foreign extractors are taken over.")
    ] = None,
    device: Annotated[str, typer.Option(help=f"Of our models: {DEVICE_HELP}")] = "auto",
    engine: Annotated[str, typer.Option(help=f"Of our models: {ENGINE_HELP}")] = "auto",
) -> None:
    """Evaluate feature extractors: matching accuracy under homographies, relative pose, repeatability, localisation."""
    with one_line_errors("evaluate"):
        gaps = tuple(gap) if gap else None
        options = Options(max_keypoints, threshold, long_side, gaps, every, resolve_matcher(matcher))
        earlier = report.read(reuse)["results"] if reuse else []
        tasks = collect_tasks(suite or ["homography", "pose"], data or data_folder() / "eval", options, dataset or [])
        names = extractor or shipped_models()
        names = list(dict.fromkeys([*names, *(CLASSIC if peers else ())]))
        extractors = {name: resolve(name, max_keypoints, device, engine) for name in names}
        settings = {"max_keypoints": max_keypoints, "matcher": matcher, "device": device, "engine": engine}
        output.mkdir(parents=True, exist_ok=True)
        results: list[dict] = []
        for result in run_tasks(tasks, extractors, earlier):
            results.append(result)  # written at once: a run cut short can be taken up with --reuse
            report.write(output / "report.json", results, settings)
        typer.echo(report.table(results))
        for path in [output / "report.json", *write_curves(output, results)]:
            typer.echo(f"wrote {path}")


if __name__ == "__main__":
    app()
