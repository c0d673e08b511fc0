"""Mistakes of users, losses that are not finite and full disks end in one line."""

from __future__ import annotations

import re
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskdepth import train
from maskdepth.loaders import Batch
from maskdepth.model.errors import ModelError
from maskdepth.model.training.progress import RunningLoss
from maskdepth.model.training.trainer import StageTrainer
from tests.tiny import TWO_STAGES, fit, run

pytestmark = pytest.mark.usefixtures("one_thread")


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
    "evaluate {data} {tmp}/used/notes.txt": "; name RUN_DIR/best.safetensors, or a .pth file",
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
