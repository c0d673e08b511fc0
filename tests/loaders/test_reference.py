"""The reference loader on images that the test draws, and on corrupt files."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.options import LoaderOptions

HEIGHT, WIDTH = 24, 32
GROUPS = (4, 3, 5)
SAMPLES = sum(GROUPS)


def smooth(rng: np.random.Generator, channels: int) -> np.ndarray:
    """uint8 (H, W, channels), blurred noise over the whole range."""
    coarse = rng.integers(0, 256, (4, 5, channels), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((WIDTH, HEIGHT))) for c in range(channels)
    ]
    return np.stack(planes, axis=-1)


def true_mask(sample: int) -> np.ndarray:
    """bool (H, W): a block that differs from sample to sample."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3 : 9 + sample, 5 : 12 + sample] = True
    return mask


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=65, optimize=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three backgrounds with groups of unequal size; not to be changed."""
    folder, rng, sample = tmp_path_factory.mktemp("drawn"), np.random.default_rng(4), 0
    for number, size in enumerate(GROUPS, 1):
        bg = f"bg_{number:03}"
        save(smooth(rng, 3), folder / "bg" / f"{bg}.jpg")
        for position in range(1, size + 1):
            name = Path(bg) / f"img_{position:04}.jpg"
            save(smooth(rng, 3), folder / "fg_bg" / name)
            save(true_mask(sample).astype(np.uint8) * 255, folder / "fg_bg_mask" / name)
            gray = np.repeat(smooth(rng, 1), 3, axis=-1)
            save(gray, folder / "fg_bg_depth" / name)
            sample += 1
    return folder


@pytest.fixture
def dataset(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "data"))


def files(folder: Path, field: str) -> list[Path]:
    return sorted((folder / field).rglob("*.jpg"))


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_batches_are_what_pillow_shows(drawn: Path) -> None:
    with ReferenceLoader(drawn, LoaderOptions(batch_size=5, shuffle=False)) as loader:
        batches = list(loader.epoch(0))
    assert [len(batch.index) for batch in batches] == [5, 5, 2]
    fg_bg, mask, depth, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert index.tolist() == list(range(SAMPLES))
    assert {x.dtype for x in (fg_bg, mask, depth)} == {torch.uint8}
    assert tuple(fg_bg.shape) == (SAMPLES, 3, HEIGHT, WIDTH)
    assert tuple(mask.shape) == tuple(depth.shape) == (SAMPLES, 1, HEIGHT, WIDTH)
    for sample in range(SAMPLES):
        image = decoded(files(drawn, "fg_bg")[sample])
        assert np.array_equal(fg_bg[sample].permute(1, 2, 0).numpy(), image)
        # The ringing of the JPEG is gone: it is the very mask that was drawn.
        assert np.array_equal(mask[sample, 0].numpy(), true_mask(sample))
        gray = decoded(files(drawn, "fg_bg_depth")[sample])
        assert np.array_equal(depth[sample, 0].numpy(), gray[..., 0])


def test_backgrounds_and_their_samples(drawn: Path) -> None:
    loader = ReferenceLoader(drawn, LoaderOptions(batch_size=SAMPLES))
    (batch,) = loader.epoch(0)
    shown = np.repeat(np.arange(3), GROUPS)[batch.index.numpy()]
    images = np.stack([decoded(path) for path in files(drawn, "bg")])[shown]
    gathered = loader.backgrounds.gather(batch.index)
    assert np.array_equal(gathered.permute(0, 2, 3, 1).numpy(), images)


def test_statistics_are_exact(drawn: Path) -> None:
    loader = ReferenceLoader(drawn, LoaderOptions(batch_size=SAMPLES, shuffle=False))
    (batch,) = loader.epoch(0)
    fields = {
        "bg": (loader.backgrounds.gather(batch.index), 255),
        "fg_bg": (batch.fg_bg, 255),
        "mask": (batch.mask, 1),
        "depth": (batch.depth, 255),
    }
    assert set(loader.statistics) == set(fields)
    for name, (images, scale) in fields.items():
        found = loader.statistics[name]
        values = images.to(torch.int64).transpose(0, 1).flatten(1)
        assert found.values == SAMPLES * HEIGHT * WIDTH
        assert found.scale == scale
        assert found.sums == tuple(values.sum(1).tolist())
        assert found.squares == tuple(values.square().sum(1).tolist())
        pixels = values.double().div(scale)
        assert found.mean == pytest.approx(pixels.mean(1).tolist())
        assert found.std == pytest.approx(pixels.std(1, correction=0).tolist())


def test_order_is_seeded_resumable_and_shared_by_ranks(drawn: Path) -> None:
    loader = ReferenceLoader(drawn, LoaderOptions(batch_size=4, seed=1))
    assert len(loader) == 3
    whole = list(loader.epoch(2))
    for again in (
        loader.epoch(2),
        ReferenceLoader(drawn, LoaderOptions(batch_size=4, seed=1)).epoch(2),
    ):
        for a, b in zip(whole, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    resumed = list(loader.epoch(2, start=1))
    assert [b.index.tolist() for b in resumed] == [b.index.tolist() for b in whole[1:]]
    assert list(loader.epoch(2, start=3)) == []
    ranks = [
        ReferenceLoader(drawn, LoaderOptions(batch_size=2, seed=1, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    for together, *parts in zip(whole, *(rank.epoch(2) for rank in ranks), strict=True):
        for x, *ys in zip(together, *parts, strict=True):
            assert torch.equal(x, torch.cat(ys))


def test_some_samples_and_an_empty_batch(drawn: Path) -> None:
    options: dict[str, Any] = {"indices": np.array([7, 2, 3]), "shuffle": False, "world_size": 2}
    first, second = (
        list(ReferenceLoader(drawn, LoaderOptions(batch_size=1, rank=rank, **options)).epoch(0))
        for rank in (0, 1)
    )
    assert [batch.index.tolist() for batch in first] == [[7], []]
    assert [batch.index.tolist() for batch in second] == [[2], [3]]
    assert tuple(first[1].fg_bg.shape) == (0, 3, HEIGHT, WIDTH)
    assert len(ReferenceLoader(drawn, LoaderOptions(batch_size=2, drop_last=True, **options))) == 0


def test_threads_read_the_same_and_end(drawn: Path) -> None:
    before = set(threading.enumerate())
    with ReferenceLoader(drawn, LoaderOptions(batch_size=5, num_workers=3)) as loader:
        for a, b in zip(
            loader.epoch(0),
            ReferenceLoader(drawn, LoaderOptions(batch_size=5)).epoch(0),
            strict=True,
        ):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        next(iter(loader.epoch(1)))
        assert set(threading.enumerate()) != before
    assert set(threading.enumerate()) == before


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cmyk(path: Path) -> None:
    Image.new("CMYK", (WIDTH, HEIGHT)).save(path)


def larger(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 8)).save(path)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.unlink(), "No such file"),
    (lambda path: path.write_bytes(b""), "not an image"),
    (lambda path: path.write_text("no image at all"), "not an image"),
    (truncated, "truncated"),
    (larger, f"found {WIDTH}x{HEIGHT + 8} pixels, expected {WIDTH}x{HEIGHT}"),
    (cmyk, "found mode CMYK, expected RGB or L"),
]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
@pytest.mark.parametrize(
    ("field", "folder"), [("fg_bg", "fg_bg"), ("mask", "fg_bg_mask"), ("depth", "fg_bg_depth")]
)
def test_a_bad_record_is_named(
    dataset: Path, field: str, folder: str, damage: Callable, reason: str, num_workers: int
) -> None:
    path = files(dataset, folder)[6]
    with ReferenceLoader(
        dataset, LoaderOptions(batch_size=4, shuffle=False, num_workers=num_workers)
    ) as loader:
        damage(path)
        batches = loader.epoch(0)
        assert next(batches).index.tolist() == [0, 1, 2, 3]
        with pytest.raises(RecordError, match=reason) as caught:
            next(batches)
        assert (caught.value.index, caught.value.field) == (6, field)
        assert caught.value.where == str(path)
        assert str(path) not in caught.value.reason
        assert caught.value.reason.endswith("; fix or replace the file")
        with pytest.raises(RecordError, match=reason):
            _ = loader.statistics


def test_a_bad_background_is_named_by_its_first_sample(dataset: Path) -> None:
    larger(files(dataset, "bg")[1])
    with pytest.raises(RecordError, match="expected 32x24") as caught:
        ReferenceLoader(dataset, LoaderOptions(batch_size=4))
    assert (caught.value.index, caught.value.field) == (GROUPS[0], "bg")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        ReferenceLoader(tmp_path / "nowhere", LoaderOptions(batch_size=4))
