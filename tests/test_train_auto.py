"""`--loader auto`: the engines are tried in training, which then computes the same as without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from maskdepth import train
from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import pack
from maskdepth.loaders import Batch
from maskdepth.loaders.base import Loader
from maskdepth.model.recipe import load_recipe
from maskdepth.model.training import trial
from maskdepth.model.training.config import DataConfig, RunConfig
from maskdepth.model.training.run import Run
from tests.tiny import RECIPE, leave_out_pictures, make_dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = make_dataset(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(dataset, folder, workers=0, progress=False)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(autouse=True)
def tried(need_engine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both engines are installed and tried, briefly, on this CPU; no pictures."""
    need_engine("ffcv")
    need_engine("dali")
    monkeypatch.setattr(trial, "are_timed", lambda device: True)
    monkeypatch.setattr(trial, "WARM_UP_S", 0.0)
    monkeypatch.setattr(trial, "TIMED_S", 0.0)
    monkeypatch.setattr(trial, "AT_LEAST", 2)
    leave_out_pictures(monkeypatch)
    # Threads that wait for each other are slow on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loader_of(engine: str) -> type[Loader]:
    from maskdepth.loaders.engines.dali import DALILoader
    from maskdepth.loaders.engines.ffcv import FFCVLoader

    return {"ffcv": FFCVLoader, "dali": DALILoader}[engine]


def change_batches(
    monkeypatch: pytest.MonkeyPatch, engine: str, before: Callable[[], None]
) -> None:
    """Call a function before each batch of an engine."""
    real = loader_of(engine)._batches

    def changed(self: Loader, epoch: int, start: int) -> Generator[Batch, None, None]:
        for batch in real(self, epoch, start):
            before()
            yield batch

    monkeypatch.setattr(loader_of(engine), "_batches", changed)


def slow_down(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    """A batch of an engine takes a second, one of the other a tenth; the steps take no time."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: now))
    for engine in ("ffcv", "dali"):
        seconds = 1.0 if engine == slow else 0.1
        change_batches(monkeypatch, engine, partial(advance, seconds))


def fit(shards: Path, folder: Path, recipe: Path, *more: str) -> Result:
    arguments = [
        "fit", shards, folder, "--recipe", recipe, "--width", 2, "--device", "cpu", "--amp", "off"
    ]  # fmt: skip
    return CliRunner().invoke(train.main, [*map(str, arguments), *more])


def engine_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["config"]["data"]["engine"]


@pytest.mark.parametrize(
    ("slow", "fast", "figures"),
    [
        ("ffcv", "dali", "ffcv 4 samples/s, dali 40 samples/s"),
        ("dali", "ffcv", "ffcv 40 samples/s, dali 4 samples/s"),
    ],
)
def test_the_faster_engine_trains_to_the_same_weights(
    slow: str, fast: str, figures: str, shards: Path, recipe: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = fit(shards, tmp_path / "plain", recipe, "--loader", fast)
    assert plain.exit_code == 0, plain.output
    assert "loader:" not in plain.output
    threads = threading.active_count()
    slow_down(monkeypatch, slow)
    result = fit(shards, tmp_path / "auto", recipe)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == f"loader: {figures}: using {fast}"
    assert result.output.count("loader:") == 1
    assert threading.active_count() == threads
    assert engine_of(tmp_path / "auto") == fast
    ours, theirs = (load_file(tmp_path / run / "best.safetensors") for run in ("auto", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trial_restores_random_numbers(shards: Path, recipe: Path, tmp_path: Path) -> None:
    config = RunConfig(
        data=DataConfig(shards=str(shards), engine="auto"), recipe=load_recipe(str(recipe)),
        width=2, amp="off",
    )  # fmt: skip
    before = torch.get_rng_state()
    run = Run(config=config, folder=tmp_path / "run")
    cpu = torch.device("cpu")
    found = trial.try_in_training(run, ("ffcv", "dali"), partial(train.open_data, device=cpu), cpu)
    assert [one.engine for one in found] == ["ffcv", "dali"]
    assert not any(one.error for one in found)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("when", ["while it is opened", "in the first batch"])
def test_an_engine_that_fails_is_not_chosen(
    when: str, shards: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise DataError("needs another driver")

    if when == "in the first batch":
        change_batches(monkeypatch, "ffcv", fail)
    else:
        monkeypatch.setattr(loader_of("ffcv"), "__init__", fail)
    result = fit(shards, tmp_path / "run", recipe)
    assert result.exit_code == 0, result.output
    line = r"^loader: ffcv failed \(needs another driver\), dali [\d,]+ samples/s: using dali$"
    assert re.search(line, result.output, re.MULTILINE)
    assert engine_of(tmp_path / "run") == "dali"


def test_without_any_engine_the_run_does_not_start(
    shards: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise DataError("is broken")

    for engine in ("ffcv", "dali"):
        monkeypatch.setattr(loader_of(engine), "__init__", fail)
    result = fit(shards, tmp_path / "run", recipe)
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: --loader auto: no engine can be used: ffcv failed (is broken), "
        "dali failed (is broken)\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_engine(
    shards: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.save

    def interrupted(self: Run, *arguments: object, **named: object) -> None:
        real(self, *arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        slow_down(patched, "ffcv")
        patched.setattr(Run, "save", interrupted)
        assert "using dali" in fit(shards, tmp_path / "run", recipe).output
    monkeypatch.setattr(trial, "try_engines", lambda *arguments: pytest.fail("tried again"))
    result = fit(shards, tmp_path / "run", recipe, "--resume", "--loader", "auto")
    assert result.exit_code == 0, result.output
    assert "loader:" not in result.output
    assert engine_of(tmp_path / "run") == "dali"


TWO_RANKS = """
import os
from types import SimpleNamespace
import torch
from maskdepth import train
from maskdepth.model.training import trial
from maskdepth.loaders.engines.dali import DALILoader
from maskdepth.loaders.engines.ffcv import FFCVLoader

trial.WARM_UP_S = trial.TIMED_S = 0.0
trial.are_timed = lambda device: True
torch.set_num_threads(1)
now = 0.0
trial.time = SimpleNamespace(perf_counter=lambda: now)
slow = FFCVLoader if os.environ["RANK"] == "0" else DALILoader
def timed(engine, seconds):
    batches = engine._batches
    def changed(self, epoch, start):
        global now
        for batch in batches(self, epoch, start):
            now += seconds
            yield batch
    engine._batches = changed
for engine in (FFCVLoader, DALILoader):
    timed(engine, 1.0 if engine is slow else 0.1)
real = train.fit_run
def shown(run, *rest):
    # Not printed: lines of two processes can mix.
    with open(f"{run.folder.parent}/rank{os.environ['RANK']}", "w") as file:
        file.write(run.config.data.engine)
    real(run, *rest)
train.fit_run = shown
train.main()
"""


@pytest.mark.slow
def test_all_ranks_take_the_choice_of_the_first(shards: Path, recipe: Path, tmp_path: Path) -> None:
    """Each engine is slow on one of two ranks."""
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(script), "fit", str(shards), str(tmp_path / "run"), "--recipe", str(recipe),
        "--width", "2", "--device", "cpu", "--amp", "off",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["dali", "dali"]
    assert done.stdout.count("loader: ffcv") == 1
