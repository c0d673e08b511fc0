"""Depth that is a ground-plane prior is called that beside every figure of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import train
from benchmarks.__main__ import main as benchmarks
from benchmarks.harness.results import read_result
from benchmarks.report import tables
from convert.__main__ import main as convert
from convert.dataset.compose import compose
from convert.manifest import read_manifest
from convert.pack import PackConfig, pack
from loaders import build_loader
from loaders.folder import read_depth_source
from model.training.report import PRIOR_NOTE
from tests.tiny import leave_out_pictures

RECIPE = {
    "name": "one", "width": 1,
    "stages": [{"size": 32, "batch_size": 4, "lr": 0.01, "trains": ["encoder", "mask", "depth"]}],
}  # fmt: skip


def invoke(command: Any, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn composites whose `dataset.json` says what it says for photos without depth maps."""
    folder = tmp_path_factory.mktemp("prior") / "dataset"
    compose(folder, backgrounds=2, foregrounds=2, placements=4, size=32, workers=0, progress=False)
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"depth": "prior"}))
    return folder


@pytest.fixture(scope="module")
def shards(dataset: Path) -> Path:
    folder = dataset.parent / "shards"
    pack(dataset, folder, config=PackConfig(formats=("webdataset",)), workers=0, progress=False)
    return folder


def test_inspect_and_loaders_say_where_depth_is_from(dataset: Path, shards: Path) -> None:
    lines = invoke(convert, "inspect", shards).splitlines()
    assert "depth          a ground-plane prior, not measured" in lines
    assert any(line.startswith("depth (prior) ") for line in lines)
    assert read_depth_source(dataset) == read_depth_source(shards) == "prior"
    for engine, folder in (("reference", dataset), ("dali", shards)):
        with build_loader(engine, folder, batch_size=4) as loader:
            assert loader.depth_source == "prior"


def test_unknown_words_are_no_source(shards: Path) -> None:
    manifest = read_manifest(shards)
    for metadata in ({}, {"depth": "a guess"}, {"depth": ["prior"]}, None, "prior"):
        object.__setattr__(manifest, "provenance", {"dataset": metadata})
        assert manifest.depth_source == ""


def test_scores_of_a_run_are_marked(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch)
    recipe, folder, out = tmp_path / "one.json", tmp_path / "run", tmp_path / "quality.json"
    recipe.write_text(json.dumps(RECIPE))
    text = invoke(train.main, "fit", dataset, folder, "--recipe", recipe, "--amp", "off",
                  "--loader", "reference")  # fmt: skip
    (epoch,) = (line for line in text.splitlines() if line.startswith("stage 1 epoch 1:"))
    assert epoch.count("(prior)") == 2  # depth_l1 and depth_rmse
    (head,) = (line for line in text.splitlines() if "mask IoU " in line and "SILog" in line)
    titles = ("depth L1*", "depth RMSE*", "RMSE x10*", "delta1*", "SILog*")
    assert all(title in head for title in titles)
    assert head.count("*") == len(titles)
    assert PRIOR_NOTE in text
    assert "depth RMSE* over 2 backgrounds" in text
    with (folder / "metrics.csv").open() as file:
        assert [row["depth_source"] for row in csv.DictReader(file)] == ["prior"]
    found = invoke(train.main, "evaluate", dataset, folder / "best.safetensors", "--json")
    assert json.loads(found)["depth_source"] == "prior"
    text = invoke(benchmarks, "quality", folder, "--camera", "none", "--json", out)
    figures = [line for line in text.splitlines() if "depth" in line.partition(": ")[2]]
    assert len(figures) > 3
    assert all(line.endswith("(prior)") for line in figures[1:]), figures
    results = json.loads(out.read_text())["cases"].values()
    assert {case["parameters"]["depth"] for case in results} == {"prior"}
    result = read_result(out)
    (scores,), (cameras,) = (
        tables.quality(result, ("random",)).rows,
        tables.cameras(result).rows,
    )
    assert [" ".join(row).count("(prior)") for row in (scores, cameras)] == [3, 1]
