"""What `pack` converts: samples of encoded images. Reads and checks the folders of a data set.

docs/format.md describes these folders.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import click
import numpy as np
from pydantic import model_validator

from maskdepth.convert import jpeg
from maskdepth.convert.errors import DataError, OptionError, RecordError, one_line
from maskdepth.convert.files import read_file, read_regular
from maskdepth.convert.layout import FIELDS, Layout
from maskdepth.convert.manifest import ShardFile
from maskdepth.convert.metadata import (
    DATASET,
    DATASET_FORMAT,
    DATASET_VERSION,
    ComposedMetadata,
    find_miscounts,
    require_spelt,
    unknown_keys,
)
from maskdepth.convert.names import (
    FOLDERS,
    Names,
    Problem,
    bg_name,
    find_names,
    list_jpegs,
    pointing_to_check,
    require_dataset,
    required,
    sample_name,
)
from maskdepth.convert.placements import PLACEMENTS, read_others, read_placements
from maskdepth.convert.schema import Positive, Schema, parse_table, shown
from maskdepth.convert.workers import SentOnce


class PlacementsFile(ShardFile):
    """Name, size and SHA-256 of the table of samples in a data set."""

    file: Literal["placements.npy"]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure and hash a file."""
        return cls(file="placements.npy", **ShardFile.of(path).model_dump())


class OthersFile(ShardFile):
    """The same of the table of further foregrounds."""

    file: Literal["others.npy"]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure and hash a file."""
        return cls(file="others.npy", **ShardFile.of(path).model_dump())


class DepthScale(Schema):
    """What the levels of depth maps mean: value = near + (far - near) * level / 255.

    near, far: the model's values at 0 and at 255. unit: of these.
    """

    near: float
    far: float
    unit: Literal["metres", "none"]

    @model_validator(mode="after")
    def _is_metric(self) -> Self:
        if self.unit == "metres" and not self.near <= self.far:
            raise ValueError(f"near {self.near} is farther than far {self.far}")
        return self


class Metadata(Schema, extra="allow"):
    """What is used of `dataset.json`; a user's own keys are kept."""

    samples_per_fg: Positive | None = None
    placements_table: PlacementsFile | None = None
    others_table: OthersFile | None = None
    depth_scale: DepthScale | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        """Refuse what a newer `compose` wrote; a file of a user has no format."""
        if isinstance(value, dict) and value.get("format") == DATASET_FORMAT:
            version = value.get("version")
            if type(version) is not int or not 1 <= version <= DATASET_VERSION:
                raise ValueError(
                    f"found {DATASET_FORMAT!r} version {shown(version)}, expected version 1 to "
                    f"{DATASET_VERSION}"
                )
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.others_table is not None and self.placements_table is None:
            raise ValueError("found others_table without placements_table; delete both")
        return self


class Sample(NamedTuple):
    """The images of one sample, encoded, in the order of `FIELDS`.

    paths: their files, for messages. stamp: changes with what the sample is made from.
    """

    images: tuple[bytes, ...]
    paths: tuple[str, ...]
    stamp: bytes


class Samples(Protocol):
    """Samples that `pack` converts: of a folder (`Source`), or composed as they are needed.

    bg: the background files in order; each sample of the layout belongs to one of them.
    metadata: what `dataset.json` says.
    """

    @property
    def bg(self) -> tuple[Path, ...]: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def metadata(self) -> dict[str, object]: ...

    def read(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Some samples of one background; RecordError for one that cannot be read."""

    def stamps(self, indices: Sequence[int]) -> Iterator[bytes]:
        """The stamps of some samples of one background, without reading their images."""


@dataclass(frozen=True, kw_only=True)
class Source(SentOnce):
    """A checked data set folder; see `Samples`."""

    folder: Path
    bg: tuple[Path, ...]
    layout: Layout
    metadata: dict[str, object]
    _cache_key: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False, repr=False)

    def folders(self, group: int) -> tuple[Path, ...]:
        """Folders of fg_bg, mask and depth of one background."""
        return tuple(self.folder / name / self.bg[group].stem for name in FOLDERS.values())

    def paths(self, index: int) -> tuple[Path, ...]:
        """Files of fg_bg, mask and depth of one sample."""
        group = int(self.layout.background_of(np.asarray(index)))
        name = self.names(group)[index - int(self.layout.group_starts[group])]
        return tuple(folder / name for folder in self.folders(group))

    def read(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Some samples of one background; RecordError for one that cannot be read."""
        for index, paths in zip(indices, self._paths(indices), strict=True):
            images, stamps = [], []
            for name, path in zip(FIELDS, paths, strict=True):
                try:
                    data, status = read_file(path)
                except OSError as error:
                    raise _unreadable(index, name, path, error) from None
                except ValueError as error:
                    reason = f"{error}; fix or replace the file"
                    raise RecordError(index, name, path, reason) from None
                images.append(data)
                stamps.append(_stamp(status))
            yield Sample(tuple(images), paths, b"".join(stamps))

    def stamps(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Size and time of change of the files of some samples of one background."""
        for index, paths in zip(indices, self._paths(indices), strict=True):
            for name, path in zip(FIELDS, paths, strict=True):
                try:
                    yield _stamp(os.stat(path))
                except OSError as error:
                    raise _unreadable(index, name, path, error) from None

    def _paths(self, indices: Sequence[int]) -> Iterator[tuple[str, ...]]:
        """Files of some samples of one background."""
        group = int(self.layout.background_of(np.asarray(indices[0])))
        first = int(self.layout.group_starts[group])
        names, folders = self.names(group), [str(path) for path in self.folders(group)]
        for index in indices:
            yield tuple(f"{folder}/{names[index - first]}" for folder in folders)

    def names(self, group: int) -> list[str]:
        """Sorted file names of one background's samples; DataError if their number changed."""
        folder = self.folder / FOLDERS["fg_bg"] / self.bg[group].stem
        names = _names(folder, self._cache_key)
        expected = int(self.layout.group_starts[group + 1] - self.layout.group_starts[group])
        if len(names) != expected:
            raise DataError(
                f"{folder}: found {len(names)} images, but {expected} a moment ago; leave the "
                "data set alone while it is read"
            )
        return names


def _stamp(status: os.stat_result) -> bytes:
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def _unreadable(index: int, name: str, path: str, error: OSError) -> RecordError:
    return RecordError(index, name, path, f"cannot be read ({error.strerror})")


@functools.lru_cache(maxsize=4)
def _names(folder: Path, cache_key: str) -> list[str]:
    """`list_jpegs`, cached for one `Source` and its copies: the next may find other files."""
    return list_jpegs(folder)


def read_source(dataset: str | Path, *, samples_per_fg: int | None = None) -> Source:
    """Check the file names of a complete data set and count its samples.

    The table of samples is checked too; images only when they are read. ``samples_per_fg``
    overrides `dataset.json`.
    Raises DataError that names the first unexpected or missing file.
    """
    folder = require_dataset(dataset)
    with pointing_to_check(folder, DataError, samples_per_fg):
        source = source_of(folder, find_names(folder), samples_per_fg)
        required(None, find_miscounts(folder, source.metadata, source.layout))
        require_placements(source)
    return source


def source_of(folder: Path, names: Names, samples_per_fg: int | None) -> Source:
    """The data set that has these names; DataError with the first problem."""
    required(names, names.problems)
    metadata = read_metadata(folder)
    try:
        first = jpeg.read_header(read_regular(names.bg[0]))
    except (OSError, ValueError) as error:
        raise DataError(f"{names.bg[0]}: {error}; expected a JPEG image") from None
    about = Metadata.from_json(metadata)
    table, others = about.placements_table, about.others_table
    layout = Layout(
        height=first.height,
        width=first.width,
        group_starts=np.cumsum([0, *names.counts.values()], dtype=np.int64),
        samples_per_fg=required(*find_per_fg(folder, samples_per_fg, metadata, names.counts)),
        table=folder / table.file if table else None,
        others=folder / others.file if others else None,
    )
    return Source(folder=folder, bg=names.bg, layout=layout, metadata=metadata)


def require_placements(source: Source) -> None:
    """DataError unless the table of samples, if there is one, is that of these samples."""
    layout, about = source.layout, Metadata.from_json(source.metadata)
    if about.placements_table is None or layout.table is None:
        return
    keys = "placements_table" if layout.others is None else "placements_table and others_table"
    fix = f"compose again, or delete {keys} in {DATASET} if files were added or removed"
    if problem := about.placements_table.problem(layout.table, fix=fix):
        raise DataError(problem)
    size = (layout.height, layout.width)
    rows = read_placements(layout.table, layout.group_starts, size, fix)
    if about.others_table is not None and layout.others is not None:
        if problem := about.others_table.problem(layout.others, fix=fix):
            raise DataError(problem)
        read_others(layout.others, rows, size, fix)
    _require_names_of_compose(source)
    per_fg = layout.samples_per_fg
    if per_fg is None:
        return
    counted = replace(layout, table=None).foreground_of(np.arange(layout.samples))
    if not np.array_equal(counted, rows["fg"]):
        raise DataError(
            f"{layout.table}: the foregrounds of samples are not those of {per_fg} neighbours "
            f"each, as --samples-per-fg or samples_per_fg in {DATASET} says; leave that out"
        )


def _require_names_of_compose(source: Source) -> None:
    """DataError if a file has another name than `compose` gave it: rows are in that order."""
    for group, bg in enumerate(source.bg):
        found = source.names(group)
        pairs = [(bg.stem, bg_name(group, len(source.bg)))]
        pairs += [(n.rpartition(".")[0], sample_name(i, len(found))) for i, n in enumerate(found)]
        for name, expected in pairs:
            if name != expected:
                folder = source.folder / FOLDERS["fg_bg"] / bg.stem
                raise DataError(
                    f"{folder}: found {name}, expected {expected} as compose names it, so that "
                    f"{PLACEMENTS} may be of other samples; restore the names, or delete "
                    f"placements_table in {DATASET}"
                )


def find_per_fg(
    folder: Path, given: int | None, metadata: dict[str, object], counts: dict[str, int]
) -> tuple[int | None, list[Problem]]:
    """Samples that show one foreground, and backgrounds of which that number is wrong.

    A missing sample would shift the foregrounds of all after it.
    """
    if _shows_several(metadata):
        if given is not None:
            raise OptionError(
                "samples_per_fg",
                f": found {given}, but samples of {folder} show several people, as style in "
                f"{DATASET} says; leave that out",
            )
        if Metadata.from_json(metadata).others_table is None:
            return None, []
    found, fix = given, "give --samples-per-fg another number"
    if given is None:
        found = Metadata.from_json(metadata).samples_per_fg
        fix = f"delete samples_per_fg in {DATASET} if it is not known which show one foreground"
    if found is None:
        return None, []
    if found < 1:
        raise OptionError("samples_per_fg", f": found {found}, expected 1 or more")
    problems = [
        Problem.of(
            folder / FOLDERS["fg_bg"] / stem,
            f"found {count} images, expected a multiple of {found}, the samples of one foreground; "
            f"give all of them, or {fix}",
            "foregrounds",
        )
        for stem, count in counts.items()
        if count % found
    ]
    return found, problems


def _shows_several(metadata: dict[str, object]) -> bool:
    """Whether samples may show several foregrounds."""
    is_composed = metadata.get("format") == DATASET_FORMAT
    return is_composed and ComposedMetadata.from_json(metadata).style.has_several


def note_unknown_keys(folder: Path, metadata: dict[str, object]) -> None:
    """Report keys of `dataset.json` that have no effect, in one line."""
    if unknown := unknown_keys(metadata):
        names = ", ".join(map(shown, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        line = f"{folder / DATASET}: unknown keys have no effect, and are kept: {names}"
        click.echo(one_line(line), err=True)


def read_metadata(folder: Path) -> dict[str, object]:
    """What a data set's `dataset.json` says, empty if there is none; DataError if it is corrupt."""
    path = folder / DATASET
    try:
        metadata = parse_table(read_regular(path))
        require_spelt(metadata)
        Metadata.from_json(metadata)
        if metadata.get("format") == DATASET_FORMAT:
            ComposedMetadata.from_json(metadata)
        has_tables = "placements_table" in metadata, "others_table" in metadata
        if _shows_several(metadata) and has_tables == (True, False):
            raise ValueError(
                "found placements_table without others_table, though samples may show several "
                "people by style; delete both"
            )
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); fix or delete it"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; fix or delete it") from None
    return metadata
