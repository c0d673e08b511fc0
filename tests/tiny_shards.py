"""Shard folders of very many very small samples, written in seconds.

All that a loader reads when it opens a folder has its full size: header, metadata, allocation
table, per-record index. The stored bytes do not: samples show one of `VARIANTS` images, and in
the FFCV file share its bytes.
"""

from __future__ import annotations

from pathlib import Path

import crc32c
import numpy as np

from maskdepth.benchmarks.harness.repeated import write_shared
from maskdepth.convert import beton, tarshards
from maskdepth.convert.codecs import pack_runs
from maskdepth.convert.layout import RECORD, Layout
from maskdepth.convert.manifest import BACKGROUNDS, Format, Manifest, ShardFile, write_manifest
from maskdepth.convert.moments import Moments
from tests.pictures import jpeg_bytes

SIDE = 16
VARIANTS = 64
STORED_AS = {"fg_bg": "jpeg", "mask": "runs", "depth": "jpeg-luma"}


def stored_fields(variant: int) -> dict[str, bytes]:
    """Stored bytes of each field of one image."""
    rng = np.random.default_rng(variant)
    colours = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = (rng.integers(0, 2, (SIDE, SIDE)) > 0).astype(np.uint8)
    return {
        "fg_bg": jpeg_bytes(colours, quality=20),
        "mask": pack_runs(mask),
        "depth": jpeg_bytes(colours[:, :, 0], quality=20),
    }


def write_tiny_shards(
    folder: Path, backgrounds: int, samples_per_bg: int, samples_per_shard: int | None = None
) -> None:
    """A shard folder in FFCV's format, or as tar shards; sample i shows image i % VARIANTS."""
    folder.mkdir(parents=True)
    starts = np.arange(backgrounds + 1, dtype=np.int64) * samples_per_bg
    layout = Layout(height=SIDE, width=SIDE, group_starts=starts, samples_per_fg=None)
    pixels = np.random.default_rng(0).integers(0, 256, (backgrounds, SIDE, SIDE, 3), np.uint8)
    np.save(folder / BACKGROUNDS, pixels)
    if samples_per_shard:
        form, files = "webdataset", _write_tars(folder, layout.samples, samples_per_shard)
        index = tarshards.INDEX
    else:
        form, files, index = "ffcv", _write_beton(folder, layout), beton.INDEX
    mask = Moments(values=4, sums=(2,), squares=(2,), scale=1)
    gray = Moments(values=4, sums=(2,), squares=(2,), scale=255)
    colour = Moments(values=4, sums=(2, 2, 2), squares=(2, 2, 2), scale=255)
    manifest = Manifest(
        layout=layout,
        backgrounds=tuple(f"bg_{number:03d}.jpg" for number in range(backgrounds)),
        codecs={form: STORED_AS},
        bases={},
        statistics={"bg": colour, "fg_bg": colour, "mask": mask, "depth": gray},
        formats={form: Format(files=files, index=index)},
        files={path.name: ShardFile.of(path) for path in sorted(folder.iterdir())},
        counts={"source_bytes": 1},
        provenance={},
    )
    write_manifest(folder, manifest)


def _write_tars(folder: Path, samples: int, samples_per_shard: int) -> tuple[str, ...]:
    """Tar shards in the permutation of `pack`, their DALI indices and the per-record index."""
    names = tarshards.extensions(STORED_AS)
    variants = [stored_fields(variant) for variant in range(VARIANTS)]
    records = np.zeros(samples, RECORD)
    order = np.random.default_rng(0).permutation(samples, 0)
    orders = [order[at : at + samples_per_shard] for at in range(0, samples, samples_per_shard)]
    for number, members in enumerate(orders):
        lines, blocks, at = [f"v1.2 {len(members)}"], [], 0
        for index in members.tolist():
            fields = {**variants[index % VARIANTS], "index": index.to_bytes(8, "little")}
            line = ""
            for name, data in fields.items():
                member = f"{index:09d}.{names[name]}"
                padded = data + bytes(-len(data) % 512)
                blocks += [tarshards.member_header(member, len(data)), padded]
                line += f"{names[name]} {at + 512} {len(data)} {member} "
                if name != "index":
                    records[name][index] = (number, len(data), at + 512, crc32c.crc32c(data))
                at += 512 + len(padded)
            lines.append(line.strip())
        (folder / tarshards.shard_name(number)).write_bytes(b"".join(blocks) + bytes(1024))
        (folder / tarshards.dali_index_name(number)).write_text("\n".join(lines) + "\n")
    np.save(folder / tarshards.INDEX, records)
    return tuple(tarshards.shard_name(number) for number in range(len(orders)))


def _write_beton(folder: Path, layout: Layout) -> tuple[str, ...]:
    variants = np.zeros(VARIANTS, RECORD)
    data = b""
    for row in range(VARIANTS):
        for name, stored in stored_fields(row).items():
            variants[name][row] = (0, len(stored), len(data), crc32c.crc32c(stored))
            data += stored
    write_shared(folder, layout, STORED_AS, np.resize(variants, layout.samples), data)
    return (beton.NAME,)
