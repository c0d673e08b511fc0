"""DALI's graph for a GPU, as far as a machine without one can prove it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def nothing() -> list:
    return []


@pytest.mark.parametrize("mask_is_jpeg", [True, False])
def test_graph_for_the_gpu_decodes_there(
    need_engine: Callable[[str], None], mask_is_jpeg: bool
) -> None:
    need_engine("dali")
    from loaders.dali import _graph

    def built(device: str) -> Any:
        return _graph(
            source=nothing,
            device=device,
            mask_is_jpeg=mask_is_jpeg,
            height=224,
            width=224,
            batch_size=8,
            num_threads=1,
            device_id=None,
        )

    for device, where in (("mixed", "gpu"), ("cpu", "cpu")):
        pipeline = built(device)
        # Each decoder with the arguments that follow its name, up to the next operator.
        _, *decoders = pipeline.serialize().split(b"decoders__Image")
        assert len(decoders) == (3 if mask_is_jpeg else 2)
        for arguments in decoders:
            assert (b"mixed" in arguments) == (device == "mixed")
            assert (b"preallocate_width_hint" in arguments) == (device == "mixed")
            assert b"jpeg_fancy_upsampling" in arguments
        # Nothing comes back to the host: fg_bg, mask or its runs, depth.
        assert [output.device for output in pipeline._graph_outputs] == [where] * 3
