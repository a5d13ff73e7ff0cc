"""One bag from its file to its reports: read, play to every front-end, judge, write."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tqdm import tqdm

from samfeat_core.errors import SamfeatError, one_line
from samfeat_core.files import write_json
from samfeat_core.progress import progress
from samfeat_ros.node.parameters import Parameters
from samfeat_ros.replay.evaluation.classic import run_classic
from samfeat_ros.replay.evaluation.clocks import camera_turns, find_offset
from samfeat_ros.replay.evaluation.comparison import Change, changes_table, compare
from samfeat_ros.replay.evaluation.depth import DepthScene, find_depth_topic
from samfeat_ros.replay.evaluation.footage import Footage, FootageError
from samfeat_ros.replay.evaluation.foxglove_file import write_mcap
from samfeat_ros.replay.evaluation.ground_truth import GroundTruth, GroundTruthError, read_ground_truth
from samfeat_ros.replay.evaluation.metrics import Truth
from samfeat_ros.replay.evaluation.node_run import ModelChoice, run_model
from samfeat_ros.replay.evaluation.page import write_page, write_summary
from samfeat_ros.replay.evaluation.report import (
    Evaluated,
    build_report,
    evaluate_run,
    judge_trajectories,
    text_table,
    where_classic_wins,
)
from samfeat_ros.replay.evaluation.requirements import Requirement, result_line
from samfeat_ros.replay.evaluation.rerun_file import write_rerun
from samfeat_ros.replay.evaluation.runs import Run
from samfeat_ros.replay.evaluation.tables import write_frames, write_trajectories
from samfeat_ros.replay.evaluation.trajectory import REPEATS
from samfeat_ros.replay.evaluation.verdict import verdict
from samfeat_ros.replay.recording import Recording
from samfeat_ros.topics import IMAGE

REPORT, PAGE, SUMMARY, FRAMES = "report.json", "report.html", "report.md", "frames.csv"
TRAJECTORIES = "trajectories"
# What the classic front-ends share with the node: their argument -> the node's parameter.
SHARED_PARAMETERS = {"threshold_px": "inlier_threshold", "max_gap_s": "max_gap", "verify": "verify"}


@dataclass(frozen=True)
class Request:
    """What is asked of every bag; checked.

    Attributes:
        settings: for the report, `settings` in docs/evaluate_bag.md.
        models, classics: front-ends. parameters: of the node.
        image_topic, camera_info_topic, camera_info: of the images; None = found in the bag.
        depth_topic: None = found in the bag by its name, "none" = none.
        ground_truth: topic or file; None = none. camera_in_body: (4, 4) pose of the camera in its frame.
        requirements: to be judged.
        rerun, mcap: files to write besides.
    """

    settings: dict[str, Any]
    models: list[ModelChoice]
    classics: list[str]
    parameters: dict[str, Any]
    image_topic: str | None = None
    camera_info_topic: str | None = None
    camera_info: Path | None = None
    depth_topic: str | None = None
    ground_truth: str | None = None
    camera_in_body: np.ndarray = field(default_factory=lambda: np.eye(4))
    requirements: list[Requirement] = field(default_factory=list)
    rerun: Path | None = None
    mcap: Path | None = None

    @property
    def rate(self) -> float | None:
        """Times the recorded speed; None = one image in flight."""
        return None if self.settings["rate"] == "max" else self.settings["rate"]


def written(folder: Path) -> list[Path]:
    """The files of an earlier report that are in a folder."""
    named = [folder / name for name in (REPORT, PAGE, SUMMARY, FRAMES) if (folder / name).exists()]
    return named + sorted((folder / TRAJECTORIES).glob("*.tum"))


class Session:
    """The evaluation of one bag.

    Args:
        folder: of the reports; made when the bag is readable.
        earlier: report to compare with.
    """

    def __init__(self, request: Request, bag: Path, folder: Path, earlier: dict[str, Any] | None = None) -> None:
        self.request, self.bag, self.folder, self.earlier = request, bag, folder, earlier
        self.runs: list[Run] = []
        self.failures: dict[str, str] = {}
        self.ground_truth: GroundTruth | None = None
        self.truth: Truth | None = None
        self.scene: DepthScene | None = None
        self.time_offset_s = 0.0

    def evaluate(self) -> dict[str, Any]:
        """Run and judge every front-end, and write the reports.

        After Ctrl-C the front-ends that are done are judged; after Ctrl-C while judging, without ground truth.

        Returns:
            the content of report.json.

        Raises:
            SamfeatError: nothing could be evaluated.
            KeyboardInterrupt: after the reports are written.
        """
        self.footage = self._read()
        try:
            if self.request.ground_truth:
                self._read_ground_truth(self.request.ground_truth)
                self._read_depth()
            self.folder.mkdir(parents=True, exist_ok=True)
            interrupted = False
            try:
                self._run_all()
            except KeyboardInterrupt:
                if not self.runs:
                    raise
                interrupted = True
            self._check_runs()
            try:
                evaluated = self._judge()
            except KeyboardInterrupt:
                interrupted = True
                self.ground_truth = self.truth = None
                evaluated = self._judge()
            report = self._report(evaluated, interrupted)
            if interrupted:
                raise KeyboardInterrupt
            return report
        finally:
            self.footage.close()
            if self.scene:
                self.scene.close()

    def _read(self) -> Footage:
        request, settings = self.request, self.request.settings
        part = {name: settings[name] for name in ("limit", "start_s", "duration_s")}
        recording = Recording(self.bag, request.image_topic, request.camera_info_topic, **part)
        full_scale = request.parameters.get("full_scale_16bit", Parameters.full_scale_16bit)
        with self._bar("reading", recording.count) as bar:
            footage = Footage(
                recording, request.camera_info, settings["rectified"], bar.update, full_scale, self._recorded
            )
        for line in footage.problems:
            _warn(line)
        return footage

    def _read_ground_truth(self, source: str) -> None:
        """Ground truth, and its pose for every frame that has one."""
        settings, footage = self.request.settings, self.footage
        cut = any(settings[name] for name in ("limit", "duration_s"))
        truth = read_ground_truth(source, footage.bag, footage.reached, cut, self._recorded)
        for line in truth.problems:
            self._note(line)
        truth = self._on_the_clock_of_the_images(truth).with_camera_at(self.request.camera_in_body)
        stamps = np.array([frame.stamp_ns for frame in footage.frames])
        numbers = np.array([frame.number for frame in footage.frames])
        poses = truth.at(stamps, numbers, settings["tolerance_s"])
        found = {int(number): pose for number, pose in zip(numbers, poses) if np.isfinite(pose).all()}
        if not found:
            spans = [f"{span.min() * 1e-9:.3f} to {span.max() * 1e-9:.3f} s" for span in (truth.stamps_ns, stamps)]
            within = f"none lies within {settings['tolerance_s']} s of a frame"
            raise GroundTruthError(f"{truth.source}: poses are of {spans[0]}, the images of {spans[1]}: {within}")
        if len(found) < len(footage.frames):
            self._note(f"{len(footage.frames) - len(found)} frames have no ground truth")
        self.ground_truth, self.truth = truth, Truth(found, settings["min_baseline_m"])

    def _on_the_clock_of_the_images(self, truth: GroundTruth) -> GroundTruth:
        """The truth moved by the offset that was asked for; a line where another one is likely."""
        asked = self.request.settings["time_offset_s"]
        if truth.by_number:
            if asked:
                raise GroundTruthError(f"{truth.source}: has no times; expected no --time-offset")
            return truth
        with self._bar("clocks", len(self.footage.frames)) as bar:
            turns = camera_turns(self.footage, bar.update)
        if asked == "auto":
            found = find_offset(turns, truth)
            if found is None or not found.is_clear:
                told = "nothing tells" if found is None else f"correlation {found.correlation:.2f} at best"
                raise GroundTruthError(
                    f"{truth.source}: --time-offset auto: the rotations of camera and truth do not agree at any offset "
                    f"({told}); expected --time-offset SECONDS"
                )
            self.time_offset_s = found.seconds
            return truth.shifted(found.seconds)
        self.time_offset_s = asked
        truth = truth.shifted(asked)
        found = find_offset(turns, truth)
        if found is not None and found.is_likely:
            self._note(
                f"{truth.source}: the clock is likely to be off: the camera turns with the truth at --time-offset "
                f"{asked + found.seconds:.3f} (correlation {found.correlation:.3f}), not at {asked:g} "
                f"({found.unshifted:.3f})"
            )
        return truth

    @property
    def _recorded(self) -> bool:
        return bool(self.request.settings["stamps"] == "recorded")

    def _note(self, line: str) -> None:
        """Say it, and keep it for the report."""
        self.footage.bag.problems.append(line)
        _warn(line)

    def _read_depth(self) -> None:
        """Depth images, where there are any: with the poses they tell how true the tracks are."""
        bag, asked = self.footage.bag, self.request.depth_topic
        topic = asked or find_depth_topic(bag, self.footage.recording.image_topic)
        if topic in (None, "none") or self.truth is None or self.footage.camera is None:
            return
        with self._bar("reading depth", bag.require(topic, (IMAGE,)).count) as bar:
            self.scene = DepthScene(self.footage, topic, self.truth, self.footage.camera, bar.update)
        for line in self.scene.problems:
            self._note(line)

    def _run_all(self) -> None:
        """Run all front-ends. Finished ones are added to `runs`; `failures` gets what failed, with the reason."""
        request, footage, budget = self.request, self.footage, self.request.settings["keypoints"]
        shared = {name: request.parameters[key] for name, key in SHARED_PARAMETERS.items() if key in request.parameters}
        for number, choice in enumerate(request.models):
            log = self.folder / f"node_{number}_{choice.name}.log"
            with self._bar(choice.label, len(footage.frames)) as bar:
                self._attempt(choice.label, partial(run_model, choice, footage, budget, request.rate, bar.update, log))
        for name in request.classics:
            with self._bar(name, len(footage.frames)) as bar:
                self._attempt(name, partial(run_classic, name, footage, budget, request.rate, bar.update, **shared))

    def _attempt(self, label: str, run: Callable[[], Run]) -> None:
        try:
            done = run()
        except SamfeatError as error:
            self.failures[label] = str(error)
        except Exception as error:  # one front-end's fault must not cost the others their report
            self.failures[label] = one_line(f"{type(error).__name__}: {error}")
        else:
            if done.frames:
                self.runs.append(done)
            else:
                self.failures[label] = "no frame was processed"

    def _check_runs(self) -> None:
        """Say what failed. Raises FootageError where nothing else is left."""
        for name, reason in self.failures.items():
            typer.echo(f"evaluate_bag: {name}: {reason}", err=True)
        if not self.runs:
            raise FootageError(f"{self.footage.bag.path}: nothing could be evaluated")

    def _report(self, evaluated: list[Evaluated], interrupted: bool) -> dict[str, Any]:
        """Write the reports, and say what matters."""
        report = build_report(
            self.footage, self.ground_truth, self.truth, evaluated, self.failures, self.request.settings,
            interrupted, self.request.requirements, self.time_offset_s,
        )  # fmt: skip
        if self.request.ground_truth and self.truth is None:
            report["missing"].append("all errors under ground truth: interrupted")
        changes = compare(self.earlier, report) if self.earlier else []
        write_json(self.folder / REPORT, report)
        write_page(report, evaluated, self.footage, self.folder / PAGE, changes, self.earlier)
        write_summary(report, self.folder / SUMMARY, changes, self.earlier)
        write_frames(evaluated, self.footage, self.folder / FRAMES)
        write_trajectories(evaluated, self.footage, self.truth, self.folder / TRAJECTORIES)
        if not interrupted:
            self._write_recordings(evaluated)
        _say(report, changes)
        typer.echo(f"report{' (partial)' if interrupted else ''}: {self.folder / PAGE} and {REPORT}")
        return report

    def _judge(self) -> list[Evaluated]:
        gaps = self.request.settings["gaps"]
        steps = sum(len(run.frames) for run in self.runs) * len(gaps) if self.truth else 0
        with self._bar("trajectories", REPEATS * len(self.runs), "repeat") as bar:
            trajectories = judge_trajectories(self.runs, self.footage, self.truth, bar.update)
        with self._bar("judging", steps, "pair") as bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV's part
            evaluate = partial(evaluate_run, footage=self.footage, truth=self.truth, gaps=gaps, on_step=bar.update)
            waiting = [
                pool.submit(evaluate, run, scene=self.scene, trajectory=trajectory)
                for run, trajectory in zip(self.runs, trajectories)
            ]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _write_recordings(self, evaluated: list[Evaluated]) -> None:
        for path, write in ((self.request.rerun, write_rerun), (self.request.mcap, write_mcap)):
            if path:
                with self._bar(path.name, len(self.footage.frames)) as bar:
                    write(path, evaluated, self.footage, self.truth, bar.update)

    def _bar(self, name: str, count: int, unit: str = "frame") -> tqdm:
        return progress(None, name, unit, total=count, leave=False)


def _say(report: dict[str, Any], changes: list[Change]) -> None:
    """Table and verdict on stdout; what is missing, and what fails a requirement, on stderr."""
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


def _warn(line: str) -> None:
    typer.echo(f"warning: {line}", err=True)
