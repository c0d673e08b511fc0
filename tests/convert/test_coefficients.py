"""Reading of coefficients, against a slow writer of JPEG in Python, and with corrupt files."""

from __future__ import annotations

import hashlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.jpeg.coefficients import Coefficients, read_coefficients
from maskdepth.convert.jpeg.layout import NotBaseline
from maskdepth.convert.jpeg.luma import cut_to_luma, luma_of
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.jpeg.zigzag import ZIGZAG

DC_SYMBOLS = bytes(range(12))
AC_SYMBOLS = bytes([0x00, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 11))])
SHORT = ([0] * 3 + [12] + [0] * 12, [0] * 7 + [162] + [0] * 8)
LONG = ([1] * 6 + [0] * 9 + [6], [1] * 8 + [0] * 7 + [154])
"""Numbers of the DC and AC codes of each length: of 4 and 8 bits, or most of them of 16."""
SAMPLINGS = [
    ((1, 1),),
    ((1, 1), (1, 1), (1, 1)),
    ((1, 2), (1, 1), (1, 1)),
    ((2, 2), (1, 1), (1, 1)),
    ((2, 1), (2, 1), (1, 1)),
]


def codes(counts: list[int], symbols: bytes) -> dict[int, str]:
    """The code of each symbol as binary digits (annex C)."""
    found, code, listed = {}, 0, iter(symbols)
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            found[next(listed)] = f"{code:0{length}b}"
            code += 1
        code <<= 1
    return found


def extra_bits(value: int) -> str:
    size = abs(value).bit_length()
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def block_bits(block: list[int], before: int, dc: dict[int, str], ac: dict[int, str]) -> str:
    """The bits of a block in the order of a JPEG (annex F.1.2)."""
    extra = extra_bits(block[0] - before)
    bits, run = dc[len(extra)] + extra, 0
    for position in range(1, 64):
        if block[position] == 0:
            run += 1
            continue
        extra = extra_bits(block[position])
        bits += run // 16 * ac[0xF0] + ac[run % 16 << 4 | len(extra)] + extra
        run = 0
    return bits + ac[0x00] if run else bits


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def write(
    geometry: Geometry, values: np.ndarray, tables: tuple[list[int], list[int]], restart: int = 0,
    fill: bytes = b"",
) -> bytes:  # fmt: skip
    """A JPEG with these coefficients; fill: before each marker in the scan."""
    count = len(geometry.samplings)
    frame = struct.pack(">BHHB", 8, geometry.height, geometry.width, count)
    for number, (down, across) in enumerate(geometry.samplings):
        frame += bytes([number + 1, across << 4 | down, 0])
    dc, ac = codes(tables[0], DC_SYMBOLS), codes(tables[1], AC_SYMBOLS)
    huffman = bytes([0, *tables[0]]) + DC_SYMBOLS + bytes([0x10, *tables[1]]) + AC_SYMBOLS
    selectors = b"".join(bytes([number + 1, 0]) for number in range(count))
    head = segment(0xDB, bytes([0, *range(1, 65)])) + segment(0xC0, frame) + segment(0xC4, huffman)
    if restart:
        head += segment(0xDD, struct.pack(">H", restart))
    data, step = b"", restart or len(values)
    for number, first in enumerate(range(0, len(values), step)):
        bits, before = "", [0, 0, 0]
        for mcu in values[first : first + step, :, ZIGZAG].tolist():
            for block, component in zip(mcu, geometry.components.tolist(), strict=True):
                bits += block_bits(block, before[component], dc, ac)
                before[component] = block[0]
        bits += -len(bits) % 8 * "1"
        body = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
        data += (fill + bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b"") + body
    scan = segment(0xDA, bytes([count]) + selectors + b"\x00\x3f\x00")
    return b"\xff\xd8" + head + scan + data + fill + b"\xff\xd9"


def coefficients(
    rng: np.random.Generator, geometry: Geometry, density: float, largest: int
) -> np.ndarray:
    """Random coefficients; a share ``density`` is not 0, of at most ``largest``."""
    rows, columns = geometry.mcus
    shape = (rows * columns, len(geometry.blocks), 64)
    values = rng.integers(-largest, largest + 1, shape) * (rng.random(shape) < density)
    values[:, :, 0] = rng.integers(-min(largest, 1023), min(largest, 1023) + 1, shape[:2])
    return values.astype(np.int16)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), samplings=st.sampled_from(SAMPLINGS),
    tables=st.sampled_from([SHORT, LONG]), restart=st.integers(0, 9),
    density=st.sampled_from([0, 0.02, 0.3, 1]), largest=st.sampled_from([1, 3, 1023]),
    fill=st.sampled_from([b"", b"\xff\xff"]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_coefficients_are_those_written(
    height: int, width: int, samplings: tuple[tuple[int, int], ...],
    tables: tuple[list[int], list[int]], restart: int, density: float, largest: int, fill: bytes,
    seed: int,
) -> None:  # fmt: skip
    geometry = Geometry(height, width, samplings)
    values = coefficients(np.random.default_rng(seed), geometry, density, largest)
    found = read_coefficients(write(geometry, values, tables, restart, fill))
    assert found.geometry == geometry
    assert (found.quantisers[:, ZIGZAG] == np.arange(1, 65)).all()
    assert found.values.dtype == np.int16
    assert np.array_equal(found.values, values)


GEOMETRY = Geometry(17, 20, SAMPLINGS[3])
VALUES = coefficients(np.random.default_rng(1), GEOMETRY, 0.2, 500)


@pytest.mark.parametrize("restart", [0, 1])
def test_truncated_files_are_refused(restart: int) -> None:
    source = write(GEOMETRY, VALUES, SHORT, restart)
    assert np.array_equal(read_coefficients(source).values, VALUES)
    for size in range(len(source)):
        with pytest.raises(NotBaseline):
            read_coefficients(source[:size])


def test_changed_bits_are_refused_or_stay_within_the_limits() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    sources = [
        write(GEOMETRY, VALUES, tables, restart) for tables in (SHORT, LONG) for restart in (0, 1)
    ]
    for round_ in range(2000):
        source = bytearray(sources[round_ % 4])
        for _ in range(rng.integers(1, 4)):
            source[rng.integers(2, len(source))] ^= 1 << rng.integers(8)
        try:
            values = read_coefficients(bytes(source)).values
        except NotBaseline:
            refused += 1
            continue
        assert values.size <= 4 * 64 * len(source)
        assert abs(values[:, :, 0]).max() <= 2047
        assert abs(values[:, :, 1:]).max() <= 1023
    assert 500 < refused < 2000


@pytest.mark.parametrize("symbol", [0x50, 0xE0, 0x0B, 0xFF])
def test_symbols_that_baseline_lacks_are_refused_where_they_are_used(symbol: int) -> None:
    geometry = Geometry(8, 8, SAMPLINGS[0])
    values = np.zeros((1, 1, 64), np.int16)
    source = write(geometry, values, SHORT)
    end_of_block = source.index(AC_SYMBOLS)
    unused = end_of_block + 7
    for place in (end_of_block, unused):
        changed = source[:place] + bytes([symbol]) + source[place + 1 :]
        if place == unused:
            assert not read_coefficients(changed).values.any()
        else:
            with pytest.raises(NotBaseline, match="entropy-coded data"):
                read_coefficients(changed)


def test_zero_bytes_that_no_block_needs_are_refused() -> None:
    source = write(GEOMETRY, VALUES, SHORT)
    for more in (b"\x00", b"\x5a", b"\xff\x00", b"\xff\xd0", b"\xff"):
        changed = source[:-2] + more + source[-2:]
        if more == b"\xff":  # a fill byte
            assert np.array_equal(read_coefficients(changed).values, VALUES)
        else:
            with pytest.raises(NotBaseline, match="entropy-coded data"):
                read_coefficients(changed)


@pytest.mark.parametrize("size", [(1, 1), (31, 50), (64, 48)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_luma_is_that_of_the_cut_file(size: tuple[int, int], subsampling: int) -> None:
    gray = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(gray[..., None], 3, axis=2)).save(
        stream, "JPEG", subsampling=subsampling
    )
    luma = luma_of(read_coefficients(stream.getvalue()))
    cut = read_coefficients(cut_to_luma(stream.getvalue()))
    assert luma.geometry == cut.geometry
    assert np.array_equal(luma.values, cut.values)
    assert np.array_equal(luma.quantisers, cut.quantisers)


def test_bytes_of_a_cut_stay_those_of_earlier_releases() -> None:
    gray = VALUES * (GEOMETRY.components == 0)[:, None]
    cut = cut_to_luma(write(GEOMETRY, gray, SHORT))
    # Seven of its sixteen luma blocks are padding, which the Huffman tables count.
    assert hashlib.sha256(cut).hexdigest() == (
        "b67ec73533ecc68fccab803786830cd65fb8a8242a1a016f4b5658705c693b0e"
    )


def test_luma_of_a_coloured_image_is_refused() -> None:
    for component in (1, 2):
        coloured = np.zeros_like(VALUES)
        coloured[-1, GEOMETRY.components == component, 63] = 1
        with pytest.raises(NotBaseline, match="its chroma is not neutral"):
            luma_of(Coefficients(GEOMETRY, np.ones((3, 64), np.uint8), coloured))
