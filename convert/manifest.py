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
from convert.files import hash_file, read_regular, require_regular, write_json
from convert.jpeg.planes import Geometry
from convert.layout import CHANNELS, FIELDS, Layout
from convert.moments import Moments, Statistics
from convert.storage import CODECS

FORMAT = "maskdepth-shards"
VERSION = 2
MANIFEST = "manifest.json"
BACKGROUNDS = "backgrounds.npy"
FORMATS = ("ffcv", "webdataset")
"""Formats of the samples. Version 1 of the manifest calls "webdataset" "dali"."""


def format_name(name: str) -> str:
    """The name of a format, given that or its old name."""
    return "webdataset" if name == "dali" else name


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
            require_regular(path)
            size = path.stat().st_size
            found = hash_file(path) if hashed and size == self.bytes else self.sha256
        except FileNotFoundError:
            return f"{path}: is missing"
        except DataError as error:
            return error.message
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
class BaseFile:
    """The bases of a field as the manifest describes them.

    file: int16 (n_bg, MCUs, blocks of an MCU, 64), in NumPy's format.
    samplings: vertical and horizontal sampling factor of each component, as in a JPEG.
    quantisers: 64 numbers of each component, by rows of a block.
    """

    file: str
    samplings: tuple[tuple[int, int], ...]
    quantisers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """ValueError unless records can be decoded with these values, from whatever file."""
        whole = all(type(n) is int for pair in self.samplings for n in pair)  # not 1.0 or true
        if not whole or not Geometry(1, 1, self.samplings).is_supported:
            raise ValueError(f"samplings {self.samplings} are not supported")
        if len(self.quantisers) != len(self.samplings) or not all(
            len(row) == 64 and all(type(q) is int and 1 <= q <= 255 for q in row)
            for row in self.quantisers
        ):
            raise ValueError("quantisers are not 64 numbers from 1 to 255 for each component")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BaseFile:  # parsed JSON
        """From a manifest; KeyError, TypeError or ValueError for invalid values."""
        down_across, quantisers = (
            tuple(tuple(row) for row in value[key]) for key in ("samplings", "quantisers")
        )
        return cls(file=value["file"], samplings=down_across, quantisers=quantisers)

    def geometry(self, layout: Layout) -> Geometry:
        """Where the blocks of an image of this size are."""
        return Geometry(layout.height, layout.width, self.samplings)

    def shape(self, layout: Layout) -> tuple[int, ...]:
        """Shape of the array in the file."""
        geometry = self.geometry(layout)
        rows, columns = geometry.mcus
        return len(layout.group_starts) - 1, rows * columns, len(geometry.blocks), 64


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a shard folder holds.

    ``codecs`` has for each format a name of `convert.storage.CODECS` for each field, ``bases`` the
    bases of the fields that are stored as differences, ``counts`` what was counted while packing,
    ``provenance`` arguments, metadata of the data set and library versions.
    """

    layout: Layout
    backgrounds: tuple[str, ...]
    codecs: dict[str, dict[str, str]]
    bases: dict[str, BaseFile]
    statistics: Statistics
    formats: dict[str, Format]
    files: dict[str, ShardFile]
    counts: dict[str, int]
    provenance: dict[str, object]

    @property
    def jpeg_format(self) -> str | None:
        """A format whose images are all JPEGs, tar shards if possible; None if there is none."""
        forms = [
            form
            for form, codecs in self.codecs.items()
            if not any(CODECS[codec].fallback for codec in codecs.values())
        ]
        return "webdataset" if "webdataset" in forms else next(iter(forms), None)

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
            "bases": {name: asdict(base) for name, base in self.bases.items()},
            "statistics": {name: m.to_json() for name, m in self.statistics.items()},
            "formats": {name: asdict(f) for name, f in self.formats.items()},
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
        formats = {
            format_name(k): Format(files=tuple(v["files"]), index=v["index"])
            for k, v in value["formats"].items()
        }
        # In version 1 all formats have the same codecs.
        by_format = (
            value["codecs"] if value["version"] > 1 else dict.fromkeys(formats, value["codecs"])
        )
        bases = {k: BaseFile.from_json(v) for k, v in value.get("bases", {}).items()}
        if not bases.keys() <= set(FIELDS):
            raise ValueError("bases of an unknown field")
        files = {k: ShardFile(**v) for k, v in value["files"].items()}
        used = [*(b.file for b in bases.values()), *(f.index for f in formats.values())]
        for name in used + [name for form in formats.values() for name in form.files]:
            if name not in files:
                raise ValueError(f"{name!r} is not one of the files")
        per_fg = value["samples_per_fg"]
        return cls(
            layout=Layout(height=height, width=width, group_starts=starts, samples_per_fg=per_fg),
            backgrounds=tuple(value["backgrounds"]),
            codecs={form: _checked_codecs(by_format[form], bases) for form in formats},
            bases=bases,
            statistics={k: Moments.from_json(v) for k, v in value["statistics"].items()},
            formats=formats,
            files=files,
            counts=dict(value["counts"]),
            provenance=dict(value["made"]),
        )


def _checked_codecs(codecs: Mapping[str, str], bases: Mapping[str, BaseFile]) -> dict[str, str]:
    """The codecs of a format; ValueError if one is not known, or has no bases and needs them."""
    for name in FIELDS:
        known = CODECS.get(codecs[name])
        if known is None or known.field != name:
            raise ValueError(f"unknown codec {codecs[name]!r} of {name}")
        if known.fallback and name not in bases:
            raise ValueError(f"codec {codecs[name]!r} of {name} has no bases")
        if known.fallback and len(bases[name].samplings) != CHANNELS[name]:
            raise ValueError(f"the bases of {name} do not have {CHANNELS[name]} components")
    return dict(codecs)


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
        if not path.exists():
            raise DataError(
                f"{folder}: no {MANIFEST}, so this is not a finished shard folder; "
                "run `python -m convert pack DATASET SHARDS` to its end"
            )
        text = read_regular(path)
    try:
        value = json.loads(text)
        found = (value["format"], value["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a shard manifest ({error}); pack again") from None
    if found not in [(FORMAT, version) for version in range(1, VERSION + 1)]:
        raise DataError(
            f"{path}: found {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version "
            f"1 to {VERSION}; pack again with this version of the program"
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
