"""The command evaluate_bag: through the real node, on good bags and on bad ones."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("rclpy")
pytest.importorskip("evo")

import bag_maker
from bag_maker import START, write_bag
from rosbags.rosbag2 import StoragePlugin
from test_bags import mutants
from typer.testing import CliRunner

from samfeat_core.errors import SamfeatError
from samfeat_ros.replay.bags import Bag, decode
from samfeat_ros.replay.evaluate_bag import app
from samfeat_ros.replay.evaluation.footage import Footage
from samfeat_ros.replay.recording import Recording
from samfeat_ros.stamps import stamp_to_ns

CLASSIC = ["--model", "none", "--classic", "lk", "--rate", "max", "--keypoints", "150"]


@pytest.fixture(autouse=True)
def as_before():
    """The command changes the environment and the signal handler of its process; tests after it shall not notice."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, handler)


def evaluate(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bag") / "wall")


def test_model_and_classic_with_ground_truth(bag, weights, tmp_path):
    """Every frame through the node, twice: the same to the bit; the report says how well."""
    digests = []
    for name in ("first", "second"):
        code, out, err = evaluate(
            bag, "--ground-truth", "/pose",
            "--model", f"samfeat-nano={weights}", "--device", "cpu", "--engine", "eager",
            "--parameter", "threshold=0.0", "--classic", "orb", "--rate", "max", "--keypoints", 200,
            "--output", tmp_path / name,
        )  # fmt: skip
        report = json.loads((tmp_path / name / "report.json").read_text())
        # on a plane a trajectory may fail in twelve frames: that is said, and nothing else is missing
        assert code == (1 if report["missing"] else 0), err
        assert all(": trajectory: " in line and line in err for line in report["missing"])
        digests.append(report["runs"][0]["digest"])
    assert digests[0] == digests[1]
    assert (tmp_path / "first" / "report.html").stat().st_size > 10_000
    model, orb = report["runs"]
    assert (model["kind"], orb["kind"]) == ("model", "classic")
    assert model["frames_processed"] == orb["frames_processed"] == 12 and model["dropped"] == {}
    assert model["latency_ms"]["p50"] > 0 and set(model["stages_ms"]) >= {"decode", "network", "match"}
    assert model["memory_mb"] > 10 and model["details"]["engine"] == "eager"
    assert model["epipolar"]["pairs"] == 11 and orb["epipolar"]["inliers"]["median_px"] < 1
    assert "inlier ratio" in out and "report.html" in out


def test_at_the_recorded_rate(bag, weights, tmp_path):
    """Frames come as recorded; those that the node does not answer are counted."""
    code, _, err = evaluate(
        bag, "--model", f"samfeat-nano={weights}", "--device", "cpu", "--engine", "eager",
        "--parameter", "threshold=0.0", "--classic", "none", "--rate", 2.0, "--keypoints", 100, "--output", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["frames_processed"] + sum(run["dropped"].values()) == run["frames_offered"] == 12
    assert run["seconds"] >= 0.5


def test_a_model_that_cannot_be_is_said_and_the_rest_is_evaluated(bag, tmp_path):
    code, out, err = evaluate(bag, "--model", "no-such-model", "--classic", "lk", "--rate", "max", "--output", tmp_path)
    assert code == 1 and "no-such-model" in err and "Traceback" not in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["lk"] and "no-such-model" in report["failures"]


def test_a_report_is_replaced_only_on_request_and_a_failed_run_leaves_none(bag, tmp_path):
    (tmp_path / "report.json").write_text("of an earlier run")
    code, _, err = evaluate(bag, *CLASSIC, "--output", tmp_path)
    assert code == 2 and "there is a report; expected another --output, or --overwrite" in err
    assert (tmp_path / "report.json").read_text() == "of an earlier run"
    code, _, _ = evaluate(tmp_path / "nothing.mcap", *CLASSIC, "--output", tmp_path, "--overwrite")
    assert code == 1 and not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("fault", [RuntimeError("lens\nfell off"), KeyboardInterrupt()])
def test_what_is_finished_is_in_the_report_whatever_happens_to_the_next(bag, tmp_path, monkeypatch, fault):
    """A fault in the second front-end, and Ctrl-C there: the first one's figures are kept."""
    from samfeat_ros.replay.evaluation import classic

    def broken(*settings):
        raise fault

    monkeypatch.setitem(classic.FRONT_ENDS, "orb", ("broken", broken))
    arguments = ["--model", "none", "--classic", "lk,orb", "--rate", "max", "--output", tmp_path]
    interrupted = isinstance(fault, KeyboardInterrupt)
    code, _, err = evaluate(bag, *arguments)
    assert code == (130 if interrupted else 1) and "Traceback" not in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["lk"] and report["partial"] is interrupted
    assert report["failures"] == ({} if interrupted else {"orb": "RuntimeError: lens fell off"})


def test_ground_truth_that_stands_still_is_said(bag, tmp_path):
    """Static truth: the figures that cannot be there are named with the reason, and the exit code is not 0."""
    lines = [f"{(START + i * bag_maker.FRAME_NS) * 1e-9:.3f} 0 0 0 0 0 0 1" for i in range(12)]
    (tmp_path / "tum.txt").write_text("\n".join(lines))
    code, _, err = evaluate(bag, *CLASSIC, "--ground-truth", tmp_path / "tum.txt", "--output", tmp_path / "out")
    assert code == 1
    assert "missing: lk: epipolar error: no two frames with ground truth are 0.01 m apart" in err
    assert "missing: lk: relative pose at gap 1, 5, 10" in err


def test_kitti_ground_truth_and_limit(bag, tmp_path):
    rows = [f"1 0 0 {bag_maker.pose(i).pose.position.x} 0 1 0 0 0 0 1 0" for i in range(8)]
    (tmp_path / "poses.txt").write_text("\n".join(rows))
    code, _, err = evaluate(
        bag,
        *CLASSIC,
        "--limit",
        8,
        "--gaps",
        "1,5",
        "--ground-truth",
        tmp_path / "poses.txt",
        "--output",
        tmp_path / "out",
    )
    assert code == 1 and err.count("missing:") == 1
    assert "lk: trajectory: 8 frames have ground truth; expected 10 or more" in err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["ground_truth"]["frames_with_pose"] == 8 and report["bag"]["usable"] == 8


@pytest.mark.parametrize(
    ("code", "arguments", "expected"),
    [
        (
            1,
            ["--image-topic", "/nope"],
            "has no topic '/nope'; Image or CompressedImage topics there: /camera/image_raw",
        ),
        (1, ["--image-topic", "/pose"], "is of type geometry_msgs/msg/PoseStamped"),
        (1, ["--camera-info-topic", "/nope"], "CameraInfo topics there: /camera/camera_info"),
        (1, ["--camera-info", "/no/such.yaml"], "/no/such.yaml"),
        (1, ["--ground-truth", "/nope"], "PoseStamped"),
        (2, ["--rate", "fast"], "--rate 'fast'"),
        (2, ["--rate", "-1"], "--rate '-1'"),
        (2, ["--gaps", "0"], "--gaps '0'"),
        (2, ["--tolerance", "nan"], "--tolerance nan: expected a finite number"),
        (2, ["--min-baseline", "nan"], "--min-baseline nan: expected a finite number"),
        (2, ["--parameter", "no_such=1"], "the node has no such parameter"),
        (2, ["--parameter", "inlier_threshold=-1"], "inlier_threshold is -1.0, expected 0.01 to 100.0"),
        (2, ["--parameter", "max_keypoints=9"], "use --keypoints, the budget of everyone"),
        (2, ["--parameter", "mask_file=m.png"], "the classic front-ends have no mask"),
        (2, ["--classic", "surf"], "--classic 'surf'"),
        (2, ["--classic", "none"], "neither a model nor a classic front-end"),
        (2, ["--model", "samfeat-nano=/no/such.safetensors"], "there is no file"),
        (2, ["--parameter", "threshold"], "expected NAME=VALUE"),
        (2, ["--parameter", "model:=x"], "expected NAME=VALUE"),
        (2, ["--require", "inlier>=3"], "--require 'inlier>=3': there is no figure inlier; expected one of"),
        (2, ["--start", "-1"], "--start -1.0: expected a finite number"),
        (1, ["--compare", "/no/such.json"], "/no/such.json: cannot be read"),
        (2, ["--extrinsics", "1 2"], "--extrinsics '1 2': expected 'x y z qx qy qz qw'"),
    ],
)
def test_wrong_options_are_one_line(bag, tmp_path, code, arguments, expected):
    ended, _, err = evaluate(bag, *CLASSIC, *arguments, "--output", tmp_path / "out")
    assert ended == code and "Traceback" not in err
    (line,) = [text for text in err.splitlines() if text.startswith("evaluate_bag: ")]
    assert expected in line
    assert not (tmp_path / "out" / "report.json").exists()


def test_no_such_bag(tmp_path):
    code, _, err = evaluate(tmp_path / "nothing.mcap", *CLASSIC)
    assert code == 1 and "no such file" in err


def test_ground_truth_that_does_not_overlap(bag, tmp_path):
    (tmp_path / "tum.txt").write_text("1.0 0 0 0 0 0 0 1\n2.0 1 0 0 0 0 0 1\n")
    code, _, err = evaluate(bag, *CLASSIC, "--ground-truth", tmp_path / "tum.txt", "--output", tmp_path / "out")
    assert code == 1 and "none lies within" in err and f"{START * 1e-9:.3f}" in err


def test_no_camera_info_is_evaluated_without_ground_truth(tmp_path):
    bag = write_bag(tmp_path / "bag", with_camera=False)
    code, out, err = evaluate(bag, *CLASSIC, "--ground-truth", "/pose", "--output", tmp_path / "out")
    assert code == 1 and "no CameraInfo" in err and "ATE" not in out  # what was asked for is not all there
    assert "evaluate_bag: missing: all errors under ground truth: there is no usable CameraInfo" in err
    problems = json.loads((tmp_path / "out" / "report.json").read_text())["bag"]["problems"]
    assert any("no CameraInfo" in line for line in problems)


def test_zero_frames(tmp_path):
    code, _, err = evaluate(write_bag(tmp_path / "bag", images=[]), *CLASSIC)
    assert code == 1 and "image" in err and "Traceback" not in err


def test_truncated_bag_is_evaluated_as_far_as_it_goes(bag, tmp_path):
    data = (bag / "wall.mcap").read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(data[: len(data) // 2])
    code, _, err = evaluate(path, *CLASSIC, "--output", tmp_path / "out")
    assert code == 0 and "damaged" in err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 2 <= report["bag"]["usable"] < 12 and "damaged" in report["bag"]["problems"][0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Read this first" in page


@pytest.fixture(scope="module", params=[StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
def tiny(request, tmp_path_factory) -> Path:
    """A storage file with four small images."""
    images = [bag_maker.image(i, bag_maker.picture(i, 48, 36)) for i in range(4)]
    folder = write_bag(tmp_path_factory.mktemp("tiny") / "bag", images=images, storage=request.param)
    return next(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))


def check_footage(source: Path, folder: Path, count: int, seed: int) -> None:
    """Mutants of a bag: an error of one line, or footage whose losses are stated."""
    path = folder / source.name
    for number, data in enumerate(mutants(source.read_bytes(), count, seed)):
        path.write_bytes(data)
        try:
            footage = Footage(Recording(path, "/camera/image_raw"))
        except SamfeatError as error:
            assert "\n" not in str(error) and str(error)
            continue
        assert len(footage.frames) == 4 or footage.problems, f"mutant {number}: silent loss"
        assert footage.duration_s < 60, "a broken time would stall the playback"
        assert sum(1 for _ in footage.images()) == len(footage.frames)
        footage.close()


def test_mutants_as_footage(tiny, tmp_path):
    check_footage(tiny, tmp_path, 120, seed=5)


@pytest.mark.slow
def test_many_mutants_as_footage(tiny, tmp_path):
    check_footage(tiny, tmp_path, 1500, seed=6)


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_mutants_through_the_command(tiny, tmp_path, count):
    """The whole command on mutants: 0 with a report, or 1 with one line."""
    path = tmp_path / tiny.name
    for data in mutants(tiny.read_bytes(), count, seed=7):
        path.write_bytes(data)
        code, _, err = evaluate(
            path, *CLASSIC, "--image-topic", "/camera/image_raw", "--overwrite", "--output", tmp_path / "out"
        )
        assert code in (0, 1) and "Traceback" not in err
        assert code == 0 or err.strip().splitlines()[-1].startswith("evaluate_bag: ")


def test_random_bytes_are_no_bag(tmp_path):
    for suffix in (".mcap", ".db3", ".bag"):
        path = tmp_path / f"random{suffix}"
        path.write_bytes(np.random.default_rng(0).bytes(5000))
        code, _, err = evaluate(path, *CLASSIC)
        assert code == 1 and "not readable" in err and str(path) in err


def test_frames_and_trajectories_are_files_for_other_tools(bag, tmp_path):
    """evo reads the poses; the CSV has a row for every frame, and the numbers of report.json."""
    tools = pytest.importorskip("evo.tools.file_interface")
    code, _, _ = evaluate(
        bag, *CLASSIC, "--ground-truth", "/pose", "--start", 0.2, "--duration", 0.95, "--output", tmp_path
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bag"]["usable"] == 10 and report["settings"]["start_s"] == 0.2
    with (tmp_path / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(2, 12)) == report["runs"][0]["per_frame"]["number"]
    assert [int(row["inliers"]) for row in rows] == report["runs"][0]["per_frame"]["inliers"]
    truth = tools.read_tum_trajectory_file(tmp_path / "trajectories" / "ground_truth.tum")
    assert truth.timestamps - truth.timestamps[0] == pytest.approx(np.arange(10) * 0.1, abs=1e-6)
    step = bag_maker.SHIFT_PX * bag_maker.DEPTH / bag_maker.FOCAL
    assert np.diff(truth.positions_xyz[:, 0]) == pytest.approx(np.full(9, step))


def test_the_gate_and_the_changes_since_an_earlier_report(bag, tmp_path):
    """Exit code 3 and the bounds that fail; the same run again is within the spread of the first in every count."""
    code, _, _ = evaluate(bag, *CLASSIC, "--output", tmp_path / "old")
    assert code == 0
    code, out, err = evaluate(
        bag, *CLASSIC, "--output", tmp_path / "new", "--compare", tmp_path / "old" / "report.json",
        "--require", "inliers.p5>=10", "--require", "inliers.p5>=100000", "--require", "ate<=0.3",
    )  # fmt: skip
    assert code == 3
    failing = [line for line in err.splitlines() if "requirement fails" in line]
    assert [line.split(": ")[2] for line in failing] == ["inliers.p5>=100000", "ate<=0.3"]
    assert failing[1].endswith("lk: not in the report")
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [result["holds"] for result in report["requirements"]] == [True, False, False]
    change = next(line.split() for line in out.splitlines() if line.startswith("track length, mean "))
    assert "change since the earlier report" in out and change
    assert "Changes since" in (tmp_path / "new" / "report.html").read_text()
    assert "❌ `inliers.p5>=100000" in (tmp_path / "new" / "report.md").read_text()


def test_several_bags_are_put_together(bag, tmp_path):
    """One that cannot be read costs the others nothing; the aggregate is the mean, with the worst bag named."""
    other = write_bag(tmp_path / "other", frames=11)
    output = tmp_path / "out"
    options = [*CLASSIC, "--output", output, "--require", "inliers.p5>=10"]
    code, out, err = evaluate(bag, tmp_path / "none", other, *options)
    assert code == 1 and f"{tmp_path / 'none'}: no such file" in err
    report = json.loads((output / "report.json").read_text())
    assert list(report["bags"]) == ["wall", "other"] and list(report["failures"]) == [str(tmp_path / "none")]
    assert [(result["bag"], result["holds"]) for result in report["requirements"]] == [("wall", True), ("other", True)]
    singles = [json.loads((output / name / "report.json").read_text())["runs"][0] for name in report["bags"]]
    lengths = [run["tracks"]["mean_length"] for run in singles]
    assert report["runs"][0]["figures"]["tracks.mean_length"] == {
        "bags": 2, "mean": pytest.approx(np.mean(lengths)), "worst": min(lengths), "worst_bag": "other",
    }  # fmt: skip
    line = next(line for line in out.splitlines()[::-1] if line.startswith("frames processed"))
    assert line.split() == ["frames", "processed", "12", "2"]  # 11.5 of 2 bags
    assert 'href="other/report.html"' in (output / "report.html").read_text()
    assert "| frames processed | 12 | 2 |" in (output / "report.md").read_text()
    code, _, err = evaluate(bag, other, *options)
    assert code == 2 and f"{output / 'report.json'}: there is a report" in err
    code, _, err = evaluate(bag, other, *options, "--overwrite", "--compare", tmp_path / "nowhere")
    assert code == 1 and "nowhere/wall/report.json: cannot be read" in err
    code, _, err = evaluate(bag, bag, *options, "--overwrite")
    assert code == 2 and "expected bags of different names" in err


def test_interrupted_in_the_second_bag(bag, tmp_path, monkeypatch):
    from samfeat_ros.replay.evaluation import session

    def interrupted(path, *topics, **part):
        if path.name == "other":
            raise KeyboardInterrupt
        return Recording(path, *topics, **part)

    monkeypatch.setattr(session, "Recording", interrupted)
    code, _, _ = evaluate(bag, write_bag(tmp_path / "other"), *CLASSIC, "--output", tmp_path / "out")
    assert code == 130
    assert list(json.loads((tmp_path / "out" / "report.json").read_text())["bags"]) == ["wall"]


def test_interrupted_while_judging(bag, tmp_path, monkeypatch):
    """The runs are done: what needs no ground truth is in the report."""
    from samfeat_ros.replay.evaluation import session

    def interrupted(runs, footage, truth, on_step):
        if truth is not None:
            raise KeyboardInterrupt
        return judge_trajectories(runs, footage, truth, on_step)

    judge_trajectories = session.judge_trajectories
    monkeypatch.setattr(session, "judge_trajectories", interrupted)
    code, _, err = evaluate(bag, *CLASSIC, "--ground-truth", "/pose", "--output", tmp_path)
    assert code == 130 and "missing: all errors under ground truth: interrupted" in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["partial"] and report["runs"][0]["inliers"]["mean"] > 50 and report["runs"][0]["epipolar"] is None


def test_a_file_for_foxglove(bag, tmp_path):
    """Overlays at the stamps of the frames, and the true poses, as another reader sees them."""
    path = tmp_path / "files" / "wall.mcap"
    options = [*CLASSIC, "--ground-truth", "/pose", "--output", tmp_path / "out", "--mcap", path]
    evaluate(bag, *options)
    with Bag(path) as written:
        assert written.topics["/lk/overlay"].type == "sensor_msgs/msg/CompressedImage" and not written.problems
        overlays = [decode(message) for message in written.messages(["/lk/overlay"])]
        poses = [decode(message) for message in written.messages(["/ground_truth/pose"])]
        (whole,) = (decode(message) for message in written.messages(["/ground_truth/path"]))
    assert [stamp_to_ns(o.header.stamp) for o in overlays] == [START + i * bag_maker.FRAME_NS for i in range(12)]
    assert cv2.imdecode(overlays[5].data, cv2.IMREAD_COLOR).shape == (bag_maker.HEIGHT, bag_maker.WIDTH, 3)
    expected = [bag_maker.pose(i).pose.position.x for i in range(12)]
    assert [pose.pose.position.x for pose in poses] == pytest.approx(expected)
    assert [pose.pose.position.x for pose in whole.poses] == pytest.approx(expected)
    assert [path.name for path in path.parent.iterdir()] == ["wall.mcap"]
    code, _, err = evaluate(bag, *options, "--output", tmp_path / "again")
    assert code == 2 and f"{path}: there is a report" in err


def test_a_file_for_rerun(bag, tmp_path):
    pytest.importorskip("rerun")
    path = tmp_path / "wall.rrd"
    evaluate(bag, *CLASSIC, "--ground-truth", "/pose", "--output", tmp_path / "out", "--rerun", path)
    command = [sys.executable, "-m", "rerun", "rrd", "stats", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for entity in ("camera/image", "camera/image/lk/keypoints", "camera/image/lk/tracks", "world/ground_truth/path"):
        assert f"/{entity}: " in done.stdout


def test_rerun_that_is_not_installed_is_said_before_anything_runs(bag, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    code, _, err = evaluate(bag, *CLASSIC, "--output", tmp_path / "out", "--rerun", tmp_path / "x.rrd")
    assert code == 1 and "expected the extra 'rerun'" in err and not (tmp_path / "out").exists()
    code, _, err = evaluate(bag, bag, *CLASSIC, "--mcap", tmp_path / "x.mcap")
    assert code == 2 and "--rerun, --mcap: expected one bag" in err


def test_depth_and_poses_tell_how_true_the_tracks_are(tmp_path):
    """Lucas-Kanade on a wall stays within 2 px of where depth and motion put a point; half as deep, it does not."""
    bag = write_bag(tmp_path / "bag", with_depth=True)
    options = [*CLASSIC, "--ground-truth", "/pose", "--gaps", 1]
    evaluate(bag, *options, "--output", tmp_path / "true", "--require", "track_truth.ages.5.within.2>=95")
    report = json.loads((tmp_path / "true" / "report.json").read_text())
    assert report["requirements"][0]["holds"]
    truth = report["runs"][0]["track_truth"]["ages"]
    assert set(truth) == {"1", "5", "10", "20"} and truth["20"] is None  # twelve frames
    assert truth["5"]["tracks"] > 50 and truth["5"]["median_px"] < 0.3 and truth["5"]["survival"] > 80
    assert "Tracks within 2 px of the truth" in (tmp_path / "true" / "report.html").read_text()
    half = [f"{(START + i * bag_maker.FRAME_NS) * 1e-9:.3f} {i * 0.0375} 0 0 0 0 0 1" for i in range(12)]
    (tmp_path / "half.txt").write_text("\n".join(half))
    evaluate(bag, *CLASSIC, "--gaps", 1, "--ground-truth", tmp_path / "half.txt", "--output", tmp_path / "wrong")
    truth = json.loads((tmp_path / "wrong" / "report.json").read_text())["runs"][0]["track_truth"]["ages"]
    assert truth["5"]["median_px"] == pytest.approx(7.5, abs=0.3) and truth["5"]["within"]["4"] < 5
    evaluate(bag, *options, "--output", tmp_path / "without", "--depth-topic", "none")
    assert json.loads((tmp_path / "without" / "report.json").read_text())["runs"][0]["track_truth"] is None
    code, _, err = evaluate(bag, *options, "--output", tmp_path / "x", "--depth-topic", "/pose")
    assert code == 1 and "'/pose' is of type geometry_msgs/msg/PoseStamped" in err
