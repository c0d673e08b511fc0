"""Copies past the caches."""

from __future__ import annotations

import numpy as np
import pytest

from maskdepth.convert.jpeg.streaming import stream_copy


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 191, 4096 + 31])
def test_copies_every_byte_and_no_other(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size + 64).astype(np.uint8)
    for target_at in range(0, 64, 7):
        for source_at in (0, 1, 33):
            found = np.full(size + 192, 7, np.uint8)
            stream_copy(
                found[64 + target_at : 64 + target_at + size], source[source_at : source_at + size]
            )
            expected = np.full_like(found, 7)
            expected[64 + target_at : 64 + target_at + size] = source[source_at : source_at + size]
            assert (found == expected).all()
