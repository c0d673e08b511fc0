"""The record of a JPEG: the blocks in which it differs from a base, as tokens.

The encoder of a data set is deterministic: where a composite shows its background, the quantised
coefficients are those of any other composite of it. docs/format.md describes the record;
`convert.jpeg.difference` decodes it.
"""

from __future__ import annotations

import numba
import numpy as np

from maskdepth.convert.jpeg.vectors import trailing_zeros
from maskdepth.convert.jpeg.zigzag import PLACES, nonzero_positions

DIFFERENCE = 0
"""First byte of a record; a JPEG stored instead begins with 0xFF."""
STEP, VALUE, ESCAPE, END = 7, 15, -8, 128
"""Of a token: masks of its step and its value, the value that a byte follows, the bit of an end."""


@numba.njit(cache=True, nogil=True)
def is_record(stored: np.ndarray) -> bool:
    """Whether stored bytes are a record; else they are a JPEG. stored: uint8, flat."""
    return len(stored) > 0 and stored[0] == DIFFERENCE


@numba.njit(cache=True, nogil=True)
def write_record(
    coefficients: np.ndarray, base: np.ndarray, mcus: tuple[int, int], blocks: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Write the blocks that differ from the base; returns the bytes, and how many blocks differ.

    coefficients, base: int16 (MCUs, blocks of an MCU, 64), quantised, by rows of a block. out:
    uint8; the number of bytes is -1 if it may be too short.
    """
    map_bytes = -(-mcus[1] // 8)
    at = 1 + mcus[0] * map_bytes
    if at + len(coefficients) > len(out):
        return -1, 0
    out[0] = DIFFERENCE
    out[1:at] = 0
    listed = np.empty(coefficients.size // 64, np.int64)
    differing = 0
    for mcu in range(len(coefficients)):
        flags = 0
        for number in range(len(blocks)):
            differs = _differs(coefficients, base, mcu, number)
            flags |= differs << number
            listed[differing] = mcu * len(blocks) + number
            differing += differs
        if flags:
            row, column = mcu // mcus[1], mcu % mcus[1]
            out[1 + row * map_bytes + column // 8] |= 1 << column % 8
            if len(blocks) > 1:
                out[at] = flags
                at += 1
    values = coefficients.reshape(-1)
    predicted = np.zeros(3, np.int64)
    for block in listed[:differing]:
        component = blocks[block % len(blocks), 0]
        dc = np.int64(values[64 * block])
        at = _write_block(values, 64 * block, dc - predicted[component], out, at)
        if at < 0:
            break
        predicted[component] = dc
    return at, differing


@numba.njit(cache=True, nogil=True)
def _differs(coefficients: np.ndarray, base: np.ndarray, mcu: int, number: int) -> int:
    """1 if a block is not that of the base, else 0."""
    difference = np.int16(0)
    for i in range(64):
        difference |= coefficients[mcu, number, i] ^ base[mcu, number, i]
    return int(difference != 0)


@numba.njit(cache=True, nogil=True)
def _write_block(values: np.ndarray, block: int, dc: int, out: np.ndarray, at: int) -> int:
    """Write the tokens of a block; returns their end, -1 if ``out`` may be too short.

    values: flat, the block begins at ``block``. dc: as its DC coefficient is coded.
    """
    left = nonzero_positions(np.uint64(values.ctypes.data + 2 * block)) & ~np.uint64(1)
    if dc != 0 or left == 0:
        left |= np.uint64(1)
    before = np.uint64(0)
    while left:
        position = trailing_zeros(left)
        left &= left - np.uint64(1)
        value = int(values[np.uint64(block) + PLACES[position]]) if position else dc
        step = np.int64(position - before)
        before = position
        if at + 12 + 2 * (abs(value) >> 6) > len(out):
            return -1
        while step > STEP:
            out[at] = STEP | 8 << 3
            at += 1
            step -= STEP
        while value < -128 or value > 127:
            part = min(max(value, -128), 127)
            out[at] = step
            out[at + 1] = part & 255
            at += 2
            value -= part
            step = np.int64(0)
        end = 0 if left else END
        if -7 <= value <= 7:
            out[at] = step | (value + 8) << 3 | end
            at += 1
        else:
            out[at] = step | end
            out[at + 1] = value & 255
            at += 2
    return at
