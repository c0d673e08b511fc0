"""The unit of work of `pack`: a run of samples of one background, read, checked and encoded.

A part is three files: `part-000012.bin` (the stored fields back to back), `.npy` (where each
lies, with its CRC32C) and `.json` (sums and counts), written last, when the others are on the
disk: a part without it is unfinished. Both formats are put together from parts, so a source file
is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import crc32c
import numpy as np

from convert.codecs import CODECS, Encoded
from convert.errors import DataError, RecordError
from convert.files import replace_file, write_json
from convert.layout import FIELDS, RECORD, Layout
from convert.moments import Accumulator, Moments, Statistics
from convert.source import Source

SAMPLES_PER_PART = 1000
"""About 12 MB a part: small enough to share work evenly, large enough to be read in a gulp."""

_WRITE_BYTES = 1 << 20
"""Fields are of some kilobytes: written one by one, each would be a system call."""

_OPEN_FILES = 256
"""Parts a process keeps open: a limit of 1,024 files is usual, and millions of samples have more
parts."""

_SCALES = {"fg_bg": (3, 255), "mask": (1, 1), "depth": (1, 255)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples ``start`` to ``stop - 1``, all of one background, and the part's number."""

    number: int
    start: int
    stop: int

    def path(self, folder: Path, suffix: str) -> Path:
        """One of the part's files."""
        return folder / f"part-{self.number:06d}.{suffix}"


@dataclass(kw_only=True)
class PartSummary:
    """What a part, or all of them, told of its samples."""

    statistics: Statistics = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, counts: dict[str, int]) -> None:
        """Add counts by name."""
        for name, number in counts.items():
            self.counts[name] = self.counts.get(name, 0) + number

    def add(self, other: PartSummary) -> None:
        """Take in another part's remarks; the order does not matter, all sums are integers."""
        self.count(other.counts)
        for name, moments in other.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = moments if known is None else known + moments


def split_parts(layout: Layout, size: int = SAMPLES_PER_PART) -> Iterator[Part]:
    """All parts in sample order; independent of the number of workers."""
    number = 0
    for first, end in zip(layout.group_starts[:-1], layout.group_starts[1:], strict=True):
        for start in range(int(first), int(end), size):
            yield Part(number=number, start=start, stop=min(start + size, int(end)))
            number += 1


def new_accumulators() -> dict[str, Accumulator]:
    """Empty sums of each field."""
    return {name: Accumulator(*_SCALES[name]) for name in FIELDS}


def write_part(source: Source, codecs: dict[str, str], part: Part, folder: Path) -> None:
    """Encode one part's samples into ``folder``; RecordError names a bad source file."""
    remarks = PartSummary()
    accumulators = new_accumulators()
    group = int(source.layout.background_of(np.asarray(part.start)))
    first = int(source.layout.group_starts[group])
    names = source.names(group)[part.start - first : part.stop - first]
    folders = [str(path) for path in source.folders(group)]
    places: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in FIELDS}
    offset = source_bytes = crc = 0
    stamps = hashlib.sha256()
    with replace_file(part.path(folder, "bin"), buffering=_WRITE_BYTES) as file:
        for index, file_name in enumerate(names, part.start):
            for name, parent in zip(FIELDS, folders, strict=True):
                path = f"{parent}/{file_name}"
                raw, stamp = _read(index, name, path)
                stamps.update(stamp)
                encoded = _encode(raw, codecs[name], index, name, path, source.layout)
                file.write(encoded.data)
                crc = crc32c.crc32c(encoded.data, crc)
                size = len(encoded.data)
                places[name].append((0, size, offset, crc32c.crc32c(encoded.data)))
                offset += size
                source_bytes += len(raw)
                accumulators[name].add(encoded.pixels)
                remarks.count(encoded.counts)
    remarks.count({"source_bytes": source_bytes})
    records = np.empty(part.stop - part.start, RECORD)
    for name, rows in places.items():
        records[name] = rows
    with replace_file(part.path(folder, "npy")) as file:
        np.save(file, records)
    remarks.statistics = {name: a.moments for name, a in accumulators.items()}
    write_json(
        part.path(folder, "json"),
        {
            "stamps": stamps.hexdigest(),
            "crc32c": crc,
            "statistics": {name: m.to_json() for name, m in remarks.statistics.items()},
            "counts": remarks.counts,
        },
    )


def is_finished(part: Part, source: Source, folder: Path) -> bool:
    """Whether a part was written, from files that are still the same by size and time."""
    if not _is_whole(part, folder):
        return False
    told = json.loads(part.path(folder, "json").read_text())["stamps"]
    stamps = hashlib.sha256()
    for index in range(part.start, part.stop):
        for name, path in zip(FIELDS, source.paths(index), strict=True):
            try:
                stamps.update(_stamp(os.stat(path)))
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
                raise RecordError(index, name, str(path), reason) from None
    return told == stamps.hexdigest()


def _is_whole(part: Part, folder: Path) -> bool:
    """Whether a part's files are there, as long as they were written."""
    if not part.path(folder, "json").exists():
        return False
    try:
        last = read_records(part, folder)[part.stop - part.start - 1][FIELDS[-1]]
        size = part.path(folder, "bin").stat().st_size
    except Exception:  # a disk that lost a file's end; NumPy fails in many ways
        return False
    return size == int(last["offset"]) + int(last["size"])


def _stamp(facts: os.stat_result) -> bytes:
    return f"{facts.st_size} {facts.st_mtime_ns}\n".encode()


def _read(index: int, name: str, path: str) -> tuple[bytes, bytes]:
    """A file's bytes and its stamp."""
    # Plain system calls: a file object costs more of them, a million times.
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            facts = os.fstat(descriptor)
            data = os.read(descriptor, facts.st_size)
            while len(data) < facts.st_size and (more := os.read(descriptor, facts.st_size)):
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RecordError(index, name, path, f"cannot be read ({error.strerror})") from None
    return data, _stamp(facts)


def _encode(raw: bytes, codec: str, index: int, name: str, path: str, layout: Layout) -> Encoded:
    try:
        return CODECS[codec].encode(raw, layout.height, layout.width)
    except ValueError as error:
        raise RecordError(index, name, path, f"{error}; mend or replace the file") from None


def read_summary(part: Part, folder: Path) -> PartSummary:
    """What a finished part says."""
    value = json.loads(part.path(folder, "json").read_text())
    return PartSummary(
        statistics={name: Moments.from_json(m) for name, m in value["statistics"].items()},
        counts=value["counts"],
    )


def read_records(part: Part, folder: Path) -> np.ndarray:
    """Records (`RECORD`) of a finished part, with offsets in the part's file."""
    return np.load(part.path(folder, "npy"))


def read_data(part: Part, folder: Path) -> bytes:
    """The stored fields of a finished part, checked; DataError if the disk lost some."""
    data = part.path(folder, "bin").read_bytes()
    check_crc(data, json.loads(part.path(folder, "json").read_text())["crc32c"], part, folder)
    return data


class PartFiles:
    """Stored fields of finished parts, read with plain system calls: no pages stay mapped."""

    def __init__(self, parts: list[Part], folder: Path) -> None:
        self._parts, self._folder = parts, folder
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> PartFiles:
        """Files are opened as they are needed and closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all."""
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
            check_crc(found[name], crc, self._parts[number], self._folder)
        return found

    def _open(self, number: int) -> int:
        if number not in self._descriptors:
            if len(self._descriptors) == _OPEN_FILES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = self._parts[number].path(self._folder, "bin")
            self._descriptors[number] = os.open(path, os.O_RDONLY)
        return self._descriptors[number]


def check_crc(data: bytes, expected: int, part: Part, folder: Path) -> None:
    """DataError if a part's file no longer holds what was written to it."""
    if crc32c.crc32c(data) != expected:
        raise DataError(
            f"{part.path(folder, 'bin')}: checksum differs, the disk lost what was written to it; "
            f"delete {folder.parent} and pack again"
        )


def create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new memory-mapped `.npy` file whose space on the disk is there.

    Raises OSError where it is not: writing to a map of missing space would kill the process.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
