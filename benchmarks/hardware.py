"""How much of the JPEGs the GPU's own decoder should take: DALI's ``hw_decoder_load``, swept.

python -m benchmarks hardware DATASET SHARDS --device cuda
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.contender import Contender, Unavailable, race
from benchmarks.harness.images import Scale, allowed_levels, read_truth
from benchmarks.harness.loading import Loading
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.loader import some_samples
from benchmarks.peers.dali import open_dali
from benchmarks.peers.source import Files, WriteTars
from convert.errors import DataError
from convert.shards import Shards

LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0)


def run(dataset: Path, shards: Path, loading: Loading, say: Callable[[str], None]) -> Result:
    """Three images a sample with resident backgrounds; stock DALI, so that nothing else counts.

    Raises DataError on a CPU, where the setting has no effect.
    """
    if torch.device(loading.device).type != "cuda":
        raise DataError(f"device {loading.device}: only a GPU has a JPEG decoder to share with")
    opened = Shards(shards)
    everything = np.arange(len(opened))
    with tempfile.TemporaryDirectory(prefix="maskdepth-hardware-") as folder:
        field = [
            Contender(
                name=f"hw_decoder_load {load:g}",
                opens=open_dali,
                options={
                    **loading.options, "shards": shards, "resident": True, "normalise": False,
                    "load": load,
                },
                convert=WriteTars(Files(dataset, everything), loading.threads),
                store=Path(folder) / "tars",
                expected=everything,
                scale=Scale(),
                levels=allowed_levels(loading.device, 0.0),
                threads=loading.threads,
                device=loading.device,
            )
            for load in LOADS
        ]  # fmt: skip
        truth = read_truth(opened, some_samples(len(opened)))
        found = race(field, truth, loading.repeats, optional=True, say=say)
    if not found.repeats:
        raise Unavailable(f"hw_decoder_load: no value could be measured: {found.skipped}")
    cases = {name: CaseResult.of(one) for name, one in found.repeats.items()}
    arguments = loading.arguments(dataset=dataset.name)
    return make_result("hardware", arguments, cases, device=loading.device, skipped=found.skipped)
