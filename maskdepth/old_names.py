"""`import convert` in a checkout, as before its packages belonged to maskdepth."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_PROGRAM = "__main__"


def redirect(name: str) -> None:
    """Make ``name``, and every module below it, the module of maskdepth, and warn once.

    A package or module calls it when it is imported by its old name. `python -m convert` imports
    the package so, and does not warn.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        if not _is_run(name):
            warnings.warn(
                f"import maskdepth.{name} instead of {name}: the old name works in a checkout only",
                FutureWarning,
                stacklevel=3,
            )
    sys.modules[name] = import_module(f"maskdepth.{name}")


def _is_run(name: str) -> bool:
    """Whether `python -m NAME` is what runs: here, or in the process that started this one."""
    return sys.argv[0] == "-m" or Path(sys.argv[0]).parts[-2:] == (name, f"{_PROGRAM}.py")


class _Finder(MetaPathFinder, Loader):
    """Finds what is below a redirected name, in maskdepth."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, last = fullname.rpartition(".")
        found = sys.modules.get(parent.partition(".")[0])
        is_old = found is not None and found.__name__ == f"maskdepth.{parent.partition('.')[0]}"
        return ModuleSpec(fullname, self) if is_old and last != _PROGRAM else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"maskdepth.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module is complete; the import system has replaced its specification."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
