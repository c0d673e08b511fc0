"""`train.py fit --profile`: what is in the trace, and that it changes nothing else."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from maskdepth import train
from maskdepth.model.training.profiling import StepProfile, phase_range
from maskdepth.model.training.trainer import StageTrainer
from tests.tiny import RECIPE, leave_out_pictures, make_dataset

PHASES = ("data wait", "preprocess", "forward", "loss and backward", "optimiser")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def fit(dataset: Path, folder: Path, *more: object) -> Result:
    recipe = dataset.parent / "tiny.toml"
    recipe.write_text(RECIPE.replace("batch_size = 4", "batch_size = 2"))  # 9 steps an epoch
    options = ["--recipe", recipe, "--width", 2, "--device", "cpu", *more]
    return CliRunner().invoke(train.main, ["fit", *map(str, (dataset, folder, *options))])


def names(trace: Path) -> Counter[str]:
    """How often each range of the step is in a trace; its own name for all steps."""
    with gzip.open(trace) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    found = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return Counter(name.partition("#")[0] for name in found)


def state_of(folder: Path) -> dict[str, Any]:
    """What `--resume` reads, without the clock."""
    state: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)
    return {name: state[name] for name in ("network", "position", "steps", "best", "generators")}


def test_a_trace_has_the_steps_and_their_phases(dataset: Path, tmp_path: Path) -> None:
    """A profiled run that is interrupted and resumed computes what another one does."""
    assert fit(dataset, tmp_path / "plain").exit_code == 0
    result = fit(dataset, tmp_path / "run", "--profile", 2)
    assert result.exit_code == 0, result.output
    trace = tmp_path / "run/trace.json.gz"
    found = names(trace)
    assert found["ProfilerStep"] == 2
    assert [found[name] for name in PHASES] == [2] * len(PHASES)
    assert (
        f"profile: 2 of 2 steps recorded, after 3 to warm up: {trace}; open it in" in result.stdout
    )
    torch.testing.assert_close(
        state_of(tmp_path / "run"), state_of(tmp_path / "plain"), rtol=0, atol=0
    )


def test_a_run_that_ends_before_it_saves_a_step_can_be_resumed(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps than an epoch has, and a trace of steps that were not saved."""
    real, done = StageTrainer.check_finite, 0

    def interrupted(self: StageTrainer, *arguments: Any, **options: Any) -> float:
        nonlocal done
        done += 1
        if done == 1:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(StageTrainer, "check_finite", interrupted)
    result = fit(dataset, tmp_path / "run", "--profile", 100)
    assert result.exit_code == 130
    assert "6 of 100 steps recorded before the epoch ended, after 3 to warm up" in result.stdout
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"config.json", "last.pt", "trace.json.gz"}
    assert names(tmp_path / "run/trace.json.gz")["forward"] == 6

    result = fit(dataset, tmp_path / "run", "--resume", "--profile", 1)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "run/trace.json.gz")["ProfilerStep"] == 1
    result = fit(dataset, tmp_path / "run", "--resume", "--profile", 1)
    assert result.exit_code == 2
    assert "is finished and trains no step" in result.stderr


@pytest.mark.parametrize(("left", "recorded"), [(1, 1), (2, 1), (4, 1), (5, 2)])
def test_the_end_of_a_short_epoch_is_recorded(left: int, recorded: int, tmp_path: Path) -> None:
    profile = StepProfile(path=tmp_path / "trace.json.gz", steps=9)
    for _ in range(2):  # only the first epoch is recorded
        with profile.epoch(left) as end_step:
            for _ in range(left):
                with phase_range("forward"):
                    torch.ones(1).add_(1)
                end_step()
    assert names(tmp_path / "trace.json.gz")["forward"] == recorded


def test_a_rank_that_does_not_record_writes_nothing(tmp_path: Path) -> None:
    with StepProfile(path=tmp_path / "trace.json.gz", steps=0).epoch(5) as end_step:
        end_step()
    assert not list(tmp_path.iterdir())


def test_phases_are_nvtx_ranges_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the process uses a GPU and no profiler of torch records."""
    ranges: list[str] = []

    @contextmanager
    def nvtx_range(name: str) -> Iterator[None]:
        ranges.append(name)
        yield

    monkeypatch.setattr(torch.cuda.nvtx, "range", nvtx_range)
    with phase_range("on a CPU"):
        pass
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with phase_range("forward"):
        pass
    assert ranges == ["forward"]
