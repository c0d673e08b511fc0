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

import numpy as np

from convert.jpeg import huffman
from convert.jpeg.header import segments

_DCT_BLOCK = 64
_SEQUENTIAL = b"\x00\x3f\x00"  # end of a scan header: coefficients 0 to 63, all bits


class NotReducible(Exception):
    """The JPEG is corrupt or of a kind that cannot be cut; the message gives the reason."""


class _Frame(NamedTuple):
    """The frame header. quantisers: number of the quantisation table of each component."""

    height: int
    width: int
    components: bytes
    samplings: np.ndarray
    quantisers: bytes


class _Scan(NamedTuple):
    """What decoding a scan needs. tables: `decoding_table` of DC and AC of each component."""

    frame: _Frame
    tables: np.ndarray
    restart: int
    quantiser: bytes
    data: int


def cut_to_luma(source: bytes) -> bytes:
    """The luma plane of a gray image stored as YCbCr, as a JPEG of one component.

    Every DCT coefficient and the quantisation table are those of the source. Raises NotReducible
    if the source is not baseline, is not YCbCr in one scan, has colour, or is corrupt.
    """
    try:
        scan = _parse(source)
    except (IndexError, ValueError, struct.error):
        raise NotReducible("its markers are corrupt") from None
    frame = scan.frame
    data = np.frombuffer(source, np.uint8)[scan.data :]
    vertical, horizontal = frame.samplings[0].tolist()
    mcus = -(-frame.height // (8 * vertical)) * -(-frame.width // (8 * horizontal))
    blocks = mcus * vertical * horizontal
    if blocks > 4 * len(data):  # a block takes at least two bits
        raise NotReducible("its size and its data do not agree")
    order = _raster_order(frame.height, frame.width, vertical, horizontal)
    # In another order a DC difference may take 27 bits, and every byte may need stuffing.
    out = np.empty(2 * (len(source) + 4 * blocks), np.uint8)
    outcome, size, *lists = huffman.recode(
        data, frame.samplings, scan.tables, mcus, scan.restart, order, *_scratch(blocks), out
    )
    if outcome == huffman.CORRUPT:
        raise NotReducible("its entropy-coded data is corrupt")
    if outcome == huffman.COLOURED:
        raise NotReducible("its chroma is not neutral")
    return _headers(scan, lists) + out[:size].tobytes() + b"\xff\xd9"


@functools.lru_cache(maxsize=2)
def _scratch(blocks: int) -> tuple[np.ndarray, ...]:
    """Buffers for the tokens of an image, kept because new memory costs page faults."""
    # Threads may share them, because `recode` holds the GIL.
    starts, dc = np.empty(blocks + 1, np.int32), np.empty(blocks, np.int32)
    return starts, dc, np.empty(blocks * _DCT_BLOCK, np.int32)


@functools.lru_cache(maxsize=8)
def _raster_order(height: int, width: int, vertical: int, horizontal: int) -> np.ndarray:
    """Position in the file of each luma block of the image, row by row, without padding blocks."""
    y, x = np.ogrid[: -(-height // 8), : -(-width // 8)]
    mcu = y // vertical * -(-width // (8 * horizontal)) + x // horizontal
    within = y % vertical * horizontal + x % horizontal
    return np.asarray((mcu * vertical * horizontal + within).astype(np.int32).ravel())


def _parse(source: bytes) -> _Scan:
    """Read the markers up to the first scan."""
    quantisers: dict[int, bytes] = {}
    tables: list[bytes] = []
    frame: _Frame | None = None
    restart = 0
    for marker, body, end in segments(source):
        if marker == 0xDB:
            _read_quantisers(body, quantisers)
        elif marker == 0xC4:
            tables.append(body)
        elif marker == 0xC0 and frame is None:
            frame = _read_frame(body)
        elif 0xC0 <= marker <= 0xCF:
            raise NotReducible("it is not a baseline JPEG")
        elif marker == 0xDD and len(body) == 2:
            restart = int.from_bytes(body)
        elif marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\x01":
            raise NotReducible("it is not stored as YCbCr")
        elif marker == 0xDA:
            if frame is None:
                raise NotReducible("its frame header is missing")
            if not quantisers.keys() >= set(frame.quantisers):
                raise NotReducible("a quantisation table is missing")
            chosen = _read_scan(body, frame.components, tuple(tables))
            return _Scan(frame, chosen, restart, quantisers[frame.quantisers[0]], end)
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # application data and comments
            raise NotReducible("its markers are corrupt")
    raise NotReducible("it has no scan")


def _read_quantisers(body: bytes, quantisers: dict[int, bytes]) -> None:
    """Add complete tables of 8 bits by number; a later one replaces an earlier one."""
    while body:
        if body[0] > 3 or len(body) <= _DCT_BLOCK:
            raise NotReducible("a quantisation table is corrupt or not of 8 bits")
        quantisers[body[0]] = body[1 : 1 + _DCT_BLOCK]
        body = body[1 + _DCT_BLOCK :]


def _read_huffman(body: bytes) -> dict[int, np.ndarray]:
    """Decoding tables of a segment by class and number."""
    tables = {}
    while body:
        counts = np.frombuffer(body[1:17], np.uint8).astype(np.int32)
        total = int(counts.sum())
        listed = body[17 : 17 + total]
        is_complete = len(counts) == 16 and len(listed) == total <= 256
        largest = 0xFF if body[0] >> 4 else 0x0F  # a DC symbol is a number of bits
        if body[0] & ~0x13 or not is_complete or max(listed, default=0) > largest:
            raise NotReducible("its Huffman tables are corrupt")
        if (counts << np.arange(15, -1, -1)).sum() >= 1 << 16:  # no such code (annex C)
            raise NotReducible("its Huffman tables are corrupt")
        symbols = np.zeros(256, np.uint8)
        symbols[:total] = np.frombuffer(listed, np.uint8)
        tables[body[0]] = huffman.decoding_table(counts, symbols)
        body = body[17 + total :]
    return tables


@functools.lru_cache(maxsize=64)
def _read_frame(body: bytes) -> _Frame:
    """Parse a frame header; cached because all images of a data set have the same."""
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8 or count != 3 or len(body) != 6 + 3 * count or not height * width:
        raise NotReducible("it does not have three components of 8 bits")
    rows = [body[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    samplings = np.array([(row[1] & 15, row[1] >> 4) for row in rows], np.int32)
    components = bytes(row[0] for row in rows)
    if components == b"RGB":
        raise NotReducible("it is not stored as YCbCr")
    if samplings.min() < 1 or (samplings[0] != samplings.max(axis=0)).any():
        raise NotReducible("its luma is subsampled")
    return _Frame(height, width, components, samplings, bytes(row[2] for row in rows))


@functools.lru_cache(maxsize=64)
def _read_scan(body: bytes, components: bytes, segments: tuple[bytes, ...]) -> np.ndarray:
    """DC and AC table of each component, in turn; cached because most encoders use one set."""
    count = len(components)
    if body[0] != count or bytes(body[1 + 2 * i] for i in range(count)) != components:
        raise NotReducible("it is not stored in one scan")
    if body[1 + 2 * count :] != _SEQUENTIAL:
        raise NotReducible("its scan does not hold complete blocks")
    # A later table replaces an earlier one of the same number.
    tables = {key: row for segment in segments for key, row in _read_huffman(segment).items()}
    keys = [key for i in range(count) for key in (body[2 + 2 * i] >> 4, 16 | body[2 + 2 * i] & 15)]
    if any(key not in tables for key in keys):
        raise NotReducible("its Huffman tables are missing")
    return np.stack([tables[key] for key in keys])


def _headers(scan: _Scan, lists: list[np.ndarray]) -> bytes:
    """All segments before the entropy-coded data (annex B). lists: as `huffman.recode` returns."""
    frame = struct.pack(">BHHB", 8, scan.frame.height, scan.frame.width, 1) + b"\x01\x11\x00"
    dc_lengths, dc_listed, ac_lengths, ac_listed = lists
    tables = bytes([0x00, *dc_lengths[1:].tolist()]) + dc_listed.tobytes()
    tables += bytes([0x10, *ac_lengths[1:].tolist()]) + ac_listed.tobytes()
    return (
        b"\xff\xd8"
        + _segment(0xDB, b"\x00" + scan.quantiser)
        + _segment(0xC0, frame)
        + _segment(0xC4, tables)
        + _segment(0xDA, b"\x01\x01\x00" + _SEQUENTIAL)
    )


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
