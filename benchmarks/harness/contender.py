"""A way to load the data, in a process of its own: opened, checked, and timed when asked.

A process each, because engines change what others rely on: stock FFCV alters numba's types and
sets torch's threads, and DALI, OpenMP and fork do not always agree.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.images import Images, Scale, Truth, check
from benchmarks.harness.timing import Repeat, interleave, time_once

Epochs = Callable[[int], Iterable[Images | int]]
"""Number of an epoch -> its batches; an int is a batch that only counts."""

_PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to load.

    opens: context manager that yields `Epochs`; called with ``options``, and with ``store`` if
        there is a ``convert``.
    convert: writes the files that it reads into ``store``, unless they are there; not timed with
        the loading.
    expected: int64, the samples of an epoch.
    scale, levels, mask_share: see `images.check`; scale None: delivers no images.
    device: where the images shall be; those that come on the CPU are copied, as a user would.
    """

    name: str
    opens: Callable[..., AbstractContextManager[Epochs]]
    options: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[Path], None] | None = None
    store: Path | None = None
    expected: np.ndarray
    scale: Scale | None = None
    levels: float = 0.0
    mask_share: float = 0.0
    threads: int = 1
    device: str = "cpu"


class Unavailable(Exception):
    """A contender that cannot run here, and why."""


def _serve(pipe: Connection, contender: Contender) -> None:
    """The process of a contender: answer requests until the pipe is closed."""
    os.dup2(2, 1)  # libraries that print must not disturb the results on standard output
    try:
        with ExitStack() as stack:
            torch.set_num_threads(contender.threads)
            facts = _convert(contender)
            where = {} if contender.store is None else {"store": contender.store}
            opened = stack.enter_context(contender.opens(**contender.options, **where))
            epochs = partial(_delivered, opened, torch.device(contender.device))
            pipe.send((True, facts))
            _answer(pipe, contender, epochs)
    except EOFError:
        return  # the parent is done with this contender
    except BaseException as error:
        traceback.print_exc()
        # The last line: a worker's error carries its whole traceback.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        pipe.send(
            (False, lines[-1] if ":" in lines[-1] else f"{type(error).__name__}: {lines[-1]}")
        )


def _answer(pipe: Connection, contender: Contender, epochs: Epochs) -> None:
    number = 0
    while True:
        request, truth = pipe.recv()
        if request == "check":
            answer: Any = _check(contender, epochs(number), truth)
        else:
            answer = time_once(partial(_walk_epoch, epochs, number), device=contender.device)
        number += 1
        pipe.send((True, answer))


def _delivered(epochs: Epochs, device: torch.device, number: int) -> Iterator[Images | int]:
    """The batches of an epoch on the device; copies do not wait where the memory is pinned."""
    for batch in epochs(number):
        if isinstance(batch, Images):
            yield Images(*(field.to(device, non_blocking=True) for field in batch))
        else:
            yield batch


def _convert(contender: Contender) -> dict[str, float]:
    if contender.convert is None or contender.store is None:
        return {}
    if contender.store.exists():
        return {}  # an earlier contender reads the same files
    started = time.perf_counter()
    contender.convert(contender.store)
    convert_s = time.perf_counter() - started
    store = contender.store
    files = [path for path in (store, *store.rglob("*")) if path.is_file()]
    return {"convert_s": convert_s, "bytes": float(sum(path.stat().st_size for path in files))}


def _check(contender: Contender, batches: Iterable[Any], truth: Truth) -> dict[str, float]:
    if contender.scale is None:
        _walk(batches)
        return {}
    return check(
        batches,
        contender.expected,
        truth,
        contender.scale,
        contender.levels,
        contender.mask_share,
    )


def _walk_epoch(epochs: Epochs, number: int) -> int:
    return _walk(epochs(number))


def _walk(batches: Iterable[Images | int]) -> int:
    """Take all batches and keep none; returns how many samples came."""
    samples = 0
    for batch in batches:
        samples += len(batch.index) if isinstance(batch, Images) else batch
    return samples


class Isolated:
    """The parent's end of a contender's process. Raises Unavailable for whatever goes wrong."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = contender.name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender))
        self._process.start()
        theirs.close()
        self.facts: dict[str, float] = self._answer()

    def check(self, truth: Truth) -> dict[str, float]:
        """Compare one epoch with the truth; doubles as a warm-up."""
        self._pipe.send(("check", truth))
        return self._answer()

    def run(self) -> Repeat:
        """Time one epoch."""
        self._pipe.send(("run", None))
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(_PATIENCE_S):
                raise Unavailable(f"no answer within {_PATIENCE_S:g} s")
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise Unavailable(f"its process ended with code {self._process.exitcode}") from None
        if not good:
            raise Unavailable(answer)
        return answer

    def close(self) -> None:
        """End the process: politely, then not."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Race:
    """What a comparison found, by name of the contender."""

    repeats: dict[str, list[Repeat]]
    figures: dict[str, dict[str, float]]
    skipped: dict[str, str]


def race(
    contenders: Sequence[Contender],
    truth: Truth,
    repeats: int,
    *,
    optional: bool = False,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Race:
    """Open and check all contenders, then time an epoch of each in turn, ``repeats`` times.

    optional: a contender that cannot run or is wrong is skipped with the reason; otherwise
        Unavailable is raised.
    """
    figures: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    running: dict[str, Isolated] = {}
    with ExitStack() as stack:
        for contender in contenders:
            try:
                isolated = Isolated(contender)
                stack.enter_context(isolated)
                found = isolated.check(truth)
            except Unavailable as error:
                if not optional:
                    raise Unavailable(f"{contender.name}: {error}") from None
                skipped[contender.name] = str(error)
                say(f"{contender.name}: skipped, {skipped[contender.name]}")
                continue
            running[contender.name] = isolated
            figures[contender.name] = {**isolated.facts, **found}
            say(f"{contender.name}: right ({len(truth.index)} samples compared)")
        timed = interleave(
            {name: isolated.run for name, isolated in running.items()},
            repeats,
            warmup=0,  # the check was one
            report=lambda name, one: say(f"{name}: {one.samples_per_s:,.0f} samples/s"),
        )
    return Race(repeats=timed, figures=figures, skipped=skipped)


def batches_of(indices: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """A shuffled epoch in batches, for contenders that take an order."""
    order = np.random.default_rng(seed).permutation(indices)
    yield from (order[at : at + size] for at in range(0, len(order), size))
