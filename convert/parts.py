"""The unit of work of `pack`: consecutive samples of one background, read, checked and encoded.

A part is three files: `part-000012.bin` (the stored fields, contiguous), `.npy` (the place and
CRC32C of each) and `.json` (sums and counts), written last: a part without it is unfinished. Both
formats are assembled from parts, so that each source file is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import crc32c
import numpy as np

from convert.codecs import ENCODERS
from convert.errors import DataError, RecordError
from convert.files import replace_file, write_json
from convert.layout import FIELDS, RECORD, Layout
from convert.moments import Accumulator, Moments, Statistics
from convert.source import Source

SAMPLES_PER_PART = 1000
"""About 12 MB per part: small enough to share work evenly, large enough to read efficiently."""

_WRITE_BYTES = 1 << 20  # a buffer; each field of some kilobytes would otherwise be a system call
_OPEN_FILES = 256  # parts kept open per process; the usual limit is 1,024 files


@dataclass(frozen=True)
class Part:
    """Samples ``start`` to ``stop - 1``, all of one background, and the part's number."""

    number: int
    start: int
    stop: int

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / f"part-{self.number:06d}.{suffix}"


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


def write_part(source: Source, codecs: dict[str, str], part: Part, folder: Path) -> int:
    """Encode one part's samples into ``folder`` and return their number.

    Raises RecordError that names a corrupt source file.
    """
    counts: Counter[str] = Counter()
    accumulators = new_accumulators()
    layout = source.layout
    group = int(layout.background_of(np.asarray(part.start)))
    first = int(layout.group_starts[group])
    names = source.names(group)[part.start - first : part.stop - first]
    folders = [str(path) for path in source.folders(group)]
    places: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in FIELDS}
    offset = crc = 0
    stamps = hashlib.sha256()
    with replace_file(part.path(folder, "bin"), buffering=_WRITE_BYTES) as file:
        for index, file_name in enumerate(names, part.start):
            for name, parent in zip(FIELDS, folders, strict=True):
                path = f"{parent}/{file_name}"
                try:
                    raw, stamp = _read(path)
                    encoded = ENCODERS[codecs[name]](raw, layout.height, layout.width)
                except OSError as error:
                    reason = f"cannot be read ({error.strerror})"
                    raise RecordError(index, name, path, reason) from None
                except ValueError as error:
                    reason = f"{error}; fix or replace the file"
                    raise RecordError(index, name, path, reason) from None
                stamps.update(stamp)
                file.write(encoded.data)
                crc = crc32c.crc32c(encoded.data, crc)
                size = len(encoded.data)
                places[name].append((0, size, offset, crc32c.crc32c(encoded.data)))
                offset += size
                accumulators[name].add(encoded.pixels)
                counts["source_bytes"] += len(raw)
                for counted, number in encoded.counts.items():  # `update` takes 4 us
                    counts[counted] += number
    records = np.empty(len(names), RECORD)
    for name, rows in places.items():
        records[name] = rows
    with replace_file(part.path(folder, "npy")) as file:
        np.save(file, records)
    summary = {
        "stamps": stamps.hexdigest(),
        "crc32c": crc,
        "statistics": {name: a.moments.to_json() for name, a in accumulators.items()},
        "counts": counts,
    }
    write_json(part.path(folder, "json"), summary)
    return len(names)


def is_finished(part: Part, source: Source, folder: Path) -> bool:
    """Whether a part was written, from files that are still the same by size and time."""
    try:
        recorded = json.loads(part.path(folder, "json").read_text())["stamps"]
        last = read_records(part, folder)[part.stop - part.start - 1][FIELDS[-1]]
        size = part.path(folder, "bin").stat().st_size
    except Exception:  # a file is missing, or the disk lost its end; NumPy fails in many ways
        return False
    if size != int(last["offset"]) + int(last["size"]):
        return False
    stamps = hashlib.sha256()
    for index in range(part.start, part.stop):
        for name, path in zip(FIELDS, source.paths(index), strict=True):
            try:
                stamps.update(_stamp(os.stat(path)))
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
                raise RecordError(index, name, str(path), reason) from None
    return bool(recorded == stamps.hexdigest())


def _stamp(status: os.stat_result) -> bytes:
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def _read(path: str) -> tuple[bytes, bytes]:
    """A file's bytes and its stamp."""
    # Plain system calls, because a file object makes more of them for each of a million files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size)):
            data += more
    finally:
        os.close(descriptor)
    return data, _stamp(status)


def read_summary(part: Part, folder: Path) -> PartSummary:
    """Statistics and counts of a finished part."""
    value = json.loads(part.path(folder, "json").read_text())
    return PartSummary(
        statistics={name: Moments.from_json(m) for name, m in value["statistics"].items()},
        counts=Counter(value["counts"]),
    )


def read_records(part: Part, folder: Path) -> np.ndarray:
    """Records (`RECORD`) of a finished part, with offsets in the part's file."""
    return np.asarray(np.load(part.path(folder, "npy")))


def read_data(part: Part, folder: Path) -> bytes:
    """The stored fields of a finished part, checked; DataError if the disk lost some."""
    data = part.path(folder, "bin").read_bytes()
    check_crc(data, json.loads(part.path(folder, "json").read_text())["crc32c"], part, folder)
    return data


class PartFiles:
    """Stored fields of finished parts, in files that are open until the end of a `with` block."""

    def __init__(self, parts: list[Part], folder: Path) -> None:
        self._parts, self._folder = parts, folder
        self._descriptors: dict[int, int] = {}

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
