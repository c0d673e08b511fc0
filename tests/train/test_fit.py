"""The command `fit`, end to end on a tiny data set read by the reference loader."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskdepth.loaders import Augment, Batch, Preprocess
from maskdepth.model.training.trainer import StageTrainer
from tests.tiny import SIZE, figures, fit, run

pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_batches_in_parts(dataset: Path, recipe: str, tmp_path: Path) -> None:
    result = fit(dataset, tmp_path / "run", recipe, "--accumulate", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("in 2 parts") == 2  # in both stages: 2 samples of a batch of 4
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["accumulate"], config["started_on"]) == (3, None)
    result = fit(dataset, tmp_path / "other", recipe, "--accumulate", 5)
    assert result.exit_code == 2
    assert "--accumulate: found 5 parts, expected at most 4, the smallest" in result.stderr


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


def test_predict_and_export(finished: Path, dataset: Path, tmp_path: Path) -> None:
    images = ("--bg", dataset / "bg/bg_001.jpg", "--fg-bg", dataset / "fg_bg/bg_001/img_0001.jpg")
    result = run("predict", finished / "best.safetensors", *images, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out/img_0001_mask.png").size == (SIZE, SIZE)
    result = run("export", finished / "best.safetensors", tmp_path / "net.pt2", *images)
    assert result.exit_code == 0, result.output
    assert "largest difference" in result.output
    assert (tmp_path / "net.pt2").exists()


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
