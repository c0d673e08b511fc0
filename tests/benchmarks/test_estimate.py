"""The limits of GPUs by arithmetic: which part is the slowest."""

from __future__ import annotations

import pytest

from benchmarks.estimate import Counts, count, find_limit, times_us
from benchmarks.harness.gpus import GPUS, Gpu
from benchmarks.harness.steps import make_stage

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
