"""Reads the quantised DCT coefficients of a baseline JPEG.

Names, procedures and tables are those of ITU-T T.81 (JPEG), annexes B, C and F.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numba
import numpy as np

from maskdepth.convert.jpeg.layout import NotBaseline, read_headers
from maskdepth.convert.jpeg.memory import copy, find
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.jpeg.vectors import load_u64_big_endian
from maskdepth.convert.jpeg.zigzag import ZIGZAG

_BLOCK = 64
LARGEST_DC = 2047  # of 8-bit samples, quantised by at least 1: 11 bits and a sign

# A Huffman table is 32-bit numbers: an entry for each value of the next `_LOOK` bits, 0 where the
# code is longer; then what `_long_code` needs: by length from 0 to 16, the least 16 bits that are
# beyond the codes of that length, and what makes a code the place of its symbol; then an entry for
# each symbol, by place. An entry has, from the lowest bit on:
#   8 bits: bits of the code and its extra bits, 1 to 27; 0 in an entry that is not used
#   8 bits: extra bits, 0 to 11
#   16 bits: how far the symbol moves the position in its block
_LOOK = 10
_LIMITS = 1 << _LOOK
_OFFSETS = _LIMITS + 17
_ENTRIES = _OFFSETS + 17
TABLE = _ENTRIES + 256
_END_OF_BLOCK, _INVALID = 128, 256  # moves, larger than all others
_NO_CODE = _INVALID << 16 | 1

# Beyond the last coefficient a value is 0 (at the end of a block), or the block is corrupt.
_PLACES = np.append(ZIGZAG, np.full(_INVALID, 63)).astype(np.uint64)
_AHEAD = 256  # bytes after the data that are read before its end is seen: a block and a word


class Coefficients(NamedTuple):
    """The quantised DCT coefficients of an image.

    quantisers: uint8 (components, 64). values: int16 (MCUs, blocks of an MCU, 64), DC coefficients
    within -2047..2047, others within -1023..1023. Both by rows of a block.
    """

    geometry: Geometry
    quantisers: np.ndarray
    values: np.ndarray


def read_coefficients(source: bytes) -> Coefficients:
    """Read a baseline JPEG of 8 bits, gray or YCbCr, whose only scan has all its components.

    Every byte of the scan must belong to a block or be an expected marker. Raises NotBaseline.
    """
    layout, bodies, start = read_headers(source)
    tables, known = read_tables(bodies)
    if known & layout.needed != layout.needed:
        raise NotBaseline("its Huffman tables are missing")
    geometry = layout.geometry
    mcus, blocks = geometry.mcus[0] * geometry.mcus[1], len(geometry.components)
    if mcus * blocks > 4 * len(source):  # a block takes at least two bits
        raise NotBaseline("its size and its data do not agree")
    values = np.zeros((mcus, blocks, _BLOCK), np.int16)
    interval = min(layout.restart or mcus, mcus)
    if not _read_scan(
        np.frombuffer(source, np.uint8), start, tables, layout.selectors, geometry.components,
        interval, values.reshape(-1),
    ):  # fmt: skip
        raise NotBaseline("its entropy-coded data is corrupt")
    return Coefficients(geometry, layout.quantisers, values)


@numba.njit(cache=True, nogil=True)
def _read_scan(
    source: np.ndarray, at: int, tables: np.ndarray, selectors: np.ndarray,
    components: np.ndarray, interval: int, out: np.ndarray,
) -> bool:  # fmt: skip
    """Decode all blocks into zeros; False unless every byte belongs to a block or a marker.

    tables: flat, as `read_tables` fills them. selectors: DC table << 4 | AC table of each
    component. components: of the blocks of an MCU. interval: MCUs from a marker to the next one.
    """
    step = interval * len(components) * _BLOCK
    data = np.empty(max(len(source) - at, 0) + _AHEAD, np.uint8)
    for number, first in enumerate(range(0, len(out), step)):
        size, at = unstuff(source, at, data)
        is_last = first + step >= len(out)
        if at < 0 or source[at] != (0xD9 if is_last else 0xD0 + number % 8):
            return False
        at += 1
        blocks = out[first : first + step]
        if not _read_interval(data, size, tables, selectors, components, blocks):
            return False
    return True


@numba.njit(cache=True, nogil=True)
def unstuff(source: np.ndarray, at: int, data: np.ndarray) -> tuple[int, int]:
    """Copy entropy-coded data up to a marker without stuffed zeros (annex B.1.1.5), and add zeros.

    Returns its size and where the second byte of the marker is, -1 if there is none.
    """
    size = 0
    start, target = source.ctypes.data, data.ctypes.data
    while at < len(source):
        found = int(find(np.uint64(start + at), 0xFF, np.uint64(len(source) - at)))
        if found == 0:
            break
        length = found - start - at + 1
        copy(np.uint64(target + size), np.uint64(start + at), np.uint64(length))
        at += length
        size += length
        if at < len(source) and source[at] == 0:
            at += 1
            continue
        while at < len(source) and source[at] == 0xFF:  # fill bytes (B.1.1.2)
            at += 1
        if at == len(source) or source[at] == 0:
            break
        data[size - 1 : size - 1 + _AHEAD] = 0
        return size - 1, at
    return 0, -1


@numba.njit(cache=True, nogil=True)
def _read_interval(
    data: np.ndarray, size: int, tables: np.ndarray, selectors: np.ndarray,
    components: np.ndarray, out: np.ndarray,
) -> bool:  # fmt: skip
    """Decode blocks into zeros (annex F.2.2); False unless they take all ``size`` bytes."""
    # Unsigned numbers, because a signed index would be compared with 0 at each access.
    start = np.uint64(data.ctypes.data)
    after, word, held = start, np.uint64(0), np.uint64(0)
    predicted = np.zeros(3, np.int64)
    block = np.uint64(0)
    left = np.int64(8 * size)
    while block < np.uint64(len(out)):
        for component in components:
            dc = np.uint64((selectors[component] >> 4) * TABLE)
            ac = np.uint64((4 | selectors[component] & 15) * TABLE)
            # At least 56 bits: two symbols, of at most 27 bits.
            word, after, held = refill(word, after, held)
            entry = look_up(word, tables, dc)
            predicted[component] += value_of(word, entry)
            word, held = word << (entry & np.uint64(63)), held - (entry & np.uint64(63))
            position = entry >> np.uint64(16)
            if abs(predicted[component]) > LARGEST_DC:
                return False
            out[block] = predicted[component]
            while position < np.uint64(63):
                word, held, position = _read_ac(word, held, position, tables, ac, out, block)
                if position >= np.uint64(63):
                    break
                word, after, held = refill(word, after, held)
                word, held, position = _read_ac(word, held, position, tables, ac, out, block)
            left = np.int64(8 * size) - np.int64(8 * (after - start)) + np.int64(held)
            if left < 0 or (
                position != np.uint64(63) and position - np.uint64(_END_OF_BLOCK) > np.uint64(62)
            ):
                return False
            block += np.uint64(_BLOCK)
    return bool(left < 8)


@numba.njit(cache=True, nogil=True)
def _read_ac(
    word: np.uint64, held: np.uint64, position: np.uint64, tables: np.ndarray, table: np.uint64,
    out: np.ndarray, block: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64]:  # fmt: skip
    """Read a symbol after ``position`` and store its value; what is left, and its position."""
    entry = look_up(word, tables, table)
    position += entry >> np.uint64(16)
    out[block + _PLACES[position]] = value_of(word, entry)
    bits = entry & np.uint64(63)
    return word << bits, held - bits, position


@numba.njit(cache=True, nogil=True)
def refill(
    word: np.uint64, after: np.uint64, held: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Fill a word, of which the ``held`` highest bits are not read, with the bytes at ``after``."""
    word |= load_u64_big_endian(after) >> held
    return word, after + np.uint64((np.uint64(63) - held) >> np.uint64(3)), held | np.uint64(56)


@numba.njit(cache=True, nogil=True)
def look_up(word: np.uint64, tables: np.ndarray, table: np.uint64) -> np.uint64:
    """The entry of the symbol at the highest bits of a word."""
    entry = np.uint64(tables[table + (word >> np.uint64(64 - _LOOK))])
    return entry if entry else _long_code(word, tables, table)


@numba.njit(cache=True, nogil=True)
def _long_code(word: np.uint64, tables: np.ndarray, table: np.uint64) -> np.uint64:
    """The entry of a symbol whose code is longer than `_LOOK` (F.2.2.3)."""
    bits = word >> np.uint64(48)
    for length in range(_LOOK + 1, 17):
        if bits < tables[table + np.uint64(_LIMITS + length)]:
            offset = tables[table + np.uint64(_OFFSETS + length)]
            place = (bits >> np.uint64(16 - length)) + offset & np.uint64(255)
            return np.uint64(tables[table + np.uint64(_ENTRIES) + place])
    return np.uint64(_NO_CODE)


@numba.njit(cache=True, nogil=True)
def value_of(word: np.uint64, entry: np.uint64) -> np.int64:
    """The value of the extra bits of a symbol at the highest bits of a word (F.2.2.1)."""
    ones = (np.uint64(1) << (entry >> np.uint64(8) & np.uint64(15))) - np.uint64(1)
    extra = word >> (np.uint64(64) - (entry & np.uint64(63))) & ones
    return np.int64(extra - ones if extra <= ones >> np.uint64(1) else extra)


@functools.lru_cache(maxsize=16)
def read_tables(bodies: bytes) -> tuple[np.ndarray, int]:
    """Huffman tables of all segments: uint32, four for DC and four for AC; a bit for each of them.

    Cached because many encoders write the tables of annex K.
    """
    tables = np.empty(8 * TABLE, np.uint32)
    known = _fill_tables(np.frombuffer(bodies, np.uint8), tables)
    if known < 0:
        raise NotBaseline("its Huffman tables are corrupt")
    return tables, known


@numba.njit(cache=True, nogil=True)
def _fill_tables(bodies: np.ndarray, tables: np.ndarray) -> int:
    """Read Huffman tables (B.2.4.2); returns a bit for each that is set, -1 if one is corrupt."""
    at, known = 0, 0
    while at < len(bodies):
        kind, number = int(bodies[at] >> 4), int(bodies[at] & 15)
        if kind > 1 or number > 3 or at + 17 > len(bodies):
            return -1
        total = int(bodies[at + 1 : at + 17].sum())
        if total > 256 or at + 17 + total > len(bodies):
            return -1
        row = kind << 2 | number
        if not _fill_table(bodies, at + 1, tables, row * TABLE):
            return -1
        known |= 1 << row
        at += 17 + total
    return known


@numba.njit(cache=True, nogil=True)
def _fill_table(bodies: np.ndarray, at: int, tables: np.ndarray, table: int) -> bool:
    """Prepare the Huffman table at ``at`` (annex C); False if it is corrupt."""
    is_dc = table < 4 * TABLE
    code, place, filled = 0, 0, table
    for length in range(1, 17):
        tables[table + _OFFSETS + length] = place - code & 0xFFFFFFFF
        for _ in range(bodies[at + length - 1]):
            symbol = np.int64(bodies[at + 16 + place])
            if is_dc and symbol > 15:
                return False
            entry = _entry(symbol, length, is_dc)
            tables[table + _ENTRIES + place] = entry
            code += 1
            place += 1
            if length <= _LOOK:
                stop = table + min(code << (_LOOK - length), 1 << _LOOK)
                tables[filled:stop] = entry
                filled = stop
        if code >= 1 << length:  # the code of all ones is reserved
            return False
        tables[table + _LIMITS + length] = code << (16 - length)
        code <<= 1
    tables[filled : table + (1 << _LOOK)] = 0
    return True


@numba.njit(cache=True, nogil=True)
def _entry(symbol: int, length: int, is_dc: bool) -> int:
    """The entry of a symbol with a code of ``length`` bits (F.1.2)."""
    size = symbol & 15
    move = 0 if is_dc else (symbol >> 4) + 1
    if symbol == 0 and not is_dc:
        move = _END_OF_BLOCK
    elif size > (11 if is_dc else 10) or (size == 0 and symbol != 0xF0 and not is_dc):
        move, size = _INVALID, 0
    return move << 16 | size << 8 | length + size
