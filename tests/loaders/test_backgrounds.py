"""The background of a sample is found by arithmetic, whatever the size of the groups."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import DataError
from maskdepth.convert.layout import Layout
from maskdepth.loaders.backgrounds import Backgrounds


def layout_of(sizes: list[int], height: int = 6, width: int = 4) -> Layout:
    starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    return Layout(height=height, width=width, group_starts=starts, samples_per_fg=None)


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 6, 4, 3), dtype=np.uint8)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
@settings(max_examples=80, deadline=None)
def test_gather_is_the_background_of_each_sample(sizes: list[int], data: st.DataObject) -> None:
    layout, array = layout_of(sizes), random_images(len(sizes))
    backgrounds = Backgrounds.from_numpy(array, layout)
    index = data.draw(st.lists(st.integers(0, layout.samples - 1), max_size=20))
    shown = [b for b, size in enumerate(sizes) for _ in range(size)]
    expected = array[[shown[i] for i in index]].reshape(-1, 6, 4, 3).transpose(0, 3, 1, 2)
    found = backgrounds.gather(torch.tensor(index, dtype=torch.int64))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)


def test_both_memory_layouts_mean_the_same() -> None:
    array, layout = random_images(3), layout_of([2, 2, 2])
    images = torch.from_numpy(array).permute(0, 3, 1, 2)
    for given_images in (images, images.contiguous()):
        backgrounds = Backgrounds(given_images, layout)
        assert torch.equal(backgrounds.images, images)
        assert torch.equal(backgrounds.images[2], images[2])
        gathered = backgrounds.gather(torch.tensor([5, 0]))
        assert torch.equal(gathered, images[[2, 0]])
        assert gathered.is_contiguous(memory_format=torch.channels_last)


def test_looks_like_a_tensor_of_images() -> None:
    backgrounds = Backgrounds.from_numpy(random_images(3), layout_of([2, 5, 2]))
    assert tuple(backgrounds.images.shape) == (3, 3, 6, 4)
    assert backgrounds.images.dtype == torch.uint8
    assert backgrounds.device == torch.device("cpu")
    assert len(backgrounds.images) == 3
    assert backgrounds.to("cpu") is backgrounds


def test_the_file_is_not_kept_open_or_changed(tmp_path) -> None:
    path = tmp_path / "backgrounds.npy"
    np.save(path, random_images(2))
    mapped = np.load(path, mmap_mode="r")
    backgrounds = Backgrounds.from_numpy(mapped, layout_of([1, 1]))
    backgrounds.images.zero_()
    assert np.array_equal(np.load(path), random_images(2))


@pytest.mark.parametrize("sizes", [[2, 2, 2], [1, 2, 3]])
def test_gathers_on_the_device_of_the_images(sizes: list[int]) -> None:
    backgrounds = Backgrounds.from_numpy(random_images(3), layout_of(sizes)).to("meta")
    assert backgrounds.device.type == "meta"
    gathered = backgrounds.gather(torch.zeros(5, dtype=torch.int64, device="meta"))
    assert gathered.device.type == "meta"
    assert tuple(gathered.shape) == (5, 3, 6, 4)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 6, 4),
        torch.zeros(3, 3, 6, 4, dtype=torch.uint8),
        torch.zeros(2, 3, 4, 6, dtype=torch.uint8),
        torch.zeros(2, 6, 4, 3, dtype=torch.uint8),
    ],
)
def test_other_images_than_the_layouts_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"backgrounds: found .* expected torch.uint8 of shape"):
        Backgrounds(images, layout_of([2, 2]))


def test_what_is_kept_is_not_overwritten_and_memory_is_used_again() -> None:
    backgrounds = Backgrounds.from_numpy(random_images(3), layout_of([2, 2, 2]))
    first = backgrounds.gather(torch.tensor([0, 2, 4]))
    kept, copy = first, first.clone()
    assert backgrounds.gather(torch.tensor([5, 5, 5])).data_ptr() != kept.data_ptr()
    assert torch.equal(kept, copy)
    address = kept.data_ptr()
    del kept, first
    assert backgrounds.gather(torch.tensor([1, 3])).data_ptr() == address


@pytest.mark.parametrize("index", [-2, 6])
def test_a_sample_of_no_background_is_an_error(index: int) -> None:
    backgrounds = Backgrounds.from_numpy(random_images(3), layout_of([2, 2, 2]))
    with pytest.raises(IndexError, match="backgrounds: found numbers"):
        backgrounds.gather(torch.tensor([0, index]))
