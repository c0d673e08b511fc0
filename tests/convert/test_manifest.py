"""Manifests that were changed, by accident or on purpose, and signed again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from maskdepth.convert.__main__ import main
from maskdepth.convert.errors import DataError
from maskdepth.convert.manifest import MANIFEST, read_manifest
from tests.damage import sign, signed_text
from tests.tiny_shards import write_tiny_shards

HUGE = 10**4000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "shards"
    write_tiny_shards(folder, backgrounds=3, samples_per_bg=4)
    return folder


@pytest.fixture
def folder(tiny: Path) -> Iterator[Path]:
    """`tiny`, with its own manifest again."""
    text = (tiny / MANIFEST).read_bytes()
    yield tiny
    (tiny / MANIFEST).write_bytes(text)


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_a_file_outside_the_folder_is_refused(folder: Path) -> None:
    (folder.parent / "outside.beton").write_bytes((folder / "samples.beton").read_bytes())

    def change(value: dict) -> None:
        value["files"]["../outside.beton"] = value["files"].pop("samples.beton")
        value["formats"]["ffcv"]["files"] = ["../outside.beton"]

    sign(folder, change)
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "expected the name of a file in this folder" in result.output
    assert "found '../outside.beton'" in result.output


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/passwd", "a/b", "..\\x", "a\0", "a\nb", "\udcff", " ", ".hidden"]
)
@pytest.mark.parametrize("key", ["file", "index", "files"])
def test_only_plain_names_of_files(folder: Path, name: str, key: str) -> None:
    def change(value: dict) -> None:
        if key == "files":
            value["files"][name] = value["files"]["samples.beton"]
        else:
            form = value["formats"]["ffcv"]
            form.update({"files": [name]} if key == "file" else {"index": name})

    sign(folder, change)
    with pytest.raises(DataError, match=r"expected the name of a file in this folder, .*, found '"):
        read_manifest(folder)


def test_backgrounds_are_names_without_a_folder(folder: Path) -> None:
    sign(folder, lambda value: value["backgrounds"].__setitem__(1, "../a.jpg"))
    with pytest.raises(DataError, match=r"backgrounds, entry 2: .* found '../a.jpg'"):
        read_manifest(folder)
    sign(folder, lambda value: value["backgrounds"].__setitem__(1, "not UTF-8 \udcff.jpg"))
    assert read_manifest(folder).backgrounds[1] == "not UTF-8 \udcff.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(formats={}), "formats must be 1 or more entries, found a table of 0"),
        (lambda v: v.update(formats=3), "formats must be a table, found 3"),
        (
            lambda v: v.update(samples=HUGE),
            "samples must be at most .* found a number of 13288 bits",
        ),
        (lambda v: v.update(samples=True), "samples must be a whole number, found True"),
        (lambda v: v.update(samples=12.0), "samples must be a whole number, found 12.0"),
        (lambda v: v.update(samples_per_bg=-4), "samples_per_bg must be at least 1, found -4"),
        (lambda v: v.update(samples_per_bg=2**62), "do not agree"),
        (lambda v: v.update(samples_per_bg=None), "do not agree"),
        (lambda v: v.update(samples_per_fg=0), "samples_per_fg must be at least 1"),
        (lambda v: v.update(group_starts=[5, 8, 10, 12]), "do not agree"),
        (lambda v: v.update(group_starts=[0, 8, 8, 12]), "do not agree"),
        (lambda v: v.update(group_starts=[0, 4, 8, -12]), "group_starts: entry 4 must be at least"),
        (lambda v: v.update(image_size=[10**6, 16]), "image_size: entry 1 must be at most 65535"),
        (lambda v: v.update(image_size=[16]), "image_size"),
        (lambda v: v.update(backgrounds=[]), "backgrounds must be 1 or more entries"),
        (lambda v: v.update(extra=1), "unknown key 'extra'; known are format, version, samples"),
        (lambda v: v.pop("counts"), "missing key 'counts'"),
        (lambda v: v["counts"].update(source_bytes=0), "source_bytes must be at least 1"),
        (
            lambda v: v["counts"].update(fg_bg_stored_as_jpeg=13),
            "counts: fg_bg_stored_as_jpeg is 13, above the number of samples",
        ),
        (lambda v: v["files"].pop("backgrounds.npy"), "'backgrounds.npy' is not one of the files"),
        (
            lambda v: v["files"]["samples.beton"].update(bytes=-1),
            "files, samples.beton: bytes must",
        ),
        (
            lambda v: v["files"]["samples.beton"].update(sha256=5),
            "sha256 must be a string, found 5",
        ),
        (
            lambda v: v["formats"].update(zip=v["formats"]["ffcv"]),
            "expected one of ffcv, webdataset",
        ),
        (lambda v: v["formats"]["ffcv"].update(files=["samples.beton"] * 2), "twice"),
        (lambda v: v["codecs"]["ffcv"].update(fg_bg="difference"), "has no bases"),
        (lambda v: v["codecs"]["ffcv"].pop("mask"), "codecs of ffcv are not of fg_bg, mask, depth"),
        (lambda v: v["statistics"].pop("bg"), "statistics of bg are not of 3 channels"),
        (lambda v: v["statistics"]["bg"].update(squares=[0, 2, 2]), "no 4 values have the sum 2"),
        (lambda v: v["statistics"]["bg"].update(sums=[2]), "as many channels"),
        (lambda v: v["statistics"]["bg"].update(values=0, sums=[0] * 3, squares=[0] * 3), "mean"),
        (lambda v: v["statistics"]["bg"].update(scale=0), "scale must be 1 or 255, found 0"),
        (lambda v: v["statistics"]["bg"].update(mean=[0.5] * 3), "mean must be that of"),
        (lambda v: v["statistics"]["bg"]["mean"].__setitem__(0, "x"), "mean must be that of"),
        (lambda v: v.update(made=deep(90)), "made must be a table, found a list of 1"),
        (lambda v: v.update(made={"x": deep(200)}), "nested too deep"),
        (lambda v: v.update(made={"x": math.nan}), "the number 'NaN', which is not finite"),
        (lambda v: v.update(version=True), "version must be a whole number, found True"),
    ],
)
def test_what_no_pack_writes_is_refused_in_one_line(
    folder: Path, change: Callable[[dict], object], message: str
) -> None:
    sign(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(folder)
    assert caught.value.message.startswith(f"{folder / MANIFEST}: ")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"\xff\xfe",
        b'{"format": "maskdepth-shards", "version": 1e999}',
        b"9" * 10_000,
    ],
)
def test_any_text(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(DataError, match="not a shard manifest") as caught:
        read_manifest(folder)
    assert len(caught.value.message) < 500


def test_no_flipped_bit_passes(folder: Path) -> None:
    """Not even one of a digit that is rounded away, or of an escape's case."""
    sign(folder, lambda value: value.update(made={"x": [0.12345678901234568, 1e-09], "ß": "ÿ"}))
    text = (folder / MANIFEST).read_bytes()
    read_manifest(folder)
    chosen = np.random.default_rng(0).choice(8 * len(text), 400, replace=False).tolist()
    for at in [*chosen, 8 * (text.index(b"678901234568") + 11), 8 * text.index(b"e-09") + 5]:
        flipped = bytearray(text)
        flipped[at // 8] ^= 1 << at % 8
        (folder / MANIFEST).write_bytes(flipped)
        with pytest.raises(DataError):
            read_manifest(folder)


def test_a_manifest_in_another_layout_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    value = json.loads(text)
    del value["sha256"]
    assert signed_text(value) == text
    (folder / MANIFEST).write_text(json.dumps(json.loads(text)))
    with pytest.raises(DataError, match="was changed after it was written"):
        read_manifest(folder)
