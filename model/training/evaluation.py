"""Scores a network on a validation set, next to baselines that need no network."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maskdepth.model.checkpoint import NetworkInfo
from maskdepth.model.contract import Batch, Inputs, Loader, Preprocessor
from maskdepth.model.losses import depth_values
from maskdepth.model.metrics import (
    SUM_COLUMNS,
    SampleTable,
    Scores,
    TrainingMeans,
    difference_logits,
    pooled_scores,
    sample_scores,
    sample_sums,
)
from maskdepth.model.pictures import Example
from maskdepth.model.precision import Precision
from maskdepth.model.training.compiling import compiled_if
from maskdepth.model.training.disturbance import (
    UNDISTURBED,
    align_backgrounds,
    disturb,
    load_disturbance,
)
from maskdepth.model.training.progress import with_progress
from maskdepth.model.training.report import EXAMPLES, ROWS, Evaluation
from maskdepth.model.training.trainer import StageData, StageTrainer
from maskdepth.model.unet import Decode, DualDecoderUNet


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


Show = Callable[[Tensor, Tensor, Prediction, Inputs], None]
"""Shows bg and fg_bg, uint8 (B, 3, H, W), the prediction for them and its targets."""


def validate(trainer: StageTrainer, data: StageData, show: Show) -> Scores:
    """The scores over the validation loaders of all ranks; leaves the network in eval mode.

    show: called with the first batch.
    """
    loader, depth_loss = data.validation, trainer.recipe.depth_loss
    trainer.wrapped.eval()
    table = SampleTable(loader.layout.samples, loader.device)
    full = 0
    for batch in with_progress(loader, "validating"):
        samples = len(batch.index)
        if not samples:
            continue  # the last step has fewer samples than there are ranks
        inputs = data.preprocess(batch)
        predict = partial(
            predict_step, inputs, trainer.wrapped, trainer.precision, depth_loss,
            trainer.stage.decode,
        )  # fmt: skip
        if not full:
            trainer.compile_for("validation", predict)
        with compiled_if(samples == (full or samples)):
            prediction = predict()
        table.add(batch.index, measure(prediction, inputs))
        if not full:
            show(loader.backgrounds.gather(batch.index), batch.fg_bg, prediction, inputs)
        full = full or samples
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


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores a network and the baselines.

    loader: validation batches in order. preprocess: to ``info.size``. means: of the training
    split, at the same size.
    """

    network: DualDecoderUNet
    info: NetworkInfo
    loader: Loader
    preprocess: Preprocessor
    precision: Precision
    means: TrainingMeans

    @torch.inference_mode()
    def evaluate(self, camera: str | None = None, worst: int = 0) -> Evaluation:
        """Scores, and examples: spread over the set, or those with the ``worst`` lowest mask IoU.

        camera: name of the disturbance of fg_bg (`load_disturbance`); the images are then aligned
        as well, for the rows that need it and for the examples, which takes some 40 ms per sample.
        """
        loader, disturbance = self.loader, load_disturbance(camera or "none")
        self.network.eval()
        new_table = partial(SampleTable, loader.layout.samples, loader.device)
        tables: defaultdict[str, SampleTable] = defaultdict(new_table)
        chosen = _Lowest(worst) if worst else _Spread(len(loader))
        note = f"camera {camera}, aligned" if camera else ""
        title = "evaluating" + (f", camera {camera}" if camera else "")
        for stored in with_progress(loader, title):
            batch = disturb(stored, disturbance) if disturbance != UNDISTURBED else stored
            inputs, bg = self.preprocess(batch), loader.backgrounds.gather(batch.index)
            predictions = self._predictions(batch, bg, inputs, aligned=camera is not None)
            for name, found in predictions.items():
                tables[name].add(batch.index, measure(found, inputs))
            shown = predictions.get("aligned_network", predictions["network"])
            chosen.add(batch, bg, inputs, shown, note)
        collected = {name: tables[name].collect() for name in ROWS if name in tables}
        return Evaluation(
            camera=camera,
            rows={name: pooled_scores(table) for name, table in collected.items()},
            table=collected["network"],
            examples=chosen.examples,
        )

    def _predictions(
        self, batch: Batch, bg: Tensor, inputs: Inputs, *, aligned: bool
    ) -> dict[str, Prediction]:
        """Of the network and of the baselines, by row; bg: uint8 (B, 3, H, W)."""
        size, means = self.info.size, self.means
        found = {
            "network": self._predict(inputs),
            "difference": Prediction(difference_logits(bg, batch.fg_bg, size), None),
            "prior": Prediction(means.prior_logit(inputs.mask), None),
            "background_depth": Prediction(None, means.background_depth(batch.index)),
            "overall_depth": Prediction(None, means.overall_depth(batch.index)),
        }
        if aligned:
            moved = align_backgrounds(bg, batch.fg_bg)
            logits = difference_logits(moved, batch.fg_bg, size)
            found["aligned_difference"] = Prediction(logits, None)
            found["aligned_network"] = self._predict(self.preprocess(batch, bg=moved))
        return found

    def _predict(self, inputs: Inputs) -> Prediction:
        return predict_step(inputs, self.network, self.precision, self.info.depth_loss, "both")


class _Spread:
    """`EXAMPLES` samples of ``batches`` batches, in the middles of equal parts."""

    def __init__(self, batches: int) -> None:
        # Of the full batches: the last one may be smaller.
        self._full_batches = max(1, batches - 1)
        self._position = 0
        self.examples: list[Example] = []

    def add(
        self, batch: Batch, bg: Tensor, inputs: Inputs, prediction: Prediction, note: str
    ) -> None:
        """Keep what is wanted of a batch; the first one is full."""
        count = len(batch.index)
        if not self._position:
            last = self._full_batches * count - 1
            middles = np.linspace(0, last, 2 * EXAMPLES + 1)[1::2]
            self._wanted = set(middles.astype(int).tolist())
        for row in range(count):
            if self._position + row in self._wanted:
                self.examples.append(_example(batch, bg, inputs, prediction, row, note))
        self._position += count


class _Lowest:
    """The samples with the lowest mask IoU so far, the lowest first; of equals the first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._found: list[tuple[float, int, Example]] = []

    @property
    def examples(self) -> list[Example]:
        return [example for _, _, example in self._found]

    def add(
        self, batch: Batch, bg: Tensor, inputs: Inputs, prediction: Prediction, note: str
    ) -> None:
        """Keep what belongs to the lowest: a host sync per batch."""
        sums = measure(prediction, inputs).cpu().numpy()
        scores = sample_scores(dict(zip(SUM_COLUMNS, sums.T, strict=True)))["mask_iou"]
        for row, (index, iou) in enumerate(zip(batch.index.tolist(), scores, strict=True)):
            last = self._found[-1][:2] if len(self._found) == self.count else (math.inf, 0)
            if (iou, index) >= last:
                continue
            about = ", ".join(filter(None, (f"sample {index}, IoU {iou:.3f}", note)))
            example = _example(batch, bg, inputs, prediction, row, about)
            self._found = sorted([*self._found, (iou, index, example)], key=lambda one: one[:2])
            del self._found[self.count :]


def _example(
    batch: Batch, bg: Tensor, inputs: Inputs, prediction: Prediction, row: int, note: str
) -> Example:
    """One sample and its prediction as host arrays; host syncs, a handful per evaluation."""
    if prediction.mask_logits is None or prediction.depth is None:
        raise ValueError("an example needs both decoders")
    return Example(
        note=note,
        bg=bg[row].permute(1, 2, 0).cpu().numpy(),
        fg_bg=batch.fg_bg[row].permute(1, 2, 0).cpu().numpy(),
        mask=prediction.mask_logits[row, 0].sigmoid().cpu().numpy(),
        depth=prediction.depth[row, 0].cpu().numpy(),
        target_mask=inputs.mask[row, 0].cpu().numpy(),
        target_depth=inputs.depth[row, 0].cpu().numpy(),
    )
