"""The limits of GPUs by arithmetic: which part is the slowest."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskdepth.benchmarks.estimate import (
    HOST_US,
    Counts,
    count,
    find_limit,
    measured_host_us,
    times_us,
)
from maskdepth.benchmarks.harness.gpus import GPUS, Gpu
from maskdepth.benchmarks.harness.results import CaseResult, make_result
from maskdepth.benchmarks.harness.steps import make_stage
from maskdepth.benchmarks.harness.timing import Repeat
from maskdepth.convert.errors import DataError

SLOW = Gpu(tflops_float=1, tflops_half=1, memory_gb_s=1)
FAST = Gpu(tflops_float=1e6, tflops_half=1e6, memory_gb_s=1e6)


@pytest.mark.parametrize(
    ("counts", "gpu", "batch_size", "limit"),
    [
        (Counts(300, gflop=1.0, mbyte=0.1), SLOW, 128, "flops"),
        (Counts(300, gflop=0.1, mbyte=1.0), SLOW, 128, "bytes"),
        (Counts(300, gflop=1.0, mbyte=1.0), FAST, 8, "launches"),
        (Counts(0, gflop=1.0, mbyte=1.0), FAST, 128, "pcie"),
    ],
)
def test_the_slowest_part_limits(counts: Counts, gpu: Gpu, batch_size: int, limit: str) -> None:
    parts = times_us(counts, gpu, batch_size)
    found, us_per_sample = find_limit(parts)
    assert found == limit
    assert us_per_sample >= parts[limit]


def test_flops_and_bytes_of_a_gpu_add_up() -> None:
    parts = times_us(Counts(300, gflop=35.0, mbyte=260.0), GPUS["H100"], 128)
    limit, us_per_sample = find_limit(parts)
    assert limit == "bytes"
    assert us_per_sample == pytest.approx(35e3 / 989.5 + 260e3 / 3350)


def test_the_bytes_of_the_optimiser_are_those_of_a_step() -> None:
    """Those of the weights, too: per sample, they become fewer with the batch size."""
    sizes = (2, 4, 8)
    two, four, eight = (n * count(make_stage("depth", 64, n), 8).mbyte for n in sizes)
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)
    assert 2 * two > four + 0.5


def test_a_larger_size_has_more_work_in_about_as_many_operations() -> None:
    small, large = (count(make_stage("mask", size, 2), 8) for size in (64, 128))
    assert large.operations == pytest.approx(small.operations, rel=0.1)
    assert large.gflop > 3.5 * small.gflop
    assert large.mbyte > 3 * small.mbyte


def test_measured_times_of_loaders_replace_ours(tmp_path: Path) -> None:
    path = tmp_path / "loader.json"
    repeat = Repeat(samples=10, wall_s=1.0, cpu_s=1.0, peak_gib=1.0, thread_cpu_s=3e-4)
    result = make_result("loader", {}, {"ours, FFCV": CaseResult(repeats=[repeat])})
    path.write_text(result.model_dump_json())
    host_us = measured_host_us(path)
    assert host_us == {"ours, FFCV": pytest.approx(30.0), "ours, DALI": 42.0}
    counts = Counts(256, gflop=1.0, mbyte=0.1)
    measured, by_default = (times_us(counts, FAST, 128, each) for each in (host_us, HOST_US))
    assert measured["launches"] - by_default["launches"] == pytest.approx(26.0)
    assert measured["dali_launches"] == by_default["dali_launches"]

    old = CaseResult(repeats=[repeat.changed(thread_cpu_s=None)])
    path.write_text(make_result("loader", {}, {"ours, FFCV": old}).model_dump_json())
    with pytest.raises(DataError, match=r"loader\.json: found a result of `loader` without thread"):
        measured_host_us(path)
