"""The folder layout of the data set -> ordered, checked sample records.

bg/bg_001.jpg ...                       one file a background
fg_bg/bg_001/img_0001.jpg ...           its composites
fg_bg_mask/bg_001/img_0001.jpg ...      the same names
fg_bg_depth/bg_001/img_0001.jpg ...     the same names
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convert import jpeg
from convert.errors import DataError
from convert.layout import Layout
from convert.manifest import MANIFEST

FOLDERS = {"fg_bg": "fg_bg", "mask": "fg_bg_mask", "depth": "fg_bg_depth"}
"""Folder of each field."""

DATASET = "dataset.json"
_SUFFIXES = (".jpg", ".jpeg")
_IGNORED = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checked data set folder.

    bg: the background files in order; sample i of the layout belongs to one of them.
    metadata: what `dataset.json` says, empty if there is none.
    """

    folder: Path
    bg: tuple[Path, ...]
    layout: Layout
    metadata: dict[str, object]
    _session: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False, repr=False)

    def folders(self, group: int) -> tuple[Path, Path, Path]:
        """Folders of fg_bg, mask and depth of one background."""
        stem = self.bg[group].stem
        fg_bg, mask, depth = (self.folder / name / stem for name in FOLDERS.values())
        return fg_bg, mask, depth

    def paths(self, index: int) -> tuple[Path, Path, Path]:
        """Files of fg_bg, mask and depth of one sample."""
        group = int(self.layout.background_of(np.asarray(index)))
        name = self.names(group)[index - int(self.layout.group_starts[group])]
        fg_bg, mask, depth = (folder / name for folder in self.folders(group))
        return fg_bg, mask, depth

    def names(self, group: int) -> list[str]:
        """Sorted file names of one background's samples; DataError if some came or went."""
        folder = self.folder / FOLDERS["fg_bg"] / self.bg[group].stem
        names = _names(folder, self._session)
        expected = int(self.layout.group_starts[group + 1] - self.layout.group_starts[group])
        if len(names) != expected:
            raise DataError(
                f"{folder}: found {len(names)} images, but {expected} a moment ago; leave the "
                "data set alone while it is read"
            )
        return names


@functools.lru_cache(maxsize=4)
def _names(folder: Path, session: str) -> list[str]:
    """Kept for one `Source` (``session``) alone: the next may find other files."""
    return list_jpegs(folder)


def list_jpegs(folder: Path) -> list[str]:
    """Sorted names of the JPEG files in a folder; DataError for anything else in it."""
    names = _visible(folder)
    for name in names:
        if not name.lower().endswith(_SUFFIXES):
            raise DataError(f"{folder / name}: found a file that is not a .jpg; move it away")
    return names


def list_backgrounds(folder: Path) -> tuple[Path, ...]:
    """Background files of a data set by file name, each of another stem, for it names a folder.

    DataError for none, for two of one stem and for anything that is not a JPEG file.
    """
    found = tuple(folder / "bg" / name for name in list_jpegs(folder / "bg"))
    if not found:
        raise DataError(f"{folder / 'bg'}: found no images, expected one .jpg a background")
    by_stem: dict[str, Path] = {}
    for path in found:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise DataError(
                f"{path}: found {other.name} too, expected one background of the name {path.stem}; "
                "rename or remove one"
            )
    return found


def _visible(folder: Path) -> list[str]:
    """Sorted entries of a folder without hidden files and what file managers leave."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder; expected {_layout_hint()}") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: found a file, expected a folder of images") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return sorted(name for name in names if name[0] != "." and name not in _IGNORED)


def _layout_hint() -> str:
    return "bg/, fg_bg/, fg_bg_mask/ and fg_bg_depth/ as in docs/format.md"


def read_source(dataset: str | Path, *, samples_per_fg: int | None = None) -> Source:
    """Check the names of a whole data set and count its samples.

    Looks at names only; images are checked when they are read. ``samples_per_fg`` overrides
    what `dataset.json` says. Raises DataError that names the first file out of place.
    """
    folder = Path(dataset)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a data set with {_layout_hint()}")
    if (folder / MANIFEST).exists():
        raise DataError(f"{folder}: is a shard folder; expected a data set with {_layout_hint()}")
    bg = list_backgrounds(folder)
    stems = [path.stem for path in bg]
    for name in FOLDERS.values():
        _same_names(folder / name, _visible(folder / name), stems, f"the names of {folder / 'bg'}")
    counts = [_count_group(folder, stem) for stem in stems]
    metadata = read_metadata(folder)
    height, width = _image_size(bg[0])
    starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    per_fg = _samples_per_fg(folder, samples_per_fg, metadata, stems, counts)
    layout = Layout(height=height, width=width, group_starts=starts, samples_per_fg=per_fg)
    return Source(folder=folder, bg=bg, layout=layout, metadata=metadata)


def _samples_per_fg(
    folder: Path,
    told: int | None,
    metadata: dict[str, object],
    stems: list[str],
    counts: list[int],
) -> int | None:
    """Samples that show one person, checked: with a sample missing, all behind it would shift."""
    found = metadata.get("samples_per_fg") if told is None else told
    where, mend = "--samples-per-fg", "give --samples-per-fg another number"
    if told is None:
        where = f"{folder / DATASET}: samples_per_fg"
        mend = (
            "say that it is not known which show the same person: delete samples_per_fg in "
            f"{DATASET}"
        )
    if found is None:
        return None
    if not isinstance(found, int) or found < 1:
        raise DataError(f"{where} is {found!r}, expected a count")
    for stem, count in zip(stems, counts, strict=True):
        if count % found:
            raise DataError(
                f"{folder / FOLDERS['fg_bg'] / stem}: found {count} images, expected a multiple of "
                f"{found}, the samples of one person; give all of them, or {mend}"
            )
    return found


def _count_group(folder: Path, stem: str) -> int:
    names = list_jpegs(folder / FOLDERS["fg_bg"] / stem)
    if not names:
        raise DataError(f"{folder / FOLDERS['fg_bg'] / stem}: found no images, expected at least 1")
    for name in ("mask", "depth"):
        other = folder / FOLDERS[name] / stem
        _same_names(other, list_jpegs(other), names, f"as many as {FOLDERS['fg_bg']}/{stem}")
    return len(names)


def _same_names(folder: Path, found: list[str], expected: list[str], what: str) -> None:
    """DataError unless both hold the same names, in whatever order."""
    # The order may differ: by file name `a-b.jpg` comes before `a.jpg`, by stem behind it.
    if sorted(found) == sorted(expected):
        return
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    first = f"{missing[0]} is missing" if missing else f"{extra[0]} has no counterpart"
    raise DataError(
        f"{folder}: found {len(found)} entries, expected {len(expected)} ({what}): {first}"
    )


def read_metadata(folder: Path) -> dict[str, object]:
    """What a data set's `dataset.json` says, empty if there is none; DataError if it is corrupt."""
    path = folder / DATASET
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fix or delete it") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{path}: cannot be read (not an object); fix or delete it")
    return metadata


def _image_size(path: Path) -> tuple[int, int]:
    try:
        header = jpeg.read_header(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; expected a JPEG image") from None
    return header.height, header.width
