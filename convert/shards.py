"""Random access to the stored fields of a shard folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import crc32c
import numpy as np

from maskdepth.convert.bases import open_bases
from maskdepth.convert.codecs import DECODERS
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.interrupts import interrupt_later
from maskdepth.convert.jpeg.record import is_record
from maskdepth.convert.layout import FIELDS, RECORD
from maskdepth.convert.manifest import BACKGROUNDS, Manifest, format_name, read_manifest
from maskdepth.convert.maps import load_array, map_file, release_pages, require_complete
from maskdepth.convert.storage import CODECS


class Shards:
    """One format of a shard folder, memory-mapped.

    backgrounds: uint8 (n_bg, H, W, 3), memory-mapped.
    records: the per-record index (`RECORD`), memory-mapped, in source order.
    files: the mapped shard files, each uint8 and flat; names: their file names.
    codecs: the codec of each field in this format.
    bases: of each field that is stored as differences from them.
    shared: names of the files that all records need: backgrounds, per-record index, bases, and the
        tables of samples if there are any.

    Opening checks that every file can be read and has the size given in the manifest, and that
    every record is inside its file; raises DataError otherwise.
    """

    def __init__(self, folder: str | Path, form: str | None = None) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)
        self.form = format_name(form) if form else next(iter(self.manifest.formats))
        if self.form not in self.manifest.formats:
            found = ", ".join(self.manifest.formats)
            raise DataError(
                f"{folder}: holds no {self.form} files, only {found}; pack again with "
                f"--format {self.form}"
            )
        self.names = self.manifest.formats[self.form].files
        index_name = self.manifest.formats[self.form].index
        self.codecs = self.manifest.codecs[self.form]
        bases = {n: b for n, b in self.manifest.bases.items() if CODECS[self.codecs[n]].fallback}
        self.shared = (BACKGROUNDS, index_name, *(b.file for b in bases.values()))
        layout = self.manifest.layout
        self.shared += tuple(table.name for table in (layout.table, layout.others) if table)
        self.check_files((*self.shared, *self.names), hashed=False)
        n_bg = len(self.manifest.backgrounds)
        image = (layout.height, layout.width, 3)
        self.backgrounds = load_array(self.folder / BACKGROUNDS, np.dtype(np.uint8), (n_bg, *image))
        self.records = load_array(self.folder / index_name, RECORD, (layout.samples,))
        self.bases = {name: open_bases(self.folder, b, layout) for name, b in bases.items()}
        self.files = [map_file(self.folder / name) for name in self.names]
        self._check_records()

    def _check_records(self) -> None:
        sizes = np.array([file.size for file in self.files], np.uint64)
        for name in FIELDS:
            records = self.records[name]
            which = np.minimum(records["file"], len(sizes) - 1)
            # Written without offset + size, which can overflow.
            outside = (records["file"] >= len(sizes)) | (records["size"] > sizes[which])
            outside |= records["offset"] > sizes[which] - np.minimum(records["size"], sizes[which])
            if outside.any():
                index = int(np.argmax(outside))
                raise RecordError(index, name, str(self.folder), "is outside its file; pack again")

    def close(self) -> None:
        """Unmap all files now; an object in a reference cycle would keep them open for long."""
        with interrupt_later():  # a finalizer unmaps each
            self.files, self.bases = [], {}
            self.records = np.empty(0, RECORD)
            self.backgrounds = np.empty((0, *self.backgrounds.shape[1:]), np.uint8)

    def __len__(self) -> int:
        return self.manifest.layout.samples

    def stored(self, index: int, name: str) -> np.ndarray:
        """Stored bytes of one field, uint8 and flat, as a view of the mapped file."""
        record = self.records[index][name]
        start = int(record["offset"])
        return self.files[int(record["file"])][start : start + int(record["size"])]

    def where(self, index: int, name: str) -> str:
        """The file that holds a record, for messages."""
        return str(self.folder / self.names[int(self.records[index][name]["file"])])

    def require_complete(self, indices: np.ndarray) -> None:
        """DataError if the index, or a file of these samples, has lost bytes since it was opened.

        To be called after samples were read: what is missing was zeros. `Bases.decoding` checks
        the bases.
        """
        for array in self._read_for(indices):
            require_complete(array)

    def release_pages(self, indices: np.ndarray) -> None:
        """Let what was read for these samples no longer count as memory of this process."""
        for array in self._read_for(indices):
            release_pages(array)

    def _read_for(self, indices: np.ndarray) -> list[np.ndarray]:
        """The maps that are read for samples."""
        # Views of one column first, as copying whole rows takes longer than all the rest.
        used = set().union(*(self.records[name]["file"][indices].tolist() for name in FIELDS))
        return [self.records, *(self.files[number] for number in used)]

    def require_complete_backgrounds(self) -> None:
        """The same for the backgrounds; to be called after they were read."""
        require_complete(self.backgrounds)

    def check(self, index: int, name: str) -> None:
        """RecordError unless the stored bytes have the CRC32C of the index."""
        crc = crc32c.crc32c(self.stored(index, name).data)
        expected = int(self.records[index][name]["crc32c"])
        if crc != expected:
            reason = f"checksum {crc:08x}, expected {expected:08x}: corrupted after it was written"
            raise RecordError(index, name, self.where(index, name), reason)

    def all_intact(self, indices: np.ndarray) -> bool:
        """Whether all stored fields of some samples have the CRC32C of the index."""
        records = self.records[indices]
        files = [file.data for file in self.files]
        return all(
            crc32c.crc32c(files[which][at : at + size]) == crc
            for name in FIELDS
            for which, size, at, crc in records[name].tolist()
        )

    def find_corruption(self, index: int) -> RecordError | None:
        """The problem of a sample's first corrupt field; None if the record is valid.

        Raises DataError if its file has lost bytes since it was opened.
        """
        self.require_complete(np.array([index]))
        for name in FIELDS:
            try:
                self.check(index, name)
                self.decode(index, name)
            except RecordError as error:
                return error
        return None

    def check_files(self, names: Iterable[str], *, hashed: bool = True) -> None:
        """DataError unless files have the size and, if ``hashed``, the SHA-256 of the manifest."""
        for name in names:
            if problem := self.manifest.files[name].problem(self.folder / name, hashed=hashed):
                raise DataError(problem)

    def decode(self, index: int, name: str) -> np.ndarray:
        """Pixels of one field as its codec decodes them; RecordError if that fails."""
        layout, stored, codec = self.manifest.layout, self.stored(index, name), self.codecs[name]
        try:
            if name in self.bases and is_record(stored):
                background = int(layout.background_of(np.asarray(index)))
                return self.bases[name].decode(stored, background)
            decode = DECODERS[CODECS[codec].fallback or codec]
            return decode(stored.tobytes(), layout.height, layout.width)
        except ValueError as error:
            raise RecordError(index, name, self.where(index, name), str(error)) from None
