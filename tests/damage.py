"""Corrupts records and manifests of shard folders in place, records also until a block ends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdepth.convert.shards import Shards

Damage = Callable[[bytes], bytes]


class Records:
    """The records of a shard folder in one format, or in all.

    Loaders that have the folder open see every change, because they map the files.
    """

    def __init__(self, shards: Path, form: str | None = None) -> None:
        forms = [form] if form else Shards(shards).manifest.formats
        self._forms = [Shards(shards, form) for form in forms]

    def stored(self, index: int, name: str) -> bytes:
        """Stored bytes of one field in the first format."""
        return self._forms[0].stored(index, name).tobytes()

    def spoil(self, index: int, name: str, damage: Damage) -> None:
        """Corrupt one field for good."""
        for opened in self._forms:
            _write(opened, index, name, damage(opened.stored(index, name).tobytes()))

    @contextmanager
    def spoilt(self, index: int, name: str, damage: Damage) -> Iterator[None]:
        """Corrupt one field until the end of the block."""
        intact = [opened.stored(index, name).tobytes() for opened in self._forms]
        self.spoil(index, name, damage)
        try:
            yield
        finally:
            for opened, stored in zip(self._forms, intact, strict=True):
                _write(opened, index, name, stored)


def _write(opened: Shards, index: int, name: str, stored: bytes) -> None:
    """Replace the bytes of one field by as many others."""
    assert len(stored) == opened.records[index][name]["size"] > 0
    with open(opened.where(index, name), "r+b") as file:
        file.seek(int(opened.records[index][name]["offset"]))
        file.write(stored)


def zeroed(stored: bytes) -> bytes:
    """All bytes 0."""
    return bytes(len(stored))


def zeroed_from(share: float) -> Damage:
    """Zeros after a share of the record, as an interrupted write leaves them."""

    def damage(stored: bytes) -> bytes:
        kept = int(len(stored) * share)
        return stored[:kept] + bytes(len(stored) - kept)

    return damage


def zeroed_until(count: int) -> Damage:
    """Zeros in place of the first bytes, which hold the header."""

    def damage(stored: bytes) -> bytes:
        count_ = min(count, len(stored))
        return bytes(count_) + stored[count_:]

    return damage


def shifted(by: int) -> Damage:
    """Lose bytes at the front and move the rest up."""

    def damage(stored: bytes) -> bytes:
        return (stored[by:] + bytes(by))[: len(stored)]

    return damage


def garbage(seed: int, share: float, count: int) -> Damage:
    """Random bytes from a share of the record on; after the first tenth, in the scan of a JPEG."""

    def damage(stored: bytes) -> bytes:
        at = int(len(stored) * share)
        noise = np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()
        return (stored[:at] + noise + stored[at + count :])[: len(stored)]

    return damage


def bit_flipped(seed: int) -> Damage:
    """Flip one bit of the record."""

    def damage(stored: bytes) -> bytes:
        at = int(np.random.default_rng(seed).integers(8 * len(stored)))
        damaged = bytearray(stored)
        damaged[at // 8] ^= 1 << at % 8
        return bytes(damaged)

    return damage


def replaced_by(other: bytes) -> Damage:
    """The bytes of another record, padded with zeros: valid, with other pixels."""

    def damage(stored: bytes) -> bytes:
        return (other + bytes(len(stored)))[: len(stored)]

    return damage


def sign(shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and hash it as docs/format.md says."""
    path = shards / "manifest.json"
    value = json.loads(path.read_text())
    del value["sha256"]
    change(value)
    path.write_bytes(signed_text(value))


def signed_text(value: dict[str, Any]) -> bytes:
    """A manifest's bytes, as docs/format.md describes them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=1) + "\n").encode()


def spoil_removing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Raise ``error`` where the folder of this name is to go, when it is empty already."""
    rmdir = os.rmdir

    def fail(path: Any, **options: Any) -> None:
        if Path(path).name == name:
            raise error
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", fail)


def spoil_first_then(dataset: Path, folder: Path) -> tuple[Path, Path, bytes]:
    """A copy of the data set whose last sample is corrupt, so that a run stops with work done."""
    copy = Path(shutil.copytree(dataset, folder / "data"))
    last = sorted((copy / "fg_bg" / "bg_005").iterdir())[-1]
    good = last.read_bytes()
    last.write_text("not an image")
    return copy, last, good
