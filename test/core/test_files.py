"""Files are there whole or not at all; JSON holds no number that JSON does not know."""

import json
import math

import numpy as np
import pytest

from samfeat_core.errors import FileError
from samfeat_core.files import finite, list_images, read_numbers, replacing, write_json


def test_json_is_strict(tmp_path):
    content = {1: [math.inf, np.float32(0.5), np.int64(3)], "a": (math.nan, np.array([1.0, -math.inf]))}
    assert finite(content) == {"1": [None, 0.5, 3], "a": [None, [1.0, None]]}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == finite(content)


def test_a_failed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as partial:
        assert partial.suffix == ".bin"  # libraries go by it
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_images_are_listed_by_name_without_hidden_files(tmp_path):
    for name in ("b.PNG", "a.jpg", ".c.png", "d.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(FileError, match="no such folder"):
        list_images(tmp_path / "none")


def test_numbers_name_file_and_line(tmp_path):
    (tmp_path / "n.txt").write_text("1 2\n\n3 x\n")
    with pytest.raises(FileError, match=r"n\.txt: line 3: expected 2 finite numbers, got '3 x'"):
        read_numbers(tmp_path / "n.txt", 2)
