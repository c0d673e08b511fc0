"""DALI's graph for a GPU, as far as a machine without one can prove it."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def nothing() -> list:
    return []


@pytest.mark.parametrize("mask_is_jpeg", [True, False])
def test_graph_for_the_gpu_decodes_there(
    need_engine: Callable[[str], None], mask_is_jpeg: bool
) -> None:
    need_engine("dali")
    from loaders.dali import _graph

    def serialized(device: str) -> bytes:
        return _graph(
            source=nothing,
            device=device,
            mask_is_jpeg=mask_is_jpeg,
            height=224,
            width=224,
            batch_size=8,
            num_threads=1,
            device_id=None,
        ).serialize()

    assert serialized("mixed").count(b"mixed") == (3 if mask_is_jpeg else 2)
    assert b"mixed" not in serialized("cpu")
