"""Estimates depth with a monocular depth network: of composites, or of backgrounds alone.

Run ``python -m convert depth DATASET --model NAME_OR_PATH`` for a data set without depth maps, or
``python -m convert depth PHOTOS --of backgrounds --out DEPTH --model NAME_OR_PATH`` for the maps
that `compose --bg-depth DEPTH` takes. The network is one of Hugging Face `transformers` (extra
`depth`), by its name on the hub or its folder, or a `.pt2` or `.onnx` file.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from maskdepth.convert.contents import Content
from maskdepth.convert.dataset.depth_about import ABOUT, FORMAT, VERSION
from maskdepth.convert.dataset.depth_inputs import (
    Composites,
    Photos,
    hash_names,
    list_composites,
    list_photos,
    move_metadata,
)
from maskdepth.convert.dataset.depth_maps import Range, Stretch, require_range, scale_of
from maskdepth.convert.dataset.depth_run import DepthRun
from maskdepth.convert.dataset.networks.load import load_model
from maskdepth.convert.dataset.networks.model import MEANING, DepthModel, ModelOptions
from maskdepth.convert.dataset.networks.ranks import Ranks, joined
from maskdepth.convert.disk import sync_file_system
from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.files import read_regular, write_json
from maskdepth.convert.manifest import DEPTH_SOURCES, depth_source
from maskdepth.convert.metadata import DATASET
from maskdepth.convert.outputs import (
    require_kept,
    require_outside,
    require_unspoilt,
    require_writable_folder,
)
from maskdepth.convert.schema import parse_table
from maskdepth.convert.source import read_metadata
from maskdepth.convert.unfinished import Output, check_target, work_folder, work_of

_REPLACED = ("prior", "estimated")  # what `dataset.json` says of maps that need no ``force``


def _maps_of(composites: Composites) -> Output:
    """The folder of a data set's maps."""
    return Output(
        name="folder of depth maps",
        command="depth",
        last=DATASET,
        names=re.compile(rf"[^/]+/[^/]+\.jpe?g|{re.escape(DATASET)}", re.IGNORECASE),
        content=lambda _: _content(composites, DATASET),
        is_finished=Path.is_dir,
        is_slow=True,
    )


def _maps_of_backgrounds(photos: Photos) -> Output:
    """A folder of backgrounds' maps."""
    return Output(
        name="folder of `depth --of backgrounds`",
        command="depth",
        last=ABOUT,
        names=re.compile(rf"[^/]+\.png|{re.escape(ABOUT)}"),
        content=lambda _: _content(photos, ABOUT),
        is_finished=lambda folder: (folder / ABOUT).exists(),
        is_slow=True,
    )


def _content(images: Composites | Photos, last: str) -> Content:
    """The names of all files of a complete folder of maps."""
    found = defaultdict(set, {os.curdir: {last}})
    for index in range(len(images)):
        folder, name = os.path.split(images.map_name(index))
        found[folder or os.curdir].add(name)
    return {folder: frozenset(names) for folder, names in found.items()}


@dataclass(frozen=True, kw_only=True)
class DepthOptions:
    """How maps are made and written.

    stretch: what is stretched from 0, nearest, to 255, farthest: each image, or the whole data set.
    value_range: the model's values at 0 and at 255, for the whole data set; by default those of all
        images, which are predicted twice then.
    batch_size: images given to the network at once; by default 16 on a GPU and 2 on a CPU, where
        more take longer to interrupt and no less time.
    resume: continue a killed or interrupted run of the same arguments.
    force: replace maps that are worth more than estimates, or what an unfinished run left.
    """

    stretch: Stretch = "image"
    value_range: tuple[float, float] | None = None
    batch_size: int | None = None
    resume: bool = False
    force: bool = False
    progress: bool = True

    def images_at_once(self, model: DepthModel) -> int:
        """The batch size with a network."""
        if self.batch_size is not None:
            return self.batch_size
        return 2 if dict(model.made).get("device", "cpu") == "cpu" else 16

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError("batch_size", f": found {self.batch_size}, expected 1 or more")
        if self.value_range is not None and not all(map(math.isfinite, self.value_range)):
            raise OptionError("value_range", ": expected two finite numbers")
        if self.value_range is not None and self.stretch != "dataset":
            raise OptionError("value_range", ": is for --stretch dataset; give both, or neither")


def estimate(
    dataset: str | Path, name: str, *, model: ModelOptions | None = None, **options: Any
) -> dict[str, Any]:  # JSON has no narrower type
    """Write depth maps of a data set's composites; returns what `dataset.json` then says.

    name, model: as of `load_model`. options: of `DepthOptions`. The data set is checked before the
    network is loaded. Raises DataError as `list_composites`, `load_model`, `require_replaceable`
    and `write_depth` do. Processes that torchrun started share the work.
    """
    made = DepthOptions(**options)
    with joined() as ranks:
        composites = ranks.from_first(lambda: list_composites(dataset))
        ranks.from_first(lambda: require_writable_folder(composites.folder))
        loaded = load_model(name, model or ModelOptions())
        return write_depth(composites, loaded, made, ranks)


def estimate_backgrounds(
    folder: str | Path, out: Path, name: str, *, model: ModelOptions | None = None, **options: Any
) -> dict[str, Any]:
    """Write depth maps of photos, or of a data set's backgrounds, to the folder ``out``.

    A map is a PNG of 16 bits with the name of its image, as `compose --bg-depth` takes it. Returns
    what `.depth.json` there says. The others are those of `estimate`.
    """
    made = DepthOptions(**options)
    with joined() as ranks:
        photos = ranks.from_first(lambda: _checked_photos(folder, out, force=made.force))
        loaded = load_model(name, model or ModelOptions())
        return write_backgrounds(photos, out, loaded, made, ranks)


def _checked_photos(folder: str | Path, out: Path, *, force: bool) -> Photos:
    photos = list_photos(folder)
    require_outside(out, photos.folder)
    require_kept(photos.folder, out)
    require_unspoilt(out)
    check_target(out, _maps_of_backgrounds(photos), force=force)
    return photos


def require_replaceable(composites: Composites, model: DepthModel, *, force: bool) -> None:
    """Raise DataError if maps that are worth more than estimates would be replaced without force.

    By `dataset.json`, these are all but the prior of `compose` and estimates.
    """
    source = depth_source(composites.metadata)
    if composites.replace and not force and source not in _REPLACED:
        about = DEPTH_SOURCES.get(source, "not known where from")
        raise DataError(
            f"{composites.target}: found depth maps ({about}), which estimates of {model.name} "
            "would replace; add --force to replace them"
        )
    if composites.target.is_symlink():
        raise DataError(
            f"{composites.target}: is a link, which depth maps cannot replace; remove the link"
        )
    check_target(composites.target, _maps_of(composites), force=composites.replace)


def require_unfinished(composites: Composites, about: dict[str, object], *, force: bool) -> None:
    """Raise DataError if an earlier run with other options has finished, unless with force.

    Resuming it would make all maps again. about: how `dataset.json` would describe this run.
    """
    found = composites.metadata.get("depth_model")
    if force or not isinstance(found, dict) or found.get("images") != len(composites):
        return  # `compose` writes the model of its backgrounds' depth
    names = [n for n in sorted({*found, *about}) if found.get(n) != about.get(n)]
    raise DataError(
        f"{composites.target}: is finished, with other options ({', '.join(names)}), so there is "
        "nothing to resume; --force makes all maps again with these"
    )


def write_depth(
    composites: Composites,
    model: DepthModel,
    options: DepthOptions | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Write the depth map of each composite; returns what `dataset.json` then says.

    Maps have the name and size of their composite. All appear together at the end, and
    `dataset.json` then says that depth is estimated and by which model. Until then the data set
    does not change, and the work is in `fg_bg_depth.partial`. Resuming a finished run does nothing;
    one with other options is a DataError without force.

    Raises RecordError for a composite that cannot be read or whose prediction is not finite, and
    DataError if the maps cannot be written.
    """
    options, ranks = options or DepthOptions(), ranks or Ranks()
    about = _about(composites, model, options)
    if options.resume and composites.replace and not work_of(composites.target).exists():
        if composites.metadata.get("depth_model") == about:
            return composites.metadata
        ranks.from_first(lambda: require_unfinished(composites, about, force=options.force))
    ranks.from_first(lambda: require_replaceable(composites, model, force=options.force))
    kept = {k: v for k, v in composites.metadata.items() if k != "depth_scale"}
    metadata = kept | {"depth": "estimated", "depth_model": about}
    job = _Job(composites.target, _maps_of(composites), metadata, about, replace=composites.replace)
    _write(composites, model, options, ranks, job)

    def finish() -> dict[str, object]:
        move_metadata(composites.target, composites.folder)
        return read_metadata(composites.folder)

    return ranks.from_first(finish)


def write_backgrounds(
    photos: Photos,
    out: Path,
    model: DepthModel,
    options: DepthOptions | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Write the depth map of each photo; returns what `.depth.json` then says."""
    options, ranks = options or DepthOptions(), ranks or Ranks()
    about = _about(photos, model, options)
    metadata: dict[str, object] = {"format": FORMAT, "version": VERSION, "depth_model": about}
    job = _Job(out, _maps_of_backgrounds(photos), metadata, about, replace=options.force)
    _write(photos, model, options, ranks, job)

    def read() -> dict[str, Any]:
        return parse_table(read_regular(out / ABOUT))

    return ranks.from_first(read)


class _Job(NamedTuple):
    """What is written where. about: the model, as the metadata describe it."""

    target: Path
    kind: Output
    metadata: dict[str, object]
    about: dict[str, object]
    replace: bool


def _about(
    images: Composites | Photos, model: DepthModel, options: DepthOptions
) -> dict[str, object]:
    """How `dataset.json` describes what maps are made by: all that decides their bytes."""
    about = model.about | {
        "batch_size": options.images_at_once(model),
        "stretch": options.stretch,
    }
    if options.value_range is not None:
        require_range(Range(*options.value_range), model.predicts)
        about["range"] = list(options.value_range)
    return about | {"images": len(images)}


def _write(
    images: Composites | Photos, model: DepthModel, options: DepthOptions, ranks: Ranks, job: _Job
) -> None:
    """Write all maps, and last the metadata."""
    same: dict[str, object] = {
        "source": str(images.folder.absolute()),
        "names_sha256": hash_names(images.names),
        "made": job.about,
    }
    if options.progress and ranks.is_first:
        click.echo(_announcement(model, options, len(images)), err=True)
    metadata = job.metadata
    with ExitStack() as stack:

        def begin() -> Path:
            return stack.enter_context(
                work_folder(
                    job.target, job.kind, same, resume=options.resume, force=options.force,
                    replace=job.replace,
                )
            )  # fmt: skip

        work = ranks.from_first(begin)
        if not ranks.from_first(lambda: (work / job.kind.last).exists()):
            run = DepthRun(
                images, model, batch_size=options.images_at_once(model), work=work, ranks=ranks,
                shown=options.progress,
            )  # fmt: skip
            found = Range(*options.value_range) if options.value_range else None
            if options.stretch == "dataset":
                found = found or run.find_range()
                metadata = metadata | {"depth_scale": scale_of(found, model.predicts).model_dump()}
            run.write_all(found)
            # Before the file that says that the others are complete.
            sync_file_system(work)
            ranks.wait()
            ranks.from_first(lambda: write_json(work / job.kind.last, metadata))


def _announcement(model: DepthModel, options: DepthOptions, images: int) -> str:
    """What is about to happen, in one line: a wrong direction would spoil all maps."""
    device = dict(model.made).get("device", "cpu")
    amp = dict(model.made).get("amp", "off")
    where = device if amp == "off" else f"{device}, {amp}"
    scale = "each image" if options.stretch == "image" else "the whole data set"
    return (
        f"{model.name}: {MEANING[model.predicts]}, {model.reason}; dark will be near, stretched "
        f"over {scale}; {images:,} images on {where}"
    )
