"""The files are what they claim: stock FFCV, stock DALI and webdataset read them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.tarshards import member_header

# In a process of its own: stock FFCV changes numba's type of read-only arrays in place, and
# numba then no longer finds what it has compiled for that type.
STOCK_FFCV = """
import sys
import numpy as np
from ffcv.fields.bytes import BytesDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor

pipelines = {
    "fg_bg": [SimpleRGBImageDecoder(), ToTensor()],
    "depth": [SimpleRGBImageDecoder(), ToTensor()],
    "mask": [BytesDecoder(), ToTensor()],
}
loader = Loader(
    sys.argv[1], batch_size=16, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
    pipelines=pipelines,
)
batches = [[field.numpy().copy() for field in batch] for batch in loader]
np.savez(sys.argv[2], *(np.concatenate(fields) for fields in zip(*batches)))
"""


def test_stock_ffcv_reads_the_file(
    dataset: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    shards = tmp_path / "shards"
    config = PackConfig(formats=("ffcv",), codec="jpeg")
    pack(dataset, shards, config=config, workers=0, progress=False)
    found = tmp_path / "found.npz"
    command = [sys.executable, "-c", STOCK_FFCV, str(shards / "samples.beton"), str(found)]
    subprocess.run(command, check=True, timeout=200)
    with np.load(found) as arrays:
        fg_bg, mask, depth, index = (arrays[name] for name in arrays.files)
    opened = Shards(shards, "ffcv")
    assert index.flatten().tolist() == list(range(len(opened)))
    for number in range(len(opened)):
        # Stock FFCV decodes with a fast, inexact DCT: close, not equal.
        difference = fg_bg[number].astype(int) - opened.decode(number, "fg_bg")
        assert np.abs(difference).max() <= 20
        difference = depth[number][..., 0].astype(int) - opened.decode(number, "depth")
        assert np.abs(difference).max() <= 20
        stored = opened.stored(number, "mask")
        assert np.array_equal(mask[number][: len(stored)], stored)


def test_stock_dali_reads_the_shards(shards: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("dali")
    from nvidia.dali import fn, pipeline_def, types

    opened = Shards(shards, "webdataset")
    names = read_manifest(shards).formats["webdataset"].files
    paths = [str(shards / name) for name in names]

    @pipeline_def(batch_size=10, num_threads=1, device_id=None)
    def graph() -> tuple:
        read: Any = fn.readers.webdataset
        fg_bg, depth, index = read(
            paths=paths,
            index_paths=[path.replace(".tar", ".idx") for path in paths],
            ext=["fg_bg.jpg", "depth.jpg", "index"],
        )
        index = fn.reinterpret(index, dtype=types.INT64)
        gray = fn.decoders.image(depth, output_type=types.GRAY)
        return fn.decoders.image(fg_bg, output_type=types.RGB), gray, index

    pipeline = graph()
    seen = []
    for _ in range(len(opened) // 10):
        outputs = pipeline.run()
        assert outputs is not None
        fg_bg, depth, index = outputs
        for row in range(10):
            number = int(np.asarray(index.at(row))[0])
            assert np.array_equal(np.asarray(fg_bg.at(row)), opened.decode(number, "fg_bg"))
            assert np.array_equal(np.asarray(depth.at(row))[..., 0], opened.decode(number, "depth"))
            seen.append(number)
    assert sorted(seen) == list(range(len(opened)))
    assert seen != sorted(seen)  # shards lie in a permutation


def test_webdataset_reads_the_shards(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    opened = Shards(shards, "webdataset")
    names = read_manifest(shards).formats["webdataset"].files
    stream = webdataset.WebDataset([str(shards / name) for name in names], shardshuffle=False)
    seen = []
    for sample in stream:
        number = int.from_bytes(sample["index"], "little")
        assert int(sample["__key__"]) == number
        assert sample["fg_bg.jpg"] == opened.stored(number, "fg_bg").tobytes()
        assert sample["mask.runs"] == opened.stored(number, "mask").tobytes()
        assert sample["depth.jpg"] == opened.stored(number, "depth").tobytes()
        seen.append(number)
    assert sorted(seen) == list(range(len(opened)))


def test_dali_index_agrees_with_tarfile(shards: Path) -> None:
    for name in read_manifest(shards).formats["webdataset"].files:
        lines = (shards / name.replace(".tar", ".idx")).read_text().splitlines()
        with tarfile.open(shards / name) as archive:
            members = archive.getmembers()
        rows = [line.split() for line in lines[1:]]
        triples = [tuple(line[at : at + 4]) for line in rows for at in range(0, len(line), 4)]
        expected = [
            (m.name.split(".", 1)[1], str(m.offset_data), str(m.size), m.name) for m in members
        ]
        assert lines[0] == f"v1.2 {len(rows)}"
        assert triples == expected


@given(st.integers(0, 10**9 - 1), st.integers(0, 8**11 - 1))
def test_tar_headers_are_those_of_tarfile(index: int, size: int) -> None:
    info = tarfile.TarInfo(f"{index:09d}.fg_bg.jpg")
    info.size = size
    assert member_header(info.name, size) == info.tobuf(tarfile.USTAR_FORMAT)
