"""The unit of work of `pack`: consecutive samples of one background, read, checked and encoded.

A part is two files for each format, `part-000012.ffcv.bin` (the stored fields, contiguous) and
`.ffcv.npy` (the place and CRC32C of each), and `part-000012.json` (sums and counts), written last:
a part without it is unfinished. All formats are assembled from parts, so that each source file is
read once.
"""

from __future__ import annotations

import hashlib
import os
import resource
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
from pydantic import Field

from convert.bases import Bases, RecordWriter, open_bases
from convert.codecs import ENCODERS, Encoded
from convert.errors import DataError, RecordError, reading
from convert.files import (
    check_signature,
    read_regular,
    replace_file,
    signed,
    write_json,
)
from convert.layout import FIELDS, RECORD, Layout
from convert.manifest import BaseFile
from convert.maps import load_array
from convert.moments import Accumulator, Moments, Statistics
from convert.schema import Count, Schema, parse_table
from convert.source import Samples
from convert.storage import CODECS

SAMPLES_PER_PART = 1000
"""About 12 MB per part: small enough to share work evenly, large enough to read efficiently."""

Codecs = Mapping[str, Mapping[str, str]]
"""Codec of each field, for each format."""

_WRITE_BYTES = 1 << 20  # a buffer; each field of some kilobytes would otherwise be a system call
_OPEN_FILES = 256  # parts kept open per process, at most; the usual limit is 1,024 files


@dataclass(frozen=True)
class Part:
    """Samples ``start`` to ``stop - 1``, all of one background, and the part's number."""

    number: int
    start: int
    stop: int

    @property
    def indices(self) -> range:
        return range(self.start, self.stop)

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / f"part-{self.number:06d}.{suffix}"


class PartRecord(Schema):
    """`part-N.json`. stamps: hash of what the part was made from. crc32c: of each format's `.bin`.

    records_crc32c: of the rows of each format's `.npy`. A part of `compose` has stamps and the
    crc32c of its "images" alone.
    """

    stamps: str
    crc32c: dict[str, Count]
    records_crc32c: dict[str, Count] = Field(default_factory=dict)
    statistics: dict[str, Moments] = Field(default_factory=dict)
    counts: dict[str, Count] = Field(default_factory=dict)


@dataclass(kw_only=True)
class PartSummary:
    """Statistics and counts of one part, or of all."""

    statistics: Statistics = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: PartSummary) -> None:
        """Add another part; the order does not matter, as all sums are integers."""
        self.counts.update(other.counts)
        for name, moments in other.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = moments if known is None else known + moments


def split_parts(layout: Layout, size: int = SAMPLES_PER_PART) -> list[Part]:
    """All parts in sample order; independent of the number of workers."""
    starts = layout.group_starts.tolist()
    begins = [begin for group in pairwise(starts) for begin in range(*group, size)]
    return [Part(n, *span) for n, span in enumerate(pairwise([*begins, layout.samples]))]


def new_accumulators() -> dict[str, Accumulator]:
    """Empty sums of each field."""
    return {"fg_bg": Accumulator(3, 255), "mask": Accumulator(1, 1), "depth": Accumulator(1, 255)}


class _Encoder:
    """Encodes the images of one background with each codec that a format needs."""

    def __init__(self, layout: Layout, bases: Mapping[str, Bases], group: int) -> None:
        self._size = (layout.height, layout.width)
        self._writers = {name: RecordWriter(b, group, name) for name, b in bases.items()}

    def encode(self, name: str, source: bytes, codecs: Iterable[str]) -> dict[str, Encoded]:
        """A field by codec; ValueError with the reason if the source is corrupt."""
        found: dict[str, Encoded] = {}
        for codec in codecs:
            plain = CODECS[codec].fallback or codec
            if plain not in found:
                found[plain] = ENCODERS[plain](source, *self._size)
            if plain != codec:
                found[codec] = self._writers[name].encode(found[plain])
        return found


class _PartFile:
    """The stored fields of a part in one format; written to `.bin` and, when closed, `.npy`."""

    def __init__(self, part: Part, form: str, folder: Path) -> None:
        self._places = part.path(folder, f"{form}.npy")
        self._stack = ExitStack()
        data = replace_file(part.path(folder, f"{form}.bin"), buffering=_WRITE_BYTES)
        self._file = self._stack.enter_context(data)
        self._rows: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in FIELDS}
        self._size = self.crc = self.records_crc = 0

    def __enter__(self) -> _PartFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is None:
            records = np.empty(len(self._rows[FIELDS[0]]), RECORD)
            for name, rows in self._rows.items():
                records[name] = rows
            self.records_crc = crc32c.crc32c(records.tobytes())
            with replace_file(self._places) as file:
                np.save(file, records)

    def add(self, name: str, data: bytes) -> None:
        """Append the next sample's field; the fields of a sample in the order of `FIELDS`."""
        self._file.write(data)
        self.crc = crc32c.crc32c(data, self.crc)
        self._rows[name].append((0, len(data), self._size, crc32c.crc32c(data)))
        self._size += len(data)


def write_part(
    source: Samples, codecs: Codecs, bases: Mapping[str, BaseFile], part: Part, folder: Path
) -> int:
    """Encode one part's samples into ``folder``, which is beside the bases; returns their number.

    Raises RecordError that names a corrupt source file.
    """
    counts: Counter[str] = Counter()
    accumulators = new_accumulators()
    layout = source.layout
    group = int(layout.background_of(np.asarray(part.start)))
    opened = {name: open_bases(folder.parent, b, layout) for name, b in bases.items()}
    encoder = _Encoder(layout, opened, group)
    needed = {name: {codecs[form][name] for form in codecs} for name in FIELDS}
    stamps = _stamps_of(opened, group)
    with ExitStack() as stack:
        files = {form: stack.enter_context(_PartFile(part, form, folder)) for form in codecs}
        for index, sample in enumerate(source.read(part.indices), part.start):
            stamps.update(sample.stamp)
            for name, raw, path in zip(FIELDS, sample.images, sample.paths, strict=True):
                try:
                    encoded = encoder.encode(name, raw, needed[name])
                except ValueError as error:
                    reason = f"{error}; fix or replace the file"
                    raise RecordError(index, name, path, reason) from None
                for form, file in files.items():
                    file.add(name, encoded[codecs[form][name]].data)
                counts["source_bytes"] += len(raw)
                # A codec that falls back has the counts of the other too. `update` takes 4 us.
                last = max(encoded.values(), key=lambda one: len(one.counts))
                for counted, number in last.counts.items():
                    counts[counted] += number
                accumulators[name].add(last.pixels)
    summary = {
        "stamps": stamps.hexdigest(),
        "crc32c": {form: file.crc for form, file in files.items()},
        "records_crc32c": {form: file.records_crc for form, file in files.items()},
        "statistics": {name: a.moments.to_json() for name, a in accumulators.items()},
        "counts": counts,
    }
    write_record(part, folder, summary)
    return len(part.indices)


def is_finished(
    part: Part, source: Samples, codecs: Codecs, bases: Mapping[str, Bases], folder: Path
) -> bool:
    """Whether a part was written from these bases and from files of the same size and time."""
    try:
        recorded = read_record(part, folder)
        for form in codecs:
            records = read_records(part, form, folder)
            path = part.path(folder, f"{form}.npy")
            check_crc(records.tobytes(), recorded.records_crc32c.get(form), path)
            last, path = records[-1][FIELDS[-1]], part.path(folder, f"{form}.bin")
            if not path.is_file() or path.stat().st_size != int(last["offset"]) + int(last["size"]):
                return False
    except DataError:  # a file is missing, or the disk lost some of it
        return False
    stamps = _stamps_of(bases, int(source.layout.background_of(np.asarray(part.start))))
    for stamp in source.stamps(part.indices):
        stamps.update(stamp)
    return recorded.stamps == stamps.hexdigest()


def _stamps_of(bases: Mapping[str, Bases], group: int) -> hashlib._Hash:
    """The beginning of a part's stamps: the bases that its records need."""
    stamps = hashlib.sha256()
    for name in sorted(bases):
        found = bases[name]
        # The kind too: bases of zeros are equal in spite of other quantisers.
        stamps.update(repr(found.geometry.samplings).encode() + found.quantisers.tobytes())
        stamps.update(found.coefficients[group].tobytes())
    return stamps


def write_record(part: Part, folder: Path, record: Mapping[str, object]) -> None:
    """Record, durably, that a part is finished; record: the keys of `PartRecord`."""
    write_json(part.path(folder, "json"), signed(record))


def read_record(part: Part, folder: Path) -> PartRecord:
    """Record of a finished part; DataError if it is missing or no longer what was written."""
    path = part.path(folder, "json")
    try:
        with reading(path):
            text = read_regular(path)
        return PartRecord.from_json(check_signature(parse_table(text), text))
    except ValueError as error:
        raise _lost(path, str(error)) from None


def read_summary(part: Part, folder: Path) -> PartSummary:
    """Statistics and counts of a finished part."""
    record = read_record(part, folder)
    return PartSummary(statistics=record.statistics, counts=Counter(record.counts))


def read_records(part: Part, form: str, folder: Path) -> np.ndarray:
    """Records (`RECORD`) of a finished part in a format, with offsets in the part's file."""
    return load_array(part.path(folder, f"{form}.npy"), RECORD, (part.stop - part.start,))


def read_data(part: Part, form: str, folder: Path) -> bytes:
    """The stored fields of a finished part, checked; DataError if the disk lost some."""
    path = part.path(folder, f"{form}.bin")
    data = path.read_bytes()
    check_crc(data, read_record(part, folder).crc32c.get(form), path)
    return data


class PartFiles:
    """Stored fields of finished parts, in files that are open until the end of a `with` block."""

    def __init__(self, parts: list[Part], form: str, folder: Path) -> None:
        self._paths = [part.path(folder, f"{form}.bin") for part in parts]
        self._descriptors: dict[int, int] = {}
        # A quarter of what is allowed, as workers have pipes and libraries open, too; -1: no limit.
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(_OPEN_FILES, allowed // 4) if allowed > 3 else _OPEN_FILES

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def fields(self, number: int, record: np.void) -> dict[str, bytes]:
        """All fields of one sample of part ``number``, each checked against its CRC32C."""
        places = [record[name].item() for name in FIELDS]
        first = places[0][2]
        last = places[-1][2] + places[-1][1]
        data = os.pread(self._open(number), last - first, first)
        found = {}
        for name, (_, size, offset, crc) in zip(FIELDS, places, strict=True):
            found[name] = data[offset - first : offset - first + size]
            check_crc(found[name], crc, self._paths[number])
        return found

    def _open(self, number: int) -> int:
        if number not in self._descriptors:
            if len(self._descriptors) == self._most:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[number] = os.open(self._paths[number], os.O_RDONLY)
        return self._descriptors[number]


def check_crc(data: bytes, expected: int | None, path: Path) -> None:
    """DataError if a part's file no longer holds what was written to it."""
    if crc32c.crc32c(data) != expected:
        raise _lost(path, "checksum differs")


def _lost(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: {reason}, the disk lost what was written to it; delete {path.parent.parent} and "
        "pack again"
    )


def create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped `.npy` file and reserve its space on the disk.

    Raises OSError if there is not enough: writing to a map of missing space kills the process.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
