"""Depth that is a ground-plane prior is called that beside every figure of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskdepth import train
from maskdepth.benchmarks.__main__ import main as benchmarks
from maskdepth.benchmarks.harness.results import read_result
from maskdepth.benchmarks.report import scores
from maskdepth.convert.__main__ import main as convert
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.manifest import DEPTH_SOURCES, read_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.show import contact_sheet
from maskdepth.loaders import build_loader
from maskdepth.loaders.folder import read_depth_source
from maskdepth.model.checkpoint import load_network
from maskdepth.model.contract import DEPTH_SOURCES as model_sources
from maskdepth.model.inference.export import metadata_of
from maskdepth.model.inference.predictor import Predictor
from maskdepth.model.pictures import Example
from maskdepth.model.training.report import PRIOR_NOTE
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


def check_board(folder: Path) -> None:
    """Of TensorBoard: tags of depth say that it is a prior, and so does a text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(folder)).Reload().Tags()
    scalars = [tag for tag in tags["scalars"] if "depth" in tag]
    assert scalars
    assert all(tag.endswith("_prior") for tag in scalars)
    assert "epoch/mask_iou" in tags["scalars"]
    assert tags["images"] == ["validation_depth_prior"]
    assert tags["tensors"] == ["about/text_summary"]


def check_predictions(
    checkpoint: Path, dataset: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `predict` and `export`: the metadata of the checkpoint, and of all that is made of it."""
    network, info = load_network(checkpoint)
    assert info.depth_source == "prior"
    titles: list[str] = []

    def keep(examples: Sequence[Example], command: str, title: str = "") -> bytes:
        titles.append(title)
        return b""

    monkeypatch.setattr("maskdepth.model.inference.predict.predictions_png", keep)
    photo = next((dataset / "fg_bg").glob("*/*.jpg"))
    photos = ("--bg", dataset / "bg" / f"{photo.parent.name}.jpg", "--fg-bg", photo)
    arguments = [str(one) for one in ("predict", checkpoint, *photos, out)]
    done = CliRunner().invoke(train.main, arguments)
    assert done.exit_code == 0, done.output
    assert f"{checkpoint}: depth: a prior, not measured" in done.stderr
    assert titles == ["depth: a prior, not measured"]
    with Image.open(out / f"{photo.stem}_depth.png") as image:
        assert image.info["Description"].endswith("255 far; depth: a prior, not measured")
    assert metadata_of(Predictor(network, info))["depth_source"] == "prior"
    estimated = info.changed(depth_source="estimated")
    assert metadata_of(Predictor(network, estimated))["depth_source"] == "estimated"
    with pytest.raises(ValueError, match="depth_source: expected one of"):
        info.changed(depth_source="guessed")


def test_the_sources_of_both_layers_agree() -> None:
    assert set(model_sources) == {"", *DEPTH_SOURCES}


def test_the_contact_sheet_says_which_depth_is_near(shards: Path) -> None:
    sheet = np.asarray(contact_sheet(shards, rows=2).convert("L"))
    legend = sheet[-20, -(6 + 32) : -6].astype(int)  # its first row, above the text
    assert (legend[0], legend[-1]) == (0, 255)
    assert (np.diff(legend) > 0).all()


def test_scores_of_a_run_are_marked(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch)
    board = ["--tensorboard"] if find_spec("tensorboard") else []
    recipe, folder, out = tmp_path / "one.json", tmp_path / "run", tmp_path / "quality.json"
    recipe.write_text(json.dumps(RECIPE))
    text = invoke(train.main, "fit", dataset, folder, "--recipe", recipe, "--amp", "off",
                  "--loader", "reference", *board)  # fmt: skip
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
    (folder / "metrics.csv").unlink()
    invoke(train.main, "fit", dataset, folder, "--resume")
    with (folder / "metrics.csv").open() as file:
        assert [row["depth_source"] for row in csv.DictReader(file)] == ["prior"]
    best = folder / "best.safetensors"
    if board:
        check_board(folder / "tensorboard")
    check_predictions(best, dataset, tmp_path / "predictions", monkeypatch)
    found = invoke(train.main, "evaluate", dataset, best, "--json")
    assert json.loads(found)["depth_source"] == "prior"
    text = invoke(benchmarks, "quality", folder, "--camera", "none", "--json", out)
    figures = [line for line in text.splitlines() if "depth" in line.partition(": ")[2]]
    assert len(figures) > 3
    assert all(line.endswith("(prior)") for line in figures[1:]), figures
    results = json.loads(out.read_text())["cases"].values()
    assert {case["parameters"]["depth"] for case in results} == {"prior"}
    result = read_result(out)
    (scored,), (disturbed,) = (
        scores.quality(result, ("random",)).rows,
        scores.cameras(result).rows,
    )
    assert [" ".join(row).count("(prior)") for row in (scored, disturbed)] == [3, 2]
