"""Codecs against Pillow and against plain Python: lossless, or refused by name."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskdepth.convert import jpeg
from maskdepth.convert.codecs import DECODERS, ENCODERS, decode_runs, pack_runs
from maskdepth.convert.jpeg.layout import NotBaseline
from maskdepth.convert.jpeg.luma import cut_to_luma
from maskdepth.convert.pack import PackConfig
from maskdepth.convert.storage import CODECS
from maskdepth.convert.verify import pillow_pixels
from tests.pictures import jpeg_bytes, smooth

MASKS = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 70)), elements=st.integers(0, 1)
)


def unpack_slowly(data: bytes) -> list[int]:
    """The definition of the runs codec, in plain Python."""
    pixels: list[int] = []
    value = 0
    for byte in data:
        pixels += [value] * byte
        value = value if byte == 255 else 1 - value
    return pixels


@given(MASKS)
def test_runs_return_the_mask(mask: np.ndarray) -> None:
    data = pack_runs(mask)
    assert unpack_slowly(data) == mask.reshape(-1).tolist()
    assert np.array_equal(decode_runs(data, *mask.shape), mask)


@pytest.mark.parametrize("pixels", [1, 254, 255, 256, 509, 510, 511, 50_176])
@pytest.mark.parametrize("value", [0, 1])
def test_runs_of_one_value(pixels: int, value: int) -> None:
    mask = np.full((1, pixels), value, np.uint8)
    assert np.array_equal(decode_runs(pack_runs(mask), 1, pixels), mask)


@given(MASKS, st.data())
def test_damaged_runs_are_refused_or_still_fill_the_mask(
    mask: np.ndarray, data: st.DataObject
) -> None:
    stored = bytearray(pack_runs(mask))
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != stored[place]))
    # One changed byte changes the number of pixels, unless 255 and below trade places at the end.
    with pytest.raises(ValueError, match="do not add up"):
        decode_runs(bytes(stored), *mask.shape)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x05"])
def test_wrong_length_runs_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        decode_runs(data, 2, 2)


@pytest.mark.parametrize("size", [(224, 224), (97, 61), (8, 8), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 75},
        {"quality": 65, "optimize": True},
        {"quality": 90, "subsampling": 0},
        {"quality": 90, "subsampling": 1},
        {"quality": 75, "progressive": True},
        {"quality": 75, "restart_marker_blocks": 3},
        {"quality": 100, "optimize": True, "restart_marker_rows": 1},
    ],
)
def test_luma_equals_pillows_gray(size: tuple[int, int], options: dict) -> None:
    source = jpeg_bytes(np.repeat(smooth(*size)[..., None], 3, axis=2), **options)
    encoded = ENCODERS["jpeg-luma"](source, *size)
    expected = np.asarray(Image.open(io.BytesIO(source)).convert("L"))
    if options.get("progressive"):
        assert encoded.counts == {"depth_stored_verbatim": 1}
        assert encoded.data == source
    else:
        assert encoded.counts == {}
        assert jpeg.read_header(encoded.data).components == 1
        assert len(encoded.data) < len(source)
    assert np.array_equal(encoded.pixels, expected)
    assert np.array_equal(DECODERS["jpeg-luma"](encoded.data, *size), expected)
    assert np.array_equal(pillow_pixels(encoded.data, "depth"), expected)


def test_gray_jpeg_stays_verbatim() -> None:
    source = jpeg_bytes(smooth(64, 64))
    assert ENCODERS["jpeg-luma"](source, 64, 64).data == source


def test_faint_colour_in_depth_is_stored_verbatim_and_counted() -> None:
    gray = np.repeat(smooth(64, 64)[..., None], 3, axis=2).astype(np.int16)
    tinted = np.clip(gray + np.array([4, 0, -4]), 0, 255).astype(np.uint8)
    source = jpeg_bytes(tinted, quality=95)
    encoded = ENCODERS["jpeg-luma"](source, 64, 64)
    assert encoded.data == source
    assert encoded.counts == {"depth_stored_verbatim": 1}
    assert np.array_equal(encoded.pixels, pillow_pixels(source, "depth"))


@pytest.mark.parametrize("name", ["jpeg-luma", "jpeg-gray"])
def test_colour_mapped_depth_is_refused(name: str) -> None:
    rng = np.random.default_rng(0)
    source = jpeg_bytes(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="a colour image"):
        ENCODERS[name](source, 16, 16)


@given(st.integers(0, 2**32), st.sampled_from([{}, {"progressive": True}, {"subsampling": 0}]))
def test_fg_bg_is_verbatim_and_decodes_like_pillow(seed: int, options: dict) -> None:
    pixels = np.stack([smooth(48, 56, seed + c) for c in range(3)], axis=2)
    source = jpeg_bytes(pixels, quality=65, **options)
    encoded = ENCODERS["jpeg"](source, 48, 56)
    assert encoded.data is source
    assert np.array_equal(DECODERS["jpeg"](source, 48, 56), pillow_pixels(source, "fg_bg"))


@pytest.mark.parametrize("name", ["runs", "jpeg-mask"])
def test_mask_equals_pillows_threshold(name: str) -> None:
    mask = (smooth(96, 80) > 120).astype(np.uint8) * 255
    source = jpeg_bytes(mask, quality=65)
    encoded = ENCODERS[name](source, 96, 80)
    gray = np.asarray(Image.open(io.BytesIO(source)).convert("L"))
    assert np.array_equal(encoded.pixels, gray >= 128)
    assert np.array_equal(DECODERS[name](encoded.data, 96, 80), gray >= 128)
    assert encoded.counts["mask_ambiguous_pixels"] == np.count_nonzero((gray >= 64) & (gray <= 192))


@pytest.mark.parametrize("name", ["runs", "jpeg-mask"])
def test_a_mask_at_the_edges_of_its_ranges(name: str) -> None:
    levels = np.array([[0, 63, 64, 127, 0, 255], [0, 128, 192, 193, 255, 255]], np.uint8)
    levels = np.repeat(levels, 2, axis=1).repeat(3, axis=1)
    levels[:, ::3], levels[:, 1::3] = 0, 255  # a quarter of a mask at most may be ambiguous
    gray = levels.repeat(8, axis=0).repeat(8, axis=1)
    source = jpeg_bytes(gray, quality=100)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source))), gray)
    assert np.array_equal(pillow_pixels(source, "mask"), gray >= 128)
    encoded = ENCODERS[name](source, *gray.shape)
    assert np.array_equal(encoded.pixels, gray >= 128)
    assert np.array_equal(DECODERS[name](encoded.data, *gray.shape), gray >= 128)
    ambiguous = sum(np.count_nonzero(gray == level) for level in (64, 127, 128, 192))
    assert encoded.counts == {"mask_ambiguous_pixels": ambiguous}


def with_orientation(source: bytes, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.open(io.BytesIO(source)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def cmyk() -> bytes:
    out = io.BytesIO()
    Image.new("CMYK", (16, 16)).save(out, "JPEG")
    return out.getvalue()


GOOD = jpeg_bytes(np.stack([smooth(40, 40, c) for c in range(3)], axis=2))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "empty file"),
        (b"GIF89a....", "not a JPEG"),
        (GOOD[: len(GOOD) - 60], "Premature end"),
        (GOOD[:-2], "Premature end"),
        (GOOD[:20], "no frame header"),
        (with_orientation(GOOD, 6), "EXIF orientation 6"),
        (cmyk(), "CMYK"),
    ],
)
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_bad_sources_are_refused_by_name(name: str, source: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ENCODERS[name](source, 40, 40)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_another_size_is_refused_before_it_is_decoded(name: str) -> None:
    huge = bytearray(GOOD)
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # claims 12 GB of pixels
    with pytest.raises(ValueError, match="found 65500x65500 pixels, expected 40x40"):
        ENCODERS[name](bytes(huge), 40, 40)


def test_upright_exif_is_fine() -> None:
    assert ENCODERS["jpeg"](with_orientation(GOOD, 1), 40, 40).pixels.shape == (40, 40, 3)


@given(st.binary(max_size=300))
def test_garbage_is_a_value_error(data: bytes) -> None:
    for source in (data, GOOD[:200] + data, b"\xff\xd8" + data):
        with pytest.raises(ValueError, match=r".+"):
            ENCODERS["jpeg"](source, 40, 40)


@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.integers(1, 100))
def test_cut_of_noise_keeps_every_pixel(seed: int, height: int, width: int, quality: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 1), dtype=np.uint8)
    source = jpeg_bytes(np.repeat(noise, 3, axis=2), quality=quality)
    encoded = ENCODERS["jpeg-luma"](source, height, width)
    assert encoded.counts == {}
    assert np.array_equal(
        pillow_pixels(encoded.data, "depth"),
        np.asarray(Image.open(io.BytesIO(source)).convert("L")),
    )


@given(st.data())
def test_damaged_depth_is_refused_or_keeps_its_pixels(data: st.DataObject) -> None:
    source = bytearray(jpeg_bytes(np.repeat(smooth(40, 40)[..., None], 3, axis=2)))
    for _ in range(data.draw(st.integers(1, 4))):
        source[data.draw(st.integers(2, len(source) - 1))] = data.draw(st.integers(0, 255))
    try:
        encoded = ENCODERS["jpeg-luma"](bytes(source), 40, 40)
    except ValueError:
        return
    assert np.array_equal(pillow_pixels(encoded.data, "depth"), encoded.pixels)


DEPTH = jpeg_bytes(np.repeat(smooth(64, 64)[..., None], 3, axis=2), restart_marker_blocks=1)


def markers(source: bytes) -> list[int]:
    """Places of the restart markers and of the end of the image."""
    return [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7\xd9]", source)]


def test_restart_markers_count_from_0_to_7() -> None:
    source = jpeg_bytes(np.repeat(smooth(160, 96)[..., None], 3, axis=2), restart_marker_blocks=1)
    assert len(markers(source)) > 9
    assert ENCODERS["jpeg-luma"](source, 160, 96).counts == {}


@pytest.mark.parametrize("which", [0, 1, -1])
def test_fill_bytes_before_a_marker_are_let_in(which: int) -> None:
    at = markers(DEPTH)[which]
    filled = DEPTH[:at] + b"\xff\xff" + DEPTH[at:]
    encoded = ENCODERS["jpeg-luma"](filled, 64, 64)
    assert encoded.counts == {}
    assert np.array_equal(encoded.pixels, pillow_pixels(DEPTH, "depth"))


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data, at: data[: at + 1] + bytes([data[at + 1] ^ 1]) + data[at + 2 :],
        lambda data, at: data[:at] + b"\x5a" + data[at:],
        lambda data, at: data[:at] + b"\x12\x34\x56\x78\x9a\xbc\xde\x5a" + data[at:],
        lambda data, at: data[:at] + data[at + 2 :],
        lambda data, at: data[: at - 1] + data[at:],
    ],
    ids=["another marker", "a byte more", "bytes more", "no marker", "a byte less"],
)
def test_damage_at_a_marker_is_never_cut(damage: Callable[[bytes, int], bytes], which: int) -> None:
    with pytest.raises(NotBaseline, match="entropy-coded data is corrupt"):
        cut_to_luma(damage(DEPTH, markers(DEPTH)[which]))


def test_a_lost_interval_is_never_cut() -> None:
    first, second = markers(DEPTH)[:2]
    with pytest.raises(NotBaseline, match="entropy-coded data is corrupt"):
        cut_to_luma(DEPTH[:first] + DEPTH[second:])


def segment(source: bytes, marker: int, number: int = 0) -> int:
    """Where the body of the n-th segment of a kind begins."""
    at = 0
    for _ in range(number + 1):
        at = source.index(bytes([0xFF, marker]), at) + 4
    return at


@pytest.mark.parametrize(
    ("marker", "number", "offset", "value"),
    [
        (0xDA, 0, 7, 1),  # first coefficient of the scan
        (0xDA, 0, 8, 62),  # last
        (0xDA, 0, 9, 1),  # bits left out
        (0xDB, 1, 0, 2),  # chroma's quantisation table has another number
        (0xDB, 0, -3, 0x01),  # luma's is no table
        (0xC0, 0, 11, 3),  # a component asks for one that is not there
        (0xC4, 0, 1, 3),  # three codes of one bit
        (0xC4, 0, 0, 4),  # a table of a number that does not exist
        (0xC4, 0, 17, 16),  # a DC coefficient of 16 bits
        (0xE0, 0, -3, 0x02),  # a marker that is not one
        (0xDD, 0, -1, 3),  # a restart interval of three bytes
    ],
)
def test_damaged_headers_are_never_cut(marker: int, number: int, offset: int, value: int) -> None:
    source = bytearray(DEPTH)
    source[segment(DEPTH, marker, number) + offset] = value
    with pytest.raises(NotBaseline):
        cut_to_luma(bytes(source))


def test_what_libjpeg_refuses_is_never_let_in() -> None:
    chance = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        source = bytearray(DEPTH)
        at = int(chance.integers(20, len(source) - 2))  # libjpeg wants known versions of JFIF
        length = int(chance.integers(0, 3))
        source[at : at + length] = chance.bytes(int(chance.integers(1, 3)))
        try:
            jpeg.decode_rgb(bytes(source))
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match=r".+"):
                ENCODERS["jpeg-luma"](bytes(source), 64, 64)
    assert refused > 500


def test_table_of_codecs_matches_functions_and_defaults() -> None:
    plain = {name for name, codec in CODECS.items() if not codec.fallback}
    assert plain == ENCODERS.keys() == DECODERS.keys()
    tars = {"fg_bg": "jpeg", "mask": "runs", "depth": "jpeg-luma"}
    ffcv = {"fg_bg": "difference", "mask": "runs", "depth": "difference-luma"}
    assert PackConfig().codecs == {"ffcv": ffcv, "webdataset": tars}
