"""Opening 400,000 samples: the first batch within seconds, and little memory of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_shards import write_tiny_shards

FIRST_BATCH_S = 3.0
MEMORY_MIB = 200

# Imports and compiled kernels come before the clock: they are not the loader's.
OPEN = """
import json, re, sys, time
from pathlib import Path
from maskdepth.loaders import build_loader

engine, warm, large = sys.argv[1:]

def resident_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

with build_loader(engine, warm, batch_size=8) as loader:
    next(loader.epoch(0))
before, began = resident_mib(), time.perf_counter()
loader = build_loader(engine, large, batch_size=64)
batch = next(loader.epoch(0))
first_batch_s = time.perf_counter() - began
print(json.dumps({"first_batch_s": first_batch_s, "memory_mib": resident_mib() - before}))
loader.close()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "shards"
    write_tiny_shards(folder, backgrounds=100, samples_per_bg=4000)
    return folder


@pytest.mark.parametrize("engine", ["ffcv", "dali"])
def test_first_batch_of_400000_samples(
    shards: Path, large: Path, need_engine: Callable[[str], None], engine: str
) -> None:
    need_engine(engine)
    command = [sys.executable, "-c", OPEN, engine, str(shards), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first_batch_s"] < FIRST_BATCH_S, found
    assert found["memory_mib"] < MEMORY_MIB, found


def test_the_import_of_ffcv_leaves_numba_as_it_is(need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    import numba.typed
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert {**IMAGE_MODES} == {"jpg": 0, "raw": 1}
    assert numba.typed.Dict.__module__ == "numba.typed.typeddict"
