"""Reads the header of a JPEG from its markers, without decoding."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class JpegHeader:
    """Properties given by the markers before the first scan; the first four as in the frame."""

    precision: int
    height: int
    width: int
    components: int
    frame: int
    orientation: int

    @property
    def refusal(self) -> str | None:
        """Why engines would decode such a file differently; None if they agree."""
        if self.frame not in (0xC0, 0xC1, 0xC2):  # baseline, extended and progressive
            return "a lossless, hierarchical or arithmetic-coded JPEG; save it as baseline JPEG"
        if self.precision != 8:
            return f"a JPEG with {self.precision} bits per sample; save it with 8"
        if self.components == 4:
            return "a CMYK JPEG; save it as RGB"
        if self.components not in (1, 3):
            return f"a JPEG with {self.components} components; save it as RGB or gray"
        if self.orientation != 1:
            return (
                f"EXIF orientation {self.orientation}: some engines would rotate it and others "
                "not; save it upright without the tag"
            )
        return None


def segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, body and end of each segment up to the header of the first scan.

    Raises ValueError where the data is not a JPEG. The body of the last one may be cut short.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG: " + (f"starts with {data[:4]!r}" if data else "empty file"))
    at, marker = 2, 0
    while at + 4 <= len(data) and marker not in (0xD9, 0xDA):  # end of image, start of scan
        if data[at] != 0xFF:
            raise ValueError(f"corrupt JPEG: no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            yield marker, data[at + 4 : end], end
            at = end


def read_header(data: bytes) -> JpegHeader:
    """Size and kind of a JPEG from its markers; ValueError with the reason if it is not one."""
    orientation = 1
    for marker, body, _ in segments(data):
        if marker == 0xE1 and body[:6] == b"Exif\0\0":
            orientation = _orientation(body[6:])
        elif marker in _FRAMES and len(body) >= 6:
            precision, height, width, components = struct.unpack_from(">BHHB", body)
            return JpegHeader(precision, height, width, components, marker, orientation)
    raise ValueError("corrupt JPEG: no frame header")


def _orientation(tiff: bytes) -> int:
    """EXIF orientation (tag 0x0112 of the first directory), 1 where absent or unreadable."""
    with suppress(KeyError, struct.error):
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    return 1
