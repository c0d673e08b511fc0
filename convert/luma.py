"""The luma plane of a baseline JPEG as a JPEG of its own: coefficients kept, not one changed.

Depth maps come as gray pictures stored as RGB. Their chroma planes say nothing and cost
bytes and decoding time. Here the entropy-coded data is read, the chroma blocks are left out
and the luma blocks written again with Huffman tables made for them: the same coefficients,
so the same pixels, in about two thirds of the bytes. Pure arithmetic: the bytes do not depend on
any library's version.

Names and tables as in ITU-T T.81 (JPEG), annexes B, C, F and K.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from convert import huffman

_DCT_BLOCK = 64
_MAX_TOKENS_PER_BLOCK = 64 + 3


class NotReducible(Exception):
    """The JPEG is not of the kind that can be cut (or is damaged): the message says why."""


@dataclass(kw_only=True)
class _Scan:
    """What the decoder of one baseline scan needs."""

    height: int = 0
    width: int = 0
    samplings: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    quantisers: list[int] = field(default_factory=list)
    tables: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    restart: int = 0
    quantiser: bytes = b""
    data: int = 0


def cut_to_luma(source: bytes) -> bytes:
    """The luma plane of a gray picture stored as YCbCr, as a JPEG of one component.

    Every DCT coefficient and the quantisation table are those of the source. Raises
    NotReducible where the source is not baseline, not YCbCr in one scan, has colour, or is
    damaged.
    """
    try:
        scan, lookup = _parse(source)
    except (IndexError, struct.error):
        raise NotReducible("its markers are damaged") from None
    data = np.frombuffer(source, np.uint8)[scan.data :]
    blocks_y, blocks_x = -(-scan.height // 8), -(-scan.width // 8)
    vertical, horizontal = scan.samplings.max(axis=0).tolist()
    mcus_y = -(-scan.height // (8 * vertical))
    mcus_x = -(-scan.width // (8 * horizontal))
    luma_blocks = mcus_y * mcus_x * vertical * horizontal
    if luma_blocks > 4 * len(data):  # a block takes at least two bits
        raise NotReducible("its size and its data do not agree")
    starts = np.empty(luma_blocks + 1, np.int32)
    dc = np.empty(luma_blocks, np.int32)
    symbols = np.empty(luma_blocks * _MAX_TOKENS_PER_BLOCK, np.uint8)
    values = np.empty(luma_blocks * _MAX_TOKENS_PER_BLOCK, np.uint16)
    outcome = huffman.read_blocks(
        data, scan.samplings, scan.tables, lookup, mcus_y * mcus_x, scan.restart,
        starts, dc, symbols, values,
    )  # fmt: skip
    if outcome == huffman.DAMAGED:
        raise NotReducible("its entropy-coded data is damaged")
    if outcome == huffman.COLOURED:
        raise NotReducible("its chroma is not neutral")
    order = huffman.raster_order(blocks_y, blocks_x, mcus_x, vertical, horizontal)
    dc_counts, ac_counts = huffman.count_symbols(order, starts, dc, symbols)
    dc_table, ac_table = huffman.optimal_table(dc_counts), huffman.optimal_table(ac_counts)
    # Written in another order a DC difference takes up to 27 bits; any byte may be stuffed.
    out = np.empty(2 * (len(source) + 4 * luma_blocks), np.uint8)
    size = huffman.write_blocks(
        order,
        starts,
        dc,
        symbols,
        values,
        huffman.codes_of(*dc_table),
        huffman.codes_of(*ac_table),
        out,
    )
    return _headers(scan, dc_table, ac_table) + out[:size].tobytes() + b"\xff\xd9"


def _parse(source: bytes) -> tuple[_Scan, np.ndarray]:
    """Markers up to the first scan; the Huffman tables as `decoding_table` rows."""
    scan = _Scan()
    quantisers: dict[int, bytes] = {}
    tables: dict[int, np.ndarray] = {}
    components: list[int] = []
    at = 2
    if source[:2] != b"\xff\xd8":
        raise NotReducible("it is not a JPEG")
    while at + 4 <= len(source):
        if source[at] != 0xFF:
            raise NotReducible("its markers are damaged")
        marker = source[at + 1]
        (length,) = struct.unpack_from(">H", source, at + 2)
        body = source[at + 4 : at + 2 + length]
        at += 2 + length
        if length < 2 or at > len(source):
            raise NotReducible("its markers are damaged")
        if marker == 0xDB:
            _read_quantisers(body, quantisers)
        elif marker == 0xC4:
            _read_huffman(body, tables)
        elif marker == 0xC0 and not components:
            components = _read_frame(body, scan)
        elif 0xC0 <= marker <= 0xCF:
            raise NotReducible("it is not a baseline JPEG")
        elif marker == 0xDD:
            scan.restart = int.from_bytes(body[:2])
        elif marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\x01":
            raise NotReducible("it is not stored as YCbCr")
        elif marker == 0xDA:
            lookup = _read_scan(body, scan, components, tables)
            scan.quantiser = quantisers.get(scan.quantisers[0], b"")
            if len(scan.quantiser) != _DCT_BLOCK:
                raise NotReducible("its quantisation table is missing or not of 8 bits")
            scan.data = at
            return scan, lookup
    raise NotReducible("it has no scan")


def _read_quantisers(body: bytes, quantisers: dict[int, bytes]) -> None:
    while body:
        size = 1 + _DCT_BLOCK * (2 if body[0] >> 4 else 1)
        quantisers[body[0] & 15] = body[1:size]
        body = body[size:]


def _read_huffman(body: bytes, tables: dict[int, np.ndarray]) -> None:
    while len(body) >= 17:
        counts = np.frombuffer(body[1:17], np.uint8).astype(np.int32)
        total = int(counts.sum())
        symbols = np.zeros(256, np.uint8)
        if total > 256 or len(body) < 17 + total:
            raise NotReducible("its Huffman tables are damaged")
        symbols[:total] = np.frombuffer(body[17 : 17 + total], np.uint8)
        tables[body[0]] = huffman.decoding_table(counts, symbols)
        body = body[17 + total :]


def _read_frame(body: bytes, scan: _Scan) -> list[int]:
    precision, scan.height, scan.width, count = struct.unpack_from(">BHHB", body)
    if precision != 8 or count != 3 or len(body) != 6 + 3 * count or not scan.height * scan.width:
        raise NotReducible("it does not have three components of 8 bits")
    rows = [body[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    scan.samplings = np.array([(row[1] & 15, row[1] >> 4) for row in rows], np.int32)
    scan.quantisers = [row[2] for row in rows]
    if bytes(row[0] for row in rows) == b"RGB":
        raise NotReducible("it is not stored as YCbCr")
    if scan.samplings.min() < 1 or (scan.samplings[0] != scan.samplings.max(axis=0)).any():
        raise NotReducible("its luma is subsampled")
    return [row[0] for row in rows]


def _read_scan(
    body: bytes, scan: _Scan, components: list[int], found: dict[int, np.ndarray]
) -> np.ndarray:
    """Decoding tables of the scan; `scan.tables` (component, dc/ac) points into them."""
    count = len(components)
    named = [body[1 + 2 * i] for i in range(min(count, (len(body) - 4) // 2))]
    if not count or body[0] != count or named != components:
        raise NotReducible("it is not stored in one scan")
    keys = [(body[2 + 2 * i] >> 4, 0x10 | (body[2 + 2 * i] & 15)) for i in range(count)]
    wanted = [key for pair in keys for key in pair]
    if any(key not in found for key in wanted):
        raise NotReducible("its Huffman tables are missing")
    scan.tables = np.arange(2 * count, dtype=np.int32).reshape(count, 2)
    return np.stack([found[key] for key in wanted])


def _headers(
    scan: _Scan, dc_table: tuple[np.ndarray, np.ndarray], ac_table: tuple[np.ndarray, np.ndarray]
) -> bytes:
    """Everything before the entropy-coded data (annex B)."""
    frame = struct.pack(">BHHB", 8, scan.height, scan.width, 1) + b"\x01\x11\x00"
    tables = b""
    for kind, (lengths, listed) in ((0x00, dc_table), (0x10, ac_table)):
        tables += bytes([kind, *lengths[1:].tolist()]) + listed.tobytes()
    return (
        b"\xff\xd8"
        + _segment(0xDB, b"\x00" + scan.quantiser)
        + _segment(0xC0, frame)
        + _segment(0xC4, tables)
        + _segment(0xDA, b"\x01\x01\x00\x00\x3f\x00")
    )


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
