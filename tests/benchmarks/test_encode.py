"""The profile of a conversion names every step and all of them together."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskdepth.benchmarks.codecs import gray_transform
from maskdepth.benchmarks.encode import ALL_STEPS
from maskdepth.benchmarks.harness.results import read_result
from maskdepth.convert.errors import DataError
from tests.benchmarks.running import run_benchmark


def test_every_step_is_timed(dataset: Path, tmp_path: Path) -> None:
    out = run_benchmark(tmp_path, "encode", dataset, "--samples", 5, "--repeats", 1)
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
    out = run_benchmark(tmp_path, "luma", dataset, "--samples", 5, "--repeats", 1)
    ours, theirs = read_result(out).cases.values()
    assert ours.figures["bytes"] < theirs.figures["bytes"] < theirs.figures["source_bytes"]
