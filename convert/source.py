"""What `pack` converts: samples of encoded images. Reads and checks the folders of a data set.

docs/format.md describes these folders.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from pydantic import model_validator

from convert import jpeg
from convert.errors import DataError, OptionError, RecordError, reading
from convert.files import read_file, read_regular
from convert.found import DATA_SET, FOLDER, NOTHING, found_at
from convert.layout import FIELDS, Layout
from convert.manifest import ShardFile
from convert.placements import read_placements
from convert.schema import Positive, Schema, parse_table, shown

FOLDERS = {"fg_bg": "fg_bg", "mask": "fg_bg_mask", "depth": "fg_bg_depth"}
"""Folder of each field."""

DATASET = "dataset.json"
DATASET_FORMAT, DATASET_VERSION = "maskdepth-dataset", 2
"""What `compose` writes; version 1 has no table of samples."""

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_IGNORED = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "__macosx", "@eadir",
})  # fmt: skip
"""Files and folders that file managers, archives and network disks add, in lower case."""
_EXPECTED = "bg/, fg_bg/, fg_bg_mask/ and fg_bg_depth/ as in docs/format.md"


class PlacementsFile(ShardFile):
    """Name, size and SHA-256 of the table of samples in a data set."""

    file: Literal["placements.npy"]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure and hash a file."""
        return cls(file="placements.npy", **ShardFile.of(path).model_dump())


class Metadata(Schema, extra="allow"):
    """What is used of `dataset.json`; a user's own keys are kept."""

    samples_per_fg: Positive | None = None
    placements_table: PlacementsFile | None = None

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
class Source:
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


def list_jpegs(folder: Path) -> list[str]:
    """Sorted names of the JPEG files in a folder; DataError for anything else in it."""
    names = _list_visible(folder)
    for name in names:
        if not name.lower().endswith(_JPEG_SUFFIXES):
            raise DataError(f"{folder / name}: found a file that is not a .jpg; move it away")
    return names


def list_backgrounds(folder: Path) -> tuple[Path, ...]:
    """Background files of a data set, sorted by file name.

    DataError if there are none, if two have the same stem, or for anything but a JPEG file.
    """
    with reading(folder):
        kind = found_at(folder)
    if kind not in (DATA_SET, FOLDER):
        reason = "no such folder" if kind == NOTHING else f"found {kind}"
        raise DataError(f"{folder}: {reason}; expected a data set with {_EXPECTED}")
    found = tuple(folder / "bg" / name for name in list_jpegs(folder / "bg"))
    if not found:
        raise DataError(f"{folder / 'bg'}: found no images, expected one .jpg for each background")
    for other, path in pairwise(sorted(found, key=lambda path: path.stem)):
        if other.stem == path.stem:
            raise DataError(
                f"{path}: found {other.name} too, expected one background of the name {path.stem}; "
                "rename or remove one"
            )
    return found


def visible(names: Iterable[str]) -> list[str]:
    """Sorted names, without hidden files and those that no person has put into a folder."""
    return sorted(n for n in names if n[0] != "." and n.casefold() not in _IGNORED)


def _list_visible(folder: Path) -> list[str]:
    """The `visible` entries of a folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder; expected {_EXPECTED}") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); expected a folder of images"
        raise DataError(f"{folder}: {reason}") from None
    return visible(names)


def read_source(dataset: str | Path, *, samples_per_fg: int | None = None) -> Source:
    """Check the file names of a complete data set and count its samples.

    Images are checked only when they are read. ``samples_per_fg`` overrides `dataset.json`.
    Raises DataError that names the first unexpected or missing file.
    """
    folder = Path(dataset)
    bg = list_backgrounds(folder)
    stems = [path.stem for path in bg]
    for name in FOLDERS.values():
        found = _list_visible(folder / name)
        _check_names(folder / name, found, stems, f"the names of {folder / 'bg'}")
    counts = {stem: _count_group(folder, stem) for stem in stems}
    metadata = read_metadata(folder)
    try:
        first = jpeg.read_header(read_regular(bg[0]))
    except (OSError, ValueError) as error:
        raise DataError(f"{bg[0]}: {error}; expected a JPEG image") from None
    table = Metadata.from_json(metadata).placements_table
    layout = Layout(
        height=first.height,
        width=first.width,
        group_starts=np.cumsum([0, *counts.values()], dtype=np.int64),
        samples_per_fg=_samples_per_fg(folder, samples_per_fg, metadata, counts),
        table=folder / table.file if table else None,
    )
    return Source(folder=folder, bg=bg, layout=layout, metadata=metadata)


def require_placements(source: Source) -> None:
    """DataError unless the table of samples, if there is one, is that of these samples."""
    layout, described = source.layout, Metadata.from_json(source.metadata).placements_table
    if described is None or layout.table is None:
        return
    fix = f"compose again, or delete placements_table in {DATASET} if files were added or removed"
    if problem := described.problem(layout.table):
        raise DataError(f"{problem}; {fix}")
    try:
        rows = read_placements(layout.table, layout.group_starts, (layout.height, layout.width))
    except DataError as error:
        raise DataError(f"{error.message.rpartition('; ')[0]}; {fix}") from None
    per_fg = layout.samples_per_fg
    if per_fg is None:
        return
    counted = replace(layout, table=None).foreground_of(np.arange(layout.samples))
    if not np.array_equal(counted, rows["fg"]):
        raise DataError(
            f"{layout.table}: the foregrounds of samples are not those of {per_fg} neighbours "
            f"each, as --samples-per-fg or samples_per_fg in {DATASET} says; leave that out"
        )


def _samples_per_fg(
    folder: Path, given: int | None, metadata: dict[str, object], counts: dict[str, int]
) -> int | None:
    """Samples that show one foreground, checked: a missing sample would shift all after it."""
    found, fix = given, "give --samples-per-fg another number"
    if given is None:
        found = Metadata.from_json(metadata).samples_per_fg
        fix = f"delete samples_per_fg in {DATASET} if it is not known which show one foreground"
    if found is None:
        return None
    if found < 1:
        raise OptionError("samples_per_fg", f": found {found}, expected 1 or more")
    for stem, count in counts.items():
        if count % found:
            raise DataError(
                f"{folder / FOLDERS['fg_bg'] / stem}: found {count} images, expected a multiple of "
                f"{found}, the samples of one foreground; give all of them, or {fix}"
            )
    return found


def _count_group(folder: Path, stem: str) -> int:
    """Samples of one background; DataError unless all folders hold the same names."""
    names = list_jpegs(folder / FOLDERS["fg_bg"] / stem)
    if not names:
        raise DataError(f"{folder / FOLDERS['fg_bg'] / stem}: found no images, expected at least 1")
    for name in ("mask", "depth"):
        other = folder / FOLDERS[name] / stem
        _check_names(other, list_jpegs(other), names, f"as many as {FOLDERS['fg_bg']}/{stem}")
    return len(names)


def _check_names(folder: Path, found: list[str], expected: list[str], what: str) -> None:
    """DataError unless both lists hold the same names, in any order."""
    # File names and stems sort differently: `a-b.jpg` is before `a.jpg`, `a-b` is after `a`.
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        first = [f"{name} is missing" for name in missing[:1]]
        first += [f"{name} has no counterpart" for name in extra[:1]]
        raise DataError(
            f"{folder}: found {len(found)} entries, expected {len(expected)} ({what}): "
            + ", ".join(first)
        )


def read_metadata(folder: Path) -> dict[str, object]:
    """What a data set's `dataset.json` says, empty if there is none; DataError if it is corrupt."""
    path = folder / DATASET
    try:
        metadata = parse_table(read_regular(path))
        Metadata.from_json(metadata)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); fix or delete it"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; fix or delete it") from None
    return metadata
