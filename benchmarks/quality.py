"""What finished runs reach on their validation splits, beside baselines without a network."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import click

from maskdepth.benchmarks.estimate import step_pflop
from maskdepth.benchmarks.harness.options import DEVICE, PATH, command, keep, option
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import print_progress
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular
from maskdepth.convert.program import TRAIN
from maskdepth.model.checkpoint import load_network
from maskdepth.model.contract import PRIOR
from maskdepth.model.metrics import Scores
from maskdepth.model.precision import choose_device
from maskdepth.model.recipe import Recipe
from maskdepth.model.training.config import read_config
from maskdepth.model.training.folder import BEST, CONFIG, METRICS, require_run
from maskdepth.model.training.options import camera_option, samples_option
from maskdepth.model.training.report import Report
from maskdepth.train import evaluate_checkpoint

SCORED = ("mask_bce", "mask_iou", "depth_l1", "depth_rmse")
BASELINES = {"mask_iou": "difference", "depth_rmse": "background_depth"}
"""Score -> the baseline that it is compared with; results call it the rule."""

CAMERA_FIGURES = {
    "mask_iou": ("network", "mask_iou"),
    "aligned_mask_iou": ("aligned_network", "mask_iou"),
    "rule_mask_iou": ("difference", "mask_iou"),
    "aligned_rule_mask_iou": ("aligned_difference", "mask_iou"),
    "depth_rmse": ("network", "depth_rmse"),
    "aligned_depth_rmse": ("aligned_network", "depth_rmse"),
}
"""Figure of a run with a camera -> the row and the score of its evaluation."""


@command(
    click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN_DIR..."),
    camera_option,
    samples_option,
    option(
        "--shards", type=PATH,
        help="Score the random split of these shards, which no run was trained on.",
    ),
    DEVICE,
)  # fmt: skip
def quality(
    runs: tuple[Path, ...],
    cameras: tuple[str, ...],
    samples: int | None,
    shards: Path | None,
    device: str,
) -> Result:
    """Scores of finished runs of `fit`, beside the baselines that need no network.

    Scores the best weights of each run on the split that it was trained with, on the shards
    where the run found them. With --camera, the first one gives the scores of the run.
    """
    names = [folder.resolve().name for folder in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"RUN_DIR: found {twice[0]} twice, expected folders of different names")
    for folder in runs:
        require_run(folder)
    cases: dict[str, CaseResult] = {}
    arguments = {"samples": samples or "all", "device": device}
    if shards is not None:
        arguments["shards"] = shards.name
    for name, folder in zip(names, runs, strict=True):
        cases |= _score(name, folder, device, cameras, samples, shards)
        figures = cases[name].figures
        prior = " (prior)" * (cases[name].parameters["depth"] == PRIOR)
        print_progress(
            f"{name}: mask IoU {figures['mask_iou']:.4f}, "
            f"depth RMSE {figures['depth_rmse']:.4f}{prior}"
        )
        keep(make_result("quality", arguments, cases, device=device))
    return make_result("quality", arguments, cases, device=device)


def _score(
    name: str,
    folder: Path,
    device: str,
    cameras: tuple[str, ...],
    samples: int | None,
    shards: Path | None,
) -> dict[str, CaseResult]:
    """The case of a run, and one for each camera."""
    config = read_config(folder / CONFIG)
    data = config.data
    if shards is not None:
        data = data.changed(shards=str(shards), split="random")
    epochs = _read_epochs(folder / METRICS)
    planned = sum(stage.epochs for stage in config.recipe.stages)
    if len(epochs) != planned:
        raise DataError(
            f"{folder}: found {len(epochs)} epochs of {planned}; finish the run by "
            f"`{TRAIN} fit --resume`"
        )
    checkpoint = load_network(folder / BEST)
    report = evaluate_checkpoint(
        checkpoint, data, config.amp, choose_device(device), cameras=cameras, samples=samples
    )
    if shards is not None and report.seen is not None:
        raise DataError(
            f"--shards {shards}: found the data that {folder} was trained on, expected other data; "
            "leave out --shards"
        )
    rows = report.evaluations[0].rows
    figures = {name: value_of(rows["network"], name) for name in SCORED} | {
        f"rule_{name}": value_of(rows[baseline], name) for name, baseline in BASELINES.items()
    }
    figures["depth_rmse_of_rule"] = figures["depth_rmse"] / figures["rule_depth_rmse"]
    figures |= _training(config.recipe.changed(width=config.width), epochs)
    scored = CaseResult(
        parameters={
            "recipe": config.recipe.name,
            "split": data.split,
            "width": config.width,
            "size": config.recipe.stages[-1].size,
            "epochs": planned,
            "validation_samples": rows["network"].samples,
            "depth": report.depth_source,
        },
        figures=figures,
    )
    return {name: scored, **_camera_cases(name, report)}


def _camera_cases(name: str, report: Report) -> dict[str, CaseResult]:
    """A case of a run for each camera with which it was scored."""
    return {
        f"{name}, camera {found.camera}": CaseResult(
            parameters={"run": name, "camera": found.camera, "depth": report.depth_source},
            figures={
                figure: value_of(found.rows[row], score)
                for figure, (row, score) in CAMERA_FIGURES.items()
            },
        )
        for found in report.evaluations
        if found.camera
    }


def value_of(scores: Scores, name: str) -> float:
    """One score of a network, or of a baseline that has it."""
    value = getattr(scores, name)
    assert value is not None, "both decoders are scored"
    return float(value)


class _Epoch(NamedTuple):
    """A finished epoch of a run: its stage (from 1), training samples and CPU seconds."""

    stage: int
    samples: int
    cpu_s: float


def _training(recipe: Recipe, epochs: list[_Epoch]) -> dict[str, float]:
    """What a run has spent: samples, PFLOP as `speedrun` counts them, and CPU minutes."""
    costs = [step_pflop(recipe, stage) / stage.batch_size for stage in recipe.stages]
    return {
        "training_samples": sum(epoch.samples for epoch in epochs),
        "training_pflop": sum(epoch.samples * costs[epoch.stage - 1] for epoch in epochs),
        "training_cpu_min": sum(epoch.cpu_s for epoch in epochs) / 60,
    }


def _samples(row: dict[str, str]) -> int:
    """Training samples of an epoch."""
    if found := row.get("train_samples"):
        return int(found)
    return round(float(row["samples_per_s"]) * float(row["epoch_s"]))  # of earlier versions


def _read_epochs(path: Path) -> list[_Epoch]:
    """Every finished epoch, of metrics.csv."""
    try:
        lines = read_regular(path).decode().splitlines()
        return [
            _Epoch(
                stage=int(row["stage"]),
                samples=_samples(row),
                cpu_s=float(row["epoch_cpu_s"]),
            )
            for row in csv.DictReader(lines)
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: {error}; expected stage, train_samples and epoch_cpu_s of every epoch"
        ) from None
