"""How ranks join, also where the store has what earlier ones have left there; BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

from maskdepth.model.distributed import SharedBatchNorm, agreed_store
from maskdepth.model.errors import ModelError


def test_ranks_agree_on_a_part_of_the_store_that_earlier_ones_did_not_use() -> None:
    shared = HashStore()
    for start in range(3):
        with ThreadPoolExecutor(3) as pool:
            stores = list(pool.map(lambda rank: agreed_store(shared, rank, 3), (2, 1, 0)))
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(start))
        assert [store.get("address") for store in stores] == [str(start).encode()] * 3


def test_a_rank_that_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdepth.model.distributed.JOIN_S", 0.1)
    shared = HashStore()
    with pytest.raises(ModelError, match="rank 0: rank 1 has not joined in 0 s"):
        agreed_store(shared, 0, 2)
    with pytest.raises(ModelError, match="rank 1: rank 0 has not joined"):
        agreed_store(shared, 1, 2)  # the first rank has ended


@pytest.fixture
def one_rank() -> Iterator[None]:
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_shared_batchnorm_is_torchs_of_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 3 + 2 * torch.randn(2, 4, 3, 5, generator=generator)
    plain, shared = nn.BatchNorm2d(4, momentum=0.3), SharedBatchNorm(4, momentum=0.3)
    for norm in (plain, shared):
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1.0, 5))
            norm.bias.copy_(torch.arange(4.0))
    results = []
    for norm in (plain, shared):
        inputs = images.clone().requires_grad_()
        for _ in range(2):  # running statistics move from other ones than the first
            output = norm(inputs)
        (output * torch.arange(5.0)).square().sum().backward()
        results.append((output, inputs.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(shared.eval()(images), plain.eval()(images))
