"""A reader by `docs/format.md` alone: the standard library, NumPy and Pillow, nothing of ours.

The one import of ours is the fixture that wrote the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FIELDS = ("fg_bg", "mask", "depth")


def crc32c(data: bytes) -> int:
    """CRC-32C by its definition: reflected polynomial 0x82F63B78."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def documented_reader() -> Callable[..., np.ndarray]:
    """The function `decode_difference` of docs/format.md."""
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    return names["decode_difference"]


def decode(codec: str, data: bytes, shape: tuple[int, int]) -> np.ndarray:
    if codec == "runs":
        runs, colours, colour = np.frombuffer(data, np.uint8), [], 0
        for byte in runs:
            colours.append(colour)
            colour = colour if byte == 255 else 1 - colour
        return np.repeat(np.array(colours, np.uint8), runs).reshape(shape)
    image = Image.open(io.BytesIO(data))
    if codec == "jpeg":
        return np.asarray(image.convert("RGB"))
    image.draft("L", image.size)
    gray = np.asarray(image.convert("L"))
    return (gray >= 128).astype(np.uint8) if codec == "jpeg-mask" else gray


def source_pixels(dataset: Path, index: int, per_bg: int) -> dict[str, np.ndarray]:
    group = sorted(path.stem for path in (dataset / "bg").iterdir())[index // per_bg]
    name = sorted(path.name for path in (dataset / "fg_bg" / group).iterdir())[index % per_bg]
    shape = (0, 0)
    folders = {"fg_bg": "jpeg", "fg_bg_mask": "jpeg-mask", "fg_bg_depth": "jpeg-gray"}
    return {
        field: decode(codec, (dataset / folder / group / name).read_bytes(), shape)
        for field, (folder, codec) in zip(FIELDS, folders.items(), strict=True)
    }


def test_manifest_files_and_backgrounds(dataset: Path, shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("maskdepth-shards", 2)
    assert sorted(manifest["files"]) == sorted(
        path.name for path in shards.iterdir() if path.name != "manifest.json"
    )
    for name, found in manifest["files"].items():
        data = (shards / name).read_bytes()
        assert found == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    backgrounds = np.load(shards / "backgrounds.npy")
    for number, name in enumerate(manifest["backgrounds"]):
        assert np.array_equal(
            backgrounds[number], decode("jpeg", (dataset / "bg" / name).read_bytes(), (0, 0))
        )
    bg = manifest["statistics"]["bg"]
    pixels = (
        np.repeat(backgrounds, manifest["samples_per_bg"], axis=0).reshape(-1, 3).astype(np.int64)
    )
    assert bg["values"] == len(pixels)
    assert bg["sums"] == pixels.sum(axis=0).tolist()
    assert bg["squares"] == (pixels**2).sum(axis=0).tolist()
    assert np.allclose(bg["mean"], pixels.mean(axis=0) / bg["scale"])
    assert np.allclose(bg["std"], pixels.std(axis=0) / bg["scale"])


@pytest.mark.parametrize("form", ["ffcv", "webdataset"])
def test_every_record_by_the_index(dataset: Path, shards: Path, form: str) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    stored = manifest["formats"][form]
    files = [(shards / name).read_bytes() for name in stored["files"]]
    rows = np.load(shards / stored["index"])
    assert (len(rows), rows.dtype.itemsize) == (manifest["samples"], 60)
    height, width = manifest["image_size"]
    bases = {name: np.load(shards / base["file"]) for name, base in manifest["bases"].items()}
    decode_difference, differences = documented_reader(), 0
    for index in range(0, manifest["samples"], 7):
        expected = source_pixels(dataset, index, manifest["samples_per_bg"])
        for field in FIELDS:
            row = rows[index][field]
            data = files[row["file"]][row["offset"] : row["offset"] + row["size"]]
            assert crc32c(data) == row["crc32c"]
            codec = manifest["codecs"][form][field]
            if codec.startswith("difference") and data[0] == 0:
                described = manifest["bases"][field]
                kind = described["samplings"], described["quantisers"]
                base = bases[field][index // manifest["samples_per_bg"]]
                found = decode_difference(data, base, *kind, height, width)
                differences += 1
            else:
                found = decode(codec, data, (height, width))
            assert np.array_equal(found, expected[field])
    assert differences == (2 * len(range(0, manifest["samples"], 7)) if form == "ffcv" else 0)


def test_beton_by_its_own_tables(shards: Path) -> None:
    data = (shards / "samples.beton").read_bytes()
    manifest = json.loads((shards / "manifest.json").read_text())
    rows = np.load(shards / "samples.beton.index.npy")
    version, fields, page, samples, table = struct.unpack_from("<HHIQQ", data)
    assert (version, fields, page, samples) == (2, 4, 8_388_608, manifest["samples"])
    kinds = [(data[at], data[at + 1 : at + 17].rstrip(b"\0")) for at in range(24, 4188, 1041)]
    assert kinds == [(3, b"fg_bg"), (3, b"mask"), (3, b"depth"), (1, b"index")]
    assert len(data) == table + 24 * 3 * samples
    for index in range(samples):
        at = 4188 + 56 * index
        *fields, number = struct.unpack_from("<6Qq", data, at)
        places = [int(rows[index][field]["offset"]) for field in FIELDS]
        sizes = [int(rows[index][field]["size"]) for field in FIELDS]
        assert (fields[::2], fields[1::2], number) == (places, sizes, index)
        found = [struct.unpack_from("<QQQ", data, table + 24 * (3 * index + i)) for i in range(3)]
        assert found == [(index, int(p), s) for p, s in zip(places, sizes, strict=True)]
        assert places[0] // page == (places[2] + sizes[2] - 1) // page


def test_tar_by_its_members(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    rows = np.load(shards / "samples.tar.index.npy")
    seen = []
    for number, name in enumerate(manifest["formats"]["webdataset"]["files"]):
        with tarfile.open(shards / name) as archive:
            members = archive.getmembers()
            for first in range(0, len(members), 4):
                key = members[first].name.split(".")[0]
                suffixes = ("fg_bg.jpg", "mask.runs", "depth.jpg", "index")
                four = members[first : first + 4]
                assert [member.name for member in four] == [f"{key}.{end}" for end in suffixes]
                extracted = archive.extractfile(four[3])
                assert extracted is not None
                index = int.from_bytes(extracted.read(), "little")
                assert index == int(key)
                for field, member in zip(FIELDS, four, strict=False):
                    row = rows[index][field]
                    assert (row["file"], row["offset"]) == (number, member.offset_data)
                    assert row["size"] == member.size
                seen.append(index)
    assert sorted(seen) == list(range(manifest["samples"]))


def test_the_documented_loop_reads_tar_shards(
    dataset: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    manifest = json.loads((shards / "manifest.json").read_text())
    per_bg = manifest["samples_per_bg"]
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    loop = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    loop = loop.replace("36", str(per_bg)) + "    found.append((index, bg, fg_bg, mask, depth))\n"
    names: dict[str, Any] = {"found": []}
    monkeypatch.chdir(shards.parent)
    exec(loop.replace("shards/", f"{shards.name}/"), names)
    assert len(names["found"]) > 1
    backgrounds = sorted((dataset / "bg").iterdir())
    for index, bg, *images in names["found"]:
        expected = source_pixels(dataset, index, per_bg)
        assert np.array_equal(bg, np.asarray(Image.open(backgrounds[index // per_bg])))
        for field, image in zip(FIELDS, images, strict=True):
            assert np.array_equal(image, expected[field])
