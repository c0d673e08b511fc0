"""The command line of training, end to end on a tiny data set read by the reference loader."""

from __future__ import annotations

import csv
import json
import re
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from maskdepth import train
from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.pack import pack
from maskdepth.loaders import Augment, Batch, Preprocess
from maskdepth.model.errors import ModelError
from maskdepth.model.files import locked
from maskdepth.model.training.progress import RunningLoss
from maskdepth.model.training.provenance import fingerprint
from maskdepth.model.training.run import Run
from maskdepth.model.training.trainer import StageTrainer
from tests.kills import kill_at_each_call
from tests.tiny import (
    BACKGROUNDS,
    RECIPE,
    SAMPLES,
    SIZE,
    leave_out_pictures,
    make_dataset,
)

TWO_STAGES = f"""
nesterov = true
{RECIPE}
schedule = "onecycle"
[[stages]]
size = 16
batch_size = 4
lr = 0.05
trains = ["mask"]
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TWO_STAGES)
    return str(path)


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(train.main, [str(argument) for argument in arguments])


def fit(dataset: Path, folder: Path, recipe: str, *more: object) -> Result:
    return run("fit", dataset, folder, "--recipe", recipe, "--width", 2, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def finished(dataset: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = fit(dataset, folder, recipe)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures; `finished` draws them."""
    leave_out_pictures(monkeypatch)


def figures(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that depend on the clock."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("epoch_s", "epoch_cpu_s", "samples_per_s", "data_wait"):
            del row[name]
    return rows


def test_fit_writes_a_run_and_a_table(finished: Path, dataset: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
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
    assert config["data"]["engine"] == "reference"

    result = run("evaluate", dataset, finished / "best.safetensors")
    assert result.exit_code == 0, result.output
    for text in ("mask BCE", "mask IoU", "depth L1", "depth RMSE", "network", "> 40", "mean depth"):
        assert text in result.output


def test_evaluate_agrees_with_fit(finished: Path, dataset: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new/grid.png"
    arguments = ("--json", "--picture", picture)
    result = run("evaluate", dataset, finished / "best.safetensors", *arguments)
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["scores"]
    last = figures(finished)[-1]
    assert scores["network"]["mask_bce"] == pytest.approx(float(last["mask_bce"]), rel=1e-5)
    # The rule finds a bright square on a dark background, except for JPEG artefacts at its edges.
    assert scores["difference"]["mask_iou"] > 0.85
    assert set(scores["prior"]) == {"mask_bce"}
    assert Image.open(picture).format == "PNG"
    assert result.stderr.endswith(f"{picture}: predictions beside their targets\n")


def test_mask_stage_leaves_the_rest_alone(finished: Path) -> None:
    """The mask stage changes neither the encoder nor the depth decoder."""
    state = torch.load(finished / "last.pt", weights_only=True)["network"]
    best = load_file(finished / "best.safetensors")
    assert all(torch.equal(best[name], state[name]) for name in state)
    moved = state["mask_decoder.up1.conv.1.num_batches_tracked"].item()
    assert moved == 5  # 17 training samples in batches of 4, one epoch
    assert state["encoder.inc.1.num_batches_tracked"].item() == 10
    assert state["depth_decoder.up1.conv.1.num_batches_tracked"].item() == 10


@pytest.mark.usefixtures("no_pictures")
def test_resume_with_a_camera_muon_and_short_epochs(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "short.toml"
    options = 'optimizer = "muon"\ncamera = 0.8\n[[stages]]\nsamples = 12'
    without_nesterov = TWO_STAGES.replace("nesterov = true\n", "")  # which muon does not take
    recipe.write_text(without_nesterov.replace("[[stages]]", options, 1))
    assert fit(dataset, tmp_path / "complete", str(recipe)).exit_code == 0
    state = torch.load(tmp_path / "complete" / "last.pt", weights_only=True)["network"]
    assert state["encoder.inc.1.num_batches_tracked"].item() == 6  # 3 of 5 batches, two epochs

    real, done = StageTrainer.step, 0

    def interrupted(self: StageTrainer, batch: Batch, **options: Any) -> None:
        nonlocal done
        done += 1
        if done == 5:
            raise KeyboardInterrupt
        real(self, batch, **options)

    monkeypatch.setattr(StageTrainer, "step", interrupted)
    assert fit(dataset, tmp_path / "run", str(recipe), "--save-minutes", 0).exit_code == 130
    assert fit(dataset, tmp_path / "run", str(recipe), "--resume").exit_code == 0
    ours, theirs = (load_file(tmp_path / f / "best.safetensors") for f in ("run", "complete"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.usefixtures("no_pictures")
def test_batches_in_parts(dataset: Path, recipe: str, tmp_path: Path) -> None:
    result = fit(dataset, tmp_path / "run", recipe, "--accumulate", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("in 2 parts") == 2  # in both stages: 2 samples of a batch of 4
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["accumulate"], config["started_on"]) == (3, None)
    result = fit(dataset, tmp_path / "other", recipe, "--accumulate", 5)
    assert result.exit_code == 2
    assert "--accumulate: found 5 parts, expected at most 4, the smallest" in result.stderr


def test_the_worst_samples_are_drawn_and_listed(
    finished: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "maskdepth.model.training.report.draw_predictions",
        lambda path, examples, *_: drawn.extend(example.note for example in examples),
    )
    listed, picture = tmp_path / "new/scores.json", tmp_path / "worst.png"
    arguments = (dataset, finished / "best.safetensors", "--picture", picture, "--worst", 4)
    result = run("evaluate", *arguments, "--scores", listed, "--json")
    assert result.exit_code == 0, result.output
    pooled = json.loads(result.stdout)["scores"]["network"]
    samples = json.loads(listed.read_text())["samples"]
    assert len(set(samples["index"])) == len(samples["index"]) == 7
    squares = np.square(samples["depth_rmse"]).mean()
    assert squares**0.5 == pytest.approx(pooled["depth_rmse"], rel=1e-9)
    assert min(samples["mask_iou"]) <= pooled["mask_iou"] <= max(samples["mask_iou"])
    ranked = sorted(zip(samples["mask_iou"], samples["index"], strict=True))
    assert drawn == [f"sample {index}, IoU {iou:.3f}" for iou, index in ranked[:4]]
    result = run("evaluate", *arguments[:2], "--worst", 4)
    assert (result.exit_code, "add --picture" in result.stderr) == (2, True)
    listed.write_text("{}")
    result = run("evaluate", *arguments[:2], "--scores", listed)
    assert (result.exit_code, "was not made by evaluate" in result.stderr) == (2, True)


def test_evaluate_with_cameras(finished: Path, dataset: Path, tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    arguments = ("--camera", "none", "--camera", "2", "--picture", picture)
    result = run("evaluate", dataset, finished / "best.safetensors", *arguments)
    assert result.exit_code == 0, result.output
    assert "camera none: the composites as they are" in result.stdout
    assert "camera 2: shift 2 px, gain 10.0%, noise 6 levels" in result.stdout
    assert result.stdout.count("images aligned") == 4
    assert f"\n{picture}: " in result.stdout
    assert Image.open(picture).format == "PNG"
    result = run("evaluate", dataset, finished / "best.safetensors", *arguments[:4], "--json")
    found = json.loads(result.stdout)
    assert set(found["cameras"]) == {"none", "2"}
    assert found["scores"] == found["cameras"]["none"]
    few = (*arguments[:2], "--samples", 3, "--json")
    limited = json.loads(run("evaluate", dataset, finished / "best.safetensors", *few).stdout)
    assert limited["title"].startswith("validation: 3 samples")
    plain = json.loads(run("evaluate", dataset, finished / "best.safetensors", "--json").stdout)
    assert found["scores"]["network"] == plain["scores"]["network"]
    assert found["cameras"]["2"]["difference"] != found["cameras"]["none"]["difference"]


@pytest.mark.usefixtures("no_pictures")
def test_a_run_says_what_it_does_and_how_long_it_takes(
    dataset: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal there is a line every 30 s; here, at every batch."""
    monkeypatch.setattr("maskdepth.model.training.progress.LINE_EVERY_S", 0.0)
    monkeypatch.setattr("maskdepth.model.training.progress.READ_EVERY_S", 0.0)
    monkeypatch.setattr("maskdepth.model.training.pace.MEASURED_S", 0.0)
    result = fit(dataset, tmp_path / "run", recipe)
    assert result.stdout.splitlines()[0] == (
        "17 samples for training, 7 for validation; 2 stages, 3 epochs, 15 steps"
    )
    assert result.stdout.count("estimated time: about") == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{dataset}: found a data set that is not packed; its JPEG files")
    trained = (
        r"stage 1, epoch 2 of 2: batch 4 of 5, loss [\d.]+, [\d.]+ samples/s, wait \d+%, about"
    )
    assert len([line for line in lines if re.match(trained, line)]) == 1
    assert lines.count("validating: batch 1 of 2") == 3


@pytest.mark.usefixtures("no_pictures")
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
    """Interrupted before a step was saved, within an epoch, and in the second stage."""
    real, done, limit = StageTrainer.step, 0, steps

    def counted(self: StageTrainer, batch: Batch, **options: Any) -> None:
        nonlocal done
        if done == limit:
            raise KeyboardInterrupt
        done += 1
        real(self, batch, **options)

    monkeypatch.setattr(StageTrainer, "step", counted)
    minutes = partial(Run, clock=lambda: 60 * done)  # a step takes a minute
    monkeypatch.setattr(train, "Run", minutes)
    result = fit(dataset, tmp_path / "run", recipe, "--save-minutes", 2)
    assert result.exit_code == 130
    assert result.stderr.endswith("with --resume continues it.\nAborted!\n")
    done, limit = 0, 100
    result = fit(dataset, tmp_path / "run", recipe, "--save-minutes", 2, "--resume")
    assert result.exit_code == 0, result.output
    assert done == 15 - kept
    assert ("it starts from the beginning" in result.stderr) == (kept == 0)
    ours, theirs = (load_file(f / "best.safetensors") for f in (tmp_path / "run", finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert figures(tmp_path / "run") == figures(finished)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork
def test_a_run_is_killed_again_and_again_and_resumed(
    finished: Path, dataset: Path, recipe: str, tmp_path: Path
) -> None:
    """Each process resumes, and is killed at a later one of its calls that change files."""
    folder, left, minutes = tmp_path / "run", set(), 5

    def resume() -> None:
        result = fit(dataset, folder, recipe, "--save-minutes", minutes, "--resume")
        assert result.exit_code == 0, result.output

    for call in kill_at_each_call(resume, first=2, step=5):
        left |= {path.name for path in folder.iterdir()}
        minutes = 0 if call % 4 == 3 else 5  # after each step, or at the ends of epochs alone
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "best.safetensors", "config.json", "last.pt", "metrics.csv"}
    assert {".config.json.tmp", ".last.pt.tmp", ".best.safetensors.tmp"} < left  # torn writes
    best, truth = (load_file(f / "best.safetensors") for f in (folder, finished))
    assert all(torch.equal(best[name], truth[name]) for name in truth)
    last, truth = (torch.load(f / "last.pt", weights_only=True) for f in (folder, finished))
    assert all(torch.equal(last["network"][n], value) for n, value in truth["network"].items())
    assert figures(folder) == figures(finished)


def test_resume_of_a_finished_run_only_reports(finished: Path, dataset: Path) -> None:
    kept = [finished / name for name in ("best.safetensors", "last.pt", "metrics.csv")]
    before = [path.read_bytes() for path in kept]
    # As after a kill between saving the state and writing the row, which only restoring repeats.
    (finished / "metrics.csv").unlink()
    result = run("fit", dataset, finished, "--resume")
    assert result.exit_code == 0, result.output
    assert "mask IoU" in result.output
    assert [path.read_bytes() for path in kept] == before


def test_predict_and_export(finished: Path, dataset: Path, tmp_path: Path) -> None:
    images = ("--bg", dataset / "bg/bg_001.jpg", "--fg-bg", dataset / "fg_bg/bg_001/img_0001.jpg")
    result = run("predict", finished / "best.safetensors", *images, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out/img_0001_mask.png").size == (SIZE, SIZE)
    result = run("export", finished / "best.safetensors", tmp_path / "net.pt2", *images)
    assert result.exit_code == 0, result.output
    assert "largest difference" in result.output
    assert (tmp_path / "net.pt2").exists()


MISTAKES = {
    "fit {tmp}/none {tmp}/new --recipe {recipe}": "none: no such folder; expected the folder that",
    "fit {data} {run} --recipe {recipe}": "not empty.*last.pt.*--resume",
    "fit {data} {tmp}/used --recipe {recipe}": (
        "not empty, found bg_001_mask.png, folder.pt2, net.pt2, notes.txt; name a new RUN_DIR"
    ),
    "fit {data} {tmp}/used --recipe {recipe} --resume": (
        "net.pt2, notes.txt, but no config.json of a run to resume; name a new"
    ),
    "fit {data} {tmp}/new --recipe fastest": "no such recipe",
    "fit {data} {run} --resume --width 3": "another --width",
    "fit {data} {tmp}/new --device cuda:99": "CUDA devices",
    "fit {data} {tmp}/new --device cpu --amp fp16": "needs a GPU",
    "fit {data} {tmp}/new --device mps": "expected auto, cpu, cuda or",
    "evaluate {data} {best} --camera shaky": "camera 'shaky': expected one of",
    "fit {run} {data} --recipe {recipe}": (
        "found a data set, expected a new RUN_DIR; the order is SHARDS RUN_DIR"
    ),
    "evaluate {best} {data}": "checkpoint .*: found a data set; expected RUN_DIR/best.safetensors",
    "evaluate {run} {best}": "found the folder of a run, expected the folder that `pack` wrote",
    "evaluate {data} {run}": "found the folder of a run; expected .*run/best.safetensors",
    "predict {best} --bg {image} --fg-bg {image} {data}": "found a data set, which would be",
    "evaluate {data} {best} --device gpu": "expected auto, cpu, cuda or cuda:N",
    "fit {data} {tmp}/new --workers 0": "--workers.*0 is not in the range 1<=x<=4096",
    "fit {data} {tmp}/new --seed 99999999999999999999": "--seed.*92233720368547758",
    "fit {data} {tmp}/new --split street": "'random', 'bg', 'fg', 'both'",
    "fit {data}": "Missing argument 'RUN_DIR'",
    "fit {data} {tmp}/used/notes.txt/a/run": "notes.txt is not a writable folder",
    "evaluate {data} {best} --picture {tmp}/x.jpg": (
        "--picture.*x.jpg: found suffix '.jpg', expected a name that ends in .png"
    ),
    "evaluate {data} {best} --picture {tmp}/used": "expected a name that ends in .png",
    "export {best} {tmp}/net.pth": "expected a name that ends in .pt2 or .onnx",
    "export {best} {tmp}/used/folder.pt2": "folder.pt2: found a folder",
    "predict {best} --bg {image} --fg-bg {image} {tmp}/used/notes.txt/out": (
        "notes.txt is not a writable folder"
    ),
    "predict {best} --bg {image} --fg-bg {image} {tmp}/used/notes.txt": (
        "notes.txt: found a file, expected a folder for the results; name another place"
    ),
    "fit {data} {tmp}/new --validation 2": "--validation.*2.0 is not in the range 0<x<1",
    "fit {data} {tmp}/new --max-bad 99999999999999999999": "--max-bad must be at most 922",
    "fit {data} {tmp}/new --width 2 --width=3": "--width: found 2 and 3, expected one",
    "fit {data} {tmp}/new --loader dali": "found a data set, expected shards; run `python -m",
    "evaluate {data} {tmp}/none.safetensors": "no such file",
    "evaluate {data} {tmp}/used/notes.txt": "notes.txt: expected a file of tensors",
    "evaluate {data} {tmp}/used": "used: found a folder; expected .*used/best.safetensors",
    "predict {best} --bg {tmp}/x.jpg --fg-bg {tmp}/x.jpg {tmp}/new": "no such file",
    "predict {best} --bg {image} --fg-bg a --fg-bg b {tmp}/new": "--fg-bg: found a and b, expec",
    "export {best} {tmp}/new.pt2 --bg {image}": "found one of them",
    "fit {data} {tmp}/new --device cpu --amp tf32": "needs a GPU of compute",
    "fit {data} {tmp}/new --device cpu --compile reduce-overhead": "graphs need a GPU",
    "predict {best} --bg {image} --fg-bg {image} {tmp}/new --threshold nan": (
        "--threshold.*'nan' is not a finite number"
    ),
    "fit {data} {tmp}/new --validation nan": "not a finite number",
    "fit {data} {tmp}/new --save-minutes inf": "not a finite number",
    "evaluate {data} {best} --picture {best}": "found suffix '.safetensors'",
    "evaluate {data} {best} --picture {tmp}/used/bg_001_mask.png": (
        "bg_001_mask.png: exists and was not made by evaluate"
    ),
    "export {best} {tmp}/used/net.pt2": "net.pt2: exists and was not made",
    "predict {best} --bg {image} --fg-bg {image} {tmp}/used": (
        "bg_001_mask.png: exists and was not made by predict"
    ),
    "export {best} {tmp}/none/net.pt2": "no such folder",
    "fit {data} {data}/run --recipe {recipe}": (
        "run: is inside .*, which is read and would be spoiled; name a place"
    ),
    "fit {data} {data} --recipe {recipe}": "which is read and would be spoiled",
    "evaluate {data} {best} --picture {data}/new/p.png": "p.png: is inside .*, which is read",
}
"""Command line -> pattern of the only line that it prints."""


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, finished: Path, dataset: Path, recipe: str, tmp_path: Path
) -> None:
    (tmp_path / "used/folder.pt2").mkdir(parents=True)
    used = [tmp_path / "used" / name for name in ("notes.txt", "net.pt2", "bg_001_mask.png")]
    for path in used:
        path.write_text("mine")
    weights = (finished / "best.safetensors").read_bytes()
    places = {"tmp": tmp_path, "data": dataset, "run": finished, "recipe": recipe}
    places["image"] = dataset / "bg/bg_001.jpg"
    arguments = line.format(**places, best=finished / "best.safetensors").split()
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    errors = [text for text in result.stderr.splitlines() if text]
    assert len(errors) == 1
    assert re.search(MISTAKES[line], errors[0])
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    assert {path.read_text() for path in used} == {"mine"}
    assert (finished / "best.safetensors").read_bytes() == weights
    assert {"run", "new"}.isdisjoint(path.name for path in dataset.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "evaluate {data} {best} --picture {file}/x.png",
        "predict {best} --bg {image} --fg-bg {image} {file}",
        "predict {best} --bg {image} --fg-bg {image} {link}",
        "export {best} {file}.pt2",
    ],
)
def test_an_output_is_checked_before_the_work(
    line: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_network", lambda path: pytest.fail("begun"))
    places = {"best": tmp_path / "best.safetensors", "data": dataset, "file": tmp_path / "file"}
    places |= {"image": dataset / "bg/bg_001.jpg", "link": tmp_path / "link"}
    for path in (places["best"], places["file"], tmp_path / "file.pt2"):
        path.write_text("mine")
    places["link"].symlink_to("nowhere")
    result = run(*line.format(**places).split())
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run(
    dataset: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the first step whose loss was not finite, even if the host reads it later."""
    real, steps = RunningLoss.add, 0

    def poisoned(self: RunningLoss, mean: torch.Tensor, samples: int) -> None:
        nonlocal steps
        steps += 1
        real(self, mean * float("nan") if steps == 3 else mean, samples)

    monkeypatch.setattr(RunningLoss, "add", poisoned)
    result = fit(dataset, tmp_path / "run", recipe)
    assert result.exit_code == 2
    assert "stage 1, epoch 1 of 2, step 3: the loss became nan" in result.stderr
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert tuple(state["position"]) == (0, 0, 0)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_diverges_keeps_its_last_finite_state(
    dataset: Path, recipe: str, tmp_path: Path
) -> None:
    """The first step makes the weights as large as the rate; the second makes them NaN."""
    steep = Path(recipe).with_name("steep.toml")
    steep.write_text(TWO_STAGES.replace("0.05", "1e20"))
    result = fit(dataset, tmp_path / "run", str(steep), "--save-minutes", 0)
    assert result.exit_code == 2
    assert re.search(r"stage 1, epoch 1 of 2, step [2-5]: the .* became (nan|inf)", result.stderr)
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["position"][:2] == (0, 0)
    assert all(value.isfinite().all() for value in state["network"].values())
    assert state["within_stage"]["running"].isfinite().all()


def test_evaluate_is_the_same_in_each_of_several_processes(
    dataset: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process may score only its share of the samples."""
    alone = json.loads(run("evaluate", dataset, finished / "best.safetensors", "--json").stdout)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = run("evaluate", dataset, finished / "best.safetensors", "--json")
    assert json.loads(shared.stdout) == alone


def test_two_runs_in_one_folder_are_kept_apart(dataset: Path, recipe: str, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        result = fit(dataset, tmp_path / "run", recipe)
    assert result.exit_code == 2
    assert "another process is using it" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_resume_without_a_run_says_that_it_starts_one(
    dataset: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit_run", ended)
    result = fit(dataset, tmp_path / "run", recipe, "--resume")
    assert "no run to resume yet; starting it" in result.stderr
    mistyped = CliRunner().invoke(
        train.main, ["fit", str(dataset), str(tmp_path / "runn"), "--resume"]
    )
    assert mistyped.exit_code == 2
    assert (
        "runn: found no run to resume; name the folder of one, or add --recipe" in mistyped.stderr
    )
    assert not (tmp_path / "runn").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            ["last.pt"],
            "found README.md, best.safetensors, curves.png, metrics.csv, predictions.png of a run, "
            "but not last.pt, without which it cannot be resumed and would start over; put it back",
        ),
        (
            ["last.pt", "config.json"],
            "not empty, found README.md, best.*, but no config.json of a run to resume; name",
        ),
        (["config.json"], "not empty, found README.*, but no config.json of a run to resume; name"),
        (
            ["best.safetensors"],
            "found last.pt, but not best.safetensors, the weights of stage 2, epoch 1; put it back",
        ),
    ],
)
def test_resume_replaces_no_file_of_an_earlier_run(
    missing: list[str], message: str, finished: Path, dataset: Path, recipe: str, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(*missing))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    result = fit(dataset, tmp_path / "run", recipe, "--resume")
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert re.search(message, line)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_files_that_a_kill_has_left_unfinished_do_not_count(
    dataset: Path, recipe: str, tmp_path: Path, no_pictures: None
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.config.json.tmp").write_text("{")
    (tmp_path / "run/.last.pt.tmp").write_bytes(b"PK")
    result = fit(dataset, tmp_path / "run", recipe)
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.usefixtures("no_pictures")
def test_resume_with_other_data_is_refused(
    dataset: Path, finished: Path, recipe: str, tmp_path: Path
) -> None:
    moved = shutil.copytree(dataset, tmp_path / "moved")
    started = shutil.copytree(finished, tmp_path / "run")
    result = run("fit", moved, started, "--resume")
    assert result.exit_code == 0, result.output

    depth = moved / "fg_bg_depth/bg_002/img_0003.jpg"
    Image.fromarray(np.asarray(Image.open(depth)) // 2).save(depth)
    before = {path: path.read_bytes() for path in started.iterdir()}
    result = run("fit", moved, started, "--resume")
    assert result.exit_code == 2
    expected = json.loads((started / "config.json").read_text())["config"]["fingerprint"]
    assert f"expected the data that the run was started with ({expected[:12]})" in result.stderr
    assert {path: path.read_bytes() for path in started.iterdir()} == before


def test_data_has_one_name_packed_or_not(dataset: Path, finished: Path, tmp_path: Path) -> None:
    pack(dataset, tmp_path / "shards", workers=0, progress=False)
    manifest = read_manifest(tmp_path / "shards")
    expected = json.loads((finished / "config.json").read_text())["config"]["fingerprint"]
    assert fingerprint(manifest, "random") == expected


def test_evaluate_reports_what_training_has_seen(
    dataset: Path, finished: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", dataset, finished / "best.safetensors", "--json")
    own = run(*arguments)
    assert own.stderr == ""
    value = json.loads(own.stdout)
    assert value["seen_in_training"] == {"samples": 0, "backgrounds": BACKGROUNDS}
    assert value["note"] is None
    backgrounds = value["spread"]["bg"]
    assert backgrounds["seen"] == backgrounds["groups"] == BACKGROUNDS
    assert backgrounds["mask_iou"]["interval"] is None, "no background was held out"

    other = run(*arguments, "--split", "bg")
    value = json.loads(other.stdout)
    seen = value["seen_in_training"]
    assert 0 < seen["samples"] < SAMPLES
    assert seen["backgrounds"] == 1
    for text in (other.stderr, value["note"]):
        assert "split bg were seen in training (split random)" in text
        assert f"{seen['samples']} of its samples, 1 of its backgrounds" in text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("limit", "name", "kept"),
    [(300, "config.json", []), (9_000, "last.pt", ["config.json"])],
)
def test_a_full_disk_is_one_line(
    limit: int, name: str, kept: list[str], dataset: Path, recipe: str, tmp_path: Path
) -> None:
    """A limit on file sizes fails like a full disk: when bytes are written.

    The error comes at the start, and where the configuration was written, the run can be resumed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        result = fit(dataset, tmp_path / "run", recipe, "--loader", "reference")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 2, result.output
    assert result.stderr == f"Error: {tmp_path}/run/{name}: cannot be written: File too large\n"
    assert [path.name for path in tmp_path.rglob("run/*")] == kept
    if kept:
        resumed = run("fit", dataset, tmp_path / "run", "--resume")
        assert resumed.exit_code == 0, resumed.output
        assert "stopped before it saved a step; it starts from the beginning" in resumed.stderr
        assert load_file(tmp_path / "run/best.safetensors")["encoder.inc.0.weight"].shape[0] == 2


def test_the_seed_decides_the_augmentation(
    dataset: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def caught(self: StageTrainer, batch: Batch, **options: object) -> None:
        assert isinstance(self.preprocess, Preprocess)
        assert isinstance(self.preprocess.augment, Augment)
        seeds.append(self.preprocess.augment.seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(StageTrainer, "step", caught)
    fit(dataset, tmp_path / "run", recipe, "--seed", 7)
    assert seeds == [7]


def test_corrupt_records_are_skipped_and_listed(
    dataset: Path, recipe: str, tmp_path: Path, no_pictures: None
) -> None:
    broken = Path(shutil.copytree(dataset, tmp_path / "data"))
    image = sorted((broken / "fg_bg").rglob("*.jpg"))[3]
    image.write_bytes(b"nothing")
    stopped = fit(broken, tmp_path / "run", recipe)
    assert stopped.exit_code == 2
    assert "record 3, fg_bg" in stopped.stderr
    resumed = fit(broken, tmp_path / "run", recipe, "--resume", "--max-bad", 1)
    assert resumed.exit_code == 0, resumed.output
    assert re.search(
        rf"skipped 1 corrupt records:\n  record 3, fg_bg \(.*{image.name}\)", resumed.stderr
    )
    scored = run("evaluate", broken, tmp_path / "run" / "best.safetensors", "--max-bad", 1)
    assert scored.exit_code == 0, scored.output
    assert "skipped 1 corrupt records" in scored.stderr
    refused = fit(broken, tmp_path / "other", recipe, "--check")
    assert refused.exit_code == 2
    assert "has no checksums" in refused.stderr


def test_a_run_keeps_to_its_order(finished: Path, dataset: Path, recipe: str) -> None:
    changed = fit(dataset, finished, recipe, "--resume", "--loader", "dali-stream")
    assert changed.exit_code == 2
    assert "another --loader ('reference', now 'dali-stream')" in changed.stderr


@pytest.mark.usefixtures("no_pictures")
def test_a_failed_save_ends_training_at_the_next_step(
    dataset: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next save, which may be minutes later."""
    real, done = StageTrainer.step, 0

    def step(self: StageTrainer, batch: Batch, **options: Any) -> None:
        nonlocal done
        done += 1
        real(self, batch, **options)
        if done == 2:
            full.set()
            pool.submit(lambda: None).result()  # when its one thread has ended the write

    def no_space(path: Path, state: object) -> None:
        full.wait()
        raise ModelError(f"{path}: cannot be written: No space left on device")

    full, pool = threading.Event(), ThreadPoolExecutor(1)
    monkeypatch.setattr(StageTrainer, "step", step)
    monkeypatch.setattr("maskdepth.model.training.run.save_state", no_space)
    monkeypatch.setattr("maskdepth.model.training.saving.ThreadPoolExecutor", lambda *_, **__: pool)
    result = fit(dataset, tmp_path / "run", recipe)
    assert result.exit_code == 2
    assert result.stderr.endswith("last.pt: cannot be written: No space left on device\n")
    assert done == 2
