"""Reading weights files: formats, wrappers, and what every kind of wrong file is told."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samfeat_core.errors import WeightsError
from samfeat_core.weights import load_into, load_state


class Small(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.teacher = nn.Linear(2, 2)


class Renamed(Small):
    renames = {"old.first": "first", "old.first.odd": "norm", "old.norm": "norm", "old.teacher": "teacher"}


class WithOptional(Small):
    optional_tensors = ("teacher.",)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in Small().state_dict().items()}


def assert_loaded(model, state):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def with_prefix(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": s}},
        lambda s: with_prefix(s, "module."),
        lambda s: {"model_state_dict": with_prefix(s, "_orig_mod.module."), "loss": 0.1},
    ],
)
def test_checkpoints_as_trainers_write_them(tmp_path, state, wrap):
    path = tmp_path / "weights.pth"
    torch.save(wrap(state), path)
    assert_loaded(load_into(Small(), path), state)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_safetensors_whatever_the_suffix(tmp_path, state, name):
    save_file(state, tmp_path / name)
    assert_loaded(load_into(Small(), str(tmp_path / name)), state)


def test_old_pth_format_and_half_precision(tmp_path, state):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loaded(load_into(Small(), tmp_path / "old.pth"), state)
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(halves, tmp_path / "half.pth")
    loaded = load_into(Small(), tmp_path / "half.pth").state_dict()
    assert loaded["first.weight"].dtype == torch.float32
    torch.testing.assert_close(loaded["first.weight"], state["first.weight"], atol=1e-3, rtol=1e-3)


def test_names_go_through_the_table(tmp_path, state):
    torch.save(with_prefix(state, "old."), tmp_path / "w.pth")
    assert_loaded(load_into(Renamed(), tmp_path / "w.pth"), state)


def test_a_folder_of_parts(tmp_path, state):
    torch.save({n[6:]: t for n, t in state.items() if n.startswith("first.")}, tmp_path / "first.pth")
    torch.save({n[5:]: t for n, t in state.items() if n.startswith("norm.")}, tmp_path / "norm.pth")
    torch.save({n[8:]: t for n, t in state.items() if n.startswith("teacher.")}, tmp_path / "teacher.pth")
    assert_loaded(load_into(Small(), tmp_path), state)


def test_optional_tensors_may_be_absent(tmp_path, state):
    kept = {n: t for n, t in state.items() if not n.startswith("teacher.") and "num_batches" not in n}
    save_file(kept, tmp_path / "w.safetensors")
    model = load_into(WithOptional(), tmp_path / "w.safetensors")
    assert torch.equal(model.first.weight, state["first.weight"])
    with pytest.raises(WeightsError, match=r"2 missing \(teacher.weight, teacher.bias\)"):
        load_into(Small(), tmp_path / "w.safetensors")


def truncated(path, state):
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])


def truncated_pth(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_pth(path, state):
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


WANTS_CODE = r"refused, it wants to run code \(\S*\bprint\); only tensors are read"
FILES = {
    "missing": (lambda path, state: None, "no such weights file"),
    "empty": (lambda path, state: path.write_bytes(b""), "is empty"),
    "text": (lambda path, state: path.write_text("hello, I am no network"), "damaged, or not"),
    "picture": (lambda path, state: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(900)), "damaged, or not"),
    "truncated": (truncated, "damaged, or not"),
    "truncated pth": (truncated_pth, "damaged, or not"),
    "damaged pth": (damaged_pth, "damaged, or not"),
    "code": (lambda path, state: torch.save({"w": Evil()}, path), WANTS_CODE),
    "code, old format": (
        lambda path, state: torch.save({"w": Evil()}, path, _use_new_zipfile_serialization=False),
        WANTS_CODE,
    ),
    "code, plain pickle": (lambda path, state: path.write_bytes(pickle.dumps({"w": Evil()})), WANTS_CODE),
    "code, first pickle": (lambda path, state: path.write_bytes(pickle.dumps({"w": Evil()}, 0)), WANTS_CODE),
    "no tensors": (lambda path, state: torch.save({"epoch": 3}, path), "holds no tensors"),
    "one tensor": (lambda path, state: torch.save(torch.zeros(3), path), "holds no tensors"),
    "folder": (lambda path, state: path.mkdir(), "folder without .pth"),
    "not finite": (lambda path, state: torch.save({**state, "norm.bias": torch.full((4,), torch.nan)}, path), "finite"),
    "another model": (lambda path, state: torch.save({"a.b": torch.zeros(3)}, path), "not weights of Small.*1 unknown"),
    "another width": (
        lambda path, state: torch.save(Small(8).state_dict(), path),
        r"of another shape \(first.weight \(8, 3, 3, 3\) instead of \(4, 3, 3, 3\), .*\.\.\.\)",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_wrong_files_get_one_line_that_names_them(tmp_path, state, kind, capsys):
    write, words = FILES[kind]
    path = tmp_path / "some weights.pth"
    write(path, state)
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=words) as caught:
        load_into(model, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out
    assert_loaded(model, before)


def test_load_state_is_plain_names_on_the_cpu(tmp_path, state):
    torch.save({"state_dict": with_prefix(state, "module.")}, tmp_path / "w.pth")
    loaded = load_state(tmp_path / "w.pth")
    assert set(loaded) == set(state)
    assert all(tensor.device.type == "cpu" and not re.match("module", name) for name, tensor in loaded.items())
