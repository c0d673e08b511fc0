"""Recipes: the values of the original, the checks, the schedules and a user's own files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from maskdepth.loaders.augment import make_augment
from maskdepth.loaders.camera import Camera
from maskdepth.model import ModelError
from maskdepth.model.recipe import RECIPES, Recipe, Stage, load_recipe

ROOT = Path(__file__).parents[2]
STAGE: dict[str, Any] = {"size": 112, "batch_size": 8, "lr": 0.1, "trains": ["mask"]}


def test_a_recipe_sets_how_far_its_camera_moves() -> None:
    augment = make_augment(RECIPES["robust"], seed=0)
    assert augment is not None
    assert augment.camera == Camera(share=0.6, shift=0.004, rotation=0.15, zoom=0.002)
    demo = make_augment(RECIPES["demo"], seed=0)
    assert demo is not None
    assert demo.camera == Camera(share=0.8)


def test_original_has_the_published_values() -> None:
    original = RECIPES["original"]
    assert (original.momentum, original.weight_decay) == (0.9, 1e-5)
    assert make_augment(original, seed=0) is None
    rows = [
        (s.trains, s.size, s.batch_size, s.lr) for s in original.stages for _ in range(s.epochs)
    ]
    depth, mask = ("encoder", "depth"), ("mask",)
    assert rows == [
        (depth, 112, 128, 0.01),
        (depth, 112, 128, 0.001),
        (depth, 112, 128, 0.001),
        (depth, 224, 32, 0.01),
        (depth, 224, 32, 0.001),
        (depth, 224, 32, 0.0001),
        (mask, 112, 128, 0.01),
        (mask, 112, 128, 0.001),
        (mask, 224, 32, 0.01),
        (mask, 224, 32, 0.0001),
    ]
    assert {(s.mask_loss, s.depth_loss, s.schedule) for s in original.stages} == {
        ("bce", "l1", "constant")
    }
    assert original.stages[0].decode == "depth"
    assert original.stages[0].frozen == ("mask",)
    assert original.stages[-1].decode == "mask"
    assert original.stages[-1].frozen == ("encoder", "depth")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.model_dump()))) == recipe


def test_one_cycle_rises_and_falls() -> None:
    stage = Stage(**STAGE, schedule="onecycle")
    rates = [stage.lr_at(step, 100) for step in range(100)]
    top = rates.index(max(rates))
    assert 20 < top < 40
    assert rates[top] == pytest.approx(0.1, rel=0.05)
    assert rates[0] < 0.01
    assert rates[-1] < 0.001
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert Stage(**STAGE).lr_at(7, 100) == 0.1


def test_one_cycle_has_the_rates_of_its_definition() -> None:
    stage = Stage(**STAGE, schedule="onecycle")
    # The middle of step k of 10 is at (k + 0.5) / 10 of the stage; the top is at 0.3.
    assert stage.lr_at(0, 10) == pytest.approx(0.1 * 0.05 / 0.3)
    assert stage.lr_at(2.5, 10) == pytest.approx(0.1)
    assert stage.lr_at(6, 10) == pytest.approx(0.05)
    assert stage.lr_at(9, 10) == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.65 / 0.7)))


def test_recipes_are_those_of_the_table_in_the_documents() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\w, ]+) \| ([\d, ]+) \| \[", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(RECIPES)
    for name, samples, sizes in rows:
        stages = RECIPES[name].stages
        assert sizes == ", ".join(dict.fromkeys(str(stage.size) for stage in stages)), name
        found = f"{sum(stage.epochs for stage in stages)} passes"
        if stages[0].samples:
            found = f"up to {sum((s.samples or 0) * s.epochs for s in stages):,}"
        assert samples == found, name


def test_sprint_is_the_first_row_of_its_log() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    log = text.partition("| stages: size x samples, learning rate |")[2].splitlines()
    recipe = RECIPES["sprint"]
    assert recipe.optimizer == "muon"
    assert {stage.batch_size for stage in recipe.stages} == {8}
    written = ", ".join(f"{s.size} x {s.samples:,} at {s.lr:g}" for s in recipe.stages)
    assert log[2].startswith(f"| {written} |")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 100}, "size must be a multiple of 8, found 100"),
        ({"size": 10**6}, "size must be at most 8192, found 1000000"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"batch_size": 10**30}, "batch_size must be at most 65536, found a number of 100 bits"),
        ({"epochs": 1.5}, "epochs must be a whole number, found 1.5"),
        ({"epochs": True}, "epochs must be a whole number, found True"),
        ({"lr": "fast"}, "lr must be a finite number, found 'fast'"),
        ({"lr": -1}, "lr must be above 0.0, found -1"),
        ({"trains": ["encoder"]}, r"trains: expected mask, depth or both.*, found \['encoder'\]"),
        ({"trains": "mask"}, "trains must be a list, found 'mask'"),
        ({"trains": ["mask", "mask"]}, ".*no part twice"),
        (
            {"trains": ["head"]},
            "trains, entry 1: expected one of encoder, .*, found 'head'",
        ),
        ({"trains": [["mask"]]}, "trains: entry 1 must be a string, found a list of 1"),
        ({"mask_loss": ["bce"]}, "mask_loss must be a string, found a list of 1"),
        ({"depth_loss": {}}, "depth_loss must be a string, found a table of 0"),
        ({"lr": 10**400}, "lr must be a finite number, found a number of 1329 bits"),
        ({"mask_loss": "focal"}, "mask_loss: expected one of .*bce.dice, ssim, l1, found 'focal'"),
        ({"schedule": "step"}, "schedule: expected one of constant, onecycle, found 'step'"),
        ({"rate": 1}, "unknown key 'rate'; known are size, batch_size, lr"),
    ],
)
def test_an_error_names_the_stage_and_the_key(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "stages": [STAGE, {**STAGE, **change}]}))
    with pytest.raises(ModelError, match=f"mine.json: stages, entry 2[:,] {message}"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "mine.json: "),
        ("[]", "expected a table, found a list of 0"),
        ("[" * 100_000, "nested too deep"),
        ('{"name": "x"}', "missing key 'stages'"),
        ('{"name": "x", "stages": 1}', "stages must be a list, found 1"),
        ('{"name": "x", "stages": []}', "stages must be 1 or more entries, found a list of 0"),
        ('{"name": "x", "stages": [1]}', "stages: entry 1 must be a table, found 1"),
        ('{"name": "x", "stages": [{"size": 8}]}', "stages, entry 1: missing key 'batch_size'"),
        (json.dumps({"stages": [STAGE]}), "missing key 'name'"),
        (json.dumps({"name": "", "stages": [STAGE]}), "name must be a string that is not empty"),
        (json.dumps({"name": "a\nb", "stages": [STAGE]}), "expected a name of one line"),
        (
            json.dumps({"name": "x", "stages": [STAGE], "momentum": 3}),
            "momentum must be at most",
        ),
        (
            json.dumps({"name": "x", "stages": [STAGE], "width": 10**6}),
            "width must be at most 1024",
        ),
        (json.dumps({"name": "x", "stages": [STAGE], "nesterov": True, "momentum": 0}), "nesterov"),
        (json.dumps({"name": "x", "stages": [STAGE], "nesterov": "no"}), "must be true or false"),
        (
            json.dumps({"name": "x", "stages": [STAGE], "optimizer": "muon", "momentum": 1}),
            "momentum must be below 1 for muon, found 1",
        ),
        (
            json.dumps({"name": "x", "stages": [STAGE], "optimizer": "muon", "nesterov": True}),
            "muon always uses Nesterov momentum",
        ),
        (
            json.dumps(
                {
                    "name": "x",
                    "stages": [
                        {**STAGE, "trains": ["depth"], "depth_loss": loss} for loss in ("l1", "bce")
                    ],
                }
            ),
            "cannot mix",
        ),
    ],
)
def test_an_error_names_the_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        load_recipe(str(path))


STAGE_TOML = '[[stages]]\nsize = 64\nbatch_size = 4\nlr = 0.5\ntrains = ["mask"]\n'
HOSTILE_TOML = [
    (f"name = 1979-05-27\n{STAGE_TOML}", "name must be a string, found a date"),
    (f"name = 'x'\nmomentum = nan\n{STAGE_TOML}", "momentum must be a finite number, found nan"),
    (f"name = 'x'\nwidth = 0x{'f' * 9000}\n{STAGE_TOML}", "found a number of 36000 bits"),
    ("name = " + "[" * 100_000, "nested too deep"),
]


def test_toml_files_and_unknown_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "mine"\n{STAGE_TOML}')
    assert load_recipe(str(path)).stages[0].lr == 0.5
    with pytest.raises(ModelError, match=f"expected one of {', '.join(RECIPES)}, or a .toml"):
        load_recipe("origin")
    for text, message in HOSTILE_TOML:
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            load_recipe(str(path))
    with pytest.raises(ModelError, match="No such file"):
        load_recipe(str(tmp_path / "none.toml"))


def test_samples_shorten_an_epoch() -> None:
    stage = Stage(**STAGE | {"samples": 100})
    assert stage.batches(50) == 12
    assert stage.batches(5) == 5
    assert Stage(**STAGE | {"samples": 1}).batches(5) == 1
    assert Stage(**STAGE).batches(50) == 50
