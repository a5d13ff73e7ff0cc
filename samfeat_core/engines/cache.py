"""Built engines on disk, one folder each.

A folder is written under another name and takes its own when everything in it is on the disk. `SHA256SUMS` inside it
(as sha256sum writes and checks it) tells whether it is still what was written. Engines that were not used for longest
go first when the cache grows beyond its limit.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from samfeat_core.engines import Log
from samfeat_core.errors import one_line

LIMIT_BYTES = 2**30
SUMS = "SHA256SUMS"
# `Job.key`, also of the files of version 0.1; with a point in front, what is being written.
_OURS = re.compile(r"\.?[\w-]+-\d+x\d+-[0-9a-f]{16}(\.\w+)*")
_ABANDONED_S = 600.0


def load(path: Path, log: Log) -> Path | None:
    """The folder of a built engine, or None where there is none. A damaged one is removed, with one warning."""
    if not path.is_dir():
        return None
    try:
        whole = (path / SUMS).read_text() == _sums(path)
    except OSError:
        whole = False
    if whole:
        _mark_as_used(path)
        return path
    log("warning", f"{path}: the kept engine is damaged, building it again")
    shutil.rmtree(path, ignore_errors=True)
    return None


def store(path: Path, write: Callable[[Path], object], log: Log, limit_bytes: int = LIMIT_BYTES) -> Path | None:
    """Keep a built engine, whole or not at all.

    Args:
        path: folder of the engine. Another process may write the same one at the same time.
        write: called with the folder to write the files into.
        limit_bytes: of the whole cache afterwards; the new engine stays in any case.

    Returns:
        path, or None, after one warning, where it cannot be written: that costs only time.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        partial.chmod(0o755)
        write(partial)
        (partial / SUMS).write_text(_sums(partial))
        for file in [*partial.iterdir(), partial]:
            _sync(file)
        if path.is_dir():  # another process was faster
            return load(path, log)
        partial.rename(path)
        _sync(path.parent)
    except Exception as error:  # a full or read-only disk, or what a runtime cannot write
        log("warning", f"{path} cannot be kept, so it will be built again at the next start: {one_line(error, 200)}")
        return None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    with suppress(OSError):
        _clean(path.parent, limit_bytes, spare=path)
    return path


def _sums(folder: Path) -> str:
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mark_as_used(path: Path) -> None:
    with suppress(OSError):  # of a cache that is only to be read
        os.utime(path)


def _clean(folder: Path, limit_bytes: int, spare: Path) -> None:
    """Remove what was never finished, and the engines unused for longest beyond the limit; foreign files stay."""
    ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name) and path != spare]
    used = {path: _last_use(path) for path in ours}
    abandoned = [path for path in ours if _is_partial(path) and time.time() - used[path] > _ABANDONED_S]
    total = _size(spare)
    for path in sorted(ours, key=lambda path: used[path], reverse=True):
        total += _size(path)
        if path in abandoned or (total > limit_bytes and not _is_partial(path)):
            _remove(path)


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") or ".partial" in path.name


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0


def _size(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    except OSError:
        return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
