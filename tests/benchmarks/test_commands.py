"""The commands run end to end on a small data set, and keep their raw figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import train
from benchmarks.__main__ import main


def measure(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    out = tmp_path / "result.json"
    command = [str(argument) for argument in (*arguments, "--json", out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["gpu"] is None
    return found


@pytest.mark.slow
def test_convert_and_codecs(dataset: Path, shards: Path, tmp_path: Path) -> None:
    found = measure(tmp_path, "convert", dataset, "--repeats", 1, "--workers", 1)
    assert {"ours, FFCV file", "floor: read and decode"} <= set(found["cases"])
    for case in found["cases"].values():
        assert [repeat["samples"] for repeat in case["repeats"]] == [90]
    assert found["sizes"]["dali_bytes"] > 0
    found = measure(tmp_path, "codecs", shards, "--samples", 5, "--repeats", 1)
    assert found["cases"]["run lengths"]["figures"]["bytes"] > 0


@pytest.mark.slow
def test_loader(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    found = measure(tmp_path, "loader", shards, "--repeats", 1)
    assert {"ours, FFCV", "ours, DALI, float", "floor: libjpeg-turbo alone"} <= set(found["cases"])
    assert found["cases"]["ours, FFCV"]["figures"]["largest_difference_levels"] == 0
    assert found["cases"]["ours, FFCV, cold cache"]["figures"]["dropped_bytes"] > 0


@pytest.mark.slow
def test_peers(dataset: Path, shards: Path, tmp_path: Path) -> None:
    only = [part for name in ("ours, DALI", "Pillow +", "stock DALI") for part in ("--only", name)]
    options = ("--repeats", 1, "--slow-share", 3, "--batch-size", 16, *only)
    found = measure(tmp_path, "peers", dataset, shards, *options)
    assert not found["skipped"]
    samples = {name: case["repeats"][0]["samples"] for name, case in found["cases"].items()}
    assert samples.pop("Pillow + DataLoader, 4 images, float") == 30
    assert len(samples) == 5
    assert set(samples.values()) == {90}


def test_step_and_epoch(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    small = ("--width", 2, "--size", 48, "--batch-size", 2, "--repeats", 1)
    found = measure(tmp_path, "step", shards, "--steps", 1, *small)
    assert set(found["ours"]) == {"depth stage, ours", "mask stage, ours"}
    found = measure(tmp_path, "epoch", shards, "--samples", 20, "--stage", "mask", *small)
    training = found["cases"]["mask 48: training"]
    assert training["repeats"][0]["samples"] == 14
    assert {"data_wait_s", "forward_s", "stall", "cpu_compute_share"} <= set(training["figures"])
    assert not {"accelerator_utilisation", "mfu"} & set(training["figures"])
    assert found["cases"]["mask 48: validation"]["repeats"][0]["samples"] == 6


@pytest.mark.slow
def test_parity_on_a_cpu_is_exact(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    found = measure(tmp_path, "parity", shards)
    levels = {
        name: case["figures"]["largest_difference_levels"] for name, case in found["cases"].items()
    }
    assert levels["ours, FFCV"] == levels["ours, DALI"] == 0
    assert levels["ours, FFCV, float"] < 0.01


def test_a_sweep_of_the_hardware_decoder_needs_hardware(dataset: Path, shards: Path) -> None:
    result = CliRunner().invoke(main, ["hardware", str(dataset), str(shards)])
    assert result.exit_code == 2
    assert "only a GPU" in result.output


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for command in (["loader", "nowhere"], ["epoch", "nowhere"], ["compare", "a", "b"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2
        assert result.output.startswith("Error: ")
        assert len(result.output.splitlines()) == 1


@pytest.mark.slow
def test_recipes(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    small = ("--minutes", 0.02, "--width", 2, "--points", 1, "--samples", 5)
    found = measure(tmp_path, "recipes", shards, "--recipe", "demo", *small)
    (at_the_end,) = (name for name in found["cases"] if name.startswith("demo, "))
    assert set(found["cases"][at_the_end]["figures"]) == {"mask_iou", "depth_rmse"}
    assert found["cases"]["no network"]["figures"]["mask_iou"] > 0.5


def test_quality_is_what_evaluate_says(shards: Path, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "recipe.json", tmp_path / "run"
    stage = {"size": 32, "batch_size": 30, "lr": 0.01, "trains": ["encoder", "mask", "depth"]}
    recipe.write_text(json.dumps({"name": "one", "width": 2, "stages": [stage]}))
    run_train("fit", shards, folder, "--recipe", recipe, "--split", "bg", "--amp", "off")
    weights = folder / "best.safetensors"
    scores = json.loads(run_train("evaluate", shards, weights, "--amp", "off", "--json"))["scores"]
    case = measure(tmp_path, "quality", folder)["cases"]["run"]
    assert case["parameters"]["split"] == "bg"
    assert case["figures"]["mask_iou"] == scores["network"]["mask_iou"]
    assert case["figures"]["rule_mask_iou"] == scores["difference"]["mask_iou"]
    assert case["figures"]["rule_depth_rmse"] == scores["background_depth"]["depth_rmse"]
    assert case["figures"]["training_cpu_min"] > 0
    (folder / "metrics.csv").write_text("stage\n")
    refused = CliRunner().invoke(main, ["quality", str(folder)])
    assert refused.exit_code == 2
    assert "found 0 epochs of 1" in refused.output


def run_train(*arguments: object) -> str:
    done = CliRunner().invoke(train.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout
