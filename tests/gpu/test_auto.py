"""On a GPU: `--loader auto` tries what is installed, and corrupt bytes never reach nvJPEG."""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from maskdepth import train
from maskdepth.loaders import RecordError, build_loader
from maskdepth.model.recipe import load_recipe
from maskdepth.model.training.config import DataConfig, RunConfig
from maskdepth.model.training.run import Run
from maskdepth.model.training.trial import try_in_training
from tests.damage import Records, bit_flipped
from tests.gpu.conftest import GPU

RECIPE = """
name = "tiny"
[[stages]]
size = 48
batch_size = 8
lr = 0.05
trains = ["encoder", "depth"]
"""


@pytest.fixture
def recipe(tmp_path: Path, need_engine: Callable[[str], None]) -> Path:
    need_engine("ffcv")
    need_engine("dali")
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_auto_tries_both_engines(shards: Path, recipe: Path, tmp_path: Path) -> None:
    options = ["--recipe", recipe, "--width", 4, "--device", GPU, "--compile", "off"]
    arguments = ["fit", shards, tmp_path / "run", *options]
    result = CliRunner().invoke(train.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    line = r"^loader: ffcv [\d,]+ samples/s, dali [\d,]+ samples/s: using (ffcv|dali)$"
    assert re.search(line, result.output, re.MULTILINE), result.output


def test_a_trial_leaves_no_memory_and_restores_random_numbers(
    shards: Path, recipe: Path, tmp_path: Path
) -> None:
    config = RunConfig(
        data=DataConfig(shards=str(shards), engine="auto"),
        recipe=load_recipe(str(recipe)),
        width=4,
    )
    torch.cuda.manual_seed(7)
    gc.collect()
    before = torch.cuda.memory_allocated(), torch.cuda.get_rng_state()
    run = Run(config=config, folder=tmp_path / "run")
    device = torch.device("cuda", torch.cuda.current_device())
    opens = partial(train.open_data, device=device)
    trials = try_in_training(run, ("ffcv", "dali"), opens, device)
    assert not any(trial.error for trial in trials), trials
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
    # cuBLAS keeps a workspace for each stream; FFCV's and DALI's batches would be more.
    assert torch.cuda.memory_allocated() - before[0] < 2**26


def test_dali_checks_records_by_default(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("dali")
    spoilt = Path(shutil.copytree(shards, tmp_path / "shards"))
    Records(spoilt, "webdataset").spoil(5, "fg_bg", bit_flipped(0))
    with build_loader("dali", spoilt, batch_size=90, shuffle=False, device="cuda") as loader:
        assert getattr(loader, "num_workers", 0) <= 8
        with pytest.raises(RecordError, match=r"record 5, fg_bg .*checksum"):
            next(loader.epoch(0))
