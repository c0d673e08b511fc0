"""Libraries that `peers` compares with deliver every sample, shuffled, with Pillow's pixels."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from maskdepth.benchmarks.harness.contender import Epochs, Unavailable
from maskdepth.benchmarks.harness.images import Images, Scale, Truth, check
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.harness.results import LIBRARIES
from maskdepth.benchmarks.peers.grain import open_grain, write_records
from maskdepth.benchmarks.peers.lance import open_lancedb, write_table
from maskdepth.benchmarks.peers.run import _read_truth
from maskdepth.benchmarks.peers.source import Files
from maskdepth.benchmarks.peers.torchcodec import open_torchcodec

ROOT = Path(__file__).parents[2]
LOADING = Loading(repeats=1, batch_size=8, threads=2, device="cpu")


def test_results_record_the_version_of_every_library() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    for requirement in f"{extras['peers']} {extras['peers-streaming']}".split():
        assert re.split("[<>=]", requirement)[0] in LIBRARIES


@pytest.fixture(scope="module")
def files(dataset: Path) -> Files:
    """20 samples of several backgrounds: two batches and a half."""
    return Files(dataset, np.arange(0, 80, 4))


@pytest.fixture(scope="module")
def truth(files: Files) -> Truth:
    return _read_truth(files)


@contextmanager
def opened(library: str, files: Files, folder: Path) -> Iterator[Epochs]:
    """Epochs of a library that stores the samples in its own format."""
    pytest.importorskip(library, reason=f"{library} is not installed (extra `peers`)")
    write, opens = {
        "grain": (write_records, open_grain),
        "lancedb": (write_table, open_lancedb),
    }[library]
    write(files, folder / library)
    with opens(LOADING, folder / library) as epochs:
        yield epochs


def order_of(epochs: Epochs, number: int, looked_at: Callable[[Images], None]) -> list[int]:
    """The samples of an epoch in their order; calls ``looked_at`` with each batch."""
    order: list[int] = []
    for images in epochs(number):
        assert isinstance(images, Images)
        looked_at(images)
        order += images.index.tolist()
    return order


@pytest.mark.parametrize("library", ["grain", "lancedb"])
def test_all_samples_come_once_in_another_order_each_epoch(
    library: str, files: Files, truth: Truth, tmp_path: Path
) -> None:
    batches: list[Images] = []
    with opened(library, files, tmp_path) as epochs:
        orders = [order_of(epochs, number, batches.append) for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == files.indices.tolist()
    assert orders[0] != orders[1] != files.indices.tolist()
    assert [len(batch.index) for batch in batches] == [8, 8, 4] * 2
    for batch in (batches[:3], batches[3:]):
        found = check(batch, files.indices, truth, Scale(), 0.0, 0.0)
        assert found["largest_difference_levels"] == 0


def test_a_library_of_another_build_of_torch_is_named(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torchcodec raises where torch has no CUDA; its own message is a path of the machine."""
    (tmp_path / "torchcodec.py").write_text(
        "raise OSError('Could not load this library: /some/path') from OSError('libx.so: missing')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchcodec", raising=False)
    opens = partial(open_torchcodec, LOADING, files)
    with (
        pytest.raises(Unavailable, match=r"build of torch does not have: libx.so: missing$"),
        opens(),
    ):
        pass
