"""The profile of a conversion names every step and all of them together."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.codecs import gray_transform
from benchmarks.encode import ALL_STEPS
from benchmarks.harness.results import read_result
from convert.errors import DataError


def test_every_step_is_timed(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "encode.json"
    command = ["encode", str(dataset), "--samples", "5", "--repeats", "1", "--json", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    cases = read_result(out).cases
    found = {step: case.figures["median_cpu_us"] for step, case in cases.items()}
    assert len(found) == 16
    assert all(us > 0 for us in found.values())
    assert found[ALL_STEPS] > found["decode fg_bg"]


def test_luma_cuts_are_smaller_than_those_of_libjpeg_turbo(dataset: Path, tmp_path: Path) -> None:
    try:
        gray_transform()
    except DataError as error:
        pytest.skip(error.message)
    out = tmp_path / "luma.json"
    command = ["luma", str(dataset), "--samples", "5", "--repeats", "1", "--json", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    ours, theirs = read_result(out).cases.values()
    assert ours.figures["bytes"] < theirs.figures["bytes"] < theirs.figures["source_bytes"]
