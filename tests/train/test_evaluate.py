"""The command `evaluate`: its scores, and those of `fit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.pack import pack
from maskdepth.model.training.provenance import fingerprint
from tests.tiny import BACKGROUNDS, SAMPLES, figures, run

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_evaluate_is_the_same_in_each_of_several_processes(
    dataset: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process may score only its share of the samples."""
    alone = json.loads(run("evaluate", dataset, finished / "best.safetensors", "--json").stdout)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = run("evaluate", dataset, finished / "best.safetensors", "--json")
    assert json.loads(shared.stdout) == alone


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
