"""Samples stored as differences from a base are given back exactly, whatever is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.layout import Layout
from maskdepth.loaders.differences import (
    Differences,
    Reserve,
    WordLayout,
    _Ranges,
    encode,
    majority,
)

CPU = torch.device("cpu")


def word_layout(height: int, width: int) -> WordLayout:
    starts = np.array([0, 1])
    return WordLayout(Layout(height=height, width=width, group_starts=starts, samples_per_fg=None))


def draw_sample(rng: np.random.Generator, like: list[np.ndarray], share: float) -> list[np.ndarray]:
    """Fields of which a share of the pixels differs from those of others."""
    fields = []
    for pixels in like:
        new = rng.integers(0, 256, pixels.shape, np.uint8)
        fields.append(np.where(rng.random(pixels.shape) < share, new, pixels))
    return fields


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    shares=st.lists(st.sampled_from([0.0, 0.02, 0.5, 1.0]), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=60)
def test_any_samples_are_given_back(
    height: int, width: int, shares: list[float], data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    words, n_bg = word_layout(height, width), 2
    shapes = ((height, width, 3), (height, width), (height, width))
    likes = [[rng.integers(0, 256, shape, np.uint8) for shape in shapes] for _ in range(n_bg)]
    bases = np.stack([words.join(like) for like in likes])
    numbers = rng.integers(0, n_bg, len(shares))
    samples = [
        draw_sample(rng, likes[number], share)
        for number, share in zip(numbers, shares, strict=True)
    ]
    encoded = encode([words.join(one) for one in samples], list(bases[numbers]), words)
    # Too small a reserve, an exact one, and one that is too large.
    factor = data.draw(st.sampled_from([0, 1, 3]))
    runs, values = (factor * count for count in encoded.counts.sum(axis=(0, 1)).tolist())
    stored = Differences(words, bases, Reserve(runs, values), CPU)
    half = len(shares) // 2
    for first, end in ((0, half), (half, len(shares))):
        own = list(bases[numbers[first:end]])
        stored.append(encode([words.join(one) for one in samples[first:end]], own, words))
    stored.finish()

    rows = np.array(data.draw(st.lists(st.integers(0, len(shares) - 1), max_size=9)), np.int64)
    out = torch.full((len(rows) * words.words,), 77, dtype=words.torch_dtype)
    stored.gather(rows, torch.from_numpy(rows), torch.from_numpy(numbers[rows]), out)
    for field, images in enumerate(words.images(out, len(rows))):
        assert images.shape == (len(rows), 1 if field else 3, height, width)
        for row, image in zip(rows.tolist(), images, strict=True):
            expected = samples[row][field].reshape(height, width, -1)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    if factor == 1:
        predicted = Differences.predict_bytes(words, n_bg, len(shares), Reserve(runs, values))
        assert stored.stored_bytes == predicted


@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 510, 511, 1000])
@pytest.mark.parametrize("differs", [False, True])
def test_runs_longer_than_a_byte(length: int, differs: bool) -> None:
    words = word_layout(8, 1000)
    base = np.zeros(words.words, np.int64)
    sample = base.copy()
    sample[:length] = 1
    if not differs:
        sample = 1 - sample
    encoded = encode([sample], [base], words)
    assert len(encoded.values) == sample.sum()
    # The runs of each field cover it exactly.
    ends = np.cumsum(encoded.counts[0, :, 0])
    covered = [int(part.sum(dtype=np.int64)) for part in np.split(encoded.runs, ends[:-1])]
    assert covered == list(words.sizes)


def test_base_is_what_most_samples_have() -> None:
    samples = np.array([[1, 5, 9], [1, 6, 8], [2, 6, 7]])
    assert majority(samples).tolist() == [1, 6, 9]
    assert majority(samples[2:]).tolist() == [2, 6, 7]


def test_a_word_divides_every_image() -> None:
    sizes = {(224, 224): np.int64, (2, 6): np.int32, (2, 5): np.int16, (3, 5): np.uint8}
    for (height, width), dtype in sizes.items():
        words = word_layout(height, width)
        assert words.dtype == dtype
        assert words.words * words.dtype.itemsize == 5 * height * width
        assert words.torch_dtype.itemsize == words.dtype.itemsize


def test_ranges_beyond_32_bits() -> None:
    starts, counts = torch.tensor([2**33, 7, 2**40]), torch.tensor([2, 0, 3])
    expected = [2**33, 2**33 + 1, 2**40, 2**40 + 1, 2**40 + 2]
    assert _Ranges(CPU)(starts, counts, 5).tolist() == expected


@given(probed=st.integers(1, 60), more=st.integers(0, 1000), seed=st.integers(0, 9))
def test_estimate_is_at_least_the_mean_and_exact_for_all(probed: int, more: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 100, (probed, 2))
    found: Any = Reserve.estimate(counts, probed + more)
    assert np.all(np.array(found) >= np.floor(counts.mean(axis=0) * (probed + more)))
    if not more:
        assert list(found) == counts.sum(axis=0).tolist()


def test_a_batch_reads_nothing_from_the_device() -> None:
    """On torch's `meta` device tensors have no values: what would wait for a GPU fails there."""
    words, meta = word_layout(8, 8), torch.device("meta")
    base = np.zeros(words.words, np.int64)
    encoded = encode([base + 1, base], [base, base], words)
    stored = Differences(words, base[None], Reserve(100, 100), meta)
    stored.append(encoded)
    stored.finish()
    rows = np.array([1, 0, 0])
    on_device, numbers = torch.from_numpy(rows).to(meta), torch.zeros(3, dtype=torch.int64).to(meta)
    out = torch.empty(3 * words.words, dtype=torch.int64, device=meta)
    stored.gather(rows, on_device, numbers, out)
    assert [images.device for images in words.images(out, 3)] == [meta] * 3
