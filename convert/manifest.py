"""The manifest of a shard folder: what `pack` promises and every reader may rely on.

`manifest.json` is written last and atomically; a folder without it is unfinished.
`docs/format.md` describes every file. Only this module reads and writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import DataError, reading
from convert.files import hash_file, write_json
from convert.layout import FIELDS, Layout
from convert.moments import Moments, Statistics
from convert.storage import CODECS, codec_options

FORMAT = "maskdepth-shards"
VERSION = 1
MANIFEST = "manifest.json"
BACKGROUNDS = "backgrounds.npy"
FORMATS = ("ffcv", "webdataset")
"""Formats of the samples. Version 1 of the manifest stores "webdataset" as "dali"."""


def format_name(name: str) -> str:
    """The name of a format, given that or its old name."""
    return "webdataset" if name == "dali" else name


def stored_format(name: str) -> str:
    """The name of a format in a manifest of version 1, the inverse of `format_name`."""
    return "dali" if name == "webdataset" else name


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """Size and SHA-256 (hex) of one file of the folder."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> ShardFile:
        """Measure and hash a file."""
        return cls(bytes=path.stat().st_size, sha256=hash_file(path))

    def problem(self, path: Path, *, hashed: bool = True) -> str | None:
        """What is wrong with a file, by its size and, if ``hashed``, by its SHA-256."""
        try:
            size = path.stat().st_size
            found = hash_file(path) if hashed and size == self.bytes else self.sha256
        except FileNotFoundError:
            return f"{path}: is missing"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
        if size != self.bytes:
            return f"{path}: has {size} bytes, expected {self.bytes} bytes"
        if found != self.sha256:
            return (
                f"{path}: SHA-256 {found[:12]}, expected {self.sha256[:12]}: "
                "corrupted after it was written"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Format:
    """The files of one format: data files in index order, and their per-record index."""

    files: tuple[str, ...]
    index: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a shard folder holds.

    ``codecs`` has a name of `convert.storage.CODECS` for each field, ``counts`` what was counted
    while packing, ``provenance`` arguments, metadata of the data set and library versions.
    """

    layout: Layout
    backgrounds: tuple[str, ...]
    codecs: dict[str, str]
    statistics: Statistics
    formats: dict[str, Format]
    files: dict[str, ShardFile]
    counts: dict[str, int]
    provenance: dict[str, object]

    def is_jpeg(self, field: str) -> bool:
        """Whether the stored bytes of a field are a JPEG."""
        return CODECS[self.codecs[field]].is_jpeg

    def to_json(self) -> dict[str, object]:
        """Plain values in an order for reading, and their hash."""
        layout = self.layout
        starts = None if layout.samples_per_bg else [int(s) for s in layout.group_starts]
        value = {
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
            "formats": {stored_format(name): asdict(f) for name, f in self.formats.items()},
            "files": {name: asdict(f) for name, f in self.files.items()},
            "counts": self.counts,
            "made": self.provenance,
        }
        return {**value, "sha256": _digest(value)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:  # parsed JSON
        """The inverse of ``to_json``; KeyError, TypeError or ValueError for invalid values."""
        n_bg = len(value["backgrounds"])
        starts = value["group_starts"]
        if starts is None:
            starts = np.arange(n_bg + 1, dtype=np.int64) * int(value["samples_per_bg"])
        starts = np.asarray(starts, dtype=np.int64)
        if len(starts) != n_bg + 1 or starts[-1] != value["samples"] or (np.diff(starts) < 1).any():
            raise ValueError("samples, backgrounds and group sizes do not agree")
        height, width = map(int, value["image_size"])
        for name in FIELDS:
            if value["codecs"][name] not in codec_options(name).values():
                raise ValueError(f"unknown codec {value['codecs'][name]!r} of {name}")
        per_fg = value["samples_per_fg"]
        return cls(
            layout=Layout(height=height, width=width, group_starts=starts, samples_per_fg=per_fg),
            backgrounds=tuple(value["backgrounds"]),
            codecs=dict(value["codecs"]),
            statistics={k: Moments.from_json(v) for k, v in value["statistics"].items()},
            formats={
                format_name(k): Format(files=tuple(v["files"]), index=v["index"])
                for k, v in value["formats"].items()
            },
            files={k: ShardFile(**v) for k, v in value["files"].items()},
            counts=dict(value["counts"]),
            provenance=dict(value["made"]),
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose other files are complete, atomically and durably."""
    write_json(folder / MANIFEST, manifest.to_json())


def read_manifest(shards: str | Path) -> Manifest:
    """Manifest of a finished shard folder; DataError with the reason if it has no valid one."""
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
        raise DataError(f"{path}: corrupt manifest ({error!r}); pack again") from None


def _digest(value: Mapping[str, object]) -> str:
    """SHA-256 of plain values, whatever the layout of the file."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
