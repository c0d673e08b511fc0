"""One training step of each stage, next to that of the original work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import click

from maskdepth.benchmarks.harness import options as cli
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.steps import (
    TRAINS,
    OriginalStep,
    OurStep,
    Setup,
    gflop_per_sample,
    make_stage,
)
from maskdepth.benchmarks.harness.timing import Found, interleave, time_once
from maskdepth.convert.errors import DataError
from maskdepth.loaders import Batch, build_loader
from maskdepth.model.precision import AMP, precision_for


@cli.command(
    cli.SHARDS,
    cli.REPEATS,
    cli.MINUTES,
    cli.at_least_1("--steps", default=2, help="In each repeat."),
    cli.width_option(default=64),
    cli.option("--size", type=click.IntRange(8), default=112),
    cli.batch_size_option(default=4),
    cli.ENGINE,
    cli.DEVICE,
    cli.option("--amp", type=click.Choice(AMP), default="off", help="For both ways; off: float32."),
    cli.option(
        "--compile",
        "compiled",
        is_flag=True,
        show_default=False,
        help="Our networks by torch.compile.",
    ),
)
def step(
    shards: Path,
    repeats: int,
    minutes: float,
    steps: int,
    width: int,
    size: int,
    batch_size: int,
    engine: str,
    device: str,
    amp: str,
    compiled: bool,
) -> Result:
    """A training step of the depth and the mask stage, ours and the original's way.

    Times steps on batches that are loaded before, in turn; also ours with torch's backward of
    upsampling, and what a camera and Muon add to a step of both decoders.
    """
    with build_loader(
        engine, shards, batch_size=batch_size, drop_last=True, device=device, rank=0, world_size=1
    ) as loader:
        batches = list(islice(loader.epoch(0), steps))
        if not batches:
            raise DataError(
                f"--batch-size {batch_size}: found {loader.layout.samples} samples in {shards}"
            )
        precision = precision_for(amp, loader.device)
        setups = {
            kind: Setup(loader, make_stage(kind, size, batch_size), width, precision)
            for kind in TRAINS
        }
        ways = _ways(setups, compiled=compiled)
        flops = {name: gflop_per_sample(train, batches[0]) for name, train in ways.items()}
        works = {name: partial(_train_on, batches, train) for name, train in ways.items()}
        measures = {
            name: partial(time_once, work, device=loader.device) for name, work in works.items()
        }

        def result(found: Found) -> Result:
            arguments = {
                "shards": shards.name, "repeats": repeats, "steps": len(batches), "width": width,
                "size": size, "batch_size": batch_size, "device": device, "amp": amp,
                "compile": compiled,
            }  # fmt: skip
            cases = {
                name: CaseResult(
                    parameters={"stage": name.split()[0]},
                    repeats=list(some),
                    figures={"gflop_per_sample": flops[name]},
                )
                for name, some in found.items()
            }
            ours = tuple(name for name in cases if name.endswith(", ours"))
            return make_result("step", arguments, cases, device=device, ours=ours)

        return result(
            interleave(
                measures, repeats, minutes=minutes, after_round=lambda some: cli.keep(result(some))
            )
        )


def _ways(setups: Mapping[str, Setup], *, compiled: bool) -> dict[str, Callable[[Batch], None]]:
    """What is timed, by name: a step of each stage in different ways."""
    make = partial(OurStep, compiled=compiled)
    ways: dict[str, Callable[[Batch], None]] = {}
    for kind in ("depth", "mask"):
        setup = setups[kind]
        ways[f"{kind} stage, ours"] = make(setup)
        ways[f"{kind} stage, torch's upsampling"] = make(replace(setup, upsampling="torch"))
        ways[f"{kind} stage, original's way"] = OriginalStep(setup)
    joint = setups["joint"]
    for title, recipe in {
        "ours": joint.recipe,
        "ours with a camera": joint.recipe.changed(camera=0.8),
        "ours with Muon": joint.recipe.changed(optimizer="muon"),
    }.items():
        ways[f"joint stage, {title}"] = make(replace(joint, recipe=recipe))
    return ways


def _train_on(batches: list[Batch], train: Callable[[Batch], None]) -> int:
    for batch in batches:
        train(batch)
    return sum(len(batch.index) for batch in batches)
