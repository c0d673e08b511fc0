"""How much of the JPEGs the GPU's own decoder should take: DALI's ``hw_decoder_load``, swept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.contender import Unavailable, race
from benchmarks.harness.images import read_truth, some_samples
from benchmarks.harness.options import DATASET, SHARDS, Loading, command, loading_options
from benchmarks.harness.results import Result, make_result
from benchmarks.peers.dali import dali_contender
from benchmarks.peers.source import Files
from convert.errors import DataError
from convert.shards import Shards

LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0)


@command(DATASET, SHARDS, loading_options)
def hardware(dataset: Path, shards: Path, loading: Loading) -> Result:
    """DALI's hw_decoder_load from 0 to 1, on a GPU.

    Stock DALI decodes three images per sample and gathers resident backgrounds, so that nothing of
    this project counts.
    """
    if torch.device(loading.device).type != "cuda":
        raise DataError(f"device {loading.device}: only a GPU has a JPEG decoder to share with")
    opened = Shards(shards)
    with tempfile.TemporaryDirectory(prefix="maskdepth-hardware-") as folder:
        contenders = [
            dali_contender(
                f"hw_decoder_load {load:g}", files=Files(dataset, np.arange(len(opened))),
                store=Path(folder) / "tars", shards=shards, loading=loading, resident=True,
                load=load,
            )
            for load in LOADS
        ]  # fmt: skip
        truth = read_truth(opened, some_samples(len(opened)))
        cases, skipped = race(contenders, truth, loading.repeats, optional=True)
    if not cases:
        raise Unavailable(f"hw_decoder_load: no value could be measured: {skipped}")
    arguments = loading.arguments(dataset=dataset.name)
    return make_result("hardware", arguments, cases, device=loading.device, skipped=skipped)
