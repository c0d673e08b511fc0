"""The profile of loading names every step and all of them together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.batch import ALL_STEPS, FLOOR
from benchmarks.harness.results import read_result
from convert.pack import PackConfig, pack


def test_every_step_is_timed(
    need_engine: Callable[[str], None], shards: Path, tmp_path: Path
) -> None:
    need_engine("ffcv")
    out = tmp_path / "batch.json"
    command = ["batch", str(shards), "--batches", "1", "--repeats", "1", "--json", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    cases = read_result(out).cases
    found = {step: case.figures["median_cpu_us"] for step, case in cases.items()}
    assert [*found][-2:] == [FLOOR, ALL_STEPS]
    assert len(found) == 10
    assert all(us > 0 for us in found.values())


def test_files_of_jpegs_have_no_such_steps(dataset: Path, tmp_path: Path) -> None:
    packed = tmp_path / "shards"
    config = PackConfig(codec="jpeg", formats=("ffcv",))
    pack(dataset, packed, config=config, workers=0, progress=False)
    result = CliRunner().invoke(main, ["batch", str(packed)])
    assert result.exit_code == 2
    assert "found images stored as JPEGs, expected differences" in result.output
