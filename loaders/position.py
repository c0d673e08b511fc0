"""Where a loader is in its order: what `Loader.state_dict` saves and `load_state_dict` reads."""

from __future__ import annotations

import zlib
from typing import Self

from maskdepth.convert.errors import DataError
from maskdepth.convert.schema import Count, Positive, Schema
from maskdepth.loaders.order import Order
from maskdepth.loaders.weights import Weights

_ORDER = ("samples", "seed", "shuffle", "visits")
_STREAMED = ("streamed", "batch_size", "world_size", "drop_last")


class Position(Schema):
    """A place in the order of all epochs.

    The order depends on ``samples``, ``seed``, ``shuffle`` and the samples to visit alone, so a
    loader that agrees in these can continue, whatever its engine, batch size and number of ranks.
    If it is ``streamed``, these and ``drop_last`` must be equal too.
    """

    epoch: Count
    seen: Count
    """Samples of the epoch that all ranks together have taken."""
    samples: Positive
    """Samples of an epoch."""
    seed: Count
    shuffle: bool
    visits: Count
    """CRC-32 of the samples to visit, int64, 0 for all; with weights also of these, float64."""
    streamed: bool
    """Whether the order is that of "dali-stream"."""
    batch_size: Positive
    world_size: Positive
    drop_last: bool

    @classmethod
    def first(cls, order: Order, *, streamed: bool) -> Self:
        """The place before the first sample."""
        options = order.options
        visits = 0 if options.indices is None else zlib.crc32(options.indices.tobytes())
        if isinstance(options.weights, Weights):
            visits = zlib.crc32(options.weights.values.tobytes(), visits)
        return cls(
            epoch=0, seen=0, samples=order.samples, seed=options.seed, shuffle=options.shuffle,
            visits=visits, streamed=streamed, batch_size=options.batch_size,
            world_size=options.world_size, drop_last=options.drop_last,
        )  # fmt: skip

    def moved(self, state: object) -> Self:
        """The place that was saved, in this order.

        Raises DataError if it is damaged, or of another order.
        """
        try:
            found = self.from_json(state)
        except ValueError as error:
            raise DataError(f"state of a loader: {error}") from None
        self._require_same(
            found, _ORDER, "build the loader with the shards, split, weights, seed and shuffle"
        )
        if found.seen and (found.streamed or self.streamed):
            self._require_same(
                found, _STREAMED, "within an epoch, dali-stream continues dali-stream alone, with "
                "the batch size and number of ranks",
            )  # fmt: skip
        if found.seen > found.samples:
            raise DataError(
                f"state of a loader: found {found.seen} samples seen of {found.samples}"
            )
        return self.changed(epoch=found.epoch, seen=found.seen)

    def _require_same(self, found: Self, names: tuple[str, ...], fix: str) -> None:
        for name in names:
            value, expected = getattr(found, name), getattr(self, name)
            if value != expected:
                what = f"{name} {value}, expected {expected}"
                if name == "visits":
                    what = "other samples to visit"
                raise DataError(
                    f"state of a loader: found {what}; it is of another order: {fix} with which "
                    "it was saved"
                )
