"""Pooled metrics compared with torchmetrics and numpy, and independent of the batches."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import BinaryJaccardIndex
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from maskdepth.model import ModelError
from maskdepth.model.metrics import (
    SUM_COLUMNS,
    VALID_DEPTH,
    SampleTable,
    TrainingMeans,
    difference_logits,
    group_spread,
    pooled_scores,
    sample_scores,
    sample_sums,
)
from maskdepth.model.training.progress import RunningLoss
from maskdepth.model.training.report import score_table

SAMPLES = 11


@pytest.fixture
def outputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask logits, depth, mask, depth target of 11 samples, (11, 1, 16, 16)."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(SAMPLES, 1, 16, 16, generator=generator)
    target = torch.rand(SAMPLES, 1, 16, 16, generator=generator)
    depth = target + 0.1 * torch.randn(SAMPLES, 1, 16, 16, generator=generator)
    # Very unequal masks, so that a mean of IoUs per image is far from the pooled IoU.
    share = torch.linspace(0, 0.9, SAMPLES).view(-1, 1, 1, 1)
    mask = (torch.rand(SAMPLES, 1, 16, 16, generator=generator) < share).float()
    return logits, depth, mask, target


def _table(outputs: tuple[Tensor, ...], batch: int, order: Tensor | None = None) -> SampleTable:
    table = SampleTable(SAMPLES, "cpu")
    for index in (torch.arange(SAMPLES) if order is None else order).split(batch):
        table.add(index, sample_sums(*(tensor[index] for tensor in outputs)))
    return table


def test_pooled_scores_equal_torchmetrics(outputs: tuple[Tensor, ...]) -> None:
    logits, depth, mask, target = outputs
    jaccard, rmse, l1 = BinaryJaccardIndex(), MeanSquaredError(squared=False), MeanAbsoluteError()
    for index in torch.arange(SAMPLES).split(3):
        jaccard.update(logits[index] > 0, mask[index].bool())
        rmse.update(depth[index].flatten(), target[index].flatten())
        l1.update(depth[index].flatten(), target[index].flatten())
    scores = pooled_scores(_table(outputs, 4).collect())
    assert scores.samples == SAMPLES
    assert scores.mask_iou == pytest.approx(jaccard.compute().item(), rel=1e-6)
    assert scores.depth_rmse == pytest.approx(rmse.compute().item(), rel=1e-5)
    assert scores.depth_l1 == pytest.approx(l1.compute().item(), rel=1e-5)
    assert scores.depth_rmse_x10 == pytest.approx(10 * rmse.compute().item(), rel=1e-5)
    x, t = logits.double().numpy(), mask.numpy()
    bce = np.logaddexp(0, x) - x * t
    assert scores.mask_bce == pytest.approx(bce.mean(), rel=1e-6)


def test_ratio_scores_equal_numpy(outputs: tuple[Tensor, ...]) -> None:
    _, depth, _, target = outputs
    scores = pooled_scores(_table(outputs, 4).collect())
    d, t = np.maximum(depth.double().numpy(), 1e-3), target.double().numpy()
    valid = t >= VALID_DEPTH
    ratio = np.maximum(d / t, t / d)[valid]
    assert scores.delta1 == pytest.approx((ratio < 1.25).mean(), abs=1e-6)
    each = [np.log(d[i] / t[i])[valid[i]].std() for i in range(SAMPLES)]
    assert scores.silog == pytest.approx(100 * np.mean(each), rel=1e-5)


def test_batch_size_and_order_do_not_matter(outputs: tuple[Tensor, ...]) -> None:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    expected = _table(outputs, SAMPLES).rows
    torch.testing.assert_close(_table(outputs, 1, order).rows, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(_table(outputs, 4).rows, expected, rtol=1e-7, atol=1e-7)


def test_a_sample_seen_twice_counts_once(outputs: tuple[Tensor, ...]) -> None:
    padded = torch.cat([torch.arange(SAMPLES), torch.tensor([0, 1])])
    once, twice = _table(outputs, 4).collect(), _table(outputs, 4, padded).collect()
    assert asdict(pooled_scores(once)) == pytest.approx(asdict(pooled_scores(twice)))


def test_a_decoder_that_did_not_run_has_no_scores(outputs: tuple[Tensor, ...]) -> None:
    logits, depth, mask, target = outputs
    table = SampleTable(SAMPLES, "cpu")
    table.add(torch.arange(SAMPLES), sample_sums(None, depth, mask, target))
    scores = pooled_scores(table.collect())
    assert scores.mask_bce is None
    assert scores.mask_iou is None
    assert scores.depth_l1 is not None
    table = SampleTable(SAMPLES, "cpu")
    table.add(torch.arange(SAMPLES), sample_sums(logits, None, mask, target))
    scores = pooled_scores(table.collect())
    assert scores.mask_iou is not None
    assert scores.depth_rmse is None
    assert scores.silog is None


def test_the_scores_of_a_sample_are_pooled_scores_of_it_alone(outputs: tuple[Tensor, ...]) -> None:
    logits, depth, mask, target = (tensor[:3].clone() for tensor in outputs)
    logits[0], mask[0] = -1, 0  # neither predicted nor there: an IoU of 1
    logits[1] = -1  # not predicted
    table = SampleTable(SAMPLES, "cpu")
    table.add(torch.tensor([2, 5, 9]), sample_sums(logits, depth, mask, target))
    collected = table.collect()
    found = sample_scores(collected)
    assert found["index"] == [2, 5, 9]
    assert found["mask_iou"][:2] == [1, 0]
    for row, index in enumerate(found["index"]):
        alone = pooled_scores(collected, np.array([index]))
        assert found["mask_iou"][row] == pytest.approx(alone.mask_iou)
        assert found["depth_rmse"][row] == pytest.approx(alone.depth_rmse)
    table = SampleTable(SAMPLES, "cpu")
    table.add(torch.tensor([4, 6, 7]), sample_sums(None, depth, mask, target))
    found = sample_scores(table.collect())
    assert found["mask_iou"] == [None, None, None]
    assert None not in found["depth_rmse"]


def test_ratios_count_pixels_from_the_smallest_valid_depth_on() -> None:
    target = torch.tensor([0.0, 0.049, VALID_DEPTH, 0.051]).view(1, 1, 2, 2)
    sums = sample_sums(None, target * 2, torch.zeros_like(target), target)
    assert dict(zip(SUM_COLUMNS, sums[0].tolist(), strict=True))["valid"] == 2


def test_group_spread_orders_worst_and_best(outputs: tuple[Tensor, ...]) -> None:
    table = _table(outputs, 4).collect()
    group = np.arange(SAMPLES) // 4
    spread = group_spread(table, group, None)
    each = [pooled_scores(table, group == g).mask_iou for g in range(3)]
    assert spread.groups == 3
    assert spread.figures["mask_iou"].worst == min(v for v in each if v is not None)
    assert spread.figures["depth_rmse"].worst >= spread.figures["depth_rmse"].best


def test_interval_equals_that_of_resampled_groups(outputs: tuple[Tensor, ...]) -> None:
    table = _table(outputs, 4).collect()
    group = np.arange(SAMPLES) // 3
    interval = group_spread(table, group, np.array([])).figures["mask_iou"].interval
    assert interval is not None
    low, high = interval
    random = np.random.default_rng(5)
    drawn = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero(group == g) for g in random.integers(4, size=4)])
        drawn.append(pooled_scores(table, rows).mask_iou or 0.0)
    assert (low, high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.01)
    assert low < (pooled_scores(table).mask_iou or 0.0) < high
    # One group gives no interval over groups.
    one = group_spread(table, np.zeros(SAMPLES), np.array([]))
    assert one.figures["depth_rmse"].interval is None
    text = score_table([("", {"network": pooled_scores(table)})], "title", {"bg": one})
    assert "worst" not in text


@pytest.mark.parametrize(
    ("known", "seen", "words"),
    [
        (np.array([5, 6]), 0, "over 3 backgrounds held out in training: worst"),
        (np.array([1, 5]), 1, "over 3 backgrounds partly known from training: worst"),
        (np.array([0, 1, 2, 3]), 3, "over 3 backgrounds known from training: worst"),
        (None, None, "over 3 backgrounds (whether training has seen them is not known): worst"),
    ],
)
def test_an_interval_is_given_only_where_groups_were_held_out(
    outputs: tuple[Tensor, ...], known: np.ndarray | None, seen: int | None, words: str
) -> None:
    table = _table(outputs, 4).collect()
    spread = group_spread(table, np.arange(SAMPLES) // 4, known)
    assert spread.as_dict()["seen"] == spread.seen == seen
    for figure in spread.figures.values():
        assert (figure.interval is not None) == (seen == 0)
    text = score_table([("", {"network": pooled_scores(table)})], "title", {"bg": spread})
    lines = [line for line in text.splitlines() if "worst" in line]
    assert len(lines) == 2
    for line in lines:
        assert words in line
        assert ("with other such backgrounds" in line) == (seen == 0)


def test_metrics_run_on_meta(outputs: tuple[Tensor, ...]) -> None:
    table = SampleTable(SAMPLES, "meta")
    sums = sample_sums(*(tensor.to("meta") for tensor in outputs))
    table.add(torch.arange(SAMPLES, device="meta"), sums)
    running = RunningLoss("meta")
    running.add(torch.zeros((), device="meta"), 4)


def test_running_loss_is_weighted_by_samples() -> None:
    running = RunningLoss("cpu")
    assert np.isnan(running.read("here"))
    running.add(torch.tensor(1.0), 3)
    running.add(torch.tensor(5.0), 1)
    assert running.read("here") == 2.0
    running.reset()
    assert np.isnan(running.read("here"))


def test_running_loss_names_the_first_step_that_is_not_finite() -> None:
    running = RunningLoss("cpu")
    for value in (1.0, 2.0, float("inf"), 1.0, float("-inf"), 1.0):
        running.add(torch.tensor(value), 2)
    with pytest.raises(ModelError, match="epoch 1, step 3: the loss became"):
        running.read("epoch 1")


def test_difference_rule_uses_the_largest_channel() -> None:
    bg = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    fg_bg = bg.clone()
    fg_bg[0, 0, 0, 0] = 160  # 40 levels: not more than 40
    fg_bg[0, 1, 1, 1] = 159
    fg_bg[0, 2, 2, 2] = 255
    found = difference_logits(bg, fg_bg, 4) > 0
    assert found.nonzero()[:, 2:].tolist() == [[1, 1], [2, 2]]
    fg_bg = bg.clone()
    fg_bg[0, :, 0, 0:2] = 0  # half of the first block of four
    fg_bg[0, :, 3, 3] = 0  # a quarter of the last
    assert (difference_logits(bg, fg_bg, 2) > 0)[0, 0].tolist() == [[True, False], [False, False]]


def test_training_means_are_per_background() -> None:
    generator = torch.Generator().manual_seed(2)
    depth = torch.rand(6, 1, 4, 4, generator=generator)
    mask = (depth > 0.5).float()
    means = TrainingMeans(torch.tensor([0, 2, 5, 6]), size=4)
    index = torch.tensor([0, 1, 2, 4])  # no sample of the last background
    for part in index.split(3):
        means.add(part, mask[part], depth[part])
    torch.testing.assert_close(
        means.background_depth(torch.tensor([1, 3, 5])),
        torch.stack([depth[:2].mean(0), depth[[2, 4]].mean(0), depth[index].mean(0)]),
    )
    torch.testing.assert_close(means.overall_depth(index)[2], depth[index].mean(0))
    prior = means.prior_logit(mask).sigmoid()
    torch.testing.assert_close(prior, mask[index].mean().expand_as(mask))
