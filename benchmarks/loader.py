"""From shards to batches on the device: rates of our engines beside the floor, and their pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from maskdepth.benchmarks.harness.contender import Isolated, race
from maskdepth.benchmarks.harness.images import read_truth, some_of, spread_indices
from maskdepth.benchmarks.harness.options import (
    SAMPLES,
    SHARDS,
    FailedCheck,
    Loading,
    command,
    keep,
    loading_options,
)
from maskdepth.benchmarks.harness.ours import (
    DECODING,
    compared,
    floor_contender,
    our_contenders,
    skipped_engines,
)
from maskdepth.benchmarks.harness.resources import drop_cache
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import print_progress
from maskdepth.convert.shards import Shards


@command(SHARDS, SAMPLES, loading_options)
def loader(shards: Path, loading: Loading, samples: int) -> Result:
    """Our engines on SHARDS beside the floor: libjpeg-turbo alone on the same bytes.

    Times complete shuffled epochs: uint8, normalised floats, and one with a cold cache for the
    engines that read the files in every epoch.
    """
    opened = Shards(shards)
    ours = our_contenders(shards, loading, samples)
    floats = our_contenders(shards, loading, samples, normalise=True)
    floor = floor_contender(shards, loading, samples)
    truth = read_truth(opened, some_of(floor.expected))
    contenders = [*ours, *floats, floor]

    def result(cases: dict[str, CaseResult]) -> Result:
        return make_result(
            "loader",
            loading.arguments(shards=shards.name, samples=len(floor.expected)),
            cases,
            device=loading.device,
            ours=compared((*ours, *floats)),
            skipped=skipped_engines(shards),
        )

    cases, _ = race(contenders, truth, loading, after_round=lambda cases, _: keep(result(cases)))
    for contender in our_contenders(shards, loading, samples, engines=DECODING):
        name = f"{contender.name}, cold cache"
        # The first epoch of a new process, after the kernel was asked to forget the shards.
        dropped = drop_cache([opened.folder / file for file in opened.manifest.files])
        with Isolated(contender) as isolated:
            repeat, figures = isolated.run(), {"dropped_bytes": float(dropped)}
        cases[name] = CaseResult(repeats=[repeat], figures=figures)
        print_progress(f"{name}: {repeat.samples_per_s:,.1f} samples/s")
        keep(result(cases))
    return result(cases)


@command(SHARDS, SAMPLES, loading_options)
def parity(shards: Path, loading: Loading, samples: int) -> Result:
    """Pixels on a device against those that the CPU decodes one by one; exit 2 if they differ.

    Checks one epoch of each engine, as uint8 and as floats. Pixels that a CPU decodes must be
    equal, those that a GPU decodes may differ by 8 of 255 levels; masks are equal on both.
    """
    opened = Shards(shards)
    truth = read_truth(opened, some_of(np.array(spread_indices(len(opened), samples))))
    contenders = our_contenders(shards, loading, samples)
    contenders += our_contenders(shards, loading, samples, normalise=True)
    checked, wrong = race(contenders, truth, replace(loading, repeats=0), optional=True)
    cases = {
        one.name: CaseResult(figures=checked[one.name].figures | {"allowed_levels": one.levels})
        for one in contenders
        if one.name in checked
    }
    arguments = {"shards": shards.name, "compared": len(truth.index), "device": loading.device}
    result = make_result("parity", arguments, cases, device=loading.device, skipped=wrong)
    if wrong:
        raise FailedCheck("; ".join(f"{name}: {why}" for name, why in wrong.items()), result)
    return result
