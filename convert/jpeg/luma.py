"""Cuts the luma plane out of a baseline JPEG, as a JPEG with the same coefficients.

The chroma planes of a gray image stored as RGB hold no information and cost bytes and decoding
time. The luma blocks are written with Huffman tables made for them: the same pixels in fewer bytes
than libjpeg-turbo's `tjTransform` (docs/format.md has the comparison), whatever its version.

Names and tables are those of ITU-T T.81 (JPEG), annexes B, C, F and K.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import numba
import numpy as np

from maskdepth.convert.jpeg.coefficients import Coefficients, read_coefficients
from maskdepth.convert.jpeg.huffman import write_blocks
from maskdepth.convert.jpeg.layout import SEQUENTIAL, NotBaseline
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.jpeg.zigzag import ZIGZAG


def cut_to_luma(source: bytes) -> bytes:
    """The luma plane of a gray image stored as YCbCr, as a JPEG of one component.

    Every DCT coefficient and the quantisation table are those of the source. Raises NotBaseline
    if the source is corrupt, has colour, or is not what `read_coefficients` reads.
    """
    return write_luma(luma_of(read_coefficients(source)))


class Luma(NamedTuple):
    """The luma plane of an image: `Coefficients` of one component, row by row.

    values: int16 (blocks, 1, 64). padding: int16 (n, 1, 64), the blocks of the source that are
    beyond the image. They are not written but counted for the Huffman tables, as in all releases,
    so that the bytes of a data set stay the same.
    """

    geometry: Geometry
    quantisers: np.ndarray
    values: np.ndarray
    padding: np.ndarray


def luma_of(coefficients: Coefficients) -> Luma:
    """The luma plane of a gray image; NotBaseline if the image has colour."""
    gray, order = _raster(coefficients.geometry)
    values = np.empty((len(order), 1, 64), np.int16)
    words = coefficients.values.view(np.uint64)
    if not _take_luma(words, coefficients.geometry.components, order, values.view(np.uint64)):
        raise NotBaseline("its chroma is not neutral")
    blocks = gray.mcus[0] * gray.mcus[1]
    return Luma(gray, coefficients.quantisers[:1], values[:blocks], values[blocks:])


@functools.lru_cache(maxsize=8)
def _raster(geometry: Geometry) -> tuple[Geometry, np.ndarray]:
    """The geometry of luma alone; int64 (n, 2): MCU and number in it of its blocks, then others."""
    gray = Geometry(geometry.height, geometry.width, ((1, 1),))
    down, across = geometry.samplings[0]
    y, x = np.indices((geometry.mcus[0] * down, geometry.mcus[1] * across)).reshape(2, -1)
    mcu, number = y // down * geometry.mcus[1] + x // across, y % down * across + x % across
    padding = (y >= gray.mcus[0]) | (x >= gray.mcus[1])
    return gray, np.stack([mcu, number], axis=1)[np.argsort(padding, kind="stable")]


@numba.njit(cache=True)
def _take_luma(
    words: np.ndarray, components: np.ndarray, order: np.ndarray, out: np.ndarray
) -> bool:
    """Copy the luma blocks in ``order``; False if others are not 0.

    words: uint64 (MCUs, blocks of an MCU, 16). out: uint64 (luma blocks, 1, 16).
    """
    colour = np.uint64(0)
    for mcu in range(len(words)):
        for block in range(len(components)):
            if components[block]:
                for i in range(16):
                    colour |= words[mcu, block, i]
    for place in range(len(order)):
        mcu, block = order[place, 0], order[place, 1]
        for i in range(16):
            out[place, 0, i] = words[mcu, block, i]
    return bool(colour == 0)


def write_luma(luma: Luma) -> bytes:
    """A JPEG of one component (annex B) with Huffman tables made for it."""
    tables, data = write_blocks(luma.values.reshape(-1), luma.padding.reshape(-1))
    height, width = luma.geometry.height, luma.geometry.width
    segments = [
        _segment(0xDB, b"\x00" + luma.quantisers[0, ZIGZAG].tobytes()),
        _segment(0xC0, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"),
        _segment(0xC4, tables.tobytes()),
        _segment(0xDA, b"\x01\x01\x00" + SEQUENTIAL),
    ]
    return b"".join([b"\xff\xd8", *segments, data.tobytes(), b"\xff\xd9"])


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
