"""What is sent to workers with every task is pickled and unpickled once."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest

from maskdepth.convert import workers
from maskdepth.convert.workers import SentOnce


@dataclass(frozen=True, kw_only=True)
class Numbers(SentOnce):
    values: tuple[Any, ...]
    name: str = ""


class Counted:
    """Counts how often it is pickled."""

    pickled = 0

    def __reduce__(self) -> tuple[type, tuple]:
        type(self).pickled += 1
        return Counted, ()


@pytest.fixture(autouse=True)
def nothing_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_received", {})


def test_it_is_pickled_and_unpickled_once() -> None:
    sent = Numbers(values=(Counted(),))
    tasks = [pickle.dumps((sent, number)) for number in range(5)]
    assert Counted.pickled == 1
    received = [pickle.loads(task) for task in tasks]
    assert [number for _, number in received] == [0, 1, 2, 3, 4]
    assert len({id(one) for one, _ in received}) == 1


def test_copies_with_other_values_are_others() -> None:
    first = Numbers(values=(1, 2), name="first")
    pickle.dumps(first)
    others = [first, replace(first, values=(3,)), replace(first, name="x")]
    assert [pickle.loads(pickle.dumps(one)) for one in others] == others


def test_few_are_kept() -> None:
    for number in range(10):
        assert pickle.loads(pickle.dumps(Numbers(values=(number,)))).values == (number,)
    assert len(workers._received) == workers._KEPT
