"""Photos and cut-outs as people have them: each has the expected pixels, or is refused by name."""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.inputs import pool_size, require_usable
from maskdepth.convert.dataset.photos import (
    background_jpeg,
    open_cutout,
    open_depth,
    open_photo,
    scale_cutout,
)
from maskdepth.convert.errors import DataError, Problems, one_line
from maskdepth.convert.outputs import png_mark
from maskdepth.convert.pack import pack
from tests.pictures import jpeg_bytes, smooth, texture
from tests.trees import tree

HEIGHT, WIDTH = 24, 16
GRAY = smooth(HEIGHT, WIDTH)
RGB = np.stack([smooth(HEIGHT, WIDTH, seed) for seed in (1, 2, 3)], axis=-1)
ROWS = np.arange(HEIGHT)[:, None] * np.ones((1, WIDTH), int)
HARD = np.where(ROWS < 6, 0, 255)
SOFT = np.where(ROWS < 6, 0, 55 + 200 * (ROWS % 2))
FEW = np.where(ROWS < 12, 40, 200)  # colours that a palette of two has

Make = Callable[[], bytes]


def rgba(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) of colours (H, W) or (H, W, 3) and alpha (H, W)."""
    three = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, axis=-1)
    return np.dstack([three, alpha]).astype(np.uint8)


def saved(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def png(bits: int, kind: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of HEIGHT rows of packed pixels. kind: 0 gray, 2 RGB, 3 palette, 4 LA, 6 RGBA."""
    about = struct.pack(">2I5B", WIDTH, HEIGHT, bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    written = [(b"IHDR", about), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in written
    )


def wide_rows(*channels: np.ndarray) -> list[bytes]:
    """Rows of 16 bit channels of which each has 8 bit values."""
    pixels = np.dstack(channels).astype(">u2") * 257
    return [row.tobytes() for row in pixels.astype(">u2")]


def packed(bits: int, values: np.ndarray) -> list[bytes]:
    """Rows of values of 1 or 8 bits."""
    return [(np.packbits(row) if bits == 1 else row.astype(np.uint8)).tobytes() for row in values]


def several(form: str) -> bytes:
    """A file of three images; the first is the one that is used."""
    out = io.BytesIO()
    pages = [Image.fromarray(rgba(RGB if n == 0 else RGB[::-1], HARD)) for n in range(3)]
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    pages[0].save(out, form, save_all=True, append_images=pages[1:], **options)
    return out.getvalue()


def multiplied_tiff() -> bytes:
    """A TIFF that says that its colours are multiplied by alpha, as its tag 338 can."""
    colours = np.rint(RGB * (SOFT / 255)[..., None])
    data = saved(rgba(colours, SOFT), "TIFF")
    tag = struct.pack("<HHI", 338, 3, 1)
    at = data.index(tag) + len(tag)
    assert data[at : at + 2] == b"\x02\0"
    return data[:at] + b"\x01\0" + data[at + 2 :]


def rotated(pixels: np.ndarray, orientation: int, form: str = "PNG", **options: Any) -> bytes:
    """An image whose EXIF orientation makes it upright."""
    stored = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels), 7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }  # fmt: skip
    about = Image.Exif()
    about[0x0112] = orientation
    return saved(np.ascontiguousarray(stored[orientation]), form, exif=about, **options)


D50 = (0.9642, 1.0, 0.8249)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
"""Columns: the primaries of sRGB and of Adobe RGB (1998), adapted to D50."""
GAMMA = 563 / 256
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space: bytes = b"RGB ", primaries: np.ndarray = ADOBE) -> bytes:
    """An ICC profile (version 2) of primaries and a gamma: ICC.1:2001-04, sections 6.1 to 6.5."""

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0x\0\0\0", b"wtpt": xyz(D50)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True):
            tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4s2I", name, at + len(body), len(data))
        body += data
    header = struct.pack(">I4xI4s4s4s", at + len(body), 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">12x4s28x3i", b"acsp", *(round(v * 65536) for v in D50))
    return header.ljust(128, b"\0") + table + body


def to_srgb(pixels: np.ndarray, primaries: np.ndarray) -> np.ndarray:
    """What colours of a `profile` are in sRGB (IEC 61966-2-1), uint8."""
    linear = np.linalg.inv(SRGB) @ primaries @ ((pixels / 255) ** GAMMA).reshape(-1, 3).T
    linear = linear.T.reshape(pixels.shape).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def cmyk(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([255 - rgb, np.zeros_like(GRAY)]), "CMYK")


def jpeg_of_cmyk() -> bytes:
    out = io.BytesIO()
    cmyk(RGB).save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def same(value: bytes) -> Make:
    return lambda: value


def turned(orientation: int) -> Make:
    return lambda: rotated(rgba(RGB, SOFT), orientation)


GRAYS_OF_KEY = np.where(HARD == 0, 7, np.maximum(GRAY, 8))
KEY_RGB = np.where(HARD[..., None] == 0, (1, 2, 3), np.maximum(RGB, 8))
BITS = (FEW > 100).astype(int)

CUTOUTS: dict[str, tuple[Make, np.ndarray, int]] = {
    "rgba.png": (lambda: saved(rgba(RGB, SOFT)), rgba(RGB, SOFT), 0),
    "gray alpha.png": (lambda: saved(rgba(GRAY, SOFT), mode="LA"), rgba(GRAY, SOFT), 0),
    "palette.png": (
        lambda: png(8, 3, packed(8, ROWS), (b"PLTE", bytes(range(72))),
                    (b"tRNS", bytes(SOFT[:, 0].astype(np.uint8)))),
        rgba(np.dstack([3 * ROWS, 3 * ROWS + 1, 3 * ROWS + 2]), SOFT), 0,
    ),
    "palette of 1 bit.png": (
        lambda: png(1, 3, packed(1, BITS), (b"PLTE", bytes([9, 9, 9, 200, 90, 10])),
                    (b"tRNS", b"\0")),
        rgba(np.array([(9, 9, 9), (200, 90, 10)])[BITS], 255 * BITS), 0,
    ),
    "gray key.png": (
        lambda: png(8, 0, packed(8, GRAYS_OF_KEY), (b"tRNS", b"\0\7")),
        rgba(GRAYS_OF_KEY, HARD), 0,
    ),
    "colour key.png": (
        lambda: png(8, 2, [row.astype(np.uint8).tobytes() for row in KEY_RGB],
                    (b"tRNS", b"\0\1\0\2\0\3")),
        rgba(KEY_RGB, HARD), 0,
    ),
    "bits key.png": (
        lambda: png(1, 0, packed(1, BITS), (b"tRNS", b"\0\0")), rgba(255 * BITS, 255 * BITS), 0,
    ),
    "rgba 16.png": (
        lambda: png(16, 6, wide_rows(RGB, SOFT)), rgba(RGB, SOFT), 0,
    ),
    "gray alpha 16.png": (
        lambda: png(16, 4, wide_rows(GRAY, SOFT)), rgba(GRAY, SOFT), 0,
    ),
    "gray key 16.png": (
        lambda: png(16, 0, wide_rows(GRAYS_OF_KEY), (b"tRNS", struct.pack(">H", 7 * 257))),
        rgba(GRAYS_OF_KEY, HARD), 0,
    ),
    "lossless.webp": (
        lambda: saved(rgba(RGB, SOFT), "WEBP", lossless=True, exact=True), rgba(RGB, SOFT), 0,
    ),
    "frames.webp": (lambda: several("WEBP"), rgba(RGB, HARD), 0),
    "animated.png": (lambda: several("PNG"), rgba(RGB, HARD), 0),
    "pages.tif": (lambda: several("TIFF"), rgba(RGB, HARD), 0),
    "key.gif": (
        lambda: saved(np.where(HARD == 0, 0, FEW), "GIF", transparency=0), rgba(FEW, HARD), 0,
    ),
    "straight.tif": (lambda: saved(rgba(RGB, SOFT), "TIFF"), rgba(RGB, SOFT), 0),
    "multiplied.tif": (multiplied_tiff, rgba(RGB, SOFT), 3),
    "adobe rgb.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=profile()),
        rgba(to_srgb(RGB, ADOBE), SOFT), 2,
    ),
    "gray gamma.png": (
        lambda: saved(rgba(GRAY, SOFT), mode="LA", icc_profile=profile(b"GRAY")),
        rgba(to_srgb(three(GRAY), SRGB), SOFT), 2,
    ),
    "srgb.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=SRGB_PROFILE), rgba(RGB, SOFT), 0,
    ),
    "narrow.png": (
        lambda: saved(rgba(RGB, SOFT)[:, :1].repeat(200, axis=0)),
        rgba(RGB, SOFT)[:, :1].repeat(200, axis=0), 0,
    ),
    "ünï  cödé 人.png": (lambda: saved(rgba(RGB, SOFT)), rgba(RGB, SOFT), 0),
    "two\nlines.PNG": (lambda: saved(rgba(RGB, SOFT)), rgba(RGB, SOFT), 0),
    **{
        f"exif {number}.png": (turned(number), rgba(RGB, SOFT), 0)
        for number in range(1, 9)
    },
}  # fmt: skip
"""Name -> the file, its expected pixels, and by how many levels visible ones may differ."""

PHOTOS: dict[str, tuple[Make, np.ndarray, int]] = {
    "jpeg.png": (lambda: jpeg_bytes(RGB, quality=100, subsampling=0), RGB, 3),
    "progressive.jpg": (
        lambda: jpeg_bytes(RGB, quality=100, subsampling=0, progressive=True), RGB, 3,
    ),
    "cmyk.jpg": (jpeg_of_cmyk, RGB, 4),
    "adobe.jpg": (
        lambda: jpeg_bytes(RGB, quality=100, subsampling=0, icc_profile=profile()),
        to_srgb(RGB, ADOBE), 12,  # what JPEG loses grows near black
    ),
    "gray.jpg": (lambda: jpeg_bytes(GRAY, quality=100), three(GRAY), 2),
    "bits.png": (lambda: saved(255 * BITS, mode="1"), three(255 * BITS), 0),
    "alpha.png": (
        lambda: saved(rgba(RGB, HARD)), np.where(HARD[..., None] == 0, 255, RGB), 0,
    ),
    "pages.tif": (lambda: several("TIFF"), np.where(HARD[..., None] == 0, 255, RGB), 0),
    "one.bmp": (lambda: saved(RGB[:1, :1], "BMP"), RGB[:1, :1], 0),
    "line.png": (
        lambda: saved(RGB[:, :1].repeat(99, axis=0)), RGB[:, :1].repeat(99, axis=0), 0,
    ),
    "turned.jpg": (
        lambda: rotated(RGB, 6, "JPEG", quality=100, subsampling=0), RGB, 3,
    ),
}  # fmt: skip


def huge(width: int, height: int) -> bytes:
    """A PNG that says it has this size; its pixels are missing."""
    about = b"IHDR" + struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0)
    chunk = struct.pack(">I", 13) + about + struct.pack(">I", zlib.crc32(about))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 99) + b"IDAT"


WHOLE = saved(rgba(RGB, SOFT))
SPECK = np.zeros((1200, 300, 4))
SPECK[600, 150] = 255

REFUSED: dict[str, tuple[Make, str]] = {
    "empty.png": (same(b""), "found an empty file; expected a complete, readable image"),
    "text.png": (same(b"hello"), "found no readable image, expected a photo or cut-out; save it"),
    "cut.png": (same(WHOLE[: len(WHOLE) // 2]), "; expected a complete, readable image"),
    "cut.webp": (
        lambda: saved(rgba(RGB, SOFT), "WEBP", lossless=True)[:200], "expected a|found no readable",
    ),
    "huge.png": (lambda: huge(20_000, 20_000), "more than 179 million pixels; make it smaller"),
    "invisible.png": (lambda: saved(rgba(RGB, 0 * HARD)), "found only transparent pixels"),
    "opaque.png": (lambda: saved(rgba(RGB, 255 + 0 * HARD)), "found no transparent pixel"),
    "rgb.png": (lambda: saved(RGB), "found an image of mode RGB without transparency"),
    "photo.jpg": (lambda: jpeg_bytes(RGB), "found an image of mode RGB without transparency"),
    "bits.png": (lambda: saved(255 * BITS, mode="1"), "an image of mode 1 without transparency"),
    "pixel.png": (lambda: saved(rgba(RGB, 255 + 0 * HARD)[:1, :1]), "found no transparent pixel"),
    "wide.png": (
        lambda: saved(rgba(RGB, SOFT).repeat(9, axis=1)),
        "90 pixels wide when scaled to height 15, expected less than 32. Crop it closer",
    ),
    "very wide.png": (
        lambda: saved(rgba(RGB, HARD)[5:7, :1].repeat(5000, axis=1)), "pixels wide when scaled",
    ),
    "speck.png": (lambda: saved(SPECK), "only transparent pixels when scaled to height 15"),
    "profile.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=b"no profile"),
        "its colour profile cannot be used .*; convert it to sRGB",
    ),
    "lab.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=profile(b"CMYK")), "its colour profile ",
    ),
    "colours with a gray profile.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=profile(b"GRAY")), "its colour profile ",
    ),
    "notes.txt": (same(b"hello"), "found no image, expected only images"),
    "photo.heic": (same(b"\0\0\0\x18ftypheic"), "found no image, .*; convert it, or move it"),
    "rgba.tiff": (lambda: saved(rgba(RGB, SOFT), "TIFF"), "found rgba.png too, expected one"),
}  # fmt: skip
"""In a folder of cut-outs that are scaled for composites of 32 pixels."""

IGNORED = (".DS_Store", "._rgba.png", "Thumbs.db", "desktop.ini", "__MACOSX/rgba.png", "Icon\r")


@pytest.mark.parametrize("name", CUTOUTS)
def test_cutout_has_the_expected_pixels(name: str, tmp_path: Path) -> None:
    make, expected, tolerance = CUTOUTS[name]
    path = tmp_path / name
    path.write_bytes(make())
    found = open_cutout(path).astype(int)
    assert found.shape == expected.shape
    assert np.array_equal(found[..., 3], expected[..., 3])
    difference = np.abs(found - expected)[expected[..., 3] != 0]
    assert difference.max() <= tolerance


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32), shape=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    form=st.sampled_from(["PNG", "TIFF", "WEBP"]), orientation=st.integers(1, 8),
    mode=st.sampled_from(["RGBA", "LA"]), icc_profile=st.sampled_from([None, SRGB_PROFILE]),
)  # fmt: skip
def test_any_cutout_without_loss_has_its_pixels(
    seed: int, shape: tuple[int, int], form: str, orientation: int, mode: str,
    icc_profile: bytes | None,
) -> None:  # fmt: skip
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 4), np.uint8)
    pixels[0, 0, 3], pixels[-1, -1, 3] = 0, 255
    about = Image.Exif()
    about[0x0112] = orientation
    image = Image.fromarray(pixels).convert(mode)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        image.save(path, form, exif=about, icc_profile=icc_profile, **options)
        found = open_cutout(path)
    expected = np.asarray(image.convert("RGBA"))
    expected = {
        1: expected, 2: expected[:, ::-1], 3: expected[::-1, ::-1], 4: expected[::-1],
        5: expected.swapaxes(0, 1), 6: np.rot90(expected, -1),
        7: expected[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(expected),
    }[orientation]  # fmt: skip
    assert np.array_equal(found[..., 3], expected[..., 3])
    visible = expected[..., 3] != 0
    assert np.array_equal(found[visible], expected[visible])


@pytest.mark.parametrize("name", PHOTOS)
def test_photo_has_the_expected_pixels(name: str, tmp_path: Path) -> None:
    make, expected, tolerance = PHOTOS[name]
    path = tmp_path / name
    path.write_bytes(make())
    found = np.asarray(open_photo(path)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


def fill(folder: Path, kinds: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, *_) in kinds.items():
        (folder / name).write_bytes(make())
    return folder


def check(bg: Path | None = None, fg: Path | None = None, depth: Path | None = None) -> list[str]:
    """The problems of folders, as `compose` with 32 pixels reports them."""
    try:
        require_usable(bg, fg, depth, backgrounds=None, foregrounds=None, size=32, workers=0)
    except Problems as error:
        return list(map(one_line, error.problems))
    except DataError as error:
        return [error.message]
    return []


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    (tmp_path / name).write_bytes(make())
    if "too" in reason:
        (tmp_path / "rgba.png").write_bytes(WHOLE)
    (problem,) = check(fg=tmp_path)
    assert problem.startswith(f"{tmp_path / name}: ")
    assert re.search(reason, problem)


def test_all_of_them_are_reported_in_one_run(tmp_path: Path) -> None:
    fg = fill(tmp_path / "fg", CUTOUTS | REFUSED)
    bg = fill(tmp_path / "bg", PHOTOS | {"notes.md": (same(b""),), "cut.jpg": (same(b"\xff"),)})
    (fg / "folder.png").mkdir()
    (fg / "nowhere.png").symlink_to(tmp_path / "none")
    os.mkfifo(fg / "pipe.png")
    (fg / "line\nbreak.txt").write_text("")
    with pytest.raises(Problems) as caught:
        compose(tmp_path / "out", bg=bg, fg=fg, size=32, placements=2, workers=0, progress=False)
    first, *lines = caught.value.message.splitlines()
    names = [*REFUSED, "folder.png", "nowhere.png", "pipe.png", r"line\nbreak.txt"]
    expected = [str(fg / name) for name in names] + [str(bg / "notes.md"), str(bg / "cut.jpg")]
    assert first == f"{len(expected)} problems; nothing was written"
    assert sorted(line.split(": ")[0] for line in lines) == sorted(expected)
    about = dict(line.split(": ", 1) for line in lines)
    assert about[str(fg / "folder.png")].startswith("found a folder, expected only images")
    assert about[str(fg / "nowhere.png")].startswith("cannot be read (No such")
    assert about[str(fg / "pipe.png")].startswith("found a named pipe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bg", "fg"]


@pytest.mark.parametrize("command", ["predict", "show"])
def test_pictures_of_ours_are_no_photos(tmp_path: Path, command: str) -> None:
    """`predict` may write beside the photos that `compose` reads later."""
    picture = tmp_path / "p1_mask.png"
    Image.new("RGB", (40, 40)).save(picture, pnginfo=png_mark(command))
    with pytest.raises(DataError, match=r"p1_mask\.png: found a picture that maskdepth made"):
        open_photo(picture)


def test_only_images_that_are_used_are_checked(tmp_path: Path) -> None:
    fg = fill(tmp_path, {"a.png": (same(WHOLE),), "b.png": (same(b""),)})
    require_usable(None, fg, None, backgrounds=None, foregrounds=1, size=32, workers=0)
    assert len(check(fg=fg)) == 1


def test_all_that_can_be_used_composes_and_packs(tmp_path: Path) -> None:
    fg, bg = fill(tmp_path / "fg", CUTOUTS), fill(tmp_path / "bg", PHOTOS)
    for name in IGNORED:
        (fg / name).parent.mkdir(exist_ok=True)
        (fg / name).write_bytes(b"left by a program")
    (bg / "link.png").symlink_to(fg / "rgba.png")
    (fg / "link.png").symlink_to(fg / "rgba.png")
    quietly: dict[str, Any] = {"workers": 0, "progress": False}
    small: dict[str, Any] = {"size": 32, "placements": 2, **quietly}
    made = compose(tmp_path / "people", fg=fg, backgrounds=1, **small)
    assert made["foregrounds"] == len(CUTOUTS) + 1
    made = compose(tmp_path / "photos", bg=bg, foregrounds=1, **small)
    assert made["backgrounds"] == len(PHOTOS) + 1
    for name in ("people", "photos"):
        pack(tmp_path / name, tmp_path / f"{name} shards", **quietly)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder with a file that we may not read, without the rights of root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = fill(Path(name) / "fg", {"a.png": (same(WHOLE),), "b.png": (same(WHOLE),)})
        (folder / "a.png").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)


def test_a_file_that_may_not_be_read(closed: Path) -> None:
    (problem,) = check(fg=closed)
    assert problem == f"{closed / 'a.png'}: cannot be read (Permission denied); fix that"


def test_a_folder_that_may_not_be_read(closed: Path) -> None:
    user = os.geteuid()
    os.seteuid(os.getuid())
    closed.chmod(0)
    os.seteuid(user)
    (problem,) = check(fg=closed)
    assert problem == f"{closed}: cannot be read (Permission denied), expected a folder of images"


def test_depth_maps_that_cannot_be_used(tmp_path: Path) -> None:
    square = RGB[:16]
    bg = fill(tmp_path / "bg", {f"{name}.png": (lambda: saved(square),) for name in "abcdef"})
    depth = fill(tmp_path / "depth", {
        "a.png": (lambda: saved(square),),  # a colour map
        "b.png": (lambda: saved(GRAY),),
        "c.tif": (lambda: saved(GRAY[:16], "TIFF"),),
        "d.png": (same(b""),),
        "e.jpg": (lambda: jpeg_bytes(GRAY[:16]),),
        "e.png": (lambda: saved(GRAY[:16]),),
    })  # fmt: skip
    a, b, d, e, f = check(bg=bg, depth=depth)[2:] + check(bg=bg, depth=depth)[:2]
    assert re.search(r"a\.png: found a colour image .* save it with a gray colour map", a)
    assert "b.png: found 16x24, expected the shape of b.png (16x16, or that scaled)" in b
    assert "d.png: found an empty file" in d
    assert "e.png: found e.jpg too, expected one image of this name" in e
    assert "depth: found no depth map for f.png" in f


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_depth_maps_are_turned_as_their_photos(orientation: int, tmp_path: Path) -> None:
    side = GRAY[:16]
    photo, depth = tmp_path / "photo.png", tmp_path / "depth.png"
    photo.write_bytes(saved(RGB[:16]))
    depth.write_bytes(rotated(side, orientation))
    assert np.array_equal(open_depth(depth, photo, 16), side)


def test_only_a_jpeg_that_pack_reads_as_this_photo_is_copied(tmp_path: Path) -> None:
    path, square = tmp_path / "x.jpg", RGB[:16]
    for options in ({"quality": 90}, {"progressive": True}, {"icc_profile": SRGB_PROFILE}):
        path.write_bytes(jpeg_bytes(square, **options))
        assert background_jpeg(path, 16, 95) == path.read_bytes()
    for data in (
        jpeg_bytes(square, icc_profile=profile()),
        jpeg_bytes(GRAY[:16]),
        rotated(square, 6, "JPEG"),
        jpeg_bytes(RGB),
        saved(square),
    ):
        path.write_bytes(data)
        made = background_jpeg(path, 16, 95)
        assert made != data
        with Image.open(io.BytesIO(made)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (16, 16))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_data_are_missing(mode: str, progressive: bool, tmp_path: Path) -> None:
    """Pillow fills what is missing before the end marker, and says nothing."""
    path = tmp_path / "x.jpg"
    data = saved(texture(64, 64), "JPEG", mode, quality=90, progressive=progressive)
    for cut in (40, len(data) // 3):
        path.write_bytes(data[: -cut - 2] + data[-2:])
        with pytest.raises(DataError, match=r"x\.jpg: .*remature end .*; expected a complete"):
            open_photo(path)


def test_a_jpeg_with_more_than_is_needed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    data = jpeg_bytes(RGB)
    path.write_bytes(data)
    expected = np.asarray(open_photo(path))
    for more in (data[:-2] + b"more" + data[-2:], data + b"more"):
        path.write_bytes(more)
        assert np.array_equal(np.asarray(open_photo(path)), expected)


def test_a_large_cutout_is_scaled_a_plane_at_a_time(tmp_path: Path) -> None:
    """The same bytes as from all planes at once, which took seven times the memory."""
    cutout = rgba(RGB, SOFT).repeat(20, axis=0).repeat(20, axis=1)
    alpha = cutout[..., 3].astype(np.float32)
    planes = [alpha] + [cutout[..., c] * alpha for c in range(3)]
    bilinear = Image.Resampling.BILINEAR
    small = [np.asarray(Image.fromarray(p).resize((10, 15), bilinear)) for p in planes]
    expected = np.dstack([*(c / np.maximum(small[0], 1e-3) for c in small[1:]), small[0]])
    expected[small[0] < 0.5] = 0
    found = scale_cutout(cutout, 15, 32, tmp_path)
    assert np.array_equal(found, np.rint(expected).clip(0, 255))


def test_nothing_changes_in_the_folders(tmp_path: Path) -> None:
    fg = fill(tmp_path / "fg", CUTOUTS)
    before = tree(fg)
    assert check(fg=fg) == []
    assert tree(fg) == before


def test_processes_check_images_of_many_bytes_alone(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    with large.open("wb") as file:
        file.truncate(8 << 20)
    assert pool_size([small] * 100, 2) == pool_size([], None) == 0
    assert pool_size([small, large], 2) == 2
    assert pool_size([small, tmp_path / "missing"], None) is None
