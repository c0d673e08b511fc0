"""Folder of images -> shard folder, in one pass: read, check, encode, count, write.

All work happens in `SHARDS.partial`; the finished folder appears under its name in one rename.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from convert import tarshards
from convert.beton import INDEX as BETON_INDEX
from convert.beton import NAME as BETON
from convert.beton import BetonWriter, Structure
from convert.codecs import CODECS
from convert.errors import DataError, RecordError
from convert.files import sync
from convert.manifest import (
    BACKGROUNDS,
    FORMATS,
    MANIFEST,
    Format,
    Manifest,
    ShardFile,
    format_name,
    read_manifest,
    stored_format,
    write_manifest,
)
from convert.moments import Accumulator, Moments
from convert.parts import (
    SAMPLES_PER_PART,
    Part,
    PartSummary,
    create_array,
    is_finished,
    read_summary,
    split_parts,
    write_part,
)
from convert.source import Source, read_source
from convert.unfinished import check_target, work_folder
from convert.workers import cluster_pool, run_all, worker_pool

MASK_CODECS = {"runs": "runs", "jpeg": "jpeg-mask"}
DEPTH_CODECS = {"luma": "jpeg-luma", "jpeg": "jpeg-gray"}
_PARTS = "parts"
Task = tuple[Callable[..., None], tuple]
_LIBRARIES = ("numpy", "pillow", "simplejpeg", "crc32c")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What decides the bytes of a shard folder, beside the source."""

    formats: tuple[str, ...] = FORMATS
    """Which formats to write: "ffcv", "webdataset" or both; "dali" is an alias of the latter."""
    mask_codec: str = "runs"
    """How masks are stored: "runs" (lossless run lengths) or "jpeg" (source bytes)."""
    depth_codec: str = "luma"
    """How depth is stored: "luma" (lossless, smaller) or "jpeg" (source bytes)."""
    seed: int = 0
    """Seed of the order of the tar shards."""
    samples_per_shard: int = tarshards.SAMPLES_PER_SHARD
    """Records of each tar shard."""
    samples_per_fg: int | None = None
    """Neighbouring samples that show one person; None takes it from dataset.json."""

    def __post_init__(self) -> None:
        """Check the values and resolve aliases of formats."""
        object.__setattr__(self, "formats", tuple(format_name(name) for name in self.formats))
        for name in self.formats:
            if name not in FORMATS:
                raise DataError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
        if not self.formats:
            raise DataError(f"no format to write; choose from {', '.join(FORMATS)}")
        if self.samples_per_shard < 1:
            raise DataError(f"samples per shard is {self.samples_per_shard}, expected at least 1")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}, expected 0 or more")

    @property
    def codecs(self) -> dict[str, str]:
        """Codec of each field, by its name in `CODECS`."""
        return {
            "fg_bg": "jpeg",
            "mask": MASK_CODECS[self.mask_codec],
            "depth": DEPTH_CODECS[self.depth_codec],
        }


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

    workers: processes (None: one a core; 0: work in this process).
    scheduler: address of a Dask scheduler whose workers do the work instead.
    resume: continue a killed or interrupted run of the same job.
    force: replace a finished folder of the same name, or what an unfinished run left.
    part_size: largest number of samples of a part; the result does not depend on it.

    A corrupt source file ends the run with a RecordError that names it; what was done is removed,
    or kept with ``resume``. After a kill, a full disk or a dead worker, finished parts stay in
    `SHARDS.partial` for ``resume``. Raises DataError for mistakes in arguments and files.
    """
    config = config or PackConfig()
    dataset, shards = Path(dataset), Path(shards)
    if scheduler is not None:  # its workers have working folders of their own
        dataset, shards = dataset.absolute(), shards.absolute()
    check_target(shards, force)
    source = read_source(dataset, samples_per_fg=config.samples_per_fg)
    job = _job(source, config)
    pool = worker_pool(workers) if scheduler is None else cluster_pool(scheduler)
    with work_folder(shards, job, resume=resume, force=force) as work, pool as executor:
        if not (work / MANIFEST).exists():  # else an earlier run had only to clean up
            (work / _PARTS).mkdir(exist_ok=True)
            background_moments = _write_backgrounds(source, work)
            parts = list(split_parts(source.layout, part_size))
            summary = _write_parts(source, config, parts, work, executor, progress)
            summary.statistics = {"bg": background_moments, **summary.statistics}
            _assemble(source, config, parts, summary, work, executor, progress)
        # A failed cleanup must not fail a finished conversion.
        shutil.rmtree(work / _PARTS, ignore_errors=True)
    if (shards / _PARTS).exists():
        click.echo(f"{shards / _PARTS}: could not be removed; delete it", err=True)
    return read_manifest(shards)


def _job(source: Source, config: PackConfig) -> dict[str, object]:
    """What must be the same for a run to go on where another stopped.

    Names only; whether the files are still the same is checked part by part.
    """
    names = hashlib.sha256()
    for group, path in enumerate(source.bg):
        names.update(os.fsencode(f"{path.name}\0{chr(0).join(source.names(group))}\0\0"))
    return {
        "source": str(source.folder.absolute()),
        "names_sha256": names.hexdigest(),
        "made": _provenance(source, config),
    }


def _write_parts(
    source: Source,
    config: PackConfig,
    parts: list[Part],
    work: Path,
    executor: Executor,
    progress: bool,
) -> PartSummary:
    folder = work / _PARTS
    missing = [part for part in parts if not is_finished(part, source, folder)]
    hidden = None if progress else True  # None: shown on a terminal only
    with tqdm(total=source.layout.samples, unit=" samples", disable=hidden) as bar:
        bar.update(source.layout.samples - sum(p.stop - p.start for p in missing))
        tasks = ((source, config.codecs, part, folder) for part in missing)
        for size in run_all(executor, _part_task, tasks):
            bar.update(size)
    total = PartSummary()
    for part in parts:
        total.add(read_summary(part, folder))
    return total


def _part_task(source: Source, codecs: dict[str, str], part: Part, folder: Path) -> int:
    write_part(source, codecs, part, folder)
    return part.stop - part.start


def _write_backgrounds(source: Source, work: Path) -> Moments:
    """The background bank, uint8 (n_bg, H, W, 3), and its sums, once for every sample."""
    layout = source.layout
    shape = (len(source.bg), layout.height, layout.width, 3)
    bank = create_array(work / BACKGROUNDS, np.dtype(np.uint8), shape)
    total: Moments | None = None
    for number, path in enumerate(source.bg):
        try:
            pixels = CODECS["jpeg"].encode(path.read_bytes(), layout.height, layout.width).pixels
        except (OSError, ValueError) as error:
            raise RecordError(number, "bg", str(path), f"{error}; fix or replace it") from None
        bank[number] = pixels
        sums = Accumulator(3, 255)
        sums.add(pixels)
        seen = sums.moments * int(layout.group_starts[number + 1] - layout.group_starts[number])
        total = seen if total is None else total + seen
    bank.flush()
    assert total is not None
    return total


def _assemble(
    source: Source,
    config: PackConfig,
    parts: list[Part],
    summary: PartSummary,
    work: Path,
    executor: Executor,
    progress: bool,
) -> None:
    """Parts -> shard files, their indices and hashes, and last the manifest."""
    structure = Structure(layout=source.layout, codecs=config.codecs)
    beton = BetonWriter(path=work / BETON, folder=work / _PARTS, structure=structure)
    orders: list[np.ndarray] = []
    tasks: list[Iterable[Task]] = []
    formats: dict[str, Format] = {}
    if "ffcv" in config.formats:
        beton.create()
        tasks.append((beton.write, place) for place in beton.positions(parts))
        formats["ffcv"] = Format(files=(BETON,), index=BETON_INDEX)
    if "webdataset" in config.formats:
        orders = _shard_orders(source.layout.samples, config)
        tasks.append(_shard_tasks(orders, parts, work, config))
        names = tuple(tarshards.shard_name(number) for number in range(len(orders)))
        formats["webdataset"] = Format(files=names, index=tarshards.INDEX)
    count = len(parts) * ("ffcv" in formats) + len(orders)
    _drain(run_all(executor, _call, chain(*tasks)), count, "pieces", progress)
    if "ffcv" in formats:
        beton.finish()
    if "webdataset" in formats:
        tarshards.merge_index(work, orders)
    names_to_hash = _data_files(formats, len(orders))
    hashed = run_all(executor, _sync_and_hash, ((work / name,) for name in names_to_hash))
    files = dict(sorted(_drain(hashed, len(names_to_hash), "checksums", progress)))
    manifest = Manifest(
        layout=source.layout,
        backgrounds=tuple(path.name for path in source.bg),
        codecs=config.codecs,
        statistics=summary.statistics,
        formats=formats,
        files=files,
        counts=dict(sorted(summary.counts.items())),
        provenance=_provenance(source, config),
    )
    write_manifest(work, manifest)


def _shard_orders(samples: int, config: PackConfig) -> list[np.ndarray]:
    """Samples of each tar shard, in the order of the shard."""
    order, size = tarshards.permutation(samples, config.seed), config.samples_per_shard
    return [order[at : at + size] for at in range(0, samples, size)]


def _shard_tasks(
    orders: list[np.ndarray], parts: list[Part], work: Path, config: PackConfig
) -> Iterator[Task]:
    for number, order in enumerate(orders):
        arguments = (work, number, order, parts, work / _PARTS, config.codecs)
        yield tarshards.write_shard, arguments


def _call(fn: Callable[..., None], args: tuple) -> None:
    fn(*args)


def _drain(results: Iterator, total: int, unit: str, progress: bool) -> list:
    return list(tqdm(results, total=total, unit=f" {unit}", disable=None if progress else True))


def _data_files(formats: dict[str, Format], shards: int) -> list[str]:
    names = [BACKGROUNDS]
    for form in formats.values():
        names += [*form.files, form.index]
    return names + [tarshards.dali_index_name(number) for number in range(shards)]


def _sync_and_hash(path: Path) -> tuple[str, ShardFile]:
    sync(path)
    return path.name, ShardFile.of(path)


def _provenance(source: Source, config: PackConfig) -> dict[str, object]:
    """How the shards are made, as it is stored in the job file and the manifest."""
    return {
        "arguments": {**asdict(config), "formats": [stored_format(f) for f in config.formats]},
        "dataset": source.metadata,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
    }
