"""Prove a shard folder right, or name everything that is wrong with it."""

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
from convert.moments import Accumulator, Moments
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
    """Every fault of a shard folder, one line each; an empty list if there is none.

    Checks sizes and SHA-256 of every file, the structure of the FFCV file, CRC32C and full
    decode of every record of every format, that the statistics are those of the decoded
    pixels, and with ``source`` that pixels and backgrounds equal those that Pillow decodes
    from the source files. Raises DataError where the folder cannot be opened at all.
    """
    folder = Path(shards)
    manifest = read_manifest(folder)
    original = None if source is None else _matching_source(Path(source), manifest)
    hidden = None if progress else True  # None: shown on a terminal only
    with worker_pool(workers) as executor:
        faults = _check_files(folder, manifest, executor)
        faults += _check_backgrounds(folder, manifest, original)
        for form in manifest.formats:
            try:
                opened = Shards(folder, form)
            except DataError as error:
                faults.append(error.message)
                continue
            if form == "ffcv":
                faults += beton.check_structure(opened)
            parts = list(split_parts(manifest.layout))
            tasks = ((folder, form, part.start, part.stop, original) for part in parts)
            results = run_all(executor, _check_records, tasks)
            found: list[str] = []
            sums = PartSummary()
            for faults_of_part, sums_of_part in tqdm(
                results, total=len(parts), unit=" parts", desc=form, disable=hidden
            ):
                found += faults_of_part
                sums.add(sums_of_part)
            faults += sorted(found)
            if not found:
                faults += _check_statistics(folder, manifest, sums)
    return list(dict.fromkeys(faults))


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
    return sorted(fault for fault in run_all(executor, _file_fault, files) if fault)


def _file_fault(path: Path, expected: ShardFile) -> str | None:
    """What is wrong with a file of the folder by its size and SHA-256."""
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
    """The bank against its statistics, and against the source's files."""
    try:
        bank = Shards(folder).backgrounds
    except DataError:
        return []  # said by whoever opens each format
    faults = []
    total: Moments | None = None
    for number, times in enumerate(np.diff(manifest.layout.group_starts).tolist()):
        sums = Accumulator(3, 255)
        sums.add(np.asarray(bank[number]))
        total = sums.moments * times if total is None else total + sums.moments * times
        if source is not None:
            path = source.bg[number]
            if path.name != manifest.backgrounds[number]:
                faults.append(f"background {number}: {path.name} in the source, not in the shards")
                continue
            try:
                same = np.array_equal(bank[number], _source_pixels(path, "fg_bg"))
            except ValueError as error:
                faults.append(f"background {number} ({path}): {error}")
                continue
            if not same:
                faults.append(f"background {number} ({path}): differs from the source's")
    if total != manifest.statistics["bg"]:
        faults.append(f"{folder}: statistics of bg are not those of the backgrounds")
    return faults


def _check_statistics(folder: Path, manifest: Manifest, sums: PartSummary) -> list[str]:
    return [
        f"{folder}: statistics of {name} are not those of the pixels"
        for name in FIELDS
        if sums.statistics[name] != manifest.statistics[name]
    ]


def _tar_header_fault(shards: Shards, index: int, name: str) -> str | None:
    """What is wrong with the tar header of a field, by our index."""
    record = shards.records[index][name]
    extension = tarshards.extensions(shards.manifest.codecs)[name]
    expected = tarshards.member_header(f"{index:09d}.{extension}", int(record["size"]))
    at = int(record["offset"]) - len(expected)
    file = shards.files[int(record["file"])]
    if at >= 0 and file[at : at + len(expected)].tobytes() == expected:
        return None
    where = shards.where(index, name)
    return f"record {index}, {name} ({where}): tar header at byte {at} is damaged"


def _check_records(
    folder: Path, form: str, start: int, stop: int, source: Source | None
) -> tuple[list[str], PartSummary]:
    """Faults of records start to stop - 1, and the sums of their pixels."""
    # Opened for each part and forgotten: pages of a map that stays count as our memory.
    shards = Shards(folder, form)
    faults = []
    accumulators = new_accumulators()
    for index in range(start, stop):
        for column, name in enumerate(FIELDS):
            if form == "webdataset" and (fault := _tar_header_fault(shards, index, name)):
                faults.append(fault)
            try:
                shards.check(index, name)
                pixels = shards.decode(index, name)
                accumulators[name].add(pixels)
                if source is not None:
                    _compare(pixels, source.paths(index)[column], index, name)
            except RecordError as error:
                faults.append(error.message)
    return faults, PartSummary(statistics={name: a.moments for name, a in accumulators.items()})


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
    """`pillow_pixels` of a source file; ValueError with the reason where there are none."""
    try:
        return pillow_pixels(path.read_bytes(), name)
    except UnidentifiedImageError:  # says where in memory the bytes are
        raise ValueError("cannot be read (not an image)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read ({error})") from None


def pillow_pixels(data: bytes, name: str) -> np.ndarray:
    """What a field means, decoded by Pillow alone: the independent reference.

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
