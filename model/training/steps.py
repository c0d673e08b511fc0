"""The optimiser steps of an epoch, counted in samples, so that other ranks can continue them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from maskdepth.model.contract import Batch
from maskdepth.model.recipe import Stage


class StepSize(NamedTuple):
    """Samples of a full optimiser step: `share` on each of `ranks` ranks.

    part: samples that a rank computes at once, at most; it adds up the gradients of its parts.
    """

    ranks: int
    share: int
    part: int

    @classmethod
    def of(cls, stage: Stage, *, started: int, ranks: int, accumulate: int = 1) -> StepSize:
        """The step of a stage, which keeps its samples for any number of ranks that divides them.

        started: ranks with which the run began; a step has the batch of the stage for each. ranks:
            those that train now; where they do not divide the step, its size is the nearest
            multiple. accumulate: parts of a batch of the stage.
        """
        wanted = stage.batch_size * started
        share = max(1, (2 * wanted + ranks) // (2 * ranks))
        return cls(ranks, share, -(-stage.batch_size // accumulate))

    @property
    def samples(self) -> int:
        """Of a full step, on all ranks together."""
        return self.ranks * self.share

    def parts(self, share: int) -> int:
        """Parts in which every rank computes a step of which no rank has more than ``share``."""
        return max(1, -(-share // self.part))

    @property
    def largest_part(self) -> int:
        """Samples of the first part of a full step."""
        return -(-self.share // self.parts(self.share))


@dataclass(frozen=True, kw_only=True)
class EpochSteps:
    """The steps of an epoch of a stage, or of the rest of one.

    samples: that the epoch takes, on all ranks together. size: samples of a full step. first:
    samples that were taken before, in steps of another size.
    """

    samples: int
    size: int
    first: int = 0

    @classmethod
    def of(cls, stage: Stage, available: int, size: int, first: int = 0) -> EpochSteps:
        """The steps of a stage; available: samples of the training split."""
        samples = available
        if stage.samples is not None:
            samples = min(available, size * max(1, stage.samples // size))
        return cls(samples=samples, size=size, first=first)

    def __len__(self) -> int:
        return -(-max(0, self.samples - self.first) // self.size)

    def samples_of(self, k: int) -> int:
        """Samples of step ``k``, on all ranks together."""
        return min(self.size, self.samples - self.first - k * self.size)

    def seen(self, k: int) -> int:
        """Samples of the epoch before step ``k``."""
        return min(self.samples, self.first + k * self.size)

    def lr_at(self, stage: Stage, epoch: int, k: int) -> float:
        """The learning rate of step ``k`` of an epoch of the stage.

        It depends on the samples that were seen. So it continues where it was after a change of
        the size of steps.
        """
        in_all = -(-self.samples // self.size)
        return stage.lr_at(epoch * in_all + self.first / self.size + k, stage.epochs * in_all)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch in parts whose sizes differ by a sample at most; some may be empty. Views."""
    if parts == 1:
        return [batch]
    fields = (batch.fg_bg, batch.mask, batch.depth, batch.index)
    split = zip(*(torch.tensor_split(field, parts) for field in fields), strict=True)
    return [
        batch._replace(fg_bg=fg_bg, mask=mask, depth=depth, index=index)
        for fg_bg, mask, depth, index in split
    ]
