"""The base of each background: what the codec `difference` stores the images of a field against.

docs/codecs.md says why most blocks of a composite are those of its base, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from maskdepth.convert.codecs import Encoded
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.coefficients import read_coefficients
from maskdepth.convert.jpeg.difference import Decoding, decode_record, make_base, new_decoder
from maskdepth.convert.jpeg.layout import NotBaseline
from maskdepth.convert.jpeg.record import write_record
from maskdepth.convert.layout import Layout
from maskdepth.convert.manifest import BaseFile
from maskdepth.convert.maps import load_array, require_complete

_BYTES_PER_COEFFICIENT = 3
_LARGEST_SHARE = {"fg_bg": 1 / 3, "depth": 1.0}
"""The part of an image's blocks that a record may list.

A composite of which more differs is smaller as a JPEG. A depth map is decoded faster from a record
even if that lists all of its blocks.
"""


def open_bases(folder: Path, described: BaseFile, layout: Layout) -> Bases:
    """Map the file of a field's bases; DataError if it is not as described."""
    path = folder / described.file
    return Bases(described, layout, load_array(path, np.dtype(np.int16), described.shape(layout)))


class Bases:
    """The bases of a field, and how its records are decoded; threads may share it.

    coefficients: int16 (n_bg, MCUs, blocks of an MCU, 64), by rows of a block, quantised.
    """

    def __init__(self, described: BaseFile, layout: Layout, coefficients: np.ndarray) -> None:
        self.geometry = described.geometry(layout)
        self.quantisers = np.array(described.quantisers, np.uint8)
        self.coefficients = coefficients
        self._file = described.file
        self._kept = threading.local()

    def decoding(self, backgrounds: Iterable[int] | None = None) -> Decoding:
        """What a thread decodes records with: the images of these backgrounds (None: of all).

        DataError if the coefficients of one are not those of a JPEG, or if their file has lost
        bytes since it was opened.
        """
        chosen = range(len(self.coefficients)) if backgrounds is None else backgrounds
        quantisers = self.quantisers.astype(np.int32)
        images = []
        for background in chosen:
            coefficients = np.asarray(self.coefficients[background])
            try:
                images.append(make_base(coefficients, self.geometry, quantisers))
            except ValueError as error:
                raise DataError(
                    f"{self._file}: base {background} has {error}; pack again"
                ) from None
        require_complete(self.coefficients)
        pixels, planes = map(np.stack, zip(*images, strict=True))
        return Decoding(pixels, planes, new_decoder(self.geometry, quantisers))

    def decode(self, record: np.ndarray, background: int) -> np.ndarray:
        """Pixels of a record: uint8 (H, W, 3) or (H, W); ValueError if it is corrupt."""
        kept = self._kept
        if getattr(kept, "background", None) != background:
            kept.decoding, kept.background = self.decoding([background]), background
        shape = (self.geometry.height, self.geometry.width, len(self.geometry.samplings))
        pixels = np.empty(shape, np.uint8)
        decoding: Decoding = kept.decoding
        base = decoding.pixels[0], decoding.planes[0]
        if not decode_record(record, *base, decoding.decoder, pixels.reshape(-1)):
            raise ValueError("the record of its differences is corrupt")
        return pixels if shape[2] == 3 else pixels[..., 0]


class RecordWriter:
    """Writes the records of one field and background, each decoded and compared; for one thread."""

    def __init__(self, bases: Bases, background: int, name: str) -> None:
        self._name = name
        self._geometry, self._quantisers = bases.geometry, bases.quantisers
        self._base = np.ascontiguousarray(bases.coefficients[background])
        self._decoding = bases.decoding([background])
        self._pixels = np.empty_like(self._decoding.pixels[0])
        self._record = np.empty(64 + _BYTES_PER_COEFFICIENT * self._base.size, np.uint8)
        self._largest = int(_LARGEST_SHARE[name] * self._base.size / 64)

    def encode(self, jpeg: Encoded) -> Encoded:
        """The record of an image instead of its JPEG; the JPEG, and a count, if that fails."""
        record = self._write(jpeg)
        if record is None:
            counts = {**jpeg.counts, f"{self._name}_stored_as_jpeg": 1}
            return jpeg._replace(counts=counts)
        return jpeg._replace(data=record)

    def _write(self, jpeg: Encoded) -> bytes | None:
        try:
            found = jpeg.coefficients or read_coefficients(jpeg.data)
        except NotBaseline:
            return None
        same = found.geometry == self._geometry
        if not same or not np.array_equal(found.quantisers, self._quantisers):
            return None
        size, blocks = write_record(
            found.values, self._base, self._geometry.mcus, self._geometry.blocks, self._record
        )
        if size < 0 or blocks > self._largest:
            return None
        record = self._record[:size]
        base = self._decoding.pixels[0], self._decoding.planes[0]
        decoded = decode_record(record, *base, self._decoding.decoder, self._pixels)
        if not decoded or not np.array_equal(self._pixels, jpeg.pixels.reshape(-1)):
            return None
        return record.tobytes()
