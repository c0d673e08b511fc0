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

import numba
import numpy as np

_DCT_BLOCK = 64
_MAX_TOKENS_PER_BLOCK = 64 + 3
_END_OF_BLOCK, _ZERO_RUN = 0x00, 0xF0

# Outcomes of `_read_blocks`.
_NEUTRAL, _COLOURED, _DAMAGED = 0, 1, 2


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
    scan, lookup = _parse(source)
    data = np.frombuffer(source, np.uint8)[scan.data :]
    blocks_y, blocks_x = -(-scan.height // 8), -(-scan.width // 8)
    vertical, horizontal = scan.samplings.max(axis=0).tolist()
    mcus_y = -(-scan.height // (8 * vertical))
    mcus_x = -(-scan.width // (8 * horizontal))
    luma_blocks = mcus_y * mcus_x * vertical * horizontal
    starts = np.empty(luma_blocks + 1, np.int32)
    dc = np.empty(luma_blocks, np.int32)
    symbols = np.empty(luma_blocks * _MAX_TOKENS_PER_BLOCK, np.uint8)
    values = np.empty(luma_blocks * _MAX_TOKENS_PER_BLOCK, np.uint16)
    outcome = _read_blocks(
        data, scan.samplings, scan.tables, lookup, mcus_y * mcus_x, scan.restart,
        starts, dc, symbols, values,
    )  # fmt: skip
    if outcome == _DAMAGED:
        raise NotReducible("its entropy-coded data is damaged")
    if outcome == _COLOURED:
        raise NotReducible("its chroma is not neutral")
    order = _raster_order(blocks_y, blocks_x, mcus_x, vertical, horizontal)
    dc_counts, ac_counts = _count_symbols(order, starts, dc, symbols)
    dc_table, ac_table = _optimal_table(dc_counts), _optimal_table(ac_counts)
    out = np.empty(2 * len(source) + 1024, np.uint8)
    size = _write_blocks(
        order, starts, dc, symbols, values, _codes(*dc_table), _codes(*ac_table), out
    )
    return _headers(scan, dc_table, ac_table) + out[:size].tobytes() + b"\xff\xd9"


def _parse(source: bytes) -> tuple[_Scan, np.ndarray]:
    """Markers up to the first scan; the Huffman tables as `_decoding_table` rows."""
    scan = _Scan()
    quantisers: dict[int, bytes] = {}
    huffman: dict[int, np.ndarray] = {}
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
            _read_huffman(body, huffman)
        elif marker == 0xC0 and not components:
            components = _read_frame(body, scan)
        elif 0xC0 <= marker <= 0xCF:
            raise NotReducible("it is not a baseline JPEG")
        elif marker == 0xDD:
            scan.restart = int.from_bytes(body[:2])
        elif marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\x01":
            raise NotReducible("it is not stored as YCbCr")
        elif marker == 0xDA:
            lookup = _read_scan(body, scan, components, huffman)
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


def _read_huffman(body: bytes, huffman: dict[int, np.ndarray]) -> None:
    while len(body) >= 17:
        counts = np.frombuffer(body[1:17], np.uint8).astype(np.int32)
        total = int(counts.sum())
        symbols = np.zeros(256, np.uint8)
        if total > 256 or len(body) < 17 + total:
            raise NotReducible("its Huffman tables are damaged")
        symbols[:total] = np.frombuffer(body[17 : 17 + total], np.uint8)
        huffman[body[0]] = _decoding_table(counts, symbols)
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
    body: bytes, scan: _Scan, components: list[int], huffman: dict[int, np.ndarray]
) -> np.ndarray:
    """Decoding tables of the scan; `scan.tables` (component, dc/ac) points into them."""
    count = len(components)
    named = [body[1 + 2 * i] for i in range(min(count, (len(body) - 4) // 2))]
    if not count or body[0] != count or named != components:
        raise NotReducible("it is not stored in one scan")
    keys = [(body[2 + 2 * i] >> 4, 0x10 | (body[2 + 2 * i] & 15)) for i in range(count)]
    wanted = [key for pair in keys for key in pair]
    if any(key not in huffman for key in wanted):
        raise NotReducible("its Huffman tables are missing")
    scan.tables = np.arange(2 * count, dtype=np.int32).reshape(count, 2)
    return np.stack([huffman[key] for key in wanted])


_LOOK = 9
"""Codes of at most this many bits are decoded by one look-up."""


@numba.njit(cache=True)
def _decoding_table(counts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """One row for a Huffman table (annex C, F.2.2.3): int32.

    [0, 512): length << 8 | symbol by the next 9 bits, 0 where the code is longer.
    [512, 529): largest code of each length, left-aligned to 17 bits; -1 where there is none.
    [529, 546): what to add to a code of that length to get its place among the symbols.
    [546, 802): symbols.
    """
    row = np.zeros(802, np.int32)
    row[512:529] = -1
    code, place = 0, 0
    for length in range(1, 17):
        row[529 + length] = place - code
        for _ in range(counts[length - 1]):
            if length <= _LOOK:
                first = code << (_LOOK - length)
                for i in range(1 << (_LOOK - length)):
                    if first + i < 512:
                        row[first + i] = length << 8 | symbols[place]
            code += 1
            place += 1
        if counts[length - 1]:
            row[512 + length] = code - 1
        code <<= 1
    row[546:802] = symbols
    return row


@numba.njit(cache=True)
def _read_blocks(data, samplings, tables, lookup, mcus, restart, starts, dc, symbols, values):
    """Decode all blocks (annex F.2.2), keep those of the first component as tokens.

    starts: where the tokens of each luma block begin, in the order of the file.
    dc: its DC coefficient. symbols, values: run/size symbols of AC and their extra bits.
    """
    at, bits, held = 0, np.uint64(0), 0
    block, token = 0, 0
    predicted = np.zeros(len(samplings), np.int32)
    for mcu in range(mcus):
        if restart and mcu and mcu % restart == 0:
            # A restart marker stands at a byte border: drop the padding bits.
            bits, held = np.uint64(0), 0
            while at + 1 < len(data) and not (data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7):
                at += 1
            at += 2
            predicted[:] = 0
        for component in range(len(samplings)):
            luma = component == 0
            for _ in range(samplings[component, 0] * samplings[component, 1]):
                position = 0
                if luma:
                    starts[block] = token
                while position < 64:
                    # Fill to at least 32 bits; behind a marker come zeros, counted as damage.
                    while held <= 48:
                        byte = np.uint64(0)
                        if at < len(data):
                            byte = np.uint64(data[at])
                            if byte == 0xFF:
                                if at + 1 < len(data) and data[at + 1] == 0:
                                    at += 2
                                else:
                                    byte = np.uint64(0)  # a marker: stay before it
                            else:
                                at += 1
                        bits = bits << np.uint64(8) | byte
                        held += 8
                    table = lookup[tables[component, 1 if position else 0]]
                    entry = table[np.int64(bits >> np.uint64(held - _LOOK)) & 511]
                    length = entry >> 8
                    if length:
                        symbol = entry & 255
                    else:
                        length = _LOOK + 1
                        code = np.int64(bits >> np.uint64(held - length)) & 1023
                        while length <= 16 and code > table[512 + length]:
                            length += 1
                            code = np.int64(bits >> np.uint64(held - length)) & ((1 << length) - 1)
                        if length > 16:
                            return _DAMAGED
                        place = code + table[529 + length]
                        if place < 0 or place > 255:
                            return _DAMAGED
                        symbol = table[546 + place]
                    held -= length
                    size = symbol & 15
                    value = 0
                    if size:
                        held -= size
                        value = np.int64(bits >> np.uint64(held)) & ((1 << size) - 1)
                    bits &= (np.uint64(1) << np.uint64(held)) - np.uint64(1)
                    if position == 0:
                        if symbol > 11:
                            return _DAMAGED
                        if size and value < 1 << (size - 1):
                            value -= (1 << size) - 1
                        predicted[component] += value
                        if luma:
                            dc[block] = predicted[component]
                        elif predicted[component]:
                            return _COLOURED
                        position = 1
                        continue
                    if luma:
                        symbols[token] = symbol
                        values[token] = value
                        token += 1
                    if symbol == _END_OF_BLOCK:
                        break
                    if not luma and size:
                        return _COLOURED
                    if size == 0 and symbol != _ZERO_RUN:
                        return _DAMAGED
                    position += (symbol >> 4) + 1
                    if position > 64:
                        return _DAMAGED
                if luma:
                    block += 1
    starts[block] = token
    # Bytes that the picture did not have were read as zeros; what is left must be the end.
    left = at - held // 8
    while at + 1 < len(data) and not (data[at] == 0xFF and data[at + 1] != 0):
        at += 1
    if left > len(data) or at + 1 >= len(data) or data[at + 1] != 0xD9:
        return _DAMAGED
    return _NEUTRAL


@numba.njit(cache=True)
def _raster_order(blocks_y, blocks_x, mcus_x, vertical, horizontal):
    """Place in the file of each luma block, row by row, without those beyond the border."""
    order = np.empty(blocks_y * blocks_x, np.int32)
    for y in range(blocks_y):
        for x in range(blocks_x):
            mcu = (y // vertical) * mcus_x + x // horizontal
            within = (y % vertical) * horizontal + x % horizontal
            order[y * blocks_x + x] = mcu * vertical * horizontal + within
    return order


@numba.njit(cache=True)
def _size_of(value):
    """Bits of a magnitude (annex F.1.2.1)."""
    magnitude = abs(value)
    size = 0
    while magnitude:
        magnitude >>= 1
        size += 1
    return size


@numba.njit(cache=True)
def _count_symbols(order, starts, dc, symbols):
    """How often each DC and AC symbol comes when the blocks are written in ``order``."""
    dc_counts = np.zeros(257, np.int64)
    ac_counts = np.zeros(257, np.int64)
    before = 0
    for block in order:
        dc_counts[_size_of(dc[block] - before)] += 1
        before = dc[block]
        for token in range(starts[block], starts[block + 1]):
            ac_counts[symbols[token]] += 1
    return dc_counts, ac_counts


@numba.njit(cache=True)
def _optimal_table(counts):
    """Code lengths and symbols of the best Huffman code of at most 16 bits (annex K.2).

    counts: int64 (257,). Returns how many codes there are of each length, int32 (17,), and
    the symbols by length, uint8 (n,).
    """
    frequency = counts.copy()
    frequency[256] = 1  # reserves the code of all ones, which JPEG forbids
    size = np.zeros(257, np.int32)
    others = np.full(257, -1, np.int32)
    while True:
        least, second = -1, -1
        for symbol in range(257):
            if frequency[symbol] == 0:
                continue
            if least < 0 or frequency[symbol] <= frequency[least]:
                second = least
                least = symbol
            elif second < 0 or frequency[symbol] <= frequency[second]:
                second = symbol
        if second < 0:
            break
        frequency[least] += frequency[second]
        frequency[second] = 0
        for tree in (least, second):
            link = tree
            size[link] += 1
            while others[link] >= 0:
                link = others[link]
                size[link] += 1
            if tree == least:
                tail = link
        others[tail] = second
    lengths = np.zeros(64, np.int32)
    for symbol in range(257):
        lengths[size[symbol]] += 1
    lengths[0] = 0
    for length in range(63, 16, -1):  # figure K.3: shorten codes of more than 16 bits
        while lengths[length] > 0:
            shorter = length - 2
            while lengths[shorter] == 0:
                shorter -= 1
            lengths[length] -= 2
            lengths[length - 1] += 1
            lengths[shorter + 1] += 2
            lengths[shorter] -= 1
    last = 16
    while lengths[last] == 0:
        last -= 1
    lengths[last] -= 1  # the reserved code
    listed = np.empty(256, np.uint8)
    count = 0
    for length in range(1, 64):
        for symbol in range(256):
            if size[symbol] == length:
                listed[count] = symbol
                count += 1
    return lengths[:17], listed[:count]


@numba.njit(cache=True)
def _codes(lengths, listed):
    """Code and length of each symbol: int32 (256, 2) (annex C)."""
    codes = np.zeros((256, 2), np.int32)
    code, place = 0, 0
    for length in range(1, 17):
        for _ in range(lengths[length]):
            codes[listed[place], 0] = code
            codes[listed[place], 1] = length
            code += 1
            place += 1
        code <<= 1
    return codes


@numba.njit(cache=True)
def _write_blocks(order, starts, dc, symbols, values, dc_codes, ac_codes, out):
    """Entropy-code the luma blocks in ``order`` (annex F.1.2); returns the bytes written."""
    at, bits, held = 0, np.uint64(0), 0
    before = 0
    for block in order:
        for token in range(starts[block] - 1, starts[block + 1]):
            if token < starts[block]:
                difference = dc[block] - before
                before = dc[block]
                symbol = _size_of(difference)
                value = difference if difference >= 0 else difference + (1 << symbol) - 1
                code, length = dc_codes[symbol, 0], dc_codes[symbol, 1]
            else:
                symbol = np.int64(symbols[token])
                value = np.int64(values[token])
                code, length = ac_codes[symbol, 0], ac_codes[symbol, 1]
            size = symbol & 15
            bits = bits << np.uint64(length + size) | np.uint64(code << size | value)
            held += length + size
            while held >= 8:
                held -= 8
                byte = np.uint8(bits >> np.uint64(held) & np.uint64(255))
                out[at] = byte
                at += 1
                if byte == 0xFF:
                    out[at] = 0
                    at += 1
    if held:
        byte = np.uint8(
            (bits << np.uint64(8 - held) | np.uint64((1 << (8 - held)) - 1)) & np.uint64(255)
        )
        out[at] = byte
        at += 1
        if byte == 0xFF:
            out[at] = 0
            at += 1
    return at


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
