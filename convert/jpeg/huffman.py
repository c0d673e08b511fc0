"""Compiled entropy coding of baseline JPEG: reads the blocks of a scan, writes those of one plane.

Names, procedures and figures are those of ITU-T T.81, annexes C, F and K.
"""

from __future__ import annotations

import numba
import numpy as np

END_OF_BLOCK, ZERO_RUN = 0x00, 0xF0
NEUTRAL, COLOURED, CORRUPT = 0, 1, 2  # outcomes of `read_blocks`
_LARGEST_DC = 2047  # of 8-bit samples, quantised by at least 1: 11 bits and a sign
_TAKEN = np.iinfo(np.int64).max
_LOOK = 9  # codes of at most this many bits are decoded with one table access


@numba.njit(cache=True)
def decoding_table(counts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """One row for a Huffman table (annex C, F.2.2.3): int32.

    [0, 512): length << 8 | symbol by the next 9 bits, 0 where the code is longer.
    [512, 529): largest code of each length; -1 if there is none.
    [529, 546): what to add to a code of that length to get its position among the symbols.
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
def _after_marker(data: np.ndarray, at: int, marker: int) -> int:
    """Position after a marker at ``at``, with or without fill bytes (annex B.1.1.2); else -1."""
    while at + 1 < len(data) and data[at] == 0xFF and data[at + 1] == 0xFF:
        at += 1
    if at + 1 < len(data) and data[at] == 0xFF and data[at + 1] == marker:
        return at + 2
    return -1


@numba.njit(cache=True)
def read_blocks(
    data: np.ndarray, samplings: np.ndarray, tables: np.ndarray, mcus: int, restart: int,
    starts: np.ndarray, dc: np.ndarray, tokens: np.ndarray, ac_counts: np.ndarray,
) -> int:  # fmt: skip
    """Decode all blocks (annex F.2.2) and keep those of the first component as tokens.

    Every byte must belong to a block or be an expected marker; else the outcome is CORRUPT.

    starts: where the tokens of each luma block begin, in the order of the file.
    dc: the DC coefficient of each luma block.
    tokens: AC coefficients, as extra bits << 8 | run/size symbol.
    ac_counts: the number of occurrences of each AC symbol, which is increased.
    """
    # Only the ``held`` lowest bits are unread.
    at, bits, held = 0, np.uint64(0), 0
    padding = 0  # how many of the bits held are not in the file
    block, token = 0, 0
    predicted = np.zeros(len(samplings), np.int32)
    for mcu in range(mcus):
        if restart and mcu and mcu % restart == 0:
            # At a byte border: drop the padding bits. A byte of them would belong to no block.
            at = _after_marker(data, at, 0xD0 + (mcu // restart - 1) % 8)
            if at < 0 or held - padding >= 8:
                return CORRUPT
            bits, held, padding = np.uint64(0), 0, 0
            predicted[:] = 0
        for component in range(len(samplings)):
            luma = component == 0
            for _ in range(samplings[component, 0] * samplings[component, 1]):
                position = 0
                if luma:
                    starts[block] = token
                while position < 64:
                    # Fill to 49 bits or more: a code and its extra bits take 32 at most.
                    while held <= 48:
                        byte = np.uint64(0)
                        if at < len(data) and data[at] != 0xFF:
                            byte = np.uint64(data[at])
                            at += 1
                        elif at + 1 < len(data) and data[at + 1] == 0:
                            byte = np.uint64(0xFF)  # stuffed, annex B.1.1.5
                            at += 2
                        else:
                            padding += 8  # at a marker or the end of the file
                        bits = bits << np.uint64(8) | byte
                        held += 8
                    table = tables[2 * component + (1 if position else 0)]
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
                            return CORRUPT
                        place = code + table[529 + length]
                        if place < 0 or place > 255:
                            return CORRUPT
                        symbol = table[546 + place]
                    held -= length
                    size = symbol & 15
                    value = 0
                    if size:
                        held -= size
                        value = np.int64(bits >> np.uint64(held)) & ((1 << size) - 1)
                    if held < padding:
                        return CORRUPT
                    if position == 0:
                        if symbol > 11:
                            return CORRUPT
                        if size and value < 1 << (size - 1):
                            value -= (1 << size) - 1
                        predicted[component] += value
                        if abs(predicted[component]) > _LARGEST_DC:
                            return CORRUPT
                        if luma:
                            dc[block] = predicted[component]
                        elif predicted[component]:
                            return COLOURED
                        position = 1
                        continue
                    if luma:
                        tokens[token] = value << 8 | symbol
                        token += 1
                        ac_counts[symbol] += 1
                    if symbol == END_OF_BLOCK:
                        break
                    if not luma and size:
                        return COLOURED
                    if size == 0 and symbol != ZERO_RUN:
                        return CORRUPT
                    position += (symbol >> 4) + 1
                    if position > 64:
                        return CORRUPT
                if luma:
                    block += 1
    starts[block] = token
    if held - padding >= 8 or _after_marker(data, at, 0xD9) < 0:
        return CORRUPT
    return NEUTRAL


@numba.njit(cache=True)
def _size_of(value: int) -> int:
    """Bits of a magnitude (annex F.1.2.1)."""
    size = 0
    while abs(value) >> size:
        size += 1
    return size


@numba.njit(cache=True)
def count_dc(order: np.ndarray, dc: np.ndarray) -> np.ndarray:
    """Occurrences of each DC symbol if the blocks are written in ``order``: int64 (257,)."""
    counts = np.zeros(257, np.int64)
    before = 0
    for block in order:
        counts[_size_of(dc[block] - before)] += 1
        before = dc[block]
    return counts


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

    counts: int64 (257,). Returns the number of codes of each length, int32 (17,), and the
    symbols by length, uint8 (n,).
    """
    used = np.append(np.flatnonzero(counts[:256]), 256)
    size = np.zeros(len(used), np.int32)
    others = np.full(len(used), -1, np.int32)
    # Frequency and position as one number, so that the least key is a plain minimum, and the later
    # of symbols with equal frequency is first, as in the annex.
    keys = counts[used] << 9 | (511 - np.arange(len(used)))
    keys[-1] = 1 << 9 | (512 - len(used))  # reserves the code of all ones, forbidden in JPEG
    for _ in range(len(used) - 1):
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
def _flush(bits: np.uint64, held: int, count: int, out: np.ndarray, at: int) -> int:
    """Write the ``count`` (0 to 4) highest bytes of the bits held, with stuffing.

    Returns the next position.
    """
    word = bits >> np.uint64(held - 8 * count)
    # If one of the four low bytes is 0xFF, its complement has a byte of zero.
    others = ~word & np.uint64(0xFFFFFFFF)
    stuffed = (others - np.uint64(0x01010101)) & ~others & np.uint64(0x80808080) != 0
    for i in range(count):
        byte = np.uint8(word >> np.uint64(8 * (count - 1 - i)) & np.uint64(255))
        out[at] = byte
        at += 1
        if stuffed and byte == 0xFF:
            out[at] = 0
            at += 1
    return at


@numba.njit(cache=True)
def write_blocks(
    order: np.ndarray, starts: np.ndarray, dc: np.ndarray, tokens: np.ndarray,
    dc_codes: np.ndarray, ac_codes: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """Entropy-code the luma blocks in ``order`` (annex F.1.2); returns the bytes written."""
    at, bits, held = 0, np.uint64(0), 0
    before = 0
    for block in order:
        difference = dc[block] - before
        before = dc[block]
        size = _size_of(difference)
        value = difference if difference >= 0 else difference + (1 << size) - 1
        code = dc_codes[size]
        bits = bits << np.uint64((code & 255) + size) | np.uint64(code >> 8 << size | value)
        held += (code & 255) + size
        if held >= 32:
            at = _flush(bits, held, 4, out, at)
            held -= 32
        for token in tokens[starts[block] : starts[block + 1]]:
            size = token & 15
            code = ac_codes[token & 255]
            extra = np.int64(token) >> 8
            bits = bits << np.uint64((code & 255) + size) | np.uint64(code >> 8 << size | extra)
            held += (code & 255) + size
            if held >= 32:
                at = _flush(bits, held, 4, out, at)
                held -= 32
    filling = -held % 8  # the last byte is filled with ones
    bits = bits << np.uint64(filling) | np.uint64((1 << filling) - 1)
    held += filling
    return int(_flush(bits, held, held // 8, out, at))


@numba.njit(cache=True)
def recode(
    data: np.ndarray, samplings: np.ndarray, tables: np.ndarray, mcus: int, restart: int,
    order: np.ndarray, starts: np.ndarray, dc: np.ndarray, tokens: np.ndarray, out: np.ndarray,
) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Read a scan and write its luma blocks in ``order`` to ``out`` with optimal tables.

    Returns the outcome of `read_blocks`, the number of bytes written, and the DC and AC tables,
    each as counts by length and symbols.
    """
    ac_counts = np.zeros(257, np.int64)
    outcome = read_blocks(data, samplings, tables, mcus, restart, starts, dc, tokens, ac_counts)
    if outcome != NEUTRAL:
        none, nothing = np.empty(0, np.int32), np.empty(0, np.uint8)
        return outcome, 0, none, nothing, none, nothing
    dc_lengths, dc_listed = optimal_table(count_dc(order, dc))
    ac_lengths, ac_listed = optimal_table(ac_counts)
    dc_codes = codes_of(dc_lengths, dc_listed)
    ac_codes = codes_of(ac_lengths, ac_listed)
    size = write_blocks(order, starts, dc, tokens, dc_codes, ac_codes, out)
    return outcome, size, dc_lengths, dc_listed, ac_lengths, ac_listed
