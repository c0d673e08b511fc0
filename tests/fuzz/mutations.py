"""Changes nested values and bytes at random, as targets give them to readers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.5, 1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "a\nb", "a\0", "\udcff", "$\\frac{",
    "x" * 10_000, [], [0], [[]], {}, {"": 0}, {"__class__": "x"}, ["x"] * 1000, [5, 8, 12],
)  # fmt: skip


class Unchanged(random.Random):
    """With it nothing is mutated: a reader that refuses the result refuses everything."""


def mutated(rng: random.Random, value: Any) -> Any:
    """A copy of nested tables and lists in which one to three entries are changed."""
    value = copy.deepcopy(value)
    if isinstance(rng, Unchanged):
        return value
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if places:
            _change(rng, *rng.choice(places))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each table or list with each of its keys or numbers."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(entries):
        yield value, key
        if isinstance(entry, dict | list):
            yield from _places(entry)


def _change(rng: random.Random, table: Any, key: Any) -> None:
    found, kind = table[key], rng.randrange(8)
    if kind == 0:
        del table[key]
    elif kind == 1 and isinstance(table, dict):
        table[rng.choice(("extra", "", "../x", str(key) + "x"))] = found
    elif kind == 1:
        table.insert(key, copy.deepcopy(found))
    elif kind == 2 and type(found) in (int, float):
        table[key] = rng.choice((found + 1, -found, found * 2**40, float(found), str(found)))
    elif kind == 3 and isinstance(found, list):
        table[key] = rng.choice((found[::-1], found[:-1], found * 3, {"0": found}))
    elif kind == 4 and isinstance(table, dict):
        table[key], other = table[rng.choice(list(table))], found
        table[rng.choice(list(table))] = other
    elif kind == 5:
        deep: Any = found
        for _ in range(rng.choice((1, 3, 90, 150))):
            deep = rng.choice(([deep], {"a": deep}))
        table[key] = deep
    else:
        table[key] = copy.deepcopy(rng.choice(HOSTILE))


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a flipped bit, a cut end, a hole, a repeated or a random piece, or others."""
    if isinstance(rng, Unchanged):
        return data
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(8)
    if kind < 3:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + data[end:]
    if kind == 5:
        return data[:end] + data[at:]
    if kind == 6:
        return data[:at] + rng.randbytes(rng.randrange(1, 30)) + data[at:]
    return rng.choice((b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", data * 2))


def same(given: Any, read: Any) -> bool:
    """Whether plain values are equal; a table that was read may have more keys."""
    if isinstance(given, Mapping) and isinstance(read, Mapping):
        return all(key in read and same(given[key], read[key]) for key in given)
    if isinstance(given, list | tuple) and isinstance(read, list | tuple):
        return len(given) == len(read) and all(map(same, given, read))
    if isinstance(given, torch.Tensor) and isinstance(read, torch.Tensor):
        given, read = given.nan_to_num(), read.nan_to_num()
        return torch.equal(given, read)
    if given != given:  # NaN
        return bool(read != read)
    return isinstance(given, bool) == isinstance(read, bool) and bool(given == read)


def overwritten(rng: random.Random, data: bytes, first: int) -> bytes:
    """Bytes of which up to eight, among the first so many, are replaced."""
    if isinstance(rng, Unchanged):
        return data
    at = rng.randrange(min(len(data), first))
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at + 8 :]


def to_text(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")
