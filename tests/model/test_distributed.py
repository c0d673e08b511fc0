"""How ranks join, also where the store has what earlier ones have left there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from maskdepth.model.distributed import agreed_store
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
