"""The wheel of `python -m build`, installed into a fresh environment: features without ROS and without a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("build")
pytest.importorskip("openvino")

# The environment sees this one's libraries behind its own, but no ROS.
SCRIPT = """
import sys
sys.modules["rclpy"] = None
import numpy as np
import samfeat_core
from samfeat_core import FeatureExtractor, match_mutual

image = np.random.default_rng(0).integers(0, 256, (120, 160), np.uint8)
extractor = FeatureExtractor.from_pretrained("samfeat-nano", device="cpu", max_keypoints=200, cache_dir=sys.argv[1])
features = extractor(image)
index, index_prev, similarity = match_mutual(features.matchable, features.matchable)
print(samfeat_core.__file__, len(features), features.descriptors.shape[1], int((index == index_prev).sum()), sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source archive as `python -m build` does."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    output = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source)
    return next(output.glob("*.whl"))


def run(*command: object, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_what_runs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"samfeat_core", "samfeat_ros"}
    assert {"samfeat_core/py.typed", "samfeat_ros/py.typed"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "samfeat_core" / "weights").iterdir()} <= names


@pytest.mark.slow
def test_the_wheel_extracts_features_in_a_fresh_environment(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    file, count, dim, found_again = run(python, "-I", "-c", SCRIPT, tmp_path, cwd=tmp_path).split()
    assert Path(file).is_relative_to(site)
    assert int(count) >= 50 and dim == "64"
    assert found_again == count
