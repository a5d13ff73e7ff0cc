"""`evaluate_bag`: how good is this front-end on my robot's recording, and does it keep up?

Plays a bag to the real node over ROS, runs classic front-ends on the same frames, and writes `report.json`,
`report.html` and a table. Keys, metrics and options: docs/evaluate_bag.md.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
import yaml

from samfeat_core.command import DEVICE_HELP, ENGINE_HELP, FAILED, errors_in_one_line
from samfeat_core.errors import UsageError
from samfeat_ros.environment import prepare_environment
from samfeat_ros.replay.interrupts import interrupt_on_signals

if TYPE_CHECKING:  # the rest imports ROS, which prepare_environment must precede
    from samfeat_ros.replay.evaluation.node_run import ModelChoice

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
REQUIREMENT_FAILED = 3  # exit code

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    bags: list[Path] = typer.Argument(
        ..., metavar="BAG...", help="Bag folders or files: ROS 2 (MCAP, sqlite3) or ROS 1; several give an aggregate."
    ),
    image_topic: str = typer.Option(None, help="Image or CompressedImage topic; may be left out if there is only one."),
    camera_info_topic: str = typer.Option(None, help="CameraInfo topic; default: camera_info beside the images."),
    camera_info: Path = typer.Option(None, help="Calibration file (YAML of camera_calibration) in its place."),
    depth_topic: str = typer.Option(
        None,
        help="Depth images that are registered to the images, for the truth of tracks; default: the only Image topic "
        "with depth in its name; none.",
    ),
    ground_truth: str = typer.Option(
        None,
        help="Pose topic (PoseStamped, PoseWithCovarianceStamped, Odometry, TransformStamped), TOPIC:PARENT,CHILD of "
        "TFMessage, or TUM, EuRoC or KITTI file.",
    ),
    extrinsics: str = typer.Option(
        "0 0 0 0 0 0 1",
        help="Pose of the camera (optical frame) in the body of the ground truth, 'x y z qx qy qz qw', or 'ros' for a "
        "camera that looks along the body's x axis.",
    ),
    tolerance: float = typer.Option(0.05, help="Seconds from a frame within which a ground-truth pose must lie."),
    time_offset: str = typer.Option("0", help="Seconds to add to the ground truth's stamps, or auto: from rotations."),
    stamps: str = typer.Option("header", help="Times of images and ground-truth topic: header, or recorded."),
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
    rerun: Path = typer.Option(None, help="Also write a recording for the viewer of rerun.io (.rrd)."),
    mcap: Path = typer.Option(None, help="Also write overlays and poses as ROS topics, for Foxglove (.mcap)."),
    output: Path = typer.Option(
        None,
        help="Folder of the report; default: out/evaluate_bag/<name of the bag>. Several bags have folders in it.",
    ),
    overwrite: bool = typer.Option(False, help="Replace a report that is there."),
) -> None:
    """Evaluate visual front-ends on a recording."""
    prepare_environment()
    interrupt_on_signals()
    with errors_in_one_line("evaluate_bag"):
        from samfeat_ros.replay.evaluation.aggregate import Bags
        from samfeat_ros.replay.evaluation.requirements import Requirement
        from samfeat_ros.replay.evaluation.rerun_file import require_rerun
        from samfeat_ros.replay.evaluation.session import Request, Session

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
            "time_offset_s": _time_offset(time_offset),
            "stamps": _stamps(stamps),
            "min_baseline_m": _not_negative("--min-baseline", min_baseline),
            "extrinsics": extrinsics,
            "rectified": rectified,
            "start_s": _not_negative("--start", start),
            "duration_s": None if duration is None else _not_negative("--duration", duration),
            "limit": limit,
        }
        if len(bags) > 1 and (rerun or mcap):
            raise UsageError("--rerun, --mcap: expected one bag")
        names = [*(choice.label for choice in models), *classics]
        request = Request(
            settings,
            models,
            classics,
            parameters,
            image_topic=image_topic,
            camera_info_topic=camera_info_topic,
            camera_info=camera_info,
            depth_topic=depth_topic,
            ground_truth=ground_truth,
            camera_in_body=_extrinsics(extrinsics),
            requirements=[Requirement.parse(text, settings["gaps"], names) for text in require],
            rerun=rerun,
            mcap=mcap,
        )
        folders, earlier = _folders(output, bags), _earlier(compare, bags)
        if rerun:
            require_rerun()
        _make_room(
            folders if len(bags) == 1 else [folders[0].parent, *folders],
            [path for path in (rerun, mcap) if path],
            overwrite,
        )
        sessions = [Session(request, *of_bag) for of_bag in zip(bags, folders, earlier)]
        if len(sessions) == 1:
            reports, complete = [sessions[0].evaluate()], True
        else:
            together = Bags(folders[0].parent)
            together.evaluate(sessions)
            reports, complete = list(together.reports.values()), not together.failed
    if not all(result["holds"] for report in reports for result in report["requirements"]):
        raise typer.Exit(REQUIREMENT_FAILED)
    if not complete or any(report["failures"] or report["missing"] for report in reports):
        raise typer.Exit(FAILED)


def _make_room(folders: list[Path], files: list[Path], overwrite: bool) -> None:
    """Remove the reports of an earlier run, if the user agrees: a run that fails must not seem to have written them."""
    from samfeat_ros.replay.evaluation.session import written

    there = [path for folder in folders for path in written(folder)] + [path for path in files if path.exists()]
    if there and not overwrite:
        question = f"{there[0]} exists. Replace it?"
        if not (sys.stdin.isatty() and typer.confirm(question, err=True)):
            raise UsageError(f"{there[0]}: there is a report; expected another --output, or --overwrite")
    for path in there:
        path.unlink()


def _earlier(path: Path | None, bags: list[Path]) -> list[dict[str, Any] | None]:
    """The earlier report of each bag; of several, those in folders of their names."""
    from samfeat_ros.replay.evaluation.comparison import read_report

    if path is None:
        return [None] * len(bags)
    if len(bags) == 1:
        return [read_report(path)]
    folder = path.parent if path.suffix == ".json" else path
    return [read_report(folder / _name(bag)) for bag in bags]


def _name(bag: Path) -> str:
    return bag.resolve().name


def _folders(output: Path | None, bags: list[Path]) -> list[Path]:
    """Where the report of each bag goes."""
    if output and len(bags) == 1:
        return [output]
    folders = [(output or Path("out", "evaluate_bag")) / _name(bag) for bag in bags]
    if len(set(folders)) < len(folders):
        raise UsageError(f"{', '.join(map(str, bags))}: expected bags of different names")
    return folders


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


def _time_offset(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--time-offset {text!r}: expected seconds or auto")
    return value


def _stamps(text: str) -> str:
    if text not in ("header", "recorded"):
        raise UsageError(f"--stamps {text!r}: expected header or recorded")
    return text


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
        if not separator or not name or name.endswith(":"):
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
