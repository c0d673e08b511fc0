"""From shards to batches on the device: our engines beside the floor.

python -m benchmarks loader SHARDS
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.harness.contender import Contender, Isolated, race
from benchmarks.harness.images import Truth, read_truth
from benchmarks.harness.loading import Loading
from benchmarks.harness.ours import floor_contender, our_contenders, skipped_engines
from benchmarks.harness.resources import drop_cache
from benchmarks.harness.results import CaseResult, Result, make_result
from convert.shards import Shards

COMPARED = 256


def run(shards: Path, loading: Loading, say: Callable[[str], None]) -> Result:
    """Time whole shuffled epochs: uint8, then floats of `Preprocess`, and one with a cold cache."""
    opened = Shards(shards)
    truth = read_truth(opened, some_samples(len(opened)))
    ours = our_contenders(shards, loading)
    floats = our_contenders(shards, loading, normalise=True)
    contenders = [*ours, *floats, floor_contender(shards, loading.threads)]
    found = race(contenders, truth, loading.repeats, say=say)
    cases = {
        name: CaseResult.of(found.repeats[name], figures=found.figures[name])
        for name in found.repeats
    }
    for contender in ours:
        cases[f"{contender.name}, cold cache"] = _cold(contender, truth, opened, say)
    arguments = loading.arguments(shards=shards.name, samples=len(opened))
    names, skipped = [one.name for one in (*ours, *floats)], skipped_engines(shards)
    return make_result(
        "loader", arguments, cases, device=loading.device, ours=tuple(names), skipped=skipped
    )


def some_samples(samples: int) -> np.ndarray:
    """Samples to compare pixel by pixel: spread by a seed, int64, ascending."""
    chosen = np.random.default_rng(0).permutation(samples)[:COMPARED]
    return np.sort(chosen)


def _cold(
    contender: Contender, truth: Truth, opened: Shards, say: Callable[[str], None]
) -> CaseResult:
    """The first epoch of a fresh process, after the kernel was asked to forget the shards."""
    files = [opened.folder / file for file in opened.manifest.files]
    dropped = drop_cache(files)
    with Isolated(contender) as isolated:
        repeat = isolated.run()
    say(f"{contender.name}, cold cache: {repeat.samples_per_s:,.0f} samples/s")
    return CaseResult.of([repeat], figures={"dropped_bytes": float(dropped)})
