"""Writes the FFCV file: fields verbatim, source order, readable by stock FFCV.

Layout (docs/format.md has it in full): header, field descriptors, one row of metadata a
sample, pages of data in which no sample crosses a page border, allocation table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.errors import DataError
from convert.layout import FIELDS, RECORD, Layout
from convert.parts import Part, create_array, read_data, read_records
from convert.shards import Shards

NAME = "samples.beton"
INDEX = "samples.beton.index.npy"
VERSION = 2
PAGE = 1 << 23
_ROWS = 10_000  # of the index, read at a time

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
DESCRIPTOR = np.dtype(
    [("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_INT = np.dtype("<i8")
_JPEG = 0  # `mode` of an image stored as JPEG
_TYPES = {"image": (2, _IMAGE), "bytes": (3, _BYTES), "int": (1, _INT)}


def field_kinds(codecs: dict[str, str]) -> dict[str, str]:
    """FFCV's kind of each field in file order: an image where the codec stores a JPEG."""
    kinds = {name: "bytes" if codecs[name] == "runs" else "image" for name in FIELDS}
    return {**kinds, "index": "int"}


def metadata_dtype(codecs: dict[str, str]) -> np.dtype:
    """One row of metadata: fields f0, f1, ... in file order, aligned as FFCV does."""
    kinds = field_kinds(codecs).values()
    return np.dtype([(f"f{i}", _TYPES[kind][1]) for i, kind in enumerate(kinds)], align=True)


@dataclass(frozen=True, kw_only=True)
class Beton:
    """An FFCV file that is put together from parts by several processes at a time.

    `create` it, `write` each part where `begins` says, then `finish` it.
    folder: where the parts are.
    """

    path: Path
    folder: Path
    layout: Layout
    codecs: dict[str, str]

    def create(self) -> None:
        """The file, unfinished, and its per-record index beside it, empty."""
        create_array(self._index, RECORD, (self.layout.samples,))
        self.path.write_bytes(_header(self.layout.samples, 0, self.codecs))

    def begins(self, parts: list[Part]) -> Iterator[tuple[Part, int]]:
        """Each part, and the byte from which on its data lies. parts: all, in sample order."""
        at = self._data_at
        for part in parts:
            yield part, at
            at = _end(_placed(read_records(part, self.folder), at))

    def write(self, part: Part, at: int) -> None:
        """Copy a part's data to byte ``at``; its rows of metadata and index follow from that."""
        data = read_data(part, self.folder)
        records = read_records(part, self.folder)
        placed = _placed(records, at)
        with open(self.path, "r+b") as file:
            for target, piece in _pieces(memoryview(data), records, placed):
                file.seek(target)
                file.write(piece)
            rows = _metadata_rows(part, placed, self.layout, self.codecs)
            file.seek(self._rows_at + part.start * rows.itemsize)
            file.write(rows.tobytes())
        with open(self._index, "r+b") as file:
            # Not through a map: on some network file systems that writes whole pages, a neighbour's
            # rows among them.
            file.seek(-(self.layout.samples - part.start) * RECORD.itemsize, os.SEEK_END)
            file.write(placed.tobytes())

    def finish(self) -> None:
        """The allocation table, as the index says, and last the pointer to it.

        Without the pointer stock FFCV opens the file and reads nonsense; our readers refuse it.
        """
        samples = self.layout.samples
        end = _end(self._read_index(samples - 1, samples))
        with open(self.path, "r+b") as file:
            file.seek(end)
            for start in range(0, samples, _ROWS):
                rows = self._read_index(start, start + _ROWS)
                file.write(_allocations(start, rows).tobytes())
            file.seek(0)
            file.write(_header(samples, end, self.codecs))

    def _read_index(self, start: int, stop: int) -> np.ndarray:
        # Not through a map: what is read of one counts as memory until it is closed.
        stop = min(stop, self.layout.samples)
        at = self._index.stat().st_size - (self.layout.samples - start) * RECORD.itemsize
        return np.fromfile(self._index, RECORD, stop - start, offset=at)

    @property
    def _index(self) -> Path:
        return self.path.with_name(INDEX)

    @property
    def _rows_at(self) -> int:
        return HEADER.itemsize + DESCRIPTOR.itemsize * len(field_kinds(self.codecs))

    @property
    def _data_at(self) -> int:
        return _align(self._rows_at + metadata_dtype(self.codecs).itemsize * self.layout.samples)


def _align(position: int) -> int:
    return -(-position // PAGE) * PAGE


def _end(placed: np.ndarray) -> int:
    last = placed[-1][FIELDS[-1]]
    return int(last["offset"]) + int(last["size"])


def _placed(records: np.ndarray, at: int) -> np.ndarray:
    """A part's records with offsets in the file, from ``at`` on; no sample crosses a page."""
    placed = records.copy()
    sizes = np.stack([records[name]["size"] for name in FIELDS], axis=1).astype(np.int64)
    begins = _begins(sizes.sum(axis=1), at)
    offsets = begins[:, None] + np.cumsum(sizes, axis=1) - sizes
    for column, name in enumerate(FIELDS):
        placed[name]["offset"] = offsets[:, column]
    return placed


def _begins(totals: np.ndarray, at: int) -> np.ndarray:
    """Where each sample begins, a new page wherever the current one has no room for it."""
    begins = np.empty(len(totals), np.int64)
    for row, total in enumerate(totals.tolist()):
        if total > PAGE:
            raise DataError(
                f"a sample of {total:,} bytes is larger than a page of the FFCV file ({PAGE:,}); "
                "pack with --format webdataset alone"
            )
        if at // PAGE != (at + total - 1) // PAGE:
            at = _align(at)
        begins[row] = at
        at += total
    return begins


def _pieces(
    data: memoryview, records: np.ndarray, placed: np.ndarray
) -> Iterator[tuple[int, memoryview]]:
    """A part's data in as many pieces as there are pages, and where each belongs."""
    # A part's fields lie back to back, here as there; only a new page makes a gap.
    origin = records[FIELDS[0]]["offset"].astype(np.int64)
    target = placed[FIELDS[0]]["offset"].astype(np.int64)
    first = np.flatnonzero(np.diff(target - origin, prepend=-1))
    begins = origin[first].tolist()
    for row, begin, end in zip(first.tolist(), begins, [*begins[1:], len(data)], strict=True):
        yield int(target[row]), data[begin:end]


def _header(samples: int, allocations_at: int, codecs: dict[str, str]) -> bytes:
    kinds = field_kinds(codecs)
    header = np.zeros(1, HEADER)
    header["version"], header["num_fields"], header["page_size"] = VERSION, len(kinds), PAGE
    header["num_samples"], header["alloc_table_ptr"] = samples, allocations_at
    descriptors = np.zeros(len(kinds), DESCRIPTOR)
    for row, (name, kind) in zip(descriptors, kinds.items(), strict=True):
        row["type_id"] = _TYPES[kind][0]
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return header.tobytes() + descriptors.tobytes()


def _metadata_rows(
    part: Part, placed: np.ndarray, layout: Layout, codecs: dict[str, str]
) -> np.ndarray:
    rows = np.zeros(len(placed), metadata_dtype(codecs))
    for i, (name, kind) in enumerate(field_kinds(codecs).items()):
        column = rows[f"f{i}"]
        if kind == "int":
            column[:] = np.arange(part.start, part.stop)
        elif kind == "image":
            column["mode"], column["data_ptr"] = _JPEG, placed[name]["offset"]
            column["width"], column["height"] = layout.width, layout.height
        else:
            column["ptr"], column["size"] = placed[name]["offset"], placed[name]["size"]
    return rows


def _allocations(start: int, placed: np.ndarray) -> np.ndarray:
    """Rows of the allocation table of the samples from ``start`` on."""
    table = np.zeros((len(placed), len(FIELDS)), ALLOCATION)
    table["sample_id"] = np.arange(start, start + len(placed))[:, None]
    for column, name in enumerate(FIELDS):
        table["ptr"][:, column] = placed[name]["offset"]
        table["size"][:, column] = placed[name]["size"]
    return table


def check_structure(shards: Shards) -> Iterator[str]:
    """What stock FFCV does not look at: header, metadata and allocation table, by our index."""
    file, path = shards.files[0], shards.folder / shards.names[0]
    codecs, samples = shards.manifest.codecs, len(shards)
    kinds = field_kinds(codecs)
    header = file[: HEADER.itemsize].view(HEADER)[0]
    pointer = int(header["alloc_table_ptr"])
    expected = pointer + samples * len(FIELDS) * ALLOCATION.itemsize
    if pointer == 0:
        yield f"{path}: unfinished: no allocation table"
        return
    if int(header["num_samples"]) != samples or file.size != expected:
        yield (
            f"{path}: header tells of {header['num_samples']} samples and {expected} bytes, "
            f"expected {samples} samples and {file.size} bytes"
        )
        return
    at = HEADER.itemsize + len(kinds) * DESCRIPTOR.itemsize
    if file[:at].tobytes() != _header(samples, pointer, codecs):
        yield f"{path}: header or field descriptors differ from what pack writes"
    dtype = metadata_dtype(codecs)
    rows = file[at : at + samples * dtype.itemsize].view(dtype)
    table = file[pointer:].view(ALLOCATION).reshape(samples, len(FIELDS))
    for column, name in enumerate(FIELDS):
        records = shards.records[name]
        key = "data_ptr" if kinds[name] == "image" else "ptr"
        wrong = rows[f"f{column}"][key] != records["offset"]
        wrong |= table["ptr"][:, column] != records["offset"]
        wrong |= table["size"][:, column] != records["size"]
        for index in np.flatnonzero(wrong):
            yield f"record {index}, {name} ({path}): metadata and per-record index disagree"
