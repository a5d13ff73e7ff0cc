"""Recipes: stages once, weights that ship, model card; and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from typer.testing import CliRunner

from samfeat_core.weights import load_network, load_state
from training.evaluation.card import model_card
from training.loop.config import build, load_config, read_tree
from training.recipe import Recipe, app
from training.samfeat.train import SamfeatConfig
from training.train import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of seconds: sift to imitate, three steps, one pair to evaluate on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rng = np.random.default_rng(0)
    scene = tmp_path / "eval" / "homography" / "scene"
    scene.mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        image = cv2.resize(rng.integers(0, 255, (15, 20, 3), np.uint8), (160, 128), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), image)
    for name in ("1.jpg", "2.jpg"):
        cv2.imwrite(str(scene / name), image)
    np.savetxt(scene / "H_1_2", np.eye(3))
    config = {
        "method": "samfeat", "model": "samfeat-nano", "steps": 3, "validate_every": 3, "precision": "fp32",
        "data": {"photos": ["photos"], "size": [64, 64], "batch": 2, "validation": 0.3},
        "task": {"corner_steps": 0, "points": 64}, "losses": {"score": 1.0},
    }  # fmt: skip
    Path("run.yaml").write_text(yaml.safe_dump(config))
    tree = {
        "model": "samfeat-nano",
        "half": True,
        "stages": [
            {"name": "features", "command": "label features photos $OUT/features --extractor sift --count 50"},
            {"name": "train", "command": "train --config run.yaml --output $OUT/train --set data.features=$OUT/features"
             " --threads 1 --device cpu"},
        ],
        "weights": "$OUT/train/best.safetensors",
        "evaluate": "--data eval --suite homography --no-peers --extractor samfeat-nano=$WEIGHTS --engine eager",
        "card": {"": "An introduction.", "Data": "Six pictures."},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(recipe, output="out"):
    return CliRunner().invoke(app, [str(recipe), "--output", str(output)])


def changed(recipe, **changes):
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **changes}))
    return recipe


def test_a_recipe_makes_weights_report_and_card_and_is_continued(recipe, tmp_path):
    first = run(recipe)
    assert first.exit_code == 0, first.output
    shipped, trained = (tmp_path / "out" / name for name in ("samfeat-nano.safetensors", "train/best.safetensors"))
    load_network("samfeat-nano", shipped)
    state, full = load_state(shipped), load_state(trained)
    assert set(full) - set(state) == {"distill.weight", "distill.bias"}  # only training needs them
    for name, tensor in state.items():
        assert tensor.dtype in (torch.float16, torch.int64)
        torch.testing.assert_close(tensor.float(), full[name].float(), rtol=1e-3, atol=1e-6)
    with safe_open(shipped, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["steps"] == 3 and metadata["step"] == "3"
    stages = json.loads(metadata["stages"])
    assert list(stages) == ["features", "train"] and json.loads(metadata["recipe"])["half"] is True
    card = (tmp_path / "out" / "samfeat-nano.md").read_text()
    result = json.loads((tmp_path / "out/evaluation/report.json").read_text())["results"][0]
    assert f"| {result['mma']['1']:.1f} | {result['mma']['3']:.1f} |" in card
    assert "An introduction." in card and "## Data\n\nSix pictures." in card and f"| {metadata['data']} |" in card
    assert "python -m training.recipe" in card and f"| commit | {metadata['commit']} |" in card
    again = run(recipe)
    assert again.exit_code == 0 and "features: done\ntrain: done\nevaluate: done" in again.output
    other = run(
        changed(recipe, stages=[{"name": "features", "command": "label features photos $OUT/f --extractor orb"}])
    )
    assert other.exit_code == 1
    assert "recipe.json: stage features ran as another command: give another --output" in other.output


def test_a_failing_stage_ends_the_recipe(recipe):
    result = run(changed(recipe, stages=[{"name": "features", "command": "label features nowhere x --extractor sift"}]))
    assert result.exit_code == 1
    assert "recipe: stage features ended with exit code 1; the same command continues the recipe" in result.output
    assert not Path("out/recipe.json").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "sift"}, "unknown model 'sift'"),
        ({"needs": ["NOT_SET_ANYWHERE"]}, "needs the environment variable NOT_SET_ANYWHERE"),
        ({"stages": [{"name": "x"}]}, "key stages.command is missing"),
        ({"stages": [{"name": "x", "command": "train"}] * 2}, "stages x, x: expected names that differ"),
        ({"stages": [{"name": "x", "command": "train", "processes": 0}]}, "processes of stage x is 0"),
        ({"stage": []}, "unknown key stage"),
        ({"card": "text"}, "card is 'text', expected a section of keys"),
    ],
)
def test_bad_recipes_get_one_line(recipe, change, text):
    result = run(changed(recipe, **change))
    assert result.exit_code == 2 and result.output.count("\n") == 1 and text in result.output


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_name_configurations_that_load(path, tmp_path):
    plan = build(Recipe, read_tree(path), str(path), "")
    for stage in plan.stages:
        words = stage.words(tmp_path)
        if "training.train" in words:
            overrides = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
            run = load_config(ROOT / words[words.index("--config") + 1], overrides, METHODS)
            assert isinstance(run, SamfeatConfig) and run.model == plan.model
            run.check_losses()


def test_a_card_has_a_table_of_every_level_of_stress():
    levels = [{"level": 15, "right": 200.4, "share": 80.6}, {"level": 90, "right": 3, "share": 2}]
    result = {"extractor": "mine", "suite": "stress", "dataset": "roll", "kind": "stress", "pairs": 4, "levels": levels}
    card = model_card("mine", {}, {}, {"evaluate": {"seconds": 60, "command": "evaluate"}}, [result], "make")
    assert "| roll, 4 pairs | 15 | % | 90 | % |\n|---|---|---|---|---|\n| mine | 200 | 81 | 3 | 2 |" in card
