"""Decodes a record of `convert.jpeg.record`: to the pixels of the JPEG, from those of its base.

docs/codecs.md explains the steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from maskdepth.convert.jpeg.colour import GROUP, convert_pixels
from maskdepth.convert.jpeg.idct import CROSS, inverse_dct, inverse_dct_of_cross
from maskdepth.convert.jpeg.memory import copy
from maskdepth.convert.jpeg.planes import BOTH, MARGIN, Geometry
from maskdepth.convert.jpeg.record import DIFFERENCE, END, ESCAPE, STEP, VALUE, write_record
from maskdepth.convert.jpeg.streaming import stream_copy
from maskdepth.convert.jpeg.zigzag import ZIGZAG

_ADDRESS = np.uintp


class Base(NamedTuple):
    """What the records of one background are decoded with.

    pixels: uint8, flat. planes: uint8, as `Geometry.planes` says.
    """

    pixels: np.ndarray
    planes: np.ndarray


class Decoder(NamedTuple):
    """What all records of a field are decoded with, as numba takes it.

    quantisers: int32 (components * 64,), by rows of a block. The arrays after it are memory of one
    thread; slots must be 0 between two records.
    """

    mcus: tuple[int, int]
    blocks: np.ndarray
    table: np.ndarray
    subsampled: int
    quantisers: np.ndarray
    planes: np.ndarray
    pixels: np.ndarray
    slots: np.ndarray
    spans: np.ndarray
    places: np.ndarray
    group: np.ndarray


class Decoding(NamedTuple):
    """What a thread decodes the records of a field with.

    pixels: uint8 (backgrounds, H * W * channels), planes: uint8 (backgrounds, bytes of the planes),
    the decoded bases; no background: the field has no records.
    """

    pixels: np.ndarray
    planes: np.ndarray
    decoder: Decoder

    def of_thread(self) -> Decoding:
        """The same bases with a decoder of its own."""
        names = ("planes", "pixels", "slots", "spans", "places", "group")
        own = {name: np.zeros_like(getattr(self.decoder, name)) for name in names}
        return self._replace(decoder=self.decoder._replace(**own))


def make_base(coefficients: np.ndarray, geometry: Geometry, quantisers: np.ndarray) -> Base:
    """Decode the coefficients of a base: int16 (MCUs, blocks of an MCU, 64).

    ValueError if a record of them would be longer than that of any JPEG.
    """
    decoder = new_decoder(geometry, quantisers)
    size = geometry.height * geometry.width * len(geometry.samplings)
    nothing, pixels = np.zeros(size, np.uint8), np.empty(size, np.uint8)
    # A coefficient of a JPEG takes 18 bytes at most, the difference of two for DC 66.
    everything = np.empty(1024 + 20 * coefficients.size, np.uint8)
    used, _ = write_record(coefficients, ~coefficients, geometry.mcus, geometry.blocks, everything)
    planes = decoder.planes.copy()
    if used < 0 or not decode_record(everything[:used], nothing, planes, decoder, pixels):
        raise ValueError("values that no JPEG has")
    return Base(pixels, decoder.planes)


def new_decoder(geometry: Geometry, quantisers: np.ndarray) -> Decoder:
    """A decoder of one thread; quantisers: int32 (components, 64), by rows of a block."""
    slots = geometry.mcus[1] * len(geometry.blocks)
    return Decoder(
        geometry.mcus, geometry.blocks, geometry.planes, geometry.subsampled, quantisers.ravel(),
        np.zeros(geometry.bytes, np.uint8),
        np.zeros(geometry.height * geometry.width * len(geometry.samplings), np.uint8),
        np.zeros(slots * 64, np.int16),
        np.zeros((geometry.mcus[0] + 1, 2), np.int64),
        np.zeros((slots, 3), np.int64), np.zeros(3 * GROUP, np.uint8),
    )  # fmt: skip


NO_RECORDS = Decoding(
    np.empty((0, 0), np.uint8), np.empty((0, 0), np.uint8),
    new_decoder(Geometry(8, 8, ((1, 1),)), np.ones((1, 64), np.int32)),
)  # fmt: skip
"""Of a field that is stored as JPEGs."""


@numba.njit(cache=True, nogil=True)
def _read_block(record: np.ndarray, at: int, slots: np.ndarray, slot: int) -> tuple[int, np.uint64]:
    """Add the tokens from ``at`` on to 64 slots of zeros.

    Returns their end, -1 if they are corrupt, and a bit for each slot that has any.
    """
    position, seen = np.int64(0), np.uint64(0)
    while at < len(record):
        token = np.int64(record[at])
        at += 1
        position += token & STEP
        value = (token >> 3 & VALUE) + ESCAPE
        if value == ESCAPE:
            if at == len(record):
                return -1, seen
            value = np.int64(np.int8(record[at]))
            at += 1
        if position > 63:
            return -1, seen
        place = ZIGZAG[position]
        seen |= np.uint64(1) << np.uint64(place)
        slots[slot + place] += np.int16(value)
        if token & END:
            return at, seen
    return -1, seen


@numba.njit(cache=True, nogil=True)
def _find_spans(record: np.ndarray, decoder: Decoder) -> int:
    """First and last + 1 MCU with blocks of each row; returns how many there are, -1 if corrupt."""
    rows, columns = decoder.mcus
    map_bytes = -(-columns // 8)
    if len(record) < 1 + rows * map_bytes or record[0] != DIFFERENCE:
        return -1
    listed = 0
    for row in range(rows):
        first, stop = columns, 0
        for column in range(8 * map_bytes):
            if record[1 + row * map_bytes + column // 8] >> (column % 8) & 1:
                listed += 1
                first, stop = min(first, column), column + 1
        if stop > columns:
            return -1
        decoder.spans[row, 0], decoder.spans[row, 1] = first, stop
    return listed


@numba.njit(cache=True, nogil=True)
def _decode_blocks(record: np.ndarray, listed: int, decoder: Decoder) -> bool:
    """Decode the blocks of a record into the planes; False if it is corrupt."""
    rows, columns = decoder.mcus
    map_bytes = -(-columns // 8)
    flags_at = 1 + rows * map_bytes
    flagged = len(decoder.blocks) > 1
    at = flags_at + listed if flagged else flags_at
    if at > len(record):
        return False
    predicted = np.zeros(3, np.int64)
    planes, slots = decoder.planes.ctypes.data, decoder.slots.ctypes.data
    all_quantisers = decoder.quantisers
    quantisers = all_quantisers.ctypes.data
    places, blocks, table, all_slots = decoder.places, decoder.blocks, decoder.table, decoder.slots
    for row in range(rows):
        used = 0
        for column in range(decoder.spans[row, 0], decoder.spans[row, 1]):
            if not record[1 + row * map_bytes + column // 8] >> (column % 8) & 1:
                continue
            flags = 1
            if flagged:
                flags = int(record[flags_at])
                flags_at += 1
            for number in range(len(decoder.blocks)):
                if not flags >> number & 1:
                    continue
                at, seen = _read_block(record, at, all_slots, 64 * used)
                if at < 0:
                    decoder.slots[:] = 0
                    return False
                component = blocks[number, 0]
                predicted[component] += all_slots[64 * used]
                all_slots[64 * used] = predicted[component]
                y = 8 * (row * table[component, 4] + blocks[number, 1])
                x = 8 * (column * table[component, 5] + blocks[number, 2])
                places[used, 0] = table[component, 0] + y * table[component, 1] + x
                places[used, 1] = component
                places[used, 2] = seen & ~CROSS == 0
                used += 1
        # In a second loop, because the CPU stalls where a vector is loaded right after single
        # values were stored to it.
        for i in range(used):
            component = places[i, 1]
            if places[i, 2]:
                inverse_dct_of_cross(
                    all_slots, 64 * i, all_quantisers, 64 * component,
                    _ADDRESS(planes + places[i, 0]), _ADDRESS(table[component, 1]),
                )  # fmt: skip
                continue
            inverse_dct(
                _ADDRESS(slots + 128 * i), _ADDRESS(quantisers + 256 * component),
                _ADDRESS(planes + places[i, 0]), _ADDRESS(table[component, 1]),
            )  # fmt: skip
        all_slots[: 64 * used] = 0
    return at == len(record)


@numba.njit(cache=True, nogil=True)
def _copy_planes(base: np.ndarray, first: int, stop: int, decoder: Decoder) -> None:
    """Copy MCU rows ``first`` to ``stop - 1`` of the planes and the sample rows next to them."""
    for component in range(len(decoder.table)):
        at, stride, _, _, down, _ = decoder.table[component]
        start = at + (8 * first * down - 1) * stride - MARGIN
        size = (8 * (stop - first) * down + 2) * stride
        copy(
            _ADDRESS(decoder.planes.ctypes.data + start), _ADDRESS(base.ctypes.data + start),
            _ADDRESS(size),
        )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _extend_chroma(first: int, stop: int, decoder: Decoder) -> None:
    """Repeat the samples at the edges of the image once, as upsampling expects."""
    planes = decoder.planes
    for component in range(1, len(decoder.table)):
        at, stride, height, width, down, _ = decoder.table[component]
        for y in range(8 * first * down, min(8 * stop * down, height)):
            row = at + y * stride
            planes[row - 1] = planes[row]
            planes[row + width] = planes[row + width - 1]
        for y, other in ((0, -1), (height - 1, height)):
            source, target = at + y * stride - 1, at + other * stride - 1
            planes[target : target + width + 2] = planes[source : source + width + 2]


@numba.njit(cache=True, nogil=True)
def _convert_row(
    luma: int, cb: int, cr: int, far: int, halved: int, out: int, pixels: int, spare: int
) -> None:
    """Convert pixels of a row, of which the first is even; all but ``halved`` and ``pixels`` are
    addresses. spare: of 3 * `GROUP` bytes."""
    for x in range(0, pixels, GROUP):
        chroma = x // 2 if halved else x
        fits = x + GROUP <= pixels
        convert_pixels(
            _ADDRESS(luma + x), _ADDRESS(cb + chroma), _ADDRESS(cr + chroma), _ADDRESS(far),
            halved, _ADDRESS(out + 3 * x if fits else spare),
        )  # fmt: skip
        if not fits:
            copy(_ADDRESS(out + 3 * x), _ADDRESS(spare), _ADDRESS(3 * (pixels - x)))


@numba.njit(cache=True, nogil=True)
def _convert_spans(top: int, bottom: int, decoder: Decoder) -> None:
    """Convert all pixels of rows ``top`` to ``bottom - 1`` that blocks of the spans reach."""
    table, spans, halved = decoder.table, decoder.spans, decoder.subsampled
    planes, pixels = decoder.planes.ctypes.data, decoder.pixels.ctypes.data
    spare = decoder.group.ctypes.data
    width = table[0, 3]
    down, across = 8 * table[0, 4], 8 * table[0, 5]
    stride = table[1, 1]
    for y in range(top, bottom):
        left, right = width, 0
        for row in (max(0, (y - 1) // down), min((y + 1) // down, decoder.mcus[0] - 1)):
            if spans[row, 1]:
                left = min(left, max(0, spans[row, 0] * across - 2))
                right = max(right, min(width, spans[row, 1] * across + 2))
        if right:
            near, far = (y // 2, stride if y % 2 else -stride) if halved == BOTH else (y, 0)
            chroma = planes + near * stride + (left // 2 if halved else left)
            _convert_row(
                planes + table[0, 0] + y * table[0, 1] + left, chroma + table[1, 0],
                chroma + table[2, 0], far, halved, pixels + 3 * (y * width + left), right - left,
                spare,
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _reached_rows(first: int, stop: int, decoder: Decoder) -> tuple[int, int]:
    """First and last + 1 row of pixels that MCU rows ``first`` to ``stop - 1`` change.

    Smooth upsampling takes chroma of the rows next to a block.
    """
    _, _, height, _, down, _ = decoder.table[0]
    more = 1 if decoder.subsampled == BOTH else 0
    return max(0, 8 * first * down - more), min(height, 8 * stop * down + more)


@numba.njit(cache=True, nogil=True)
def _copy_gray(top: int, bottom: int, decoder: Decoder) -> None:
    """Copy rows ``top`` to ``bottom - 1`` from the plane."""
    at, stride, _, width, _, _ = decoder.table[0]
    for y in range(top, bottom):
        copy(
            _ADDRESS(decoder.pixels.ctypes.data + y * width),
            _ADDRESS(decoder.planes.ctypes.data + at + y * stride), _ADDRESS(width),
        )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _listed_rows(decoder: Decoder) -> tuple[int, int]:
    """First and last + 1 row of MCUs with blocks; (0, 0) if no row has any."""
    first, stop = 0, 0
    for row in range(decoder.mcus[0]):
        if decoder.spans[row, 1]:
            first, stop = (first if stop else row), row + 1
    return first, stop


@numba.njit(cache=True, nogil=True)
def decode_record(
    record: np.ndarray, base_pixels: np.ndarray, base_planes: np.ndarray, decoder: Decoder,
    out: np.ndarray,
) -> bool:  # fmt: skip
    """Write the pixels of a record to ``out`` (uint8, flat), past the caches.

    False if the record is corrupt; then nothing is written.
    """
    if out.size != base_pixels.size:  # of another number of channels
        return False
    listed = _find_spans(record, decoder)
    if listed < 0:
        return False
    first, stop = _listed_rows(decoder)
    if listed:
        _copy_planes(base_planes, first, stop, decoder)
    if not _decode_blocks(record, listed, decoder):
        return False
    top, bottom = _reached_rows(first, stop, decoder) if listed else (0, 0)
    row_bytes = out.size // decoder.table[0, 2]
    start, end = top * row_bytes, bottom * row_bytes
    # These rows are made in memory that stays in the cache, because each is written several times.
    reached = decoder.pixels[start:end]
    if len(decoder.table) == 1:
        _copy_gray(top, bottom, decoder)
    else:
        copy(
            _ADDRESS(reached.ctypes.data), _ADDRESS(base_pixels.ctypes.data + start),
            _ADDRESS(end - start),
        )  # fmt: skip
        _extend_chroma(first, stop, decoder)
        _convert_spans(top, bottom, decoder)
    stream_copy(out[:start], base_pixels[:start])
    stream_copy(out[start:end], reached)
    stream_copy(out[end:], base_pixels[end:])
    return True
