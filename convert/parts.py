"""The unit of work of `pack`: consecutive samples of one background, read, checked and encoded.

A part is three files: `part-000012.bin` (the stored fields, contiguous), `.npy` (the place and
CRC32C of each) and `.json` (sums and counts). The last is written when the others are on the
disk; a part without it is unfinished. Both formats are assembled from parts, so that each source
file is read once.
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
"""About 12 MB a part: small enough to share work evenly, large enough to read efficiently."""

_WRITE_BYTES = 1 << 20
"""Buffer size; fields have some kilobytes, and each would otherwise be a system call."""

_OPEN_FILES = 256
"""Parts that a process keeps open; the usual limit is 1,024 files, and there may be more parts."""

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
    """Statistics and counts of one part, or of all."""

    statistics: Statistics = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, counts: dict[str, int]) -> None:
        """Add counts by name."""
        for name, number in counts.items():
            self.counts[name] = self.counts.get(name, 0) + number

    def add(self, other: PartSummary) -> None:
        """Add another part; the order does not matter, as all sums are integers."""
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
    """Encode one part's samples into ``folder``; RecordError names a corrupt source file."""
    summary = PartSummary()
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
                summary.count(encoded.counts)
    summary.count({"source_bytes": source_bytes})
    records = np.empty(part.stop - part.start, RECORD)
    for name, rows in places.items():
        records[name] = rows
    with replace_file(part.path(folder, "npy")) as file:
        np.save(file, records)
    summary.statistics = {name: a.moments for name, a in accumulators.items()}
    write_json(
        part.path(folder, "json"),
        {
            "stamps": stamps.hexdigest(),
            "crc32c": crc,
            "statistics": {name: m.to_json() for name, m in summary.statistics.items()},
            "counts": summary.counts,
        },
    )


def is_finished(part: Part, source: Source, folder: Path) -> bool:
    """Whether a part was written, from files that are still the same by size and time."""
    if not _is_complete(part, folder):
        return False
    recorded = json.loads(part.path(folder, "json").read_text())["stamps"]
    stamps = hashlib.sha256()
    for index in range(part.start, part.stop):
        for name, path in zip(FIELDS, source.paths(index), strict=True):
            try:
                stamps.update(_stamp(os.stat(path)))
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
                raise RecordError(index, name, str(path), reason) from None
    return recorded == stamps.hexdigest()


def _is_complete(part: Part, folder: Path) -> bool:
    """Whether a part's files exist with the sizes that they were written with."""
    if not part.path(folder, "json").exists():
        return False
    try:
        last = read_records(part, folder)[part.stop - part.start - 1][FIELDS[-1]]
        size = part.path(folder, "bin").stat().st_size
    except Exception:  # the disk lost the end of a file; NumPy fails in many ways
        return False
    return size == int(last["offset"]) + int(last["size"])


def _stamp(status: os.stat_result) -> bytes:
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def _read(index: int, name: str, path: str) -> tuple[bytes, bytes]:
    """A file's bytes and its stamp."""
    # Plain system calls, because a file object makes more of them for each of a million files.
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size)):
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RecordError(index, name, path, f"cannot be read ({error.strerror})") from None
    return data, _stamp(status)


def _encode(raw: bytes, codec: str, index: int, name: str, path: str, layout: Layout) -> Encoded:
    try:
        return CODECS[codec].encode(raw, layout.height, layout.width)
    except ValueError as error:
        raise RecordError(index, name, path, f"{error}; fix or replace the file") from None


def read_summary(part: Part, folder: Path) -> PartSummary:
    """Statistics and counts of a finished part."""
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
    """Stored fields of finished parts, read by system calls so that no pages stay mapped."""

    def __init__(self, parts: list[Part], folder: Path) -> None:
        self._parts, self._folder = parts, folder
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> PartFiles:
        """Open files as they are needed, until the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files."""
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
    """Create a memory-mapped `.npy` file and reserve its space on the disk.

    Raises OSError if there is not enough: writing to a map of missing space kills the process.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
