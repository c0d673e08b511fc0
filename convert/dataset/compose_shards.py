"""Composes data sets straight into shards, without a file for each image.

Run ``python -m convert compose --pack SHARDS``. The bytes are those of `compose` and then `pack`.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import Unpack

from maskdepth.convert.dataset.compose import (
    checked_plan,
    compose,
    is_composed,
    make_parent,
    plan_job,
    require_target,
)
from maskdepth.convert.dataset.composed import Composed, prepare
from maskdepth.convert.dataset.plan import Plan, PlanOptions, make_plan, plan_metadata
from maskdepth.convert.errors import DataError
from maskdepth.convert.manifest import Manifest
from maskdepth.convert.pack import PackConfig, pack, provenance, write_shards
from maskdepth.convert.parts import SAMPLES_PER_PART
from maskdepth.convert.source import read_metadata
from maskdepth.convert.unfinished import SHARD_FOLDER

_SOURCE = "source"
"""Folder of backgrounds, cut-outs and table in the work folder."""


def compose_shards(
    shards: Path,
    *,
    config: PackConfig | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    part_size: int = SAMPLES_PER_PART,
    **options: Unpack[PlanOptions],
) -> Manifest:
    """Write the shard folder that `pack` makes of what `compose` writes, byte for byte.

    options: as of `make_plan`. The others are those of `convert.pack.pack`.
    Raises DataError for anything wrong with the arguments or the user's files.
    """
    config = config or PackConfig()
    plan = checked_plan(
        shards, SHARD_FOLDER, options, workers=workers, force=force, progress=progress
    )
    if config.samples_per_fg not in (None, plan.placements):
        raise DataError(
            f"samples per foreground is {config.samples_per_fg}, expected none or "
            f"{plan.placements}, the placements"
        )
    if scheduler is not None:  # its workers may run in other folders
        shards, plan = shards.absolute(), plan.absolute()

    def prepare_source(folder: Path, executor: Executor) -> Composed:
        (folder / _SOURCE).mkdir(exist_ok=True)
        return prepare(plan, folder / _SOURCE, executor, progress)

    job = plan_job(plan) | {"made": provenance(plan_metadata(plan), config)}
    return write_shards(
        shards, prepare_source, job, config, workers=workers, scheduler=scheduler, resume=resume,
        force=force, progress=progress, part_size=part_size,
    )  # fmt: skip


def compose_both(
    dataset: Path,
    shards: Path,
    *,
    config: PackConfig | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    **options: Unpack[PlanOptions],
) -> Manifest:
    """`compose` to the folder ``dataset``, and `pack` that.

    ``resume`` does not compose a data set again that is finished and of the same plan.
    """
    one, other = dataset.resolve(), shards.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise DataError(f"{shards}: is not apart from {dataset}; give two folders side by side")
    require_target(shards, SHARD_FOLDER, options, force=force)
    if not (resume and is_composed(dataset) and _is_of(dataset, make_plan(**options))):
        compose(
            dataset, workers=workers, scheduler=scheduler, resume=resume, force=force,
            progress=progress, **options,
        )  # fmt: skip
    make_parent(shards)
    return pack(
        dataset, shards, config=config, workers=workers, scheduler=scheduler, resume=resume,
        force=force, progress=progress,
    )  # fmt: skip


def _is_of(dataset: Path, plan: Plan) -> bool:
    """Whether a finished data set is that of a plan."""
    return plan_metadata(plan).items() <= read_metadata(dataset).items()
