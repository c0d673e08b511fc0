"""Score a network on a validation set, beside what needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from model.checkpoint import NetworkInfo
from model.distributed import is_distributed
from model.metrics import (
    SampleTable,
    Scores,
    TrainingMeans,
    difference_logits,
    group_spread,
    pooled_scores,
    sample_sums,
)
from model.pictures import Example
from model.precision import Precision
from model.step import Prediction, Preprocess, measure, predict_step
from model.training.report import ROWS
from model.unet import Decode, DualDecoderUNet


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores by row of `report.ROWS`, the network's sums per sample, and examples."""

    rows: dict[str, Scores]
    table: dict[str, np.ndarray]
    examples: list[Example]


class Report(NamedTuple):
    """Scores of a checkpoint on a validation split, and how they are to be read."""

    evaluation: Evaluation
    spread: dict[str, Any]
    """How scores vary between groups, by bg and fg; see `model.metrics.group_spread`."""
    seen: dict[str, int] | None
    """What of the split training has seen (`model.training.provenance`); None where not known."""
    title: str


def make_report(
    evaluation: Evaluation,
    layout: Any,
    split: str,
    info: NetworkInfo,
    seen: dict[str, int] | None,
) -> Report:
    """The scores with their spread over backgrounds and, where it is known, over people."""
    samples = np.arange(layout.samples)
    spread = {"bg": group_spread(evaluation.table, layout.background_of(samples))}
    if layout.samples_per_fg is not None:
        spread["fg"] = group_spread(evaluation.table, layout.foreground_of(samples))
    title = (
        f"validation: {evaluation.rows['network'].samples} samples, split {split}, "
        f"{info.size}x{info.size}, width {info.width}"
    )
    return Report(evaluation, spread, seen, title)


def _shown(loader: Any, what: str) -> Iterable[Any]:
    """Batches of epoch 0, with a progress bar on a terminal, of one rank."""
    hidden = True if is_distributed() and dist.get_rank() else None
    return tqdm(loader.epoch(0), total=len(loader), desc=what, disable=hidden, leave=False)


def validate(
    network: nn.Module,
    loader: Any,
    preprocess: Preprocess,
    precision: Precision,
    depth_loss: str,
    decode: Decode,
    show: Callable[..., None] | None = None,
) -> Scores:
    """The network's own scores over a loader, of all ranks; leaves the network in eval mode.

    show: takes the first samples (`model.training.board.Board.picture`).
    """
    network.eval()
    table = SampleTable(loader.layout.samples, loader.device)
    for batch in _shown(loader, "validating"):
        if not len(batch.index):
            continue  # a last step with fewer samples than ranks
        inputs = preprocess(batch)
        prediction = predict_step(inputs, network, precision, depth_loss, decode)
        table.add(batch.index, measure(prediction, inputs))
        if show is not None:
            show(loader.backgrounds.gather(batch.index), batch.fg_bg, prediction, inputs)
            show = None
    return pooled_scores(table.collect())


@torch.inference_mode()
def training_means(loader: Any, preprocess: Preprocess, size: int) -> TrainingMeans:
    """Means of the targets of the training samples that ``loader`` yields."""
    starts = torch.from_numpy(np.asarray(loader.layout.group_starts, dtype=np.int64))
    means = TrainingMeans(starts.to(loader.device), size)
    for batch in _shown(loader, "means of the training targets"):
        inputs = preprocess(batch)
        means.add(batch.index, inputs.mask, inputs.depth)
    return means


@torch.inference_mode()
def evaluate_network(
    network: DualDecoderUNet,
    loader: Any,
    preprocess: Preprocess,
    precision: Precision,
    depth_loss: str,
    means: TrainingMeans,
    size: int,
    examples: int = 6,
) -> Evaluation:
    """Scores of the network and of the baselines, and some examples spread over the set.

    loader: validation batches in order. means: of the training split, at the same size.
    """
    network.eval()
    tables = {row: SampleTable(loader.layout.samples, loader.device) for row in ROWS}
    wanted: set[int] | None = None
    shown: list[Example] = []
    position = 0
    for batch in _shown(loader, "evaluating"):
        inputs = preprocess(batch)
        prediction = predict_step(inputs, network, precision, depth_loss, "both")
        tables["network"].add(batch.index, measure(prediction, inputs))
        bg = loader.backgrounds.gather(batch.index)
        for row, (logits, depth) in _baselines(batch, bg, inputs, means, size).items():
            tables[row].add(batch.index, sample_sums(logits, depth, inputs.mask, inputs.depth))
        count = len(batch.index)
        if wanted is None:  # spread over the full batches: the last may be smaller
            total = max(1, len(loader) - 1) * count
            wanted = set(np.linspace(0, total - 1, 2 * examples + 1).astype(int)[1::2].tolist())
        chosen = [p - position for p in sorted(wanted) if position <= p < position + count]
        shown += [_example(batch, bg, inputs, prediction, number) for number in chosen]
        position += count
    collected = {row: table.collect() for row, table in tables.items()}
    return Evaluation(
        rows={row: pooled_scores(table) for row, table in collected.items()},
        table=collected["network"],
        examples=shown,
    )


def _baselines(
    batch: Any, bg: Tensor, inputs: Any, means: TrainingMeans, size: int
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """(mask logits, depth) of each baseline, in the form of a network's prediction."""
    return {
        "difference": (difference_logits(bg, batch.fg_bg, size), None),
        "prior": (means.prior_logit(inputs.mask), None),
        "background_depth": (None, means.background_depth(batch.index)),
        "overall_depth": (None, means.overall_depth(batch.index)),
    }


def _example(batch: Any, bg: Tensor, inputs: Any, prediction: Prediction, number: int) -> Example:
    """One sample and its prediction, as host arrays. Host syncs: a handful an evaluation."""
    if prediction.mask_logits is None or prediction.depth is None:
        raise ValueError("an example needs both decoders")
    return Example(
        bg=bg[number].permute(1, 2, 0).cpu().numpy(),
        fg_bg=batch.fg_bg[number].permute(1, 2, 0).cpu().numpy(),
        mask=prediction.mask_logits[number, 0].sigmoid().cpu().numpy(),
        depth=prediction.depth[number, 0].cpu().numpy(),
        target_mask=inputs.mask[number, 0].cpu().numpy(),
        target_depth=inputs.depth[number, 0].cpu().numpy(),
    )
