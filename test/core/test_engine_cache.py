"""Built engines on disk: whole or not there, checked, bounded."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from samfeat_core.engines import cache

KEY = "samfeat-nano-640x480-{:016x}"


@pytest.fixture
def lines():
    return []


@pytest.fixture
def log(lines):
    return lambda level, text: lines.append((level, text))


def write(size: int):
    return lambda folder: (folder / "engine.bin").write_bytes(os.urandom(size))


def test_what_was_stored_is_loaded_and_sha256sum_agrees(tmp_path, lines, log):
    path = tmp_path / "cache" / KEY.format(1)
    assert cache.load(path, log) is None
    assert cache.store(path, write(1000), log) == path == cache.load(path, log)
    assert subprocess.run(["sha256sum", "--check", "--status", cache.SUMS], cwd=path).returncode == 0
    assert not lines and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["byte", "missing", "extra", "no sums"])
def test_a_damaged_engine_is_removed_with_one_line(tmp_path, lines, log, damage):
    path = tmp_path / KEY.format(1)
    cache.store(path, write(1000), log)
    file = path / "engine.bin"
    if damage == "byte":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        file.unlink()
    elif damage == "extra":
        (path / "more.bin").touch()
    else:
        (path / cache.SUMS).unlink()
    assert cache.load(path, log) is None and not path.exists()
    assert [level for level, _ in lines] == ["warning"] and str(path) in lines[0][1]


def test_nothing_is_left_of_a_write_that_failed(tmp_path, lines, log):
    def fail(folder: Path) -> None:
        (folder / "engine.bin").write_bytes(b"half")
        raise OSError("disk full")

    assert cache.store(tmp_path / KEY.format(1), fail, log) is None
    assert not list(tmp_path.iterdir())
    assert [level for level, _ in lines] == ["warning"] and "disk full" in lines[0][1]


def test_another_process_may_be_faster(tmp_path, lines, log):
    path = tmp_path / KEY.format(1)

    def race(folder: Path) -> None:
        write(10)(folder)
        cache.store(path, write(20), log)

    assert cache.store(path, race, log) == path
    assert (path / "engine.bin").stat().st_size == 20 and not lines


def test_the_engines_unused_for_longest_go_first(tmp_path, log):
    paths = [tmp_path / KEY.format(number) for number in range(4)]
    for age, path in enumerate(reversed(paths[:3])):
        cache.store(path, write(1000), log)
        os.utime(path, (time.time() - 100 * (age + 1),) * 2)
    cache.load(paths[0], log)  # the oldest, used just now
    cache.store(paths[3], write(1000), log, limit_bytes=3500)
    assert sorted(tmp_path.iterdir()) == [paths[0], paths[2], paths[3]]


def test_what_was_never_finished_goes_and_foreign_files_stay(tmp_path, log):
    old = [f".{KEY.format(1)}.x7", f"{KEY.format(2)}.partial.xml", f"{KEY.format(2)}.partial.bin"]
    fresh, foreign = f".{KEY.format(3)}.x8", ["notes.partial.txt", "thesis.tex"]
    for name in [*old, fresh, *foreign]:
        (tmp_path / name).write_bytes(bytes(5000))
    for name in [*old, *foreign]:
        os.utime(tmp_path / name, (0, 0))
    cache.store(tmp_path / KEY.format(4), write(10), log, limit_bytes=100)
    assert {path.name for path in tmp_path.iterdir()} == {fresh, *foreign, KEY.format(4)}
