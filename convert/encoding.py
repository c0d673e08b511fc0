"""The unit of work of `pack`: consecutive samples of one background, read, checked and encoded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from maskdepth.convert.bases import Bases, RecordWriter, open_bases
from maskdepth.convert.codecs import ENCODERS, Encoded
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.files import replace_file
from maskdepth.convert.layout import FIELDS, RECORD, Layout
from maskdepth.convert.manifest import BaseFile
from maskdepth.convert.parts import (
    Part,
    check_crc,
    new_accumulators,
    read_record,
    read_records,
    write_record,
)
from maskdepth.convert.source import Samples
from maskdepth.convert.storage import CODECS

Codecs = Mapping[str, Mapping[str, str]]
"""Codec of each field, for each format."""

_WRITE_BYTES = 1 << 20  # a buffer; each field of some kilobytes would otherwise be a system call


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
    """Whether a part was written from these bases and from samples with the same stamps."""
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
