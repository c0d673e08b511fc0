"""Reads the headers of a baseline JPEG: what decoding its scan needs.

Names are those of ITU-T T.81 (JPEG), annex B.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import numpy as np

from maskdepth.convert.jpeg.header import segments
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.jpeg.zigzag import ZIGZAG

SEQUENTIAL = b"\x00\x3f\x00"
"""End of a scan header: coefficients 0 to 63, all bits."""
_BLOCK = 64


class NotBaseline(Exception):
    """The JPEG is corrupt or not of a kind that can be read here; the message says why."""


@dataclass(frozen=True)
class Layout:
    """What the headers say about the only scan, but for its Huffman tables.

    quantisers: uint8 (components, 64), by rows of a block. selectors: uint8, DC table << 4 | AC
    table of each component. restart: MCUs of an interval, 0 if there are none.
    """

    geometry: Geometry
    quantisers: np.ndarray
    selectors: np.ndarray
    restart: int

    @functools.cached_property
    def needed(self) -> int:
        """A bit for each Huffman table of the scan: four for DC, four for AC."""
        bits = 0
        for selector in self.selectors.tolist():
            bits |= 1 << (selector >> 4) | 16 << (selector & 15)
        return bits


@dataclass(frozen=True)
class _Frame:
    """The frame header. quantisers: number of the quantisation table of each component."""

    geometry: Geometry
    components: bytes
    quantisers: bytes


def read_headers(source: bytes) -> tuple[Layout, bytes, int]:
    """The layout, all Huffman tables as in their segments, and where the data of the scan begins.

    Raises NotBaseline.
    """
    tables, others, end = b"", [], 0
    try:
        for marker, body, end in segments(source):  # noqa: B007
            if marker == 0xC4:
                tables += body
            elif marker == 0xEE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
                others.append((marker, body))  # neither a comment nor data of an application
        return _read_layout(tuple(others)), tables, end
    except (IndexError, ValueError, struct.error):
        raise NotBaseline("its markers are corrupt") from None


@functools.lru_cache(maxsize=64)
def _read_layout(headers: tuple[tuple[int, bytes], ...]) -> Layout:
    """Parse marker and body of each segment; cached because all images of a data set share them."""
    quantisers: dict[int, bytes] = {}
    frame: _Frame | None = None
    restart = 0
    for marker, body in headers:
        if marker == 0xDB:
            _read_quantisers(body, quantisers)
        elif marker == 0xC0 and frame is None:
            frame = _read_frame(body)
        elif 0xC0 <= marker <= 0xCF:
            raise NotBaseline("it is not a baseline JPEG")
        elif marker == 0xDD and len(body) == 2:
            restart = int.from_bytes(body)
        elif marker == 0xEE:
            if body[:5] == b"Adobe" and body[11:12] != b"\x01":
                raise NotBaseline("it is not stored as YCbCr")
        elif marker == 0xDA:
            if frame is None:
                raise NotBaseline("its frame header is missing")
            if not quantisers.keys() >= set(frame.quantisers):
                raise NotBaseline("a quantisation table is missing")
            by_rows = _by_rows([quantisers[number] for number in frame.quantisers])
            return Layout(frame.geometry, by_rows, _selectors(body, frame.components), restart)
        else:
            raise NotBaseline("its markers are corrupt")
    raise NotBaseline("it has no scan")


def _read_quantisers(body: bytes, quantisers: dict[int, bytes]) -> None:
    """Add complete tables of 8 bits by number; a later one replaces an earlier one."""
    while body:
        if body[0] > 3 or len(body) <= _BLOCK:
            raise NotBaseline("a quantisation table is corrupt or not of 8 bits")
        quantisers[body[0]] = body[1 : 1 + _BLOCK]
        body = body[1 + _BLOCK :]


def _by_rows(tables: list[bytes]) -> np.ndarray:
    """Quantisation tables, uint8 (components, 64), from the order of a JPEG; not to be changed."""
    found = np.empty((len(tables), _BLOCK), np.uint8)
    found[:, ZIGZAG] = [list(table) for table in tables]
    found.flags.writeable = False
    return found


def _read_frame(body: bytes) -> _Frame:
    """Parse a frame header (B.2.2)."""
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8 or count not in (1, 3) or len(body) != 6 + 3 * count or not height * width:
        raise NotBaseline("it does not have one or three components of 8 bits")
    components, factors, quantisers = body[6::3], body[7::3], body[8::3]
    if components == b"RGB":
        raise NotBaseline("it is not stored as YCbCr")
    # A scan of one component has no MCUs of several blocks (annex A.2.2).
    samplings = tuple((one & 15, one >> 4) if count > 1 else (1, 1) for one in factors)
    down, across = zip(*samplings, strict=True)
    if min(down + across) < 1 or samplings[0] != (max(down), max(across)):
        raise NotBaseline("its luma is subsampled")
    return _Frame(Geometry(height, width, samplings), components, quantisers)


def _selectors(body: bytes, components: bytes) -> np.ndarray:
    """Numbers of the Huffman tables of each component, from the header of a scan (B.2.3)."""
    count = len(components)
    if body[0] != count or body[1 : 1 + 2 * count : 2] != components:
        raise NotBaseline("it is not stored in one scan")
    if body[1 + 2 * count :] != SEQUENTIAL:
        raise NotBaseline("its scan does not hold complete blocks")
    selectors = body[2 : 2 + 2 * count : 2]
    if any(selector & 0xCC for selector in selectors):
        raise NotBaseline("its Huffman tables are missing")
    return np.frombuffer(selectors, np.uint8)
