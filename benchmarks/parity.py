"""Are the pixels that a device delivers those that the CPU decodes one by one?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.contender import Isolated, Unavailable
from benchmarks.harness.images import read_truth, some_samples
from benchmarks.harness.options import SHARDS, Loading, command, loading_options
from benchmarks.harness.ours import our_contenders
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.harness.timing import print_progress
from convert.shards import Shards


@command(SHARDS, loading_options)
def parity(shards: Path, loading: Loading) -> Result:
    """Pixels on a device against those that the CPU decodes one by one; exit 2 if they differ.

    Checks one epoch of each engine, as uint8 and as floats. Pixels that a CPU decodes must be
    equal, those that a GPU decodes may differ by 8 of 255 levels; masks are equal on both.
    """
    opened = Shards(shards)
    truth = read_truth(opened, some_samples(len(opened)))
    cases = {}
    for normalise in (False, True):
        for contender in our_contenders(shards, loading, normalise=normalise):
            try:
                with Isolated(contender) as isolated:
                    figures = {**isolated.check(truth), "allowed_levels": contender.levels}
            except Unavailable as error:
                raise Unavailable(f"{contender.name} on {loading.device}: {error}") from None
            cases[contender.name] = CaseResult(figures=figures)
            largest = figures["largest_difference_levels"]
            print_progress(f"{contender.name}: at most {largest:.3g} levels")
    arguments = {"shards": shards.name, "compared": len(truth.index), "device": loading.device}
    return make_result("parity", arguments, cases, device=loading.device)
