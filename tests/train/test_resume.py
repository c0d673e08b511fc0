"""A run that was interrupted or killed continues to the same weights, and keeps its own files."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from maskdepth import train
from maskdepth.loaders import Batch
from maskdepth.model.files import locked
from maskdepth.model.training.run import Run
from maskdepth.model.training.trainer import StageTrainer
from tests.kills import kill_at_each_call
from tests.tiny import TWO_STAGES, figures, fit, run

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_run_keeps_to_its_order(finished: Path, dataset: Path, recipe: str) -> None:
    changed = fit(dataset, finished, recipe, "--resume", "--loader", "dali-stream")
    assert changed.exit_code == 2
    assert "another --loader ('reference', now 'dali-stream')" in changed.stderr
