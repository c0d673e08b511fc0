"""On a GPU: what results say of it, and kernels and copies in a trace, next to known ones."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.profiler import ProfilerActivity

from maskdepth.benchmarks.harness.nvml import added_gib, before_use, open_nvml
from maskdepth.benchmarks.harness.results import Machine
from maskdepth.benchmarks.harness.traces import busy_s, host_to_device, trace

GPU = os.environ.get("GPU", "cuda")


def test_the_gpu_is_described() -> None:
    found = Machine.of(GPU).accelerator
    assert found is not None
    print(found.model_dump_json(indent=1))
    assert found.cuda == torch.version.cuda
    assert found.cudnn is not None
    assert found.compute_capability is not None
    assert found.jpeg_engine is not None
    if found.sm_clock_mhz is not None and found.sm_clock_max_mhz is not None:
        assert 0 < found.sm_clock_mhz <= found.sm_clock_max_mhz


def test_a_trace_has_the_kernels_and_the_copies() -> None:
    host = torch.zeros(8, 2**20, dtype=torch.uint8).pin_memory()
    values = torch.rand(1024, 1024, device=GPU)
    values @ values
    torch.cuda.synchronize(GPU)

    def work() -> None:
        host.to(GPU, non_blocking=True)
        for _ in range(10):
            values @ values
        torch.cuda.synchronize(GPU)

    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    events = trace(work, ProfilerActivity.CUDA)
    ended.record()
    torch.cuda.synchronize(GPU)
    assert 0 < busy_s(events) < began.elapsed_time(ended) / 1e3
    copies = host_to_device(events)
    assert copies.mib == pytest.approx(8, rel=0.01)
    assert copies.seconds > 0


def use_memory(device: str) -> float | None:
    before_use(device)
    block = torch.ones(2**28, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)
    return added_gib(device) if block.numel() else None


def test_memory_that_a_process_uses_is_read() -> None:
    if open_nvml(torch.device(GPU)) is None:
        pytest.skip("NVML cannot be used")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(use_memory, GPU).result()
    assert found is None or found >= 0.25
