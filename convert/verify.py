"""Checks a shard folder completely, and reports every problem."""

from __future__ import annotations

import io
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from convert import beton, tarshards
from convert.errors import DataError, RecordError
from convert.layout import FIELDS, MASK_THRESHOLD
from convert.manifest import Manifest, ShardFile, read_manifest
from convert.moments import Accumulator
from convert.parts import PartSummary, new_accumulators, split_parts
from convert.shards import Shards
from convert.source import Source, read_source
from convert.workers import run_all, worker_pool


def verify(
    shards: str | Path,
    *,
    source: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Every problem of a shard folder, one line each; an empty list if there is none.

    Checks the size and SHA-256 of every file, the structure of the FFCV file, and of every record
    of every format that its CRC32C is right and that it decodes. Compares the statistics with the
    decoded pixels and, given ``source``, pixels and backgrounds with those that Pillow decodes from
    the source files. Raises DataError if the folder cannot be opened.
    """
    folder = Path(shards)
    manifest = read_manifest(folder)
    original = None if source is None else _matching_source(Path(source), manifest)
    hidden = None if progress else True  # None: shown on a terminal only
    with worker_pool(workers) as executor:
        problems = _check_files(folder, manifest, executor)
        problems += _check_backgrounds(folder, manifest, original)
        for form in manifest.formats:
            try:
                opened = Shards(folder, form)
            except DataError as error:
                problems.append(error.message)
                continue
            if form == "ffcv":
                problems += beton.check_structure(opened)
            parts = list(split_parts(manifest.layout))
            tasks = ((folder, form, part.start, part.stop, original) for part in parts)
            results = run_all(executor, _check_records, tasks)
            found: list[str] = []
            summary = PartSummary()
            for problems_of_part, summary_of_part in tqdm(
                results, total=len(parts), unit=" parts", desc=form, disable=hidden
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
    return list(dict.fromkeys(problems))


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


def _check_files(folder: Path, manifest: Manifest, executor: Executor) -> list[str]:
    files = ((folder / name, expected) for name, expected in manifest.files.items())
    return sorted(problem for problem in run_all(executor, _file_problem, files) if problem)


def _file_problem(path: Path, expected: ShardFile) -> str | None:
    """The problem of a file of the folder by its size and SHA-256."""
    try:
        found = ShardFile.of(path)
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if found.bytes != expected.bytes:
        return f"{path}: has {found.bytes} bytes, expected {expected.bytes}"
    return None if found == expected else f"{path}: SHA-256 differs, the file was changed"


def _check_backgrounds(folder: Path, manifest: Manifest, source: Source | None) -> list[str]:
    """Compare the backgrounds with their statistics, and with the source's files."""
    try:
        backgrounds = Shards(folder).backgrounds
    except DataError:
        return []  # reported when each format is opened
    problems = []
    sums = Accumulator(3, 255)
    for number, samples in enumerate(np.diff(manifest.layout.group_starts).tolist()):
        sums.add(np.asarray(backgrounds[number]), times=samples)
        if source is not None:
            path = source.bg[number]
            if path.name != manifest.backgrounds[number]:
                problems.append(
                    f"background {number}: {path.name} in the source, not in the shards"
                )
                continue
            try:
                same = np.array_equal(backgrounds[number], _source_pixels(path, "fg_bg"))
            except ValueError as error:
                problems.append(f"background {number} ({path}): {error}")
                continue
            if not same:
                problems.append(f"background {number} ({path}): differs from the source's")
    if sums.moments != manifest.statistics["bg"]:
        problems.append(f"{folder}: statistics of bg are not those of the backgrounds")
    return problems


def _tar_header_problem(shards: Shards, index: int, name: str) -> str | None:
    """The problem of the tar header of a field, according to the per-record index."""
    record = shards.records[index][name]
    extension = tarshards.extensions(shards.manifest.codecs)[name]
    expected = tarshards.member_header(f"{index:09d}.{extension}", int(record["size"]))
    at = int(record["offset"]) - len(expected)
    file = shards.files[int(record["file"])]
    if at >= 0 and file[at : at + len(expected)].tobytes() == expected:
        return None
    where = shards.where(index, name)
    return f"record {index}, {name} ({where}): tar header at byte {at} is corrupt"


def _check_records(
    folder: Path, form: str, start: int, stop: int, source: Source | None
) -> tuple[list[str], PartSummary]:
    """Problems of records start to stop - 1, and the statistics of their pixels."""
    # Opened for each part, because the pages read of a map count as memory until it is closed.
    shards = Shards(folder, form)
    problems = []
    accumulators = new_accumulators()
    for index in range(start, stop):
        for column, name in enumerate(FIELDS):
            if form == "webdataset" and (problem := _tar_header_problem(shards, index, name)):
                problems.append(problem)
            try:
                shards.check(index, name)
                pixels = shards.decode(index, name)
                accumulators[name].add(pixels)
                if source is not None:
                    _compare(pixels, source.paths(index)[column], index, name)
            except RecordError as error:
                problems.append(error.message)
    return problems, PartSummary(statistics={name: a.moments for name, a in accumulators.items()})


def _compare(pixels: np.ndarray, path: Path, index: int, name: str) -> None:
    try:
        expected = _source_pixels(path, name)
    except ValueError as error:
        raise RecordError(index, name, str(path), str(error)) from None
    if pixels.shape != expected.shape:
        raise RecordError(index, name, str(path), "the source has another size")
    different = int(np.count_nonzero(pixels != expected))
    if different:
        raise RecordError(index, name, str(path), f"{different} values differ from the source's")


def _source_pixels(path: Path, name: str) -> np.ndarray:
    """`pillow_pixels` of a source file; ValueError with the reason if it cannot be decoded."""
    try:
        return pillow_pixels(path.read_bytes(), name)
    except UnidentifiedImageError:  # its message has an address in memory
        raise ValueError("cannot be read (not an image)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read ({error})") from None


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
