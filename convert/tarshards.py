"""Writes webdataset tar shards and their DALI index.

Engines that stream can only shuffle within a window, so the records are stored in a seeded
permutation, each with its index in source order. docs/format.md describes the files.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from maskdepth.convert.layout import FIELDS, RECORD
from maskdepth.convert.maps import create_array
from maskdepth.convert.parts import Part, PartFiles, read_records
from maskdepth.convert.storage import CODECS

INDEX = "samples.tar.index.npy"
SAMPLES_PER_SHARD = 10_000
_BLOCK = 512
_BLANK = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_HEADER = _BLANK[:148] + b" " * 8 + _BLANK[156:]  # the checksum counts itself as spaces


def shard_name(number: int) -> str:
    """File name of a tar shard."""
    return f"samples-{number:05d}.tar"


def dali_index_name(number: int) -> str:
    """File name of a tar shard's DALI index."""
    return f"samples-{number:05d}.idx"


def extensions(codecs: dict[str, str]) -> dict[str, str]:
    """Webdataset extension of each field, and of the index."""
    return {**{name: f"{name}.{CODECS[codecs[name]].suffix}" for name in FIELDS}, "index": "index"}


def write_shard(
    folder: Path,
    number: int,
    order: np.ndarray,
    parts: list[Part],
    form: str,
    parts_folder: Path,
    codecs: dict[str, str],
) -> None:
    """Write one tar shard with the samples of ``order``, its DALI index and its records.

    `merge_index` reads the records (`RECORD`, in the order of ``order``) in `samples-NNNNN.npy`.
    """
    records, which = _gather_records(order, parts, form, parts_folder)
    names = extensions(codecs)
    with (
        PartFiles(parts, form, parts_folder) as stored,
        open(folder / shard_name(number), "wb") as tar,
        open(folder / dali_index_name(number), "w") as dali_index,
    ):
        dali_index.write(f"v1.2 {len(order)}\n")
        at = 0
        for row, index in enumerate(order.tolist()):
            fields = stored.fields(int(which[row]), records[row])
            line = []
            for name, data in (*fields.items(), ("index", index.to_bytes(8, "little"))):
                member = f"{index:09d}.{names[name]}"
                tar.write(member_header(member, len(data)))
                tar.write(data)
                tar.write(bytes(-len(data) % _BLOCK))
                line.append(f"{names[name]} {at + _BLOCK} {len(data)} {member}")
                if name != "index":
                    records[name]["offset"][row] = at + _BLOCK
                at += _BLOCK + len(data) + -len(data) % _BLOCK
            dali_index.write(" ".join(line) + "\n")
        tar.write(bytes(2 * _BLOCK))
        tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
    for name in FIELDS:
        records[name]["file"] = number
    np.save(folder / f"samples-{number:05d}.npy", records)


def _gather_records(
    order: np.ndarray, parts: list[Part], form: str, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Records of some samples, with offsets in their parts' files, and the part of each."""
    which = np.searchsorted([part.start for part in parts], order, side="right") - 1
    records = np.empty(len(order), RECORD)
    for number in np.unique(which).tolist():
        rows = np.flatnonzero(which == number)
        known = read_records(parts[number], form, folder)
        records[rows] = known[order[rows] - parts[number].start]
    return records, which


def member_header(name: str, size: int) -> bytes:
    """A ustar header (POSIX.1-1988) of a plain file: mode 0644, owner 0, time 0."""
    # What `tarfile` writes in 15 us, in a quarter of that: only name, size and checksum differ.
    header = bytearray(_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:135] = b"%011o" % size
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def merge_index(folder: Path, orders: list[np.ndarray]) -> None:
    """Merge the shards' records in source order into `samples.tar.index.npy`."""
    samples = sum(len(order) for order in orders)
    index = create_array(folder / INDEX, RECORD, (samples,))
    for number, order in enumerate(orders):
        records = folder / f"samples-{number:05d}.npy"
        index[order] = np.load(records)
        records.unlink()
    index.flush()
