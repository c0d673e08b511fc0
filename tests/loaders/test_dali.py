"""DALI's graph for a GPU, as far as a machine without one can prove it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.loaders import DataError, build_loader
from tests.loaders.lazy_streams import LazyStreams

MIB = b"\x80\x80\x40"
"""2**20 as protobuf's variable-length integer."""


def nothing() -> list:
    return []


def test_decoders_on_a_gpu_have_few_threads(
    need_engine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    need_engine("dali")
    from maskdepth.loaders.engines import dali

    found: dict[str, int] = {}
    for cores in (2, 64):
        monkeypatch.setattr(dali, "default_threads", lambda cores=cores: cores)
        for device in ("cpu", "cuda"):
            loader: Any = SimpleNamespace(device=torch.device(device))
            found[f"{cores} {device}"] = dali.DALILoader._default_workers(loader)
    assert found == {"2 cpu": 2, "2 cuda": 2, "64 cpu": 64, "64 cuda": 8}


@pytest.mark.parametrize("mask_is_jpeg", [True, False])
def test_graph_for_the_gpu_decodes_there(
    need_engine: Callable[[str], None], mask_is_jpeg: bool
) -> None:
    need_engine("dali")
    from maskdepth.loaders.engines.dali import _graph

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
            for name in (b"preallocate_width_hint", b"_memory_padding"):
                assert (name in arguments) == (device == "mixed")
            if device == "mixed":
                found = re.findall(rb"(device|host)_memory_padding\x12\x05int64 (...)", arguments)
                assert found == [(b"device", MIB), (b"host", MIB)]
            assert b"jpeg_fancy_upsampling" in arguments
        # Nothing comes back to the host: fg_bg, mask or its runs, depth.
        assert [output.device for output in pipeline._graph_outputs] == [where] * 3


@pytest.mark.parametrize("load", [None, 0.12])
def test_the_load_of_the_jpeg_engine_reaches_each_decoder(
    need_engine: Callable[[str], None], load: float | None
) -> None:
    need_engine("dali")
    from maskdepth.loaders.engines.dali import _graph

    for device in ("mixed", "cpu"):
        graph = _graph(
            source=nothing, device=device, mask_is_jpeg=True, height=96, width=96,
            hw_decoder_load=load, batch_size=8, num_threads=1, device_id=None,
        )  # fmt: skip
        stored = graph.serialize()
        expected = 3 if device == "mixed" and load else 0
        assert stored.count(b"hw_decoder_load") == expected
        assert stored.count(struct.pack("<f", 0.12)) == expected


@pytest.mark.parametrize(
    ("engine", "load", "message"),
    [
        ("dali", 0.5, "found the engine dali on cpu, expected dali or dali-stream on a GPU"),
        ("ffcv", 0.5, "found the engine ffcv on cpu"),
        ("dali", 1.5, "hw_decoder_load: found 1.5, expected 0 to 1"),
    ],
)
def test_only_dali_on_a_gpu_has_a_load(
    shards: Path, engine: str, load: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_loader(engine, shards, hw_decoder_load=load)


class LaggingStreams(LazyStreams):
    """The computing stream lags, too: the host has a batch long before its pixels are there."""

    def hand_over(self, event: int, tensors: tuple[torch.Tensor, ...]) -> None:
        pass


@pytest.mark.parametrize("streams", [LazyStreams(0), LazyStreams(100), LaggingStreams(3)])
@pytest.mark.parametrize("engine", ["dali", "dali-stream"])
def test_what_dali_decodes_is_copied_before_it_is_given_back(
    need_engine: Callable[[str], None], shards: Path, engine: str, streams: LazyStreams
) -> None:
    need_engine(engine)
    options: dict[str, Any] = {"batch_size": 16, "seed": 3, "num_workers": 1}
    with build_loader(engine, shards, **options) as truth:
        expected = list(truth.epoch(0))
    loader: Any = build_loader(engine, shards, **options)
    with loader:
        loader._streams = streams
        next(loader.epoch(1))  # ended early, with a copy that has not
        found = list(loader.epoch(0))
        assert streams.finished
    names = ["fg_bg", "depth", "index"]
    if not isinstance(streams, LaggingStreams):
        names.append("mask")  # computed from the copy, so here at once
    for batch, truth_batch in zip(found, expected, strict=True):
        for name in names:
            ours, theirs = getattr(batch, name), getattr(truth_batch, name)
            assert torch.equal(ours, theirs), name
            assert ours.stride() == theirs.stride(), name


def test_the_empty_batch_of_a_rank_goes_the_same_way(
    need_engine: Callable[[str], None], shards: Path
) -> None:
    need_engine("dali")
    options: dict[str, Any] = {"batch_size": 2, "indices": np.arange(5), "rank": 0, "world_size": 2}
    loader: Any = build_loader("dali", shards, **options)
    with loader:
        loader._streams = LazyStreams(1)
        assert [batch.mask.shape[0] for batch in loader.epoch(0)] == [2, 0]
