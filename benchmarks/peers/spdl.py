"""SPDL: threads that read files and decode them with FFmpeg's JPEG decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from maskdepth.benchmarks.harness.contender import Epochs
from maskdepth.benchmarks.harness.images import Images
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.source import FIELDS, Files

_FORMATS = {"bg": "rgb24", "fg_bg": "rgb24", "mask": "gray", "depth": "gray"}


@contextmanager
def open_spdl(loading: Loading, files: Files) -> Iterator[Epochs]:
    """Yield epochs of shuffled batches; each thread decodes one batch at a time."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    def decode(positions: np.ndarray) -> Images:
        paths = [files.paths(position) for position in positions.tolist()]
        pixels = {}
        for name in FIELDS:
            packets = [spdl.io.demux_image(str(sample[name])) for sample in paths]
            frames = [
                spdl.io.decode_packets(one, filter_desc=f"format=pix_fmts={_FORMATS[name]}")
                for one in packets
            ]
            batch = torch.from_numpy(spdl.io.to_numpy(spdl.io.convert_frames(frames)))
            if batch.ndim == 3:
                batch = batch[..., None]
            pixels[name] = batch.permute(0, 3, 1, 2) if batch.shape[-1] in (1, 3) else batch
        return Images(index=torch.from_numpy(files.indices[positions]), **pixels)

    def epoch(number: int) -> Iterator[Images]:
        batch_size, threads = loading.batch_size, loading.threads
        order = np.random.default_rng(number).permutation(len(files))
        source = (order[at : at + batch_size] for at in range(0, len(order), batch_size))
        builder = PipelineBuilder().add_source(source).pipe(decode, concurrency=threads)
        pipeline = builder.add_sink(2).build(num_threads=threads)
        with pipeline.auto_stop():
            yield from pipeline

    yield epoch
