"""The names of a data set's files: which must be there, and all problems of those that are.

docs/format.md describes the folders. Images are not read here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from os.path import exists
from pathlib import Path
from shlex import quote
from typing import NamedTuple, Self, TypeVar

from maskdepth.convert.contents import MOUNTED
from maskdepth.convert.errors import DataError, OptionError, one_line, reading
from maskdepth.convert.found import DATA_SET, FOLDER, NOTHING, found_at, visible
from maskdepth.convert.program import CONVERT

T = TypeVar("T")

LEVELS = "bg_depth"
"""Folder of the depth maps of backgrounds, in data sets whose composites depend on them."""

FOLDERS = {"fg_bg": "fg_bg", "mask": "fg_bg_mask", "depth": "fg_bg_depth"}
"""Folder of each field."""

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_EXPECTED = "bg/, fg_bg/, fg_bg_mask/ and fg_bg_depth/ as in docs/format.md"


def bg_name(bg: int, backgrounds: int) -> str:
    """What `compose` names background ``bg`` (from 0), zero-padded so that names sort by number."""
    return f"bg_{bg + 1:0{max(3, len(str(backgrounds)))}d}"


def fg_name(fg: int, foregrounds: int) -> str:
    """What `compose` names foreground ``fg`` (from 0), zero-padded likewise."""
    return f"fg_{fg + 1:0{max(3, len(str(foregrounds)))}d}"


def sample_name(sample: int, samples: int) -> str:
    """What `compose` names sample ``sample`` (from 0) of a background, zero-padded likewise."""
    return f"img_{sample + 1:0{max(4, len(str(samples)))}d}"


class Problem(NamedTuple):
    """What is wrong with a file or folder of a data set."""

    file: str
    line: str  # with the file's name, what was found and expected, and what to do
    kind: str  # `convert check` counts problems of one kind together

    @classmethod
    def of(cls, file: Path | str, text: str, kind: str = "") -> Self:
        """A problem whose line begins with the file's name."""
        return cls(str(file), one_line(f"{file}: {text}"), kind or text)


class Names(NamedTuple):
    """The names of a data set's files: backgrounds, samples of each by its stem, and problems."""

    bg: tuple[Path, ...]
    counts: dict[str, int]
    problems: list[Problem]


def find_names(folder: Path) -> Names:
    """Compare the names in all folders of a data set; images are not read."""
    bg, problems = _find_backgrounds(folder)
    groups = {name: find_visible(folder / name) for name in FOLDERS.values()}
    stems = [path.stem for path in bg] or groups[FOLDERS["fg_bg"]][0]
    for name, (found, unlisted) in groups.items():
        what = f"the names of {folder / 'bg'}"
        problems += unlisted or _compare(folder / name, found, stems, what)
    counts = {}
    for stem in dict.fromkeys(stems):
        counts[stem], of_group = _find_group(folder, stem)
        problems += of_group
    return Names(bg, counts, problems)


def list_jpegs(folder: Path) -> list[str]:
    """Sorted names of the JPEG files in a folder; DataError for anything else in it."""
    return required(*find_jpegs(folder))


def list_backgrounds(folder: Path) -> tuple[Path, ...]:
    """Background files of a data set, sorted by file name.

    DataError if the folder is not one of a data set, if there are no backgrounds, if two have the
    same stem, or for anything but a JPEG file.
    """
    return required(*_find_backgrounds(require_dataset(folder)))


def required(found: T, problems: list[Problem]) -> T:
    """What was found; DataError with the first problem, if there are any."""
    if problems:
        raise DataError(problems[0].line)
    return found


def find_jpegs(folder: Path) -> tuple[list[str], list[Problem]]:
    """Sorted names of the JPEG files in a folder, and a problem for anything else in it."""
    names, problems = find_visible(folder)
    jpegs = [name for name in names if name.lower().endswith(_JPEG_SUFFIXES)]
    if len(jpegs) < len(names):
        text = "found a file that is not a .jpg; move it away, or save it as one"
        others = sorted(set(names) - set(jpegs))
        problems += (Problem.of(folder / name, text) for name in others)
    return jpegs, problems


def _find_backgrounds(folder: Path) -> tuple[tuple[Path, ...], list[Problem]]:
    names, problems = find_jpegs(folder / "bg")
    found = tuple(folder / "bg" / name for name in names)
    if not found and not problems:
        text = "found no images, expected one .jpg for each background"
        problems.append(Problem.of(folder / "bg", text))
    for other, path in pairwise(sorted(found, key=lambda path: path.stem)):
        if other.stem == path.stem:
            text = (
                f"found {other.name} too, expected one background of the name {path.stem}; "
                "rename or remove one"
            )
            problems.append(Problem.of(path, text, "found twice"))
    return found, problems


def find_visible(folder: Path) -> tuple[list[str], list[Problem]]:
    """The `visible` entries of a folder, or the problem of one that cannot be listed."""
    try:
        return visible(os.listdir(folder)), []
    except FileNotFoundError:
        text = f"no such folder; expected {_EXPECTED}"
        if folder.name == FOLDERS["depth"]:
            text += f"; `{CONVERT} depth` makes it"
    except OSError as error:
        text = f"cannot be read ({error.strerror}); expected a folder of images"
    return [], [Problem.of(folder, text)]


def _find_group(folder: Path, stem: str) -> tuple[int, list[Problem]]:
    """Samples of one background, and where its folders do not hold the same names.

    A folder that is missing is a problem of the folder in which it should be.
    """
    first, *others = (folder / name / stem for name in FOLDERS.values())
    names, problems = find_jpegs(first) if os.path.lexists(first) else ([], [])
    if not names and not problems and os.path.lexists(first):
        problems.append(Problem.of(first, "found no images, expected at least 1"))
    for other in filter(os.path.lexists, others):
        found, of_other = find_jpegs(other)
        problems += of_other
        # A file that has been saved in another format is not missing as well.
        replaced = {Path(problem.file).stem for problem in of_other}
        expected = (
            [name for name in names if Path(name).stem not in replaced] if replaced else names
        )
        if names:
            what = f"as many as {FOLDERS['fg_bg']}/{stem}"
            problems += _compare(other, found, expected, what)
    return len(names), problems


def _compare(folder: Path, found: list[str], expected: list[str], what: str) -> list[Problem]:
    """A problem for each name that is in one of two lists, in any order."""
    # File names and stems sort differently: `a-b.jpg` is before `a.jpg`, `a-b` is after `a`.
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = []
    for one, other in zip_longest(missing, extra):
        names = [f"{one} is missing"] if one else []
        names += [f"{other} has no counterpart"] if other else []
        line = (
            f"{folder}: found {len(found)} entries, expected {len(expected)} ({what}): "
            f"{', '.join(names)}; add, rename or remove files until the names agree"
        )
        kind = "another name" if one and other else "missing" if one else "extra"
        problems.append(Problem(str(folder / (one or other)), one_line(line), kind))
    return problems


def require_dataset(dataset: str | Path) -> Path:
    """The folder of a data set; DataError if there is something else, or nothing.

    Or if `compose` has not finished it in a mount point: all images may be there already.
    """
    folder = Path(dataset)
    require_folder(folder, f"a data set with {_EXPECTED}")
    if exists(folder / MOUNTED) and not exists(folder / "dataset.json"):
        raise DataError(f"{folder}: is unfinished; run `{CONVERT} compose` again with --resume")
    return folder


def require_folder(folder: Path, expected: str) -> str:
    """`DATA_SET` or `FOLDER`; DataError with what was ``expected`` for anything else."""
    with reading(folder):
        kind = found_at(folder)
    if kind not in (DATA_SET, FOLDER):
        reason = "no such folder" if kind == NOTHING else f"found {kind}"
        raise DataError(f"{folder}: {reason}; expected {expected}")
    return kind


@contextmanager
def pointing_to_check(
    dataset: Path, errors: type[DataError], samples_per_fg: int | None = None
) -> Iterator[None]:
    """Let an error of the block name the command that lists all problems of a data set."""
    try:
        yield
    except OptionError:
        raise
    except errors as error:
        command = f"{CONVERT} check {quote(str(dataset))}"
        if samples_per_fg is not None:
            command += f" --samples-per-fg {samples_per_fg}"
        raise error.with_advice(f"`{command}` lists all problems") from None
