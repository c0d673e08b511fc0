"""Compiled entropy coding of baseline JPEG: writes the blocks of one plane with optimal tables.

Names, procedures and figures are those of ITU-T T.81, annexes B, C, F and K.
"""

from __future__ import annotations

import numba
import numpy as np

from maskdepth.convert.jpeg.memory import copy, find
from maskdepth.convert.jpeg.vectors import bit_length, store_u64_big_endian, trailing_zeros
from maskdepth.convert.jpeg.zigzag import PLACES, nonzero_positions

END_OF_BLOCK, ZERO_RUN = 0x00, 0xF0
_DC = 256  # is added to the symbol of a DC coefficient
_TAKEN = np.iinfo(np.int64).max


@numba.njit(cache=True)
def write_blocks(blocks: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy-code blocks of one component (annex F.1.2) with Huffman tables made for them.

    blocks: int16, flat, 64 quantised coefficients of each by rows, as 8-bit samples have. others:
    the same; their AC coefficients are counted for the table but not written. Returns the DC and
    the AC table as a segment has them (B.2.4.2), and the entropy-coded data: uint8.
    """
    tokens = np.empty(blocks.size, np.int32)
    counts = np.zeros(2 * _DC, np.int64)
    used = _find_tokens(blocks, tokens, counts)
    if len(others):
        more = np.zeros(2 * _DC, np.int64)
        _find_tokens(others, np.empty(others.size, np.int32), more)
        counts[:_DC] += more[:_DC]
    ac_lengths, ac_symbols = optimal_table(counts[:_DC])
    dc_lengths, dc_symbols = optimal_table(counts[_DC:])
    codes = np.append(codes_of(ac_lengths, ac_symbols), codes_of(dc_lengths, dc_symbols))
    tables = np.empty(34 + len(dc_symbols) + len(ac_symbols), np.uint8)
    tables[0] = 0x00
    tables[1:17] = dc_lengths[1:]
    at = 17 + len(dc_symbols)
    tables[17:at] = dc_symbols
    tables[at] = 0x10
    tables[at + 1 : at + 17] = ac_lengths[1:]
    tables[at + 17 :] = ac_symbols
    return tables, stuff(_write_tokens(tokens[:used], counts, codes))


@numba.njit(cache=True)
def _find_tokens(blocks: np.ndarray, tokens: np.ndarray, counts: np.ndarray) -> int:
    """Symbols and extra bits of blocks (annex F.1.2); returns the number of tokens.

    tokens: extra bits << 9 | symbol, with `_DC` added for DC. counts: of AC symbols, then of DC.
    """
    at, before = np.uint64(0), np.int64(0)
    start = np.uint64(blocks.ctypes.data)
    for block in range(np.uint64(0), np.uint64(blocks.size), np.uint64(64)):
        dc = np.int64(blocks[block])
        token = _token(_DC, dc - before)
        before = dc
        last = np.uint64(0)
        left = nonzero_positions(start + np.uint64(2) * block) & ~np.uint64(1)
        while left:
            tokens[at] = token
            counts[np.uint64(token & 511)] += 1
            at += np.uint64(1)
            position = trailing_zeros(left)
            left &= left - np.uint64(1)
            run = position - last - np.uint64(1)
            last = position
            while run > np.uint64(15):
                tokens[at] = ZERO_RUN
                counts[np.uint64(ZERO_RUN)] += 1
                at += np.uint64(1)
                run -= np.uint64(16)
            token = _token(np.int64(run) << 4, np.int64(blocks[block + PLACES[position]]))
        tokens[at] = token
        counts[np.uint64(token & 511)] += 1
        at += np.uint64(1)
        if last < np.uint64(63):
            tokens[at] = END_OF_BLOCK
            counts[np.uint64(END_OF_BLOCK)] += 1
            at += np.uint64(1)
    return int(at)


@numba.njit(cache=True)
def _token(symbol: int, value: int) -> int:
    """The extra bits of a value (F.1.2.1) << 9 | ``symbol`` + their number."""
    size = bit_length(abs(value))
    # Without a branch, because signs cannot be predicted.
    return int((value + (value >> 63 & (1 << size) - 1)) << 9 | symbol | size)


@numba.njit(cache=True)
def _take_least(keys: np.ndarray) -> tuple[int, int]:
    """Remove the least key; returns its position and frequency."""
    least = keys[0]
    for key in keys:
        least = min(least, key)
    place = 511 - (least & 511)
    keys[place] = _TAKEN
    return place, least >> 9


@numba.njit(cache=True)
def optimal_table(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code lengths and symbols of the best Huffman code of at most 16 bits (annex K.2).

    counts: int64 (256,). Returns the number of codes of each length, int32 (17,), and the
    symbols by length, uint8 (n,).
    """
    used = np.flatnonzero(counts)
    size = np.zeros(len(used) + 1, np.int32)
    others = np.full(len(used) + 1, -1, np.int32)
    # Frequency and position as one number, so that the least key is a plain minimum, and the later
    # of symbols with equal frequency is first, as in the annex.
    keys = np.empty(len(used) + 1, np.int64)
    keys[:-1] = counts[used] << 9 | (511 - np.arange(len(used)))
    keys[-1] = 1 << 9 | (511 - len(used))  # reserves the code of all ones, forbidden in JPEG
    for _ in range(len(used)):
        least, first = _take_least(keys)
        second, then = _take_least(keys)
        keys[least] = (first + then) << 9 | (511 - least)
        tail = least
        size[tail] += 1
        while others[tail] >= 0:
            tail = others[tail]
            size[tail] += 1
        others[tail] = second
        while second >= 0:
            size[second] += 1
            second = others[second]
    lengths = np.zeros(64, np.int32)
    for bits in size:
        lengths[bits] += 1
    for length in range(63, 16, -1):  # figure K.3: shorten codes of more than 16 bits
        while lengths[length] > 0:
            shorter = length - 2
            while lengths[shorter] == 0:
                shorter -= 1
            lengths[length] -= 2
            lengths[length - 1] += 1
            lengths[shorter + 1] += 2
            lengths[shorter] -= 1
    lengths[np.flatnonzero(lengths)[-1]] -= 1  # the reserved code
    by_length = np.argsort(size[:-1], kind="mergesort")  # stable
    return lengths[:17], used[by_length].astype(np.uint8)


@numba.njit(cache=True)
def codes_of(lengths: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Each symbol's code << 8 | length: int64 (256,) (annex C)."""
    codes = np.zeros(256, np.int64)
    code, place = 0, 0
    for length in range(1, 17):
        for _ in range(lengths[length]):
            codes[listed[place]] = code << 8 | length
            code += 1
            place += 1
        code <<= 1
    return codes


@numba.njit(cache=True)
def _write_tokens(tokens: np.ndarray, counts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The bits of tokens, filled with ones to a byte; counts, codes: by symbol, as in a token."""
    bits = 0
    for symbol in range(len(counts)):
        bits += counts[symbol] * ((codes[symbol] & 255) + (symbol & 15))
    out = np.empty(bits // 8 + 9, np.uint8)
    start = np.uint64(out.ctypes.data)
    at = start
    word, held = np.uint64(0), np.uint64(0)  # the ``held`` highest bits are to be written
    for token in tokens:
        size, code = np.uint64(token & 15), np.uint64(codes[np.uint64(token & 511)])
        held += (code & np.uint64(255)) + size
        word |= (code >> np.uint64(8) << size | np.uint64(token >> 9)) << (np.uint64(64) - held)
        store_u64_big_endian(at, word)
        at += held >> np.uint64(3)
        word <<= held & np.uint64(56)
        held &= np.uint64(7)
    if held:
        store_u64_big_endian(at, word | ~np.uint64(0) >> held)
        at += np.uint64(1)
    return out[: np.int64(at - start)]


@numba.njit(cache=True)
def stuff(data: np.ndarray) -> np.ndarray:
    """Entropy-coded data with a zero after each byte of 0xFF (B.1.1.5)."""
    out = np.empty(2 * len(data), np.uint8)
    start, target = np.uint64(data.ctypes.data), np.uint64(out.ctypes.data)
    at, size, end = np.uint64(0), np.uint64(0), np.uint64(len(data))
    while at < end:
        found = find(start + at, 0xFF, end - at)
        length = found - start - at + np.uint64(1) if found else end - at
        copy(target + size, start + at, length)
        at += length
        size += length
        if found:
            out[size] = 0
            size += np.uint64(1)
    return out[: np.int64(size)]
