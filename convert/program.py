"""What the three programs do first, before they import anything that takes time."""

from __future__ import annotations

import os
import sys
from types import TracebackType

import maskdepth
from maskdepth.convert.interrupts import end_at_once
from maskdepth.convert.kernel_cache import require_folder

_NO_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "failed to map segment", "out of memory",
)  # fmt: skip
_OURS = ("maskdepth", "tests")
_IN_CHECKOUT = os.path.islink(os.path.join(os.path.dirname(maskdepth.__file__), "train.py"))

CONVERT, TRAIN, BENCH = (
    ("python -m convert", "train.py", "python -m benchmarks")
    if _IN_CHECKOUT
    else ("maskdepth convert", "maskdepth train", "maskdepth bench")
)
"""The programs as messages name them: those of a checkout, or those of an installed package."""


def begin() -> None:
    """Let Ctrl-C, or a package that is missing, end the program with one line during its imports.

    So does a machine without a folder for compiled kernels.
    """
    # Pictures are files. A notebook names a backend that this environment need not have.
    os.environ["MPLBACKEND"] = "agg"
    end_at_once()
    sys.excepthook = _end_if_missing
    require_folder()


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to do about a package that is not installed; None where the mistake is ours.

    That is a module of this project, or one that an installed package does not have.
    """
    package, _, inside = (error.name or "").partition(".")
    if not package or package in _OURS or (inside and package in sys.modules):
        return None
    advice = (
        "activate the environment by `. .venv/bin/activate`; `make install` makes it (README.md)"
        if _IN_CHECKOUT
        else "install it, or the extra of maskdepth that needs it"
    )
    return f"the package {package} is not installed for {sys.executable}: {advice}"


def missing_memory(error: BaseException) -> str | None:
    """What to do where memory is missing; None for another error.

    torch, numba and the loader of shared libraries report that in words alone.
    """
    text = str(error).casefold()
    if not isinstance(error, MemoryError) and not any(words in text for words in _NO_MEMORY):
        return None
    about = f" ({' '.join(str(error).split())[:120]})" if text else ""
    return (
        f"not enough memory{about}: end other programs, raise the limit (ulimit -v), or use fewer "
        "workers or smaller batches"
    )


def _end_if_missing(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As `sys.excepthook`, which cannot change the exit code."""
    line = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
    line = line or missing_memory(error)
    if line is None:
        sys.__excepthook__(kind, error, trace)
        return
    os.write(2, os.fsencode(f"Error: {line}\n"))
    os._exit(2)
