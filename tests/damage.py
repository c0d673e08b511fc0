"""Damage to records of a shard folder, in place and undone again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from convert.shards import Shards


def spoil(shards: Path, index: int, name: str, damage: Callable[[bytes], bytes]) -> None:
    """Replace one field of a sample by other bytes of the same number, in every format."""
    for form in Shards(shards).manifest.formats:
        opened = Shards(shards, form)
        stored = opened.stored(index, name).tobytes()
        damaged = damage(stored)
        assert len(damaged) == len(stored) > 0
        with open(opened.where(index, name), "r+b") as file:
            file.seek(int(opened.records[index][name]["offset"]))
            file.write(damaged)


@contextmanager
def spoilt(shards: Path, index: int, name: str, damage: Callable[[bytes], bytes]) -> Iterator[None]:
    """`spoil` for a while. Loaders that are open see it, as they map the files."""
    kept: list[bytes] = []

    def keep(stored: bytes) -> bytes:
        kept.append(stored)
        return damage(stored)

    spoil(shards, index, name, keep)
    try:
        yield
    finally:
        originals = iter(kept)
        spoil(shards, index, name, lambda _: next(originals))


def zeroed(stored: bytes) -> bytes:
    """All bytes 0."""
    return bytes(len(stored))


def zeroed_from(share: float) -> Callable[[bytes], bytes]:
    """Zeros behind a part of the record: what a write cut short leaves."""

    def damage(stored: bytes) -> bytes:
        kept = int(len(stored) * share)
        return stored[:kept] + bytes(len(stored) - kept)

    return damage


def zeroed_until(count: int) -> Callable[[bytes], bytes]:
    """The first bytes 0: the header cut off."""

    def damage(stored: bytes) -> bytes:
        count_ = min(count, len(stored))
        return bytes(count_) + stored[count_:]

    return damage


def shifted(by: int) -> Callable[[bytes], bytes]:
    """Bytes lost at the front, the rest moved up."""

    def damage(stored: bytes) -> bytes:
        return (stored[by:] + bytes(by))[: len(stored)]

    return damage


def garbage(seed: int, share: float, count: int) -> Callable[[bytes], bytes]:
    """Random bytes from a part of the record on, in the scan of a JPEG where that is behind
    the first tenth."""

    def damage(stored: bytes) -> bytes:
        at = int(len(stored) * share)
        noise = np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()
        return (stored[:at] + noise + stored[at + count :])[: len(stored)]

    return damage


def bit_flipped(seed: int) -> Callable[[bytes], bytes]:
    """One bit of the record is the other."""

    def damage(stored: bytes) -> bytes:
        at = int(np.random.default_rng(seed).integers(8 * len(stored)))
        damaged = bytearray(stored)
        damaged[at // 8] ^= 1 << at % 8
        return bytes(damaged)

    return damage


def replaced_by(other: bytes) -> Callable[[bytes], bytes]:
    """The bytes of another record, filled up with zeros: decodes, to other pixels."""

    def damage(stored: bytes) -> bytes:
        return (other + bytes(len(stored)))[: len(stored)]

    return damage
