"""What the documents say is so: commands exist, snippets run, links resolve, tables agree with the code.

CONTRIBUTING.md says how a block is marked that cannot run here.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATHS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "samfeat_core" / "weights").glob("*.md")),
]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for path in PATHS}
each_document = pytest.mark.parametrize("name", DOCUMENTS)

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
RUN, SHOWN = ("bash", "python"), ("text", "mermaid", "yaml")
NO_TEST = "no-test: "
AND_SO_ON = "..."  # further arguments: what is there must be known, but need not be all


class Block(NamedTuple):
    """A fenced block: what is in it, and why it is not run, if it is not."""

    line: int
    language: str
    mark: str
    text: str


def blocks(name: str) -> list[Block]:
    """All fenced blocks of a document."""
    page = DOCUMENTS[name].read_text()
    found = []
    for match in FENCE.finditer(page):
        language, _, mark = match["info"].partition(" ")
        line = page.count("\n", 0, match.start()) + 1
        found.append(Block(line, language, mark, textwrap.dedent(match["text"])))
    return found


def prose(name: str) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", DOCUMENTS[name].read_text())


@each_document
def test_every_block_says_what_it_is(name):
    for block in blocks(name):
        where = f"{name}:{block.line}"
        assert block.language in RUN + SHOWN, f"{where}: block of {block.language!r}, expected one of {RUN + SHOWN}"
        reason = block.mark.removeprefix(NO_TEST)
        assert not block.mark or (block.mark.startswith(NO_TEST) and reason.strip()), f"{where}: mark {block.mark!r}"
        assert not (block.mark and block.language in SHOWN), f"{where}: nothing runs a block of {block.language}"


# ---- commands ----

RECORDER = '#!/bin/sh\nprintf "%s\\0" "$#" "${0##*/}" "$@" >> "$RECORD"\n'


def record(script: str, folder: Path) -> list[list[str]]:
    """The commands that a shell script calls, with their arguments. Nothing but those of `CHECKS` can be called."""
    bin_folder = folder / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for command in CHECKS:
        (bin_folder / command).write_text(RECORDER)
        (bin_folder / command).chmod(0o755)
    written = folder / "record"
    environment = {"PATH": str(bin_folder), "RECORD": str(written), "HOME": str(folder), "SAMFEAT_DATA": "data"}
    shell = shutil.which("bash") or pytest.skip("no bash")
    done = subprocess.run(
        [shell, "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    words = iter(written.read_text().split("\0")[:-1] if written.exists() else [])
    return [[next(words) for _ in range(int(count) + 1)] for count in words]


@each_document
def test_commands_exist_with_these_arguments(name, tmp_path):
    scripts = [(block.line, block.text) for block in blocks(name) if block.language == "bash" and not block.mark]
    # running text breaks commands over lines, and abbreviates them
    spans = re.findall(r"`((?:make|python|torchrun) [^`]+)`", prose(name))
    scripts += [(0, " ".join([*span.split(), AND_SO_ON])) for span in spans]
    for number, (line, script) in enumerate(scripts):
        folder = tmp_path / str(number)
        folder.mkdir()
        for command, *arguments in record(script, folder):
            try:
                CHECKS[command](arguments)
            except Exception as error:
                pytest.fail(f"{name}:{line}: {command} {' '.join(arguments)}: {type(error).__name__}: {error}")


def check_make(arguments: Sequence[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(["make", "-n", *given(arguments)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_python(arguments: Sequence[str]) -> None:
    if arguments[0] != "-m":
        script = ROOT / arguments[0]
        assert script.is_file(), f"no file {arguments[0]}"
        parse(vars(load(script))["main"], arguments[1:])
    elif arguments[1] == "pytest":
        missing = [
            argument for argument in arguments[2:] if argument.endswith(".py") and not (ROOT / argument).is_file()
        ]
        assert not missing, f"no file {missing}"
    elif arguments[1] == "torch.distributed.run":
        check_torchrun(arguments[2:])
    elif arguments[1] in ("build", "colcon"):
        check_requirement({"build": "build", "colcon": "colcon-core"}[arguments[1]])
    elif arguments[1] in ("samfeat_core.prepare", "samfeat_core.export"):  # a robot has no typer
        unknown = vars(importlib.import_module(arguments[1]))["parser"]().parse_known_args(given(arguments[2:]))[1]
        assert not unknown, f"unknown options {unknown}"
    else:
        parse(vars(importlib.import_module(arguments[1]))["app"], arguments[2:])


def check_torchrun(arguments: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    known = get_args_parser().parse_args(list(arguments))
    assert known.module, "expected -m MODULE"
    check_python(["-m", known.training_script, *known.training_script_args])


def check_ros2(arguments: Sequence[str]) -> None:
    verb, package, name, *rest = arguments
    assert package == "samfeat_ros", f"package {package}"
    if verb == "run":
        check_executable(name, rest)
    else:
        assert verb == "launch" and (ROOT / "launch" / name).is_file(), f"{verb} {name}"
        known = launch_arguments().keys() | launch_arguments(name).keys()
        unknown = {argument.partition(":=")[0] for argument in given(rest)} - known
        assert not unknown, f"unknown launch arguments {unknown}"


def check_executable(name: str, arguments: Sequence[str]) -> None:
    module = executables()[name]
    own = list(arguments)[: list(arguments).index("--ros-args")] if "--ros-args" in arguments else list(arguments)
    app = vars(importlib.import_module(module)).get("app")
    if app is None:
        assert not given(own), f"{name} takes ROS arguments only"
    else:
        parse(app, own)


def check_pip(arguments: Sequence[str]) -> None:
    verb, target = given(arguments)
    extras = re.fullmatch(r"\.\[([\w,]+)\]", target)
    assert verb == "install" and extras, "expected install .[EXTRAS]"
    unknown = set(extras[1].split(",")) - set(setup_arguments()["extras_require"])
    assert not unknown, f"unknown extras {unknown}"


def check_requirement(name: str) -> None:
    assert f"\n{name}==" in (ROOT / "requirements-dev.txt").read_text(), f"{name} is no requirement"


@cache
def setup_arguments() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return dict(setup.call_args.kwargs)


def executables() -> dict[str, str]:
    """Module of every executable."""
    scripts = setup_arguments()["entry_points"]["console_scripts"]
    return {name: place.removesuffix(":main") for name, place in (script.split(" = ") for script in scripts)}


@cache
def launch_arguments(file: str = "samfeat.launch.py") -> dict[str, tuple[str | None, str]]:
    """Default and meaning of a launch file's arguments; None = a default that is computed."""
    tree = ast.parse((ROOT / "launch" / file).read_text())
    wanted = [
        node
        for node in tree.body
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samfeat_"))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("ARGUMENTS", "CAMERA"))
    ]
    names: dict[str, Any] = {"SHARE": ROOT, "str": lambda path: None}
    exec(compile(ast.Module(wanted, []), file, "exec"), names)
    return names["ARGUMENTS"]


@cache
def load(script: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{script.stem}", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def parse(program: Any, arguments: Sequence[str]) -> None:
    """Parse the arguments of a typer application or of a function for `typer.run`, without running it."""
    import typer

    if not isinstance(program, typer.Typer):
        function, program = program, typer.Typer()
        program.command()(function)
    command, rest = typer.main.get_command(program), given(arguments)
    abbreviated = len(rest) < len(arguments)
    while hasattr(command, "commands"):
        if abbreviated and not rest:
            return
        assert rest and rest[0] in command.commands, f"expected one of {', '.join(command.commands)}"
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest, resilient_parsing=abbreviated)


def given(arguments: Sequence[str]) -> list[str]:
    """The arguments without the sign that there are more."""
    return [argument for argument in arguments if argument != AND_SO_ON]


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": check_make,
    "python": check_python,
    "torchrun": check_torchrun,
    "ros2": check_ros2,
    "pip": check_pip,
    "tensorboard": lambda arguments: check_requirement("tensorboard"),
    **{name: partial(check_executable, name) for name in executables()},
}


@each_document
def test_python_snippets_run(name, tmp_path):
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    picture = cv2.resize(random.integers(0, 256, (30, 40, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    for file, shift in (("first.jpg", 0), ("second.jpg", 4)):
        cv2.imwrite(str(tmp_path / file), np.roll(picture, shift, axis=1))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for block in blocks(name):
        if block.language != "python":
            continue
        compile(block.text, f"{name}:{block.line}", "exec")
        if not block.mark:
            done = subprocess.run(
                [sys.executable, "-c", block.text], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{name}:{block.line}: {done.stderr}"


# ---- links ----


def headings(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document
def test_links_resolve(name):
    path = DOCUMENTS[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), f"{name}: {target}: no such file"
        assert not anchor or anchor in headings(to), f"{name}: {target}: no such heading"


@each_document
def test_files_that_are_named_exist(name):
    rooms = "samfeat_core|samfeat_ros|training|config|docs|test|benchmarks|launch"
    for file in re.findall(rf"`((?:{rooms})/(?:[\w./-]+/|[\w./-]+\.\w+|))`", prose(name)):
        assert (ROOT / file).exists(), f"{name}: {file}"


def test_every_page_is_in_the_index():
    index = DOCUMENTS["README.md"].read_text()
    missing = [name for name in DOCUMENTS if name != "README.md" and f"]({name})" not in index]
    assert not missing


# ---- the front door ----


def test_the_readme_is_short():
    assert len(DOCUMENTS["README.md"].read_text().split()) <= 1000


def test_the_picture_is_small():
    assert (ROOT / "docs" / "overlay.png").stat().st_size < 200_000


def test_the_readme_shows_what_the_demo_prints():
    shown = next(block.text for block in blocks("README.md") if block.language == "text")
    code = [*(ROOT / "samfeat_ros" / "replay").rglob("*.py"), ROOT / "samfeat_ros" / "node_status.py"]
    source = "".join(path.read_text() for path in code)
    for line in filter(str.strip, shown.splitlines()):
        label = re.split(r"  +", line.strip())[0]
        assert f'"{label}"' in source or f"'{label}'" in source, f"nothing prints {label!r}"


# ---- tables ----


def rows(name: str, heading: str) -> list[list[str]]:
    """The rows below a heading, up to the next of its level: their cells without backquotes, and no table heads."""
    level = heading.split()[0]
    section = prose(name).split(f"\n{heading}\n", 1)[1]
    section = re.split(rf"^#{{1,{len(level)}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n?)*)", section, re.MULTILINE)
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for table in tables
        for line in table.strip().split("\n")
    ]


def text(value: Any) -> str:
    """A default as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value)


def test_the_table_of_parameters_is_that_of_the_node():
    pytest.importorskip("rclpy")
    from samfeat_ros.node.parameters import CONFIGURE, LIVE, START, Parameters

    live = {LIVE: "yes", CONFIGURE: "no", START: "at start"}
    expected = []
    for field in dataclasses.fields(Parameters):
        low, high, choices, change, meaning = (
            field.metadata[key] for key in ("low", "high", "choices", "change", "description")
        )
        extent = ", ".join(choices) or ("" if low is None else f"{low} to {high}")
        expected.append([field.name, text(field.default), extent, live[change], meaning.replace("`", "")])
    assert rows("docs/parameters.md", "## The node") == expected


def test_the_tables_of_launch_arguments_are_those_of_the_launch_files():
    expected = [
        [name, "config/samfeat.yaml" if default is None else text(default), meaning.replace("`", "")]
        for file in ("samfeat.launch.py", "cameras.launch.py")
        for name, (default, meaning) in launch_arguments(file).items()
    ]
    assert rows("docs/parameters.md", "## Launch arguments") == expected


def quality(profile: Any) -> str:
    """A QoS profile in words."""
    words = profile.reliability.name, f"keep last {profile.depth}", profile.durability.name
    return ", ".join(word.lower().replace("_", " ") for word in words)


def test_the_tables_of_topics_are_those_of_the_node():
    pytest.importorskip("rclpy")
    from samfeat_ros import qos
    from samfeat_ros.messages import KEYPOINT, MATCH, TRACKS_LAYOUTS
    from samfeat_ros.node.diagnostics import Statistics
    from samfeat_ros.topics import OUTPUTS, short_name

    page = "docs/topics.md"
    inputs = rows(page, "## Inputs")
    assert [row[0] for row in inputs] == ["image", "image/compressed", "camera_info", "mask"]
    assert [row[2] for row in inputs] == [quality(qos.newest()), "the same", "the same", quality(qos.latched())]
    outputs = {row[0]: row[1:] for row in rows(page, "## Outputs") if row[0].startswith("~/")}
    assert {topic: row[0].split(",")[0].split("/")[1] for topic, row in outputs.items()} == {
        f"~/{topic}": short_name(output.type) for topic, output in OUTPUTS.items()
    }
    assert next(iter(outputs.values()))[1] == quality(qos.reliable())
    for topic, layout in (("keypoints", KEYPOINT), ("matches", MATCH)):
        fields = [[name, str(place[0]), str(place[1])] for name, place in (layout.fields or {}).items()]
        assert [row[:3] for row in rows(page, f"### ~/{topic}")] == fields
    assert f"A row is {MATCH.itemsize} bytes" in prose(page)
    layouts = {row[0]: tuple(row[1].split(", ")) for row in rows(page, "### ~/tracks")}
    assert layouts == TRACKS_LAYOUTS
    diagnostics = prose(page).split("### /diagnostics")[1].split("## Services")[0]
    for key in Statistics().report()[2]:
        assert f"`{re.sub('latency_.*', 'latency_STAGE_p50_ms', key)}`" in diagnostics


def test_the_table_of_services_is_that_of_the_node():
    source = (ROOT / "samfeat_ros" / "node" / "samfeat_node.py").read_text()
    created = {(name, kind) for kind, name in re.findall(r'create_service\((\w+), "(~/\w+)"', source)}
    documented = {(row[0], row[1].removeprefix("std_srvs/")) for row in rows("docs/topics.md", "## Services")}
    assert created and documented == created
