"""Which engine `auto` takes: the fastest here of those that are as accurate as `eager`.

How accurate an engine is does not depend on the machine, so it was measured once: `accuracy.json` has a row for each
model and engine, written by `python -m training.compare_engines`:

    format   "samfeat engine accuracy", version 1
    rows     model, engine; weights: fingerprint of what was measured, with no other is the row valid; library: name and
             version; machine; measures: {name: {"pairs", "eager", "difference", "interval"}}, in points of per cent;
             as_accurate: the verdict

How fast it is does depend on the machine: the first time that `auto` is asked for, the engines in question run a small
network in turns (`probe`), and the result is kept in the cache of engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from samfeat_core import files
from samfeat_core.engines import BY_DEVICE, INEXACT, LIBRARY, Log, fingerprint, ranges_file
from samfeat_core.errors import FileError, one_line
from samfeat_core.measure import cpu_count, cpu_flags, cpu_name

FORMAT, VERSION = "samfeat engine accuracy", 1
TABLE = Path(__file__).with_name("accuracy.json")
# Instructions of which a CPU has one where the accuracy and the speed that were measured are to be expected. Without
# VNNI sums of eight-bit products saturate at 16 bits.
NEEDS = {
    "openvino_int8": {"avx512_vnni", "avx_vnni"},
    "openvino_bf16": {"avx512_bf16", "amx_bf16"},
}
TEST_S = 0.2  # of timed runs, for all engines together


@dataclass(frozen=True)
class Row:
    """What was measured of one engine with one model's weights; see the module."""

    model: str
    engine: str
    weights: str
    library: str
    machine: str
    measures: dict[str, dict]
    as_accurate: bool


def read_table(path: Path = TABLE) -> list[Row]:
    """The rows. FileError: not such a file."""
    try:
        content = json.loads(path.read_text())
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        return [Row(**row) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}: not readable as {FORMAT} ({type(error).__name__}: {error})") from error


def write_table(rows: Sequence[Row], path: Path = TABLE) -> None:
    """The table; of two rows for one model and engine the last one stays."""
    kept = {(row.model, row.engine): row for row in rows}
    content = [asdict(kept[key]) for key in sorted(kept)]
    files.write_json(path, {"format": FORMAT, "version": VERSION, "rows": content})


def identity(engine: str, weights: Path) -> str:
    """Fingerprint of the files that decide what an engine finds: the weights, and the ranges of eight-bit ones."""
    ranges = ranges_file(weights)
    return fingerprint(weights, *([ranges] if engine == "openvino_int8" and ranges.is_file() else []))


def library_version(engine: str) -> str:
    """As "openvino 2026.4.1"."""
    try:
        return f"{LIBRARY[engine]} {metadata.version(LIBRARY[engine])}"
    except metadata.PackageNotFoundError:
        return LIBRARY[engine]


def prefer(
    exact: list[str], device: str, model: str, weights: Path, cache_dir: Path, log: Log
) -> tuple[list[str], list[str]]:
    """The engines that `auto` tries in order, and the reasons.

    Args:
        exact: engines of full precision in order of preference, as `candidates` has them.
        device: cpu, cuda or cuda:N.
        cache_dir: where the self-test's result is kept.
        log: called with (level, text) when it cannot be, or the table cannot be read.
    """
    try:
        rivals, notes = _rivals(exact[0], device, model, weights)
    except FileError as error:
        log("warning", f"{one_line(error, 200)}; an engine of full precision is taken")
        return exact, []
    if not rivals:
        return exact, notes
    times = _fastest_first([exact[0], *rivals], cache_dir, log)
    if not times:
        return exact, notes
    names = [name for name in times if name in rivals and times[name] < times[exact[0]]]
    measured = "self-test: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in times.items())
    return names + exact, [measured, *notes]


def _rivals(first: str, device: str, model: str, weights: Path) -> tuple[list[str], list[str]]:
    """Engines as accurate as the first exact one that may be faster, and why others are not among them.

    They run on the library of the first one; what runs on others was slower everywhere.
    """
    by_reason: dict[str | None, list[str]] = {None: []}
    for engine in BY_DEVICE[device.partition(":")[0]]:
        if engine in INEXACT and LIBRARY[engine] == LIBRARY[first]:
            by_reason.setdefault(_why_not(engine, model, weights), []).append(engine)
    return by_reason.pop(None), [f"{', '.join(engines)}: {reason}" for reason, engines in by_reason.items()]


def _why_not(engine: str, model: str, weights: Path) -> str | None:
    if engine in NEEDS and not NEEDS[engine] & cpu_flags():
        return f"this CPU has none of {', '.join(sorted(NEEDS[engine]))}"
    row = _rows().get((model, engine))
    if row is None or row.weights != identity(engine, weights):
        return "accuracy with these weights not measured"
    return None if row.as_accurate else "less accurate with these weights"


@lru_cache(maxsize=1)
def _rows() -> dict[tuple[str, str], Row]:
    return {(row.model, row.engine): row for row in read_table()}


def _fastest_first(engines: list[str], cache_dir: Path, log: Log) -> dict[str, float]:
    """Milliseconds of the self-test by engine, the fastest first: remembered, else measured; empty if it cannot run."""
    subject = cpu_name(), cpu_count(), [(engine, library_version(engine)) for engine in engines]
    path = cache_dir / f"self-test-{hashlib.sha256(repr(subject).encode()).hexdigest()[:16]}.json"
    try:
        kept = json.loads(path.read_text())["milliseconds"]
        times = {name: float(kept[name]) for name in engines}
        return dict(sorted(times.items(), key=lambda item: item[1]))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        pass
    try:
        from samfeat_core.engines import probe

        times = probe.measure(engines, TEST_S)
    except Exception as error:  # the library cannot be loaded, or not run: then no engine of it can be built either
        log("warning", f"no self-test of {', '.join(engines)}: {one_line(error, 200)}")
        return {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"cpu": subject[0], "cpus": subject[1], "milliseconds": times})
    except OSError as error:
        log("warning", f"{path} cannot be kept, so the next start tests again: {one_line(error, 200)}")
    return times
