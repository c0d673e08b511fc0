"""The model card of a run: read by the hub's library, with the run's figures, free of markup."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskdepth import train
from maskdepth.model.checkpoint import load_network
from maskdepth.model.training.card import _plain
from tests.tiny import RECIPE, leave_out_pictures, make_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A finished run of both decoders with a camera."""
    root = tmp_path_factory.mktemp("card")
    (root / "data").mkdir()
    dataset = make_dataset(root / "data")
    recipe = RECIPE.replace('["encoder", "depth"]', '["encoder", "mask", "depth"]')
    (root / "tiny.toml").write_text(recipe.replace("flip = 0.5", "camera = 0.5"))
    command = [
        "fit", dataset, root / "run", "--recipe", root / "tiny.toml", "--width", 2,
        "--device", "cpu", "--loader", "reference", "--split", "bg",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        result = CliRunner().invoke(train.main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    return root / "run"


def test_the_hub_reads_the_scores(folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    card = hub.ModelCard.load(folder / "README.md")
    scores = load_network(folder / "best.safetensors").info.scores
    assert scores is not None
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {name: round(scores[name] or 0.0, 4) for name in ("mask_iou", "depth_rmse")}
    assert found == expected
    assert card.data.library_name == "maskdepth"


def test_the_card_says_what_the_run_was(folder: Path) -> None:
    card, info = (folder / "README.md").read_text(), load_network(folder / "best.safetensors").info
    assert "# maskdepth: tiny, width 2\n" in card
    assert f"fingerprint `{info.data[:16]}`. Depth: not known." in card
    assert "Split `bg`, seed 42: 30% of backgrounds were held out." in card
    assert "in 50% of the samples the two images differed" in card
    assert "All backgrounds were seen in training" not in card
    with open(folder / "metrics.csv") as file:
        assert f"; {len(list(csv.DictReader(file)))} epochs took " in card
    assert str(folder.parent) not in card  # nothing of the machine


def test_its_table_is_that_of_the_evaluation(folder: Path) -> None:
    command = [
        "evaluate", folder.parent / "data", folder / "best.safetensors", "--loader", "reference",
        "--device", "cpu",
    ]  # fmt: skip
    shown = CliRunner().invoke(train.main, [str(argument) for argument in command]).output
    (row,) = re.findall(r"^network +(.*)$", shown, re.MULTILINE)
    (line,) = re.findall(r"^\| network \|(.*)\|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert [cell.strip() or "-" for cell in line.split("|")] == row.split()
    table = [one for one in (folder / "README.md").read_text().splitlines() if one.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", one)) for one in table}) == 1


def test_a_decoder_that_is_not_trained_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "depth.toml").write_text(RECIPE)
    command = [
        "fit", folder.parent / "data", tmp_path / "run", "--recipe", tmp_path / "depth.toml",
        "--width", 2, "--device", "cpu", "--loader", "reference",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        result = CliRunner().invoke(train.main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    card, note = (tmp_path / "run/README.md").read_text(), "The recipe does not train mask: "
    assert f"\n{note}" in result.stdout
    assert f"\n- {note}" in card
    assert '"type": "depth_rmse"' in card
    assert '"type": "mask_iou"' not in card
    assert "The recipe does not train" not in (folder / "README.md").read_text()


def test_a_card_that_a_user_has_changed_stays(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "README.md").write_text("license: mine")
    command = ["fit", str(folder.parent / "data"), str(run), "--resume"]
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        assert CliRunner().invoke(train.main, command).exit_code == 0
        assert (run / "README.md").read_text() == "license: mine"
        (run / "README.md").unlink()
        again = CliRunner().invoke(train.main, command)
    assert again.exit_code == 0
    assert "all stages are trained already; the run is scored again\n" in again.stdout
    assert (run / "README.md").read_bytes() == (folder / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("wide camera-2.1", "wide camera-2.1"), ("<script>`x`[a](b)|", "-script--x--a--b--")],
)
def test_a_name_is_no_markup(name: str, expected: str) -> None:
    assert _plain(name) == expected
