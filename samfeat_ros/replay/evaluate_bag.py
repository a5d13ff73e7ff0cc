"""`evaluate_bag`: how good is this front-end on my robot's recording, and does it keep up?

Plays a bag to the real node over ROS, runs classic front-ends on the same frames, and writes `report.json`,
`report.html` and a table. Keys, metrics and options: docs/evaluate_bag.md.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from tqdm import tqdm

from samfeat_core.engines import ENGINES
from samfeat_core.errors import SamfeatError

if TYPE_CHECKING:
    from samfeat_ros.replay.evaluation.footage import Footage
    from samfeat_ros.replay.evaluation.ground_truth import GroundTruth
    from samfeat_ros.replay.evaluation.metrics import Truth
    from samfeat_ros.replay.evaluation.runs import Run

FAILED, INTERRUPTED = 1, 130
# What the classic front-ends share with the node, as they name it -> the node's parameter.
CHECKS = {"threshold_px": "inlier_threshold", "max_gap_s": "max_gap"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class OptionError(SamfeatError):
    """An option's value is not possible. One line."""


@app.command()
def evaluate(
    bag: Path = typer.Argument(..., help="Bag folder or file: ROS 2 (MCAP, sqlite3) or ROS 1."),
    image_topic: str = typer.Option(None, help="Image or CompressedImage topic; may be left out if there is only one."),
    camera_info_topic: str = typer.Option(None, help="CameraInfo topic; default: camera_info beside the images."),
    camera_info: Path = typer.Option(None, help="Calibration file (YAML of camera_calibration) in its place."),
    ground_truth: str = typer.Option(
        None, help="Pose topic (PoseStamped, PoseWithCovarianceStamped, Odometry, TransformStamped), TUM or KITTI file."
    ),
    extrinsics: str = typer.Option(
        "0 0 0 0 0 0 1",
        help="Pose of the camera (optical frame) in the body of the ground truth, 'x y z qx qy qz qw', or 'ros' for a "
        "camera that looks along the body's x axis.",
    ),
    tolerance: float = typer.Option(0.05, help="Seconds from a frame within which a ground-truth pose must lie."),
    min_baseline: float = typer.Option(0.01, help="Metres two cameras must be apart for the errors of motion."),
    gaps: str = typer.Option("1,5,10", help="Frame gaps of the relative pose errors."),
    model: list[str] = typer.Option(["samfeat-nano"], help="NAME or NAME=WEIGHTS_FILE; repeat for more; none."),
    baseline: str = typer.Option("orb,sift,lk", help="Classic front-ends in the same run: orb, sift, lk; none."),
    rate: str = typer.Option("1.0", help="Times the recorded speed, or max: every frame, one in flight."),
    keypoints: int = typer.Option(1024, min=8, max=16384, help="Keypoint budget of everyone."),
    device: str = typer.Option("auto", help="Device of the models: auto, cpu or cuda."),
    engine: str = typer.Option("auto", help=", ".join(ENGINES)),
    parameter: list[str] = typer.Option([], help="Further parameter of the node, NAME=VALUE; repeat for more."),
    rectified: bool = typer.Option(False, help="The images are rectified: take P of CameraInfo, and no distortion."),
    limit: int = typer.Option(None, min=1, help="Use only the first so many images."),
    output: Path = typer.Option(None, help="Folder of the report; default: out/evaluate_bag/<name of the bag>."),
) -> None:
    """Evaluate visual front-ends on a recording."""
    from samfeat_ros.image_input import FULL_SCALE_16BIT
    from samfeat_ros.replay.playback import interrupt_on_signals, prepare_environment

    prepare_environment()
    interrupt_on_signals()
    try:
        folder = output or Path("out", "evaluate_bag", bag.resolve().name)
        speed = _rate(rate)
        shared = {**_parameters(parameter), "device": device, "engine": engine, "rectified": rectified}
        models, baselines = _models(model, shared), _baselines(baseline)
        if not models and not baselines:
            raise OptionError("neither a model nor a baseline is asked for")
        settings = {
            "rate": "max" if speed is None else speed,
            "keypoints": keypoints,
            "gaps": _gaps(gaps),
            "tolerance_s": tolerance,
            "min_baseline_m": min_baseline,
            "extrinsics": extrinsics,
            "rectified": rectified,
            "limit": limit,
        }
        full_scale = shared.get("full_scale_16bit", FULL_SCALE_16BIT)
        footage = _open_footage(bag, image_topic, camera_info_topic, camera_info, rectified, limit, full_scale)
        try:
            known = _ground_truth(footage, ground_truth, settings) if ground_truth else (None, None)
            folder.mkdir(parents=True, exist_ok=True)
            checks = {name: float(shared[key]) for name, key in CHECKS.items() if key in shared}
            runs, failures = _run_all(models, baselines, footage, keypoints, speed, folder, checks)
            _report(footage, known, runs, failures, settings, folder)
        finally:
            footage.recording.close()
    except (SamfeatError, OSError) as error:
        print(f"evaluate_bag: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        print("evaluate_bag: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if failures:
        raise typer.Exit(FAILED)


def _open_footage(
    bag: Path,
    image_topic: str | None,
    camera_info_topic: str | None,
    camera_info: Path | None,
    rectified: bool,
    limit: int | None,
    full_scale_16bit: int,
) -> Footage:
    from samfeat_ros.replay.evaluation.footage import Footage
    from samfeat_ros.replay.playback import Recording

    recording = Recording(bag, image_topic, camera_info_topic, limit)
    with _bar("reading", recording.count) as bar:
        footage = Footage(recording, camera_info, rectified, bar.update, full_scale_16bit)
    for line in footage.problems:
        print(f"warning: {line}", file=sys.stderr)
    return footage


def _ground_truth(footage: Footage, source: str, settings: dict[str, Any]) -> tuple[GroundTruth, Truth]:
    """Ground truth, and its pose for every frame that has one."""
    import numpy as np

    from samfeat_ros.replay.evaluation.ground_truth import GroundTruthError, parse_extrinsics, read_ground_truth
    from samfeat_ros.replay.evaluation.metrics import Truth

    truth = read_ground_truth(source, footage.bag, footage.total, cut=settings["limit"] is not None)
    truth = truth.with_camera_at(parse_extrinsics(settings["extrinsics"]))
    stamps = np.array([frame.stamp_ns for frame in footage.frames])
    numbers = np.array([frame.number for frame in footage.frames])
    poses = truth.at(stamps, numbers, settings["tolerance_s"])
    found = {int(number): pose for number, pose in zip(numbers, poses) if np.isfinite(pose).all()}
    if not found:
        spans = [f"{span.min() * 1e-9:.3f} to {span.max() * 1e-9:.3f} s" for span in (truth.stamps_ns, stamps)]
        within = f"none lies within {settings['tolerance_s']} s of a frame"
        raise GroundTruthError(f"{truth.source}: poses are of {spans[0]}, the images of {spans[1]}: {within}")
    if len(found) < len(footage.frames):
        print(f"warning: {len(footage.frames) - len(found)} frames have no ground truth", file=sys.stderr)
    return truth, Truth(found, settings["min_baseline_m"])


def _run_all(
    models: list[Any],
    baselines: list[str],
    footage: Footage,
    keypoints: int,
    rate: float | None,
    folder: Path,
    checks: dict[str, float],
) -> tuple[list[Run], dict[str, str]]:
    """Runs of all front-ends; what failed, with the reason."""
    from samfeat_ros.replay.evaluation.baselines import run_baseline
    from samfeat_ros.replay.evaluation.node_run import run_model

    runs: list[Run] = []
    failures: dict[str, str] = {}
    for choice in models:
        log = folder / f"node_{len(runs) + len(failures)}_{choice.name}.log"
        with _bar(choice.label, len(footage.frames)) as bar:
            try:
                runs.append(run_model(choice, footage, keypoints, rate, bar.update, log))
            except SamfeatError as error:
                failures[choice.label] = str(error)
    for name in baselines:
        with _bar(name, len(footage.frames)) as bar:
            runs.append(run_baseline(name, footage, keypoints, rate, bar.update, **checks))
    failures.update({run.name: "no frame was processed" for run in runs if not run.records})
    return [run for run in runs if run.records], failures


def _report(
    footage: Footage,
    known: tuple[GroundTruth | None, Truth | None],
    runs: list[Run],
    failures: dict[str, str],
    settings: dict[str, Any],
    folder: Path,
) -> None:
    from samfeat_core.files import write_json
    from samfeat_ros.replay.evaluation.page import write_page
    from samfeat_ros.replay.evaluation.report import build_report, evaluate_run, text_table, where_classic_wins

    for name, reason in failures.items():
        print(f"evaluate_bag: {name}: {reason}", file=sys.stderr)
    if not runs:
        raise OptionError(f"{footage.bag.path}: nothing could be evaluated")
    evaluated = []
    with _bar("judging", len(runs)) as bar:
        for run in runs:
            evaluated.append(evaluate_run(run, footage, known[1], settings["gaps"]))
            bar.update()
    report = build_report(footage, *known, evaluated, failures, settings)
    write_json(folder / "report.json", report)
    write_page(report, evaluated, footage, folder / "report.html")
    print(text_table(report))
    if wins := where_classic_wins(report):
        print("A classic front-end is better than every model in:", *wins, sep="\n  ")
    print(f"report: {folder / 'report.html'} and report.json")


def _bar(name: str, count: int) -> tqdm:
    return tqdm(total=count, desc=name, unit="", leave=False, dynamic_ncols=True)


def _rate(text: str) -> float | None:
    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise OptionError(f"--rate {text!r}: expected a positive number or max")
    return value


def _gaps(text: str) -> list[int]:
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        values = [0]
    if values[0] < 1:
        raise OptionError(f"--gaps {text!r}: expected whole numbers from 1 on, as in 1,5,10")
    return values


def _models(names: list[str], parameters: dict[str, Any]) -> list[Any]:
    from samfeat_ros.replay.evaluation.node_run import ModelChoice

    choices = []
    for text in names:
        name, _, weights = text.partition("=")
        if name in ("", "none"):
            continue
        if weights and not Path(weights).is_file():
            raise OptionError(f"--model {text!r}: there is no file {weights}")
        choices.append(ModelChoice(name, str(Path(weights).resolve()) if weights else "", parameters))
    return choices


def _baselines(text: str) -> list[str]:
    from samfeat_ros.replay.evaluation.baselines import BASELINES

    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    if unknown := [name for name in names if name not in BASELINES]:
        raise OptionError(f"--baseline {unknown[0]!r}: expected some of {', '.join(BASELINES)}, or none")
    return list(dict.fromkeys(names))


def _parameters(texts: list[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise OptionError(f"--parameter {text!r}: expected NAME=VALUE")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise OptionError(f"--parameter {text!r}: the value is not YAML") from None
    return values


def main() -> None:
    """Executable `evaluate_bag`; exit code 0 = all that was asked for is evaluated, 1 = not, 2 = wrong usage."""
    app()


if __name__ == "__main__":
    main()
