"""A shard folder of very many samples that share the bytes of a few: what a loader does as the
number of records grows, without the disk that so many would need.

All that is read when a folder is opened has its full size: metadata, allocation table, index.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from maskdepth.convert import beton
from maskdepth.convert.layout import FIELDS, Layout
from maskdepth.convert.manifest import BACKGROUNDS, Format, ShardFile, write_manifest
from maskdepth.convert.shards import Shards


def write_repeated(shards: Path, folder: Path, samples: int) -> int:
    """An FFCV-format folder whose records have the bytes of those of ``shards``.

    The k-th record of a background has the bytes of record ``k % n`` of the n that ``shards`` has.
    samples: is rounded down to a multiple of the number of backgrounds; returns what it became.
    """
    opened = Shards(shards, "ffcv")
    backgrounds = len(opened.manifest.backgrounds)
    samples -= samples % backgrounds
    starts = np.arange(backgrounds + 1, dtype=np.int64) * (samples // backgrounds)
    layout = replace(opened.manifest.layout, group_starts=starts, samples_per_fg=None, table=None)
    folder.mkdir(parents=True)
    first = min(int(opened.records[name]["offset"].min()) for name in FIELDS)
    last = opened.records[FIELDS[-1]][-1]
    stored = opened.files[0][first : int(last["offset"]) + int(last["size"])]
    groups = np.split(opened.records, opened.manifest.layout.group_starts[1:-1])
    records = np.concatenate([np.resize(group, samples // backgrounds) for group in groups])
    for name in FIELDS:
        records[name]["offset"] -= np.uint64(first)
    write_shared(folder, layout, opened.codecs, records, stored.tobytes())
    copied = (BACKGROUNDS, *(base.file for base in opened.manifest.bases.values()))
    for name in copied:
        shutil.copyfile(shards / name, folder / name)
    names = (*copied, beton.INDEX, beton.NAME)
    manifest = replace(
        opened.manifest,
        layout=layout,
        codecs={"ffcv": opened.codecs},
        formats={"ffcv": Format(files=(beton.NAME,), index=beton.INDEX)},
        files={name: ShardFile.of(folder / name) for name in names},
    )
    write_manifest(folder, manifest)
    return samples


def write_shared(
    folder: Path, layout: Layout, codecs: dict[str, str], records: np.ndarray, data: bytes
) -> None:
    """Write an FFCV file, and its per-record index, in which samples may share stored bytes.

    records: `RECORD` of each sample, with offsets in ``data``; they are changed in place to
    offsets in the file.
    """
    structure = beton.Structure(layout=layout, codecs=codecs)
    for name in FIELDS:
        records[name]["offset"] += np.uint64(structure.data_at)
    np.save(folder / beton.INDEX, records)
    with open(folder / beton.NAME, "wb") as file:
        file.write(structure.header(structure.data_at + len(data)))
        file.write(structure.rows(0, records).tobytes())
        file.seek(structure.data_at)
        file.write(data)
        file.write(structure.allocations(0, records).tobytes())
