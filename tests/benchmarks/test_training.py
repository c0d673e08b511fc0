"""The timed step is the real one, the original's way computes the same, FLOPs are as described."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskdepth.benchmarks.estimate import count, work
from maskdepth.benchmarks.harness.gpus import GPUS, find_gpu, peak_tflops
from maskdepth.benchmarks.harness.steps import (
    OriginalStep,
    OurStep,
    Setup,
    gflop_per_sample,
    make_stage,
)
from maskdepth.benchmarks.harness.timing import Phases
from maskdepth.benchmarks.simulate import walk
from maskdepth.loaders import Batch, build_loader
from maskdepth.model.precision import Precision, choose_precision, precision_for


def setup_for(dataset: Path, kind: str) -> tuple[Setup, Batch]:
    with build_loader("reference", dataset, batch_size=2, rank=0, world_size=1) as loader:
        batch = next(iter(loader.epoch(0)))
        precision = precision_for("off", loader.device)
        return Setup(loader, make_stage(kind, 48, 2), 4, precision), batch


@pytest.mark.parametrize("kind", ["depth", "mask", "joint"])
def test_timing_does_not_change_the_weights(dataset: Path, kind: str) -> None:
    setup, batch = setup_for(dataset, kind)
    plain, timed = OurStep(setup), OurStep(setup)
    laps = Phases(torch.device("cpu"))
    for _ in range(2):
        plain(batch)
        timed(batch, laps)
    networks = (step.trainer.network for step in (plain, timed))
    weights = zip(*(network.parameters() for network in networks), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)
    assert set(laps.totals_s()) == {"preprocess", "forward", "loss and backward", "optimiser"}


@pytest.mark.parametrize("kind", ["depth", "mask"])
def test_baseline_trains_the_same_decoder_and_does_more(dataset: Path, kind: str) -> None:
    setup, batch = setup_for(dataset, kind)
    ours, theirs = OurStep(setup), OriginalStep(setup)
    assert gflop_per_sample(theirs, batch) > 1.15 * gflop_per_sample(ours, batch)
    other = "mask" if kind == "depth" else "depth"
    fresh = OriginalStep(setup).network
    moved = {
        name: not torch.equal(value, fresh.get_parameter(name))
        for name, value in theirs.network.named_parameters()
    }
    assert any(moved[name] for name in moved if name.startswith(f"{kind}_decoder"))
    assert not any(moved[name] for name in moved if name.startswith(f"{other}_decoder"))
    # Ours avoids this mistake: the statistics of frozen parts drift.
    drifted = theirs.network.get_submodule(f"{other}_decoder").state_dict()
    assert any(
        not torch.equal(value, fresh.get_submodule(f"{other}_decoder").state_dict()[name])
        for name, value in drifted.items()
        if name.endswith("running_mean")
    )


@pytest.mark.parametrize(
    ("kind", "size", "gflop"), [("depth", 224, 139), ("mask", 224, 98), ("joint", 112, 57)]
)
def test_gflop_of_the_full_network_are_those_of_its_description(
    kind: str, size: int, gflop: float
) -> None:
    stage = make_stage(kind, size, 2)
    assert work(stage, 64) == pytest.approx(gflop, rel=0.01)
    counts = count(stage, 64)
    # The products that are the backward of upsampling.
    assert 1 < counts.gflop / work(stage, 64) < 1.015
    assert counts.mbyte > 6.2 * 2  # every weight is read at least once


def test_gpus_are_found_by_the_names_that_torch_gives() -> None:
    names = {
        "Tesla T4": "T4", "NVIDIA A100-SXM4-40GB": "A100", "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA A100-SXM4-80GB": "A100-SXM4-80GB", "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA A10G": "A10G", "NVIDIA L4": "L4", "Tesla P100-PCIE-16GB": "P100",
    }  # fmt: skip
    for name, known in names.items():
        assert find_gpu(name) is GPUS[known], name
    assert find_gpu("NVIDIA L40S") is None
    assert find_gpu("NVIDIA RTX A1000") is None
    assert peak_tflops(torch.device("cpu"), Precision(dtype=None, scale=False)) is None


def test_peaks_follow_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    chosen = {
        name: choose_precision(name, "cuda", (8, 0)) for name in ("off", "tf32", "bf16", "fp16")
    }
    found = {name: peak_tflops(torch.device("cuda"), one) for name, one in chosen.items()}
    assert found == {"off": 19.5, "tf32": 156, "bf16": 312, "fp16": 312}


@pytest.mark.parametrize("world", [1, 8, 1024])
def test_order_of_four_billion_samples_costs_what_a_small_one_does(world: int) -> None:
    found = walk(4_000_000_000, world)  # raises if a sample repeats
    assert found["order_peak_kib"] < 1024
    assert np.isfinite(found["order_us_per_batch"])
