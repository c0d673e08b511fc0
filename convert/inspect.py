"""Describes a shard folder in a table of text."""

from __future__ import annotations

import numpy as np

from maskdepth.convert import beton
from maskdepth.convert.layout import Layout
from maskdepth.convert.manifest import DEPTH_SOURCES, Manifest


def table(manifest: Manifest) -> str:
    """Several lines: size, codecs, statistics, files and what was counted while packing."""
    layout = manifest.layout
    per_bg = f"{layout.samples_per_bg} samples each" if layout.samples_per_bg else "unequal groups"
    by_table = f"as in {layout.table.name}" if layout.table else "not known"
    lines = [
        f"samples        {layout.samples:,}",
        f"image size     {layout.width} x {layout.height}",
        f"backgrounds    {len(manifest.backgrounds)} ({per_bg})",
        f"samples of fg  {layout.samples_per_fg or by_table}",
        *([f"people         {people_line(layout)}"] if layout.others else []),
        f"depth          {DEPTH_SOURCES.get(manifest.depth_source, 'not known where from')}",
        "",
        "field          codec                       mean (0..1)             std (0..1)",
    ]
    for name, moments in manifest.statistics.items():
        codec = _codec_of(manifest, name)
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (moments.mean, moments.std))
        marked = "depth (prior)" if (name, manifest.depth_source) == ("depth", "prior") else name
        lines.append(f"{marked:14} {codec:27} {mean:23} {std}")
    files = [f"{name:28} {file.bytes:>15,} bytes" for name, file in manifest.files.items()]
    return "\n".join([*lines, "", *files, "", *count_lines(manifest)])


def people_line(layout: Layout) -> str:
    """How many samples show how many foregrounds."""
    further = np.bincount(layout.other_placements["sample"].astype(np.int64), minlength=1)
    more = np.bincount(further)[1:].tolist()  # samples with one further foreground, with two, ...
    counts = {1: layout.samples - sum(more)} | dict(enumerate(more, start=2))
    return ", ".join(f"{people} in {count:,} samples" for people, count in counts.items() if count)


def _codec_of(manifest: Manifest, field: str) -> str:
    """How a field is stored: one codec, or that of each format in turn."""
    codecs = [codecs[field] for codecs in manifest.codecs.values() if field in codecs]
    return " / ".join(dict.fromkeys(codecs)) or "raw"


def count_lines(manifest: Manifest) -> list[str]:
    """What was counted while packing, one line each."""
    lines = []
    source = manifest.counts["source_bytes"]
    for name, form in manifest.formats.items():
        stored = sum(manifest.files[f].bytes for f in (*form.files, form.index))
        small = any(
            f == beton.NAME and manifest.files[f].bytes < 4 * beton.PAGE for f in form.files
        )
        padded = f" (padded to pages of {beton.PAGE >> 20} MiB)" if small else ""
        share = f"{100 * stored / source:.1f} % of the source's {source:,}"
        lines.append(f"{name}: {stored:,} bytes{padded}, {share}")
    pixels = manifest.statistics["mask"].values
    unclear = manifest.counts.get("mask_ambiguous_pixels", 0)
    lines.append(
        f"mask pixels neither black nor white (64 to 192): {unclear:,} "
        f"({100 * unclear / pixels:.3f} %)"
    )
    verbatim = manifest.counts.get("depth_stored_verbatim", 0)
    lines.append(f"depth maps stored with their chroma: {verbatim:,}")
    for name in manifest.bases:
        jpegs = manifest.counts.get(f"{name}_stored_as_jpeg", 0)
        lines.append(f"{name} stored as JPEG in the FFCV file, not as differences: {jpegs:,}")
    return lines
