"""Encodes images that differ from one image in a rectangle, by encoding the rectangle alone.

The bits of all other MCUs are those of the one image. Only the DC coefficients at the borders
between the two, which a JPEG stores as differences from their predecessors, are written again. The
bytes are those of libjpeg-turbo for the complete image.

Names and procedures are those of ITU-T T.81 (JPEG), annexes A, B and F.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numba
import numpy as np

from maskdepth.convert.jpeg.coefficients import (
    LARGEST_DC,
    TABLE,
    look_up,
    read_tables,
    refill,
    unstuff,
    value_of,
)
from maskdepth.convert.jpeg.huffman import codes_of, stuff
from maskdepth.convert.jpeg.layout import read_headers
from maskdepth.convert.jpeg.memory import copy
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.jpeg.vectors import bit_length, load_u64_big_endian, store_u64_big_endian

MCU = 16
"""Largest height and width of an MCU of these images, in pixels."""
_SLACK = 8  # bytes beyond the data that a load or a store of a word may touch
Writer = tuple[np.uint64, np.uint64, np.uint64]
"""The address of the next byte, and a word whose ``held`` highest bits go there."""
_STEP = 56  # bits that fit into a word after an incomplete byte


def encode(pixels: np.ndarray, quality: int) -> bytes:
    """A JPEG by OpenCV's libjpeg-turbo, with its accurate DCT and the Huffman tables of annex K.

    The coefficients are those of Pillow. (TurboJPEG, as in simplejpeg, has a faster DCT of less
    accuracy, and Pillow takes three times as long for an image of 112x64.)

    pixels: uint8 (H, W, 3) RGB, stored with chroma of half the height and width, or (H, W).
    """
    options = [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]  # fmt: skip
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", ordered, options)
    return data.tobytes()


class _Blocks(NamedTuple):
    """The entropy-coded blocks of an image.

    data: uint8, without stuffed zeros. places: int64 (blocks, 2), the first bit of a block and the
    first bit after its DC coefficient; the last row is the end. dcs: int64 (blocks,).
    """

    data: np.ndarray
    places: np.ndarray
    dcs: np.ndarray


class EncodedImage:
    """An image of which parts can be replaced."""

    def __init__(self, pixels: np.ndarray, quality: int) -> None:
        """pixels: as of `encode`."""
        self._quality = quality
        self._jpeg = encode(pixels, quality)
        layout, bodies, self._start = read_headers(self._jpeg)
        self._geometry, self._selectors = layout.geometry, layout.selectors
        self._dc_tables = layout.selectors >> 4
        self._tables, _ = read_tables(bodies)
        self._codes = _dc_codes(bodies)
        # The frame header, which has the size, is before the Huffman tables.
        self._fixed = self._jpeg.index(b"\xff\xc4")
        self._blocks = self._read(self._jpeg, layout.geometry)

    def replaced(self, pixels: np.ndarray, top: int, left: int) -> bytes:
        """The JPEG with the rectangle ``pixels`` at row ``top``, column ``left``.

        These are multiples of `MCU`, and so are height and width of the rectangle, unless it ends
        where the image ends.
        """
        height, width = pixels.shape[:2]
        for first, size, end in (
            (top, height, self._geometry.height),
            (left, width, self._geometry.width),
        ):
            assert size > 0
            assert first % MCU == 0
            assert size % MCU == 0 if first + size < end else first + size == end
        if (height, width) == (self._geometry.height, self._geometry.width):
            return encode(pixels, self._quality)
        jpeg = encode(pixels, self._quality)
        assert jpeg[self._fixed : self._start] == self._jpeg[self._fixed : self._start]
        geometry = _geometry(height, width, self._geometry.samplings)
        patch = self._read(jpeg, geometry)
        down, across = (8 * factor for factor in geometry.samplings[0])
        box = (top // down, left // across, *geometry.mcus)
        # Of the caller: an array that a kernel returns costs as much as all other arguments.
        scan = np.empty(2 * (len(self._jpeg) + len(jpeg) + 8 * len(patch.dcs)), np.uint8)
        size = _splice(
            *self._blocks, *patch, box, self._geometry.mcus[1], self._geometry.components,
            self._dc_tables, self._codes, scan,
        )  # fmt: skip
        return b"".join([self._jpeg[: self._start], scan[:size].data, b"\xff\xd9"])

    def _read(self, jpeg: bytes, geometry: Geometry) -> _Blocks:
        """The blocks of an image whose headers have the size of those of this one."""
        blocks = geometry.mcus[0] * geometry.mcus[1] * len(geometry.components)
        found = _Blocks(
            np.empty(len(jpeg) - self._start + 256, np.uint8),
            np.empty((blocks + 1, 2), np.int64),
            np.empty(blocks, np.int64),
        )
        source = np.frombuffer(jpeg, np.uint8)
        done = _find_blocks(
            source, self._start, self._tables, self._selectors, geometry.components, *found
        )
        assert done, "an image of libjpeg-turbo cannot be read"
        return found


@functools.lru_cache(maxsize=1024)  # of all rectangles of an image of 512x512
def _geometry(height: int, width: int, samplings: tuple[tuple[int, int], ...]) -> Geometry:
    return Geometry(height, width, samplings)


def _dc_codes(bodies: bytes) -> np.ndarray:
    """int64 (4, 256): code << 8 | length of each DC symbol, by number of the table (B.2.4.2)."""
    codes = np.zeros((4, 256), np.int64)
    while bodies:
        lengths = np.array([0, *bodies[1:17]], np.int32)
        end = 17 + int(lengths.sum())
        if bodies[0] < 4:
            codes[bodies[0]] = codes_of(lengths, np.frombuffer(bodies[17:end], np.uint8))
        bodies = bodies[end:]
    return codes


@numba.njit(cache=True, nogil=True)
def _find_blocks(
    source: np.ndarray, at: int, tables: np.ndarray, selectors: np.ndarray,
    components: np.ndarray, data: np.ndarray, places: np.ndarray, dcs: np.ndarray,
) -> bool:  # fmt: skip
    """Fill the arrays of `_Blocks` from a scan at byte ``at``; False if it is corrupt.

    tables, selectors, components: as of `convert.jpeg.coefficients`.
    """
    size, at = unstuff(source, at, data)
    if at < 0:
        return False
    start = np.uint64(data.ctypes.data)
    after, word, held = start, np.uint64(0), np.uint64(0)
    predicted = np.zeros(3, np.int64)
    in_mcu = 0
    for block in range(len(dcs)):
        component = components[in_mcu]
        in_mcu = 0 if in_mcu + 1 == len(components) else in_mcu + 1
        dc = np.uint64((selectors[component] >> 4) * TABLE)
        ac = np.uint64((4 | selectors[component] & 15) * TABLE)
        word, after, held = refill(word, after, held)
        places[block, 0] = np.int64(8 * (after - start)) - np.int64(held)
        entry = look_up(word, tables, dc)
        predicted[component] += value_of(word, entry)
        dcs[block] = predicted[component]
        bits, position = entry & np.uint64(63), entry >> np.uint64(16)
        word, held = word << bits, held - bits
        places[block, 1] = np.int64(8 * (after - start)) - np.int64(held)
        while position < np.uint64(63):
            word, after, held = refill(word, after, held)
            entry = look_up(word, tables, ac)
            bits = entry & np.uint64(63)
            word, held, position = word << bits, held - bits, position + (entry >> np.uint64(16))
        if abs(predicted[component]) > LARGEST_DC:
            return False
    end = np.int64(8 * (after - start)) - np.int64(held)
    places[len(dcs)] = end
    return bool(0 <= 8 * size - end < 8)


@numba.njit(cache=True, nogil=True)
def _splice(
    data: np.ndarray, places: np.ndarray, dcs: np.ndarray, patch_data: np.ndarray,
    patch_places: np.ndarray, patch_dcs: np.ndarray, box: tuple[int, int, int, int], columns: int,
    components: np.ndarray, selectors: np.ndarray, codes: np.ndarray, scan: np.ndarray,
) -> int:  # fmt: skip
    """Write the scan of an image in which a box of MCUs is replaced, with stuffed zeros.

    box: first row and column, rows and columns. columns: MCUs in a row of the image. selectors: DC
    table of each component. scan: uint8, where it goes. Returns its size.
    """
    top, left, rows, width = box
    blocks = len(components)
    out = np.empty(len(data) + len(patch_data) + 4 * rows * blocks + _SLACK, np.uint8)
    begin = np.uint64(out.ctypes.data)
    writer = (begin, np.uint64(0), np.uint64(0))
    predicted = np.zeros(3, np.int64)
    done = 0  # MCUs of the image
    for row in range(rows):
        start = (top + row) * columns + left
        writer = _copy_mcus(
            writer, data, places, dcs, done, start, components, selectors, codes, predicted
        )
        writer = _copy_mcus(
            writer, patch_data, patch_places, patch_dcs, row * width, (row + 1) * width,
            components, selectors, codes, predicted,
        )  # fmt: skip
        done = start + width
    last = len(dcs) // blocks
    at, word, held = _copy_mcus(
        writer, data, places, dcs, done, last, components, selectors, codes, predicted
    )
    if held:
        store_u64_big_endian(at, word | ~np.uint64(0) >> held)
        at += np.uint64(1)
    spliced = stuff(out[: np.int64(at - begin)])
    copy(np.uint64(scan.ctypes.data), np.uint64(spliced.ctypes.data), np.uint64(len(spliced)))
    return len(spliced)


@numba.njit(cache=True, nogil=True)
def _copy_mcus(
    writer: Writer, data: np.ndarray, places: np.ndarray,
    dcs: np.ndarray, first: int, last: int, components: np.ndarray, selectors: np.ndarray,
    codes: np.ndarray, predicted: np.ndarray,
) -> Writer:  # fmt: skip
    """Append MCUs ``first`` to ``last`` - 1; ``predicted``: the DC before and after them."""
    if first == last:
        return writer
    blocks = len(components)
    start = np.uint64(data.ctypes.data)
    previous = -1
    for block in range(first * blocks, (first + 1) * blocks):
        component = components[block - first * blocks]
        begin = places[block, 0]
        if component != previous:
            # The first block of a component follows another one than in its own image.
            writer = _append_dc(
                writer, dcs[block] - predicted[component], codes[selectors[component]]
            )
            begin = places[block, 1]
        previous = component
        writer = _copy_bits(writer, start, begin, places[block + 1, 0])
    writer = _copy_bits(writer, start, places[(first + 1) * blocks, 0], places[last * blocks, 0])
    for block in range((last - 1) * blocks, last * blocks):
        predicted[components[block - (last - 1) * blocks]] = dcs[block]
    return writer


@numba.njit(cache=True, nogil=True)
def _append_dc(writer: Writer, value: int, codes: np.ndarray) -> Writer:
    """Append the difference of a DC coefficient (F.1.2.1)."""
    at, word, held = writer
    size = bit_length(abs(value))
    extra = np.uint64(value + (value >> 63 & (1 << size) - 1))
    code = np.uint64(codes[size])
    held += (code & np.uint64(255)) + np.uint64(size)
    word |= (code >> np.uint64(8) << np.uint64(size) | extra) << (np.uint64(64) - held)
    flushed: Writer = _flush(at, word, held)
    return flushed


@numba.njit(cache=True, nogil=True)
def _copy_bits(writer: Writer, start: np.uint64, first: int, last: int) -> Writer:
    """Append bits ``first`` to ``last`` - 1 of the data at an address."""
    at, word, held = writer
    while first < last:
        taken = np.uint64(min(last - first, _STEP))
        bits = load_u64_big_endian(start + np.uint64(first >> 3)) << np.uint64(first & 7)
        word |= (bits & ~(~np.uint64(0) >> taken)) >> held
        at, word, held = _flush(at, word, held + taken)
        first += _STEP
    return at, word, held


@numba.njit(cache=True, nogil=True)
def _flush(at: np.uint64, word: np.uint64, held: np.uint64) -> Writer:
    """Write the complete bytes of a word with at most 63 bits."""
    store_u64_big_endian(at, word)
    return at + (held >> np.uint64(3)), word << (held & np.uint64(56)), held & np.uint64(7)
