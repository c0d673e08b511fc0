"""Where a loader is in its order: what `Loader.state_dict` saves and `load_state_dict` reads."""

from __future__ import annotations

import zlib
from typing import Self

from convert.errors import DataError
from convert.schema import Count, Positive, Schema
from loaders.order import Order


class Position(Schema):
    """A place in the order of all epochs, for any number of ranks and any batch size.

    The order depends on ``samples``, ``seed``, ``shuffle`` and the samples to visit alone, so a
    loader that agrees in these can continue, whatever its engine.
    """

    epoch: Count
    seen: Count
    """Samples of the epoch that all ranks together have taken."""
    samples: Positive
    """Samples of an epoch."""
    seed: Count
    shuffle: bool
    visits: Count
    """CRC-32 of the samples to visit, int64; 0 for all."""
    batch_size: Positive
    world_size: Positive

    @classmethod
    def of(cls, order: Order, epoch: int, seen: int) -> Self:
        """The place after so many samples of an epoch."""
        options = order.options
        visits = 0 if options.indices is None else zlib.crc32(options.indices.tobytes())
        return cls(
            epoch=epoch, seen=seen, samples=order.samples, seed=options.seed,
            shuffle=options.shuffle, visits=visits, batch_size=options.batch_size,
            world_size=options.world_size,
        )  # fmt: skip

    @classmethod
    def read(cls, state: object, order: Order) -> Self:
        """A saved place. Raises DataError if it is damaged, or of another order."""
        try:
            found = cls.from_json(state)
        except ValueError as error:
            raise DataError(f"state of a loader: {error}") from None
        expected = cls.of(order, found.epoch, found.seen)
        for name in ("samples", "seed", "shuffle", "visits"):
            if getattr(found, name) != getattr(expected, name):
                what = (
                    "other samples to visit"
                    if name == "visits"
                    else (f"{name} {getattr(found, name)}, expected {getattr(expected, name)}")
                )
                raise DataError(
                    f"state of a loader: found {what}; it is of another order: build the loader "
                    "with the shards, split, seed and shuffle with which it was saved"
                )
        if found.seen > found.samples:
            raise DataError(
                f"state of a loader: found {found.seen} samples seen of {found.samples}"
            )
        return found
