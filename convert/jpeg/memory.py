"""Functions of the C library for numba kernels; all take addresses as `numpy.uint64`."""

from __future__ import annotations

from typing import Any  # numba has no types

from numba.core.types import ExternalFunction, int32, uint64

copy: Any = ExternalFunction("memcpy", uint64(uint64, uint64, uint64))
"""Copy bytes: target, source, count."""
find: Any = ExternalFunction("memchr", uint64(uint64, int32, uint64))
"""The address of the first byte with a value, 0 if there is none: start, value, count."""
