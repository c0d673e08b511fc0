"""A shard folder of very many samples that share the bytes of a few: what a loader does as the
number of records grows, without the disk that so many would need.

All that is read when a folder is opened has its full size: metadata, allocation table, index.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import beton
from convert.layout import FIELDS
from convert.manifest import BACKGROUNDS, Format, ShardFile, write_manifest
from convert.shards import Shards


def write_repeated(shards: Path, folder: Path, samples: int) -> int:
    """An FFCV-format folder whose record ``i`` has the bytes of record ``i % n`` of ``shards``.

    samples: is rounded down to a multiple of the number of backgrounds; returns what it became.
    """
    opened = Shards(shards, "ffcv")
    layout = opened.manifest.layout
    backgrounds = len(opened.manifest.backgrounds)
    samples -= samples % backgrounds
    folder.mkdir(parents=True)
    _write_file(opened, folder, samples)
    np.save(folder / BACKGROUNDS, opened.backgrounds)
    starts = np.arange(backgrounds + 1, dtype=np.int64) * (samples // backgrounds)
    names = (BACKGROUNDS, beton.INDEX, beton.NAME)
    manifest = replace(
        opened.manifest,
        layout=replace(layout, group_starts=starts, samples_per_fg=None),
        formats={"ffcv": Format(files=(beton.NAME,), index=beton.INDEX)},
        files={name: ShardFile.of(folder / name) for name in names},
    )
    write_manifest(folder, manifest)
    return samples


def _write_file(opened: Shards, folder: Path, samples: int) -> None:
    """The FFCV file: header, one row a sample, the stored bytes once, the allocation table."""
    file, dtype = opened.files[0], beton.metadata_dtype(opened.manifest.codecs)
    header = file[: beton.HEADER.itemsize].view(beton.HEADER).copy()
    rows_at = beton.HEADER.itemsize + beton.DESCRIPTOR.itemsize * (len(FIELDS) + 1)
    old_rows = file[rows_at : rows_at + len(opened) * dtype.itemsize].view(dtype)
    first = min(int(opened.records[name]["offset"].min()) for name in FIELDS)
    stored = file[first : int(header["alloc_table_ptr"][0])]
    data_at = -(-(rows_at + samples * dtype.itemsize) // beton.PAGE) * beton.PAGE
    records = np.resize(opened.records, samples)
    rows = np.resize(old_rows, samples)
    table = np.zeros((samples, len(FIELDS)), beton.ALLOCATION)
    table["sample_id"] = np.arange(samples)[:, None]
    for column, name in enumerate(FIELDS):
        records[name]["offset"] += np.uint64(data_at - first)
        cells = rows[f"f{column}"]
        key = "ptr" if "ptr" in (cells.dtype.names or ()) else "data_ptr"
        cells[key] = table["ptr"][:, column] = records[name]["offset"]
        table["size"][:, column] = records[name]["size"]
    rows[f"f{len(FIELDS)}"] = np.arange(samples)
    header["num_samples"], header["alloc_table_ptr"] = samples, data_at + len(stored)
    np.save(folder / beton.INDEX, records)
    with open(folder / beton.NAME, "wb") as out:
        out.write(header.tobytes() + file[beton.HEADER.itemsize : rows_at].tobytes())
        out.write(rows.tobytes())
        out.seek(data_at)
        out.write(stored.tobytes())
        out.write(table.tobytes())
