"""Maps files into memory: without a descriptor for each, and without SIGBUS if one is truncated.

`mmap.mmap`, and with it `numpy.memmap`, keeps a duplicate of the descriptor as long as the map, so
that more tar shards than `ulimit -n` could not be open. And where a file is truncated while it is
mapped, reading the missing pages ends the process. Here they read as zeros, in any thread and in
any library, and `require_complete` raises an error that names the file.
"""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import os
import signal
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from maskdepth.convert.errors import DataError, reading
from maskdepth.convert.files import require_regular

_MAP_FIXED, _MAP_FAILED = 0x10, ctypes.c_void_p(-1).value
_SA_SIGINFO, _SI_ADDR = 4, 16
"""Of Linux: a flag of sigaction(2), and where in siginfo_t the address of a fault is (64 bit)."""

_LARGEST_HEADER = 1 << 11  # of an `.npy` file; those of `pack` have 128 to 256 bytes

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(eq=False)
class _Map:
    """A mapped file. lost: whether some of its pages could not be read, and are zeros now."""

    path: str
    start: int
    size: int
    inode: tuple[int, int]
    lost: bool = False


_maps: dict[int, _Map] = {}
"""All maps by their first address, which is that of a page."""


def map_file(path: Path) -> np.ndarray:
    """All bytes of a file: uint8 and flat, read-only, read as they are used. Raises DataError.

    The map ends with the last array that refers to it.
    """
    with reading(path):
        require_regular(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not status.st_size:
                return np.empty(0, np.uint8)
            start = _map(None, status.st_size, mmap.MAP_PRIVATE, file.fileno())
    _handle_bus_errors()
    _maps[start] = _Map(os.fspath(path), start, status.st_size, (status.st_dev, status.st_ino))
    memory = (ctypes.c_ubyte * status.st_size).from_address(start)
    # Not at exit, when threads may still be reading.
    weakref.finalize(memory, _unmap, start, status.st_size).atexit = False
    array = np.ctypeslib.as_array(memory)
    array.flags.writeable = False
    return array


def load_array(
    path: Path, dtype: np.dtype, shape: tuple[int | None, ...], fix: str = "pack again"
) -> np.ndarray:
    """Map an `.npy` file for reading; DataError unless it has this type and shape.

    shape: with None for its first number, of any number of rows. fix: what to do about any other
    file, for the message.
    """
    if not path.exists():
        raise DataError(f"{path}: is missing; {fix}")
    mapped = map_file(path)
    try:
        header = io.BytesIO(mapped[:_LARGEST_HEADER].tobytes())
        if (version := np.lib.format.read_magic(header)) != (1, 0):
            raise ValueError(f"found version {version}, expected (1, 0)")
        found = np.lib.format.read_array_header_1_0(header)
    except Exception as error:  # NumPy fails in many ways at a corrupt header
        raise DataError(f"{path}: not a NumPy file ({error}); {fix}") from None
    rows = next(iter(found[0]), 0) if shape[0] is None else shape[0]
    expected = (max(0, rows), *(size or 0 for size in shape[1:]))
    if found != (expected, False, dtype):
        raise DataError(f"{path}: {_other_array(found, (expected, False, dtype))}; {fix}")
    content, size = mapped[header.tell() :], math.prod(expected) * dtype.itemsize
    if len(content) < size:
        raise DataError(f"{path}: found {len(content)} bytes of values, expected {size}; {fix}")
    return content[:size].view(dtype).reshape(expected)


_Header = tuple[tuple[int, ...], bool, np.dtype]
"""Shape, whether the values are in the order of Fortran, and type."""


def _other_array(found: _Header, expected: _Header) -> str:
    """What was found in the place of an array, and what was expected."""
    (shape, _, dtype), (wanted, _, wanted_dtype) = found, expected
    if found[1:] == expected[1:] and shape[1:] == wanted[1:] and shape and wanted:
        return f"found {shape[0]} rows, expected {wanted[0]}"
    names = (", ".join(of.names) if of.names else str(of) for of in (dtype, wanted_dtype))
    if dtype != wanted_dtype:
        return "found values of {}, expected {}".format(*names)
    if shape == wanted:
        return "found values in columns, expected rows"
    return f"found values of shape {shape}, expected {wanted}"


def create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped `.npy` file and reserve its space on the disk.

    Raises OSError if there is not enough: writing to a map of missing space kills the process.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def require_complete(array: np.ndarray) -> None:
    """DataError if the file of a map has lost bytes since it was mapped.

    array: of `map_file`, or a view that begins in its first page. To be called after its values
    were used: what is missing was zeros. Costs one stat(2); a file that was replaced or removed
    meanwhile is complete, because the map keeps the old one.
    """
    found = _maps.get(array.ctypes.data & -mmap.PAGESIZE)
    if found is None:  # empty
        return
    try:
        status = os.stat(found.path)
    except OSError:
        status = None
    if status and (status.st_dev, status.st_ino) == found.inode and status.st_size < found.size:
        raise DataError(
            f"{found.path}: was truncated while it was open: found {status.st_size} bytes, "
            f"expected {found.size}; restore it, or pack again"
        )
    if found.lost:
        raise DataError(
            f"{found.path}: found a part that can no longer be read; restore it, or pack again"
        )


def release_pages(array: np.ndarray) -> None:
    """Let the pages of a map that were read no longer count as memory of this process.

    array: as in `require_complete`. A page that is used again is taken from the page cache.
    """
    if found := _maps.get(array.ctypes.data & -mmap.PAGESIZE):
        _libc.madvise(found.start, found.size, mmap.MADV_DONTNEED)


def _map(address: int | None, size: int, flags: int, descriptor: int) -> int:
    """mmap(2) of memory to read; OSError if it fails."""
    # Not for writing, too: Linux would count a private copy of the whole file as memory in use, and
    # refuse more than there is (where `vm.overcommit_memory` is 2).
    start: int = _libc.mmap(address, size, mmap.PROT_READ, flags, descriptor, 0)
    if start == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return start


def _unmap(start: int, size: int) -> None:
    del _maps[start]  # first, as another map may be given the same address
    _libc.munmap(start, size)


class _Action(ctypes.Structure):
    """struct sigaction of the C library."""

    _fields_ = (
        ("handler", ctypes.c_void_p), ("mask", ctypes.c_ubyte * 128), ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )  # fmt: skip


_before = _Action()


@lru_cache(maxsize=1)
def _handle_bus_errors() -> None:
    """Let missing pages of our maps be zeros; any other SIGBUS does what it did before.

    `signal.signal` cannot: its handlers run after the instruction that failed, which repeats for
    ever. This one is called at once, in the thread that reads, whether that holds the GIL or not.
    It takes the GIL, so that no code may wait for a thread that reads maps while it holds the GIL.
    """
    handler = ctypes.cast(_fill_with_zeros, ctypes.c_void_p).value
    action = _Action(handler=handler, flags=_SA_SIGINFO)
    _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_before))


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def _fill_with_zeros(number: int, info: int, _: int) -> None:
    """On return, the instruction that failed is repeated."""
    address = ctypes.c_void_p.from_address(info + _SI_ADDR).value or 0
    found = next((m for m in list(_maps.values()) if 0 <= address - m.start < m.size), None)
    try:
        if found is not None:
            found.lost = True
            page = address & -mmap.PAGESIZE
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            # What follows a missing page of a truncated file is missing, too.
            _map(page, found.start + found.size - page, flags, -1)
            return
    except OSError:  # no memory
        pass
    _libc.sigaction(number, ctypes.byref(_before), None)
