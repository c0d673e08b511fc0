"""The contract of a shard folder: what `pack` promises and every reader may rely on.

A folder holds `manifest.json`, written last and atomically. A folder without it is
unfinished. `docs/format.md` describes every file; this module is the only place that
reads or writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import DataError, reading

FORMAT = "maskdepth-shards"
VERSION = 1
MANIFEST = "manifest.json"
BACKGROUNDS = "backgrounds.npy"
FIELDS = ("fg_bg", "mask", "depth")
CODEC_NAMES = {
    "fg_bg": ("jpeg",),
    "mask": ("runs", "jpeg-mask"),
    "depth": ("jpeg-luma", "jpeg-gray"),
}
"""How each field may be stored; what the names mean stands in `convert.codecs`."""

RECORD = np.dtype(
    [
        (field, [("file", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("crc32c", "<u4")])
        for field in FIELDS
    ]
)
"""One row of a per-record index: where each stored field lies, and its CRC32C.

``file`` counts through the shard files of the format in name order (always 0 for FFCV).
"""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which sample belongs to which background and person; index arithmetic, no look-ups.

    ``group_starts`` is int64 (n_bg + 1): samples ``group_starts[b]`` to
    ``group_starts[b + 1] - 1`` show background ``b``. ``samples_per_fg`` is the number of
    neighbouring samples that show one person, or None where that is not known.
    """

    height: int
    width: int
    group_starts: np.ndarray
    samples_per_fg: int | None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.group_starts[-1])

    @cached_property
    def samples_per_bg(self) -> int | None:
        """Samples of each background, or None where the groups are of unequal size."""
        sizes = np.diff(self.group_starts)
        return int(sizes[0]) if (sizes == sizes[0]).all() else None

    def background_of(self, index: np.ndarray) -> np.ndarray:
        """Background of each sample; int64, same shape as ``index``."""
        index = np.asarray(index, dtype=np.int64)
        if self.samples_per_bg:
            return index // self.samples_per_bg
        return np.searchsorted(self.group_starts, index, side="right") - 1

    def foreground_of(self, index: np.ndarray) -> np.ndarray:
        """Person of each sample, flips included; int64, same shape as ``index``.

        Raises DataError where the data set does not say how many samples show one person.
        """
        if self.samples_per_fg is None:
            raise DataError(
                "this data set does not say which samples show the same person: "
                "pack it again with --samples-per-fg N"
            )
        index = np.asarray(index, dtype=np.int64)
        within = index - self.group_starts[self.background_of(index)]
        return within // self.samples_per_fg


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Exact integer sums of one field over the data set, so the same for any worker count.

    ``scale`` is the stored value that means 1.0 (255 for images, 1 for the mask).
    """

    values: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    scale: int

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, in 0..1."""
        return tuple(s / (self.values * self.scale) for s in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel (population, not sample), in 0..1."""
        # Integers until the last division: the difference of two large sums stays exact.
        return tuple(
            math.sqrt(self.values * q - s * s) / (self.values * self.scale)
            for s, q in zip(self.sums, self.squares, strict=True)
        )

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of pixels together."""
        if self.scale != other.scale:
            raise ValueError(f"cannot add moments of scale {self.scale} and {other.scale}")
        return Moments(
            values=self.values + other.values,
            sums=tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
            scale=self.scale,
        )

    def __mul__(self, times: int) -> Moments:
        """Moments of the same pixels seen ``times`` times."""
        return Moments(
            values=self.values * times,
            sums=tuple(s * times for s in self.sums),
            squares=tuple(q * times for q in self.squares),
            scale=self.scale,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; mean and std are there for people and other programs."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "values": self.values,
            "sums": list(self.sums),
            "squares": list(self.squares),
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Moments:
        """The inverse of ``to_json``; mean and std are computed, not read."""
        return cls(
            values=int(value["values"]),
            sums=tuple(int(s) for s in value["sums"]),
            squares=tuple(int(q) for q in value["squares"]),
            scale=int(value["scale"]),
        )


Statistics = dict[str, Moments]
"""Moments by name: bg (each background counted once a sample), fg_bg, mask, depth."""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """Size and SHA-256 (hex) of one file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Format:
    """The files of one format: data files in index order, and their per-record index."""

    files: tuple[str, ...]
    index: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a shard folder holds.

    ``codecs`` names how each field is stored (`convert.codecs.CODECS`); ``formats`` has an
    entry "ffcv", "dali" or both; ``counts`` are remarks of the conversion in numbers;
    ``made`` records arguments and library versions.
    """

    layout: Layout
    backgrounds: tuple[str, ...]
    codecs: dict[str, str]
    statistics: Statistics
    formats: dict[str, Format]
    files: dict[str, ShardFile]
    counts: dict[str, int]
    made: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order a person would want to read them, and their hash."""
        value = self._values()
        return {**value, "sha256": _digest(value)}

    def _values(self) -> dict[str, Any]:
        layout = self.layout
        starts = None if layout.samples_per_bg else [int(s) for s in layout.group_starts]
        return {
            "format": FORMAT,
            "version": VERSION,
            "samples": layout.samples,
            "image_size": [layout.height, layout.width],
            "samples_per_bg": layout.samples_per_bg,
            "group_starts": starts,
            "samples_per_fg": layout.samples_per_fg,
            "backgrounds": list(self.backgrounds),
            "codecs": self.codecs,
            "statistics": {name: m.to_json() for name, m in self.statistics.items()},
            "formats": {
                name: {"files": list(f.files), "index": f.index} for name, f in self.formats.items()
            },
            "files": {
                name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in self.files.items()
            },
            "counts": self.counts,
            "made": self.made,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on nonsense."""
        n_bg = len(value["backgrounds"])
        starts = value["group_starts"]
        if starts is None:
            starts = np.arange(n_bg + 1, dtype=np.int64) * int(value["samples_per_bg"])
        starts = np.asarray(starts, dtype=np.int64)
        if len(starts) != n_bg + 1 or starts[-1] != value["samples"] or (np.diff(starts) < 1).any():
            raise ValueError("samples, backgrounds and group sizes do not agree")
        height, width = value["image_size"]
        for name in FIELDS:
            if value["codecs"][name] not in CODEC_NAMES[name]:
                raise ValueError(f"unknown codec {value['codecs'][name]!r} of {name}")
        return cls(
            layout=Layout(
                height=int(height),
                width=int(width),
                group_starts=starts,
                samples_per_fg=value["samples_per_fg"],
            ),
            backgrounds=tuple(value["backgrounds"]),
            codecs=dict(value["codecs"]),
            statistics={k: Moments.from_json(v) for k, v in value["statistics"].items()},
            formats={
                k: Format(files=tuple(v["files"]), index=v["index"])
                for k, v in value["formats"].items()
            },
            files={k: ShardFile(**v) for k, v in value["files"].items()},
            counts=dict(value["counts"]),
            made=dict(value["made"]),
        )


def read_manifest(shards: str | Path) -> Manifest:
    """Manifest of a finished shard folder, as it was written.

    Raises DataError for a missing or unfinished folder, another format or version, or a
    manifest that cannot be read or does not make sense.
    """
    folder = Path(shards)
    path = folder / MANIFEST
    with reading(path):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected the folder that `pack` wrote")
        if not path.is_file():
            raise DataError(
                f"{folder}: no {MANIFEST}, so this is not a finished shard folder; "
                "run `python -m convert pack DATASET SHARDS` to its end"
            )
        text = path.read_bytes()
    try:
        value = json.loads(text)
        found = (value["format"], value["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a shard manifest ({error}); pack again") from None
    if found != (FORMAT, VERSION):
        raise DataError(
            f"{path}: found {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version "
            f"{VERSION}; pack again with this version of the program"
        )
    if value.pop("sha256", None) != _digest(value):
        raise DataError(f"{path}: was changed after it was written; pack again")
    try:
        return Manifest.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged manifest ({error!r}); pack again") from None


def _digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the layout of the file."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically and durably: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
