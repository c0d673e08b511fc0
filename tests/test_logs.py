"""`fit --log`: what TensorBoard, Weights & Biases (offline) and MLflow (files) are given."""

from __future__ import annotations

import csv
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from maskdepth import train
from maskdepth.model.errors import ModelError
from maskdepth.model.training import logs
from maskdepth.model.training.config import read_config
from tests.tiny import RECIPE, leave_out_pictures, make_dataset

EPOCHS, STEPS = 2, 5
PICTURE = (4 * 16, 4 * 16)  # bg, fg_bg, target, prediction; four samples


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without pictures; W&B writes to disk alone, MLflow to a folder."""
    leave_out_pictures(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def fit(dataset: Path, folder: Path, *more: object) -> Result:
    command = ["fit", dataset, folder, "--width", 2, "--device", "cpu", "--loader", "reference"]
    return CliRunner().invoke(train.main, [str(argument) for argument in (*command, *more)])


def losses(folder: Path) -> list[tuple[int, Any]]:
    """The step and the training loss of each epoch in metrics.csv."""
    with open(folder / "metrics.csv") as file:
        values = [float(row["train_loss"]) for row in csv.DictReader(file)]
    return [(STEPS * n, pytest.approx(value)) for n, value in enumerate(values, start=1)]


class Found:
    """What a log holds: losses by step, sizes of the pictures, and the options of the run."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.pictures: list[tuple[int, int]] = []
        self.options: dict[str, str] = {}


def read_tensorboard(folder: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found, events = Found(), EventAccumulator(str(folder / "tensorboard")).Reload()
    found.losses = [(e.step, e.value) for e in events.Scalars("epoch/train_loss")]
    found.pictures = [(e.width, e.height) for e in events.Images("validation")]
    return found


def wandb_records(path: Path) -> Iterator[bytes]:
    """Records of a `.wandb` file: LevelDB's log format after a header of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


def read_wandb(folder: Path) -> Found:
    from wandb.proto.wandb_internal_pb2 import Record

    found = Found()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(path):
            record = Record()
            record.ParseFromString(data)
            for item in record.run.config.update:
                found.options[item.key] = str(json.loads(item.value_json))
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "epoch/train_loss" in values:
                found.losses.append((values["step"], values["epoch/train_loss"]))
            if "validation.width" in values:
                size = (values["validation.width"], values["validation.height"])
                found.pictures.append(size)
    return found


def read_mlflow(folder: Path) -> Found:
    from mlflow import MlflowClient

    client, found = MlflowClient((folder.parent / "mlruns").as_uri()), Found()
    experiment = client.get_experiment_by_name("maskdepth")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "epoch/train_loss")
    found.losses = [(metric.step, metric.value) for metric in history]
    found.options = run.data.params
    images = client.list_artifacts(run.info.run_id, "images")
    found.pictures = [PICTURE for image in images if image.path.endswith(".png")]
    return found


READERS: dict[str, Callable[[Path], Found]] = {
    "tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow,
}  # fmt: skip


@pytest.mark.parametrize("log", READERS)
def test_a_log_shows_every_epoch_also_of_a_resumed_run(
    log: str, dataset: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(log, reason=f"{log} is not installed (its extra)")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("maskdepth.model.training.run.Run.finish_epoch", interrupted_after(1))
        assert fit(dataset, folder, "--recipe", recipe, "--log", log).exit_code == 130
    result = fit(dataset, folder, "--resume")
    assert result.exit_code == 0, result.output
    assert f"\n{log}: " in result.output  # what it cost
    found = READERS[log](folder)
    assert found.losses == losses(folder)
    assert found.pictures
    assert set(found.pictures) == {PICTURE}
    if log != "tensorboard":
        assert found.options["recipe"] == "tiny"
        assert found.options["width"] == "2"


def interrupted_after(epochs: int) -> Callable[..., None]:
    """`Run.finish_epoch` that ends the run, as Ctrl-C does, at the end of the epoch after that."""
    from maskdepth.model.training.run import Run

    finish, calls = Run.finish_epoch, []

    def finish_or_end(self: Run, *arguments: Any) -> None:
        calls.append(self)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        finish(self, *arguments)

    return finish_or_end


def test_several_logs_and_the_old_option(dataset: Path, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (its extra)")
    pytest.importorskip("wandb", reason="wandb is not installed (its extra)")
    folder = tmp_path / "run"
    result = fit(dataset, folder, "--recipe", recipe, "--tensorboard", "--log", "wandb")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("--tensorboard is now --log tensorboard") == 1
    assert read_tensorboard(folder).losses == losses(folder)
    assert read_wandb(folder).losses == losses(folder)


def test_a_configuration_of_an_earlier_version_is_read(
    dataset: Path, recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert fit(dataset, folder, "--recipe", recipe).exit_code == 0
    path = folder / "config.json"
    for old, expected in ((True, ("tensorboard",)), (False, ())):
        saved = json.loads(path.read_text())
        saved["config"].pop("logs", None)
        saved["config"]["tensorboard"] = old
        path.write_text(json.dumps(saved))
        assert read_config(path).logs == expected


def test_a_full_disk_is_one_line(
    dataset: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (its extra)")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    record_writer = "tensorboard.summary.writer.record_writer.RecordWriter"
    monkeypatch.setattr(f"{record_writer}.write", full)
    result = fit(dataset, tmp_path / "run", "--recipe", recipe, "--log", "tensorboard")
    expected = f"Error: {tmp_path}/run/tensorboard: cannot be written: No space left on device\n"
    assert (result.exit_code, result.stderr) == (2, expected)
    assert capsys.readouterr().err == ""


def test_a_run_continues_without_a_server_that_is_gone(
    dataset: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable:
        remote = True

        def __init__(self, run: logs.LoggedRun) -> None:
            self.calls = 0

        def scalars(self, step: int, values: object) -> None:
            self.calls += 1
            if self.calls > 1:
                raise ModelError("MLflow (MLFLOW_TRACKING_URI): gone")

        def picture(self, *_: object) -> None:
            pass

    monkeypatch.setitem(logs.LOGS, "mlflow", Unreachable)
    monkeypatch.setattr("maskdepth.model.training.reporter.require_installed", lambda name: None)
    result = fit(dataset, tmp_path / "run", "--recipe", recipe, "--log", "mlflow")
    assert result.exit_code == 0, result.output
    warning = "Warning: MLflow (MLFLOW_TRACKING_URI): gone; the run continues without mlflow\n"
    assert result.stderr.count(warning) == 1


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", "set MLFLOW_TRACKING_URI"),
        ("http://127.0.0.1:9", "Error: MLflow (MLFLOW_TRACKING_URI)"),
    ],
)
def test_mlflow_that_cannot_be_reached_is_one_line(
    uri: str, expected: str, dataset: Path, recipe: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("mlflow", reason="mlflow is not installed (its extra)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = fit(dataset, tmp_path / "run", "--recipe", recipe, "--log", "mlflow")
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_wandb_without_a_key_is_one_line(dataset: Path, recipe: Path, tmp_path: Path) -> None:
    """In a process of its own, because W&B reads the environment once."""
    pytest.importorskip("wandb", reason="wandb is not installed (its extra)")
    command = [sys.executable, "train.py", "fit", dataset, tmp_path / "run", "--recipe", recipe]
    options = ["--width", 2, "--device", "cpu", "--loader", "reference", "--log", "wandb"]
    environment = {**os.environ, "HOME": str(tmp_path), "WANDB_MODE": "online"}
    environment.pop("WANDB_API_KEY", None)
    done = subprocess.run(
        [str(argument) for argument in (*command, *options)],
        cwd=Path(train.__file__).parent, env=environment, capture_output=True, text=True,
        timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "WANDB_MODE=offline writes to RUN_DIR alone" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_missing_library_is_one_line(
    dataset: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskdepth.model.training.logs.find_spec", lambda name: None)
    result = fit(dataset, tmp_path / "run", "--recipe", recipe, "--log", "wandb")
    assert result.exit_code == 2
    assert "pip install 'maskdepth[wandb]'" in result.stderr
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize("content", ["{", '{"wandb": "../outside"}', '{"other": "x"}', "[]"])
def test_ids_that_are_not_valid_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / logs.IDS).write_text(content)
    run = logs.LoggedRun(tmp_path, 0, {}, "")
    with pytest.raises(ModelError, match=r"logs\.json: cannot be read; remove it"):
        run.ids()
