"""Protects the user's files: an output replaces only an earlier output of the same command.

Every output has a mark in its metadata, by which a later run recognises it: the value of a PNG
text chunk, a line of a page, an entry of an archive.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from os.path import exists, isdir
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from maskdepth.convert.errors import DataError, reading
from maskdepth.convert.files import require_regular
from maskdepth.convert.found import DATA_SET, SHARDS

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

PNG_KEY = "Software"
"""Keyword of the PNG text chunk that holds the mark."""

_OF_SHARDS = ("manifest.json", "backgrounds.npy")
"""Files of every shard folder."""
_OF_DATA = ("bg", "fg_bg")
"""Folders of every data set; a folder of something else may have one of them."""
_FOLDERS = (*_OF_DATA, "fg", "bg_depth", "fg_bg_mask", "fg_bg_depth")
_LONGEST_NAME = 250  # of 255 bytes; that of its temporary file is longer
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # how such files begin


def mark_of(command: str) -> str:
    """The text that marks an output of a command; it must be stored uncompressed."""
    return f"made by maskdepth {command}"


def png_mark(command: str, description: str = "") -> PngInfo:
    """The mark for `Image.save(..., pnginfo=)`, with a description of the picture if given."""
    from PIL.PngImagePlugin import PngInfo  # command lines import this module for their options

    about = PngInfo()
    about.add_text(PNG_KEY, mark_of(command))
    if description:
        about.add_text("Description", description)
    return about


class OutputFile(click.Path):
    """The name of a file to write, which must end in one of these suffixes."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            expected = " or ".join(self.suffixes)
            self.fail(
                f"{path}: found suffix {path.suffix!r}, expected a name that ends in {expected}",
                param,
                ctx,
            )
        return path


PNG = OutputFile(".png")
"""The type of every option and argument that names a picture to write."""
JSON = OutputFile(".json")
"""The type of every option that names a JSON file to write."""


def require_writable(path: Path) -> None:
    """Raise DataError unless a file can be created at this path, missing folders included."""
    # os.path treats what is in a folder without permission to search it as missing.
    if os.path.isdir(path):
        raise DataError(f"{path}: found a folder, expected the name of a file to write")
    _require_writable(path, path.absolute().parents)


def require_writable_folder(path: Path) -> None:
    """Raise DataError unless files can be created in this folder, which may be missing."""
    _require_writable(path, [path.absolute(), *path.absolute().parents])


def _require_writable(path: Path, folders: Sequence[Path]) -> None:
    # A link to nothing is no folder that could be made.
    existing = next(folder for folder in folders if os.path.lexists(folder))
    if not existing.is_dir() or not os.access(existing, os.W_OK, effective_ids=True):
        raise DataError(
            f"{path}: cannot be written, because {existing} is not a writable folder; name another "
            "place"
        )


def require_outside(output: Path, folder: Path) -> None:
    """Raise DataError if an output would be in a folder that is read, through links or not."""
    with reading(output):
        found, read = output.resolve(), folder.resolve()
    if found == read or read in found.parents:
        where = "is" if found == read else "is inside"
        raise DataError(
            f"{output}: {where} {folder}, which is read and would be spoiled; name a place "
            "elsewhere"
        )


def require_unspoilt(output: Path) -> None:
    """Raise DataError if an output would be among the files of a shard folder or a data set."""
    with reading(output):
        place = output.resolve()
        for folder in place.parents:
            inside = place.relative_to(folder).parts
            is_shards = len(inside) == 1 and all(exists(folder / n) for n in _OF_SHARDS)
            is_data = len(inside) == 1 or inside[0] in _FOLDERS
            is_data = is_data and all(isdir(folder / n) for n in _OF_DATA)
            if is_shards or is_data:
                raise DataError(
                    f"{output}: is inside {SHARDS if is_shards else DATA_SET} ({folder}), which "
                    "would be spoiled; name a place elsewhere"
                )


def require_kept(folder: Path, output: Path) -> None:
    """Raise DataError if a folder that is read is inside an output, which may be replaced."""
    with reading(folder):
        read, replaced = folder.resolve(), output.resolve()
    if replaced in read.parents:
        raise DataError(
            f"{folder}: is inside {output}, which would be replaced; copy it to another place first"
        )


def require_output(path: Path, command: str, inputs: Iterable[Path] = ()) -> None:
    """`require_outputs` of one file."""
    require_outputs([path], command, inputs)


def require_outputs(paths: Iterable[Path], command: str, inputs: Iterable[Path] = ()) -> None:
    """Raise DataError unless a command may write these files and replace what is there.

    It may replace earlier outputs of its own, and empty files. It may not replace anything else,
    nor one of ``inputs``, by whatever name or link.
    """
    known = {_identity(path): path for path in inputs if path.exists()}
    for path in paths:
        require_free(path)
        if not path.exists():
            continue
        if other := known.get(_identity(path)):
            raise DataError(f"{path}: is an input of this command ({other}); name another file")
        if path.stat().st_size and not is_output(path, command):
            raise DataError(
                f"{path}: exists and was not made by {command}; name another file, or move it away"
            )


def require_free(path: Path) -> None:
    """Raise DataError unless a file can be written here, without spoiling a folder of ours."""
    if (length := len(os.fsencode(path.name))) > _LONGEST_NAME:
        raise DataError(
            f"{path}: found a name of {length} bytes, expected at most {_LONGEST_NAME}; choose a "
            "shorter one"
        )
    require_writable(path)
    require_unspoilt(path)
    if path.exists():
        with reading(path):
            require_regular(path)


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode: equal for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def is_output(path: Path, command: str) -> bool:
    """Whether a file has the mark of a command. DataError if it is not regular or unreadable."""
    mark = mark_of(command).encode()
    with reading(path):
        require_regular(path)
        with open(path, "rb") as file:
            start = file.read(len(_PNG))
            if start == _PNG:
                return _has_text(file, PNG_KEY.encode() + b"\0" + mark)
            if not start or start.startswith(_JPEG):  # none of ours, and photos are large
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(mark) >= 0


def _has_text(file: BinaryIO, text: bytes) -> bool:
    """Whether the chunks of a PNG, after its signature and before its pixels, have this text."""
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4]), head[4:]
        after = file.tell() + size + 4  # a checksum
        if kind == b"IDAT":
            break
        if kind == b"tEXt" and size == len(text) and file.read(size) == text:
            return True
        file.seek(after)
    return False
