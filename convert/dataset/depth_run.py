"""Estimates the depth of many images in parts, which can be finished by several runs and ranks.

Each part is a task of a thread, which reads its images, has the network predict them and writes
the maps: while one thread predicts, others decode and encode. Batches are within a part, and parts
depend on the images and the batch size alone. So the maps have the same bytes for any number of
threads and ranks, and after any interruption.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Protocol

import crc32c
import numpy as np

from maskdepth.convert.contents import PARTS
from maskdepth.convert.dataset.depth_maps import Range, range_of, resize, widest
from maskdepth.convert.dataset.networks.model import DepthModel
from maskdepth.convert.dataset.networks.ranks import Ranks
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.files import check_signature, read_file, read_regular, signed, write_json
from maskdepth.convert.parts import Part, read_record, write_record
from maskdepth.convert.progress import Progress
from maskdepth.convert.schema import Schema, parse_table
from maskdepth.convert.workers import available_cores, run_all

BATCHES_OF_A_PART = 4
"""On a GPU a part of a second, on a CPU perhaps half a minute, so that a kill loses little."""
_READERS = 16  # threads that read and write while others predict, at most


class Images(Protocol):
    """Images whose depth is estimated."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path:
        """The file of an image."""

    def read(self, index: int) -> np.ndarray:
        """Pixels, uint8 (H, W, 3); DataError with the file's name."""

    def map_name(self, index: int) -> str:
        """Path of the image's map in the folder of maps."""

    def encode(self, depth: np.ndarray, found: Range) -> bytes:
        """The file of a map, float64 (H, W), whose values are from near to far."""


class _RangeRecord(Schema):
    """`part-N.range.json`: the range of a part's maps. stamps: hash of what it was made from."""

    stamps: str
    near: float
    far: float


class _EndedError(Exception):
    """Raised in threads whose work is not needed any more."""


class DepthRun:
    """One run of `depth` on one rank.

    work: the folder of the maps, with `PARTS`. shown: whether to show the progress.
    """

    def __init__(
        self, images: Images, model: DepthModel, *, batch_size: int, work: Path, ranks: Ranks,
        shown: bool,
    ) -> None:  # fmt: skip
        self.images, self.model, self.batch_size = images, model, batch_size
        self.work, self.ranks, self.shown = work, ranks, shown and ranks.is_first
        size = batch_size * BATCHES_OF_A_PART
        starts = range(0, len(images), size)
        self.parts = [Part(n, s, min(s + size, len(images))) for n, s in enumerate(starts)]
        self._free = threading.Semaphore(model.at_once)
        self._ended = threading.Event()

    def write_all(self, found: Range | None) -> None:
        """Write the maps of this rank's parts that an earlier run has not finished.

        found: the range of all maps; None: each has its own.
        """

        def write(part: Part, progress: Progress) -> None:
            stamps = self._stamps(part, found)
            if self._is_written(part, stamps):
                progress.add(len(part.indices), kept=True)
            else:
                self._write_part(part, found, stamps, progress)

        self._each_part("depth", write)

    def find_range(self) -> Range:
        """The range of all maps; each rank predicts its parts."""

        def find(part: Part, progress: Progress) -> None:
            stamps = self._stamps(part)
            if self._range_of(part, stamps) is not None:
                progress.add(len(part.indices), kept=True)
                return
            ranges = []
            for _, depth in self._maps(part, progress):
                ranges.append(range_of(depth, self.model.predicts))
            near, far = widest(ranges, self.model.predicts)
            record = {"stamps": stamps, "near": near, "far": far}
            write_json(self._range_file(part), signed(record))

        self._each_part("range of depth", find)
        self.ranks.wait()
        found = [self._range_of(part, self._stamps(part)) for part in self.parts]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            raise DataError(f"{self.work}: images changed meanwhile; run again with --resume")
        return widest(known, self.model.predicts)

    def _each_part(self, title: str, do: Callable[[Part, Progress], None]) -> None:
        """Call a function for each part of this rank, in threads."""
        (self.work / PARTS).mkdir(exist_ok=True)
        parts = self.parts[self.ranks.rank :: self.ranks.count]
        total = sum(len(part.indices) for part in parts)
        if self.ranks.count > 1:
            title += f", 1 of {self.ranks.count} ranks"
        threads = self.model.at_once + min(_READERS, available_cores())
        with (
            Progress(title, total, "images", shown=self.shown) as progress,
            self.model.working(),
            ThreadPoolExecutor(threads) as executor,
        ):
            try:
                for _ in run_all(executor, do, ((part, progress) for part in parts)):
                    pass
            except BaseException:
                self._ended.set()  # otherwise the executor waits until its threads' parts are done
                raise

    def _write_part(self, part: Part, found: Range | None, stamps: str, progress: Progress) -> None:
        crc = 0
        for index, depth in self._maps(part, progress):
            ends = found or range_of(depth, self.model.predicts)
            data = self.images.encode(depth, ends)
            path = self.work / self.images.map_name(index)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            crc = crc32c.crc32c(data, crc)
        write_record(part, self.work / PARTS, {"stamps": stamps, "crc32c": {"images": crc}})

    def _maps(self, part: Part, progress: Progress) -> Iterator[tuple[int, np.ndarray]]:
        """Number and map of each image of a part, float64 (H, W) of the image's size."""
        for start in range(part.start, part.stop, self.batch_size):
            self._require_wanted()
            indices = range(start, min(start + self.batch_size, part.stop))
            images = [self.images.read(index) for index in indices]
            for index, image, depth in zip(indices, images, self._predict(images), strict=True):
                if not np.isfinite(depth).all():
                    reason = (
                        f"{self.model.name} predicted values that are not finite; try --amp off, "
                        "or another model"
                    )
                    raise RecordError(index, "depth", str(self.images.path(index)), reason)
                yield index, resize(depth, image.shape[:2])
            progress.add(len(indices))

    def _require_wanted(self) -> None:
        if self._ended.is_set():
            raise _EndedError

    def _predict(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """The model's maps; those of neighbours with one size are predicted together."""
        found: list[np.ndarray] = []
        for _, group in groupby(images, lambda image: image.shape):
            inputs = [self.model.prepare(image) for image in group]
            with self._free:
                self._require_wanted()
                found += self.model.predict(inputs)
        return found

    def _stamps(self, part: Part, found: Range | None = None) -> str:
        """Hash of the size and time of change of a part's images, and of the range of all maps."""
        digest = hashlib.sha256(repr(found).encode())
        for index in part.indices:
            path = self.images.path(index)
            try:
                status = os.stat(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); fix that") from None
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _is_written(self, part: Part, stamps: str) -> bool:
        """Whether the maps of a part were made from the same and are on the disk."""
        crc = 0
        try:
            recorded = read_record(part, self.work / PARTS)
            if recorded.stamps != stamps:
                return False
            for index in part.indices:
                data, _ = read_file(self.work / self.images.map_name(index))
                crc = crc32c.crc32c(data, crc)
        except (DataError, OSError, ValueError):  # missing, or the disk lost some of it
            return False
        return crc == recorded.crc32c.get("images")

    def _range_file(self, part: Part) -> Path:
        return part.path(self.work / PARTS, "range.json")

    def _range_of(self, part: Part, stamps: str) -> Range | None:
        """The recorded range of a part; None if it was made from something else, or not at all."""
        try:
            text = read_regular(self._range_file(part))
            found = _RangeRecord.from_json(check_signature(parse_table(text), text))
        except (DataError, OSError, ValueError):
            return None
        return Range(found.near, found.far) if found.stamps == stamps else None
