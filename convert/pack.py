"""Converts images to a shard folder in one pass: read, check, encode, count, write.

`pack` reads them from a folder; `write_shards` takes any `Samples`, such as composites that no
file holds. All work is done in `SHARDS.partial`, which is published by one rename.
"""

from __future__ import annotations

import hashlib
import operator
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from itertools import chain
from pathlib import Path

import numpy as np

from maskdepth.convert import beton, tarshards
from maskdepth.convert.bases import open_bases
from maskdepth.convert.codecs import encode_rgb
from maskdepth.convert.contents import PARTS
from maskdepth.convert.encoding import is_finished, write_part
from maskdepth.convert.errors import DataError, OptionError, RecordError
from maskdepth.convert.exchanged import find_exchanged
from maskdepth.convert.files import read_regular, sync
from maskdepth.convert.layout import Layout
from maskdepth.convert.manifest import (
    BACKGROUNDS,
    FORMATS,
    MANIFEST,
    BaseFile,
    Format,
    Manifest,
    ShardFile,
    format_name,
    read_manifest,
    write_manifest,
)
from maskdepth.convert.maps import create_array
from maskdepth.convert.moments import Accumulator, Moments
from maskdepth.convert.names import pointing_to_check, required
from maskdepth.convert.outputs import require_outside, require_unspoilt
from maskdepth.convert.parts import SAMPLES_PER_PART, Part, PartSummary, read_summary, split_parts
from maskdepth.convert.progress import Progress, followed
from maskdepth.convert.source import Samples, Source, note_unknown_keys, read_source
from maskdepth.convert.storage import CODECS, DEPTH_CODECS, DIFFERENCE_CODECS, MASK_CODECS
from maskdepth.convert.unfinished import SHARD_FOLDER, check_target, work_folder
from maskdepth.convert.vote import write_bases
from maskdepth.convert.workers import open_pool, run_all


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What determines the bytes of a shard folder, together with the source."""

    formats: tuple[str, ...] = FORMATS
    """Which formats to write: "ffcv", "webdataset" or both; "dali" is an alias of the latter."""
    codec: str = "difference"
    """How the FFCV file stores fg_bg and depth: "difference" (as what differs from the background)
    or "jpeg" (as the tar shards, for other readers). The pixels are the same."""
    mask_codec: str = "runs"
    """How masks are stored: "runs" (lossless run lengths) or "jpeg" (source bytes)."""
    depth_codec: str = "luma"
    """How JPEGs of depth are stored: "luma" (lossless, smaller) or "jpeg" (source bytes)."""
    seed: int = 0
    """Seed of the order of the tar shards."""
    samples_per_shard: int = tarshards.SAMPLES_PER_SHARD
    """Records of each tar shard."""
    samples_per_fg: int | None = None
    """Neighbouring samples that show one foreground; None takes it from dataset.json."""

    def __post_init__(self) -> None:
        """Check the values and resolve aliases of formats."""
        object.__setattr__(self, "formats", tuple(format_name(name) for name in self.formats))
        if not self.formats or not set(self.formats) <= set(FORMATS):
            found = ", ".join(self.formats) or "none"
            raise OptionError("formats", f": found {found}, expected some of {', '.join(FORMATS)}")
        if self.samples_per_shard < 1:
            raise OptionError(
                "samples_per_shard", f": found {self.samples_per_shard}, expected at least 1"
            )
        if self.codec not in ("difference", "jpeg"):
            raise OptionError("codec", f": found {self.codec!r}, expected difference or jpeg")
        if self.seed < 0:
            raise OptionError("seed", f": found {self.seed}, expected 0 or more")

    @property
    def codecs(self) -> dict[str, dict[str, str]]:
        """Codec of each field in each format, by its name in `convert.storage.CODECS`."""
        mask, depth = MASK_CODECS[self.mask_codec], DEPTH_CODECS[self.depth_codec]
        as_jpeg = {"fg_bg": "jpeg", "mask": mask, "depth": depth}
        codecs = dict.fromkeys(self.formats, as_jpeg)
        if "ffcv" in codecs and self.codec == "difference":
            codecs["ffcv"] = as_jpeg | DIFFERENCE_CODECS
        return codecs


def pack(
    dataset: str | Path,
    shards: str | Path,
    *,
    config: PackConfig | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    part_size: int = SAMPLES_PER_PART,
) -> Manifest:
    """Convert a data set folder once; the same bytes for any number of workers.

    workers: processes (None: one per core; 0: work in this process).
    scheduler: address of a Dask scheduler whose workers do the work instead.
    resume: continue a killed or interrupted run of the same job.
    force: replace a finished folder of the same name, or what an unfinished run left.
    part_size: largest number of samples of a part; the result does not depend on it.

    A corrupt source file ends the run with a RecordError that names it and `convert check`, which
    lists all; what was done is removed, or kept with ``resume``. After a kill, a full disk or a
    dead worker, finished parts stay in `SHARDS.partial` for ``resume``. Raises DataError for
    mistakes in arguments and files.
    """
    config = config or PackConfig()
    dataset, shards = Path(dataset), Path(shards)
    if scheduler is not None:  # its workers may run in other folders
        dataset, shards = dataset.absolute(), shards.absolute()
    check_target(shards, SHARD_FOLDER, force=force, hint=" (the order is DATASET SHARDS)")
    require_outside(shards, dataset)
    require_unspoilt(shards)
    source = read_source(dataset, samples_per_fg=config.samples_per_fg)
    note_unknown_keys(dataset, source.metadata)

    def checked(_: Path, executor: Executor) -> Source:
        with pointing_to_check(dataset, DataError, config.samples_per_fg):
            return required(source, find_exchanged(source, executor))

    with pointing_to_check(dataset, RecordError, config.samples_per_fg):
        return write_shards(
            shards, checked, _job(source, config), config, workers=workers,
            scheduler=scheduler, resume=resume, force=force, progress=progress, part_size=part_size,
        )  # fmt: skip


def write_shards(
    shards: Path,
    open_source: Callable[[Path, Executor], Samples],
    job: dict[str, object],
    config: PackConfig,
    *,
    workers: int | None,
    scheduler: str | None,
    resume: bool,
    force: bool,
    progress: bool,
    part_size: int,
) -> Manifest:
    """Convert samples from any source to the folder ``shards``, which `check_target` has checked.

    open_source: gives the samples; it may write to the folder that it is given, which is removed at
        the end, and use the workers. job: what must be equal for a run to continue another one. The
        others are those of `pack`.
    """
    with (
        work_folder(shards, SHARD_FOLDER, job, resume=resume, force=force) as work,
        open_pool(workers, scheduler) as executor,
    ):
        if not (work / MANIFEST).exists():  # otherwise an earlier run finished all but the cleanup
            (work / PARTS).mkdir(exist_ok=True)
            source = open_source(work / PARTS, executor)
            parts = split_parts(source.layout, part_size)
            _Conversion(source, config, parts, work, work / PARTS, executor, progress).run()
    return read_manifest(shards)


def _job(source: Source, config: PackConfig) -> dict[str, object]:
    """What must be equal for a run to continue an interrupted one.

    It has the names of the files; whether their contents changed is checked for each part.
    """
    names = hashlib.sha256()
    for group, path in enumerate(source.bg):
        names.update(os.fsencode(f"{path.name}\0{chr(0).join(source.names(group))}\0\0"))
    return {
        "source": str(source.folder.absolute()),
        "names_sha256": names.hexdigest(),
        "made": provenance(source.metadata, config),
    }


def provenance(metadata_of_dataset: dict[str, object], config: PackConfig) -> dict[str, object]:
    """How shards are made, as it is stored in the job file and the manifest."""
    libraries = ("numpy", "pillow", "simplejpeg", "crc32c")
    versions = {name: metadata.version(name) for name in libraries}
    return {
        "arguments": {**asdict(config), "formats": list(config.formats)},
        "dataset": metadata_of_dataset,
        "versions": {"python": platform.python_version(), **versions},
    }


@dataclass(frozen=True)
class _Conversion:
    """One run of `pack` in its work folder."""

    source: Samples
    config: PackConfig
    parts: list[Part]
    work: Path
    parts_folder: Path
    executor: Executor
    shown: bool

    def run(self) -> None:
        """Write backgrounds and parts, assemble the formats, hash all files; last the manifest."""
        background_moments = self.write_backgrounds()
        bases = self.write_bases()
        summary = self.write_parts(bases)
        formats = self.assemble()
        table, others = self.source.layout.table, self.source.layout.others
        layout = replace(
            self.source.layout, table=self.copy_table(table), others=self.copy_table(others)
        )
        manifest = Manifest(
            layout=layout,
            backgrounds=tuple(path.name for path in self.source.bg),
            codecs=self.config.codecs,
            bases=bases,
            statistics={"bg": background_moments, **summary.statistics},
            formats=formats,
            files=self.hash_files(formats, bases, layout),
            counts=dict(sorted(summary.counts.items())),
            provenance=provenance(self.source.metadata, self.config),
        )
        write_manifest(self.work, manifest)

    def write_backgrounds(self) -> Moments:
        """Write all backgrounds, uint8 (n_bg, H, W, 3); returns their sums over all samples."""
        layout = self.source.layout
        shape = (len(self.source.bg), layout.height, layout.width, 3)
        backgrounds = create_array(self.work / BACKGROUNDS, np.dtype(np.uint8), shape)
        sums = Accumulator(3, 255)
        for number, path in enumerate(self.source.bg):
            try:
                encoded = encode_rgb(read_regular(path), layout.height, layout.width)
            except (OSError, ValueError) as error:
                raise RecordError(number, "bg", str(path), f"{error}; fix or replace it") from None
            backgrounds[number] = encoded.pixels
            start, stop = layout.group_starts[number : number + 2].tolist()
            sums.add(encoded.pixels, times=stop - start)
        backgrounds.flush()
        return sums.moments

    def copy_table(self, table: Path | None) -> Path | None:
        """Copy a table of samples, if there is one; returns the copy."""
        return None if table is None else Path(shutil.copyfile(table, self.work / table.name))

    def write_bases(self) -> dict[str, BaseFile]:
        """Find and write the bases of each field that is stored as differences from them."""
        codecs = self.config.codecs.get("ffcv", {})
        fields = [name for name, codec in codecs.items() if CODECS[codec].fallback]
        return write_bases(self.source, fields, self.work, self.executor, self.shown)

    def write_parts(self, bases: dict[str, BaseFile]) -> PartSummary:
        """Write the parts that an earlier run has not finished; returns the summary of all."""
        samples, codecs, folder = self.source.layout.samples, self.config.codecs, self.parts_folder
        opened = {n: open_bases(self.work, b, self.source.layout) for n, b in bases.items()}
        missing = [
            part
            for part in self.parts
            if not is_finished(part, self.source, codecs, opened, folder)
        ]
        with Progress("pack", samples, "samples", shown=self.shown) as progress:
            progress.add(samples - sum(p.stop - p.start for p in missing), kept=True)
            tasks = ((self.source, codecs, bases, part, folder) for part in missing)
            for size in run_all(self.executor, write_part, tasks):
                progress.add(size)
        total = PartSummary()
        for part in self.parts:
            total.add(read_summary(part, self.parts_folder))
        return total

    def assemble(self) -> dict[str, Format]:
        """Write the data files of each format, with their indices, from the parts."""
        codecs, samples = self.config.codecs, self.source.layout.samples
        tasks: list[Iterable[tuple]] = []  # of each format; a task is a function and its arguments
        finish: list[Callable[[], None]] = []
        pieces = 0
        formats: dict[str, Format] = {}
        if "ffcv" in self.config.formats:
            structure = beton.Structure(layout=self.source.layout, codecs=codecs["ffcv"])
            path, folder = self.work / beton.NAME, self.parts_folder
            writer = beton.BetonWriter(path, "ffcv", folder, structure)
            places, end = writer.create(self.parts)
            tasks.append((writer.write, *place, end) for place in places)
            finish.append(partial(writer.finish, end))
            pieces += len(places)
            formats["ffcv"] = Format(files=(beton.NAME,), index=beton.INDEX)
        if "webdataset" in self.config.formats:
            order = np.random.default_rng(self.config.seed).permutation(samples)
            size = self.config.samples_per_shard
            orders = [order[at : at + size] for at in range(0, samples, size)]
            stored = (self.parts, "webdataset", self.parts_folder, codecs["webdataset"])
            tasks.append(
                (tarshards.write_shard, self.work, number, members, *stored)
                for number, members in enumerate(orders)
            )
            finish.append(partial(tarshards.merge_index, self.work, orders))
            pieces += len(orders)
            names = tuple(tarshards.shard_name(number) for number in range(len(orders)))
            formats["webdataset"] = Format(files=names, index=tarshards.INDEX)
        written = run_all(self.executor, operator.call, chain(*tasks))
        list(followed(written, "write", pieces, "pieces", shown=self.shown))
        for finish_format in finish:
            finish_format()
        return formats

    def hash_files(
        self, formats: dict[str, Format], bases: dict[str, BaseFile], layout: Layout
    ) -> dict[str, ShardFile]:
        """Write all files of the folder through to the disk, and measure and hash them."""
        names = [BACKGROUNDS, *(base.file for base in bases.values())]
        names += [table.name for table in (layout.table, layout.others) if table]
        for name, form in formats.items():
            names += [*form.files, form.index]
            if name == "webdataset":
                names += [tarshards.dali_index_name(number) for number in range(len(form.files))]
        hashed = run_all(self.executor, _sync_and_hash, ((self.work / name,) for name in names))
        return dict(sorted(followed(hashed, "hash", len(names), "files", shown=self.shown)))


def _sync_and_hash(path: Path) -> tuple[str, ShardFile]:
    sync(path)
    return path.name, ShardFile.of(path)
