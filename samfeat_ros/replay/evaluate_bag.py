"""`evaluate_bag`: how good is this front-end on my robot's recording, and does it keep up?

Plays a bag to the real node over ROS, runs classic front-ends on the same frames, and writes `report.json`,
`report.html` and a table. Keys, metrics and options: docs/evaluate_bag.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
import yaml

from samfeat_core.command import DEVICE_HELP, ENGINE_HELP, FAILED, errors_in_one_line
from samfeat_core.errors import SamfeatError, UsageError, one_line
from samfeat_core.files import write_json
from samfeat_core.progress import progress
from samfeat_ros.environment import prepare_environment
from samfeat_ros.replay.interrupts import interrupt_on_signals

if TYPE_CHECKING:  # the rest imports ROS, which prepare_environment must precede
    from tqdm import tqdm

    from samfeat_ros.replay.evaluation.comparison import Change
    from samfeat_ros.replay.evaluation.footage import Footage
    from samfeat_ros.replay.evaluation.ground_truth import GroundTruth
    from samfeat_ros.replay.evaluation.metrics import Truth
    from samfeat_ros.replay.evaluation.node_run import ModelChoice
    from samfeat_ros.replay.evaluation.requirements import Requirement
    from samfeat_ros.replay.evaluation.runs import Run

# What the classic front-ends share with the node: their argument -> the node's parameter.
SHARED_PARAMETERS = {"threshold_px": "inlier_threshold", "max_gap_s": "max_gap", "verify": "verify"}
# What has an option of its own, or is set by the playback.
OWN_OPTIONS = {
    "model": "use --model",
    "weights": "use --model NAME=WEIGHTS_FILE",
    "max_keypoints": "use --keypoints, the budget of everyone",
    "device": "use --device",
    "engine": "use --engine",
    "rectified": "use --rectified",
    "autostart": "the playback sets it",
    "image_transport": "the playback sets it",
}
REPORT, PAGE, SUMMARY, FRAMES = "report.json", "report.html", "report.md", "frames.csv"
TRAJECTORIES = "trajectories"
REQUIREMENT_FAILED = 3  # exit code

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    classic: str = typer.Option("orb,sift,lk", help="Classic front-ends in the same run: orb, sift, lk; none."),
    rate: str = typer.Option("1.0", help="Times the recorded speed, or max: every frame, one in flight."),
    keypoints: int = typer.Option(1024, min=8, max=16384, help="Keypoint budget of everyone."),
    device: str = typer.Option("auto", help=f"Device of the models: {DEVICE_HELP}"),
    engine: str = typer.Option("auto", help=f"Engine of the models: {ENGINE_HELP}"),
    parameter: list[str] = typer.Option([], help="Further parameter of the node, NAME=VALUE; repeat for more."),
    rectified: bool = typer.Option(False, help="The images are rectified: take P of CameraInfo, and no distortion."),
    start: float = typer.Option(0.0, help="Leave out so many seconds at the beginning of the images."),
    duration: float = typer.Option(None, help="Use only so many seconds of the images."),
    limit: int = typer.Option(None, min=1, help="Use only so many images."),
    compare: Path = typer.Option(None, help="Earlier report.json, or its folder: what has changed since?"),
    require: list[str] = typer.Option(
        [], help="[RUN:]FIGURE>=NUMBER, as in 'inliers.p5>=300' or 'ate<=0.3'; exit code 3 if not; repeat for more."
    ),
    output: Path = typer.Option(None, help="Folder of the report; default: out/evaluate_bag/<name of the bag>."),
    overwrite: bool = typer.Option(False, help="Replace a report that is there."),
) -> None:
    """Evaluate visual front-ends on a recording."""
    prepare_environment()
    interrupt_on_signals()
    with errors_in_one_line("evaluate_bag"):
        speed = _rate(rate)
        given = _parameters(parameter)
        parameters = {**given, "device": device, "engine": engine, "rectified": rectified}
        models, classics = _models(model, parameters), _classics(classic)
        if classics and given.get("mask_file"):
            raise UsageError("--parameter mask_file: the classic front-ends have no mask; expected --classic none")
        if not models and not classics:
            raise UsageError("neither a model nor a classic front-end is asked for")
        settings: dict[str, Any] = {
            "rate": "max" if speed is None else speed,
            "keypoints": keypoints,
            "gaps": _gaps(gaps),
            "tolerance_s": _not_negative("--tolerance", tolerance),
            "min_baseline_m": _not_negative("--min-baseline", min_baseline),
            "extrinsics": extrinsics,
            "rectified": rectified,
            "start_s": _not_negative("--start", start),
            "duration_s": None if duration is None else _not_negative("--duration", duration),
            "limit": limit,
        }
        camera_in_body = _extrinsics(extrinsics)
        requirements = _requirements(require, settings["gaps"])
        earlier = _earlier(compare)
        folder = output or Path("out", "evaluate_bag", bag.resolve().name)
        _make_room(folder, overwrite)
        footage = _open_footage(bag, image_topic, camera_info_topic, camera_info, settings, parameters)
        try:
            known: tuple[GroundTruth | None, Truth | None] = (None, None)
            if ground_truth:
                known = _ground_truth(footage, ground_truth, camera_in_body, settings)
            folder.mkdir(parents=True, exist_ok=True)
            shared = {name: given[key] for name, key in SHARED_PARAMETERS.items() if key in given}
            runs: list[Run] = []
            failures: dict[str, str] = {}
            try:
                _run_all(models, classics, footage, keypoints, speed, folder, shared, runs, failures)
            except KeyboardInterrupt:
                if runs:
                    _report(footage, known, runs, failures, settings, folder, requirements, earlier, interrupted=True)
                raise
            report = _report(footage, known, runs, failures, settings, folder, requirements, earlier)
        finally:
            footage.close()
    if not all(result["holds"] for result in report["requirements"]):
        raise typer.Exit(REQUIREMENT_FAILED)
    if failures or report["missing"]:
        raise typer.Exit(FAILED)


def _make_room(folder: Path, overwrite: bool) -> None:
    """Remove the report of an earlier run, if the user agrees: a run that fails must not seem to have written it."""
    there = [folder / name for name in (REPORT, PAGE, SUMMARY, FRAMES) if (folder / name).exists()]
    there += sorted((folder / TRAJECTORIES).glob("*.tum"))
    if there and not overwrite:
        question = f"{there[0]} exists. Replace it?"
        if not (sys.stdin.isatty() and typer.confirm(question, err=True)):
            raise UsageError(f"--output {folder}: holds a report; expected another folder, or --overwrite")
    for path in there:
        path.unlink()


def _open_footage(
    bag: Path,
    image_topic: str | None,
    camera_info_topic: str | None,
    camera_info: Path | None,
    settings: dict[str, Any],
    parameters: dict[str, Any],
) -> Footage:
    from samfeat_ros.node.parameters import Parameters
    from samfeat_ros.replay.evaluation.footage import Footage
    from samfeat_ros.replay.recording import Recording

    part = {name: settings[name] for name in ("limit", "start_s", "duration_s")}
    recording = Recording(bag, image_topic, camera_info_topic, **part)
    full_scale = parameters.get("full_scale_16bit", Parameters.full_scale_16bit)
    with progress(None, "reading", "frame", total=recording.count, leave=False) as bar:
        footage = Footage(recording, camera_info, parameters["rectified"], bar.update, full_scale)
    for line in footage.problems:
        _warn(line)
    return footage


def _ground_truth(
    footage: Footage, source: str, camera_in_body: np.ndarray, settings: dict[str, Any]
) -> tuple[GroundTruth, Truth]:
    """Ground truth, and its pose for every frame that has one."""
    from samfeat_ros.replay.evaluation.ground_truth import GroundTruthError, read_ground_truth
    from samfeat_ros.replay.evaluation.metrics import Truth

    truth = read_ground_truth(
        source, footage.bag, footage.reached, cut=any(settings[name] for name in ("limit", "duration_s"))
    )
    truth = truth.with_camera_at(camera_in_body)
    stamps = np.array([frame.stamp_ns for frame in footage.frames])
    numbers = np.array([frame.number for frame in footage.frames])
    poses = truth.at(stamps, numbers, settings["tolerance_s"])
    found = {int(number): pose for number, pose in zip(numbers, poses) if np.isfinite(pose).all()}
    if not found:
        spans = [f"{span.min() * 1e-9:.3f} to {span.max() * 1e-9:.3f} s" for span in (truth.stamps_ns, stamps)]
        within = f"none lies within {settings['tolerance_s']} s of a frame"
        raise GroundTruthError(f"{truth.source}: poses are of {spans[0]}, the images of {spans[1]}: {within}")
    if len(found) < len(footage.frames):
        _warn(f"{len(footage.frames) - len(found)} frames have no ground truth")
    return truth, Truth(found, settings["min_baseline_m"])


def _run_all(
    models: list[ModelChoice],
    classics: list[str],
    footage: Footage,
    keypoints: int,
    rate: float | None,
    folder: Path,
    shared: dict[str, Any],
    runs: list[Run],
    failures: dict[str, str],
) -> None:
    """Run all front-ends. Finished ones are added to `runs`; `failures` gets what failed, with the reason."""
    from samfeat_ros.replay.evaluation.classic import run_classic
    from samfeat_ros.replay.evaluation.node_run import run_model

    def attempt(label: str, run: Callable[[], Run]) -> None:
        try:
            done = run()
        except SamfeatError as error:
            failures[label] = str(error)
        except Exception as error:  # one front-end's fault must not cost the others their report
            failures[label] = one_line(f"{type(error).__name__}: {error}")
        else:
            if done.frames:
                runs.append(done)
            else:
                failures[label] = "no frame was processed"

    for number, choice in enumerate(models):
        log = folder / f"node_{number}_{choice.name}.log"
        with _playing(choice.label, footage) as bar:
            attempt(choice.label, partial(run_model, choice, footage, keypoints, rate, bar.update, log))
    for name in classics:
        with _playing(name, footage) as bar:
            attempt(name, partial(run_classic, name, footage, keypoints, rate, bar.update, **shared))


def _report(
    footage: Footage,
    known: tuple[GroundTruth | None, Truth | None],
    runs: list[Run],
    failures: dict[str, str],
    settings: dict[str, Any],
    folder: Path,
    requirements: list[Requirement],
    earlier: dict[str, Any] | None,
    interrupted: bool = False,
) -> dict[str, Any]:
    """Judge the runs, write the reports, and say what matters. Returns the content of report.json."""
    from samfeat_ros.replay.evaluation.comparison import compare
    from samfeat_ros.replay.evaluation.footage import FootageError
    from samfeat_ros.replay.evaluation.page import write_page, write_summary
    from samfeat_ros.replay.evaluation.report import build_report, evaluate_run
    from samfeat_ros.replay.evaluation.tables import write_frames, write_trajectories

    for name, reason in failures.items():
        typer.echo(f"evaluate_bag: {name}: {reason}", err=True)
    if not runs:
        raise FootageError(f"{footage.bag.path}: nothing could be evaluated")
    steps = sum(len(run.frames) for run in runs) * len(settings["gaps"]) if known[1] else 0
    with progress(None, "judging", "pair", total=steps, leave=False) as bar:
        evaluated = [evaluate_run(run, footage, known[1], settings["gaps"], bar.update) for run in runs]
    report = build_report(footage, *known, evaluated, failures, settings, interrupted, requirements)
    changes = compare(earlier, report) if earlier else []
    write_json(folder / REPORT, report)
    write_page(report, evaluated, footage, folder / PAGE, changes, earlier)
    write_summary(report, folder / SUMMARY, changes, earlier)
    write_frames(evaluated, footage, folder / FRAMES)
    write_trajectories(evaluated, footage, known[1], folder / TRAJECTORIES)
    _say(report, changes)
    typer.echo(f"report{' (partial)' if interrupted else ''}: {folder / PAGE} and {REPORT}")
    return report


def _say(report: dict[str, Any], changes: list[Change]) -> None:
    """Verdict and table on stdout; what is missing, and what fails a requirement, on stderr."""
    from samfeat_ros.replay.evaluation.comparison import changes_table
    from samfeat_ros.replay.evaluation.report import text_table, where_classic_wins
    from samfeat_ros.replay.evaluation.requirements import result_line
    from samfeat_ros.replay.evaluation.verdict import verdict

    typer.echo(text_table(report))
    if wins := where_classic_wins(report):
        typer.echo("\n  ".join(["A classic front-end is better than every model in:", *wins]))
    if changes:
        typer.echo(changes_table(changes))
    typer.echo(verdict(report)[1])
    for line in report["missing"]:
        typer.echo(f"evaluate_bag: missing: {line}", err=True)
    for result in report["requirements"]:
        if not result["holds"]:
            typer.echo(f"evaluate_bag: requirement fails: {result_line(result)}", err=True)


def _requirements(texts: list[str], gaps: list[int]) -> list[Requirement]:
    from samfeat_ros.replay.evaluation.requirements import Requirement

    return [Requirement.parse(text, gaps) for text in texts]


def _earlier(path: Path | None) -> dict[str, Any] | None:
    from samfeat_ros.replay.evaluation.comparison import read_report

    return None if path is None else read_report(path)


def _playing(name: str, footage: Footage) -> tqdm:
    return progress(None, name, "frame", total=len(footage.frames), leave=False)


def _warn(line: str) -> None:
    typer.echo(f"warning: {line}", err=True)


def _rate(text: str) -> float | None:
    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"--rate {text!r}: expected a positive number or max")
    return value


def _not_negative(option: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise UsageError(f"{option} {value}: expected a finite number, 0 or more")
    return value


def _gaps(text: str) -> list[int]:
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        values = [0]
    if values[0] < 1:
        raise UsageError(f"--gaps {text!r}: expected whole numbers from 1 on, as in 1,5,10")
    return values


def _extrinsics(text: str) -> np.ndarray:
    from samfeat_ros.replay.evaluation.ground_truth import GroundTruthError, parse_extrinsics

    try:
        return parse_extrinsics(text)
    except GroundTruthError as error:
        raise UsageError(f"--{error}") from None


def _models(names: list[str], parameters: dict[str, Any]) -> list[ModelChoice]:
    from samfeat_ros.replay.evaluation.node_run import ModelChoice

    choices = []
    for text in names:
        name, _, weights = text.partition("=")
        if name in ("", "none"):
            continue
        if weights and not Path(weights).is_file():
            raise UsageError(f"--model {text!r}: there is no file {weights}")
        choices.append(ModelChoice(name, str(Path(weights).resolve()) if weights else "", parameters))
    return choices


def _classics(text: str) -> list[str]:
    from samfeat_ros.replay.evaluation.classic import FRONT_ENDS

    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    if unknown := [name for name in names if name not in FRONT_ENDS]:
        raise UsageError(f"--classic {unknown[0]!r}: expected some of {', '.join(FRONT_ENDS)}, or none")
    return list(dict.fromkeys(names))


def _parameters(texts: list[str]) -> dict[str, Any]:
    """Parameters of the node from NAME=VALUE, checked as the node itself checks them."""
    from samfeat_ros.node.parameters import NAMES, ParameterError, Parameters

    values: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"--parameter {text!r}: expected NAME=VALUE")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--parameter {text!r}: the value is not YAML") from None
        if name in OWN_OPTIONS:
            raise UsageError(f"--parameter {text!r}: {OWN_OPTIONS[name]}")
        if name not in NAMES:
            raise UsageError(
                f"--parameter {text!r}: the node has no such parameter; expected one of {', '.join(NAMES)}"
            )
        if isinstance(getattr(Parameters, name), float) and type(values[name]) is int:
            values[name] = float(values[name])
    try:
        Parameters(**values).validate()
    except ParameterError as error:
        raise UsageError(f"--parameter: {error}") from None
    return values


def main() -> None:
    """Executable `evaluate_bag`; exit code 0 = all that was asked for is evaluated, 1 = not, 2 = wrong usage."""
    app(prog_name="evaluate_bag")


if __name__ == "__main__":
    main()
