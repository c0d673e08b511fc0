"""Lists every problem of a data set folder, and what to do about each.

Run ``python -m convert check DATASET``. A data set without problems can be packed, and one with
any cannot: the checks are those of `pack`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskdepth.convert import jpeg
from maskdepth.convert.codecs import ENCODERS
from maskdepth.convert.errors import DataError
from maskdepth.convert.exchanged import find_exchanged
from maskdepth.convert.files import read_file
from maskdepth.convert.layout import FIELDS, Layout
from maskdepth.convert.metadata import DATASET, find_miscounts
from maskdepth.convert.names import (
    FOLDERS,
    Names,
    Problem,
    find_jpegs,
    find_names,
    find_visible,
    require_dataset,
)
from maskdepth.convert.pack import PackConfig
from maskdepth.convert.placements import PLACEMENTS
from maskdepth.convert.progress import Progress
from maskdepth.convert.source import (
    find_per_fg,
    note_unknown_keys,
    read_metadata,
    require_placements,
    source_of,
)
from maskdepth.convert.storage import CODECS
from maskdepth.convert.workers import run_all, worker_pool

_FILES_PER_TASK = 500  # but for backgrounds, which are one task
_MOST_LINES, _MOST_OF_A_KIND = 50, 10

_CODECS = PackConfig().codecs.values()
_ENCODERS = {
    name: sorted({CODECS[of[name]].fallback or of[name] for of in _CODECS}) for name in FIELDS
} | {"bg": ["jpeg"]}
"""By which codecs `pack` encodes each field, and backgrounds; all of them check it."""


class _Files(NamedTuple):
    """Some image files of a folder that show the same field, or backgrounds."""

    field: str
    folder: Path
    names: list[str]


def check(
    dataset: str | Path,
    *,
    samples_per_fg: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[Problem]:
    """Every problem of a data set folder, an empty list if there is none.

    samples_per_fg: as of `pack`. workers: processes (None: one per core; 0: none). Raises DataError
    if the folder is not one of a data set at all.
    """
    folder = require_dataset(dataset)
    names = find_names(folder)
    size = _common_size(folder)
    problems = names.problems + _check_metadata(folder, names, size, samples_per_fg)
    total = len(names.bg) + len(FIELDS) * sum(names.counts.values())
    found: list[Problem] = []
    with worker_pool(workers) as executor:
        tasks = ((files, size) for files in _list_files(folder))
        with Progress("check", total, "files", shown=progress) as shown:
            for checked, of_files in run_all(executor, _check_files, tasks):
                found += of_files
                shown.add(checked)
        problems += sorted(found)
        problems += _check_samples(folder, names, samples_per_fg, executor, others=problems)
    return list(dict.fromkeys(problems))


def _check_metadata(
    folder: Path, names: Names, size: tuple[int, int], samples_per_fg: int | None
) -> list[Problem]:
    try:
        metadata = read_metadata(folder)
    except DataError as error:
        return [Problem(str(folder / DATASET), error.message, DATASET)]
    note_unknown_keys(folder, metadata)
    starts = np.cumsum([0, *names.counts.values()], dtype=np.int64)
    layout = Layout(height=size[0], width=size[1], group_starts=starts, samples_per_fg=None)
    miscounts = find_miscounts(folder, metadata, layout) if layout.samples else []
    return miscounts + find_per_fg(folder, samples_per_fg, metadata, names.counts)[1]


def _check_samples(
    folder: Path, names: Names, samples_per_fg: int | None, executor: Executor,
    others: list[Problem],
) -> list[Problem]:  # fmt: skip
    """What `pack` checks of all samples together, and anything that no other check has found."""
    try:
        source = source_of(folder, names, samples_per_fg)
    except DataError as error:
        return [] if others else [Problem(str(folder), error.message, "other")]
    problems = []
    if not find_miscounts(folder, source.metadata, source.layout):  # they are reported already
        try:
            require_placements(source)
        except DataError as error:
            problems.append(Problem(str(folder / PLACEMENTS), error.message, PLACEMENTS))
    return problems + find_exchanged(source, executor)


def _list_files(folder: Path) -> Iterator[_Files]:
    """All JPEG files of a data set, whether their names are right or not."""
    yield _Files("bg", folder / "bg", find_jpegs(folder / "bg")[0])
    for field, name in FOLDERS.items():
        for group in find_visible(folder / name)[0]:
            inside = folder / name / group
            names = find_jpegs(inside)[0]
            for at in range(0, len(names), _FILES_PER_TASK):
                yield _Files(field, inside, names[at : at + _FILES_PER_TASK])


def _common_size(folder: Path) -> tuple[int, int]:
    """Height and width of most backgrounds, or of the first image; 0 if none can be read."""
    bg, *others = _list_files(folder)
    sizes = Counter(_sizes(bg))
    first = next(chain.from_iterable(map(_sizes, others)), (0, 0))
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else first


def _sizes(files: _Files) -> Iterator[tuple[int, int]]:
    """Height and width of those images whose header can be read."""
    for name in files.names:
        try:
            header = jpeg.read_header(read_file(files.folder / name)[0])
        except (OSError, ValueError):
            continue
        yield header.height, header.width


def _check_files(files: _Files, size: tuple[int, int]) -> tuple[int, list[Problem]]:
    """How many files were checked, and their problems."""
    problems = []
    for name in files.names:
        path = f"{files.folder}/{name}"
        try:
            data, _ = read_file(path)
            header = jpeg.read_header(data)
            if (header.height, header.width) != size:
                problems.append(_other_size(path, (header.height, header.width), size))
                continue
            for codec in _ENCODERS[files.field]:
                ENCODERS[codec](data, *size)
        except OSError as error:
            problems.append(Problem.of(path, f"cannot be read ({error.strerror}); fix that"))
        except ValueError as error:
            kind = re.sub(r"[\d.]+", "#", str(error).partition(":")[0])
            problems.append(Problem.of(path, f"{error}; fix or replace the file", kind))
    return len(files.names), problems


def _other_size(path: str, found: tuple[int, int], expected: tuple[int, int]) -> Problem:
    (height, width), (rows, columns) = found, expected
    text = (
        f"found {width}x{height} pixels, expected {columns}x{rows} like most backgrounds; "
        "give all images one size"
    )
    return Problem.of(path, text, "size")


def summarise(problems: Iterable[Problem], dataset: Path) -> Iterator[str]:
    """Lines that describe problems: all of a few, and of many the first of each kind."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        inside = os.path.relpath(problem.file, dataset).split(os.sep)[0]
        kinds.setdefault((inside, problem.kind), []).append(problem)
    few = sum(map(len, kinds.values())) <= _MOST_LINES
    for (inside, _), found in kinds.items():
        shown = found if few else found[:_MOST_OF_A_KIND]
        yield from (problem.line for problem in shown)
        if more := len(found) - len(shown):
            yield f"{dataset / inside}: {more:,} more like this; --json has all"
