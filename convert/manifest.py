"""The manifest of a shard folder: what `pack` promises and every reader may rely on.

`manifest.json` is written last and atomically; a folder without it is unfinished.
`docs/format.md` describes every file. Only this module reads and writes the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from maskdepth.convert.errors import DataError, reading
from maskdepth.convert.files import (
    check_signature,
    hash_file,
    read_regular,
    require_regular,
    signed,
    write_json,
)
from maskdepth.convert.found import DATA_SET, FOLDER, NOTHING, found_at
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.layout import CHANNELS, FIELDS, Layout
from maskdepth.convert.moments import Moments, Statistics
from maskdepth.convert.program import CONVERT
from maskdepth.convert.schema import (
    Count,
    FileName,
    Items,
    Pair,
    PhotoName,
    Positive,
    Schema,
    one_of,
    parse_table,
    shown,
)
from maskdepth.convert.storage import CODECS

FORMAT = "maskdepth-shards"
VERSION = 2
MANIFEST = "manifest.json"
BACKGROUNDS = "backgrounds.npy"
FORMATS = ("ffcv", "webdataset")
"""Formats of the samples. Version 1 of the manifest calls "webdataset" "dali"."""


DEPTH_SOURCES = {
    "true": "true, of drawn scenes",
    "given": "given with the photos",
    "estimated": "estimated by a model",
    "prior": "a ground-plane prior, not measured",
}
"""Where depth maps come from, as `dataset.json` says under "depth", and in words."""


def depth_source(metadata: Mapping[str, object]) -> str:
    """A key of `DEPTH_SOURCES`, from what `dataset.json` says; empty where it does not say."""
    found = metadata.get("depth")
    return found if isinstance(found, str) and found in DEPTH_SOURCES else ""


def format_name(name: str) -> str:
    """The name of a format, given that or its old name."""
    return "webdataset" if name == "dali" else name


class ShardFile(Schema):
    """Size and SHA-256 (hex) of one file of the folder."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path) -> ShardFile:
        """Measure and hash a file."""
        return cls(bytes=path.stat().st_size, sha256=hash_file(path))

    def problem(self, path: Path, *, hashed: bool = True, fix: str = "pack again") -> str | None:
        """What is wrong with a file, by its size and, if ``hashed``, by its SHA-256.

        fix: what to do about a file that is missing or another one.
        """
        try:
            require_regular(path)
            size = path.stat().st_size
            found = hash_file(path) if hashed and size == self.bytes else self.sha256
        except FileNotFoundError:
            return f"{path}: is missing; {fix}"
        except DataError as error:
            return error.message
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror}); fix that"
        if size != self.bytes:
            return f"{path}: has {size} bytes, expected {self.bytes} bytes; {fix}"
        if found != self.sha256:
            return (
                f"{path}: SHA-256 {found[:12]}, expected {self.sha256[:12]}: "
                f"corrupted after it was written; {fix}"
            )
        return None


class Format(Schema):
    """The files of one format: data files in index order, and their per-record index."""

    files: Annotated[Items[FileName], Field(min_length=1)]
    index: FileName


class BaseFile(Schema):
    """The bases of a field as the manifest describes them.

    file: int16 (n_bg, MCUs, blocks of an MCU, 64), in NumPy's format.
    samplings: vertical and horizontal sampling factor of each component, as in a JPEG.
    quantisers: 64 numbers of each component, by rows of a block.
    """

    file: FileName
    samplings: Items[Pair[int]]
    quantisers: Items[Items[Annotated[int, Field(ge=1, le=255)]]]

    @model_validator(mode="after")
    def _is_supported(self) -> Self:
        """Whether records can be decoded with these values, from whatever file."""
        if not Geometry(1, 1, self.samplings).is_supported:
            raise ValueError(f"samplings {self.samplings} are not supported")
        if [len(row) for row in self.quantisers] != [64] * len(self.samplings):
            raise ValueError("quantisers are not 64 numbers for each component")
        return self

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
    def depth_source(self) -> str:
        """`depth_source` of the data set."""
        metadata = self.provenance.get("dataset")
        return depth_source(metadata) if isinstance(metadata, Mapping) else ""

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
            "placements": None if layout.table is None else layout.table.name,
            **({} if layout.others is None else {"others": layout.others.name}),
            "backgrounds": list(self.backgrounds),
            "codecs": self.codecs,
            "bases": {name: base.model_dump() for name, base in self.bases.items()},
            "statistics": {name: m.to_json() for name, m in self.statistics.items()},
            "formats": {name: f.model_dump() for name, f in self.formats.items()},
            "files": {name: f.model_dump() for name, f in self.files.items()},
            "counts": self.counts,
            "made": self.provenance,
        }
        return signed(value)


FormatName = Annotated[str, one_of(FORMATS)]
FieldName = Annotated[str, one_of(FIELDS)]
StatisticName = Annotated[str, one_of(("bg", *FIELDS))]
Side = Annotated[int, Field(ge=1, le=65535)]
"""Height or width; a JPEG has no larger one."""


class _Content(Schema):
    """The keys of the file but its hash, as docs/format.md describes them."""

    format: Literal["maskdepth-shards"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    samples: Positive
    image_size: Pair[Side]
    samples_per_bg: Positive | None
    group_starts: Items[Count] | None
    samples_per_fg: Positive | None
    placements: Literal["placements.npy"] | None = None
    others: Literal["others.npy"] | None = None
    backgrounds: Annotated[Items[PhotoName], Field(min_length=1)]
    codecs: dict[FormatName, dict[FieldName, str]]
    bases: dict[FieldName, BaseFile] = Field(default_factory=dict)
    statistics: dict[StatisticName, Moments]
    formats: Annotated[dict[FormatName, Format], Field(min_length=1)]
    files: dict[FileName, ShardFile]
    counts: dict[str, Count]
    made: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, value: Any) -> Any:
        """Version 1 calls "webdataset" "dali", and all its formats have the same codecs."""
        if not isinstance(value, Mapping) or value.get("version") != 1:
            return value
        if not isinstance(formats := value.get("formats"), Mapping):
            return value
        formats = {format_name(name): files for name, files in formats.items()}
        return {**value, "formats": formats, "codecs": dict.fromkeys(formats, value.get("codecs"))}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Whether the keys agree with each other."""
        starts = self.starts
        agree = len(starts) == len(self.backgrounds) + 1 and starts[0] == 0
        if not agree or starts[-1] != self.samples or any(b <= a for a, b in pairwise(starts)):
            raise ValueError("samples, backgrounds and group sizes do not agree")
        if self.codecs.keys() != self.formats.keys():
            raise ValueError("codecs and formats are not of the same formats")
        for form, codecs in self.codecs.items():
            self._check_codecs(form, codecs)
        for name, channels in {"bg": 3, **CHANNELS}.items():
            found = self.statistics.get(name)
            kind = (channels, 1 if name == "mask" else 255)
            if found is None or not found.values or (len(found.sums), found.scale) != kind:
                raise ValueError(f"statistics of {name} are not of {channels} channels of pixels")
        if not self.counts.get("source_bytes"):
            raise ValueError("counts: source_bytes must be at least 1")
        for name, count in self.counts.items():
            if name.endswith(("_as_jpeg", "_verbatim")) and count > self.samples:
                raise ValueError(f"counts: {name} is {count}, above the number of samples")
        self._check_files()
        return self

    @property
    def starts(self) -> Sequence[int]:
        """First sample of each background, and their number at the end; a range if equal."""
        if self.group_starts is not None:
            return self.group_starts
        size = self.samples_per_bg or 0
        return range(0, 1 + size * len(self.backgrounds), size or 1)

    def _check_codecs(self, form: str, codecs: Mapping[str, str]) -> None:
        if codecs.keys() != set(FIELDS):
            raise ValueError(f"codecs of {form} are not of {', '.join(FIELDS)}")
        for name, codec in codecs.items():
            known = CODECS.get(codec)
            if known is None or known.field != name:
                raise ValueError(f"unknown codec {shown(codec)} of {name}")
            if not known.fallback:
                continue
            base = self.bases.get(name)
            if form != "ffcv":
                raise ValueError(f"codec {codec!r} of {name} is for the FFCV file alone")
            if base is None:
                raise ValueError(f"codec {codec!r} of {name} has no bases")
            if len(base.samplings) != CHANNELS[name]:
                raise ValueError(f"the bases of {name} do not have {CHANNELS[name]} components")

    def _check_files(self) -> None:
        formats = self.formats.values()
        used = [BACKGROUNDS, *(base.file for base in self.bases.values())]
        used += chain.from_iterable((*form.files, form.index) for form in formats)
        used += [table for table in (self.placements, self.others) if table]
        if self.others and not self.placements:
            raise ValueError("others are of no placements")
        for name in used:
            if name not in self.files:
                raise ValueError(f"{name!r} is not one of the files")
        if len(set(used)) < len(used):
            raise ValueError("a file is named twice")
        if "ffcv" in self.formats and len(self.formats["ffcv"].files) > 1:
            raise ValueError("the format ffcv has more than one file")

    def manifest(self, folder: Path) -> Manifest:
        """What the file of a folder says, in the types of the program."""
        height, width = self.image_size
        starts = np.array(self.starts, np.int64)
        return Manifest(
            layout=Layout(
                height=height,
                width=width,
                group_starts=starts,
                samples_per_fg=self.samples_per_fg,
                table=folder / self.placements if self.placements else None,
                others=folder / self.others if self.others else None,
            ),
            backgrounds=self.backgrounds,
            codecs=self.codecs,
            bases=self.bases,
            statistics=self.statistics,
            formats=self.formats,
            files=self.files,
            counts=self.counts,
            provenance=self.made,
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose other files are complete, atomically and durably."""
    write_json(folder / MANIFEST, manifest.to_json())


def _why_unread(found: str) -> str:
    """What is wrong with a folder that has no manifest, and what to do; found: by `found_at`."""
    if found == NOTHING:
        return "no such folder; expected the folder that `pack` wrote"
    if found == FOLDER:
        return (
            f"no {MANIFEST}, so this is not a finished shard folder; "
            f"run `{CONVERT} pack DATASET SHARDS` to its end"
        )
    if found == DATA_SET:
        return f"found {found}, expected shards; run `{CONVERT} pack DATASET SHARDS` first"
    return f"found {found}, expected the folder that `pack` wrote; name that"


def read_manifest(shards: str | Path) -> Manifest:
    """Manifest of a finished shard folder; DataError with the reason if it has no valid one."""
    folder = Path(shards)
    path = folder / MANIFEST
    with reading(path):
        if not path.exists():
            raise DataError(f"{folder}: {_why_unread(found_at(folder))}")
        text = read_regular(path)
    try:
        value = parse_table(text)
    except ValueError as error:
        raise DataError(f"{path}: not a shard manifest ({error}); pack again") from None
    form, version = value.get("format"), value.get("version")
    if form != FORMAT or version not in range(1, VERSION + 1):
        raise DataError(
            f"{path}: found {shown(form)} version {shown(version)}, expected {FORMAT!r} version "
            f"1 to {VERSION}; pack again with this version of the program, or use a newer one"
        )
    try:
        values = check_signature(value, text)
    except ValueError as error:
        raise DataError(f"{path}: {error}; pack again") from None
    try:
        return _Content.from_json(values).manifest(folder)
    except ValueError as error:
        raise DataError(f"{path}: corrupt manifest ({error}); pack again") from None
