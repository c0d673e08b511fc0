"""Writes the FFCV file: fields verbatim, source order, readable by stock FFCV.

`Structure` describes the layout (in full in docs/format.md): header, field descriptors, one row
of metadata per sample, pages of data that no sample crosses, allocation table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from maskdepth.convert.errors import DataError
from maskdepth.convert.layout import FIELDS, RECORD, Layout
from maskdepth.convert.maps import create_array
from maskdepth.convert.parts import Part, read_data, read_records
from maskdepth.convert.shards import Shards
from maskdepth.convert.storage import CODECS

NAME = "samples.beton"
INDEX = "samples.beton.index.npy"
VERSION = 2
PAGE = 1 << 23

HEADER = np.dtype([
    ("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"),
    ("alloc_table_ptr", "<u8"),
])  # fmt: skip
DESCRIPTOR = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_TYPES = {"image": (2, _IMAGE), "bytes": (3, _BYTES), "int": (1, np.dtype("<i8"))}


def field_kinds(codecs: dict[str, str]) -> dict[str, str]:
    """FFCV's kind of each field in file order: an image if the codec stores a JPEG."""
    kinds = {name: "image" if CODECS[codecs[name]].is_jpeg else "bytes" for name in FIELDS}
    return {**kinds, "index": "int"}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Sizes, positions and tables of an FFCV file, from its samples and codecs."""

    layout: Layout
    codecs: dict[str, str]

    @property
    def metadata(self) -> np.dtype:
        """A row of metadata: fields f0, f1, ... in file order, aligned as FFCV does."""
        kinds = field_kinds(self.codecs).values()
        return np.dtype([(f"f{i}", _TYPES[kind][1]) for i, kind in enumerate(kinds)], align=True)

    @property
    def rows_at(self) -> int:
        """First byte of the metadata."""
        return HEADER.itemsize + DESCRIPTOR.itemsize * len(field_kinds(self.codecs))

    @property
    def data_at(self) -> int:
        """First byte of the data, at a page border."""
        return _align(self.rows_at + self.metadata.itemsize * self.layout.samples)

    def header(self, allocations_at: int = 0) -> bytes:
        """Header and field descriptors. allocations_at: 0 as long as the file is unfinished."""
        kinds = field_kinds(self.codecs)
        header = np.zeros(1, HEADER)
        header["version"], header["num_fields"], header["page_size"] = VERSION, len(kinds), PAGE
        header["num_samples"] = self.layout.samples
        header["alloc_table_ptr"] = allocations_at
        descriptors = np.zeros(len(kinds), DESCRIPTOR)
        for row, (name, kind) in zip(descriptors, kinds.items(), strict=True):
            row["type_id"] = _TYPES[kind][0]
            row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        return header.tobytes() + descriptors.tobytes()

    def rows(self, start: int, records: np.ndarray) -> np.ndarray:
        """Rows of metadata of the samples from ``start`` on, whose places are ``records``."""
        rows = np.zeros(len(records), self.metadata)
        for i, (name, kind) in enumerate(field_kinds(self.codecs).items()):
            column = rows[f"f{i}"]
            if kind == "int":
                column[:] = np.arange(start, start + len(records))
            elif kind == "image":
                column["mode"], column["data_ptr"] = 0, records[name]["offset"]  # 0: a JPEG
                column["width"], column["height"] = self.layout.width, self.layout.height
            else:
                column["ptr"], column["size"] = records[name]["offset"], records[name]["size"]
        return rows

    @staticmethod
    def allocations(start: int, records: np.ndarray) -> np.ndarray:
        """Rows of the allocation table of the samples from ``start`` on, one for each field."""
        table = np.zeros((len(records), len(FIELDS)), ALLOCATION)
        table["sample_id"] = np.arange(start, start + len(records))[:, None]
        for column, name in enumerate(FIELDS):
            table["ptr"][:, column] = records[name]["offset"]
            table["size"][:, column] = records[name]["size"]
        return table


@dataclass(frozen=True)
class BetonWriter:
    """An FFCV file that several processes assemble from parts.

    `create` it, `write` each part at the position that `create` gives, then `finish` it.
    form, folder: which files of the parts it takes, and where they are.
    """

    path: Path
    form: str
    folder: Path
    structure: Structure

    def create(self, parts: list[Part]) -> tuple[list[tuple[Part, int]], int]:
        """Create the unfinished file, and its empty per-record index beside it.

        Returns each of all ``parts`` with the first byte that its data may take, and their end.
        """
        create_array(self.path.with_name(INDEX), RECORD, (self.structure.layout.samples,))
        self.path.write_bytes(self.structure.header())
        places, at = [], self.structure.data_at
        for part in parts:
            places.append((part, at))
            last = _placed(read_records(part, self.form, self.folder), at)[-1][FIELDS[-1]]
            at = int(last["offset"]) + int(last["size"])
        return places, at

    def write(self, part: Part, at: int, end: int) -> None:
        """Copy a part to byte ``at`` and write its rows; the allocation table begins at ``end``."""
        data = read_data(part, self.form, self.folder)
        records = read_records(part, self.form, self.folder)
        placed = _placed(records, at)
        with open(self.path, "r+b") as file:
            for target, piece in _pieces(memoryview(data), records, placed):
                file.seek(target)
                file.write(piece)
            rows = self.structure.rows(part.start, placed)
            file.seek(self.structure.rows_at + part.start * rows.itemsize)
            file.write(rows.tobytes())
            allocations = self.structure.allocations(part.start, placed)
            file.seek(end + part.start * allocations[0].nbytes)
            file.write(allocations.tobytes())
        with open(self.path.with_name(INDEX), "r+b") as file:
            # Not through a map: some network file systems would write neighbouring rows too.
            rows_left = self.structure.layout.samples - part.start
            file.seek(-rows_left * RECORD.itemsize, os.SEEK_END)
            file.write(placed.tobytes())

    def finish(self, end: int) -> None:
        """Write the pointer to the allocation table; without it our readers refuse the file."""
        with open(self.path, "r+b") as file:
            file.write(self.structure.header(end))


def _align(position: int) -> int:
    return -(-position // PAGE) * PAGE


def _placed(records: np.ndarray, at: int) -> np.ndarray:
    """A part's records with offsets in the file, from ``at`` on; no sample crosses a page."""
    placed = records.copy()
    sizes = np.stack([records[name]["size"] for name in FIELDS], axis=1).astype(np.int64)
    starts = np.empty(len(records), np.int64)
    for row, total in enumerate(sizes.sum(axis=1).tolist()):
        if total > PAGE:
            raise DataError(
                f"a sample of {total:,} bytes is larger than a page of the FFCV file ({PAGE:,}); "
                "pack with --format webdataset alone"
            )
        if at // PAGE != (at + total - 1) // PAGE:
            at = _align(at)
        starts[row] = at
        at += total
    offsets = starts[:, None] + np.cumsum(sizes, axis=1) - sizes
    for column, name in enumerate(FIELDS):
        placed[name]["offset"] = offsets[:, column]
    return placed


def _pieces(
    data: memoryview, records: np.ndarray, placed: np.ndarray
) -> Iterator[tuple[int, memoryview]]:
    """A part's data split at the pages of the file, each piece with its position there."""
    # Fields are contiguous in the part and in the file; only a new page leaves a gap.
    origin, target = (rows[FIELDS[0]]["offset"].astype(np.int64) for rows in (records, placed))
    first = np.flatnonzero(np.diff(target - origin, prepend=-1))
    for at, (begin, end) in zip(target[first], pairwise([*origin[first], len(data)]), strict=True):
        yield int(at), data[begin:end]


def check_structure(shards: Shards) -> Iterator[str]:
    """Problems of what stock FFCV does not check: header, metadata and allocation table."""
    file, path = shards.files[0], shards.folder / shards.names[0]
    structure = Structure(layout=shards.manifest.layout, codecs=shards.codecs)
    samples = len(shards)
    header = file[: HEADER.itemsize].view(HEADER)[0]
    pointer = int(header["alloc_table_ptr"])
    expected = pointer + samples * len(FIELDS) * ALLOCATION.itemsize
    if pointer == 0:
        yield f"{path}: unfinished: no allocation table"
        return
    if int(header["num_samples"]) != samples or file.size != expected:
        yield (
            f"{path}: the header gives {header['num_samples']} samples and {expected} bytes, "
            f"expected {samples} samples and {file.size} bytes"
        )
        return
    if file[: structure.rows_at].tobytes() != structure.header(pointer):
        yield f"{path}: header or field descriptors differ from what pack writes"
    rows = file[structure.rows_at :][: samples * structure.metadata.itemsize]
    rows = rows.view(structure.metadata)
    table = file[pointer:].view(ALLOCATION).reshape(samples, len(FIELDS))
    for column, name in enumerate(FIELDS):
        records, cells = shards.records[name], rows[f"f{column}"]
        key = "data_ptr" if "data_ptr" in (cells.dtype.names or ()) else "ptr"
        wrong = cells[key] != records["offset"]
        wrong |= table["ptr"][:, column] != records["offset"]
        wrong |= table["size"][:, column] != records["size"]
        for index in np.flatnonzero(wrong):
            yield f"record {index}, {name} ({path}): metadata and per-record index disagree"
