"""Finds the bases of a data set: its backgrounds, encoded as its composites are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

import numpy as np

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular
from maskdepth.convert.jpeg.coefficients import Coefficients, read_coefficients
from maskdepth.convert.jpeg.layout import NotBaseline
from maskdepth.convert.jpeg.luma import Luma, luma_of
from maskdepth.convert.layout import CHANNELS, FIELDS
from maskdepth.convert.manifest import BaseFile
from maskdepth.convert.maps import create_array
from maskdepth.convert.progress import followed
from maskdepth.convert.source import Samples
from maskdepth.convert.workers import run_all

_VOTERS = 9
"""Composites of each background that determine its base."""
_Kind = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, ...], ...]]
"""Samplings and quantisers, as in `BaseFile`."""


def write_bases(
    source: Samples, fields: Iterable[str], folder: Path, executor: Executor, shown: bool
) -> dict[str, BaseFile]:
    """Find the bases of some fields and write them to ``folder``; returns their descriptions.

    The sampling and the quantisers are those of most voters. Files that are not baseline JPEGs do
    not vote; `convert.encoding` stores them as JPEGs, or reports them if they are corrupt.

    shown: whether to show the progress.
    """
    written = {}
    for name in fields:
        # Voters are read twice, because the kind must be known before the votes are counted.
        kinds: Counter[_Kind] = Counter()
        groups = range(len(source.bg))
        for found in run_all(executor, _kinds_of, ((source, name, group) for group in groups)):
            kinds.update(found)
        # Without any voter, bases are zeros, which no record uses.
        none = ((1, 1),) if name == "depth" else ((2, 2), (1, 1), (1, 1))
        kinds[none, ((1,) * 64,) * len(none)] += 0
        samplings, quantisers = max(kinds, key=lambda kind: (kinds[kind], kind))
        described = BaseFile(file=f"bases.{name}.npy", samplings=samplings, quantisers=quantisers)
        array = create_array(
            folder / described.file, np.dtype(np.int16), described.shape(source.layout)
        )
        tasks = ((source, name, group, described) for group in groups)
        found_bases = run_all(executor, _vote, tasks)
        title = f"bases of {name}"
        for group, base in followed(found_bases, title, len(array), "backgrounds", shown=shown):
            array[group] = base
        array.flush()
        written[name] = described
    return written


def _kinds_of(source: Samples, name: str, group: int) -> Counter[_Kind]:
    """How often each sampling with its quantisers occurs among the voters of a background."""
    return Counter(
        (found.geometry.samplings, tuple(map(tuple, found.quantisers.tolist())))
        for found in _voters(source, name, group)
        if found.geometry.is_supported
        and len(found.quantisers) == CHANNELS[name]
        and found.quantisers.all()
    )


def _voters(source: Samples, name: str, group: int) -> Iterator[Coefficients | Luma]:
    """Coefficients of a background's own file, and of some of its composites."""
    layout = source.layout
    for data in _images(source, name, group):
        try:
            read = read_coefficients(data)
            found = luma_of(read) if name == "depth" else read
        except NotBaseline:
            continue
        if (found.geometry.height, found.geometry.width) == (layout.height, layout.width):
            yield found


def _images(source: Samples, name: str, group: int) -> Iterator[bytes]:
    """The voters, encoded; those that can be read."""
    if name == "fg_bg":
        with suppress(OSError, DataError):
            yield read_regular(source.bg[group])
    start, stop = source.layout.group_starts[group : group + 2].tolist()
    rows = start + np.unique(np.linspace(0, stop - start - 1, _VOTERS).astype(int))
    for row in rows.tolist():
        with suppress(DataError):
            for sample in source.read([row]):
                yield sample.images[FIELDS.index(name)]


def _vote(source: Samples, name: str, group: int, described: BaseFile) -> tuple[int, np.ndarray]:
    """A background and its base: each block as most voters have it, of equals the first."""
    quantisers = np.array(described.quantisers, np.uint8)
    voters = [
        found.values
        for found in _voters(source, name, group)
        if found.geometry.samplings == described.samplings
        and np.array_equal(found.quantisers, quantisers)
    ]
    if not voters:
        return group, np.zeros(described.shape(source.layout)[1:], np.int16)
    ballots = np.stack(voters)
    votes = np.stack([(ballots == voter).all(axis=-1).sum(axis=0) for voter in ballots])
    chosen = votes.argmax(axis=0)
    return group, np.take_along_axis(ballots, chosen[None, ..., None], axis=0)[0]
