"""Checks a shard folder completely, and reports every problem."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskdepth.convert import beton, tarshards
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.files import read_regular
from maskdepth.convert.layout import FIELDS, MASK_THRESHOLD, Layout
from maskdepth.convert.manifest import Manifest, ShardFile, read_manifest
from maskdepth.convert.moments import Accumulator
from maskdepth.convert.parts import PartSummary, new_accumulators, split_parts
from maskdepth.convert.progress import followed
from maskdepth.convert.shards import Shards
from maskdepth.convert.source import Source, read_source
from maskdepth.convert.workers import run_all, worker_pool


def verify(
    shards: str | Path,
    *,
    source: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Every problem of a shard folder, one line each; an empty list if there is none.

    Checks the size and SHA-256 of every file, the structure of the FFCV file, the CRC32C and the
    decoding of every record, and the statistics; given ``source``, that all pixels are those that
    Pillow decodes from its files, and the table of samples is its own. Raises DataError if the
    folder cannot be opened.
    """
    folder = Path(shards)
    manifest = read_manifest(folder)
    original = None if source is None else _matching_source(Path(source), manifest)
    try:
        with worker_pool(workers) as executor:
            files = ((expected, folder / name) for name, expected in manifest.files.items())
            problems = sorted(filter(None, run_all(executor, ShardFile.problem, files)))
            problems += _check_backgrounds(folder, manifest, original)
            problems += _check_tables(manifest.layout, original, problems)
            for form in manifest.formats:
                problems += _check_format(folder, manifest, form, original, executor, progress)
    finally:
        _opened.cache_clear()  # of this process, which is the worker if there is no other
    return list(dict.fromkeys(problems))


def _check_format(
    folder: Path, manifest: Manifest, form: str, source: Source | None, executor: Executor,
    shown: bool,
) -> list[str]:  # fmt: skip
    """Problems of the structure, the records and the statistics of one format."""
    try:
        opened = Shards(folder, form)
    except DataError as error:
        return [error.message]
    problems = list(beton.check_structure(opened)) if form == "ffcv" else []
    parts = split_parts(manifest.layout)
    tasks = ((folder, form, part.start, part.stop, source) for part in parts)
    results = run_all(executor, _check_records, tasks)
    found: list[str] = []
    summary = PartSummary()
    for problems_of_part, summary_of_part in followed(
        results, f"verify {form}", len(parts), "parts", shown=shown
    ):
        found += problems_of_part
        summary.add(summary_of_part)
    problems += sorted(found)
    if not found:
        problems += [
            f"{folder}: statistics of {name} are not those of the pixels"
            for name in FIELDS
            if summary.statistics[name] != manifest.statistics[name]
        ]
    return problems


def _matching_source(source: Path, manifest: Manifest) -> Source:
    found = read_source(source)
    expected = manifest.layout
    if not np.array_equal(found.layout.group_starts, expected.group_starts):
        raise DataError(
            f"{source}: found {found.layout.samples} samples of {len(found.bg)} backgrounds, "
            f"expected the data set of the shards ({expected.samples}); give the one they were "
            "packed from"
        )
    return found


def _check_backgrounds(folder: Path, manifest: Manifest, source: Source | None) -> list[str]:
    """Compare the backgrounds with their statistics, and with the source's files."""
    try:
        opened = Shards(folder)
    except DataError:
        return []  # reported when each format is opened
    problems = []
    sums = Accumulator(3, 255)
    for number, samples in enumerate(np.diff(manifest.layout.group_starts).tolist()):
        sums.add(np.asarray(opened.backgrounds[number]), times=samples)
        if source is None:
            continue
        path = source.bg[number]
        if path.name != manifest.backgrounds[number]:
            problems.append(f"background {number}: {path.name} in the source, not in the shards")
        elif difference := _difference(opened.backgrounds[number], path, "fg_bg"):
            problems.append(f"background {number} ({path}): {difference}")
    opened.require_complete_backgrounds()
    if sums.moments != manifest.statistics["bg"]:
        problems.append(f"{folder}: statistics of bg are not those of the backgrounds")
    return problems


def _check_tables(layout: Layout, source: Source | None, known: Sequence[str]) -> Iterator[str]:
    """Problems of the tables of samples, which must be those of a source that has them.

    known: problems of files. A table with one is not read, nor the other table, which needs it.
    """
    for table, rows in (
        (layout.table, attrgetter("placements")), (layout.others, attrgetter("other_placements")),
    ):  # fmt: skip
        if table is None:
            continue
        if any(problem.startswith(f"{table}: ") for problem in known):
            return
        try:
            found = rows(layout)
            expected = rows(source.layout) if source and source.layout.table else found
        except DataError as error:
            yield error.message
            return
        if not np.array_equal(found, expected):
            yield f"{table}: is not the table of samples in the source; pack again"


def _tar_header_problem(shards: Shards, index: int, name: str) -> str | None:
    """The problem of the tar header of a field, according to the per-record index."""
    record = shards.records[index][name]
    extension = tarshards.extensions(shards.codecs)[name]
    expected = tarshards.member_header(f"{index:09d}.{extension}", int(record["size"]))
    at = int(record["offset"]) - len(expected)
    file = shards.files[int(record["file"])]
    if at >= 0 and file[at : at + len(expected)].tobytes() == expected:
        return None
    where = shards.where(index, name)
    return f"record {index}, {name} ({where}): tar header at byte {at} is corrupt"


@lru_cache(maxsize=1)
def _opened(folder: Path, form: str) -> Shards:
    """The shards, opened once in each worker: opening reads the index of all records."""
    return Shards(folder, form)


def _check_records(
    folder: Path, form: str, start: int, stop: int, source: Source | None
) -> tuple[list[str], PartSummary]:
    """Problems of records start to stop - 1, and the statistics of their pixels."""
    shards, indices = _opened(folder, form), np.arange(start, stop)
    problems = []
    accumulators = new_accumulators()
    for index in indices.tolist():
        for column, name in enumerate(FIELDS):
            if form == "webdataset" and (problem := _tar_header_problem(shards, index, name)):
                problems.append(problem)
            try:
                shards.check(index, name)
                pixels = shards.decode(index, name)
                accumulators[name].add(pixels)
                if source is not None:
                    path = source.paths(index)[column]
                    if difference := _difference(pixels, path, name):
                        raise RecordError(index, name, str(path), difference)
            except RecordError as error:
                problems.append(error.message)
    shards.require_complete(indices)
    shards.release_pages(indices)
    return problems, PartSummary(statistics={name: a.moments for name, a in accumulators.items()})


def _difference(pixels: np.ndarray, path: Path, name: str) -> str | None:
    """How a field differs from `pillow_pixels` of its source file; None if it is equal."""
    try:
        expected = pillow_pixels(read_regular(path), name)
    except DataError as error:
        return error.message
    except UnidentifiedImageError:  # its message has an address in memory
        return "cannot be read (not an image)"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be read ({error})"
    if pixels.shape != expected.shape:
        return "the source has another size"
    different = np.count_nonzero(pixels != expected)
    return f"{different} values differ from the source's" if different else None


def pillow_pixels(data: bytes, name: str) -> np.ndarray:
    """The pixels of a field, decoded by Pillow alone as an independent reference.

    fg_bg: uint8 (H, W, 3). mask: uint8 (H, W), 1 where the gray value is at least 128.
    depth: uint8 (H, W), the luma plane.
    """
    image = Image.open(io.BytesIO(data))
    if name == "fg_bg":
        return np.asarray(image.convert("RGB"))
    if name == "depth":
        image.draft("L", image.size)
    gray = np.asarray(image.convert("L"))
    return (gray >= MASK_THRESHOLD).view(np.uint8) if name == "mask" else gray
