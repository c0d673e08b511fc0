"""The parts from which `pack` assembles all formats: what a part is, and how it is read.

A part is two files for each format, `part-000012.ffcv.bin` (the stored fields, contiguous) and
`.ffcv.npy` (the place and CRC32C of each), and `part-000012.json` (sums and counts), written last:
a part without it is unfinished. `convert.encoding` writes them, so that each source file is read
once, whatever the number of formats. `compose` keeps such a record of each part of its own.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import crc32c
import numpy as np
from pydantic import Field

from maskdepth.convert.errors import DataError, reading
from maskdepth.convert.files import check_signature, read_regular, signed, write_json
from maskdepth.convert.layout import FIELDS, RECORD, Layout
from maskdepth.convert.maps import load_array
from maskdepth.convert.moments import Accumulator, Moments, Statistics
from maskdepth.convert.schema import Count, Schema, parse_table

SAMPLES_PER_PART = 1000
"""About 12 MB per part: small enough to share work evenly, large enough to read efficiently."""

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
