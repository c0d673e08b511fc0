"""The profile of loading names every step and all of them together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.batch import ALL_STEPS, BATCH_SIZE, FLOOR, Steps
from maskdepth.benchmarks.harness.results import read_result
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.loaders import build_loader
from tests.benchmarks.running import run_benchmark


def test_every_step_is_timed(
    need_engine: Callable[[str], None], shards: Path, tmp_path: Path
) -> None:
    need_engine("ffcv")
    out = run_benchmark(tmp_path, "batch", shards, "--batches", 1, "--repeats", 1)
    cases = read_result(out).cases
    found = {step: case.figures["median_cpu_us"] for step, case in cases.items()}
    assert [*found][-2:] == [FLOOR, ALL_STEPS]
    assert len(found) == 8
    assert all(us > 0 for us in found.values())


def test_the_steps_make_the_batch_of_the_engine(
    need_engine: Callable[[str], None], shards: Path
) -> None:
    need_engine("ffcv")
    with build_loader("ffcv", shards, batch_size=BATCH_SIZE, shuffle=False) as loader:
        expected = next(loader.epoch(0))
        steps = Steps(Shards(shards, "ffcv"), loader.backgrounds)
        found, backgrounds = steps.load(expected.index.numpy(), lambda _, work, *args: work(*args))
        for name in FIELDS:
            pixels = getattr(expected, name).permute(0, 2, 3, 1).reshape(BATCH_SIZE, -1)
            assert np.array_equal(found[name], pixels.numpy()), name
        assert torch.equal(backgrounds, loader.backgrounds.gather(expected.index))


def test_files_of_jpegs_have_no_such_steps(dataset: Path, tmp_path: Path) -> None:
    packed = tmp_path / "shards"
    config = PackConfig(codec="jpeg", formats=("ffcv",))
    pack(dataset, packed, config=config, workers=0, progress=False)
    result = CliRunner().invoke(main, ["batch", str(packed)])
    assert result.exit_code == 2
    assert "found images stored as JPEGs, expected differences" in result.output
