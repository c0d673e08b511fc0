"""Memory that DALI's decoders take on a GPU, by arithmetic, and an error where it does not fit.

Each decoder that works on a GPU ("mixed") has threads of its own, and each thread keeps one buffer
on the device and two in pinned host memory (`device_memory_padding` and `host_memory_padding` in
DALI's documentation of `fn.decoders.image`). By default they have 16 and 8 MiB, enough for images
of some megapixels: with three decoders on 64 cores that is 3 GiB each of device and pinned memory.
"""

from __future__ import annotations

from typing import NamedTuple

from maskdepth.convert.errors import DataError

DECODER_THREADS = 8
"""Decoding threads by default, at most.

Below a megapixel nvJPEG decodes the Huffman codes on the host. A complete decoding there took
0.25 ms a sample of 224x224 (two JPEGs, one core of an AMD EPYC), so that 8 threads prepare more
than 30,000 samples/s: three times what an H100 can train on at 112x112, by arithmetic. More threads
would only take memory.
"""
_MIB = 2**20
_BLOCK = 16  # pixels of the largest unit that JPEGs consist of, along each side
# Three planes without subsampling: coefficients of 2 bytes, decoded values of 1, and a third more.
_BYTES_PER_PIXEL = 12
_CHANNELS = 5  # of fg_bg, mask and depth
_BATCHES = 2  # besides those ahead: the one that is decoded and the one that is copied


class DecoderMemory(NamedTuple):
    """Bytes of one GPU, and of the host's pinned memory for all ranks on a machine."""

    device: int
    pinned: int


def buffer_bytes(height: int, width: int) -> int:
    """Bytes of one buffer of nvJPEG for images of this size: a multiple of 1 MiB.

    1 MiB up to about 290x290. Too small a buffer would be replaced while decoding, which is slow,
    not wrong.
    """
    pixels = _whole_blocks(height) * _whole_blocks(width)
    return -(-_BYTES_PER_PIXEL * pixels // _MIB) * _MIB


def predict_memory(
    height: int, width: int, *, decoders: int, threads: int, batch_size: int, ahead: int,
    ranks: int = 1,
) -> DecoderMemory:  # fmt: skip
    """Memory of one loader on each rank, without what CUDA and nvJPEG take for any images.

    decoders: 3, or 2 if masks are no JPEGs. threads: of each decoder. ahead: batches that DALI
    decodes ahead. ranks: on this machine, each with a GPU of its own.
    """
    buffers = decoders * threads * buffer_bytes(height, width)
    batches = (ahead + _BATCHES) * batch_size * height * width * _CHANNELS
    return DecoderMemory(device=buffers + batches, pinned=2 * buffers * ranks)


def require_memory(needed: DecoderMemory, free: DecoderMemory, threads: int, where: str) -> None:
    """Raise DataError if DALI needs more memory than is free.

    where: the shard folder and the device, for the message.
    """
    for place, bytes_, left in zip(
        ("memory of the GPU", "pinned host memory on all ranks"), needed, free, strict=True
    ):
        if bytes_ > left:
            raise DataError(
                f"{where}: with {threads} threads DALI's decoders need {bytes_ / _MIB:,.0f} MiB of "
                f"{place}, found {left / _MIB:,.0f} MiB free; use fewer --workers, smaller batches "
                "or --loader ffcv"
            )


def _whole_blocks(side: int) -> int:
    return -(-side // _BLOCK) * _BLOCK
