"""Are the pixels that a device delivers those that the CPU decodes one by one?

python -m benchmarks parity SHARDS --device cuda
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.contender import Isolated, Unavailable
from benchmarks.harness.images import read_truth
from benchmarks.harness.loading import Loading
from benchmarks.harness.ours import our_contenders
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.loader import some_samples
from convert.shards import Shards


def run(shards: Path, loading: Loading, say: Callable[[str], None]) -> Result:
    """One epoch of each engine, as uint8 and as floats. Raises Unavailable where one is wrong.

    Where a CPU decodes not one level of difference is allowed, where a GPU does
    `benchmarks.harness.images.GPU_LEVELS`; masks are equal on both.
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
            say(f"{contender.name}: {figures['largest_difference_levels']:.3g} levels at most")
    arguments = {"shards": shards.name, "compared": len(truth.index), "device": loading.device}
    return make_result("parity", arguments, cases, device=loading.device)
