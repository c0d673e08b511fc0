"""Which samples an evaluation shows: spread evenly over the full batches, or the worst ones."""

from __future__ import annotations

import pytest
import torch

from maskdepth.loaders import Batch, Inputs
from maskdepth.model.training.evaluation import Prediction, _Lowest, _Spread


def shown(chosen: _Spread | _Lowest, sizes: list[int]) -> list[int]:
    """The positions of the examples that are kept of batches of these sizes.

    The background of a sample has its position as gray. Its mask is 10 pixels of 64, of which the
    network finds none in sample 5, and more the farther from it a sample is.
    """
    start = 0
    for size in sizes:
        index = torch.arange(start, start + size)
        gray = index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        mask = (torch.arange(64) < 10).float().view(1, 1, 8, 8).expand(size, 1, 8, 8)
        found = (torch.arange(64) < (index - 5).abs().view(-1, 1)).float().view(size, 1, 8, 8)
        batch = Batch(gray, mask.to(torch.uint8), mask.to(torch.uint8), index)
        prediction = Prediction(20 * found - 10, mask)
        chosen.add(batch, gray, Inputs(gray.float(), gray.float(), mask, mask), prediction, "")
        start += size
    return [int(example.bg[0, 0, 0]) for example in chosen.examples]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([10, 10, 4], [1, 4, 7, 11, 14, 17]),  # middles of six parts of 0..19
        ([12], [0, 2, 4, 6, 8, 10]),
        ([7, 1], [0, 1, 2, 3, 4, 5]),
        ([2], [0]),
    ],
)
def test_examples_are_the_middles_of_equal_parts(sizes: list[int], expected: list[int]) -> None:
    assert shown(_Spread(len(sizes)), sizes) == expected


def test_the_worst_are_the_lowest_scores_first() -> None:
    assert shown(_Lowest(4), [3, 3, 3]) == [5, 4, 6, 3]
    assert shown(_Lowest(20), [3, 1]) == [3, 2, 1, 0]
