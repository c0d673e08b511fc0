"""One training step of each stage, beside the original's way to do it.

python -m benchmarks step SHARDS --width 64 --size 112
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.harness.steps import OriginalStep, OurStep, Setup, gflop_per_sample, make_stage
from benchmarks.harness.timing import Repeat, interleave, time_once
from convert.errors import DataError
from loaders import Batch, build_loader
from model.precision import precision_for

KINDS = ("depth", "mask")


def run(
    shards: Path,
    *,
    repeats: int,
    steps: int,
    width: int,
    size: int,
    batch_size: int,
    engine: str,
    device: str,
    amp: str,
    say: Callable[[str], None],
) -> Result:
    """Time ``steps`` steps on batches that are there already, ours and the original's in turn."""
    options = {"batch_size": batch_size, "device": device, "rank": 0, "world_size": 1}
    cases: dict[str, Callable[[], Repeat]] = {}
    gflop: dict[str, float] = {}
    with build_loader(engine, shards, drop_last=True, **options) as loader:  # type: ignore[arg-type]
        batches = [batch for _, batch in zip(range(steps), loader.epoch(0), strict=False)]
        if not batches:
            raise DataError(
                f"--batch-size {batch_size}: found {loader.layout.samples} samples in {shards}"
            )
        precision = precision_for(amp, loader.device)
        for kind in KINDS:
            setup = Setup.of(loader, make_stage(kind, size, batch_size), width, precision)
            ways: dict[str, Callable[[Batch], None]] = {
                "ours": OurStep(setup),
                "original's way": OriginalStep(setup),
            }
            for way, step in ways.items():
                name = f"{kind} stage, {way}"
                gflop[name] = gflop_per_sample(step, batches[0])
                work = partial(_steps, step, batches)
                cases[name] = partial(time_once, work, device=loader.device)
        found = interleave(
            cases, repeats, report=lambda name, one: say(f"{name}: {one.samples_per_s:,.2f}/s")
        )
    arguments = {
        "shards": shards.name, "repeats": repeats, "steps": len(batches), "width": width,
        "size": size, "batch_size": batch_size, "device": device, "amp": amp,
    }  # fmt: skip
    results = {
        name: CaseResult.of(
            found[name],
            parameters={"stage": name.split()[0]},
            figures={"gflop_per_sample": gflop[name]},
        )
        for name in cases
    }
    ours = tuple(f"{kind} stage, ours" for kind in KINDS)
    return make_result("step", arguments, results, device=device, ours=ours)


def _steps(step: Callable[[Batch], None], batches: list[Batch]) -> int:
    for batch in batches:
        step(batch)
    return sum(len(batch.index) for batch in batches)
