"""What the three programs do first, before they import anything that takes time."""

from __future__ import annotations

from convert.interrupts import end_at_once
from convert.kernel_cache import require_folder


def begin() -> None:
    """Let Ctrl-C end the program with one line while it imports modules, and check that it can."""
    end_at_once()
    require_folder()
