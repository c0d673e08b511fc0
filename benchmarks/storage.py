"""How fast a folder can be read while none of it is in memory, by number of threads."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import NamedTuple

import click
import numpy as np

from maskdepth.benchmarks.harness.images import spread_indices
from maskdepth.benchmarks.harness.options import (
    MINUTES,
    PATH,
    above_0,
    at_least_1,
    command,
    keep,
    option,
)
from maskdepth.benchmarks.harness.resources import drop_cache
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, summarize
from maskdepth.benchmarks.harness.timing import print_progress
from maskdepth.convert.errors import DataError

WAYS = {"in order, 1 MiB": 2**20, "at random, 16 KiB": 2**14}
"""How is read -> bytes of a read. Streams of tar shards are read in order; an FFCV file, and a
folder of images, by pieces of the size of a sample."""
_FILES = 1000
"""Files that are used at most, spread evenly over the folder."""
_PROBES = 256
_PAGE = 4096


class Piece(NamedTuple):
    """Bytes of a file that are read at once."""

    path: Path
    offset: int
    size: int


@command(
    click.argument("folder", type=PATH),
    option("--threads", type=click.IntRange(1, 1024), multiple=True, default=(1, 2, 4, 8, 16)),
    at_least_1("--mib", default=1024, help="To read in each round of each case."),
    above_0("--seconds", default=5.0, help="After so many, a round of a case ends."),
    at_least_1("--repeats", default=3, help="How often each case is timed."),
    MINUTES,
)
def storage(
    folder: Path, threads: tuple[int, ...], mib: int, seconds: float, repeats: int, minutes: float
) -> Result:
    """MB/s from the files of FOLDER, dropped from the page cache before each read, by threads.

    Reads in order, and at random in pieces of the size of a sample. Nothing is written.
    """
    files = list_files(folder)
    paths = sorted(files)
    cached = cached_share(files)
    rates: dict[tuple[str, int], list[float]] = {
        (way, count): [] for way in WAYS for count in sorted(set(threads))
    }

    def result() -> Result:
        cases = {
            f"{way}, {count} thread{'s' * (count > 1)}": CaseResult(
                parameters={"read": way, "threads": float(count)},
                figures=summarize(found, "mb_per_s"),
            )
            for (way, count), found in rates.items()
            if found
        }
        arguments = {
            "folder": folder.name, "files": len(files), "mib": mib, "seconds": seconds,
            "repeats": repeats,
        }  # fmt: skip
        sizes = {"bytes": float(sum(files.values()))}
        if cached is not None:
            sizes["cached_share"] = cached
        return make_result("storage", arguments, cases, sizes=sizes)

    end = time.perf_counter() + 60 * minutes
    for number in range(repeats):
        if number and time.perf_counter() > end:
            print_progress(f"--minutes: ended after {number} of {repeats} rounds")
            break
        for (way, count), found in rates.items():
            chosen = pieces(files, WAYS[way], mib * 2**20, number if "random" in way else None)
            drop_cache(paths)
            found.append(read_rate(chosen, count, seconds))
            print_progress(f"{way}, {count} threads: {found[-1]:,.1f} MB/s")
        keep(result())
    return result()


def list_files(folder: Path) -> dict[Path, int]:
    """Regular files below a folder and their bytes: at most 1,000, spread evenly; DataError."""
    found = {}
    try:
        for path in sorted(_walk(folder)):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode) and state.st_size:
                found[path] = state.st_size
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; expected a folder of files") from None
    if not found:
        raise DataError(f"{folder}: found no file that is not empty, expected some to read")
    paths = list(found)
    return {paths[at]: found[paths[at]] for at in spread_indices(len(paths), _FILES)}


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder. Raises OSError."""

    def fail(error: OSError) -> None:
        raise error

    for name, _, names in os.walk(folder, onerror=fail):
        yield from (Path(name, one) for one in names)


def pieces(files: dict[Path, int], size: int, limit: int, seed: int | None) -> list[Piece]:
    """Pieces of about ``limit`` bytes together, each once: in order, or drawn with a seed."""
    paths, lengths = list(files), np.array(list(files.values()))
    ends = np.cumsum(-(-lengths // size))  # numbers of pieces
    total, wanted = int(ends[-1]), max(1, limit // size)
    if seed is None:
        numbers = np.arange(min(total, wanted))
    elif wanted >= total:
        numbers = np.random.default_rng(seed).permutation(total)
    else:  # without a permutation of all pieces of a large folder
        rng = np.random.default_rng(seed)
        numbers = rng.permutation(np.unique(rng.integers(0, total, wanted)))
    at = np.searchsorted(ends, numbers, "right")
    offsets = (numbers - np.where(at > 0, ends[at - 1], 0)) * size
    sizes = np.minimum(size, lengths[at] - offsets)
    return [
        Piece(paths[file], offset, length)
        for file, offset, length in zip(at.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
    ]


def read_rate(chosen: Sequence[Piece], threads: int, seconds: float) -> float:
    """MB/s of threads that read a part of the pieces each, until all are read or time is up."""
    shares = [
        [chosen[at] for at in part.tolist()]
        for part in np.array_split(np.arange(len(chosen)), threads)
    ]
    began, stopped = time.perf_counter(), Event()
    with ThreadPoolExecutor(threads) as pool:
        try:
            done = sum(pool.map(partial(_read, end=began + seconds, stopped=stopped), shares))
        finally:
            stopped.set()  # after an error or Ctrl-C, the other threads stop too
    return done / (time.perf_counter() - began) / 1e6


def _read(share: Sequence[Piece], end: float, stopped: Event) -> int:
    """Bytes that were read. A file is opened again when the thread comes from another."""
    buffer, done = bytearray(max(WAYS.values())), 0
    for path, pieces_of_file in groupby(share, key=lambda piece: piece.path):
        try:
            with open(path, "rb", buffering=0) as file:
                for piece in pieces_of_file:
                    if time.perf_counter() > end or stopped.is_set():
                        return done
                    memory = memoryview(buffer)[: piece.size]
                    done += os.preadv(file.fileno(), [memory], piece.offset)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; expected a file that can be read") from None
    return done


def cached_share(files: dict[Path, int]) -> float | None:
    """Share of the pages that are in the page cache although it was asked to drop them.

    Above 0 for a file system in memory, files that are mapped, and some network file systems.
    None where the kernel, or the C library that Python was built with, cannot say.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    found = []
    for seed in range(3):  # pages that are being read or written are dropped at the next request
        drop_cache(files)
        try:
            found.append(fmean(map(_is_cached, pieces(files, _PAGE, _PROBES * _PAGE, seed))))
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return None
            raise DataError(f"{error.filename or 'a file'}: {error.strerror}") from None
    return min(found)


def _is_cached(piece: Piece) -> bool:
    with open(piece.path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # a probe reads no other page
        try:
            os.preadv(file.fileno(), [bytearray(1)], piece.offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True
