"""How the benchmarks of loading load: the same for everybody who takes part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Loading:
    """repeats: rounds that are timed. threads: of a loader, or its worker processes.

    batch_size: samples of a batch. device: of torch, where batches shall be.
    """

    repeats: int
    batch_size: int
    threads: int
    device: str

    @property
    def options(self) -> dict[str, Any]:
        """What whoever opens a loader must be told."""
        return {"batch_size": self.batch_size, "threads": self.threads, "device": self.device}

    def arguments(self, **more: Any) -> dict[str, Any]:
        """For the result: what was run, and with what."""
        return {**more, **asdict(self)}
