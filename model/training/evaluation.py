"""Scores a network on a validation set, next to baselines that need no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint import NetworkInfo
from model.contract import Batch, Inputs, Loader, Preprocessor
from model.losses import depth_values
from model.metrics import (
    GroupSpread,
    SampleTable,
    Scores,
    TrainingMeans,
    difference_logits,
    group_spread,
    pooled_scores,
    sample_sums,
)
from model.pictures import Example, draw_predictions
from model.precision import Precision
from model.training.compiling import compiled_if
from model.training.disturbance import UNDISTURBED, align_backgrounds, disturb, load_disturbance
from model.training.progress import with_progress
from model.training.provenance import count_seen
from model.training.report import PRIOR, ROWS, defined_figures, score_table
from model.unet import Decode, DualDecoderUNet

EXAMPLES = 6
"""Samples shown in the picture of an evaluation."""


class Prediction(NamedTuple):
    """Mask logits, and depth in the units of the target; None where a decoder did not run."""

    mask_logits: Tensor | None
    depth: Tensor | None


@torch.inference_mode()
def predict_step(
    inputs: Inputs, network: nn.Module, precision: Precision, depth_loss: str, decode: Decode
) -> Prediction:
    """Float32 prediction for preprocessed inputs; no host sync. Put the network in eval mode."""
    with precision.autocast(inputs.bg.device.type):
        mask_logits, depth = network(inputs.bg, inputs.fg_bg, decode=decode)
    return Prediction(
        mask_logits=None if mask_logits is None else mask_logits.float(),
        depth=None if depth is None else depth_values(depth.float(), depth_loss),
    )


def measure(prediction: Prediction, inputs: Inputs) -> Tensor:
    """`sample_sums` of a prediction."""
    return sample_sums(prediction.mask_logits, prediction.depth, inputs.mask, inputs.depth)


class Evaluation(NamedTuple):
    """Scores by row of `report.ROWS`, the network's sums per sample, and examples.

    camera: the name of the disturbance of fg_bg; None if the images were not aligned either.
    """

    camera: str | None
    rows: dict[str, Scores]
    table: dict[str, np.ndarray]
    examples: list[Example]


class Report(NamedTuple):
    """Scores of a checkpoint on a validation split, and how to read them."""

    evaluations: tuple[Evaluation, ...]
    """One for each camera."""
    spread: dict[str, GroupSpread]
    """How the first camera's scores vary between groups, by bg and fg (`metrics.group_spread`)."""
    seen: dict[str, int] | None
    """How much of the split training has seen (`provenance.count_seen`); None if unknown."""
    title: str
    depth_source: str
    """Of the loader: where the depth maps of the data come from."""

    @classmethod
    def of(
        cls, evaluations: tuple[Evaluation, ...], data: Loader, split: str, info: NetworkInfo,
        trained: np.ndarray | None, validation: np.ndarray,
    ) -> Report:  # fmt: skip
        """The scores with their spread over backgrounds and, where known, over foregrounds.

        trained: samples that training has seen, None if unknown. validation: those of the split.
        """
        evaluation, layout = evaluations[0], data.layout
        groups = {"bg": layout.background_of}
        if layout.samples_per_fg is not None:
            groups["fg"] = layout.foreground_of
        every = np.arange(layout.samples)
        spread = {
            kind: group_spread(
                evaluation.table, of(every), None if trained is None else of(trained)
            )
            for kind, of in groups.items()
        }
        seen = None if trained is None else count_seen(layout, trained, validation)
        title = (
            f"validation: {evaluation.rows['network'].samples} samples, split {split}, "
            f"{info.size}x{info.size}, width {info.width}"
        )
        return cls(evaluations, spread, seen, title, data.depth_source)

    def table(self) -> str:
        """The scores as text; see `report.score_table`."""
        sections = [(_about(e.camera), e.rows) for e in self.evaluations]
        return score_table(sections, self.title, self.spread, self.depth_source)

    def to_json(self) -> dict[str, object]:
        """The scores as plain values: of the first camera, and of all by name."""
        cameras = {e.camera or "none": defined_figures(e.rows) for e in self.evaluations}
        return {
            "title": self.title,
            "depth_source": self.depth_source,
            "scores": next(iter(cameras.values())),
            "cameras": cameras,
            "spread": {kind: group.as_dict() for kind, group in self.spread.items()},
            "seen_in_training": self.seen,
        }

    def draw(self, path: Path, command: str) -> None:
        """Write the examples as a PNG of a command: all of one camera, or some of each."""
        share = -(-EXAMPLES // len(self.evaluations))
        examples = [example for e in self.evaluations for example in e.examples[:share]]
        about = "; depth: a prior, not measured" if self.depth_source == PRIOR else ""
        draw_predictions(path, examples, command, self.title + about)


def _about(camera: str | None) -> str:
    """The line of a table about a camera."""
    if camera is None:
        return ""
    return f"-- camera {camera}: {load_disturbance(camera)}"


def validate(
    network: nn.Module,
    loader: Loader,
    preprocess: Preprocessor,
    precision: Precision,
    depth_loss: str,
    decode: Decode,
    show: Callable[[Tensor, Tensor, Prediction, Inputs], None] | None = None,
    compiled: Callable[[Callable[[], object]], None] | None = None,
) -> Scores:
    """The network's scores over a loader, of all ranks; leaves the network in eval mode.

    show: called with bg and fg_bg of the first batch, uint8 (B, 3, H, W), the prediction for them
    and its targets. compiled: called with the prediction of the first batch before it is made, to
    compile the network.
    """
    network.eval()
    table = SampleTable(loader.layout.samples, loader.device)
    full = 0
    for batch in with_progress(loader, "validating"):
        samples = len(batch.index)
        if not samples:
            continue  # the last step has fewer samples than there are ranks
        inputs = preprocess(batch)
        predict = partial(predict_step, inputs, network, precision, depth_loss, decode)
        if not full and compiled is not None:
            compiled(predict)
        full = full or samples
        with compiled_if(samples == full):
            prediction = predict()
        table.add(batch.index, measure(prediction, inputs))
        if show is not None:
            show(loader.backgrounds.gather(batch.index), batch.fg_bg, prediction, inputs)
            show = None
    return pooled_scores(table.collect())


@torch.inference_mode()
def training_means(loader: Loader, preprocess: Preprocessor, size: int) -> TrainingMeans:
    """Means of the targets of the training samples that ``loader`` yields."""
    starts = torch.from_numpy(np.asarray(loader.layout.group_starts, dtype=np.int64))
    means = TrainingMeans(starts.to(loader.device), size)
    for batch in with_progress(loader, "means of the training targets"):
        inputs = preprocess(batch)
        means.add(batch.index, inputs.mask, inputs.depth)
    return means


@torch.inference_mode()
def evaluate_network(
    network: DualDecoderUNet,
    loader: Loader,
    preprocess: Preprocessor,
    precision: Precision,
    info: NetworkInfo,
    means: TrainingMeans,
    camera: str | None = None,
) -> Evaluation:
    """Scores of the network and of the baselines, and examples spread over the set.

    loader: validation batches in order. preprocess: to ``info.size``. means: of the training
    split, at the same size. camera: name of the disturbance of fg_bg (`load_disturbance`); the
    images are then aligned as well, for the rows that need it, which takes some 40 ms per sample.
    """
    network.eval()
    disturbance = load_disturbance(camera or "none")
    new_table = partial(SampleTable, loader.layout.samples, loader.device)
    tables: defaultdict[str, SampleTable] = defaultdict(new_table)
    shown: list[Example] = []
    wanted: list[int] | None = None
    position = 0
    for stored in with_progress(loader, "evaluating" + (f", camera {camera}" if camera else "")):
        batch = disturb(stored, disturbance) if disturbance != UNDISTURBED else stored
        inputs = preprocess(batch)
        prediction = predict_step(inputs, network, precision, info.depth_loss, "both")
        bg = loader.backgrounds.gather(batch.index)
        predictions = {
            "network": prediction,
            "difference": Prediction(difference_logits(bg, batch.fg_bg, info.size), None),
            "prior": Prediction(means.prior_logit(inputs.mask), None),
            "background_depth": Prediction(None, means.background_depth(batch.index)),
            "overall_depth": Prediction(None, means.overall_depth(batch.index)),
        }
        if camera:
            aligned = align_backgrounds(bg, batch.fg_bg)
            logits = difference_logits(aligned, batch.fg_bg, info.size)
            predictions["aligned_difference"] = Prediction(logits, None)
            predictions["aligned_network"] = predict_step(
                preprocess(batch, bg=aligned), network, precision, info.depth_loss, "both"
            )
        for row, found in predictions.items():
            tables[row].add(batch.index, measure(found, inputs))
        count = len(batch.index)
        if wanted is None:
            # Spread over the full batches: the last one may be smaller.
            total = max(1, len(loader) - 1) * count
            middles = np.linspace(0, total - 1, 2 * EXAMPLES + 1)[1::2]
            wanted = sorted(set(middles.astype(int).tolist()))
        chosen = [place - position for place in wanted if position <= place < position + count]
        shown += [_example(batch, bg, inputs, prediction, row, camera) for row in chosen]
        position += count
    collected = {row: tables[row].collect() for row in ROWS if row in tables}
    return Evaluation(
        camera=camera,
        rows={row: pooled_scores(table) for row, table in collected.items()},
        table=collected["network"],
        examples=shown,
    )


def _example(
    batch: Batch, bg: Tensor, inputs: Inputs, prediction: Prediction, row: int, camera: str | None
) -> Example:
    """One sample and its prediction as host arrays; host syncs, a handful per evaluation."""
    if prediction.mask_logits is None or prediction.depth is None:
        raise ValueError("an example needs both decoders")
    return Example(
        note=f"camera {camera}" if camera else "",
        bg=bg[row].permute(1, 2, 0).cpu().numpy(),
        fg_bg=batch.fg_bg[row].permute(1, 2, 0).cpu().numpy(),
        mask=prediction.mask_logits[row, 0].sigmoid().cpu().numpy(),
        depth=prediction.depth[row, 0].cpu().numpy(),
        target_mask=inputs.mask[row, 0].cpu().numpy(),
        target_depth=inputs.depth[row, 0].cpu().numpy(),
    )
