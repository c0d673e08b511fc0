"""A way to load the data, in its own process: opened, checked, and timed on request.

Each has its own process because engines change what others rely on: stock FFCV alters numba's
types and sets torch's threads, and DALI, OpenMP and fork do not always agree.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from maskdepth.benchmarks.harness.images import Images, Scale, Truth, check
from maskdepth.benchmarks.harness.nvml import added_gib, before_use
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.harness.results import CaseResult
from maskdepth.benchmarks.harness.timing import Found, Repeat, interleave, print_progress, time_once
from maskdepth.convert.errors import DataError
from maskdepth.convert.workers import signals_left_to_parent

Epochs = Callable[[int], Iterable[Images | int]]
"""Number of an epoch -> its batches; an int is the size of a batch whose images are not kept."""

_CONTEXT = multiprocessing.get_context("spawn")
_PATIENCE_S = 600.0
_PEERS = (
    "array_record", "grain", "lancedb", "litdata", "spdl", "torchcodec", "turboloader",
    "webdataset",
)  # fmt: skip
_EXTRAS = {**dict.fromkeys(_PEERS, "peers"), "streaming": "peers-streaming"}
"""Packages of other libraries -> the extra that has them."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to load.

    opens: context manager that yields `Epochs`; called with ``loading``, ``options``, and with
        ``store`` if there is a ``convert``.
    convert: writes the files that it reads into ``store``, unless they exist; its time is not
        part of the loading.
    expected: int64, the samples of an epoch.
    scale, levels, mask_share: see `images.check`; scale None: delivers no images.
    """

    name: str
    opens: Callable[..., AbstractContextManager[Epochs]]
    loading: Loading
    options: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[Path], None] | None = None
    store: Path | None = None
    expected: np.ndarray
    scale: Scale | None = None
    levels: float = 0.0
    mask_share: float = 0.0


class Unavailable(DataError):
    """A contender that cannot run here, or is wrong, and why."""


def _serve(pipe: Connection, contender: Contender, log: str) -> None:
    """The process of a contender: answer requests until the pipe is closed.

    A request is the truth to check an epoch with, or None to time one. An answer is a pair:
    whether it succeeded, and what was found or why it failed. What libraries print, and the
    traceback of an error, is added to the file ``log``.
    """
    _print_to(log)
    # A spawned process would spawn those that a library starts, unlike a user's program: FFCV's
    # writer then starts one after the other, each of which imports the program again.
    multiprocessing.set_start_method(None, force=True)
    try:
        with ExitStack() as stack:
            torch.set_num_threads(contender.loading.threads)
            before_use(contender.loading.device)
            converted = _convert(contender)
            options = dict(contender.options)
            if contender.store is not None:
                options["store"] = contender.store
            began = time.perf_counter()
            epochs = stack.enter_context(contender.opens(contender.loading, **options))
            pipe.send((True, converted | {"open_s": time.perf_counter() - began}))
            device, number = torch.device(contender.loading.device), 0
            while True:
                truth: Truth | None = pipe.recv()
                batches = _on_device(epochs, device, number)
                if truth is None:
                    count = partial(_count_samples, batches)
                    pipe.send((True, time_once(count, device=device)))
                else:
                    found = _check(contender, batches, truth)
                    used_gib = added_gib(contender.loading.device)
                    if used_gib is not None:
                        found["device_used_gib"] = used_gib
                    pipe.send((True, found))
                number += 1
    except EOFError:
        return  # the parent has closed the pipe
    except BaseException as error:
        if not isinstance(error, (ImportError, Unavailable)):  # their reason says all
            traceback.print_exc()
        sys.stderr.flush()
        with suppress(OSError):  # the parent was interrupted, and no one reads the reason
            pipe.send((False, reason_of(error)))


def reason_of(error: BaseException) -> str:
    """Why a contender cannot run, in one line; of a package of an extra, how to install it."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in _EXTRAS:
        extra = _EXTRAS[package]
        return f"{package} is not installed: pip install 'maskdepth[{extra}]'"
    # The last line: a worker's error carries its complete traceback.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if ":" in lines[-1] else f"{type(error).__name__}: {lines[-1]}"


def _print_to(log: str) -> None:
    """Send all that this process prints to a file, except the stacks of a crash."""
    if faulthandler.is_enabled():
        faulthandler.enable(os.dup(2))
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _on_device(epochs: Epochs, device: torch.device, number: int) -> Iterator[Images | int]:
    """The batches of an epoch on the device; copies from pinned memory are asynchronous."""
    for batch in epochs(number):
        if isinstance(batch, Images):
            yield Images(*(field.to(device, non_blocking=True) for field in batch))
        else:
            yield batch


def _convert(contender: Contender) -> dict[str, float]:
    store = contender.store
    # The store exists where an earlier contender reads the same files.
    if contender.convert is None or store is None or store.exists():
        return {}
    started = time.perf_counter()
    contender.convert(store)
    convert_s = time.perf_counter() - started
    files = [path for path in (store, *store.rglob("*")) if path.is_file()]
    return {"convert_s": convert_s, "bytes": float(sum(path.stat().st_size for path in files))}


def _check(contender: Contender, batches: Iterable[Any], truth: Truth) -> dict[str, float]:
    if contender.scale is None:
        _count_samples(batches)
        return {}
    allowed = contender.levels, contender.mask_share
    return check(batches, contender.expected, truth, contender.scale, *allowed)


def _count_samples(batches: Iterable[Images | int]) -> int:
    """Take all batches and keep none."""
    return sum(len(batch.index) if isinstance(batch, Images) else batch for batch in batches)


class Isolated:
    """The parent's end of a contender's process. Raises Unavailable for every failure.

    Then it prints what the process has printed, which is not shown otherwise.

    opened: seconds that it took to open, and seconds and bytes of the files that it wrote for
        itself, if any.
    """

    def __init__(self, contender: Contender) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._log = tempfile.NamedTemporaryFile(prefix="maskdepth-log-")  # noqa: SIM115
        arguments = (theirs, contender, self._log.name)
        self._process = _CONTEXT.Process(target=_serve, args=arguments)
        with signals_left_to_parent():
            self._process.start()
        theirs.close()
        try:
            self.opened: dict[str, float] = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def check(self, truth: Truth) -> dict[str, float]:
        """Compare one epoch with the truth; doubles as a warm-up.

        On a GPU ``device_used_gib`` is the memory that the contender then holds, by NVML.
        """
        self._pipe.send(truth)
        found: dict[str, float] = self._answer()
        return found

    def run(self) -> Repeat:
        self._pipe.send(None)
        repeat: Repeat = self._answer()
        return repeat

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(_PATIENCE_S):
                self._fail(f"no answer within {_PATIENCE_S:g} s")
            succeeded, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            self._fail(f"its process ended with code {self._process.exitcode}")
        if not succeeded:
            self._fail(answer)
        return answer

    def _fail(self, reason: str) -> NoReturn:
        sys.stderr.write(self._log.read().decode(errors="replace"))
        raise Unavailable(reason) from None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask the process to end, then kill it."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._log.close()


def race(
    contenders: Sequence[Contender],
    truth: Truth,
    loading: Loading,
    *,
    optional: bool = False,
    after_round: Callable[[dict[str, CaseResult], dict[str, str]], object] = lambda *found: None,
) -> tuple[dict[str, CaseResult], dict[str, str]]:
    """Open and check all contenders, then time an epoch of each in turn, in rounds.

    Returns the cases, by name of the contender, and why others were not timed.
    optional: a contender that cannot run or is wrong is skipped with the reason; otherwise
        Unavailable is raised.
    after_round: is called with what would be returned, after each round.
    """
    figures: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    measures: dict[str, Callable[[], Repeat]] = {}

    def cases_of(timed: Found) -> dict[str, CaseResult]:
        return {
            name: CaseResult(repeats=list(repeats), figures=figures[name])
            for name, repeats in timed.items()
        }

    with ExitStack() as stack:
        for contender in contenders:
            name = contender.name
            try:
                isolated = stack.enter_context(Isolated(contender))
                found = isolated.check(truth)
            except Unavailable as error:
                if not optional:
                    raise Unavailable(f"{name}: {error}") from None
                skipped[name] = str(error)
                print_progress(f"{name}: skipped, {error}")
                continue
            measures[name] = isolated.run
            figures[name] = {**isolated.opened, **found}
            compared = len(truth.index) if found else 0
            print_progress(f"{name}: ready ({compared} samples compared)")
        timed = interleave(
            measures, loading.repeats, minutes=loading.minutes,
            warmup=0,  # the check was a warm-up
            after_round=lambda found: after_round(cases_of(found), skipped),
        )  # fmt: skip
    return cases_of(timed), skipped
