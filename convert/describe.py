"""A shard folder in words, for a person."""

from __future__ import annotations

from convert.manifest import Manifest


def table(manifest: Manifest) -> str:
    """Several lines: size, codecs, statistics, files and remarks of the conversion."""
    layout = manifest.layout
    per_bg = layout.samples_per_bg or "unequal groups"
    lines = [
        f"samples        {layout.samples:,}",
        f"image size     {layout.width} x {layout.height}",
        f"backgrounds    {len(manifest.backgrounds)} ({per_bg} samples each)",
        f"samples of fg  {layout.samples_per_fg or 'not known'}",
        "",
        "field    codec        mean (0..1)             std (0..1)",
    ]
    for name, moments in manifest.statistics.items():
        codec = manifest.codecs.get(name, "raw")
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (moments.mean, moments.std))
        lines.append(f"{name:8} {codec:12} {mean:23} {std}")
    lines.append("")
    lines += [f"{name:28} {file.bytes:>15,} bytes" for name, file in manifest.files.items()]
    lines.append("")
    source = manifest.counts.get("source_bytes", 0)
    for name, form in manifest.formats.items():
        stored = sum(manifest.files[f].bytes for f in (*form.files, form.index))
        if source:
            lines.append(f"{name}: {stored / source:.3f} of the source's {source:,} bytes")
    for name, number in manifest.counts.items():
        if name != "source_bytes":
            lines.append(f"{name.replace('_', ' ')}: {number:,}")
    return "\n".join(lines)
