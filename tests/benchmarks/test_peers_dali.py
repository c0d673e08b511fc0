"""Stock DALI's options on a GPU, as far as a machine without one can prove them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from maskdepth.benchmarks.peers import dali


@pytest.mark.parametrize("at_once", [False, True])
def test_the_sweep_reaches_the_decoders_and_the_executor(at_once: bool, tmp_path: Path) -> None:
    from nvidia.dali.pipeline import OperatorConcurrency

    graph = dali._graph([tmp_path / "0.tar"], ("fg_bg", "depth"), None, {"hw_decoder_load": 0.12})
    pipeline = graph(
        "mixed", batch_size=8, num_threads=1, device_id=None, **dali._concurrency(at_once)
    )
    assert pipeline.concurrency == (OperatorConcurrency.FULL if at_once else None)
    stored = pipeline.serialize()
    assert stored.count(b"decoders__Image") == stored.count(struct.pack("<f", 0.12)) == 2


def test_the_sweep_has_the_defaults_of_dali_and_of_its_tests_on_hopper() -> None:
    assert {0.12, 0.65} <= set(dali.LOADS)
    assert set(dali.AT_ONCE) <= set(dali.LOADS)
