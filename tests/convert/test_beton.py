"""What stock FFCV does not check of its file, damaged at the places that docs/format.md names."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from maskdepth.convert.beton import NAME, check_structure
from maskdepth.convert.shards import Shards
from maskdepth.loaders import DataError, build_loader

SAMPLE, COLUMN = 37, 1
HEADER, ROWS, ROW, ALLOCATION = 24, 4188, 56, 24


def table_of(content: bytes) -> int:
    """Where the allocation table begins."""
    return int(struct.unpack_from("<HHIQQ", content)[4])


def in_row(content: bytes) -> int:
    return ROWS + SAMPLE * ROW + 16 * COLUMN


def in_table(content: bytes) -> int:
    return table_of(content) + (3 * SAMPLE + COLUMN) * ALLOCATION


DISAGREE = f"record {SAMPLE}, mask .*: metadata and per-record index disagree"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (in_row, DISAGREE),
        (lambda content: in_table(content) + 8, DISAGREE),
        (lambda content: in_table(content) + 16, DISAGREE),
        (lambda content: HEADER + 5, "header or field descriptors differ from what pack writes"),
        (lambda content: 8, "the header gives 91 samples"),
    ],
)
def test_a_damaged_place_is_named(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None],
    place: Callable[[bytes], int], problem: str,
) -> None:  # fmt: skip
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    assert list(check_structure(Shards(copy, "ffcv"))) == []
    content = bytearray((copy / NAME).read_bytes())
    content[place(bytes(content))] ^= 1
    (copy / NAME).write_bytes(content)
    (found,) = check_structure(Shards(copy, "ffcv"))
    assert problem.split(" .*")[0] in found
    need_engine("ffcv")
    with pytest.raises(DataError, match=f"{problem}.*; pack again"):
        build_loader("ffcv", copy)


def test_a_file_without_its_table_is_unfinished(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    with open(copy / NAME, "r+b") as file:
        file.seek(16)
        file.write(bytes(8))
    (found,) = check_structure(Shards(copy, "ffcv"))
    assert found.endswith("unfinished: no allocation table")
