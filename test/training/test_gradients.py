"""`python -m training.gradients`: norms of the losses' gradients against plain backward passes."""

import re

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from training.gradients import app, gradients, measure


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.zeros(1))


def test_norms_and_what_is_left_without_the_others():
    task = nn.Module()
    task.network = Line()
    slope = task.network.slope
    rows = gradients(task, {"a": 2 * slope[0], "b": 4 * slope[0] + 3 * slope[1], "c": task.network.offset.sum() * 0.5})
    assert {name: row.tolist() for name, row in rows.items()} == {"a": [2, 0, 0], "b": [4, 3, 0], "c": [0, 0, 0.5]}
    figures = measure(rows)
    assert figures["b"][0] == 5 and figures["c"] == (0.5, 0.5)
    # a is (2, 0, 0), the others are (4, 3, 0.5) together: a less its part along them
    others = np.array([4, 3, 0.5])
    left = np.array([2, 0, 0]) - 8 / (others @ others) * others
    assert figures["a"] == pytest.approx((2, np.linalg.norm(left)))


def test_the_command_lists_every_loss_with_a_weight(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (15, 20, 3), np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC))
    tree = {
        "method": "samfeat",
        "model": "samfeat-nano",
        "data": {"photos": [str(photos)], "size": [64, 64], "batch": 2, "validation": 0.3},
        "task": {"points": 64},
        "losses": {"match": 2, "repeat": 1, "matchability": 0, "reproject": 0, "corner": 0},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    arguments = ["--config", str(tmp_path / "run.yaml"), "--device", "cpu", "--batches", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines() if re.match(r"(match|repeat|loss)", line)]
    assert sorted(line[0] for line in lines) == ["loss", "match", "repeat"]
    assert lines[1][4] == "100.0%" and {line[0]: line[1] for line in lines[1:]} == {"match": "2", "repeat": "1"}
    doubled = CliRunner().invoke(app, [*arguments, "--set", "losses.repeat=10"])
    before, after = (
        next(float(line.split()[3]) for line in output.splitlines() if line.startswith("repeat"))
        for output in (result.output, doubled.output)
    )
    assert after == pytest.approx(10 * before, rel=0.01)
    wrong = CliRunner().invoke(app, [*arguments, "--set", "losses.edge=1"])
    assert wrong.exit_code == 2 and "losses.edge is 1.0, but data.teacher names no store" in wrong.output
