"""Composes data sets: writes the folders of bg, fg, fg_bg, mask and depth images.

Run ``python -m convert compose DATASET`` for the built-in streets and people, or add
``--bg DIR --fg DIR`` for your own photos and cut-outs.

The rule: each foreground is scaled to height 105 (at size 224). On each background it is pasted
at ``placements / 2`` random places, then flipped left-right and pasted at as many more. Its
pixels replace those of the background wherever its scaled alpha is not 0.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from concurrent.futures import Executor
from pathlib import Path
from typing import Unpack

import crc32c

from maskdepth.convert.contents import PARTS, Content
from maskdepth.convert.dataset.composed import Composed, prepare
from maskdepth.convert.dataset.inputs import require_usable
from maskdepth.convert.dataset.plan import (
    DEFAULT_SIZE,
    STANDARD,
    Plan,
    PlanOptions,
    make_plan,
    plan_metadata,
)
from maskdepth.convert.disk import sync_file_system
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_file, write_json
from maskdepth.convert.metadata import DATASET, DATASET_FORMAT, ComposedMetadata
from maskdepth.convert.names import FOLDERS, LEVELS, bg_name, fg_name, sample_name
from maskdepth.convert.outputs import (
    require_kept,
    require_outside,
    require_unspoilt,
    require_writable_folder,
)
from maskdepth.convert.parts import Part, read_record, split_parts, write_record
from maskdepth.convert.placements import OTHERS, PLACEMENTS
from maskdepth.convert.progress import Progress
from maskdepth.convert.source import read_metadata
from maskdepth.convert.unfinished import Output, check_target, work_folder
from maskdepth.convert.workers import open_pool, run_all

SAMPLES_PER_PART = 400
"""About half a second: Ctrl-C is answered within that time."""


def is_composed(folder: Path) -> bool:
    """Whether a folder is a complete data set that `compose` wrote, of any version."""
    try:
        return read_metadata(folder).get("format") == DATASET_FORMAT
    except DataError:
        return False


def _content(folder: Path) -> Content:
    """The names of the files of a complete data set that this version wrote."""
    made = ComposedMetadata.from_json(read_metadata(folder))
    bgs, fgs, samples = made.backgrounds or 0, made.foregrounds or 0, made.samples_per_bg or 0
    stems = [bg_name(bg, bgs) for bg in range(bgs)]
    images = frozenset(f"{sample_name(number, samples)}.jpg" for number in range(samples))
    levels = {LEVELS: frozenset(f"{stem}.png" for stem in stems)} if made.style.needs_levels else {}
    return {
        ".": frozenset({DATASET, PLACEMENTS, *([OTHERS] if made.style.has_several else [])}),
        "bg": frozenset(f"{stem}.jpg" for stem in stems),
        "fg": frozenset(f"{fg_name(fg, fgs)}.png" for fg in range(fgs)),
        **levels,
        **{f"{name}/{stem}": images for name in FOLDERS.values() for stem in stems},
    }


DATASET_FOLDER = Output(
    name="data set of `compose`",
    command="compose",
    last=DATASET,
    names=re.compile(
        rf"bg/bg_\d+\.jpg|fg/fg_\d+\.png|{LEVELS}/bg_\d+\.png|({'|'.join(FOLDERS.values())})/bg_\d+/img_\d+\.jpg"
        rf"|{re.escape(DATASET)}|{re.escape(PLACEMENTS)}|{re.escape(OTHERS)}"
    ),
    content=_content,
    is_finished=is_composed,
    may_be_mount=True,
)


def compose(
    dataset: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    part_size: int = SAMPLES_PER_PART,
    **options: Unpack[PlanOptions],
) -> dict[str, object]:
    """Write the data set folder ``dataset`` and return what its ``dataset.json`` says.

    options: as of `make_plan`. The others are those of `convert.pack.pack`: ``workers`` and
    ``scheduler`` do not change a byte, ``resume`` continues an interrupted run of the same
    options, ``force`` replaces a finished data set of `compose` or what an unfinished run left.

    The depth of a foreground is the smallest depth that it covers, or with `Style.occlusion` that
    of the ground at its feet, and never in the farther half of the scene. Each depth map is
    stretched so that its minimum is 0 and its maximum 255.

    After a kill, Ctrl-C, a full disk or a dead worker, finished parts stay in `DATASET.partial`
    for ``resume``. Raises DataError as `checked_plan` does.
    """
    plan = checked_plan(
        dataset, DATASET_FOLDER, options, workers=workers, force=force, progress=progress
    )
    if scheduler is not None:  # its workers may run in other folders
        dataset, plan = dataset.absolute(), plan.absolute()
    with (
        work_folder(dataset, DATASET_FOLDER, plan_job(plan), resume=resume, force=force) as work,
        open_pool(workers, scheduler) as executor,
    ):
        if not (work / DATASET).exists():  # otherwise an earlier run finished all but the cleanup
            _write_dataset(plan, work, part_size, executor, progress)
    return read_metadata(dataset)


def checked_plan(
    target: Path, kind: Output, options: PlanOptions, *, workers: int | None, force: bool,
    progress: bool,
) -> Plan:  # fmt: skip
    """The plan of an output; makes missing parent folders of it.

    ``workers``: processes that read all images of the user. ``progress``: whether to show how many.
    Raises DataError for anything wrong with the arguments or the user's files; it has a line for
    each problem of the images.
    """
    require_target(target, kind, options, force=force)
    size = options.get("size", DEFAULT_SIZE)
    require_usable(
        options.get("bg"), options.get("fg"), options.get("bg_depth"), size=size,
        backgrounds=options.get("backgrounds"), foregrounds=options.get("foregrounds"),
        style=options.get("style", STANDARD), workers=workers, progress=progress,
    )  # fmt: skip
    plan = make_plan(**options)
    if not target.absolute().parent.is_dir():
        make_parent(target)
        check_target(target, kind, force=force)
    return plan


def make_parent(target: Path) -> None:
    """Make the missing folders above an output; DataError if that is not possible."""
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be created ({error.strerror}); choose another folder"
        ) from None


def require_target(target: Path, kind: Output, options: PlanOptions, *, force: bool) -> None:
    """DataError unless an output may be written here, if its parent folder exists."""
    for folder in (options.get("bg"), options.get("fg"), options.get("bg_depth")):
        if folder is not None:
            require_outside(target, folder)
            require_kept(folder, target)
    require_unspoilt(target)
    parent = target.absolute().parent
    if parent.is_dir():
        check_target(target, kind, force=force)
    else:
        require_writable_folder(parent)


def plan_job(plan: Plan) -> dict[str, object]:
    """What must be equal for a run to continue an interrupted one.

    It has the names of the files; whether their contents changed is checked for each part.
    """
    folders = {name: str(folder.path.absolute()) for name, folder in plan.folders.items()}
    return {"folders": folders, "made": plan_metadata(plan)}


def _write_dataset(plan: Plan, work: Path, part_size: int, executor: Executor, shown: bool) -> None:
    """Write what is missing of a data set; last `dataset.json`."""
    # Made here at once, so that workers only write files.
    (work / PARTS).mkdir(exist_ok=True)
    for name, number in itertools.product(FOLDERS.values(), range(plan.backgrounds)):
        (work / name / plan.bg_name(number)).mkdir(parents=True, exist_ok=True)
    composed = prepare(plan, work, executor, shown)
    tasks = ((composed, part) for part in split_parts(composed.layout, part_size))
    with Progress("compose", composed.layout.samples, "samples", shown=shown) as progress:
        for samples, kept in run_all(executor, _write_part, tasks):
            progress.add(samples, kept=kept)
    # Before the file that says that the others are complete; a power failure must not empty them.
    sync_file_system(work)
    write_json(work / DATASET, composed.metadata)


def _write_part(composed: Composed, part: Part) -> tuple[int, bool]:
    """Write the images of a part's samples; returns how many, and if they were there already."""
    is_finished = _is_finished(composed, part)
    if not is_finished:
        crc, stamps = 0, hashlib.sha256()
        for sample in composed.read(part.indices):
            stamps.update(sample.stamp)
            for path, data in zip(sample.paths, sample.images, strict=True):
                _write_file(path, data)
                crc = crc32c.crc32c(data, crc)
        record = {"stamps": stamps.hexdigest(), "crc32c": {"images": crc}}
        write_record(part, composed.folder / PARTS, record)
    return len(part.indices), is_finished


def _write_file(path: str, data: bytes) -> None:
    """Write a new file, or replace what an interrupted run left of it.

    By system calls, which take less time than a file object and say what a full disk has taken.
    """
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        done = os.write(target, data)
        while done < len(data):  # the disk is full: the next call raises
            done += os.write(target, data[done:])
    finally:
        os.close(target)


def _is_finished(composed: Composed, part: Part) -> bool:
    """Whether a part was made from the same and its files are on the disk.

    They are read, because they are not synchronised one by one: that would take longer than to
    compose them again.
    """
    crc = 0
    try:
        recorded = read_record(part, composed.folder / PARTS)
        stamps = hashlib.sha256(b"".join(composed.stamps(part.indices)))
        if recorded.stamps != stamps.hexdigest():
            return False
        for path in itertools.chain.from_iterable(composed.paths(part.indices)):
            crc = crc32c.crc32c(read_file(path)[0], crc)
    except (DataError, OSError, ValueError):  # missing, or the disk lost some of it
        return False
    return crc == recorded.crc32c.get("images")
