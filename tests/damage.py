"""Damage to records of a shard folder, in place and undone again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from convert.shards import Shards

Damage = Callable[[bytes], bytes]


class Records:
    """The records of a shard folder in all its formats, to be damaged.

    Loaders that have the folder open see the damage, as they map the files.
    """

    def __init__(self, shards: Path) -> None:
        self._forms = [Shards(shards, form) for form in Shards(shards).manifest.formats]

    def stored(self, index: int, name: str) -> bytes:
        """Stored bytes of one field."""
        return self._forms[0].stored(index, name).tobytes()

    def write(self, index: int, name: str, stored: bytes) -> None:
        """Put other bytes of the same number in the place of one field."""
        assert len(stored) == len(self.stored(index, name)) > 0
        for opened in self._forms:
            with open(opened.where(index, name), "r+b") as file:
                file.seek(int(opened.records[index][name]["offset"]))
                file.write(stored)

    def spoil(self, index: int, name: str, damage: Damage) -> None:
        """Damage one field for good."""
        self.write(index, name, damage(self.stored(index, name)))

    @contextmanager
    def spoilt(self, index: int, name: str, damage: Damage) -> Iterator[None]:
        """Damage one field for a while."""
        stored = self.stored(index, name)
        self.write(index, name, damage(stored))
        try:
            yield
        finally:
            self.write(index, name, stored)


def zeroed(stored: bytes) -> bytes:
    """All bytes 0."""
    return bytes(len(stored))


def zeroed_from(share: float) -> Damage:
    """Zeros behind a part of the record: what a write cut short leaves."""

    def damage(stored: bytes) -> bytes:
        kept = int(len(stored) * share)
        return stored[:kept] + bytes(len(stored) - kept)

    return damage


def zeroed_until(count: int) -> Damage:
    """The first bytes 0: the header cut off."""

    def damage(stored: bytes) -> bytes:
        count_ = min(count, len(stored))
        return bytes(count_) + stored[count_:]

    return damage


def shifted(by: int) -> Damage:
    """Bytes lost at the front, the rest moved up."""

    def damage(stored: bytes) -> bytes:
        return (stored[by:] + bytes(by))[: len(stored)]

    return damage


def garbage(seed: int, share: float, count: int) -> Damage:
    """Random bytes from a part of the record on, in the scan of a JPEG where that is behind
    the first tenth."""

    def damage(stored: bytes) -> bytes:
        at = int(len(stored) * share)
        noise = np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()
        return (stored[:at] + noise + stored[at + count :])[: len(stored)]

    return damage


def bit_flipped(seed: int) -> Damage:
    """One bit of the record is the other."""

    def damage(stored: bytes) -> bytes:
        at = int(np.random.default_rng(seed).integers(8 * len(stored)))
        damaged = bytearray(stored)
        damaged[at // 8] ^= 1 << at % 8
        return bytes(damaged)

    return damage


def replaced_by(other: bytes) -> Damage:
    """The bytes of another record, filled up with zeros: decodes, to other pixels."""

    def damage(stored: bytes) -> bytes:
        return (other + bytes(len(stored)))[: len(stored)]

    return damage
