"""NumPy archives of others, with object arrays inside, read without running anything of theirs."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from samfeat_core.errors import one_line


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain values and NumPy's arrays, and nothing else: a file of somebody else's must not run code here."""

    ALLOWED = {"_reconstruct", "ndarray", "dtype", "scalar", "encode"}

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")  # as Python 2 wrote them

    def find_class(self, module: str, name: str) -> object:
        if name not in self.ALLOWED or module.partition(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"refused, it wants to run code: {one_line(f'{module}.{name}', 80)}")
        if int(np.__version__.partition(".")[0]) >= 2:
            module = module.replace("numpy.core.", "numpy._core.")
        return super().find_class(module, name)


def read_archive(path: Path, *keys: str) -> dict[str, Any]:
    """The arrays of an .npz by name, object arrays too; or of a pickled dict under that suffix, as some were published.

    Raises:
        ValueError: names the file, and a key that it lacks.
    """
    try:
        with path.open("rb") as file:
            arrays = _members(file) if zipfile.is_zipfile(file) else _pickled(file)
    except Exception as error:  # zip, zlib, header, key and whatever a damaged pickle raises
        raise ValueError(f"{path}: not a readable NumPy archive ({one_line(error, 160)})") from error
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path}: no array '{missing[0]}' (has {', '.join(sorted(arrays)) or 'none'})")
    return arrays


def _members(file: BinaryIO) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        return {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if dtype.hasobject:
            return _ArrayUnpickler(file).load()
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _pickled(file: BinaryIO) -> dict[str, Any]:
    file.seek(0)
    content = _ArrayUnpickler(file).load()
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, expected arrays by name")
    return content
