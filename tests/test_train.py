"""The command line of training, end to end on a tiny data set read by the reference loader."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

import train
from model.metrics import RunningMean
from model.step import training_step

BACKGROUNDS, SAMPLES, SIZE = 3, 8, 32

RECIPE = """
name = "tiny"
nesterov = true
flip = 0.5
[[stages]]
size = 16
batch_size = 4
lr = 0.05
epochs = 2
trains = ["encoder", "depth"]
schedule = "onecycle"
[[stages]]
size = 16
batch_size = 4
lr = 0.05
trains = ["mask"]
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 backgrounds with 8 composites each: a bright square on noise, nearer than the rest."""
    root = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    (root / "bg").mkdir()
    for number in range(1, BACKGROUNDS + 1):
        bg = random.integers(0, 120, size=(SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(bg).save(root / "bg" / f"bg_{number:03}.jpg", quality=95)
        for kind in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
            (root / kind / f"bg_{number:03}").mkdir(parents=True)
        for sample in range(1, SAMPLES + 1):
            mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
            y, x = random.integers(0, SIZE - 12, size=2)
            mask[y : y + 12, x : x + 12] = 255
            composite = np.where(mask[..., None] > 0, np.uint8(230), bg)
            depth = np.where(mask > 0, 20, np.linspace(250, 60, SIZE)[:, None]).astype(np.uint8)
            name = f"bg_{number:03}/img_{sample:04}.jpg"
            Image.fromarray(composite).save(root / "fg_bg" / name, quality=95)
            Image.fromarray(mask).save(root / "fg_bg_mask" / name)
            Image.fromarray(depth).convert("RGB").save(root / "fg_bg_depth" / name)
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


def run(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(train.main, [str(argument) for argument in arguments])


def fit(dataset: Path, folder: Path, recipe: str, *more: object) -> Result:
    return run("fit", dataset, folder, "--recipe", recipe, "--width", 2, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def finished(dataset: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = fit(dataset, folder, recipe)
    assert result.exit_code == 0, result.output
    return folder


def figures(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("epoch_s", "samples_per_s", "data_wait"):
            del row[name]
    return rows


def test_fit_writes_a_run_and_a_table(finished: Path, dataset: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "last.pt",
        "metrics.csv",
        "predictions.png",
    ]
    rows = figures(finished)
    assert [(row["stage"], row["epoch"]) for row in rows] == [("1", "1"), ("1", "2"), ("2", "1")]
    assert rows[0]["mask_iou"] == ""  # the mask decoder did not run in the depth stage
    assert rows[0]["depth_rmse"] != ""
    config = json.loads((finished / "config.json").read_text())["config"]
    assert config["recipe"]["stages"][0]["trains"] == ["encoder", "depth"]
    assert config["loader"] == "reference"

    result = run("evaluate", dataset, finished / "best.safetensors")
    assert result.exit_code == 0, result.output
    for text in ("mask BCE", "mask IoU", "depth L1", "depth RMSE", "network", "> 40", "mean depth"):
        assert text in result.output


def test_evaluate_agrees_with_fit(finished: Path, dataset: Path, tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    arguments = ("--json", "--picture", picture)
    result = run("evaluate", dataset, finished / "best.safetensors", *arguments)
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["scores"]
    last = figures(finished)[-1]
    assert scores["network"]["mask_bce"] == pytest.approx(float(last["mask_bce"]), rel=1e-5)
    # A bright square on a dark background: the rule finds it, but for the JPEG's seams.
    assert scores["difference"]["mask_iou"] > 0.85
    assert set(scores["prior"]) == {"mask_bce"}
    assert Image.open(picture).format == "PNG"


def test_mask_stage_leaves_the_rest_alone(finished: Path) -> None:
    """The depth figures of the last depth epoch are those of the finished network."""
    state = torch.load(finished / "last.pt", weights_only=True)["network"]
    best = load_file(finished / "best.safetensors")
    assert all(torch.equal(best[name], state[name]) for name in state)
    moved = state["mask_decoder.up1.conv.1.num_batches_tracked"].item()
    assert moved == 5  # 17 training samples in batches of 4, one epoch
    assert state["encoder.inc.1.num_batches_tracked"].item() == 10
    assert state["depth_decoder.up1.conv.1.num_batches_tracked"].item() == 10


@pytest.mark.parametrize(("steps", "kept"), [(1, 0), (3, 2), (7, 7), (14, 14)])
def test_resume_gives_the_same_weights_bit_for_bit(
    steps: int,
    kept: int,
    finished: Path,
    dataset: Path,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after some of 15 steps: before any state, in mid-epoch, in the second stage."""
    real, done, limit = training_step, 0, steps

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal done
        if done == limit:
            raise KeyboardInterrupt
        done += 1
        real(*arguments, **options)

    monkeypatch.setattr(train, "training_step", counted)
    result = fit(dataset, tmp_path / "run", recipe, "--save-every", 2)
    assert result.exit_code == 1
    assert "Aborted" in result.output
    done, limit = 0, 100
    result = fit(dataset, tmp_path / "run", recipe, "--save-every", 2, "--resume")
    assert result.exit_code == 0, result.output
    assert done == 15 - kept
    ours, theirs = (load_file(f / "best.safetensors") for f in (tmp_path / "run", finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert figures(tmp_path / "run") == figures(finished)


def test_resume_of_a_finished_run_only_reports(finished: Path, dataset: Path) -> None:
    before = (finished / "best.safetensors").read_bytes()
    result = run("fit", dataset, finished, "--resume")
    assert result.exit_code == 0, result.output
    assert "mask IoU" in result.output
    assert (finished / "best.safetensors").read_bytes() == before


def test_predict_and_export(finished: Path, dataset: Path, tmp_path: Path) -> None:
    images = ("--bg", dataset / "bg/bg_001.jpg", "--fg-bg", dataset / "fg_bg/bg_001/img_0001.jpg")
    result = run("predict", finished / "best.safetensors", *images, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out/mask.png").size == (SIZE, SIZE)
    result = run("export", finished / "best.safetensors", tmp_path / "net.pt2")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "net.pt2").exists()


MISTAKES = {
    "no data": ("fit {tmp}/none {tmp}/new --recipe {recipe}", "none"),
    "run folder in use": ("fit {data} {tmp}/used --recipe {recipe}", "not empty.*--resume"),
    "resume of something else": ("fit {data} {tmp}/used --recipe {recipe} --resume", "not empty"),
    "no such recipe": ("fit {data} {tmp}/new --recipe fastest", "no such recipe"),
    "resume with another width": ("fit {data} {run} --resume --width 3", "another --width"),
    "no GPU": ("fit {data} {tmp}/new --device cuda:99", "CUDA devices"),
    "fp16 on a CPU": ("fit {data} {tmp}/new --device cpu --amp fp16", "needs a GPU"),
    "validation of 2": ("fit {data} {tmp}/new --validation 2", "between 0 and 1"),
    "shards of another engine": ("fit {data} {tmp}/new --loader dali", "manifest"),
    "no checkpoint": ("evaluate {data} {tmp}/none.safetensors", "no such file"),
    "not a checkpoint": ("evaluate {data} {tmp}/used/notes.txt", "notes.txt"),
    "no image": ("predict {best} --bg {tmp}/x.jpg --fg-bg {tmp}/x.jpg {tmp}/new", "no such file"),
    "export to nowhere": ("export {best} {tmp}/none/net.pt2", "no such folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, finished: Path, dataset: Path, recipe: str, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    places = {"tmp": tmp_path, "data": dataset, "run": finished, "recipe": recipe}
    line, message = MISTAKES[mistake]
    arguments = line.format(**places, best=finished / "best.safetensors").split()
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    errors = [text for text in result.stderr.splitlines() if text]
    assert len(errors) == 1

    assert re.search(message, errors[0])
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_loss_that_is_not_finite_ends_the_run(
    dataset: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunningMean, "read", lambda self: float("nan"))
    result = fit(dataset, tmp_path / "run", recipe)
    assert result.exit_code == 2
    assert "stage 1, epoch 1 of 2: the loss became nan by step 5" in result.stderr
    assert not (tmp_path / "run").exists()
